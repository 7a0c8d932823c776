"""Compare our data loading with an OpenCV pipeline, on one thread, and measure how long a training step waits for it.

    python benchmarks/data.py [--rounds 7] [--images 4]

Both sides read the same files and apply the same augmentation with the same parameters: scale, crop, flip and color
jitter, bilinear for images and nearest neighbor for masks. Both return a 3,h,w uint8 image and an h,w int64 target;
ours also checks the mask's values and counts the labels. OpenCV has two variants: it scales the whole image and then
crops, as training pipelines usually do, or it crops first, as ours does. Times are processor time, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from comparison import CPU, Ratio, print_ratios
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seghiero_core.benchmarking.timing import time_in_turns
from seghiero_core.config.loading import load_config
from seghiero_core.config.schema import Config
from seghiero_core.data.augmentation import AugmentationParams, draw_augmentation, sample_generator
from seghiero_core.data.jitter import color_matrix
from seghiero_core.data.loaders import SegmentationDataset, batches, train_loader
from seghiero_core.data.samples import Sample, split_samples
from seghiero_core.data.transforms import PAD_RGB

CLASSES, IGNORE = 19, 255
SIZES = {"2048x1024": ((1024, 2048), (512, 1024), 1.5), "480x360": ((360, 480), (352, 480), 1.0)}
"""Of each size: (H, W) of the images and of the crops, px, and the goal."""
STEP, WAITING_GOAL = 0.3, 20  # s on the simulated GPU; a step is to last 20 times as long as it waits for its data
MEAN_DIFFERENCE, EQUAL_TARGETS = 4.0, 0.9
"""Of the two sides: the mean difference of images is at most, the share of equal target pixels at least this. OpenCV's
nearest neighbor is that of a pixel's corner, and its bilinear scaling skips pixels where it reduces."""


