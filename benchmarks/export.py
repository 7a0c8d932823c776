"""How fast an exported file is on the CPU beside our eager network, and an 8-bit file beside a 32-bit one.

    python benchmarks/export.py [--threads 2] [--rounds 7] [--size 512] [--int8]

One uint8 image, through network and decoding alike, for every head on ResNet-50, ConvNeXt-T and MiT-B0. They run in
turn, round after round, so that a noisy machine disturbs all alike; the ratio is of the medians (above 1: onnxruntime
is faster, 8-bit is faster), and of the fastest rounds in brackets. The 8-bit files are calibrated on noise: that
changes what they answer, not how fast.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seghiero_core.export.graph import DecodedModel, keep_outputs, output_names, to_onnx, trace
from seghiero_core.export.int8 import to_int8
from seghiero_core.export.options import DEFAULT_OPSET
from seghiero_core.export.runner import make_session
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.factories import build_model
from seghiero_core.registry import HEADS

BACKBONES = {
    "resnet 50": {"type": "resnet", "depth": 50},
    "convnext tiny": {"type": "convnext", "variant": "tiny"},
    "segformer mit-b0": {"type": "segformer", "variant": "mit-b0"},
}
LABELS = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
TREE = {
    "static": {"sky": None, "structure": ["building", "pole", "sign", "fence"], "ground": LABELS[3:5], "tree": None},
    "moving": {"car": None, "human": ["pedestrian", "bicyclist"]},
}


def runners(backbone: dict, head: str, size: int, int8: bool) -> dict[str, Callable[[], object]]:
    hierarchy = Hierarchy.from_config({"labels": LABELS, "tree": TREE})
    model = build_model({"backbone": backbone, "head": {"type": head}}, len(LABELS), embedding=False)
    decoded = DecodedModel(model, hierarchy, "softmax", "leaf").eval()
    graph = to_onnx(trace(decoded, torch.uint8), hierarchy, DEFAULT_OPSET)
    noise = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    files = {"onnxruntime": graph}
    if int8:
        files["int8"] = to_int8(graph, list(noise))
    images = np.ascontiguousarray(noise[:1].transpose(0, 3, 1, 2))
    tensor = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    eager = decoded.to(memory_format=torch.channels_last)

    def run_eager() -> None:
        with torch.inference_mode():
            eager(tensor)

    runs: dict[str, Callable[[], object]] = {"eager": run_eager}
    for name, file in files.items():
        keep_outputs(file, output_names(hierarchy)[1:])
        session = make_session(file.SerializeToString())
        runs[name] = lambda session=session: session.run(None, {"image": images})
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--only", default="", help="a part of the combination's name")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    for title, backbone in BACKBONES.items():
        for head in HEADS.names():
            if arguments.only not in f"{title} {head}":
                continue
            runs = runners(backbone, head, arguments.size, arguments.int8)
            seconds: dict[str, list[float]] = {name: [] for name in runs}
            for lap in range(arguments.rounds + 1):
                for name, run in runs.items():
                    time.sleep(0.1)  # idle threads of the one before spin for a while
                    start = time.perf_counter()
                    run()
                    if lap:  # the first warms up
                        seconds[name].append(time.perf_counter() - start)
            shown = [f"{name} {statistics.median(times) * 1000:.0f} ms" for name, times in seconds.items()]
            pairs = [("eager", "onnxruntime"), ("onnxruntime", "int8")][: len(runs) - 1]
            for slow, fast in pairs:
                ratio = statistics.median(seconds[slow]) / statistics.median(seconds[fast])
                best = min(seconds[slow]) / min(seconds[fast])
                shown.append(f"{fast} {ratio:.2f}x of {slow} ({best:.2f}x)")
            print(f"{title} + {head}: {', '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
