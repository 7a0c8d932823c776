"""Find problems of a component in training, saving, copying and export, each described in one sentence."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from seghiero_core.errors import shorten
from seghiero_core.model.factories import build_model
from seghiero_core.testing.head_loss import head_loss, sample_target
from seghiero_core.testing.shapes import NUM_CLASSES, describe_error

ODD_SIZES = ((97, 131), (33, 47), (64, 96))
"""H,W in px of the images that components are run on; most are not divisible by the strides."""


class Pyramid(nn.Module):
    """The smallest possible backbone, one strided convolution per stage, so that any problem found is the head's.

    Args:
        channels: Channels of C1 to C4.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        inputs = (3, *channels[:3])
        self.stages = nn.ModuleList(
            nn.Conv2d(a, b, 4 if stride == 4 else 2, stride)
            for a, b, stride in zip(inputs, channels, (4, 2, 2, 2), strict=True)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Compute the features of a batch of images.

        Args:
            x: B,3,H,W.

        Returns:
            [C1, C2, C3, C4], each B,c,h,w, at strides 4, 8, 16 and 32.
        """
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def training_problems(config: dict[str, Any], *, embedding: bool, bf16: bool = False) -> Iterator[str]:
    """Train one step on one odd-sized image and check the loss, the gradients and the update.

    Args:
        config: A dict with the sections `backbone` and `head`.
        embedding: Whether to build the embedding branch and use it in the loss.
        bf16: Whether to run the forward pass under bf16 autocast.

    Yields:
        One sentence per problem: an error, a loss that isn't finite, parameters without a gradient, or no change.
    """
    model = build_model(config, NUM_CLASSES, embedding=embedding).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    pair = f"{config['backbone']['type']} + {config['head']['type']}"
    precision = "bf16 autocast" if bf16 else "float32"
    what = f"a training step of {pair} (batch size 1, {precision}, embedding={embedding})"

    def step(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = model(images)
        loss = output.logits.float().square().mean() + output.logits.float().mean()
        if embedding:
            loss = loss + output.embedding.float().mean(dim=(0, 2, 3)).square().sum()
        if output.head_outputs is not None:
            outputs = {name: value.float() for name, value in output.head_outputs.items()}  # as accelerate does
            loss = loss + head_loss(model.head, outputs, sample_target(1, *images.shape[2:]))
        loss.backward()
        optimizer.step()
        return loss.detach()

    problems: list[str] = []
    loss = attempt(problems, what, step, 255 * torch.rand(1, 3, 65, 97))
    if loss is not None:
        unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        if unused:
            problems.append(f"{what}: no gradient for {shorten(unused, 5)}; build only layers that are used")
        if not torch.isfinite(loss):
            problems.append(f"{what}: the loss is {loss.item()}")
        if all(torch.equal(before[key], value) for key, value in model.state_dict().items()):
            problems.append(f"{what}: no parameter has changed")
    yield from problems


def state_problems(model: nn.Module, other: nn.Module) -> Iterator[str]:
    """Check that a model's state dict and pickle contain everything that its output depends on.

    Args:
        model: The model.
        other: A second build from the same config.

    Yields:
        One sentence per problem.
    """
    model.eval()
    images = 255 * torch.rand(1, 3, 65, 97)
    with torch.no_grad():
        expected = model(images).logits
        problems: list[str] = []
        state = attempt(problems, "saving its state dict as safetensors", lambda: load(save(model.state_dict())))
        if state is not None:
            attempt(problems, "loading its state dict into a second build", partial(other.load_state_dict, state))
            if not problems and not torch.equal(other.eval()(images).logits, expected):
                problems.append(
                    "a second build with the same state dict gives other logits: "
                    "keep all state in parameters or buffers"
                )
        copied = attempt(problems, "pickling it", lambda: pickle.loads(pickle.dumps(model)))
        if copied is not None and not torch.equal(copied(images).logits, expected):
            problems.append("a pickled copy gives other logits")
    yield from problems


class _LogitsOnly(nn.Module):
    """A copy of a model in eval mode that returns only the logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = copy.deepcopy(model).eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).logits


def onnx_problems(model: nn.Module) -> Iterator[str]:
    """Export a model to ONNX with a free batch size, height and width, and compare its logits with onnxruntime's.

    Args:
        model: The model.

    Yields:
        One sentence per problem.
    """
    import onnxruntime

    free = torch.export.Dim.DYNAMIC
    problems: list[str] = []
    network = _LogitsOnly(model).eval()
    with TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        path = str(Path(folder) / "model.onnx")
        export = partial(torch.onnx.export, dynamo=True, dynamic_shapes=({0: free, 2: free, 3: free},), verbose=False)
        program = attempt(problems, "exporting it to ONNX", export, network, (255 * torch.rand(2, 3, 70, 101),))
        if program is not None:
            program.save(path)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            for height, width in ODD_SIZES:
                images = 255 * torch.rand(1, 3, height, width)
                feed = {session.get_inputs()[0].name: images.numpy()}
                found = attempt(problems, f"ONNX at {height}x{width}", session.run, None, feed)
                if found is not None and not np.allclose(found[0], network(images), rtol=1e-3, atol=1e-3):
                    problems.append(f"ONNX at {height}x{width} gives other logits than the network")
    yield from problems


def attempt(problems: list[str], what: str, run: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function and turn an error into a problem.

    Args:
        problems: The list that a problem is appended to.
        what: What is done, for the problem's sentence.
        run: The function.
        *arguments: Its arguments.

    Returns:
        What the function returns, or None if it raised an error.
    """
    try:
        return run(*arguments)
    except Exception as error:
        problems.append(f"{what} failed: {describe_error(error)}")
        return None
