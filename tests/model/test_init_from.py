"""init_from: starting from a SegFormer of transformers or a run with other classes, and exporting to transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor

from seghiero_core.backbones.networks.mit import mit_config
from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.errors import ConfigError, UsageError, WeightsError
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.factories import build_model
from seghiero_core.model.init_from import load_initial_weights
from seghiero_core.model.trained import load_trained
from seghiero_core.run_files import recorded_files
from support.hub import Hub
from support.processes import ENVIRONMENT
from support.tiny import TINY, save_untrained

LABELS = ["wall", "sky", "grass ", "ring", "disc", "floor"]  # class names on the hub have such spaces
SEGFORMER = ["backbone={type: segformer, variant: mit-b0}", "head={type: segformer, proj_dim: 256}"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A SegFormer-B0 with random weights and its own statistics: its folder, laid out as on the hub, and the model."""
    torch.manual_seed(0)
    config = mit_config("mit-b0")
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {name: i for i, name in enumerate(LABELS)}
    model = SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        for value in model.decode_head.parameters():
            value.normal_(std=0.1)
        model.decode_head.batch_norm.running_mean.normal_()
        model.decode_head.batch_norm.running_var.uniform_(0.5, 2)
    folder = tmp_path_factory.mktemp("published") / "segformer-b0"
    model.save_pretrained(folder)
    SegformerImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]).save_pretrained(folder)
    assert "decode_head.linear_c.0.proj.weight" in load_file(folder / "model.safetensors")
    return folder, model


def build_and_load(config) -> tuple[torch.nn.Module, dict]:
    torch.manual_seed(1)
    hierarchy = Hierarchy.from_config(config.classes)
    model = build_model(config, len(hierarchy.leaves), embedding=False)
    events: list[dict] = []
    load_initial_weights(model, config, hierarchy, events.append)
    return model.eval(), events[-1]


