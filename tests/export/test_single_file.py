"""`seghiero export`: files that give the network's answers, and everything a user can get wrong."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from seghiero_cli.main import main
from seghiero_core import load
from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.decode_modes import MODES
from seghiero_core.errors import CheckFailed, DeviceError
from seghiero_core.export import int8, parity, single_file
from seghiero_core.export.graph import DecodedModel, output_names, to_onnx, trace
from seghiero_core.export.metadata import read_metadata, set_metadata
from seghiero_core.export.options import DEFAULT_OPSET, OPSETS, ExportOptions
from seghiero_core.export.parity import measure_parity
from seghiero_core.export.runner import make_session, onnx_run, session_run
from seghiero_core.export.single_file import export_checkpoint
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.factories import build_model
from seghiero_core.model.segmentation import SegmentationOutput
from seghiero_core.registry import BACKBONES, HEADS
from support.processes import ENVIRONMENT, SUPPORT
from support.tiny import TINY, save_untrained

LEVELS = ("leaf", "level1", "level2")


@pytest.fixture
def run_export(tiny_run, tmp_path, monkeypatch, capsys):
    """Runs `seghiero export TINY_RUN --onnx --out out.onnx ARGUMENTS`; gives (exit code, stdout, stderr)."""

    def run(*arguments: object, checkpoint: Path | None = tiny_run) -> tuple[int, str, str]:
        named = [] if checkpoint is None else [str(checkpoint)]
        line = ["seghiero", "export", *named, "--onnx", "--out", str(tmp_path / "out.onnx"), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as stop:
            main()
        return (stop.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    export_checkpoint(tiny_run / "best", path, ExportOptions())
    return path


def network(run: Path, mode: str = "leaf") -> DecodedModel:
    predictor = load(run, device="cpu")

    class Forward(torch.nn.Module):
        def forward(self, images):
            return SegmentationOutput(predictor.forward(images))

    return DecodedModel(Forward(), predictor.hierarchy, predictor.scores, mode)


# ── what comes out ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_json_and_the_file(run_export, tmp_path):
    code, out, err = run_export("--json")
    row = json.loads(out)
    assert code == 0 and err == ""
    assert row["path"] == str(tmp_path / "out.onnx") and row["opset"] == 20 and row["parity_images"] == "validation"
    assert row["max_abs_error"] <= 1e-4 and row["argmax_agreement"] >= 0.9999 and row["max_abs_logit"] > 0.5
    model = onnx.load(row["path"])
    (image,) = model.graph.input
    assert image.name == "image" and image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    dims = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert dims == ["batch", 3, "height", "width"]
    expected = [f"ids_{level}" for level in LEVELS] + [f"confidence_{level}" for level in LEVELS]
    assert [output.name for output in model.graph.output] == expected == row["outputs"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_any_size_and_batch(exported, tiny_run):
    model, session = network(tiny_run), make_session(exported.read_bytes())
    names = [output.name for output in session.get_outputs()]
    sizes = [(1, 1, 1), (2, 1, 70), (1, 97, 131), (3, 64, 96), (1, 33, 31), (2, 128, 127), (1, 512, 512)]
    for batch, height, width in sizes:
        rng = np.random.default_rng(height)
        images = rng.integers(0, 256, (batch, 3, height, width), dtype=np.uint8)
        expected = dict(zip(output_names(model.hierarchy), model(torch.from_numpy(images)), strict=True))
        for name, found in zip(names, session.run(names, {"image": images}), strict=True):
            assert found.shape == (batch, height, width)
            if name.startswith("ids"):
                assert (found == expected[name].numpy()).mean() > 0.999
            else:
                np.testing.assert_allclose(found, expected[name].numpy(), atol=1e-3)


def test_metadata_is_all_one_needs(exported, tiny_run):
    metadata = read_metadata(onnx.load(exported), exported)
    config = read_checkpoint(tiny_run / "best").config
    hierarchy = Hierarchy.from_config(config.classes)
    assert {int(value): name for value, name in metadata["labels"].items()} == config.classes.labels
    assert metadata["ignore"] == 255 and metadata["seghiero_version"] and len(metadata["config_sha256"]) == 64
    assert metadata["colors"]["sky"] == [135, 206, 235] and set(metadata["colors"]) == set(hierarchy.nodes)
    assert [level["name"] for level in metadata["levels"]] == list(LEVELS)
    for number, level in enumerate(metadata["levels"]):
        assert tuple(level["classes"]) == hierarchy.level_names(number)
    assert metadata["normalization"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert metadata["normalization"]["std"] == pytest.approx([0.229, 0.224, 0.225])
    again = load(exported).hierarchy
    assert again.nodes == hierarchy.nodes and np.array_equal(again.leaf_to_level, hierarchy.leaf_to_level)
    assert np.array_equal(again.colors, hierarchy.colors) and again.values == hierarchy.values


def test_consumer_predict_and_checkpoint_give_the_same(exported, tiny_run, starter_folder, tmp_path, monkeypatch):
    """The user's script, `predict` with the ONNX file, and `predict` with the checkpoint."""
    images = sorted((starter_folder / "data" / "val" / "images").iterdir())[:2]
    for image in images:
        line = [
            sys.executable,
            str(SUPPORT / "onnx_consumer.py"),
            str(exported),
            str(image),
            str(tmp_path / "consumer"),
        ]
        done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for name, model in (("onnx", exported), ("checkpoint", tiny_run)):
        line = ["seghiero", "predict", str(model), *map(str, images), "--out", str(tmp_path / name), "--device=cpu"]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    for image in images:
        for level in LEVELS:
            name = f"{image.stem}.{level}.png"
            masks = [np.array(Image.open(tmp_path / by / name)) for by in ("consumer", "onnx", "checkpoint")]
            assert len(np.unique(masks[0])) > 1
            assert np.array_equal(masks[0], masks[1])
            assert (masks[0] == masks[2]).mean() > 0.9999
            consumer, own = (Image.open(tmp_path / by / name).convert("RGB") for by in ("consumer", "onnx"))
            assert np.array_equal(np.array(consumer), np.array(own))


