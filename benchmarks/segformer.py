"""Compare the speed of MiT-B0 with the SegFormer head to transformers and segmentation_models.pytorch.

    python benchmarks/segformer.py [--classes 19] [--threads 2] [--rounds 9]

Inference is one image of 512x512 px; a training step (forward, cross-entropy, backward) is two of 256x256 px. Both are
in float32, with the logits upsampled to the input's size. The three models take turns, round after round, so that noise
affects all alike. Printed is the ratio of the medians, and of the fastest rounds in brackets; above 1, ours is faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn import functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seghiero_core.model.factories import build_model

CONFIG = {"backbone": {"type": "segformer", "variant": "mit-b0"}, "head": {"type": "segformer"}}


class Transformers(nn.Module):
    """SegFormer-B0 of transformers, with logits upsampled to the input's size as in its own loss."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = SegformerForSemanticSegmentation(SegformerConfig(num_labels=classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.net(x).logits
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Ours(nn.Module):
    """Our assembled model, with normalization and padding; channels-last, as in training."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = build_model(CONFIG, classes, embedding=False).to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.contiguous(memory_format=torch.channels_last)).logits


def infer(model: nn.Module, classes: int) -> Callable[[], None]:
    images = torch.rand(1, 3, 512, 512) * 255

    def run() -> None:
        model.eval()
        with torch.inference_mode():
            assert model(images).shape == (1, classes, 512, 512)

    return run


def train_step(model: nn.Module, classes: int) -> Callable[[], None]:
    images, target = torch.rand(2, 3, 256, 256) * 255, torch.randint(classes, (2, 256, 256))

    def run() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), target).backward()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    models = {
        "seghiero": Ours(arguments.classes),
        "transformers": Transformers(arguments.classes),
        "smp": smp.Segformer("mit_b0", encoder_weights=None, classes=arguments.classes),
    }
    for task in (infer, train_step):
        runs = {name: task(model, arguments.classes) for name, model in models.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for lap in range(arguments.rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if lap:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
        ours = seconds.pop("seghiero")
        print(f"{task.__name__}: seghiero {statistics.median(ours) * 1000:.0f} ms")
        for name, theirs in seconds.items():
            ratio = statistics.median(theirs) / statistics.median(ours)
            fastest = min(theirs) / min(ours)
            print(f"  {name} {statistics.median(theirs) * 1000:.0f} ms, ratio {ratio:.2f}x ({fastest:.2f}x)")


if __name__ == "__main__":
    main()
