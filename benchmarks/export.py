"""Speed of exported ONNX files on the CPU, compared with the network in PyTorch; and of 8-bit files.

    python benchmarks/export.py [--threads 2] [--rounds 7] [--size 512] [--int8] [--only NAME]

Every head on ResNet-50, ConvNeXt-T and MiT-B0 gets one uint8 image, through network and decoding. The variants take
turns, round after round, so that noise on the machine affects all of them. Ratios are of the medians, with those of
the fastest rounds in brackets; above 1 means that onnxruntime, or the 8-bit file, is faster. The 8-bit files are
calibrated on noise, which changes their answers but not their speed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seghiero_core.benchmarking.timing import time_in_turns
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
    "static": {
        "sky": None,
        "structure": ["building", "pole", "sign", "fence"],
        "ground": ["road", "pavement"],
        "tree": None,
    },
    "moving": {"car": None, "human": ["pedestrian", "bicyclist"]},
}


def make_runs(backbone: dict, head: str, size: int, int8: bool) -> dict[str, Callable[[], object]]:
    """Functions that predict one image: "eager", "onnxruntime" and, if asked for, "int8"."""
    hierarchy = Hierarchy.from_config({"labels": LABELS, "tree": TREE})
    model = build_model({"backbone": backbone, "head": {"type": head}}, len(LABELS), embedding=False)
    decoded = DecodedModel(model, hierarchy, "softmax", "leaf").eval()
    graphs = {"onnxruntime": to_onnx(trace(decoded, torch.uint8), hierarchy, DEFAULT_OPSET)}
    noise = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    if int8:
        graphs["int8"] = to_int8(graphs["onnxruntime"], list(noise))
    images = np.ascontiguousarray(noise[:1].transpose(0, 3, 1, 2))
    tensor = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    eager = decoded.to(memory_format=torch.channels_last)

    def run_eager() -> None:
        with torch.inference_mode():
            eager(tensor)

    runs: dict[str, Callable[[], object]] = {"eager": run_eager}
    for name, graph in graphs.items():
        keep_outputs(graph, output_names(hierarchy)[1:])
        session = make_session(graph.SerializeToString())
        runs[name] = partial(session.run, None, {"image": images})
    return runs


def compare(seconds: dict[str, list[float]], slow: str, fast: str) -> str:
    ratio = statistics.median(seconds[slow]) / statistics.median(seconds[fast])
    best = min(seconds[slow]) / min(seconds[fast])
    return f"{fast} {ratio:.2f}x as fast as {slow} ({best:.2f}x)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=512, help="side of the image, px")
    parser.add_argument("--int8", action="store_true", help="also measure 8-bit files")
    parser.add_argument("--only", default="", help="part of a combination's name, for example 'resnet 50 aspp'")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    for title, backbone in BACKBONES.items():
        for head in HEADS.names():
            if arguments.only not in f"{title} {head}":
                continue
            runs = make_runs(backbone, head, arguments.size, arguments.int8)
            # The threads of the previous run spin for a while.
            seconds = time_in_turns(runs, arguments.rounds, torch.device("cpu"), pause=0.1)
            results = [f"{name} {statistics.median(times) * 1000:.0f} ms" for name, times in seconds.items()]
            results.append(compare(seconds, "eager", "onnxruntime"))
            if arguments.int8:
                results.append(compare(seconds, "onnxruntime", "int8"))
            print(f"{title} + {head}: {', '.join(results)}", flush=True)


if __name__ == "__main__":
    main()
