"""Measure how much time the light SegFormer heads save compared with the full one, the head alone.

    python benchmarks/heads.py [--channels 32 64 160 256] [--size 512] [--batch 2] [--threads 2] [--rounds 9]

Every head gets the same features, those of a square image, and runs forward (inference) and forward with backward
(training, with gradients for the features). The heads take turns, round after round, so that noise affects all alike.
Printed is the ratio of the medians, and that of the fastest rounds: 1.67x is 40 % less time, 2.5x is 60 % less.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
from comparison import CPU, Ratio, print_ratios
from torch import nn

from seghiero_core.benchmarking.timing import time_in_turns
from seghiero_core.model.factories import create_head

PROMISED = {"ultrafast_segformer": 40, "extremely_fast_segformer": 60}
"""How many percent of the time of `segformer` each saves at least."""
CHANNELS = (32, 64, 160, 256)


def inference(head: nn.Module, features: list[torch.Tensor]) -> Callable[[], None]:
    def run() -> None:
        head.eval()
        with torch.inference_mode():
            head([feature.detach() for feature in features])

    return run


def training(head: nn.Module, features: list[torch.Tensor]) -> Callable[[], None]:
    def run() -> None:
        head.train()
        head.zero_grad(set_to_none=True)
        head([feature.detach().requires_grad_() for feature in features])[0].mean().backward()

    return run


def measure(
    rounds: int, channels: Sequence[int] = CHANNELS, size: int = 512, batch: int = 2, classes: int = 19
) -> list[Ratio]:
    """Compare every light head with the full one."""
    torch.manual_seed(0)
    features = [
        torch.randn(batch, c, size // s, size // s).contiguous(memory_format=torch.channels_last)
        for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]
    heads = {
        name: create_head({"head": {"type": name}}, channels, classes, embedding=False).to(
            memory_format=torch.channels_last
        )
        for name in ("segformer", *PROMISED)
    }
    ratios = []
    for task in (inference, training):
        seconds = time_in_turns({name: task(head, features) for name, head in heads.items()}, rounds, CPU)
        full = seconds["segformer"]
        for name, promised in PROMISED.items():
            medians = 1000 * statistics.median(seconds[name]), 1000 * statistics.median(full)
            goal = round(1 / (1 - promised / 100), 2)
            fastest = min(full) / min(seconds[name])
            ratios.append(Ratio(name, task.__name__, "segformer", *medians, "ms", fastest, goal))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs=4, default=CHANNELS, help="channels of C1 to C4")
    parser.add_argument("--size", type=int, default=512, help="side of the image, px")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print_ratios(measure(options.rounds, options.channels, options.size, options.batch, options.classes))


if __name__ == "__main__":
    main()