def test_tiles_and_augmentation_work_on_a_file(exported, tiny_run):
    image = np.asarray(
        Image.fromarray(np.random.default_rng(8).integers(0, 256, (9, 9, 3), np.uint8)).resize((200, 150))
    )
    options = {"tile": 96, "overlap": 32, "tta": ["flip", "scales"], "batch_size": 2, "device": "cpu"}
    by_file, by_checkpoint = load(exported, **options)(image), load(tiny_run, **options)(image)
    for level in LEVELS:
        assert (by_file.ids[level] == by_checkpoint.ids[level]).mean() > 0.999


def test_float_input_and_logits(run_export, tiny_run, tmp_path):
    code, out, _ = run_export("--input", "float32", "--outputs", "logits", "--json")
    assert code == 0 and json.loads(out)["outputs"] == ["logits"]
    session = make_session((tmp_path / "out.onnx").read_bytes())
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 50, 61)).astype(np.float32)
    (logits,) = session.run(None, {"image": images})
    expected = network(tiny_run)(torch.from_numpy(images))[0]
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
    image = images[0].transpose(1, 2, 0).astype(np.uint8)
    found = load(tmp_path / "out.onnx", device="cpu")(image).ids["leaf"]
    assert (found == load(tiny_run, device="cpu")(image).ids["leaf"]).mean() > 0.999


