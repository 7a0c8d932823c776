"""Measure the guide's five combinations of backbone and head on a GPU, beside peers, in under 8 minutes.

    python benchmarks/gpu.py [--precision bf16|fp32] [--compile] [--json gpu.json]

Training steps (forward, cross-entropy, backward, AdamW) of 8 images of 512x512 px with 19 classes, and inference on as
many. The guide's figures are rough ones from practice on an RTX 3090, so a ratio to them says how far one gets today,
not how much faster the code is; that is what the peers are for, which run in the same process in turns with ours. The
networks with the ASPP head, and DeepLabV3+ of segmentation_models.pytorch, work at output stride 16. Memory is the peak
that PyTorch allocates, weights included, with one network on the device. MFU is the share of the device's peak that the
counted FLOPs of the training steps reach (multiply-adds count as 2); "of matmul" is the same relative to a matrix
product of 8192x8192, measured here.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from comparison import INFERENCE, TRAINING, Work, loss_of, ours
from segformer import Transformers
from torch import nn

from seghiero_core.benchmarking.combination import count_flops
from seghiero_core.benchmarking.machine import describe_machine
from seghiero_core.benchmarking.memory import peak_allocated
from seghiero_core.benchmarking.timing import time_in_turns
from seghiero_core.devices import check_device

STRIDE, CLASSES, MINUTES = 16, 19, 8
FASTER, SMALLER = 10, 0.75
"""The goals: images/s relative to the guide's, at least; memory relative to the guide's, at most."""
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165, "RTX 3090": 71}
"""Dense bf16 with float32 accumulation, from the data sheets."""


def _resnet(depth: int) -> tuple[dict[str, Any], dict[str, Callable[[], nn.Module]]]:
    config = {"backbone": {"type": "resnet", "depth": depth, "output_stride": STRIDE}, "head": {"type": "aspp"}}
    return config, {"smp DeepLabV3+": lambda: _deeplab(f"resnet{depth}")}


def _deeplab(encoder: str) -> nn.Module:
    return smp.DeepLabV3Plus(encoder, encoder_weights=None, encoder_output_stride=STRIDE, classes=CLASSES)


def _mit(variant: str, **options: object) -> tuple[dict[str, Any], dict[str, Callable[[], nn.Module]]]:
    config = {"backbone": {"type": "segformer", "variant": variant}, "head": {"type": "segformer"}}
    encoder = variant.replace("-", "_")
    return config, {
        "transformers": lambda: Transformers(CLASSES, **options),
        "smp": lambda: smp.Segformer(encoder, encoder_weights=None, classes=CLASSES),
    }


_B5 = {"depths": [3, 6, 40, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768}
COMBINATIONS: dict[str, tuple[Any, int, float | None]] = {
    "ResNet-50 + aspp": (_resnet(50), 25, 6),
    "ResNet-101 + aspp": (_resnet(101), 18, 8),
    "ConvNeXt-T + aspp": (
        (
            {"backbone": {"type": "convnext", "variant": "tiny", "output_stride": STRIDE}, "head": {"type": "aspp"}},
            {"smp DeepLabV3+": lambda: _deeplab("tu-convnext_tiny")},
        ),
        20,
        None,
    ),
    "MiT-B0 + segformer": (_mit("mit-b0"), 15, 7),
    "MiT-B5 + segformer": (_mit("mit-b5", **_B5), 5, 18),
}
"""Each combination with its peers, and the guide's images/s in training and GB at batch size 8."""


