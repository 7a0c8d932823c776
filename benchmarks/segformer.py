"""Compare MiT-B0 with the SegFormer head to transformers and segmentation_models.pytorch.

    python benchmarks/segformer.py [--classes 19] [--threads 2] [--rounds 9]

Inference is one image of 512x512 px; a training step (forward, cross-entropy, backward) is two of 256x256 px. Both are
in float32, with the logits upsampled to the input's size. The models take turns, round after round, so that noise
affects all alike; with one thread the time is that of the processor. Printed is the ratio of the medians, and that of
the fastest rounds; above 1, ours is faster. Memory is the peak that PyTorch allocates in a training step.
"""

from __future__ import annotations

import argparse

import segmentation_models_pytorch as smp
import torch
from comparison import INFERENCE, MEMORY, TRAINING, Ratio, Work, compare, ours, print_facts, print_ratios
from torch import nn
from torch.nn import functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation

CONFIG = {"backbone": {"type": "segformer", "variant": "mit-b0"}, "head": {"type": "segformer"}}
SUBJECT = "MiT-B0 + segformer"
GOALS = {INFERENCE: 2.5, TRAINING: 1.7, MEMORY: 0.6}


class Transformers(nn.Module):
    """SegFormer of transformers, with logits upsampled to the input's size as in its own loss."""

    def __init__(self, classes: int, **options: object) -> None:
        super().__init__()
        self.net = SegformerForSemanticSegmentation(SegformerConfig(num_labels=classes, **options))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.net(x).logits
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


def measure(work: Work) -> tuple[list[Ratio], dict[str, dict[str, float]]]:
    torch.manual_seed(0)
    peers = {
        "transformers": Transformers(work.classes),
        "smp": smp.Segformer("mit_b0", encoder_weights=None, classes=work.classes),
    }
    return compare(SUBJECT, ours(CONFIG, work.classes), peers, work, GOALS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ratios, facts = measure(Work(classes=arguments.classes, rounds=arguments.rounds))
    print_facts(facts)
    print_ratios(ratios)


if __name__ == "__main__":
    main()
