"""The starter folder: its config loads, its recipes are the recommended ones, and nothing is overwritten."""

from __future__ import annotations

import pytest
import yaml
from PIL import Image

from seghiero_core.config.loading import load_config
from seghiero_core.data import synthetic
from seghiero_core.data.audit import audit
from seghiero_core.data.samples import find_samples, split_samples
from seghiero_core.errors import UsageError
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.predict.pseudo_labels import mask_values
from seghiero_core.scaffold import starter, templates


def test_starter_folder_loads_and_passes_the_audit(tmp_path):
    path = starter.write_starter(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "cfg.yaml"
    assert sorted(p.name for p in path.parent.iterdir()) == ["cfg.yaml", "data"]
    config = load_config(path)
    hierarchy = Hierarchy.from_config(config.classes)
    assert hierarchy.leaves == synthetic.LABELS
    for name, count in synthetic.IMAGES_PER_SPLIT.items():
        facts = audit(find_samples(getattr(config.dataset, name), key=f"dataset.{name}"), hierarchy)
        assert len(facts.samples) == count and facts.ignored == 0
    assert (config.backbone.type, config.backbone.depth, config.head.type) == ("resnet", 18, "segformer")
    assert config.backbone.pretrained is False


def test_template_has_the_classes_of_the_synthetic_data():
    classes = yaml.safe_load(starter.config_texts()["cfg.yaml"])["classes"]
    written = Hierarchy.from_config(classes)
    expected = Hierarchy.from_config({"labels": list(synthetic.LABELS), "tree": synthetic.TREE})
    assert written.nodes == expected.nodes and written.tree == expected.tree
    assert set(classes["colors"]) == set(written.nodes)


@pytest.mark.parametrize(
    ("recipe", "backbone", "head"),
    [
        ("max-accuracy", {"type": "segformer", "variant": "mit-b5"}, {"type": "segformer", "proj_dim": 256}),
        ("balanced", {"type": "resnet", "depth": 101}, {"type": "aspp"}),
        ("max-speed", {"type": "segformer", "variant": "mit-b0"}, {"type": "extremely_fast_segformer", "proj_dim": 64}),
        ("budget-gpu", {"type": "resnet", "depth": 50}, {"type": "aspp"}),
    ],
)
def test_recipes_are_the_recommended_combinations(tmp_path, recipe, backbone, head):
    text = starter.config_texts(recipe)["cfg.yaml"]
    raw = yaml.safe_load(text)
    assert raw["backbone"] == backbone | {"pretrained": True} and raw["head"] == head
    assert "# pretrained: false" in text and "Without internet" in text
    (tmp_path / "cfg.yaml").write_text(text)
    config = load_config(tmp_path / "cfg.yaml")
    assert config.run_dir == tmp_path / "runs" / recipe
    # The commented alternatives must work when they are uncommented.
    for hint in ("pretrained: false", "pretrained: weights/backbone.safetensors"):
        followed = text.replace("  pretrained: true #", "  # pretrained: true #").replace(f"  # {hint}", f"  {hint}")
        (tmp_path / "cfg.yaml").write_text(followed)
        assert load_config(tmp_path / "cfg.yaml").backbone.pretrained is not True
    if "# gradient_checkpointing" in text:
        (tmp_path / "cfg.yaml").write_text(text.replace("# gradient_checkpointing", "gradient_checkpointing"))
        assert load_config(tmp_path / "cfg.yaml").backbone.gradient_checkpointing is True


@pytest.mark.parametrize("recipe", ["max-accuracy", "mixed-labels"])
def test_unknown_recipe_suggests_the_nearest(tmp_path, recipe):
    with pytest.raises(UsageError, match=rf"unknown recipe '{recipe}s'\. Did you mean '{recipe}'\?") as info:
        starter.write_starter(tmp_path / "x", f"{recipe}s")
    known = "balanced, budget-gpu, max-accuracy, max-speed, mixed-labels."
    assert str(info.value).endswith(f"Known: {known}")
    assert info.value.exit_code == 2 and not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The recipe's folder with fewer images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "MIXED_IMAGES", {"fine": 1, "coarse": 1, "unlabeled": 3, "val": 2})
        return starter.write_starter(tmp_path_factory.mktemp("mixed"), "mixed-labels").parent


def test_mixed_labels_has_two_sources_on_one_tree(mixed):
    assert sorted(p.name for p in mixed.iterdir()) == ["cfg.yaml", "data", "fine-only.yaml", "pseudo.yaml"]
    config = load_config(mixed / "cfg.yaml")
    hierarchy = Hierarchy.from_config(config)
    fine, coarse = config.dataset.sources
    assert (fine.name, coarse.name) == ("fine", "coarse") and config.run_dir == mixed / "runs" / "mixed"
    assert coarse.labels == {v: n if isinstance(n, str) else list(n) for v, n in synthetic.COARSE_LABELS.items()}
    assert (coarse.ignore, coarse.mask_suffix) == (synthetic.COARSE_IGNORE, synthetic.COARSE_SUFFIX)
    assert hierarchy.leaves == synthetic.LABELS and len(hierarchy.sets) == 1
    assert [sample.source for sample in split_samples(config.dataset, "val")] == [0, 0]


def test_configs_of_mixed_labels_draw_as_many_images(mixed):
    """The configs differ in what they train on, not in how long."""
    counts = synthetic.MIXED_IMAGES | {"pseudo": synthetic.MIXED_IMAGES["unlabeled"]}
    rest = []
    for file, fine in (("cfg.yaml", 0.5), ("fine-only.yaml", 1), ("pseudo.yaml", 0.5)):
        config = load_config(mixed / file)
        draws = {source.name: source.weight * counts[source.name] for source in config.dataset.sources}
        assert sum(draws.values()) == 160 and draws["fine"] == 160 * fine
        text = (mixed / file).read_text()
        assert all(f"name: {name} # {counts[name]} images" in text for name in draws)
        rest.append(config.model_copy(update={"dataset": None, "output": None}))
    assert rest[0] == rest[1] == rest[2]


def test_pseudo_labels_of_the_recipe_have_the_values_that_pseudo_label_writes(mixed):
    hierarchy = Hierarchy.from_config(load_config(mixed / "cfg.yaml"))
    source = load_config(mixed / "pseudo.yaml").dataset.sources[-1]
    written = {int(value): hierarchy.nodes[node] for node, value in enumerate(mask_values(hierarchy))}
    assert source.labels == written
    images = mixed / "data" / "unlabeled" / "train" / "images"
    assert source.train.images == images and len(list(images.iterdir())) == 3


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "cfg.yaml").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine too")
    with pytest.raises(UsageError, match=r"cfg\.yaml would be overwritten\. Name another folder"):
        starter.write_starter(tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"cfg.yaml": "mine", "notes.txt": "mine too"}
    (tmp_path / "cfg.yaml").unlink()
    starter.write_starter(tmp_path)  # other files in the folder are no problem
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cfg.yaml", "data", "notes.txt"]
    with pytest.raises(UsageError, match=r"cfg\.yaml and .*data would be overwritten"):
        starter.write_starter(tmp_path)
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "pseudo.yaml").write_text("mine")
    with pytest.raises(UsageError, match=r"pseudo\.yaml would be overwritten"):
        starter.write_starter(tmp_path / "mixed", "mixed-labels")
    assert [p.name for p in (tmp_path / "mixed").iterdir()] == ["pseudo.yaml"]


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; name a folder"):
        starter.write_starter(tmp_path / "file")
    with pytest.raises(UsageError, match="can't be created"):
        starter.write_starter(tmp_path / "file" / "deeper")


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    saved = []

    def full_disk(image, path, **options):
        saved.append(path)
        if len(saved) > 5:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"x")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        starter.write_starter(tmp_path / "a" / "b")
    assert saved and list(tmp_path.iterdir()) == []


def test_templates_in_the_package_come_first(tmp_path, monkeypatch):
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "only.tmpl").write_text("from the wheel: $x")
    monkeypatch.setattr(templates, "files", lambda package: tmp_path)
    assert templates.read_template("only").substitute(x=1) == "from the wheel: 1"
    with pytest.raises(FileNotFoundError):
        templates.read_template("nothing")
