"""The metadata of an ONNX file is enough to interpret its outputs."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from seghiero_core import load
from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.decode import decode
from seghiero_core.errors import UsageError
from seghiero_core.export.metadata import hierarchy_from_metadata, read_metadata
from seghiero_core.hierarchy.tree import Hierarchy
from support.masks import LEVELS


def test_the_metadata_describes_the_classes(exported, tiny_run):
    metadata = read_metadata(onnx.load(exported), exported)
    config = read_checkpoint(tiny_run / "best").config
    hierarchy = Hierarchy.from_config(config.classes)
    assert {int(value): name for value, name in metadata["labels"].items()} == config.classes.labels
    assert metadata["ignore"] == 255 and metadata["seghiero_version"] and len(metadata["config_sha256"]) == 64
    assert metadata["colors"]["sky"] == [135, 206, 235] and set(metadata["colors"]) == set(hierarchy.nodes)
    assert [level["name"] for level in metadata["levels"]] == list(LEVELS)
    for number, level in enumerate(metadata["levels"]):
        assert tuple(level["classes"]) == hierarchy.level_names(number)
    assert "normalization" not in metadata, "the network normalizes; a mean and std would invite doing it twice"
    again = load(exported).hierarchy
    assert again.nodes == hierarchy.nodes and np.array_equal(again.leaf_to_level, hierarchy.leaf_to_level)
    assert np.array_equal(again.colors, hierarchy.colors) and again.values == hierarchy.values


@pytest.mark.parametrize(
    "words",
    [
        "`image`, N,3,H,W uint8",
        "RGB",
        "0 to 255",
        "don't normalize it",
        "`ids_LEVEL`",
        "`confidence_LEVEL`",
        "`levels`",
    ],
)
def test_the_description_says_what_goes_in_and_what_comes_out(exported, words):
    description = onnxruntime.InferenceSession(exported).get_modelmeta().description
    assert words in description
    assert read_metadata(onnx.load(exported), exported)["description"] == description


@pytest.fixture(scope="module")
def metadata(exported) -> dict[str, str]:
    """The metadata of an exported file, as JSON by key."""
    return {entry.key: entry.value for entry in onnx.load(exported).metadata_props}


def with_metadata(metadata: dict[str, str]) -> onnx.ModelProto:
    model = onnx.ModelProto()
    onnx.helper.set_model_props(model, metadata)
    return model


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels", "{"),
        ("labels", "[1]"),
        ("labels", "{}"),
        ("labels", '{"zero": "sky"}'),
        ("labels", '{"0": 1}'),
        ("labels", "9" * 5000),
        ("tree", '["sky"]'),
        ("tree", '{"sky": 5}'),
        ("tree", '{"a": ' * 5000 + "1" + "}" * 5000),
        ("colors", "[]"),
        ("colors", '{"sky": "red"}'),
        ("colors", '{"sky": null}'),
        ("ignore", "null"),
        ("ignore", '"255"'),
        ("ignore", "1e999"),
        ("levels", "7"),
        ("levels", '[{"name": "leaf"}]'),
        ("decoding", "[]"),
        ("decoding", "{}"),
        ("decoding", '{"mode": ["leaf"], "scores": "softmax", "channels": 5}'),
        ("decoding", '{"mode": "leaf", "scores": "softmax", "channels": "5"}'),
        ("decoding", '{"mode": "leaf", "scores": "softmax", "channels": 1000000000000}'),
        ("decoding", f'{{"mode": "leaf", "scores": "softmax", "channels": {10**30}}}'),
        ("decoding", '{"mode": "leaf", "scores": ["softmax"], "channels": 5}'),
        ("decoding", '{"mode": "leaf", "scores": "softmax", "channels": 5, "confidence": "0.5"}'),
        ("decoding", '{"mode": "leaf", "scores": "softmax", "channels": 5, "confidence": NaN}'),
        ("seghiero_version", "1"),
    ],
)
def test_a_wrong_value_names_its_key(metadata, key, value):
    with pytest.raises(UsageError, match=rf"^a\.onnx: .*\b{key}\b") as caught:
        read_metadata(with_metadata({**metadata, key: value}), Path("a.onnx"))
    assert "\n" not in str(caught.value) and "export" in str(caught.value)


def test_a_name_that_no_file_can_hold(metadata):
    """Half of a surrogate pair is valid in JSON, but has no UTF-8."""
    named = {key: value.replace('"sky"', '"\\ud800"') for key, value in metadata.items()}
    with pytest.raises(UsageError, match=r"^a\.onnx: .*'labels' is not valid JSON \('utf-8' codec can't encode"):
        read_metadata(with_metadata(named), Path("a.onnx"))


@pytest.mark.parametrize("key", ["labels", "tree", "colors", "ignore", "levels", "decoding", "seghiero_version"])
def test_a_missing_key_is_named(metadata, key):
    others = {name: value for name, value in metadata.items() if name != key}
    with pytest.raises(UsageError, match=f"a.onnx was not written by `seghiero export`: its metadata lacks {key}"):
        read_metadata(with_metadata(others), Path("a.onnx"))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(["sky", "leaf"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def places(draw, value):
    """A random path of keys and indices into nested containers."""
    path = []
    while value and isinstance(value, dict | list) and (not path or draw(st.booleans())):
        keys = sorted(value) if isinstance(value, dict) else range(len(value))
        path.append(draw(st.sampled_from(keys)))
        value = value[path[-1]]
    return path


@settings(
    derandomize=True, max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_other_value_is_read_or_refused(metadata, data):
    """One value somewhere in the metadata is replaced or removed."""
    content = {key: json.loads(value) for key, value in metadata.items()}
    path = data.draw(places(content))
    *way, last = path
    container = functools.reduce(lambda value, key: value[key], way, content)
    if data.draw(st.booleans()):
        container[last] = data.draw(values)
    else:
        del container[last]
    changed = {key: json.dumps(value) for key, value in content.items()}
    try:
        read = read_metadata(with_metadata(changed), Path("a.onnx"))
    except UsageError as error:
        assert path[0] in str(error)
    else:
        decoding = read["decoding"]
        logits = torch.zeros(1, decoding["channels"], 2, 2)
        decode(logits, hierarchy_from_metadata(read), decoding["mode"], scores=decoding["scores"])


def test_a_file_of_an_earlier_version_is_read(metadata):
    before = {key: value for key, value in metadata.items() if key != "description"} | {"normalization": "{}"}
    decoding = json.loads(before["decoding"])
    del decoding["confidence"], decoding["undecided"]
    assert read_metadata(with_metadata(before | {"decoding": json.dumps(decoding)}), Path("a.onnx"))["ignore"] == 255


def spoiled_graphs():
    def other_input(model):
        for node in model.graph.node:
            node.input[:] = ["x" if name == "image" else name for name in node.input]
        model.graph.input[0].name = "x"

    def other_dtype(model):
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64

    def no_logits(model):
        for node in model.graph.node:
            node.input[:] = ["y" if name == "logits" else name for name in node.input]
            node.output[:] = ["y" if name == "logits" else name for name in node.output]

    return [other_input, other_dtype, no_logits]


@pytest.mark.parametrize("spoil", spoiled_graphs(), ids=lambda spoil: spoil.__name__)
def test_another_graph_with_our_metadata_is_refused(exported, tmp_path, spoil):
    model = onnx.load(exported)
    spoil(model)
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(UsageError, match=r"a\.onnx was not written by `seghiero export`: .*(image|logits)"):
        load(tmp_path / "a.onnx", device="cpu")


def test_damaged_files_are_refused(exported, run, tmp_path):
    lacking = copy.deepcopy(onnx.load(exported))
    onnx.helper.set_model_props(lacking, {"labels": "{}"})
    (tmp_path / "lacking.onnx").write_bytes(lacking.SerializeToString())
    (tmp_path / "half.onnx").write_bytes(exported.read_bytes()[: exported.stat().st_size // 2])
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    for name, expected_code, words in (("lacking", 2, "not written by"), ("half", 4, "can't be read as ONNX")):
        code, _, err = run(
            "predict", tmp_path / f"{name}.onnx", tmp_path / "a.png", "--device=cpu", "--out", tmp_path / "out"
        )
        assert code == expected_code and words in err
    assert not (tmp_path / "out").exists()