def test_half_precision(run_export, tmp_path):
    code, out, _ = run_export("--fp16", "--json")
    row = json.loads(out)
    assert code == 0 and row["precision"] == "fp16"
    assert 1e-7 < row["max_abs_error"] <= 1e-2 and row["argmax_agreement"] >= 0.995
    weights = {
        tensor.data_type for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer if len(tensor.dims) == 4
    }
    assert weights == {onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT}, "backbone and head"
    assert load(tmp_path / "out.onnx", device="cpu")(np.zeros((40, 50, 3), np.uint8)).ids["leaf"].shape == (40, 50)


def test_8_bit(run_export, tmp_path):
    code, out, err = run_export("--int8", "--json")
    row = json.loads(out)
    assert code == 0 and err == ""
    assert row["miou_fp32"] - row["miou_int8"] <= 0.01 and row["miou_images"] == 24 and row["argmax_agreement"] > 0.8
    graph = onnx.load(tmp_path / "out.onnx").graph
    assert sum(node.op_type == "DequantizeLinear" for node in graph.node) > 10
    assert {tensor.data_type for tensor in graph.initializer} >= {onnx.TensorProto.INT8}
    assert load(tmp_path / "out.onnx", device="cpu")(np.zeros((40, 50, 3), np.uint8)).ids["leaf"].shape == (40, 50)


def test_decoding_of_an_8_bit_file_is_exact(run_export, tiny_run, tmp_path):
    """Only the network is in 8 bits: classes and confidence are those of the file's own logits, at every level."""
    assert run_export("--int8", "--decode", "top_down")[0] == 0
    model = network(tiny_run, "top_down")
    rng = np.random.default_rng(0)
    found = onnx_run(tmp_path / "out.onnx")(rng.integers(0, 256, (2, 3, 70, 90), dtype=np.uint8))
    decoded = model.decode(torch.from_numpy(found["logits"]))
    for number, level in enumerate(LEVELS):
        assert (found[f"ids_{level}"] == decoded.ids[number].numpy()).mean() > 0.9999
        np.testing.assert_allclose(found[f"confidence_{level}"], decoded.confidence[number].numpy(), atol=1e-5)


def test_products_inside_attention_stay_in_single_precision(camvid_hierarchy):
    config = {"backbone": {"type": "segformer", "variant": "mit-b0"}, "head": {"type": "segformer"}}
    model = build_model(config, len(camvid_hierarchy.leaves), embedding=False)
    decoded = DecodedModel(model, camvid_hierarchy, "softmax", "leaf").eval()
    graph = to_onnx(trace(decoded, torch.uint8), camvid_hierarchy, DEFAULT_OPSET)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    quantized = int8.to_int8(graph, [image]).graph
    made_by = {output: node for node in quantized.node for output in node.output}
    products = [node for node in quantized.node if node.op_type == "MatMul"]
    in_8_bit = [
        all(name in made_by and made_by[name].op_type == "DequantizeLinear" for name in node.input) for node in products
    ]
    attention = 2 * 8  # MiT-B0 has four stages of two blocks
    levels = len(camvid_hierarchy.levels) - 1
    assert len(in_8_bit) - sum(in_8_bit) == attention + levels and sum(in_8_bit) > attention


@pytest.mark.parametrize("loss", ["leaf_cross_entropy", "level_cross_entropy", "conditional_cross_entropy", "node_bce"])
def test_every_kind_of_scores_and_decoding(starter_folder, tmp_path, loss):
    """One file per kind of scores, with another decoding each time; then every decoding through `load(mode=)`."""
    overrides = [*TINY, f"output.name={loss}", f"loss={{terms: {{{loss}: 1}}}}"]
    run = save_untrained(starter_folder / "cfg.yaml", overrides).run_dir
    by_checkpoint = load(run, device="cpu")
    modes = [mode for mode in MODES if not (mode == "expected_cost" and by_checkpoint.scores == "sigmoid")]
    mode = {"softmax": "expected_cost", "levels": "per_level", "siblings": "best_path", "sigmoid": "top_down"}
    options = ExportOptions(mode=mode[by_checkpoint.scores])
    row = export_checkpoint(run / "best", tmp_path / "a.onnx", options)
    assert row["argmax_agreement"] >= 0.9999
    image = sorted((starter_folder / "data" / "val" / "images").iterdir())[0]
    assert load(tmp_path / "a.onnx").mode == options.mode
    for mode in modes:
        expected = load(run, device="cpu", mode=mode)(image)
        found = load(tmp_path / "a.onnx", device="cpu", mode=mode)(image)
        for level in LEVELS:
            assert (found.ids[level] == expected.ids[level]).mean() > 0.999


