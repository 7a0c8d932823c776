from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F_nn
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from seghiero_core.config.schema import TransformConfig
from seghiero_core.data.augmentation import AugmentationParams, draw_augmentation, sample_generator
from seghiero_core.data.jitter import color_matrix, jitter_color
from seghiero_core.data.transforms import PAD_RGB, augment_image, augment_mask, augment_target
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.reductions import label_counts

quick = settings(derandomize=True, max_examples=40, deadline=None)
sides, lengths = st.integers(1, 70), st.integers(1, 3000)


def plain(**changes) -> AugmentationParams:
    whole = {"box": (0, 0, 4, 6), "resized": (4, 6), "size": (4, 6), "offset": (0, 0), "flip": False}
    return AugmentationParams(**(whole | changes))


@quick
@given(seed=st.integers(0, 2**32), height=sides, width=sides, size=st.tuples(sides, sides))
def test_drawn_boxes_lie_inside_and_results_have_the_size(seed, height, width, size):
    params = draw_augmentation(np.random.default_rng(seed), (height, width), TransformConfig(size=size))
    top, left, kept_height, kept_width = params.box
    assert 0 <= top <= top + kept_height <= height and 0 <= left <= left + kept_width <= width
    assert kept_height >= 1 and kept_width >= 1
    image = augment_image(torch.zeros(3, height, width, dtype=torch.uint8), params)
    target = augment_target(torch.zeros(height, width, dtype=torch.int64), params)
    assert image.shape == (3, *size) and image.dtype == torch.uint8 and image.is_contiguous()
    assert target.shape == size and target.dtype == torch.int64 and target.is_contiguous()


@quick
@given(seed=st.integers(0, 10**6), height=st.integers(30, 90), width=st.integers(30, 90))
def test_image_and_target_stay_aligned(seed, height, width):
    """Blobs whose gray level is 40 times their node index: 2 px and more inside a blob it must still be so.

    Two px is params far bilinear scaling to twice the size reaches.
    """
    rng = np.random.default_rng(seed)
    blobs = torch.from_numpy(np.kron(rng.integers(0, 6, (6, 6)), np.ones((15, 15), dtype=np.int64)))[:height, :width]
    image = (blobs * 40).to(torch.uint8).repeat(3, 1, 1)
    params = draw_augmentation(rng, tuple(blobs.shape), TransformConfig(size=(40, 50), color_jitter=0))
    gray, target = augment_image(image, params).int(), augment_target(blobs, params)
    padding = torch.tensor(PAD_RGB).view(3, 1, 1)
    assert torch.equal((gray == padding).all(dim=0), target == IGNORE_INDEX)
    around = target[None].float()
    highest, lowest = F_nn.max_pool2d(around, 5, 1, 2)[0], -F_nn.max_pool2d(-around, 5, 1, 2)[0]
    inside = (highest == lowest) & (target != IGNORE_INDEX)
    assert inside.any()
    assert torch.equal(gray[:, inside], (40 * target[inside]).int().expand(3, -1))


def test_pure_crop_and_flip_equal_slicing():
    rng = np.random.default_rng(0)
    image, target = rng.integers(0, 256, (3, 9, 11), dtype=np.uint8), rng.integers(0, 9, (9, 11))
    params = plain(box=(2, 3, 4, 6), flip=True)
    assert np.array_equal(augment_image(torch.from_numpy(image), params), image[:, 2:6, 3:9][:, :, ::-1])
    assert np.array_equal(augment_target(torch.from_numpy(target), params), target[2:6, 3:9][:, ::-1])


def test_padding_surrounds_a_smaller_image():
    params = plain(box=(0, 0, 4, 6), size=(8, 9), offset=(3, 2))
    target = augment_target(torch.arange(24).reshape(4, 6), params)
    image = augment_image(torch.full((3, 4, 6), 7, dtype=torch.uint8), params)
    assert torch.equal(target[3:7, 2:8], torch.arange(24).reshape(4, 6))
    assert (target == IGNORE_INDEX).sum() == 72 - 24
    assert image[:, 0, 0].tolist() == list(PAD_RGB) and (image[:, 3:7, 2:8] == 7).all()


def test_scale_is_relative_to_the_native_size_and_log_uniform():
    """A crop far smaller than the image covers 1/scale of its own size: that ratio is log-uniform in the range."""
    rng = np.random.default_rng(0)
    transform = TransformConfig(size=(400, 400), scale=(0.5, 2.0))
    draws = [draw_augmentation(rng, (4000, 4000), transform) for _ in range(2000)]
    logs = np.log2([400 / params.box[2] for params in draws])
    assert -1.01 < logs.min() < -0.97 and 0.97 < logs.max() < 1.01
    assert np.abs(np.quantile(logs, [0.25, 0.5, 0.75]) - [-0.5, 0, 0.5]).max() < 0.07
    assert abs(np.mean([params.flip for params in draws]) - 0.5) < 0.05
    assert all(
        params.box[2] == params.box[3] and params.resized == (400, 400) for params in draws
    )  # the aspect is kept


def test_options_turn_each_part_off_or_on():
    native, size = (50, 60), (20, 30)
    off = TransformConfig(size=size, scale=(1, 1), flip=0, color_jitter=0)
    always_flip = TransformConfig(size=size, flip=1)
    for seed in range(20):
        params = draw_augmentation(np.random.default_rng(seed), native, off)
        assert params == plain(box=params.box, resized=size, size=size) and params.box[2:] == size
        assert draw_augmentation(np.random.default_rng(seed), native, always_flip).flip


