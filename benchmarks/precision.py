"""Measure what bf16, the channels-last memory layout and torch.compile bring on a CPU.

    python benchmarks/precision.py [--threads 2] [--rounds 5] [--only TEXT] [--compile] [--write]
    python benchmarks/precision.py --avx2 ...        # as a CPU without AVX-512 would run it

Every column is how many times as fast as the default without bf16: channels-last, single precision and not compiled.
Inference is one image of 512x512 px, a training step two of 256x256 px. --compile takes minutes and needs a C++
compiler. --avx2 restricts PyTorch and oneDNN to AVX2. --write puts the tables into docs/benchmarks.md, those of an AVX2
run, which leaves bf16 out because its emulation takes minutes, below the others. What bf16 brings on a GPU is measured
by gpu.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from comparison import CPU, INFERENCE, TRAINING, Work, inference, ours, training_step
from tables import DOCS, conditions, markdown, with_part
from torch import nn

from seghiero_core.benchmarking.timing import time_in_turns

NETWORKS = {
    "ResNet-50 + aspp": {"backbone": {"type": "resnet", "depth": 50, "output_stride": 16}, "head": {"type": "aspp"}},
    "ConvNeXt-T + aspp": {"backbone": {"type": "convnext"}, "head": {"type": "aspp"}},
    "MiT-B0 + segformer": {"backbone": {"type": "segformer", "variant": "mit-b0"}, "head": {"type": "segformer"}},
}
RESTRICTED = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""What restricts the libraries of PyTorch to AVX2."""
BASE, PLAIN, BF16, PLAIN_BF16 = "base", "plain layout", "bf16", "bf16, plain layout"
COMPILED, COMPILED_BF16 = "compiled", "bf16, compiled"


class Plain(nn.Module):
    """A network whose weights and images are in PyTorch's plain memory layout."""

    def __init__(self, network: nn.Module, **options: bool) -> None:
        super().__init__()
        self.net, self.options = network.net.to(memory_format=torch.contiguous_format), options
        self.criterion = getattr(network, "criterion", None)

    def forward(self, x: torch.Tensor) -> object:
        return self.net(x, **self.options)


def variants(config: dict, task: str, work: Work, bf16: bool, compiled: bool) -> dict[str, Callable[[], None]]:
    """Build the network of a config in every variant, as functions that compute the task once."""
    make = {INFERENCE: inference, TRAINING: training_step}[task]
    half = Work(rounds=work.rounds, precision="bf16")

    def network() -> nn.Module:
        return ours(config, work.classes)[task]

    plain = Plain(network(), **({"upsample": False} if task == TRAINING else {}))
    base = network()
    runs = {BASE: make(base, work), PLAIN: make(plain, work)}
    if bf16:
        runs |= {BF16: make(base, half), PLAIN_BF16: make(plain, half)}
    if compiled:
        for name, each in ((COMPILED, work), *([(COMPILED_BF16, half)] if bf16 else [])):
            copy = network()
            copy.net.compile()
            runs[name] = make(copy, each)
    return runs


def table(work: Work, only: str, bf16: bool, compiled: bool) -> str:
    """Measure all networks whose names contain a text."""
    columns, rows = [PLAIN, *([BF16, PLAIN_BF16] if bf16 else []), *([COMPILED] if compiled else [])], []
    columns += [COMPILED_BF16] if bf16 and compiled else []
    for name, config in NETWORKS.items():
        for task in (INFERENCE, TRAINING) if only in name else ():
            torch.manual_seed(0)
            seconds = time_in_turns(variants(config, task, work, bf16, compiled), work.rounds, CPU)
            medians = {variant: statistics.median(times) for variant, times in seconds.items()}
            ratios = [f"{medians[BASE] / medians[variant]:.2f}x" for variant in columns]
            rows.append((name, task, f"{1000 * medians[BASE]:.0f} ms", *ratios))
            print(*rows[-1], sep=", ", flush=True)
    return markdown(("network", "task", "base", *columns), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", metavar="TEXT", help=f"of these: {', '.join(NETWORKS)}")
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    parser.add_argument("--avx2", action="store_true", help="without AVX-512 and AMX")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    options = parser.parse_args()
    if options.rounds < 3:
        parser.error("--rounds: must be at least 3; fewer are mostly noise.")
    if options.avx2 and any(os.environ.get(key) != value for key, value in RESTRICTED.items()):
        sys.exit(subprocess.run([sys.executable, *sys.argv], env={**os.environ, **RESTRICTED}, check=False).returncode)
    torch.set_num_threads(options.threads)
    clock = "the processor's time" if options.threads == 1 else "wall-clock time"
    found = table(Work(rounds=options.rounds), options.only, not options.avx2, options.compile)
    capability = torch.backends.cpu.get_cpu_capability()
    text = f"{conditions(options.threads, clock)}\nInstructions used: {capability}.\n\n{found}"
    print(text)
    if options.write:
        page = DOCS / "benchmarks.md"
        part = "precision with AVX2" if options.avx2 else "precision"
        page.write_text(with_part(page.read_text(), part, text))


if __name__ == "__main__":
    main()