# ── every network ────────────────────────────────────────────────────────────────────────────────────────────────────

VARIANTS = [(name, variant) for name in ("resnet", "convnext", "segformer") for variant in BACKBONES.get(name).variants]
ALL = [(*backbone, head) for backbone in VARIANTS for head in HEADS.names()]
SOME = [
    ("resnet", "18", "aspp"),
    ("segformer", "mit-b0", "segformer"),
    ("convnext", "tiny", "ultrafast_segformer"),
]


def combination_passes(hierarchy: Hierarchy, backbone: str, variant: str, head: str) -> None:
    torch.manual_seed(0)
    selector = BACKBONES.get(backbone).selector
    config = {"backbone": {"type": backbone, selector: variant}, "head": {"type": head}}
    model = build_model(config, len(hierarchy.leaves), embedding=False)
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(3)]
    images = [np.asarray(image.resize((480, 360), Image.Resampling.BICUBIC)) for image in small]
    with torch.no_grad():  # logits as large as a trained network's: of random weights they are near 0
        logits = model.eval()(torch.tensor(images[0]).movedim(2, 0)[None]).logits
        model.head.classifier.weight.mul_(20 / logits.abs().max())
    decoded = DecodedModel(model, hierarchy, "softmax", "leaf").eval()
    graph = to_onnx(trace(decoded, torch.uint8), hierarchy, DEFAULT_OPSET)
    measured = measure_parity(session_run(make_session(graph.SerializeToString())), decoded, images, "uint8")
    print(f"{backbone} {variant} {head}: error {measured.max_abs_error:.1e} of {measured.max_abs_logit:.1f}", end=" ")
    most, least = parity.GATES["fp32"]
    assert measured.max_abs_error <= most
    assert min(measured.argmax_agreement.values()) >= least


@pytest.mark.parametrize(("backbone", "variant", "head"), SOME)
def test_combination(camvid_hierarchy, backbone, variant, head):
    combination_passes(camvid_hierarchy, backbone, variant, head)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "variant", "head"), [combination for combination in ALL if combination not in SOME]
)
def test_every_other_combination(camvid_hierarchy, backbone, variant, head):
    combination_passes(camvid_hierarchy, backbone, variant, head)


def test_there_are_64():
    assert len(ALL) == 64