def test_draws_depend_on_seed_epoch_and_index():
    def draw(*key):
        return draw_augmentation(sample_generator(*key), (50, 60), TransformConfig(size=(20, 30)))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    keys = [(s, e, i) for s in range(3) for e in range(3) for i in range(3)]
    assert len({draw(*key) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("changes", "reference"),
    [
        ({"brightness": 1.2}, lambda x: F.adjust_brightness(x, 1.2)),
        ({"contrast": 0.7}, lambda x: F.adjust_contrast(x, 0.7)),
        ({"saturation": 1.3}, lambda x: F.adjust_saturation(x, 1.3)),
        (
            {"brightness": 0.8, "contrast": 1.2, "saturation": 0.75},
            lambda x: F.adjust_contrast(F.adjust_saturation(F.adjust_brightness(x, 0.8), 0.75), 1.2),
        ),
    ],
)
def test_jitter_equals_torchvision_one_after_the_other(changes, reference):
    """In float and in the middle of the range, where nothing is clamped or rounded on the way."""
    image = torch.from_numpy(np.random.default_rng(0).integers(90, 160, (3, 40, 50), dtype=np.uint8))
    expected = reference(image.double() / 255) * 255
    assert (jitter_color(image, plain(**changes)).double() - expected).abs().max() <= 0.75


def test_hue_turns_color_and_keeps_luma_and_gray():
    gray = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    assert torch.equal(jitter_color(gray, plain(hue=0.2)), gray)
    color = torch.tensor([150, 100, 80], dtype=torch.uint8).view(3, 1, 1).repeat(1, 4, 4)
    turned = jitter_color(color, plain(hue=0.05))
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert abs(float(luma @ turned[:, 0, 0].float() - luma @ color[:, 0, 0].float())) < 1
    assert (turned[:, 0, 0].int() - color[:, 0, 0].int()).abs().max() > 5
    back = jitter_color(jitter_color(color, plain(hue=0.05)), plain(hue=-0.05))
    assert (back.int() - color.int()).abs().max() <= 2


def test_jitter_clamps_and_does_nothing_at_identity():
    image = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 1, 3).repeat(3, 1, 1)
    assert jitter_color(image, plain()) is image
    assert jitter_color(image, plain(brightness=1.9))[0].tolist() == [[0, 243, 255]]


def test_global_random_state_is_neither_read_nor_changed():
    image, target = torch.zeros(3, 50, 60, dtype=torch.uint8), torch.zeros(50, 60, dtype=torch.int64)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        params = draw_augmentation(sample_generator(0, 0, 0), (50, 60), TransformConfig(size=(20, 30)))
        results.append((augment_image(image, params), augment_target(target, params)))
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@quick
@given(
    seed=st.integers(0, 10**6), height=sides, width=sides, size=st.tuples(sides, sides), dtype=st.sampled_from("BHi")
)
def test_a_mask_becomes_the_target_that_its_labels_become(seed, height, width, size, dtype):
    rng = np.random.default_rng(seed)
    hierarchy = Hierarchy.from_config(
        {"labels": {0: "a", 3: "b", 4: "c", 9: "d"}, "tree": {"e": ["a", "b"], "c": None, "d": None}}
    )
    mask = rng.choice(np.array([0, 3, 4, 9, 255], dtype=dtype), (height, width))
    params = draw_augmentation(rng, mask.shape, TransformConfig(size=size))
    target, counts = augment_mask(mask, params, hierarchy)
    assert torch.equal(target, augment_target(torch.from_numpy(hierarchy.to_target(mask)), params))
    assert target.is_contiguous() and torch.equal(counts, label_counts(target[None], hierarchy)[0])


@quick
@given(
    seed=st.integers(0, 10**6), height=st.integers(1, 3000), width=st.integers(1, 3000), size=st.tuples(sides, sides)
)
def test_the_nearest_pixels_are_those_of_torchvision(seed, height, width, size):
    pixels = torch.from_numpy(np.random.default_rng(seed).integers(0, 99, (height, width)))
    params = plain(box=(0, 0, height, width), resized=size, size=size)
    expected = F.resize(pixels[None], list(size), interpolation=F.InterpolationMode.NEAREST_EXACT)[0]
    assert torch.equal(augment_target(pixels, params), expected)


@quick
@given(seed=st.integers(0, 10**6), height=sides, width=st.integers(1, 3000), last=st.booleans(), flip=st.booleans())
def test_jitter_in_parts_equals_jitter_of_the_whole(seed, height, width, last, flip):
    """In float32, one operation after the other, for pixels in any memory layout."""
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    image = image[None].contiguous(memory_format=torch.channels_last)[0] if last else image
    box, size = (0, 0, height, width), (height, width)
    color = dict(zip(("brightness", "contrast", "saturation", "hue"), rng.uniform(0.1, 1.9, 4).tolist(), strict=True))
    params = plain(box=box, resized=size, size=size, flip=flip, **color)
    mean = image.double().mean(dim=(1, 2)).numpy()
    matrix, offset = color_matrix(mean, params)
    red, green, blue = image.float()
    rows = [float(r) * red + float(g) * green + float(b) * blue for r, g, b in matrix]
    expected = (torch.stack(rows) + (offset + 0.5)).clamp(0, 255).to(torch.uint8)
    assert torch.equal(augment_image(image, params), expected.flip(2) if flip else expected)
