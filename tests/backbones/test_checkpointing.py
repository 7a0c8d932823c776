"""Gradient checkpointing of a block, against a plain call."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from seghiero_core.backbones.networks.checkpointing import checkpointed
from seghiero_core.model.factories import build_model


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])  # without a process group SyncBatchNorm runs here
def test_statistics_are_counted_once(norm, momentum):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4, momentum=momentum), nn.ReLU())
    saving = copy.deepcopy(plain)
    for _ in range(2):
        x = torch.randn(2, 3, 8, 8)
        plain(x).square().sum().backward()
        checkpointed(saving, x).square().sum().backward()
    for a, b in zip(plain.buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert int(saving[1].num_batches_tracked) == 2 and saving[1].momentum == momentum


def test_two_backward_passes_count_once():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    output = checkpointed(block, torch.randn(2, 3, 8, 8)).square().sum()
    first = torch.autograd.grad(output, list(block.parameters()), retain_graph=True)
    second = torch.autograd.grad(output, list(block.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert int(block[1].num_batches_tracked) == 1


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ({"type": "resnet", "depth": 18}, "aspp"),
        ({"type": "resnet", "depth": 50, "output_stride": 16, "drop_path": 0.3}, "aspp"),
        ({"type": "convnext", "drop_path": 0.3}, "ultrafast_segformer"),
        ({"type": "segformer", "variant": "mit-b0"}, "segformer"),
    ],
)
def test_what_networks_recompute_changes_no_gradients_and_takes_less_memory(backbone, head, monkeypatch):
    def run(network: nn.Module) -> tuple[list[torch.Tensor], int]:
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = network(images).logits
        size = sum(kept.values()) - sum(parameter.nbytes for parameter in network.parameters())
        logits.square().mean().backward()
        return [parameter.grad for parameter in network.parameters()], size

    torch.manual_seed(0)
    saving = build_model({"backbone": backbone, "head": {"type": head}}, 5)
    plain = copy.deepcopy(saving)
    images = torch.rand(2, 3, 96, 64) * 255
    gradients, size = run(saving)
    for name in [name for name in sys.modules if ".networks." in name and hasattr(sys.modules[name], "checkpointed")]:
        monkeypatch.setattr(sys.modules[name], "checkpointed", lambda block, *x, part=None: (part or block)(*x))
    expected, plain_size = run(plain)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(saving.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert size < 0.85 * plain_size
