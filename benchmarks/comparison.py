"""Comparing networks with peers: the same work, taking turns, with a check that the outputs are of the same kind.

The scripts beside this file import it; they make the networks and say what the goals are.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seghiero_core.benchmarking.combination import count_flops
from seghiero_core.benchmarking.memory import peak_allocated
from seghiero_core.benchmarking.timing import time_in_turns
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.combine import build_loss
from seghiero_core.model.factories import build_model, build_trained_model
from seghiero_core.model.folding import fold_batch_norms
from seghiero_core.model.segmentation import SegmentationOutput

CPU = torch.device("cpu")
INFERENCE, TRAINING, MEMORY = "inference", "training step", "memory of the training step"


@dataclass(frozen=True)
class Ratio:
    """A measurement of ours beside that of a peer.

    Attributes:
        subject: What was compared, such as "MiT-B0 + segformer".
        task: What it did, such as "inference".
        peer: The peer.
        ours, theirs: The medians.
        unit: "ms" or "us", of which less is faster, or "MiB".
        fastest: The ratio of the fastest rounds; None for memory, which doesn't vary.
        goal: What the ratio should reach: at least that for times, at most that for memory. None if there is no goal.
    """

    subject: str
    task: str
    peer: str
    ours: float
    theirs: float
    unit: str
    fastest: float | None = None
    goal: float | None = None

    @property
    def ratio(self) -> float:
        """How many times as fast as the peer, or how many times its memory."""
        return self.ours / self.theirs if self.unit == "MiB" else self.theirs / self.ours

    @property
    def reached(self) -> bool:
        """Whether the goal is reached; true without one."""
        if self.goal is None:
            return True
        return self.ratio <= self.goal if self.unit == "MiB" else self.ratio >= self.goal

    @property
    def goal_text(self) -> str:
        """The goal for people to read; empty without one."""
        if self.goal is None:
            return ""
        return f"{'at most' if self.unit == 'MiB' else 'at least'} {self.goal:.3g}x"


@dataclass(frozen=True)
class Work:
    """What is computed, with random images and labels.

    Attributes:
        inference: Batch, height and width of an inference.
        training: Batch, height and width of a training step.
        classes: Classes of the logits.
        device: Where.
        precision: fp32, or bf16 by autocast.
        rounds: Rounds that are measured.
    """

    inference: tuple[int, int, int] = (1, 512, 512)
    training: tuple[int, int, int] = (2, 256, 256)
    classes: int = 19
    device: torch.device = CPU
    precision: str = "fp32"
    rounds: int = 9

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which networks run."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


class ChannelsLast(nn.Module):
    """A network whose weights and images are in the channels-last memory format."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.contiguous(memory_format=torch.channels_last))


class Logits(nn.Module):
    """A network of ours, reduced to its logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).logits


class OurTraining(nn.Module):
    """A network of ours as the training loop calls it: its loss upsamples the logits."""

    def __init__(self, net: nn.Module, classes: int) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)
        hierarchy = Hierarchy.from_config({"labels": [f"class{i}" for i in range(classes)], "ignore": 65535})
        self.criterion = build_loss({"preset": "flat"}, hierarchy, validate=False)

    def forward(self, x: torch.Tensor) -> SegmentationOutput:
        return self.net(x.contiguous(memory_format=torch.channels_last), upsample=False)


def loss_of(network: nn.Module, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute the cross-entropy of a network's logits, upsampled to the images' size, in float32."""
    output = network(images)
    if isinstance(output, torch.Tensor):
        return F.cross_entropy(output.float(), target)
    with torch.autocast(images.device.type, enabled=False):
        return network.criterion(output.logits.float(), target, stride=output.stride)[0]


def ours(config: Mapping[str, Any], classes: int) -> dict[str, nn.Module]:
    """Build our network as `seghiero train` does for training, and as `seghiero predict` does for inference.

    Raises:
        ValueError: When they don't compute the same.
    """
    network = build_model(config, classes, embedding=False)
    trained = build_trained_model(config, classes, network.state_dict())
    fold_batch_norms(trained)
    found = {TRAINING: OurTraining(network, classes), INFERENCE: ChannelsLast(Logits(trained))}
    images, target = torch.rand(2, 3, 64, 96) * 255, torch.randint(classes, (2, 64, 96))
    with torch.inference_mode():
        losses = [loss_of(each.eval(), images, target) for each in found.values()]
    if not torch.allclose(*losses, rtol=1e-4):
        raise ValueError(f"the loss of the training is {losses[0]}, that of the logits {losses[1]}")
    return found


