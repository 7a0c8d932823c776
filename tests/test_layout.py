"""The house keeps its shape: imports go one way, files stay small, and what ships is what a user needs."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("seghiero_core", "seghiero_cli") for path in (ROOT / folder).rglob("*.py"))

# Data flows down this list; a module may import from its own line and from those above it.
STAGES = [
    "errors",
    "yaml_reader templating new_files",
    "class_presets registry plugins plugin_records published",
    "hierarchy",
    "losses.presets decodings",
    "schema config",
    "data starter pictures png",
    "checkpoint",
    "hub weight_files key_layouts weights backbones heads segmentation model testing",
    "losses decode metrics report data_overview",
    "engine distributed signals freezing sharded optim trained published_weights whole_model",
    "tiles tta onnx_file infer",
    "evaluate prediction_files predict_files",
    "onnx_softmax export_graph export_pt2 parity quantize export_check export export_hf",
    "run run_folder bad_steps memory trackers training_state saving train dry_run doctor",
    "scaffold_text scaffold",
]
RANK = {name: rank for rank, line in enumerate(STAGES) for name in line.split()}


def rank(module: str) -> int:
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in RANK:
            return RANK[".".join(parts[:end])]
    raise AssertionError(f"seghiero_core.{module} has no place in STAGES")


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for target, _ in imports(path):
        if target.startswith("seghiero_cli"):
            assert module.startswith("seghiero_cli"), f"{module} imports the command line"
        elif target.startswith("seghiero_core.") and module.startswith("seghiero_core."):
            own, other = module.removeprefix("seghiero_core."), target.removeprefix("seghiero_core.")
            assert rank(other) <= rank(own), f"{own} imports {other}, which comes after it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small_and_the_core_never_prints_or_exits(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    if "seghiero_core" in path.parts:
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"print", "exit", "quit", "input"}
        assert "sys.exit" not in text


def test_the_top_level_holds_only_what_was_agreed():
    agreed = (
        "pyproject.toml seghiero_cli seghiero_core templates tests README.md CONTRIBUTING.md LICENSE benchmarks docs"
    )
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in listed.stdout.split()}
    assert top <= {*agreed.split(), ".ci", ".gitignore"}


def test_templates_hold_no_python_files():
    assert not [path for path in (ROOT / "templates").rglob("*") if path.is_file() and path.suffix != ".tmpl"]


def test_the_readme_opens_with_the_two_commands_and_stays_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    commands = re.findall(r"^    (.+)$", text, flags=re.MULTILINE)
    assert commands[:2] == ["pip install . && seghiero demo", "pip install '.[dev]' && pytest"]


def test_every_command_that_the_readme_names_exists(run):
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"seghiero ([a-z][a-z-]+)", text)) - {"trains"}
    code, out, _ = run("--help")
    assert code == 0
    assert named
    for command in named:
        assert command in out, f"README names `seghiero {command}`, which is no command"
