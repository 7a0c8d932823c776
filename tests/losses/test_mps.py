"""Apple's GPU has no float64: tensors with CPU memory that say they are on "mps" stand in for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses import LOSSES
from support.trees import CAMVID, random_target

CPU, MPS = torch.device("cpu"), torch.device("mps")


class MpsTensor(Tensor):
    """A tensor that says it is on "mps"."""

    device = MPS
    __torch_function__ = torch._C._disabled_torch_function_impl


class PretendMps(TorchFunctionMode):
    """Runs everything on the CPU, and refuses what a Mac would: float64, and operands on both devices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.__name__, kwargs or {}
        if name == "__get__":  # an attribute, such as .device or .T
            found = func(*args, **kwargs)
            return to_mps(found) if isinstance(args[0], MpsTensor) else found
        operands = tree_leaves((args, kwargs))
        if name != "to" and len({isinstance(x, MpsTensor) for x in operands if isinstance(x, Tensor) and x.ndim}) == 2:
            raise RuntimeError(f"{name}: some operands are on the CPU and others on mps")
        devices = [x for x in operands if isinstance(x, torch.device)]
        on_mps = devices == [MPS] or (not devices and any(isinstance(x, MpsTensor) for x in operands))
        args, kwargs = tree_map(to_cpu, (args, kwargs))
        found = func(*args, **kwargs)
        return tree_map(to_mps, found) if on_mps else found


def to_cpu(x: Any) -> Any:
    if isinstance(x, MpsTensor):
        return x.as_subclass(Tensor)
    return CPU if isinstance(x, torch.device) and x == MPS else x


def to_mps(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    if x.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
    return x.as_subclass(MpsTensor)


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_needs_float64_on_mps(name):
    """The value and the gradient there are those of the CPU."""
    hierarchy = Hierarchy.from_config(CAMVID)  # a new one: its index tensors are kept by device
    torch.manual_seed(0)
    channels = {"leaves": len(hierarchy.leaves), "nodes": len(hierarchy), "embedding": 4}[LOSSES[name].channels]
    x, target = torch.randn(2, channels, 12, 16), random_target(hierarchy, 2, 12, 16, ignored=0, inner=False)
    options = {"pool": 1, "radius": 2} if name == "region_mutual_information" else {}
    values, grads = [], []
    for device in (CPU, MPS):
        leaf = x.clone().requires_grad_()
        with PretendMps():
            value = LOSSES[name].load(name)(leaf.to(device), target.to(device), hierarchy, **options)
            assert value.device == device
        value.backward()
        values.append(value.detach().as_subclass(Tensor))
        grads.append(leaf.grad)
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(grads[1], grads[0])
