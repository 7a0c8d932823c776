"""Measure how much time the light SegFormer heads save compared with the full one, the head alone.

    python benchmarks/heads.py [--channels 32 64 160 256] [--size 512] [--batch 2] [--threads 2] [--rounds 9]

Every head gets the same features, those of a square image, and runs forward (inference) and forward with backward
(training, with gradients for the features). The heads take turns, round after round, so that noise affects all alike.
Printed is the saving between the medians, and between the fastest rounds in brackets.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seghiero_core.model.factories import create_head

PROMISED = {"ultrafast_segformer": 40, "extremely_fast_segformer": 60}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs=4, default=(32, 64, 160, 256), help="channels of C1 to C4")
    parser.add_argument("--size", type=int, default=512, help="side of the image, px")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    features = [
        torch.randn(arguments.batch, c, arguments.size // s, arguments.size // s).contiguous(
            memory_format=torch.channels_last
        )
        for c, s in zip(arguments.channels, (4, 8, 16, 32), strict=True)
    ]
    heads = {
        name: create_head({"head": {"type": name}}, arguments.channels, arguments.classes, embedding=False).to(
            memory_format=torch.channels_last
        )
        for name in ("segformer", *PROMISED)
    }
    for task in (inference, training):
        runs = {name: task(head, features) for name, head in heads.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for lap in range(arguments.rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if lap:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
        full = seconds["segformer"]
        print(f"{task.__name__}: segformer {statistics.median(full) * 1000:.0f} ms")
        for name, promised in PROMISED.items():
            saved = 100 * (1 - statistics.median(seconds[name]) / statistics.median(full))
            fastest = 100 * (1 - min(seconds[name]) / min(full))
            print(
                f"  {name} {statistics.median(seconds[name]) * 1000:.0f} ms, "
                f"{saved:.0f} % less time ({fastest:.0f} %); promised {promised} %"
            )


if __name__ == "__main__":
    main()
