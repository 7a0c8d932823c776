"""Every public function of the core says what it takes and gives, and the examples in its docstrings run."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from collections import defaultdict
from collections.abc import Iterator

import pytest

from support.processes import ROOT

SOURCES = sorted(path for path in (ROOT / "seghiero_core").rglob("*.py") if path.stem != "__init__")
SHAPE = re.compile(
    r"\b\w+(?:\[l\])?(?:,\w+(?:\[l\])?|,\.\.\.)+|\([A-Z0-9](?:\+[A-Z0-9])*(?:\[l\])?\)|\b[Ss]calar|[Aa]ny shape"
)
NOT_IMPERATIVE = {"The", "A", "An", "What", "Whether", "How", "Every", "All", "As", "Each", "Some", "One", "This", "It"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def decorators(node: ast.AST) -> list[str]:
    return [ast.unparse(decorator) for decorator in node.decorator_list]


def public_functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Public functions and methods with their dotted names; builders behind a register decorator are exempt."""
    for node in tree.body:
        if isinstance(node, Function):
            if not node.name.startswith("_") and not any(d.startswith("register_") for d in decorators(node)):
                yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for child in node.body:
                if isinstance(child, Function) and not child.name.startswith("_"):
                    yield f"{node.name}.{child.name}", child


def sections(docstring: str) -> dict[str, str]:
    """The text of each section (Args, Returns, ...) of a docstring in Google's style."""
    parts = re.split(r"^(Args|Returns|Yields|Raises|Example|Attributes):\n", docstring, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def argument_texts(section: str) -> dict[str, str]:
    texts = {}
    for match in re.finditer(
        r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*(?:\n     +.*|\n(?=\n     ))*)", section, flags=re.MULTILINE
    ):
        texts |= {name.strip("* "): match[2] for name in match[1].split(",")}
    return texts


def is_array(annotation: ast.expr | None) -> bool:
    return annotation is not None and ast.unparse(annotation) in ("Tensor", "torch.Tensor", "np.ndarray")


def faults(name: str, node: Function) -> Iterator[str]:
    docstring = ast.get_docstring(node)
    if not docstring:
        yield f"{name}: no docstring"
        return
    first = docstring.splitlines()[0]
    if not first.endswith((".", ":")):
        yield f"{name}: the first line is not one sentence: {first}"
    is_property = any("property" in decorator for decorator in decorators(node))
    if is_property:
        return
    word = first.split()[0]
    if word in NOT_IMPERATIVE or (
        word.endswith("s") and word not in ("Pass", "Process", "Compress", "Express", "Guess")
    ):
        yield f"{name}: not an imperative sentence: {first}"
    found = sections(docstring)
    texts = argument_texts(found.get("Args", ""))
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    arguments += [argument for argument in (node.args.vararg, node.args.kwarg) if argument]
    for argument in arguments:
        if argument.arg in ("self", "cls"):
            continue
        if argument.arg not in texts:
            yield f"{name}: Args has no '{argument.arg}'"
        elif is_array(argument.annotation) and not SHAPE.search(texts[argument.arg]):
            yield f"{name}: the shape of '{argument.arg}' is missing"
    returns = None if node.returns is None else ast.unparse(node.returns)
    if returns not in (None, "None", "NoReturn") and not {"Returns", "Yields"} & found.keys():
        yield f"{name}: no Returns"
    elif is_array(node.returns) and not SHAPE.search(found.get("Returns", "")):
        yield f"{name}: the shape of what it returns is missing"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_say_what_they_take_and_give(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
    found = [fault for name, node in public_functions(tree) for fault in faults(name, node)]
    assert not found, "\n" + "\n".join(found)


def test_a_public_name_means_one_thing():
    places = defaultdict(list)
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, Function | ast.ClassDef):
                names = [] if any(d.startswith("register_") for d in decorators(node)) else [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            else:
                names = []
            for name in names:
                if not name.startswith("_"):
                    places[name].append(str(path.relative_to(ROOT)))
    assert not {name: files for name, files in places.items() if len(files) > 1}


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if ">>> " in path.read_text()], ids=lambda path: str(path.relative_to(ROOT))
)
def test_examples_in_docstrings_run(path, project_folder, monkeypatch):
    monkeypatch.chdir(project_folder)
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted and not result.failed
