"""Scaffolding: the generated files work and pass ruff unedited, and either all of them appear or none."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import BitConfig, Dinov2Config, ResNetConfig

from seghiero_core import atomic
from seghiero_core.errors import UsageError, WeightsError
from seghiero_core.model.factories import create_backbone, create_head, get_backbone_channels
from seghiero_core.plugins.loading import load_found_plugins
from seghiero_core.registry import BACKBONES, HEADS
from seghiero_core.scaffold.component import MAX_NAME_LENGTH, scaffold_backbone, scaffold_head, validate_name
from seghiero_core.scaffold.rendering import python_literal
from seghiero_core.scaffold.source_model import read_source_model
from seghiero_core.testing.conformance import verify_backbone
from support.processes import ENVIRONMENT, ROOT

SMALL_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if "__pycache__" not in file.parts)


def ruff(*words: object) -> None:
    config = ROOT / "pyproject.toml"
    command = [sys.executable, "-m", "ruff", *map(str, words), "--no-cache", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def hf_configs(tmp_path):
    ResNetConfig(**SMALL_RESNET).save_pretrained(tmp_path / "configs" / "resnet")
    BitConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_groups=4).save_pretrained(
        tmp_path / "configs" / "bit"
    )
    Dinov2Config(hidden_size=12, num_hidden_layers=2, num_attention_heads=2).save_pretrained(
        tmp_path / "configs" / "vit"
    )
    return tmp_path / "configs"


def test_generated_files_pass_ruff_and_meet_the_contract(workplace, hf_configs):
    longest = "x" * MAX_NAME_LENGTH
    scaffold_backbone("mynet")
    scaffold_backbone("my_sizes", variants=["tiny", "base", "large"])
    scaffold_backbone("mobile", source="timm:mobilenetv3_large_100")
    scaffold_backbone("effs", source="timm:efficientnet_{}", variants=["b0", "b1"])
    scaffold_backbone("clipped", source="timm:convnext_base.clip_laion2b")
    scaffold_backbone("hub", source=f"hf:{hf_configs}/resnet")
    scaffold_backbone("unused", source=f"hf:{hf_configs}/bit")
    scaffold_backbone(longest, source="timm:resnet18")
    scaffold_backbone("y" * MAX_NAME_LENGTH, variants=["a", "b"])
    scaffold_backbone("z" * MAX_NAME_LENGTH, source=f"hf:{hf_configs}/resnet")
    scaffold_head("myhead")
    scaffold_head("h" * MAX_NAME_LENGTH)
    scaffold_backbone("packaged", variants=["s"], place="package")
    scaffold_head("packaged_head", place="package")
    ruff("check", workplace)
    ruff("format", "--check", workplace)
    (plugin,) = load_found_plugins()
    assert plugin.failures == {}
    for name in ("mynet", "my_sizes", "mobile", "effs", "clipped", "hub", "unused", longest):
        for variant in BACKBONES.get(name).variants:
            assert verify_backbone(name, variant).ok, (name, variant)
    assert BACKBONES.get("my_sizes").variants.keys() == {"tiny", "base", "large"}
    assert BACKBONES.get("effs").weights["b0"] == ("efficientnet_b0.ra_in1k",)
    assert BACKBONES.get("clipped").statistics[0] == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    for name in ("myhead", "h" * MAX_NAME_LENGTH):
        assert HEADS.get(name).proj_dim == 128


def test_the_small_network_and_head_train(workplace):
    scaffold_backbone("mynet")
    scaffold_head("myhead")
    load_found_plugins()
    config = {"backbone": {"type": "mynet", "blocks": 2}, "head": {"type": "myhead", "dropout": 0.0}}
    backbone = create_backbone(config)
    head = create_head(config, get_backbone_channels(config), 5)
    logits, embedding = head(backbone(torch.rand(2, 3, 97, 131)))
    assert logits.shape == (2, 5, 25, 33)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(2, 25, 33), atol=1e-5)
    (logits.mean() + embedding.mean()).backward()
    assert all(p.grad is not None for p in [*backbone.parameters(), *head.parameters()])


def test_a_wrapped_timm_model_gives_timms_features_and_loads_its_weights(workplace, tmp_path):
    scaffold_backbone("mobile", source="timm:mobilenetv3_small_050")
    load_found_plugins()
    torch.manual_seed(0)
    whole = timm.create_model("mobilenetv3_small_050")
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    features = timm.create_model("mobilenetv3_small_050", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    features.load_state_dict(whole.state_dict(), strict=False)
    config = {"backbone": {"type": "mobile", "pretrained": str(tmp_path / "weights.safetensors")}}
    images = torch.rand(1, 3, 97, 131)
    with torch.no_grad():
        for ours, theirs in zip(create_backbone(config).eval()(images), features(images), strict=True):
            assert torch.equal(ours, theirs)
    assert get_backbone_channels(config) == tuple(features.feature_info.channels())


def test_a_wrapped_hf_model_gives_the_hidden_states_of_the_whole_model(workplace, hf_configs, tmp_path):
    from transformers import ResNetForImageClassification

    scaffold_backbone("hub", source=f"hf:{hf_configs}/resnet")
    load_found_plugins()
    torch.manual_seed(0)
    whole = ResNetForImageClassification(ResNetConfig(**SMALL_RESNET)).eval()
    whole.save_pretrained(tmp_path / "whole")
    config = {"backbone": {"type": "hub", "pretrained": str(tmp_path / "whole" / "model.safetensors")}}
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = whole(images, output_hidden_states=True).hidden_states[1:]
        for ours, theirs in zip(create_backbone(config).eval()(images), expected, strict=True):
            assert torch.equal(ours, theirs)


REFUSED_MODELS = {
    "timm:vit_small_patch16_224": "strides 16; a backbone needs 4, 8, 16 and 32",
    "timm:maxvit_tiny_tf_224": "fails on an image of 97x131",
    "timm:inception_v3": "C1 of an image of 97x131 px has 20x29 px",
    "timm:resnet5": "unknown timm model. Did you mean 'resnet50'",
    "timm:resnet50.nothing": "unknown weights of this timm model",
    "hf:CONFIGS/vit": "strides 14; a backbone needs",
    "hf:CONFIGS": "this folder has no transformers config",
    "mobilenetv3_large_100": "expected timm:MODEL or hf:CONFIG",
    "timm:": "expected timm:MODEL or hf:CONFIG",
}


@pytest.mark.parametrize("source", REFUSED_MODELS)
def test_models_that_cannot_be_a_backbone_are_refused(source, workplace, hf_configs):
    with pytest.raises(UsageError) as caught:
        scaffold_backbone("mynet", source=source.replace("CONFIGS", str(hf_configs)))
    assert REFUSED_MODELS[source] in str(caught.value)
    assert files(workplace) == []


def test_a_hub_config_that_cannot_be_downloaded_is_a_weights_error(workplace, monkeypatch):
    from transformers import AutoConfig

    def unreachable(*args, **kwargs):
        raise OSError("We couldn't connect to the hub.\nMore lines.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(WeightsError, match=r"not in the cache .*couldn't connect to the hub\).*config\.json"):
        read_source_model("hf:some/model")


@pytest.mark.parametrize("words", [["--variants", "a,b", "--from", "timm:resnet18"], ["--from", "timm:resnet{}"]])
def test_variants_and_braces_in_from_must_be_used_together(words, workplace, run):
    code, _, err = run("scaffold-backbone", "mynet", *words)
    assert code == 2 and "--variants b0,b1" in err


BAD_NAMES = {
    "1net": "start with a letter",
    "my-net": "letters, digits",
    "../x": "letters, digits",
    "/etc/x": "letters, digits",
    "a/b": "letters, digits",
    "": "letters, digits",
    "näht": "letters, digits",
    "_net": "start with a letter",
    "class": "has another meaning",
    "true": "has another meaning",
    "None": "has another meaning",
    "none": "has another meaning",
    "no": "has another meaning",
    "x" * 300: "has 300",
    "test_net": "treat its module as a test",
    "conftest": "treat its module as a test",
    "resnet": "is already taken",
    "aspp": "is already taken",
    "ResNet": "differs from the existing 'resnet' only by case",
    "MyNet": "differs from the existing 'mynet' only by case",
    "mynet": "is already taken (--force replaces it)",
    "Broken": "differs from the existing 'broken' only by case",
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused_and_nothing_is_written(name, workplace, run):
    scaffold_backbone("mynet")
    (workplace / "seghiero_plugins" / "backbones" / "broken.py").write_text("def f(:\n")
    load_found_plugins()
    before = files(workplace)
    code, out, err = run("scaffold-backbone", name)
    assert (code, out) == (2, "")
    assert BAD_NAMES[name] in err
    if name in ("resnet", "aspp", "MyNet"):
        assert run("scaffold-backbone", name, "--force")[0] == 2
    assert files(workplace) == before
    assert len(err.strip().splitlines()[-1]) < 200


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.text(max_size=40) | st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,40}", fullmatch=True))
def test_an_accepted_name_works_as_module_class_and_yaml_value(name):
    import yaml

    from seghiero_core.scaffold.rendering import class_name

    try:
        validate_name("backbone", name)
    except UsageError:
        return
    assert yaml.safe_load(f"type: {name}") == {"type": name}
    for kind in ("backbone", "head"):
        compile(f"import {name}\nclass {class_name(kind, name)}: pass", "x", "exec")
    assert Path(name).name == name and len(name) <= MAX_NAME_LENGTH


def test_existing_files_are_kept_without_force(workplace, run):
    (workplace / "mynet.yaml").write_text("mine")
    code, out, err = run("scaffold-backbone", "mynet")
    assert (code, out) == (2, "")
    assert "mynet.yaml already exists, nothing was written" in err
    assert files(workplace) == ["mynet.yaml"]
    assert (workplace / "mynet.yaml").read_text() == "mine"
    assert run("scaffold-backbone", "mynet", "--force")[0] == 0
    assert "type: mynet" in (workplace / "mynet.yaml").read_text()
    written = files(workplace)
    own = workplace / "seghiero_plugins" / "backbones" / "mynet.py"
    own.write_text(own.read_text() + "# edited\n")
    assert run("scaffold-backbone", "mynet")[0] == 2
    assert "# edited" in own.read_text()
    assert run("scaffold-backbone", "mynet", "--force")[0] == 0
    assert "# edited" not in own.read_text()
    assert files(workplace) == written


def test_a_file_in_place_of_the_plugin_folder_is_reported(workplace):
    (workplace / "seghiero_plugins").write_text("")
    with pytest.raises(UsageError, match="seghiero_plugins is a file"):
        scaffold_head("myhead")
    assert files(workplace) == ["seghiero_plugins"]


@pytest.mark.parametrize("call", range(1, 7))
@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_changes_nothing(call, force, workplace, monkeypatch):
    """The disk fills up at each of the three writes and each of the three renames in turn."""
    if force:
        scaffold_backbone("mynet")
        load_found_plugins()
        (workplace / "mynet.yaml").write_text("mine")
    before = {file: (workplace / file).read_bytes() for file in files(workplace) if (workplace / file).is_file()}
    count = 0

    def failing(real):
        def run(*args, **kwargs):
            nonlocal count
            count += 1
            if count == call:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        return run

    monkeypatch.setattr(atomic.os, "fsync", failing(os.fsync))
    real_rename = Path.rename

    def rename(path, target):
        return failing(real_rename)(path, target) if path.name.endswith(".new") else real_rename(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="No space left"):
        scaffold_backbone("mynet", force=force)
    monkeypatch.undo()
    assert count == call
    there = [workplace / file for file in files(workplace)]
    assert {str(f.relative_to(workplace)): f.read_bytes() for f in there if f.is_file()} == before
    assert force or there == []


def test_a_read_only_folder_is_exit_4_and_stays_empty(workplace, run, monkeypatch):
    def denied(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    code, out, err = run("scaffold-backbone", "mynet")
    assert (code, out) == (4, "")
    assert "permission denied" in err and "seghiero_plugins" in err
    assert files(workplace) == []


def test_builtin_writes_into_a_checkout_only(workplace, run):
    code, _, err = run("scaffold-backbone", "mynet", "--builtin")
    assert code == 2 and "not a source checkout" in err
    for folder in ("backbones/networks", "heads/networks"):
        (workplace / "seghiero_core" / folder).mkdir(parents=True)
    (workplace / "pyproject.toml").write_text("")
    scaffold_backbone("mynet", place="builtin", variants=["a", "b"])
    scaffold_backbone("mobile", place="builtin", source="timm:resnet18")
    scaffold_head("myhead", place="builtin")
    ruff("check", workplace)
    ruff("format", "--check", workplace)
    for path in ("backbones/mynet", "backbones/mobile", "heads/myhead"):
        text = (workplace / "seghiero_core" / f"{path}.py").read_text()
        assert "import torch" not in text and "register_" in text
        assert (
            "import torch"
            in (workplace / "seghiero_core" / path.replace("s/", "s/networks/")).with_suffix(".py").read_text()
        )
    assert {"tests/backbones/test_mynet.py", "tests/heads/test_myhead.py"} <= set(files(workplace))
    with pytest.raises(UsageError, match="already has a part with this name"):
        scaffold_backbone("networks", place="builtin")


def test_a_package_has_an_entry_point_that_imports(workplace):
    scaffold_backbone("my_net", place="package")
    root = workplace / "seghiero-my-net"
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["name"] == root.name
    assert project["entry-points"]["seghiero.plugins"] == {"my_net": "seghiero_my_net.my_net"}
    assert (root / "seghiero_my_net" / "my_net.py").is_file()
    assert (root / "seghiero_my_net" / "__init__.py").is_file()


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=50),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4) | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(LITERALS)
def test_literals_read_back(value):
    assert eval(python_literal(value)) == value


def sh(*words: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("words", [["mynet"], ["mynet", "--from", "timm:mobilenetv3_large_100"], ["myhead"]])
def test_from_an_empty_folder_to_onnx_without_an_edit(words, tmp_path):
    kind, name = ("head" if words == ["myhead"] else "backbone"), words[0]

    def seghiero(*arguments: object) -> str:
        return sh("-m", "seghiero_cli", *arguments, cwd=tmp_path)

    seghiero(f"scaffold-{kind}", *words)
    assert name in [entry["type"] for entry in json.loads(seghiero(f"list-{kind}s", "--json"))]
    if kind == "backbone":
        (row,) = json.loads(seghiero("channels", name, "--verify", "--json"))
        assert row["verified"] is True
    seghiero("init", "starter")
    seghiero("train", f"{name}.yaml", "--set", "training.epochs=1")
    assert "1 passed" in sh("-m", "pytest", "-q", "seghiero_plugins", cwd=tmp_path)
    exported = json.loads(seghiero("export", f"runs/{name}", "--onnx", "--json"))
    assert Path(exported["path"]).is_file()
    assert exported["argmax_agreement"] > 0.99
