"""Peak memory equals what was allocated."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from seghiero_core.benchmarking.memory import MemoryMeter, peak_allocated

CPU = torch.device("cpu")
MIB = 2**20


def test_the_peak_of_what_pytorch_allocates_is_exact():
    def run():
        a = torch.empty(3 * MIB, dtype=torch.uint8)
        b = torch.empty(2 * MIB, dtype=torch.uint8)
        del a
        c = torch.empty(MIB, dtype=torch.uint8)
        del b, c

    assert peak_allocated(run, CPU) == 5 * MIB


def test_what_was_held_before_does_not_count():
    kept = [torch.empty(8 * MIB, dtype=torch.uint8)]

    def run():
        kept.append(torch.empty(MIB, dtype=torch.uint8))

    assert peak_allocated(run, CPU) == MIB


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget an earlier peak")
def test_the_resident_peak_counts_from_the_creation_of_the_meter():
    large = np.ones(300 * MIB, dtype=np.uint8)
    del large
    meter = MemoryMeter(CPU)
    assert meter.peak_mib() < 20
    middle = np.ones(100 * MIB, dtype=np.uint8)
    del middle
    assert 95 < meter.peak_mib() < 140
    assert "resident" in meter.meaning