@torch.no_grad()
@pytest.mark.parametrize("flat", [True, False])
def test_a_segformer_of_transformers_gives_its_logits(published, small, flat):
    folder, theirs = published
    labels = [name.strip() for name in LABELS]
    if not flat:
        labels = list(reversed(labels))
    tree = "{a: [wall, sky, grass], b: [ring, disc, floor]}"
    overrides = [*SEGFORMER, f"init_from={folder}", f"classes={{labels: [{', '.join(labels)}], tree: {tree}}}"]
    model, report = build_and_load(load_config(small, overrides))
    images = torch.randint(0, 256, (2, 3, 96, 128), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = torch.tensor([[0.4, 0.5, 0.6], [0.2, 0.25, 0.3]]).reshape(2, 1, 3, 1, 1)
    expected = F.interpolate(theirs((images / 255 - mean) / std).logits, size=(96, 128), mode="bilinear")
    found = model(images).logits
    if not flat:
        found = found.flip(1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1
    assert not any(report[what] for what in ("missing", "unexpected", "classes_dropped", "classes_new"))


def test_shared_classes_keep_their_rows(published, small):
    folder, theirs = published
    model, report = build_and_load(load_config(small, [*SEGFORMER, f"init_from={folder}"]))  # sky, grass, disc, ring
    rows = theirs.decode_head.classifier.weight[[1, 2, 4, 3]]
    torch.testing.assert_close(model.head.classifier.weight, rows)
    assert report["classes_dropped"] == ("wall", "floor")


def test_a_run_with_other_classes_loads_what_fits_and_reports_the_rest(small):
    source = save_untrained(small, [*TINY, "output.name=source"], auxiliary=True)
    classes = "classes={labels: [grass, tree, ring], tree: {ground: [grass, tree], ring: }}"
    config = load_config(small, [*TINY, classes, f"init_from={source.run_dir}"])
    model, report = build_and_load(config)
    old = load_file(source.run_dir / "best" / "model.safetensors")
    new = model.state_dict()
    per_class = ("head.classifier.weight", "head.classifier.bias")
    assert all(torch.equal(new[key], old[key]) for key in new if key not in per_class)
    for key in per_class:
        assert torch.equal(new[key][[0, 2]], old[key][[1, 3]])
        assert not torch.equal(new[key][1], old[key][0]) or key.endswith("bias")
    assert (report["classes_dropped"], report["classes_new"]) == (("sky", "disc"), ("tree",))
    assert report["unexpected"] and all(key.startswith("auxiliary.") for key in report["unexpected"])
    assert not report["missing"]


def test_a_run_with_another_head_loads_only_its_backbone(small):
    source = save_untrained(small, [*TINY, "output.name=source"])
    config = load_config(small, [TINY[0], "head={type: aspp, proj_dim: 16}", f"init_from={source.run_dir}"])
    model, report = build_and_load(config)
    old = load_file(source.run_dir / "best" / "model.safetensors")
    assert all(torch.equal(value, old[f"backbone.{key}"]) for key, value in model.backbone.state_dict().items())
    assert "head.classifier.weight" in report["unexpected"]
    assert not report["classes_dropped"] and not report["classes_new"]
    assert set(report["missing"]) == {
        key for key in model.state_dict() if key.startswith("head.") and not key.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        ([*TINY], UsageError, "backbone: {type: segformer, variant: mit-b0}; head: {type: segformer, proj_dim: 256}"),
        (["backbone={type: segformer, variant: mit-b1}", SEGFORMER[1]], UsageError, "variant: mit-b0"),
        ([SEGFORMER[0], "head={type: segformer, proj_dim: 128}"], UsageError, "proj_dim: 256"),
        ([*SEGFORMER, "init_from=nowhere.pth"], UsageError, "'nowhere.pth' is not a run"),
        ([*SEGFORMER, "backbone.pretrained=true"], ConfigError, "set backbone.pretrained to false"),
    ],
)
def test_another_network_is_an_error_with_the_fix(published, small, overrides, error, words):
    with pytest.raises(error) as raised:
        build_and_load(load_config(small, [f"init_from={published[0]}", *overrides]))
    assert words in str(raised.value)


def test_newer_key_names_of_the_decoder_give_the_same_model(published, small, tmp_path):
    """transformers 5 calls the decoder's projections `linear_projections`; files on the hub have `linear_c`."""
    folder = tmp_path / "newer"
    shutil.copytree(published[0], folder)
    state = load_file(folder / "model.safetensors")
    renamed = {key.replace(".linear_c.", ".linear_projections."): value for key, value in state.items()}
    assert renamed.keys() != state.keys()
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    models = [
        build_and_load(load_config(small, [*SEGFORMER, f"init_from={place}"]))[0] for place in (published[0], folder)
    ]
    for (name, one), other in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_tensor_of_the_decoder_that_does_not_fit_is_reported(published, small, tmp_path):
    folder = tmp_path / "narrow"
    shutil.copytree(published[0], folder)
    state = load_file(folder / "model.safetensors")
    state["decode_head.linear_fuse.weight"] = state["decode_head.linear_fuse.weight"][:, :512].contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    _, report = build_and_load(load_config(small, [*SEGFORMER, f"init_from={folder}"]))
    assert "decode_head.linear_fuse.weight" in report["unexpected"]
    assert "head.linear_fuse.weight" in report["missing"] and "head.linear_fuse.weight" not in report["loaded"]


def test_a_damaged_folder_is_refused_with_the_key(published, small, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "config.json").write_text((published[0] / "config.json").read_text())
    state = load_file(published[0] / "model.safetensors")
    state["decode_head.classifier.weight"][1, 0] = float("nan")  # sky's row
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="'decode_head.classifier.weight' contains NaN"):
        build_and_load(load_config(small, [*SEGFORMER, f"init_from={folder}"]))


