"""Measure what upsampling logits inside the loss, by bands of rows, saves in a training step.

    python benchmarks/bands.py [--threads 2] [--rounds 5]

MiT-B0 + segformer with the 124 leaves of Mapillary Vistas, two images of 512x512 px, in float32. "Whole" upsamples the
logits first, as most libraries do, and then computes the same loss.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from comparison import CPU, MEMORY, TRAINING, Ratio, Work, print_ratios, training_step
from segformer import CONFIG, SUBJECT
from torch import nn

from seghiero_core.benchmarking.memory import peak_allocated
from seghiero_core.benchmarking.timing import time_in_turns
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.combine import build_loss
from seghiero_core.model.factories import build_model
from seghiero_core.model.segmentation import SegmentationOutput

LOSSES: dict[str, tuple[Mapping[str, Any], float]] = {
    "cross-entropy": ({"preset": "flat"}, 1.0),
    "dice": ({"terms": {"dice": 1.0}}, 1 / 1.15),
    "tree_min": ({"terms": {"tree_min": 1.0}}, 1 / 1.15),
}
"""Each loss, and how many times as fast as whole it should be; the last two read the logits twice."""
MEMORY_GOAL = 0.5


class Step(nn.Module):
    """A network with its loss, with logits upsampled inside the loss or before it."""

    def __init__(self, network: nn.Module, criterion: Any, upsample: bool) -> None:
        super().__init__()
        self.net, self.criterion, self.upsample = network, criterion, upsample

    def forward(self, x: torch.Tensor) -> SegmentationOutput:
        return self.net(x.contiguous(memory_format=torch.channels_last), upsample=self.upsample)


def measure(rounds: int) -> list[Ratio]:
    """Compare banded with whole upsampling for every loss."""
    hierarchy = Hierarchy.from_config({"preset": "mapillary-v2"})
    work, ratios = Work(training=(2, 512, 512), classes=len(hierarchy.leaves), rounds=rounds), []
    for name, (section, goal) in LOSSES.items():
        torch.manual_seed(0)
        criterion = build_loss(section, hierarchy, validate=False)
        network = build_model(CONFIG, criterion.num_channels).to(memory_format=torch.channels_last)
        steps = {word: Step(network, criterion, word == "whole") for word in ("banded", "whole")}
        runs = {word: training_step(step, work) for word, step in steps.items()}
        seconds = time_in_turns(runs, rounds, CPU)
        subject = f"{SUBJECT}, 124 leaves, {name}"
        ours, theirs = (1000 * statistics.median(seconds[word]) for word in ("banded", "whole"))
        fastest = min(seconds["whole"]) / min(seconds["banded"])
        ratios.append(Ratio(subject, TRAINING, "whole logits", ours, theirs, "ms", fastest, goal))
        peaks = []
        for run in runs.values():
            network.zero_grad(set_to_none=True)  # so that the step's gradients count
            peaks.append(peak_allocated(run, CPU) / 2**20)
        ratios.append(Ratio(subject, MEMORY, "whole logits", *peaks, "MiB", None, MEMORY_GOAL))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print_ratios(measure(options.rounds))


if __name__ == "__main__":
    main()