def classifier_bias(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.bias"))


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def spoiled(monkeypatch):
    """The exported graph gets one wrong weight, as an exporter's bug would do it."""

    def spoil(by: float) -> None:
        def wrong(*arguments):
            model = to_onnx(*arguments)
            tensor = classifier_bias(model)
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[0] += by
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
            return model

        monkeypatch.setattr(single_file, "to_onnx", wrong)

    return spoil


@pytest.mark.parametrize(("by", "flags"), [(2e-4, []), (0.5, ["--fp16"]), (float("nan"), [])])
def test_a_wrong_graph_is_not_written(run_export, spoiled, tmp_path, by, flags):
    spoiled(by)
    code, out, err = run_export(*flags)
    assert code == 5 and out == "" and "parity failed" in err and "allowed" in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_leaves_the_old_one(run_export, spoiled, tmp_path):
    (tmp_path / "out.onnx").write_text("old")
    spoiled(1.0)
    assert run_export()[0] == 5
    assert (tmp_path / "out.onnx").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_8_bit_that_loses_too_much(starter_folder, tmp_path, monkeypatch):
    """Labels that the network itself gave: its mIoU is 1, and an 8-bit file with a wrong weight is far from it."""
    folder = tmp_path / "data"
    shutil.copytree(starter_folder / "data", folder)
    shutil.copy(starter_folder / "cfg.yaml", tmp_path / "cfg.yaml")
    run = save_untrained(tmp_path / "cfg.yaml", TINY).run_dir
    predictor = load(run, device="cpu")
    for image in (folder / "val" / "images").iterdir():
        mask = predictor(image).ids["leaf"]
        Image.fromarray(mask.astype(np.uint8)).save(folder / "val" / "masks" / f"{image.stem}.png")
    plain = int8.to_int8

    def wrong(model, images):
        quantized = plain(model, images)
        tensor = classifier_bias(quantized)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[0] += 10
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return quantized

    monkeypatch.setattr(int8, "to_int8", wrong)
    with pytest.raises(CheckFailed, match=r"leaf mIoU falls from 100\.00 to"):
        export_checkpoint(run / "best", tmp_path / "a.onnx", ExportOptions(precision="int8"))
    assert not (tmp_path / "a.onnx").exists()


def test_without_the_data_set(starter_folder, run_export, tmp_path):
    """Elsewhere the data isn't there: random images then serve for parity, and 8-bit can't be done."""
    shutil.copytree(starter_folder / "data", tmp_path / "moved" / "data")
    shutil.copy(starter_folder / "cfg.yaml", tmp_path / "moved" / "cfg.yaml")
    run = save_untrained(tmp_path / "moved" / "cfg.yaml", TINY).run_dir
    shutil.rmtree(tmp_path / "moved" / "data")
    code, out, _ = run_export("--json", checkpoint=run)
    assert code == 0 and json.loads(out)["parity_images"] == "random"
    code, _, err = run_export("--int8", checkpoint=run)
    assert code == 3 and "calibrated" in err and str(tmp_path / "moved" / "data") in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--opset", "12"], "--opset 12: unknown. Known: 18, 19, 20"),
        (["--opset", "0"], "--opset 0: unknown. Did you mean '20'? Known: 18, 19, 20"),
        (["--fp16", "--int8"], "not both"),
        (["--input", "uint16"], "Did you mean 'uint8'"),
        (["--outputs", "mask"], "Did you mean 'masks'"),
        (["--decode", "leave"], "Did you mean 'leaf'"),
    ],
)
def test_wrong_options(run_export, tmp_path, flags, words):
    code, out, err = run_export(*flags)
    assert code == 2 and out == "" and words in err and list(tmp_path.iterdir()) == []


def test_decoding_that_does_not_fit_the_scores(starter_folder, run_export):
    overrides = [*TINY, "output.name=sigmoid", "loss={terms: {node_bce: 1}}"]
    run = save_untrained(starter_folder / "cfg.yaml", overrides).run_dir
    code, _, err = run_export("--decode", "expected_cost", checkpoint=run)
    assert code == 2 and "needs a distribution over the leaves" in err


@pytest.mark.parametrize(
    "flags", [["--input", "uint8"], ["--outputs", "masks"], ["--decode", "leaf"], ["--opset", "20"], ["--int8"]]
)
def test_a_folder_for_transformers_has_none_of_the_options_of_a_file(run, tiny_run, tmp_path, flags):
    code, out, err = run("export", tiny_run, "--hf", tmp_path / "hf", *flags)
    assert (code, out) == (2, "") and f"leave out {flags[0]}." in err and not (tmp_path / "hf").exists()


