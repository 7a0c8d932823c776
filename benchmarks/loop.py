"""Measure the overhead of the training loop over a minimal hand-written one with the same model, loss and data.

    python benchmarks/loop.py [--backbone "{type: resnet, depth: 18}"] [--size 256] [--batch 4] [--steps 20]

Both loops make the same steps from the same start. They run in pairs, in alternating order, so that noise affects both
alike; on the CPU with one thread, time is the process's CPU time. Ours is `seghiero_core.training.loop.train` with
everything it does in a step: gradient norm, finite checks, learning rate schedule, metrics.jsonl, events. The bare loop
is forward, loss, backward and `AdamW.step`. A step lasts from the end of the previous one, including its data; the
median ignores the few that begin an epoch. Printed are the medians of the steps, their ratio per pair, and the median
of these ratios, which should be at most 1.03.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seghiero_core.benchmarking.timing import read_clock
from seghiero_core.config.loading import load_config
from seghiero_core.scaffold.starter import write_starter
from seghiero_core.training.loop import train
from seghiero_core.training.prepare import prepare

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GOAL = 1.03
WARM_UP = 2


def ours(config) -> list[float]:
    """Return the duration of every step of a training run, s."""
    ends: list[float] = []
    train(
        config, force=True, notify=lambda event: ends.append(read_clock(DEVICE)) if event["event"] == "step" else None
    )
    return differences(ends)


def bare(config) -> list[float]:
    """Return the duration of every step of a minimal loop, s."""
    run = prepare(config)
    model = run.accelerator.unwrap_model(run.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.training.lr, fused=True)
    ends, step = [], 0
    for epoch in range(config.training.epochs):
        run.sampler.start_epoch(epoch)
        model.train()
        for batch in run.train_loader:
            inputs, target = run.to_device(batch)
            output = model(*inputs)
            total, _ = run.loss(output.logits, target, embedding=output.embedding, fraction=step / run.total_steps)
            total.backward()
            optimizer.step()
            optimizer.zero_grad()
            total.item()  # waits for the loss, as any loop that shows it; ours does too
            step += 1
            ends.append(read_clock(DEVICE))
    return differences(ends)


def differences(ends: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(ends[WARM_UP:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="{type: resnet, depth: 18}")
    parser.add_argument("--head", default="{type: extremely_fast_segformer}")
    parser.add_argument("--size", type=int, default=256, help="side of the crops, px")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        cfg = write_starter(Path(folder) / "starter")
        settings = [
            f"backbone={arguments.backbone}",
            f"head={arguments.head}",
            f"transform.size=[{arguments.size}, {arguments.size}]",
            f"training.batch_size={arguments.batch}",
            "training.workers=0",
            "training.precision=fp32",
        ]
        per_epoch = prepare(load_config(cfg, settings)).steps_per_epoch
        epochs = -(-(arguments.steps + WARM_UP) // per_epoch)
        config = load_config(cfg, [*settings, f"training.epochs={epochs}", f"training.validate_every={epochs}"])
        ratios = []
        for number in range(arguments.rounds):
            loops = (ours, bare) if number % 2 else (bare, ours)
            medians = {loop: statistics.median(loop(config)) for loop in loops}
            ratios.append(medians[ours] / medians[bare])
            print(
                f"pair {number + 1}: ours {1000 * medians[ours]:.1f} ms, bare {1000 * medians[bare]:.1f} ms per step, "
                f"ratio {ratios[-1]:.3f}",
                flush=True,
            )
    ratio = statistics.median(ratios)
    print(f"median ratio {ratio:.3f} (goal: at most {GOAL}): {'reached' if ratio <= GOAL else 'NOT reached'}")
    sys.exit(0 if ratio <= GOAL else 1)


if __name__ == "__main__":
    main()