def write_data(folder: Path, extension: str, size: tuple[int, int], crop: tuple[int, int], images: int) -> Config:
    """Write images with details of every scale and some noise, and PNG masks, and load their config."""
    rng = np.random.default_rng(0)
    height, width = size
    for kind in ("images", "masks"):
        (folder / "train" / kind).mkdir(parents=True)
    for number in range(images):
        picture = 118 + rng.normal(0, 3, (height, width, 3))
        for side, amplitude in ((64, 90), (16, 40), (4, 20)):
            coarse = rng.integers(0, 256, (height // side + 1, width // side + 1, 3), dtype=np.uint8)
            details = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            picture += (np.asarray(details, dtype=np.float32) - 128) * amplitude / 128
        image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
        image.save(folder / "train" / "images" / f"{number}.{extension}", quality=90)
        values = rng.integers(0, CLASSES, (height // 32 + 1, width // 32 + 1), dtype=np.uint8)
        Image.fromarray(values).resize((width, height), 0).save(folder / "train" / "masks" / f"{number}.png")
    document = {
        "dataset": {"train": "train", "val": "train"},
        "classes": {"labels": [f"class{i}" for i in range(CLASSES)], "ignore": IGNORE},
        "transform": {"size": list(crop)},
    }
    path = folder / "cfg.yaml"
    path.write_text(yaml.safe_dump(document))
    return load_config(path)


def scale_then_crop(pixels: np.ndarray, params: AugmentationParams, interpolation: int) -> np.ndarray:
    """Scale a whole picture, and cut out what is kept."""
    top, left, height, width = params.box
    rows, columns = params.resized
    whole = round(pixels.shape[1] * columns / width), round(pixels.shape[0] * rows / height)
    scaled = cv2.resize(pixels, whole, interpolation=interpolation)
    top, left = min(round(top * rows / height), whole[1] - rows), min(round(left * columns / width), whole[0] - columns)
    return scaled[top : top + rows, left : left + columns]


def crop_then_scale(pixels: np.ndarray, params: AugmentationParams, interpolation: int) -> np.ndarray:
    """Cut out what is kept, and scale it."""
    top, left, height, width = params.box
    part = pixels[top : top + height, left : left + width]
    return cv2.resize(part, params.resized[::-1], interpolation=interpolation)


def load_with_opencv(
    sample: Sample,
    key: tuple[int, int, int],
    config: Config,
    scale: Callable[[np.ndarray, AugmentationParams, int], np.ndarray],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read a sample and augment it by OpenCV."""
    image = cv2.imread(str(sample.image), cv2.IMREAD_COLOR)
    mask = cv2.imread(str(sample.mask), cv2.IMREAD_UNCHANGED)
    params = draw_augmentation(sample_generator(0, *key), mask.shape, config.transform)
    image = cv2.cvtColor(scale(image, params, cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB)
    mask = scale(mask, params, cv2.INTER_NEAREST)
    matrix, offset = color_matrix(np.array(cv2.mean(image)[:3]), params)
    image = cv2.transform(image, np.column_stack([matrix, np.full(3, offset)]))
    if params.flip:
        image, mask = cv2.flip(image, 1), cv2.flip(mask, 1)
    if params.resized != params.size:
        (top, left), (height, width) = params.offset, params.resized
        border = (top, params.size[0] - top - height, left, params.size[1] - left - width, cv2.BORDER_CONSTANT)
        image = cv2.copyMakeBorder(image, *border, value=PAD_RGB)
        mask = cv2.copyMakeBorder(mask, *border, value=IGNORE)
    target = mask.astype(np.int64)
    target[mask == IGNORE] = -1
    return torch.from_numpy(np.stack(cv2.split(image))), torch.from_numpy(target)


def check_outputs(ours: dict[str, torch.Tensor], image: torch.Tensor, target: torch.Tensor) -> None:
    """Raise ValueError unless both sides return the same, but for the interpolation."""
    kinds = [(each.shape, each.dtype, each.is_contiguous()) for each in (ours["image"], ours["target"])]
    if kinds != [(each.shape, each.dtype, each.is_contiguous()) for each in (image, target)]:
        raise ValueError(f"ours returns {kinds}, OpenCV {image.dtype} {image.shape} and {target.dtype} {target.shape}")
    difference = (ours["image"].float() - image.float()).abs().mean()
    equal = (ours["target"] == target).float().mean()
    if difference > MEAN_DIFFERENCE or equal < EQUAL_TARGETS:
        raise ValueError(f"the images differ by {difference:.2f} on average, {100 * equal:.1f} % of targets are equal")


def compare_loading(name: str, extension: str, images: int, rounds: int) -> list[Ratio]:
    """Measure the time per image of both sides, for one size and format."""
    size, crop, goal = SIZES[name]
    with tempfile.TemporaryDirectory() as folder:
        config = write_data(Path(folder), extension, size, crop, images)
        samples = split_samples(config.dataset, "train")
        dataset = SegmentationDataset(samples, config.hierarchy, config.transform)
        keys = [(epoch, index, 0) for epoch in range(3) for index in range(images)]
        variants = {"OpenCV": scale_then_crop, "OpenCV (crops first)": crop_then_scale}
        for key in keys:
            for scale in variants.values():
                check_outputs(dataset[key], *load_with_opencv(samples[key[1]], key, config, scale))
        loads = {"seghiero": dataset.__getitem__}
        for peer, scale in variants.items():
            loads[peer] = lambda key, scale=scale: load_with_opencv(samples[key[1]], key, config, scale)
        # The results are dropped one by one: keeping them would measure how fast new memory is.
        runs = {side: lambda load=load: deque(map(load, keys), maxlen=0) for side, load in loads.items()}
        seconds = time_in_turns(runs, rounds, CPU)
    medians = {side: 1e6 * statistics.median(times) / len(keys) for side, times in seconds.items()}
    return [
        Ratio(
            f"{name} {extension}",
            "loading an image",
            peer,
            medians["seghiero"],
            medians[peer],
            "us",
            min(seconds[peer]) / min(seconds["seghiero"]),
            goal if peer == "OpenCV" else None,
        )
        for peer in variants
    ]


def measure_waiting(images: int = 360, batch: int = 8) -> Ratio:
    """Measure how long the steps of an epoch wait for two workers, which an epoch before has started."""
    size, crop, _ = SIZES["480x360"]
    with tempfile.TemporaryDirectory() as folder:
        config = write_data(Path(folder), "jpg", size, crop, images)
        samples = split_samples(config.dataset, "train")
        loader = train_loader(samples, config.hierarchy, config.transform, batch_size=batch, workers=2)
        deque(batches(loader), maxlen=0)
        loader.sampler.start_epoch(1)
        waits: list[float] = []
        ready = time.perf_counter()
        for _ in batches(loader):
            waits.append(time.perf_counter() - ready)
            time.sleep(STEP)
            ready = time.perf_counter()
    wait = 1e6 * statistics.mean(waits)
    return Ratio("480x360 jpg", "waiting for 2 workers", "a step", wait, wait + 1e6 * STEP, "us", None, WAITING_GOAL)


def measure(rounds: int, images: int = 4, extensions: Sequence[str] = ("jpg", "png")) -> list[Ratio]:
    """Run all comparisons, on one thread."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        cases = [(name, extension) for name in SIZES for extension in extensions]
        found = [ratio for case in cases for ratio in compare_loading(*case, images, rounds)]
        return [*found, measure_waiting()]
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=4, help="images of each size")
    options = parser.parse_args()
    ratios = measure(options.rounds, options.images)
    print_ratios(ratios)
    sys.exit(0 if all(ratio.reached for ratio in ratios) else 1)


if __name__ == "__main__":
    main()
