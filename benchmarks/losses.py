"""Time and memory of the losses, forward and backward, as ratios to plain cross-entropy on the same leaves.

    OMP_NUM_THREADS=1 python benchmarks/losses.py [--repeats 20] [--size 256] [--device cpu] [LOSS ...]

The losses and cross-entropy take turns, and each reports its fastest turn. With a single thread the time is that of the
processor, which other programs do not stretch. Logits are float32 with batch size 2. The
trees have 11 leaves in 6 groups, and 124 leaves in 16 groups in 4. Memory is the peak allocated beyond the inputs. The
values of the target are not checked (`validate=False`), as in training.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F

from seghiero_core.benchmarking.memory import peak_allocated
from seghiero_core.benchmarking.timing import time_in_turns
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.catalog import LOSSES

LIMITS = {"marginal_cross_entropy": (3.0, 3.0), "tree_min": (5.0, 3.0), "tree_rules": (None, 5.0)}
"""How many times as long as cross-entropy a loss may take, on each of the two trees."""
MEMORY_LIMIT = 2.5


def trees() -> list[Hierarchy]:
    small = {
        "sky": None,
        "structure": ["building", "pole", "sign", "fence"],
        "ground": ["road", "pavement"],
        "tree": None,
        "car": None,
        "human": ["pedestrian", "bicyclist"],
    }
    street = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
    names = [f"class{i}" for i in range(124)]  # the leaves of a group are not adjacent
    groups = {f"group{g}": names[g::16] for g in range(16)}
    large = {f"top{t}": {name: groups[name] for name in list(groups)[t::4]} for t in range(4)}
    return [
        Hierarchy.from_config({"labels": street, "tree": small}),
        Hierarchy.from_config({"labels": names, "tree": large}),
    ]


def loss_steps(
    names: list[str], hierarchy: Hierarchy, size: int, device: torch.device
) -> dict[str, Callable[[], None]]:
    """Make one forward and backward pass of cross-entropy and of every loss, by name."""
    torch.manual_seed(0)
    leaves = len(hierarchy.leaves)
    target = torch.randint(0, leaves, (2, size, size), device=device)
    widths = {"leaves": leaves, "nodes": len(hierarchy), "embedding": 256}
    inputs = {kind: torch.randn(2, width, size, size, device=device) for kind, width in widths.items()}
    inputs["embedding"] = F.normalize(inputs["embedding"][..., ::4, ::4])

    def step(x: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        x = x.clone().requires_grad_()

        def run() -> None:
            loss(x).backward()
            x.grad = None

        return run

    steps = {"cross_entropy": step(inputs["leaves"], lambda x: F.cross_entropy(x, target, ignore_index=IGNORE_INDEX))}
    for name in names:
        function = LOSSES[name].load(name)
        steps[name] = step(inputs[LOSSES[name].channels], lambda x, f=function: f(x, target, hierarchy, validate=False))
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("losses", nargs="*", metavar="LOSS", help="default: all")
    parser.add_argument("--repeats", type=int, default=20, help="turns of each loss (default: 20)")
    parser.add_argument("--size", type=int, default=256, help="height and width, px (default: 256)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default: cpu")
    options = parser.parse_args()
    if unknown := [name for name in options.losses if name not in LOSSES]:
        parser.error(f"unknown losses: {', '.join(unknown)}; known: {', '.join(LOSSES)}")
    names = options.losses or list(LOSSES)
    for number, hierarchy in enumerate(trees()):
        steps = loss_steps(names, hierarchy, options.size, options.device)
        best = {name: min(times) for name, times in time_in_turns(steps, options.repeats, options.device).items()}
        memory = {name: peak_allocated(step, options.device) for name, step in steps.items()}
        levels = " in ".join(str(len(level.nodes)) for level in hierarchy.levels)
        threads = f", {torch.get_num_threads()} threads" if options.device.type == "cpu" else ""
        print(f"\n{levels} classes, 2 x {options.size} x {options.size} px, {options.device}{threads}")
        print(f"{'loss':28}{'ms':>9}{'time':>9}{'limit':>8}{'MiB':>9}{'memory':>9}{'limit':>8}")
        for name in steps:
            limit = LIMITS[name][number] if name in LIMITS else None
            limits = (f"{limit:.0f}x", f"{MEMORY_LIMIT}x") if limit else ("", "")
            time_ratio, memory_ratio = best[name] / best["cross_entropy"], memory[name] / memory["cross_entropy"]
            print(
                f"{name:28}{best[name] * 1e3:9.1f}{time_ratio:8.2f}x{limits[0]:>8}"
                f"{memory[name] / 2**20:9.1f}{memory_ratio:8.2f}x{limits[1]:>8}"
            )


if __name__ == "__main__":
    main()
