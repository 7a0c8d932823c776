"""Compare ResNet-50 with the ASPP head to DeepLabV3+ of segmentation_models.pytorch on the same backbone.

    python benchmarks/deeplab.py [--backbone resnet50|convnext_tiny] [--threads 2] [--rounds 9]

Both work at output stride 16 and with 256 channels. Inference is one image of 512x512 px; a training step (forward,
cross-entropy, backward) is two of 256x256 px. Both are in float32, with the logits upsampled to the input's size. The
peer is measured in the plain memory format and in channels-last, and the better one counts: which one that is depends
on the machine. The models take turns, round after round, so that noise affects all alike; with one thread the time is
that of the processor. Printed is the ratio of the medians, and that of the fastest rounds; above 1, ours is faster.
Memory is the peak that PyTorch allocates in a training step.
"""

from __future__ import annotations

import argparse
import copy

import segmentation_models_pytorch as smp
import torch
from comparison import (
    INFERENCE,
    MEMORY,
    TRAINING,
    ChannelsLast,
    Ratio,
    Work,
    best_peers,
    compare,
    ours,
    print_facts,
    print_ratios,
)

GOALS = {INFERENCE: 1.2, TRAINING: 1.0, MEMORY: 0.8}
STRIDE, WIDTH = 16, 256
BACKBONES = {
    "resnet50": ("ResNet-50 + aspp", {"type": "resnet", "depth": 50}, "resnet50"),
    "convnext_tiny": ("ConvNeXt-T + aspp", {"type": "convnext", "variant": "tiny"}, "tu-convnext_tiny"),
}


def deeplab(encoder: str, classes: int) -> smp.DeepLabV3Plus:
    return smp.DeepLabV3Plus(
        encoder, encoder_weights=None, encoder_output_stride=STRIDE, decoder_channels=WIDTH, classes=classes
    )


def measure(work: Work, backbone: str = "resnet50") -> tuple[list[Ratio], dict[str, dict[str, float]]]:
    torch.manual_seed(0)
    subject, section, encoder = BACKBONES[backbone]
    config = {"backbone": {**section, "output_stride": STRIDE}, "head": {"type": "aspp", "proj_dim": WIDTH}}
    plain = deeplab(encoder, work.classes)
    peers = {"smp (plain)": plain, "smp (channels-last)": ChannelsLast(copy.deepcopy(plain))}
    return compare(subject, ours(config, work.classes), peers, work, GOALS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=BACKBONES, default="resnet50")
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ratios, facts = measure(Work(classes=arguments.classes, rounds=arguments.rounds), arguments.backbone)
    print_facts(facts)
    print_ratios(ratios)
    print("Compared with the better format:")
    print_ratios(best_peers(ratios))


if __name__ == "__main__":
    main()
