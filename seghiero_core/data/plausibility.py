"""Warnings about data that passes the audit but is probably not what was meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from seghiero_core.config.schema import Config, TransformConfig
from seghiero_core.data.audit import Audit
from seghiero_core.data.faults import name_files
from seghiero_core.data.hints import labels_as_yaml
from seghiero_core.data.samples import Sample
from seghiero_core.hierarchy.tree import Hierarchy

_MUCH_IGNORED = 0.1
_DARK = 2**14  # a quarter of 16 bits: data of up to 14 bits, which should have been scaled
_SCALES = 99  # at which the padding is averaged


def data_warnings(config: Config, audits: Mapping[str, Audit]) -> dict[str, list[str]]:
    """Look for what is allowed but probably not meant.

    Args:
        config: A loaded config.
        audits: The audits of its splits.

    Returns:
        The warnings of every split, each one line.
    """
    warnings: dict[str, list[str]] = {split: [] for split in audits}
    if config.dataset.sources is None:
        _add_warnings(warnings, audits, config.hierarchy, config.transform)
    for position, source in enumerate(config.dataset.sources or ()):
        found = {split: total.sources[position] for split, total in audits.items() if position in total.sources}
        hierarchy = config.hierarchy.of_source(position)
        _add_warnings(warnings, found, hierarchy, config.transform, prefix=f"{source.name}: ")
    for split, found in audits.items() if config.dataset.sources else ():
        warnings[split] += _repeated_warnings(found.samples)
    if "train" in audits:
        for split in [split for split in audits if split != "train"]:
            warnings[split] += _shared_images_warnings(split, audits["train"].samples, audits[split].samples)
    return warnings


def _add_warnings(
    warnings: dict[str, list[str]],
    audits: Mapping[str, Audit],
    hierarchy: Hierarchy,
    transform: TransformConfig,
    prefix: str = "",
) -> None:
    """Add the warnings of a data set, or of one source of it, to those of every split."""
    pixels = sum(found.pixels for found in audits.values())
    absent = [value for value, label in hierarchy.values.items() if not pixels[label]]
    for split, found in audits.items():
        texts = _split_warnings(found, absent, hierarchy)
        if split == "train":
            texts += _crop_warnings(found, transform)
        warnings[split] += [f"{prefix}{text}" for text in texts]


def _split_warnings(found: Audit, absent: Sequence[int], hierarchy: Hierarchy) -> list[str]:
    warnings = _ignored_warnings(found, absent, hierarchy)
    if found.turned:
        warnings.append(
            f"image and mask have different EXIF orientations ({len(found.turned)} of {len(found.samples)} pairs): "
            f"{name_files(found.turned)}. Each is rotated by its own tag; check with `seghiero data preview` that they "
            "fit."
        )
    if found.peaks and (brightest := max(found.peaks.values())) < _DARK:
        warnings.append(
            f"16-bit images have no value above {brightest} of 65535 ({len(found.peaks)} of {len(found.samples)}): "
            f"{name_files([*found.peaks])}. They are read by their high byte and become almost black. Scale them to "
            "the full range, or convert them to 8 bits."
        )
    return warnings


def _ignored_warnings(found: Audit, absent: Sequence[int], hierarchy: Hierarchy) -> list[str]:
    """Whether the ignore value is probably the value of a label, such as 255 in binary masks of 0 and 255.

    `absent` are the values of the labels without a pixel in any split: one that only this split lacks is just rare.
    """
    labeled = int(found.pixels.sum())
    if not found.ignored:
        return []
    if not labeled:
        value = f"{hierarchy.ignore}, the value of {hierarchy.section}.ignore"
        return [f"every pixel is ignored: all masks hold only {value}."]
    share = found.ignored / (labeled + found.ignored)
    if len(absent) != 1 or (len(hierarchy.values) > 2 and share < _MUCH_IGNORED):
        return []
    values = dict(hierarchy.values)
    label = values.pop(absent[0])
    values[hierarchy.ignore] = label
    name, written = hierarchy.label_name(label), labels_as_yaml(values, hierarchy, changed=hierarchy.ignore)
    unused = next(value for value in (*range(255, -1, -1), *range(65535, 255, -1)) if value not in values)
    return [
        f"no pixel has the label '{name}', and {100 * share:.3g} % of the pixels are ignored (value "
        f"{hierarchy.ignore}). If {hierarchy.ignore} means {name}, write labels: {written} and ignore: {unused}."
    ]


def _crop_warnings(found: Audit, transform: TransformConfig) -> list[str]:
    """Whether training crops are larger than every image, so that much of them is padding."""
    height, width = transform.size
    if not all(h <= height and w <= width and (h, w) != (height, width) for h, w in found.sizes):
        return []
    scales = np.geomspace(*transform.scale, _SCALES)  # drawn log-uniformly, as `draw_augmentation` does
    covered = sum(
        count * np.mean(np.minimum(1, scales * h / height) * np.minimum(1, scales * w / width))
        for (h, w), count in found.sizes.items()
    )
    padding = 1 - covered / len(found.samples)
    largest = max(found.sizes, key=lambda size: size[0] * size[1])
    return [
        f"transform.size [{height}, {width}] is larger than every image (at most {largest[0]}x{largest[1]} px, HxW): "
        f"on average {100 * padding:.0f} % of a training crop is padding. Choose a smaller size."
    ]


def _repeated_warnings(samples: tuple[Sample, ...]) -> list[str]:
    """Whether two sources have the same images with the same masks, which is likely where one lacks its `root`."""
    first: dict[tuple[Path, Path], int | None] = {}  # the first source of each pair
    repeated = []
    for sample in samples:
        pair = sample.image.resolve(), sample.mask.resolve()
        if first.setdefault(pair, sample.source) != sample.source:
            repeated.append(sample.image)
    if not repeated:
        return []
    return [
        f"{len(repeated)} images with the same masks are in several of dataset.sources: {name_files(repeated)}. Give "
        "each source its own root."
    ]


def _shared_images_warnings(split: str, train: tuple[Sample, ...], others: tuple[Sample, ...]) -> list[str]:
    """Whether images of another split are also trained on."""
    seen = {sample.image.resolve() for sample in train}
    shared = [sample.image for sample in others if sample.image.resolve() in seen]
    if not shared:
        return []
    share = "all" if len(shared) == len(others) else f"{len(shared)} of {len(others)}"
    return [
        f"{share} images are also in train: {name_files(shared)}. Metrics on images that were trained on are too good; "
        f"give {split} other images."
    ]