def test_training_starts_from_a_hub_name(published, small, tmp_path):
    name = "nvidia/segformer-b0-finetuned-ade-512-512"
    files = {path.name: path.read_bytes() for path in published[0].iterdir()}
    sets = [word for override in [*SEGFORMER, f"init_from={name}", "training.epochs=1"] for word in ("--set", override)]
    with Hub({name: files}) as hub:
        done = subprocess.run(
            [sys.executable, "-m", "seghiero_cli", "train", str(small), *sets],
            env={**ENVIRONMENT, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    assert f"weights: {name}" in done.stderr
    assert "classes of the source not used: wall, floor" in done.stderr
    (report,) = json.loads((small.parent / "runs" / "small" / "weights.json").read_text())
    assert report["coverage"] == 1
    hub_files = {path.rpartition("/")[2] for method, path in hub.requests if "/resolve/" in path}
    assert hub_files == {"config.json", "preprocessor_config.json", "model.safetensors"}


def test_a_file_that_the_hub_lacks_differs_from_a_failed_download(published, tmp_path):
    name = "someone/segformer"
    files = {path.name: path.read_bytes() for path in published[0].iterdir() if path.name != "preprocessor_config.json"}

    def fetch(**environment: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_HOME": str(tmp_path), **environment}
        command = [sys.executable, "-m", "seghiero_cli", "weights", "fetch", name]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    with Hub({name: files}) as hub:
        done = fetch(HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 0, done.stderr
    done = fetch(HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    (note,) = tmp_path.rglob(".no_exist")
    note.rename(tmp_path / "gone")
    done = fetch(HF_HUB_OFFLINE="1")
    assert (done.returncode, "HF_HUB_OFFLINE is set" in done.stderr) == (4, True)


@pytest.mark.parametrize("loss", ["{}", "{preset: logicseg}"])  # over leaves, over all nodes
@torch.no_grad()
def test_export_to_transformers_gives_the_same_logits(run, small, tmp_path, loss):
    config = save_untrained(small, [*SEGFORMER, "output.name=segformer", f"loss={loss}"])
    folder = config.run_dir / "hf"
    code, out, err = run("export", config.run_dir, "--hf", folder, "--json")
    assert code == 0, err
    assert set(recorded_files(config.run_dir)) == set(folder.iterdir())
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {(tmp_path / "new").stat().st_mode}
    folder.rename(tmp_path / "hf")
    assert json.loads(out)["max_abs_error"] <= 1e-4
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    keys = load_file(tmp_path / "hf" / "model.safetensors").keys()
    assert {"segformer.encoder.block.0.0.attention.self.query.weight", "decode_head.linear_c.3.proj.bias"} <= keys

    theirs = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "hf").eval()
    processor = SegformerImageProcessor.from_pretrained(tmp_path / "hf")
    assert theirs.config.id2label == {0: "sky", 1: "grass", 2: "disc", 3: "ring"}
    images = torch.randint(0, 256, (2, 3, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = theirs(processor(list(images), return_tensors="pt")["pixel_values"]).logits
    found = F.interpolate(found, size=(64, 96), mode="bilinear")
    ours = load_trained(read_checkpoint(config.run_dir / "best"), "cpu").model
    torch.testing.assert_close(found, ours(images).logits[:, :4], atol=1e-4, rtol=0)

    # The export can be loaded again as a whole model.
    model, report = build_and_load(load_config(small, [*SEGFORMER, f"init_from={tmp_path / 'hf'}"]))
    torch.testing.assert_close(model(images).logits, ours(images).logits[:, :4], atol=1e-4, rtol=0)
    assert not report["classes_dropped"]


def test_export_to_transformers_refuses_what_it_cannot_do(run, tiny_run, small, tmp_path):
    code, _, err = run("export", tiny_run, "--hf", tmp_path / "hf")
    assert (code, "transformers only supports SegFormer" in err) == (2, True)
    assert not (tmp_path / "hf").exists()
    config = save_untrained(small, [*SEGFORMER, "output.name=segformer"])
    (tmp_path / "there").mkdir()
    code, _, err = run("export", config.run_dir, "--hf", tmp_path / "there")
    assert (code, "already exists" in err) == (2, True)
    code, _, err = run("export", config.run_dir, "--hf", tmp_path / "hf", "--fp16")
    assert (code, "remove --fp16" in err) == (2, True)