def compare(
    subject: str,
    mine: Mapping[str, nn.Module],
    peers: Mapping[str, nn.Module],
    work: Work,
    goals: Mapping[str, float],
) -> tuple[list[Ratio], dict[str, dict[str, float]]]:
    """Measure inference, training step and its memory of our network and of its peers.

    Args:
        subject: A name for what is compared.
        mine: Our network for `INFERENCE` and for `TRAINING`.
        peers: The networks to compare with; they map images in 0..255 to logits at the images' size.
        work: What they compute.
        goals: The goal of each task.

    Returns:
        The ratios to every peer, and facts of each network: "parameters" in millions and "gflops" of an inference.
    """
    ratios, facts = [], {}
    for task, make in ((INFERENCE, inference), (TRAINING, training_step)):
        networks = {"seghiero": mine[task], **peers}
        runs = {name: make(network.to(work.device), work) for name, network in networks.items()}
        seconds = time_in_turns(runs, work.rounds, work.device)
        for peer in peers:
            ratios.append(
                Ratio(
                    subject,
                    task,
                    peer,
                    1000 * statistics.median(seconds["seghiero"]),
                    1000 * statistics.median(seconds[peer]),
                    "ms",
                    min(seconds[peer]) / min(seconds["seghiero"]),
                    goals.get(task),
                )
            )
        if task == INFERENCE:
            for name, run in runs.items():
                parameters = sum(parameter.numel() for parameter in networks[name].parameters()) / 1e6
                facts[name] = {"parameters": parameters, "gflops": count_flops(run) / 1e9}
        else:
            peaks = {}
            for name, run in runs.items():
                networks[name].zero_grad(set_to_none=True)  # so that the step's gradients count
                peaks[name] = peak_allocated(run, work.device) / 2**20
            ratios += [
                Ratio(subject, MEMORY, peer, peaks["seghiero"], peaks[peer], "MiB", None, goals.get(MEMORY))
                for peer in peers
            ]
    return ratios, facts


def inference(network: nn.Module, work: Work) -> Callable[[], None]:
    """Return a function that predicts random images once, and checks what comes out."""
    batch, height, width = work.inference
    images = torch.rand(batch, 3, height, width, device=work.device) * 255

    def run() -> None:
        network.eval()
        with torch.inference_mode(), work.autocast():
            _check(network(images), (batch, work.classes, height, width))

    return run


def training_step(network: nn.Module, work: Work) -> Callable[[], None]:
    """Return a function that computes the gradients of random images once."""
    batch, height, width = work.training
    images = torch.rand(batch, 3, height, width, device=work.device) * 255
    target = torch.randint(work.classes, (batch, height, width), device=work.device)

    def run() -> None:
        network.train()
        network.zero_grad(set_to_none=True)
        with work.autocast():
            loss = loss_of(network, images, target)
        loss.backward()

    return run


def _check(logits: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless these are logits of every class for every pixel."""
    if logits.shape != shape or not logits.is_floating_point():
        raise ValueError(f"expected logits {shape}, found {tuple(logits.shape)} of {logits.dtype}")


def best_peers(ratios: Iterable[Ratio]) -> list[Ratio]:
    """Keep of each task the ratio to the best of several variants of one peer, such as its memory formats.

    A variant's name is the peer's with the variant in brackets.
    """
    best: dict[tuple[str, str, str], Ratio] = {}
    for ratio in ratios:
        key = (ratio.subject, ratio.task, ratio.peer.partition(" (")[0])
        if key not in best or ratio.theirs < best[key].theirs:
            best[key] = ratio
    return list(best.values())


def print_ratios(ratios: Iterable[Ratio]) -> None:
    """Print one line per ratio."""
    for each in ratios:
        fastest = f", {each.fastest:.2f}x of the fastest rounds" if each.fastest else ""
        goal = f"; goal {each.goal_text}: {'reached' if each.reached else 'NOT reached'}" if each.goal else ""
        print(
            f"{each.subject}, {each.task}: seghiero {each.ours:.0f} {each.unit}, {each.peer} {each.theirs:.0f} "
            f"{each.unit}, ratio {each.ratio:.2f}x{fastest}{goal}",
            flush=True,
        )


def print_facts(facts: Mapping[str, Mapping[str, float]]) -> None:
    """Print the size of each network."""
    for name, values in facts.items():
        print(f"  {name}: {values['parameters']:.1f} M parameters, {values['gflops']:.1f} GFLOPs per inference")
