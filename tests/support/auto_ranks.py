"""For torchrun: `training.batch_size: auto`, where memory runs out in one of two processes only.

`torchrun --nproc-per-node 2 tests/support/auto_ranks.py CFG [KEY=VALUE...]`
"""

from __future__ import annotations

import sys

import torch
from accelerate.utils import gather_object

from seghiero_core.config.loading import load_config
from seghiero_core.devices import make_accelerator
from seghiero_core.errors import DeviceError
from seghiero_core.training import batch_size, prepare
from support import tiny  # noqa: F401 (registers the backbone "tiny")
from support.processes import leave_processes

accelerator = make_accelerator("cpu", "fp32")
config = load_config(sys.argv[1], [*sys.argv[2:], "training.batch_size=auto"])
in_second = accelerator.process_index == 1
step, find = batch_size._random_step, prepare.find_batch_size
order, tried = [], []


def search(*arguments, **options):
    order.append("search")
    return find(*arguments, **options)


def synchronize(model, accelerator):
    order.append("synchronize")
    return model


def trial_check(config, model, step, processes):
    def fits(batch):
        tried.append(batch)
        try:
            step(batch)
        except torch.OutOfMemoryError:
            return False
        return True

    return fits


def fail_in_second(config, model, loss, optimizer, accelerator, batch):
    if in_second and batch >= limit:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    step(config, model, loss, optimizer, accelerator, batch)


batch_size._random_step = fail_in_second
prepare.find_batch_size, prepare._synchronize_norms = search, synchronize

# ── not even the trial fits, on the CPU: both processes say so ───────────────────────────────────────────────────────
limit = 2
try:
    prepare.prepare(config)
    raise AssertionError("found a size that doesn't fit")
except DeviceError as error:
    assert "ran out of memory with batches of 1" in str(error), error

# ── trial by trial, as on a GPU: both processes try the same sizes ───────────────────────────────────────────────────
limit, batch_size._cpu_check = 4, trial_check
run = prepare.prepare(config)
assert order[-2:] == ["search", "synchronize"]  # in a trial a norm would wait for a process without memory
assert gather_object([(run.config.training.batch_size, tuple(tried))]) == [(2, (1, 2, 4))] * 2
leave_processes()
