"""How fast shards on a disk are, as a ratio to the folder that they were packed from: `python benchmarks/readers.py`.

Both are read by the training loader, with decoding and augmentation, in turns, from warm files.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from seghiero_core.config.loading import load_config
from seghiero_core.config.schema import Config
from seghiero_core.data.loaders import batches, train_loader
from seghiero_core.data.samples import split_samples
from seghiero_core.data.shards import pack


def write_data(folder: Path, images: int) -> Config:
    """Write JPEG images of 480x360 px with PNG masks, as CamVid's are."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / "train" / kind).mkdir(parents=True)
    for number in range(images):
        coarse = rng.integers(0, 256, (45, 60, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((480, 360), Image.Resampling.BICUBIC)
        image.save(folder / "train" / "images" / f"{number:05d}.jpg", quality=90)
        mask = rng.integers(0, 3, (45, 60), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(mask).save(folder / "train" / "masks" / f"{number:05d}.png")
    return write_config(folder / "cfg.yaml", {"train": "train", "val": "train"})


def write_config(path: Path, dataset: dict[str, object]) -> Config:
    """Write and load the config of a data set."""
    document = {"dataset": dataset, "classes": {"labels": ["a", "b", "c"]}, "transform": {"size": [352, 480]}}
    path.write_text(yaml.safe_dump(document))
    return load_config(path)


def seconds(config: Config, workers: int) -> float:
    """Time one epoch: CPU time, which other programs disturb less, where this process does all the work."""
    samples = split_samples(config.dataset, "train")
    loader = train_loader(samples, config.hierarchy, config.transform, batch_size=8, workers=workers)
    clock = time.perf_counter if workers else time.process_time
    started = clock()
    for _ in batches(loader):
        pass
    return clock() - started


def main() -> None:
    """Print the ratios of the rounds, and their median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = write_data(Path(name), options.images)
        train, val = pack(folder, Path(name, "shards"), 4 * 2**20)
        section = {"type": "shards", "root": "shards", "train": train.pattern, "val": val.pattern}
        shards = write_config(Path(name, "shards.yaml"), section)
        seconds(folder, options.workers), seconds(shards, options.workers)
        ratios = []
        for number in range(options.rounds):
            order = [folder, shards] if number % 2 else [shards, folder]
            times = {id(config): seconds(config, options.workers) for config in order}
            ratios.append(times[id(folder)] / times[id(shards)])
            print(
                f"round {number}: {options.images / times[id(folder)]:.1f} images/s from the folder, "
                f"{options.images / times[id(shards)]:.1f} from shards, ratio {ratios[-1]:.3f}"
            )
        print(f"median ratio of {len(train.shards)} shards: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
