"""Hints in messages about a wrong config: what they advise is right."""

from __future__ import annotations

import pytest

from seghiero_core.config.loading import load_config
from seghiero_core.errors import ConfigError

SECTIONS = {
    "dataset": "dataset: {train: a, val: b}",
    "classes": "classes: {labels: [sky, road]}",
}


def fault(tmp_path, section: str) -> str:
    sections = SECTIONS | {section.partition(":")[0]: section}
    (tmp_path / "cfg.yaml").write_text("\n".join(sections.values()) + "\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "cfg.yaml")
    return str(caught.value).partition(": ")[2]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("dataset:", "dataset: expected a mapping, found nothing. Add keys below it."),
        ("classes:", "classes: expected a mapping, found nothing. Add keys below it."),
        (
            "plugins: a.py b.py",
            "plugins: expected a list, found 'a.py b.py'; put it in brackets, with commas between the items.",
        ),
        ("plugins: a.py, b.py", "plugins: expected a list, found 'a.py, b.py'; write [a.py, b.py]."),
        ("plugins: C:/a.py", "plugins: expected a list, found 'C:/a.py'; write [C:/a.py]."),
        ("backbone: {name: resnet}", "backbone.name: unknown key for resnet. Did you mean 'backbone.type'?"),
        ("head: {name: fpn}", "head.name: unknown key for aspp. Did you mean 'head.type'?"),
        (
            "backbone: {type: mit-b0}",
            "backbone.type: unknown backbone 'mit-b0'. Write `backbone: {type: segformer, variant: mit-b0}`.",
        ),
        (
            "backbone: {type: resnet-50}",
            "backbone.type: unknown backbone 'resnet-50'. Write `backbone: {type: resnet, depth: 50}`.",
        ),
        ("training: {epoch: 3}", "training.epoch: unknown key. Did you mean 'training.epochs'?"),
        ("trainin: {epochs: 3}", "trainin: unknown key. Did you mean 'training'?"),
    ],
)
def test_the_whole_message(tmp_path, section, message):
    assert fault(tmp_path, section) == message


@pytest.mark.parametrize(
    ("section", "hint"),
    [
        ("loss: [focal, dice]", " Write `loss: {terms: {focal: 1, dice: 1}}`. "),
        ("loss: [CrossEntropyLoss, dice]", " Write `loss: {terms: {leaf_cross_entropy: 1, dice: 1}}`. "),
        ("loss: [hssn]", " Write `loss: {preset: hssn}`. "),
        ("loss: [hssn, dice]", " Write, for example, `loss: {preset: marginal_dice}`; "),
        ("loss: []", " Write, for example, `loss: {preset: marginal_dice}`; "),
        ("loss: {preset: [flat]}", "loss.preset: expected a name, found ['flat']. Known: marginal, "),
    ],
)
def test_a_loss(tmp_path, section, hint):
    assert hint in fault(tmp_path, section)