def training_step(network: nn.Module, work: Work) -> Callable[[], None]:
    """Make a training step with an update of the weights."""
    batch, height, width = work.training
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    images = torch.rand(batch, 3, height, width, device=work.device) * 255
    target = torch.randint(work.classes, (batch, height, width), device=work.device)

    def run() -> None:
        with work.autocast():
            loss = loss_of(network, images, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def inference(network: nn.Module, work: Work) -> Callable[[], None]:
    """Make an inference of a batch."""
    batch, height, width = work.inference
    network.eval()
    images = torch.rand(batch, 3, height, width, device=work.device) * 255

    @torch.inference_mode()
    def run() -> None:
        with work.autocast():
            logits = network(images)
        if logits.shape != (batch, work.classes, height, width):
            raise ValueError(f"expected logits of every class for every pixel, found {tuple(logits.shape)}")

    return run


def measure_one(make: Callable[[], nn.Module], work: Work) -> dict[str, float]:
    """Measure memory and FLOPs of a training step with this network alone on the device."""
    _free(work)
    network = make().to(work.device)
    run = training_step(network, work)
    run()  # allocates the moments of the optimizer
    flops = count_flops(run)
    held = torch.cuda.memory_allocated(work.device) if work.device.type == "cuda" else 3 * _bytes(network)
    peak = held + peak_allocated(run, work.device)
    return {"gb": peak / 1e9, "flops": float(flops)}


def _bytes(network: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())


def measure(name: str, work: Work, *, compiled: bool) -> list[dict[str, Any]]:
    """Measure a combination and its peers; the first row is ours."""
    (config, peers), guide_rate, guide_gb = COMBINATIONS[name]
    torch.manual_seed(0)
    makers = {"seghiero": lambda: ours(config, work.classes)[TRAINING], **peers}
    rows = {peer: {"combination": name, "network": peer, **measure_one(make, work)} for peer, make in makers.items()}
    _free(work)
    for task, make_run, batch in (
        ("training", training_step, work.training[0]),
        (INFERENCE, inference, work.inference[0]),
    ):
        networks = {"seghiero": ours(config, work.classes)[TRAINING if task == "training" else INFERENCE]}
        networks |= {peer: make() for peer, make in peers.items()}
        runs = {}
        for peer, network in networks.items():
            network.to(work.device)
            if compiled:
                network.compile()
            runs[peer] = make_run(network, work)
        seconds = time_in_turns(runs, work.rounds, work.device, warm_up=3)
        for peer, times in seconds.items():
            rows[peer][f"{task} images/s"] = batch / statistics.median(times)
        del networks, runs
        _free(work)
    for row in rows.values():
        row["TFLOPS"] = row.pop("flops") * row["training images/s"] / work.training[0] / 1e12
    mine = rows["seghiero"]
    mine["guide images/s"], mine["times the guide's speed"] = guide_rate, mine["training images/s"] / guide_rate
    mine["guide gb"], mine["of the guide's memory"] = guide_gb, mine["gb"] / guide_gb if guide_gb else None
    for peer, row in rows.items():
        if peer != "seghiero":
            row["ours is faster in training"] = mine["training images/s"] / row["training images/s"]
            row["ours is faster in inference"] = mine["inference images/s"] / row["inference images/s"]
    return list(rows.values())


def _free(work: Work) -> None:
    gc.collect()
    if work.device.type == "cuda":
        torch.cuda.empty_cache()


def matmul_tflops(work: Work, side: int) -> float:
    """Measure what a large matrix product reaches in the precision of the work."""
    dtype = torch.bfloat16 if work.precision == "bf16" else torch.float32
    a, b = (torch.rand(side, side, device=work.device, dtype=dtype) for _ in range(2))
    seconds = time_in_turns({"matmul": lambda: a @ b}, 5, work.device)["matmul"]
    return 2 * side**3 / statistics.median(seconds) / 1e12


def print_row(row: dict[str, Any], peak: float | None, matmul: float) -> None:
    mfu = f"MFU {row['TFLOPS'] / peak:.0%}, " if peak else ""
    print(
        f"{row['combination']:20}{row['network']:16}{row['training images/s']:9.1f} images/s training, "
        f"{row['inference images/s']:9.1f} inference, {row['gb']:6.2f} GB, {row['TFLOPS']:7.2f} TFLOPS "
        f"({mfu}{row['TFLOPS'] / matmul:.0%} of matmul)",
        flush=True,
    )
    if row["network"] == "seghiero":
        speed, memory = row["times the guide's speed"], row["of the guide's memory"]
        verdicts = [f"{speed:.1f}x the guide's images/s (goal {FASTER}x, {_verdict(speed >= FASTER)})"]
        if memory is not None:
            verdicts.append(f"{memory:.2f}x its memory (goal {SMALLER}x, {_verdict(memory <= SMALLER)})")
        print(f"{'':36}{'; '.join(verdicts)}")
    else:
        print(
            f"{'':36}seghiero is {row['ours is faster in training']:.2f}x as fast in training, "
            f"{row['ours is faster in inference']:.2f}x in inference"
        )


def _verdict(reached: bool) -> str:
    return "reached" if reached else "NOT reached"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: cuda; the CPU is for trying the script out")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--compile", action="store_true", help="compile every network, which takes minutes")
    parser.add_argument("--size", type=int, default=512, help="side of the images, px")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", metavar="TEXT", help="combinations whose names contain this")
    parser.add_argument("--peak-tflops", type=float, help="of this device and precision, for MFU")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="begin no combination later than that")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    options = parser.parse_args()
    device = torch.device(check_device(options.device))
    shape = (options.batch, options.size, options.size)
    work = Work(shape, shape, CLASSES, device, options.precision, options.rounds)
    started = time.monotonic()
    matmul = matmul_tflops(work, 8192 if device.type == "cuda" else 512)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    known = next((tflops for gpu, tflops in PEAK_TFLOPS.items() if gpu in name), None)
    peak = options.peak_tflops or (known if options.precision == "bf16" else None)
    print(f"{name}, {options.precision}, batch {options.batch}, {options.size} px; matmul {matmul:.1f} TFLOPS")
    rows, skipped = [], []
    for combination in COMBINATIONS:
        if options.only not in combination:
            continue
        if time.monotonic() - started > 60 * options.minutes:
            skipped.append(combination)
            print(f"{combination}: not measured, the {options.minutes:g} minutes are over")
            continue
        found = measure(combination, work, compiled=options.compile)
        for row in found:
            print_row(row, peak, matmul)
        rows += found
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items() if key != "json"}
        document = {"date": date.today().isoformat(), "machine": describe_machine(), "settings": settings}
        document |= {"matmul TFLOPS": matmul, "peak TFLOPS": peak, "rows": rows, "not measured": skipped}
        options.json.write_text(json.dumps(document, indent=1))
    mine = [row for row in rows if row["network"] == "seghiero"]
    reached = all(
        row["times the guide's speed"] >= FASTER and (row["of the guide's memory"] or 0) <= SMALLER for row in mine
    )
    sys.exit(0 if mine and reached and not skipped else 1)


if __name__ == "__main__":
    main()
