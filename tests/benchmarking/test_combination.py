"""What is measured of one network: counts are exact, times and memory are plausible."""

from __future__ import annotations

import pytest
import torch

from seghiero_core.benchmarking.combination import Effort, count_flops, measure_combination
from seghiero_core.config.loading import load_config
from seghiero_core.model.factories import build_model
from support.tiny import TINY

ONCE = Effort(repeats=2)
SETTINGS = [*TINY, "transform.size=[32, 64]", "training.batch_size=3"]


def test_a_multiplication_with_an_addition_counts_as_two():
    a, b = torch.rand(3, 5), torch.rand(5, 7)
    assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7
    image, convolution = torch.rand(1, 4, 8, 8), torch.nn.Conv2d(4, 6, 3, padding=1)
    assert count_flops(lambda: convolution(image)) == 2 * 8 * 8 * 6 * 4 * 9


def test_attention_counts_on_any_device():
    def flops(device, gradient):
        q, k, v = (torch.rand(2, 3, tokens, 8, device=device, requires_grad=gradient) for tokens in (16, 32, 32))

        def run():
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            if gradient:
                out.sum().backward()

        return count_flops(run)

    assert flops("cpu", False) == flops("meta", False) == 2 * 2 * (2 * 3) * 16 * 32 * 8
    assert flops("cpu", True) == flops("meta", True) + 2 * (2 * 3) * 16 * 32 * 8  # computes the scores a second time


def test_the_measures_of_a_network(small):
    stages = []
    found = measure_combination(load_config(small, SETTINGS), ONCE, lambda event: stages.append(event["stage"]))
    assert stages == ["training", "prediction", "single image"]
    config = load_config(small, SETTINGS)
    network = build_model(config, 4).eval()
    assert found["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert found["flops"] == count_flops(lambda: network(torch.zeros(1, 3, 32, 64)))
    assert (found["device"], found["precision"]) == ("cpu", "fp32")
    for task, batch in (("training", 3), ("prediction", 3), ("single_image", 1)):
        values = found[task]
        assert values["repeats"] == 2 and 0 < values["p50_ms"] <= values["p95_ms"]
        assert values["images_per_second"] == pytest.approx(1000 * batch / values["p50_ms"])
    assert found["training"]["peak_mib"] >= 0 and found["prediction"]["peak_mib"] >= 0


def test_training_memory_holds_at_least_gradients_and_moments(small):
    """A classifier with 2**21 weights: their gradients and the two moments of AdamW are 8 MiB each."""
    wide = ["backbone={type: tiny}", "head={type: segformer, proj_dim: 1024}", "transform.size=[32, 32]"]
    found = measure_combination(load_config(small, [*wide, "training.batch_size=2"]), ONCE)
    mib = found["parameters"] * 4 / 2**20
    assert mib > 4
    assert found["training"]["peak_mib"] > 2.5 * mib


def test_images_have_the_channels_of_the_config(small):
    bands = ["dataset.channels=5", "dataset.mean=[1, 2, 3, 4, 5]", "dataset.std=[1, 1, 1, 1, 1]"]
    rgb, five = (measure_combination(load_config(small, [*SETTINGS, *more]), ONCE) for more in ([], bands))
    # The stem of the tiny network is a convolution of 7x7 px with 8 channels at a quarter of the size.
    assert five["flops"] - rgb["flops"] == 2 * (8 * 16) * 8 * 2 * 49


def test_a_loss_with_an_embedding_and_an_auxiliary_head(small):
    hssn = ["loss={preset: hssn, auxiliary: 0.4}", "training.precision=bf16"]
    found = measure_combination(load_config(small, [*SETTINGS, *hssn]), ONCE)
    assert found["precision"] == "bf16" and found["training"]["repeats"] == 2
