"""Plugins: where they are found, what a broken one breaks, and what a checkpoint records about them."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
import yaml

from seghiero_core.checkpoint import read_checkpoint, save_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.errors import CheckpointError, ConfigError, UsageError
from seghiero_core.model.factories import create_backbone
from seghiero_core.plugins.loader import PluginLoader
from seghiero_core.plugins.loading import current_loader, load_found_plugins, load_plugins, use_loader
from seghiero_core.plugins.sources import GROUP
from seghiero_core.registry import BACKBONES, HEADS
from support.spawned import send_shapes

TINY = """
from torch import nn

from seghiero_core.registry import register_backbone


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        widths = (3, 4, 8, 12, 16)
        self.stages = nn.ModuleList(
            nn.Conv2d(a, b, 3, 4 if a == 3 else 2, 1) for a, b in zip(widths, widths[1:])
        )

    def forward(self, x):
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


@register_backbone("NAME", channels=(4, 8, 12, 16))
def build(variant):
    return Net()
"""


def write(path: Path, name: str | None = None, text: str = TINY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("NAME", name or path.stem))
    return path


def test_all_modules_of_the_folder_are_loaded_except_tests(workplace):
    own = workplace / "seghiero_plugins"
    for name in ("flat", "backbones/deep", "a/b/c/deepest"):
        write(own / f"{name}.py")
    for name in ("test_x", "x_test", "conftest", "tests/helper", ".hidden/x", "__pycache__/x"):
        write(own / f"{name}.py", text="raise RuntimeError('a test was imported')")
    (plugin,) = load_found_plugins()
    assert plugin.failures == {}
    assert sorted(plugin.registered) == ["backbone deep", "backbone deepest", "backbone flat"]
    assert type(create_backbone({"backbone": {"type": "deep"}})).__module__ == "seghiero_plugins.backbones.deep"
    assert load_found_plugins() == [plugin]  # nothing is imported twice


@pytest.mark.parametrize("how", ["option", "variable", "yaml", "file", "absolute", "package", "entry point"])
def test_each_way_of_naming_a_plugin(how, workplace, small, monkeypatch):
    write(workplace / "elsewhere" / "extra" / "mine.py")
    write(workplace / "elsewhere" / "lone.py", "mine")
    if how == "option":
        load_plugins(["elsewhere/extra"])
    elif how == "variable":
        monkeypatch.setenv("SEGHIERO_PLUGINS", os.pathsep.join(["elsewhere/extra", "elsewhere/gone"]))
        load_found_plugins()
        assert "elsewhere/gone" in "".join(current_loader().not_loaded.values())
    elif how == "yaml":  # relative to the YAML file, wherever one is
        write(small.parent / "beside" / "extra" / "mine.py")
        small.write_text(small.read_text() + "\nplugins: [beside/extra]\n")
        assert load_config(small).plugins == [str(small.parent / "beside" / "extra")]
    elif how == "file":
        load_plugins(["elsewhere/lone.py"])
    elif how == "absolute":
        load_plugins([workplace / "elsewhere" / "extra"])
    else:
        monkeypatch.syspath_prepend(workplace / "elsewhere")
        if how == "package":
            load_plugins(["extra.mine"])
        else:
            current_loader().list_entry_points = lambda: [EntryPoint("mine", "extra.mine", GROUP)]
            load_found_plugins()
    assert BACKBONES.get("mine").variants == {"default": (4, 8, 12, 16)}


def test_plugins_beside_the_config_or_deeper_are_not_loaded(workplace, small):
    write(small.parent / "seghiero_plugins" / "beside.py")  # beside the config and the data
    write(workplace / "other" / "seghiero_plugins" / "below.py")
    load_config(small)
    load_found_plugins()
    assert {"beside", "below"}.isdisjoint(BACKBONES.names())


def test_an_unknown_plugin_is_a_usage_error(workplace, small, run):
    with pytest.raises(UsageError, match=r"unknown plugin 'gone': found neither"):
        load_plugins(["gone"])
    code, _, err = run("--plugin", "gone", "list-heads")
    assert code == 2 and "gone" in err
    small.write_text(small.read_text() + "\nplugins: [gone]\n")
    with pytest.raises(ConfigError, match=r"line \d+: plugins\.0: unknown plugin 'gone'"):
        load_config(small)


BROKEN = {
    "syntax": ("x = 1\ndef f(:\n", ["syntax.py, line 2", "syntax error"]),
    "missing": ("\nimport no_such_module\n", ["missing.py, line 2", "pip install no_such_module"]),
    "raises": ("x = 1\nx.y\n", ["raises.py, line 2", "AttributeError"]),
    "leaves": ("import sys\nsys.exit(3)\n", ["leaves.py, line 2", "SystemExit"]),
    "three": (TINY.replace("(4, 8, 12, 16))", "(4, 8, 12))"), ["expected the channels of 4 stages, found 3"]),
    "taken": (TINY.replace("NAME", "resnet"), ["already registered by seghiero_core.backbones.resnet"]),
    "half": (TINY + "\nraise ValueError('after registering')\n", ["after registering"]),
}


def test_a_broken_plugin_breaks_only_what_needs_it(workplace, run):
    for name, (text, _) in BROKEN.items():
        write(workplace / "seghiero_plugins" / f"{name}.py", text=text)
    write(workplace / "seghiero_plugins" / "good.py")
    code, out, err = run("list-backbones", "--json")
    assert code == 0
    assert {"good", "resnet"} <= {entry["type"] for entry in json.loads(out)}
    lines = err.splitlines()
    assert lines[0] == "loaded ./seghiero_plugins: backbone good"
    assert len(lines) == 1 + len(BROKEN)
    for name, (_, expected) in BROKEN.items():
        (line,) = [line for line in lines if f"could not load plugin seghiero_plugins.{name} (" in line]
        assert all(text in line for text in expected), line
    code, _, err = run("channels", "half")
    assert code == 2
    assert "unknown backbone 'half'" in err
    assert all(f"seghiero_plugins.{name}" in err for name in BROKEN)
    assert run("channels", "good")[0] == run("channels", "resnet", "--depth", "18")[0] == 0
    assert len(BACKBONES.get("resnet").variants) == 5


def test_built_ins_load_no_plugin(workplace, run):
    write(workplace / "seghiero_plugins" / "loud.py", text="raise RuntimeError('imported')")
    code, _, err = run("channels", "convnext")
    assert (code, err) == (0, "")


def test_what_a_plugin_prints_goes_to_stderr(workplace, run):
    write(workplace / "seghiero_plugins" / "chatty.py", text=f"print('hello')\n{TINY}")
    _, out, err = run("list-backbones", "--json")
    assert json.loads(out)
    assert "hello" in err


def test_no_plugins_turns_plugins_off(workplace, small, run, monkeypatch):
    write(workplace / "seghiero_plugins" / "mine.py")
    monkeypatch.setenv("SEGHIERO_PLUGINS", "seghiero_plugins")
    small.write_text(small.read_text().replace("type: resnet, depth: 18", "type: mine") + "\nplugins: [extra]\n")
    write(small.parent / "extra" / "mine.py")
    code, _, err = run("--no-plugins", "--plugin", "seghiero_plugins", "channels", "--config", small)
    assert code == 2
    assert "unknown backbone 'mine'" in err and "--no-plugins" in err
    assert not current_loader().loaded


def test_a_folder_with_the_name_of_an_installed_module(workplace):
    write(workplace / "json" / "decoder.py")
    (plugin,) = load_plugins(["json"])
    assert "module name is taken" in plugin.failures["json.decoder"]
    assert "decoder" not in BACKBONES.names()


def test_loaders_share_nothing(workplace):
    write(workplace / "seghiero_plugins" / "mine.py")
    heard = []
    with use_loader(PluginLoader(notify=heard.append, list_entry_points=tuple)) as loader:
        assert current_loader() is loader
        assert load_found_plugins() == heard == list(loader.loaded.values())
        assert "mine" in BACKBONES.names()
    assert current_loader() is not loader and not current_loader().loaded
    assert "mine" not in BACKBONES.names()
    assert "seghiero_plugins" not in sys.modules and str(workplace) not in sys.path
    (plugin,) = load_found_plugins()  # as if for the first time
    assert plugin.registered == ["backbone mine"]


def test_an_annotation_that_cannot_be_resolved_is_a_failure_of_its_plugin(workplace):
    later = "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
    later += "if TYPE_CHECKING:\n    from x import Size\n"
    write(
        workplace / "seghiero_plugins" / "mine.py",
        text=later + TINY.replace("(variant)", "(variant, *, size: Size = 1)"),
    )
    (plugin,) = load_found_plugins()
    assert "mine.py, line" in plugin.failures["seghiero_plugins.mine"]
    assert "backbone 'mine': an annotation of build() can't be resolved (name 'Size'" in "".join(
        plugin.failures.values()
    )
    assert "resnet" in BACKBONES.names()


def test_the_folder_hides_no_installed_module(workplace):
    write(workplace / "yaml.py", text="raise RuntimeError('the wrong yaml')")
    write(workplace / "seghiero_plugins" / "mine.py", text=f"import yaml\n{TINY}")
    (plugin,) = load_found_plugins()
    assert plugin.failures == {}


def test_a_plugins_network_reaches_a_spawned_process(workplace):
    write(workplace / "seghiero_plugins" / "backbones" / "mine.py")
    load_found_plugins()
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    child = spawn.Process(target=send_shapes, args=(create_backbone({"backbone": {"type": "mine"}}), queue))
    child.start()
    assert queue.get(timeout=120) == [(1, 4, 16, 16), (1, 8, 8, 8), (1, 12, 4, 4), (1, 16, 2, 2)]
    child.join()
    assert child.exitcode == 0


def save(small, folder):
    small.write_text(small.read_text().replace("type: resnet, depth: 18", "type: mine"))
    config = load_config(small, ["plugins=[elsewhere/extra]"])
    return save_checkpoint(
        folder,
        1,
        config=config,
        metrics={},
        model={"w": torch.zeros(1)},
        training={"w": torch.zeros(1)},
        progress={},
        best=True,
    )


def test_a_checkpoint_records_its_plugins_and_loads_none(workplace, small):
    source = write(small.parent / "elsewhere" / "extra" / "mine.py")
    checkpoint = save(small, workplace / "runs" / "x")
    (record,) = json.loads((checkpoint / "manifest.json").read_text())["plugins"]
    digest = subprocess.run(["sha256sum", source], capture_output=True, text=True, check=True).stdout.split()[0]
    assert record == {
        "name": "extra",
        "distribution": None,
        "version": None,
        "components": ["backbone mine"],
        "sources": {"mine.py": digest},
    }
    assert read_checkpoint(checkpoint).config.backbone.type == "mine"
    assert read_checkpoint(checkpoint).changes == ()

    current_loader().unload()  # as in a new process
    source.write_text(source.read_text() + "# later\n")
    saved = yaml.safe_load((checkpoint / "config.yaml").read_text())
    assert saved["plugins"] == [str(small.parent / "elsewhere" / "extra")]  # recorded, but not loaded:
    with pytest.raises(CheckpointError, match=r"backbone mine came from the plugin 'extra'.*--plugin PATH.*mine\.py"):
        read_checkpoint(checkpoint)
    with pytest.raises(ConfigError, match=r"the config of a run loads no plugins"):
        load_config(checkpoint / "config.yaml")
    assert "extra.mine" not in sys.modules

    load_plugins([small.parent / "elsewhere" / "extra"])
    assert read_checkpoint(checkpoint).changes == ("the plugin 'extra' has changed since training: mine.py.",)


def test_a_missing_package_is_named_with_its_version(workplace, small):
    write(small.parent / "elsewhere" / "extra" / "mine.py")
    checkpoint = save(small, workplace / "runs" / "x")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["plugins"][0] |= {"distribution": "seghiero-extra", "version": "1.2"}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    current_loader().unload()  # as in a new process
    with pytest.raises(CheckpointError, match=r"pip install seghiero-extra==1\.2"):
        read_checkpoint(checkpoint)


def test_built_ins_have_no_record(workplace, small):
    from seghiero_core.plugins.records import plugin_records

    assert plugin_records("resnet", "aspp") == []
    assert HEADS.get("aspp")
