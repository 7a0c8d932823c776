"""Warnings about data that passes the audit but is probably not what was meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from seghiero_core.config.schema import Config, TransformConfig
from seghiero_core.data.audit import Audit
from seghiero_core.data.duplicates import add_duplicates, repeated_in_sources
from seghiero_core.data.faults import DataFinding, name_files
from seghiero_core.data.hints import labels_as_yaml
from seghiero_core.errors import shorten
from seghiero_core.hierarchy.tree import Hierarchy

_MUCH_IGNORED = 0.1
_DARK = 2**14  # a quarter of 16 bits: data of up to 14 bits, which should have been scaled
_SCALES = 99  # at which the padding is averaged
_WHITE = 255
_RARE = 1e-4  # of the labeled pixels
_USUAL = 0.95  # of the images have the usual size
_FEW_IMAGES = 20  # too few for a usual size
_IMAGENET_MEAN, _IMAGENET_STD = np.array([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])
_warning = partial(DataFinding, "warning")


def data_warnings(config: Config, audits: Mapping[str, Audit]) -> dict[str, list[DataFinding]]:
    """Look for what is allowed but probably not meant.

    Args:
        config: A loaded config.
        audits: The audits of its splits.

    Returns:
        The warnings of every split.
    """
    warnings: dict[str, list[DataFinding]] = {split: [] for split in audits}
    is_rgb = config.dataset.bands is None
    if config.dataset.sources is None:
        _add_warnings(warnings, audits, config.hierarchy, config.transform, is_rgb=is_rgb)
    for position, source in enumerate(config.dataset.sources or ()):
        found = {split: total.sources[position] for split, total in audits.items() if position in total.sources}
        hierarchy = config.hierarchy.of_source(position)
        _add_warnings(warnings, found, hierarchy, config.transform, is_rgb=is_rgb, prefix=f"{source.name}: ")
    if "train" in audits:
        warnings["train"] += _rare_warnings(audits, config.hierarchy)
    for split, found in audits.items() if config.dataset.sources else ():
        warnings[split] += repeated_in_sources(found.samples)
    add_duplicates(warnings, audits)
    return warnings


def _add_warnings(
    warnings: dict[str, list[DataFinding]],
    audits: Mapping[str, Audit],
    hierarchy: Hierarchy,
    transform: TransformConfig,
    *,
    is_rgb: bool,
    prefix: str = "",
) -> None:
    """Add the warnings of a data set, or of one source of it, to those of every split."""
    if not audits:
        return  # its data is missing
    pixels = sum(found.pixels for found in audits.values())
    absent = [value for value, label in hierarchy.values.items() if not pixels[label]]
    values = {value for found in audits.values() for value in found.values}
    sizes = sum((Counter(found.sizes) for found in audits.values()), Counter())
    for number, (split, found) in enumerate(audits.items()):
        findings = _ignored_warnings(found, absent, values, hierarchy) + _image_warnings(found)
        if split == "train":
            findings += _crop_warnings(found, transform)
        findings += _size_warnings(found, sizes)
        if number == 0 and is_rgb:  # other images are normalized by their own statistics
            findings += _mean_warnings([*audits.values()])
        warnings[split] += [replace(finding, text=f"{prefix}{finding.text}") for finding in findings]


def _ignored_warnings(
    found: Audit, absent: Sequence[int], values: Collection[int], hierarchy: Hierarchy
) -> list[DataFinding]:
    """Whether the ignore value is probably the value of a label, such as 255 in binary masks of 0 and 255.

    `absent` are the values of the labels without a pixel in any split: one that only this split lacks is just rare.
    `values` are those of the masks of all splits.
    """
    labeled, section = int(found.pixels.sum()), hierarchy.section
    if not found.ignored:
        return []
    files = tuple(sample.mask for sample, facts in found.found() if hierarchy.ignore in (facts.values or ()))
    if not labeled:
        text = f"every pixel is ignored: all masks hold only {hierarchy.ignore}, the value of {section}.ignore."
        fix = f"Set {section}.ignore to another value, and add {hierarchy.ignore} to {section}.labels."
        return [_warning("all_ignored", text, fix, files)]
    share = found.ignored / (labeled + found.ignored)
    is_binary = {*values} == {0, _WHITE} and hierarchy.ignore == _WHITE and 0 in hierarchy.values
    if is_binary and len(absent) > 1:
        name = hierarchy.label_name(hierarchy.values[0])
        text = "the masks hold only 0 and 255, the ignore value: these look like binary masks."
        fix = (
            f"If 255 means a class, write {section}.labels: {{0: {name}, 255: NAME}} and ignore: 254. Otherwise export "
            "masks of label values."
        )
        return [_warning("binary_masks", text, fix, files)]
    if len(absent) != 1 or (len(hierarchy.values) > 2 and share < _MUCH_IGNORED):
        return []
    meant = dict(hierarchy.values)
    label = meant.pop(absent[0])
    meant[hierarchy.ignore] = label
    name, written = hierarchy.label_name(label), labels_as_yaml(meant, hierarchy, changed=hierarchy.ignore)
    unused = next(value for value in (*range(255, -1, -1), *range(65535, 255, -1)) if value not in meant)
    text = (
        f"no pixel has the label '{name}', and {100 * share:.3g} % of the pixels are ignored (value "
        f"{hierarchy.ignore})."
    )
    fix = f"If {hierarchy.ignore} means {name}, write labels: {written} and ignore: {unused}."
    return [_warning("binary_masks" if is_binary else "ignored_label", text, fix, files)]


def _image_warnings(found: Audit) -> list[DataFinding]:
    """Whether images and masks are turned differently, and 16-bit images almost black."""
    warnings = []
    turned = tuple(sample.image for sample, facts in found.found() if facts.turned)
    if turned:
        text = (
            f"image and mask have different EXIF orientations ({len(turned)} of {len(found.samples)} pairs): "
            f"{name_files(turned)}."
        )
        fix = "Each is rotated by its own tag; check with `seghiero data preview` that they fit."
        warnings.append(_warning("exif", text, fix, turned))
    peaks = {sample.image: facts.peak for sample, facts in found.found() if facts.peak is not None}
    if peaks and (brightest := max(peaks.values())) < _DARK:
        text = (
            f"16-bit images have no value above {brightest} of 65535 ({len(peaks)} of {len(found.samples)}): "
            f"{name_files([*peaks])}. They are read by their high byte and become almost black."
        )
        fix = "Scale them to the full range, or convert them to 8 bits."
        warnings.append(_warning("dark_16_bit", text, fix, tuple(peaks)))
    return warnings


def _crop_warnings(found: Audit, transform: TransformConfig) -> list[DataFinding]:
    """Whether training crops are larger than every image, so that much of them is padding."""
    height, width = transform.size
    if not found.sizes or not all(h <= height and w <= width and (h, w) != (height, width) for h, w in found.sizes):
        return []
    scales = np.geomspace(*transform.scale, _SCALES)  # drawn log-uniformly, as `draw_augmentation` does
    covered = sum(
        count * np.mean(np.minimum(1, scales * h / height) * np.minimum(1, scales * w / width))
        for (h, w), count in found.sizes.items()
    )
    padding = 1 - covered / sum(found.sizes.values())
    largest = max(found.sizes, key=lambda size: size[0] * size[1])
    text = (
        f"transform.size [{height}, {width}] is larger than every image (at most {largest[0]}x{largest[1]} px, HxW): "
        f"on average {100 * padding:.0f} % of a training crop is padding."
    )
    return [_warning("padding", text, "Choose a smaller size.")]


def _size_warnings(found: Audit, sizes: Counter[tuple[int, int]]) -> list[DataFinding]:
    """Whether some images differ in size from nearly all others; `sizes` are those of all splits."""
    if not sizes or sizes.total() < _FEW_IMAGES:
        return []
    usual, count = sizes.most_common(1)[0]
    odd = {sample.image: facts.size for sample, facts in found.found() if facts.size != usual}
    if not odd or count < _USUAL * sizes.total():
        return []
    named = name_files([*odd], [f"{height}x{width}" for height, width in odd.values()])
    text = f"{len(odd)} of {len(found.samples)} images are not {usual[0]}x{usual[1]} px (HxW) like the others: {named}."
    fix = "Check that they belong to this data set and weren't cropped, scaled or rotated."
    return [_warning("odd_size", text, fix, tuple(odd))]


def _mean_warnings(audits: Sequence[Audit]) -> list[DataFinding]:
    """Whether the images of all splits are, on average, far from those that backbones were pretrained on."""
    means = {sample.image: facts.mean for found in audits for sample, facts in found.found() if facts.mean}
    if not means:
        return []
    mean = np.mean([*means.values()], axis=0)
    if np.all(np.abs(mean - _IMAGENET_MEAN) <= _IMAGENET_STD):
        return []
    red, green, blue = mean
    text = (
        f"the images have the mean color [{red:.0f}, {green:.0f}, {blue:.0f}], far from ImageNet's [124, 116, 104], by "
        "which the network normalizes and with which pretrained backbones learned."
    )
    fix = (
        "Check that the images use the whole range 0 to 255 and aren't inverted; if they are meant to look like this, "
        "expect less from backbone.pretrained."
    )
    return [_warning("image_mean", text, fix, tuple(means))]


def _rare_warnings(audits: Mapping[str, Audit], hierarchy: Hierarchy) -> list[DataFinding]:
    """Whether training has few pixels of a leaf, or none of one that another split has."""
    found = audits["train"]
    labeled = int(found.pixels.sum())
    if not labeled or found.decoded < sum(found.sizes.values()):  # a fast check doesn't tell
        return []
    anywhere = sum(each.pixels for each in audits.values())
    rare = [leaf for leaf in range(len(hierarchy.leaves)) if found.pixels[leaf] < _RARE * labeled and anywhere[leaf]]
    if not rare:
        return []
    named = [f"{hierarchy.leaves[leaf]} ({found.pixels[leaf]} px)" for leaf in rare]
    values = {i: hierarchy.of_source(i).values for i in found.sources or (None,)}  # labels by source and mask value
    files = tuple(
        sample.image
        for sample, facts in found.found()
        if any(values[sample.source].get(value) in rare for value in facts.values or ())
    )
    text = f"less than {100 * _RARE:g} % of the labeled pixels have the label {shorten(named, 5)}."
    fix = "Add images with it, or merge it with another class of classes.labels."
    return [_warning("rare_class", text, fix, files)]