def test_cuda_that_does_not_start_is_an_error(exported, monkeypatch):
    """onnxruntime goes on with the CPU by itself where CUDA's libraries are missing."""
    plain = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, options, providers: plain(model, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(DeviceError, match="could not start CUDA on cuda:0.*--device cpu"):
        make_session(exported.read_bytes(), "cuda:0")
    assert make_session(exported.read_bytes(), "cpu").get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_the_first_and_last_opset(run_export, opset):
    code, out, err = run_export("--opset", opset, "--json")
    assert code == 0 and json.loads(out)["opset"] == opset, err


def test_newest_run_is_named(run_export, tiny_run, tmp_path, monkeypatch):
    code, _, err = run_export(checkpoint=tmp_path / "nowhere")
    assert code == 2 and "nowhere: there is no such run" in err
    monkeypatch.chdir(tmp_path)
    code, _, err = run_export(checkpoint=None)
    assert code == 2 and "no run under" in err and str(tmp_path) in err
    (tmp_path / "runs").mkdir()
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny", symlinks=True)
    code, out, err = run_export("--json", checkpoint=None)
    assert code == 0 and "using the newest run, runs/tiny/best" in err and json.loads(out)["path"]


def test_without_out_it_is_in_the_run(tiny_run):
    options = ExportOptions(precision="int8")
    assert single_file.default_path(tiny_run / "best", ExportOptions()) == tiny_run.resolve() / "model.onnx"
    assert single_file.default_path(tiny_run / "best", options) == tiny_run.resolve() / "model-int8.onnx"


def test_checkpoint_of_another_version_or_damaged(starter_folder, run_export):
    run = save_untrained(starter_folder / "cfg.yaml", [*TINY, "output.name=bad"]).run_dir
    manifest = run / "best" / "manifest.json"
    before = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(before) | {"format": 99, "seghiero_version": "9.9"}))
    code, _, err = run_export(checkpoint=run)
    assert code == 4 and "seghiero 9.9 in format 99" in err
    manifest.write_text(before)
    with (run / "best" / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\xff\xff\xff\xff")
    code, _, err = run_export(checkpoint=run)
    assert code == 4 and "model.safetensors has changed" in err


def test_no_permission_is_known_before_the_work(run_export, tmp_path, monkeypatch):
    """Root may write anywhere, so the refusal is made; the other is a path that leads through a file."""

    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr(single_file, "to_onnx", lambda *_: pytest.fail("the work was begun"))
    code, _, err = run_export()
    assert code == 4 and "no permission" in err and str(tmp_path) in err
    (tmp_path / "file").write_text("")
    code, _, err = run_export("--out", tmp_path / "file" / "a.onnx")
    assert code == 4 and "file" in err


def test_a_full_disk(run_export, tmp_path, monkeypatch):
    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = run_export()
    assert code == 4 and "disk is full" in err and list(tmp_path.iterdir()) == []


def test_damaged_files_are_refused(exported, tmp_path, tiny_run, monkeypatch, capsys):
    model = onnx.load(exported)
    lacking = copy.deepcopy(model)
    set_metadata(lacking, {"labels": {}})
    (tmp_path / "lacking.onnx").write_bytes(lacking.SerializeToString())
    (tmp_path / "half.onnx").write_bytes(exported.read_bytes()[: exported.stat().st_size // 2])
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    for name, code, words in (("lacking", 2, "not written by"), ("half", 4, "can't be read as ONNX")):
        line = ["seghiero", "predict", str(tmp_path / f"{name}.onnx"), str(tmp_path / "a.png"), "--device=cpu"]
        monkeypatch.setattr(sys, "argv", [*line, "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == code and words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_real_process_is_quiet(starter_folder, tmp_path):
    overrides = ["backbone={type: resnet, depth: 18}", TINY[1], "output.name=quiet"]
    run = save_untrained(starter_folder / "cfg.yaml", overrides).run_dir
    line = [
        sys.executable,
        "-m",
        "seghiero_cli",
        "export",
        str(run),
        "--onnx",
        "--json",
        "--out",
        str(tmp_path / "a.onnx"),
    ]
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout)["argmax_agreement"] >= parity.GATES["fp32"][1]
