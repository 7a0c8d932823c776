"""For torchrun: train the run `whole`, and the run `parts` with a stop and a resume; both must end alike.

`torchrun --nproc-per-node 2 tests/support/resume_ranks.py CFG [KEY=VALUE...]`
"""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

import support.tiny  # noqa: F401 (registers the backbone "tiny")
from seghiero_core.config.loading import load_config
from seghiero_core.training import loop
from seghiero_core.training.interrupts import Interrupted
from support.processes import leave_processes
from support.runs import StopAt, assert_same, weights

Accelerator.end_training = lambda self: None  # it would end the process group, which the next run needs
prepare, dropout = loop.prepare, torch.nn.functional.dropout2d
runs, draws = [], []


def remember(*arguments, **options):
    runs.append(prepare(*arguments, **options))
    start = gather_object([runs[-1].average.model.state_dict()])  # copied before DDP makes the weights equal
    for other in start[1:]:
        assert_same(start[0], other)
    return runs[-1]


def drop(x, p=0.5, training=True, inplace=False):
    if training:
        draws.append(torch.get_rng_state().numpy().tobytes())
    return dropout(x, p, training, inplace)


loop.prepare, torch.nn.functional.dropout2d = remember, drop
cfg, *overrides = sys.argv[1:]
whole, parts = (load_config(cfg, [*overrides, f"output.name={name}"]) for name in ("whole", "parts"))
loop.train(whole)
uninterrupted = draws.copy()
draws.clear()
try:
    loop.train(parts, notify=StopAt(2))
    raise AssertionError("the run was not stopped")
except Interrupted:
    loop.train(parts, resume=True)
assert draws == uninterrupted
assert_same(weights(whole.run_dir), weights(parts.run_dir))
one, other = gather_object([draws])
assert len(set(one)) == len(one) > 3, "some draws of a process are alike"
assert not set(one) & set(other), "both processes drop alike"
for run in runs[0], runs[2]:  # the processes validated the same weights and statistics
    one, other = gather_object([run.average.model.state_dict()])
    assert_same(one, other)
leave_processes()
