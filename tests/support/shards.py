"""For torchrun: gather a network that FSDP shards over the processes, load it into another, and train both on."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from seghiero_core.model.factories import build_model
from seghiero_core.training.sharding import gather_model, gather_state, scatter_state
from support.processes import leave_processes

SECTIONS = {"backbone": {"type": "resnet", "depth": 18}, "head": {"type": "extremely_fast_segformer", "dropout": 0.0}}


def sharded(seed):
    torch.manual_seed(seed)
    model = build_model(SECTIONS, 4, embedding=False)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def steps(model, optimizer, count):
    for i in range(count):
        torch.manual_seed(i)
        model(torch.rand(2, 3, 64, 64) * 255).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


dist.init_process_group("gloo")
first, second = sharded(0), sharded(1)
steps(*first, 2)
tensors, state = gather_state(*first)
whole = build_model(SECTIONS, 4, embedding=False)
if dist.get_rank() == 0:
    whole.load_state_dict(tensors)  # names and shapes are those without FSDP
    assert {name.rpartition("/")[0] for name in state} == {name for name, _ in whole.named_parameters()}
else:
    assert not tensors
box = [copy.deepcopy((tensors, state))]  # the "step" tensors are the optimizer's own
dist.broadcast_object_list(box)
scatter_state(*second, *box[0])
for model, optimizer in (first, second):
    steps(model, optimizer, 2)
a, b = gather_model(first[0]), gather_model(second[0])
assert a.keys() == whole.state_dict().keys()
for name in a:
    assert a[name].equal(b[name]), name
assert any(not a[name].equal(box[0][0][name]) for name in a)
leave_processes()
