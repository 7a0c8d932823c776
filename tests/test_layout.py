"""The layout holds: imports go one way, files stay small, and what ships is what a user needs."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
from pathlib import Path

import pytest

from support.processes import ROOT

SOURCES = sorted(path for folder in ("seghiero_core", "seghiero_cli") for path in (ROOT / folder).rglob("*.py"))

# From the ground up. A package (a file at the top counts as one) imports from floors below its own, and from its own
# floor where that makes no circle. `seghiero_core/__init__.py` only hands names on and stands outside.
FLOORS = [
    "errors events atomic run_files devices version",
    "hierarchy registry readers",
    "plugins backbones heads decode decode_modes losses figures",
    "config",
    "data metrics checkpoint runs",
    "weights scaffold",
    "model",
    "evaluation report",
    "export training",
    "predict doctor testing benchmarking",
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported_modules(path: Path) -> set[str]:
    """Modules of this project that a file imports anywhere in it, also in functions and for type checking only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    modules = set()
    for name in found:
        parts = name.split(".")
        if parts[0] in ("seghiero_core", "seghiero_cli"):
            ends = range(len(parts), 0, -1)
            modules.add(next(m for m in (".".join(parts[:end]) for end in ends) if m in NAMES))
    return modules


def package_of(module: str) -> str:
    """The second part of a module's name; the command line is one package."""
    return module.split(".")[1] if module.startswith("seghiero_core.") else module.split(".")[0]


NAMES = {module_name(path).removesuffix(".__init__") for path in SOURCES}
FACE = ROOT / "seghiero_core" / "__init__.py"
IMPORTS = {module_name(path): imported_modules(path) for path in SOURCES if path != FACE}


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_imports_come_from_lower_floors(module):
    for target in IMPORTS[module]:
        if module.startswith("seghiero_cli"):
            continue
        assert not target.startswith("seghiero_cli"), f"{module} imports the command line"
        assert target != "seghiero_core", f"{module} imports from the face; name the module"
        own, other = package_of(module), package_of(target)
        assert FLOOR[other] <= FLOOR[own], f"{module} imports {target}, which stands on a higher floor"


def test_no_import_circle_between_modules():
    files = {module: targets for module, targets in IMPORTS.items() if not module.endswith("__init__")}
    assert not circle(files)


def test_no_import_circle_between_packages():
    packages: dict[str, set[str]] = {}
    for module, targets in IMPORTS.items():
        others = {package_of(target) for target in targets} - {package_of(module)}
        packages.setdefault(package_of(module), set()).update(others)
    assert not circle(packages)


def test_few_files_stand_at_the_top_and_each_has_a_floor():
    top = [path for path in SOURCES if path.parent == ROOT / "seghiero_core" and path.stem != "__init__"]
    assert len(top) <= 14
    assert {package_of(module) for module in IMPORTS if module.startswith("seghiero_core.")} <= FLOOR.keys()


def test_tests_mirror_the_packages():
    packages = {path.name for path in (ROOT / "seghiero_core").iterdir() if path.is_dir()} | {"cli", "support"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= packages


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
    assert len(text.splitlines()) <= 120
    commands = re.findall(r"^    (.+)$", text, flags=re.MULTILINE)
    assert commands[:2] == ["pip install . && seghiero demo", "pip install '.[dev]' && pytest"]


def test_every_command_that_the_readme_names_exists(run):
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"seghiero ([a-z][a-z-]+)", text))
    code, out, _ = run("--help")
    assert code == 0
    assert named
    for command in named:
        assert command in out, f"README names `seghiero {command}`, which is no command"


def test_the_contributing_guide_stays_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 80


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_resolve(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\((docs/\w[\w-]*\.md)\)", (ROOT / "README.md").read_text()))
    assert linked >= {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
