"""Images with any number of bands, from the statistics to the prediction: what a band decides is learnt."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from seghiero_core import load
from seghiero_core.config.loading import load_config
from seghiero_core.data.samples import split_samples
from seghiero_core.errors import ConfigError, UsageError
from seghiero_core.export.options import ExportOptions
from seghiero_core.export.single_file import export_checkpoint
from seghiero_core.model.stem import adapt_stem
from seghiero_core.training.dry_run import dry_run
from seghiero_core.training.interrupts import Interrupted
from seghiero_core.training.loop import train
from seghiero_core.training.prepare import prepare
from support.bands import SIDE, numpy_moments, save_bands, write_config, write_deciding_band
from support.runs import StopAt, assert_same, records, weights
from support.tiny import save_untrained

CHANCE = 0.55  # mIoU of two classes that are half of the pixels each is at most 1/2 without knowing anything


@pytest.fixture(scope="module")
def deciding(tmp_path_factory):
    """A config and its run, whose last band of five decides."""
    path = write_deciding_band(tmp_path_factory.mktemp("deciding"))
    train(load_config(path))
    return path


def read(path):
    return np.asarray(Image.open(path))


def miou(run, *words):
    code, out, _ = run("eval", *words, "--json")
    assert code == 0
    return json.loads(out)["levels"][0]["miou"]


def copy_set(path, change, extension, **keys):
    """The data set of a config with changed images, and the config of it."""
    root = path.parent
    for split in ("train", "val"):
        for image in sorted((root / split / "images").iterdir()):
            pixels = change(tifffile.imread(image))
            image.unlink()
            save_bands(image.with_suffix(extension), pixels)
            channels = pixels.shape[2]
    moments = numpy_moments([sample.decode()[0] for sample in split_samples(_config(root, channels).dataset, "train")])
    return write_config(path, channels, moments.mean.tolist(), moments.std.tolist(), **keys)


def _config(root, channels):
    return load_config(write_config(root / "any.yaml", channels, [0.0] * channels, [1.0] * channels))


def test_a_task_in_which_only_the_fifth_band_decides_is_learnt_and_without_it_not(run, deciding, tmp_path):
    assert miou(run, deciding.parent / "runs/bands") > 0.9
    path = copy_set(write_deciding_band(tmp_path), lambda image: image[..., :4], ".npy")
    train(load_config(path))
    assert miou(run, path.parent / "runs/bands") < CHANCE


def test_values_that_differ_in_their_low_byte_decide_and_cut_to_8_bits_they_do_not(run, tmp_path):
    values = (1000, 1003)  # 0x3e8 and 0x3eb
    path = write_deciding_band(tmp_path, channels=1, values=values)
    for image in sorted(tmp_path.glob("*/images/*.tif")):
        Image.fromarray(tifffile.imread(image)).save(image.with_suffix(".png"))
        image.unlink()
    train(load_config(path))
    assert miou(run, tmp_path / "runs/bands") > 0.9
    document = yaml.safe_load(path.read_text())
    document["dataset"] = {"train": "train", "val": "val"}
    (tmp_path / "rgb.yaml").write_text(yaml.safe_dump(document))
    train(load_config(tmp_path / "rgb.yaml"))
    assert miou(run, tmp_path / "runs/rgb") < CHANCE


def test_every_file_of_a_run_is_written_and_the_report_shows_the_images(deciding):
    folder = deciding.parent / "runs/bands"
    assert read(folder / "validation.png").shape[1] > 200
    assert "data:image/webp;base64," in (folder / "report.html").read_text()


def test_exported_files_and_predictions_agree_with_the_network(run, deciding, tmp_path):
    folder = deciding.parent / "runs/bands"
    code, out, err = run("export", folder, "--out", tmp_path / "m.onnx", "--json")
    row = json.loads(out)
    assert code == 0 and row["input"] == "float32" and row["parity_images"] == "validation"
    assert row["argmax_agreement"] >= 0.9999
    graph = onnx.load(tmp_path / "m.onnx")
    (image,) = graph.graph.input
    assert [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim][1] == 5
    metadata = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    assert (metadata["channels"], metadata["nodata"], metadata["rgb"]) == (5, None, [0, 1, 2])
    assert "N,5,H,W float32" in metadata["description"]
    export_checkpoint(folder / "best", tmp_path / "m.pt2", ExportOptions(format="pt2"))
    program = torch.export.load(tmp_path / "m.pt2").module(check_guards=False)

    path = deciding.parent / "val/images/0.tif"
    pixels, mask = tifffile.imread(path), read(deciding.parent / "val/masks/0.png")
    ours, theirs = load(folder, device="cpu"), load(tmp_path / "m.onnx", device="cpu")
    expected = ours(path).ids["leaf"]
    assert (expected == mask).mean() > 0.9
    for predictor in (ours, theirs):
        for source in (path, pixels, pixels.astype(np.float32), torch.from_numpy(pixels).permute(2, 0, 1)):
            assert (predictor(source).ids["leaf"] == expected).mean() > 0.999
    found = program(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())["ids_leaf"][0].numpy()
    assert (found == expected).mean() > 0.999
    assert (
        run("predict", folder, deciding.parent / "val/images", "--out", tmp_path / "p", "--tta", "flip,scales")[0] == 0
    )
    written = read(tmp_path / "p/0.leaf.png")
    assert (written == mask).mean() > 0.8 and read(tmp_path / "p/0.overlay.png").shape == (SIDE, SIDE, 3)
    with pytest.raises(UsageError, match="5 bands"):
        ours(pixels[..., :4])


@pytest.mark.slow
def test_int8_and_half_precision(deciding, tmp_path):
    folder = deciding.parent / "runs/bands/best"
    for precision in ("fp16", "int8"):
        row = export_checkpoint(folder, tmp_path / f"{precision}.onnx", ExportOptions(precision=precision))
        assert row["input"] == "float32" and row["argmax_agreement"] > 0.9


def test_what_an_export_of_bands_cannot_do_is_refused(run, deciding, tmp_path):
    folder = deciding.parent / "runs/bands"
    code, _, err = run("export", folder, "--out", tmp_path / "m.onnx", "--input", "uint8")
    assert code == 2 and "--input uint8: this network takes 5 bands in stored units" in err
    other = write_config(tmp_path / "other.yaml", 4, [0.0] * 4, [1.0] * 4)
    code, _, err = run("eval", folder, "--config", other)
    assert code == 2 and "its images are 4 bands (dataset.channels), those of the run are 5 bands" in err


def test_another_data_set_is_measured_with_the_statistics_of_the_run(run, deciding, tmp_path):
    folder = deciding.parent / "runs/bands"
    path = write_deciding_band(tmp_path)
    path.write_text(
        "dataset: {train: train, val: val, channels: 5}\nclasses: {labels: [field, forest]}\nbackbone: {type: tiny}\n"
    )
    assert miou(run, folder, "--config", path) == miou(run, folder)
    folders = ("--images", tmp_path / "val/images", "--masks", tmp_path / "val/masks")
    assert miou(run, folder, *folders) == miou(run, folder)


def test_a_resumed_run_is_exact(tmp_path):
    path = write_deciding_band(tmp_path, images=4)
    path.write_text(path.read_text().replace("color_jitter: 0", "color_jitter: 0.3").replace("epochs: 12", "epochs: 4"))
    whole = load_config(path, ["output.name=whole"])
    train(whole)
    stopped = load_config(path, ["output.name=stopped"])
    with pytest.raises(Interrupted):
        train(stopped, notify=StopAt(2))
    train(stopped, resume=True)
    assert_same(weights(whole.run_dir), weights(stopped.run_dir))
    assert records(whole.run_dir) == records(stopped.run_dir)
    with pytest.raises(ConfigError, match=r"other images:\n  dataset.rgb: None in the run, \[4, 3, 2\] now"):
        train(load_config(path, ["output.name=whole", "dataset.rgb=[4, 3, 2]"]), resume=True)


def test_labels_of_pixels_without_data_change_nothing(tmp_path):
    found = []
    for name, label in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        path = write_deciding_band(tmp_path / name, images=4)
        for image in sorted((tmp_path / name).glob("*/images/*")):
            pixels = tifffile.imread(image)
            pixels[:30, :25] = 65535
            save_bands(image, pixels)
            mask = image.parents[1] / "masks" / f"{image.stem}.png"
            labels = read(mask).copy()
            labels[:30, :25] = label
            Image.fromarray(labels).save(mask)
        write_config(path, 5, [2000.0] * 5, [1000.0] * 5, ", nodata: 65535")
        config = load_config(path, ["training.epochs=2"])
        train(config)
        found.append(config.run_dir)
    assert_same(weights(found[0]), weights(found[1]))
    metrics = [json.loads(line) for line in (found[0] / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in metrics if "loss" in row)
    prediction = load(found[0], device="cpu")(tmp_path / "a/val/images/0.tif")
    assert np.isfinite(prediction.confidence["leaf"][40:, 40:]).all()


@pytest.mark.parametrize(("channels", "extra"), [(1, ""), (4, ", rgb: [3, 2, 1]"), (4, ", rgb: []")])
def test_a_dry_run_with_any_number_of_bands(tmp_path, channels, extra):
    path = write_deciding_band(tmp_path, images=4, channels=channels)
    write_config(path, channels, [2000.0] * channels, [1000.0] * channels, extra)
    auto = ["training.batch_size=auto", "training.val_batch_size=auto", "training.freeze=1", "training.layer_decay=0.9"]
    found = dry_run(load_config(path, [*auto, "transform.color_jitter=0.3"]))
    assert found["batch_size"] >= 1 and found["val_batch_size"] == 1


def test_a_run_for_rgb_starts_one_for_bands(tmp_path):
    path = write_deciding_band(tmp_path, images=4)
    document = yaml.safe_load(path.read_text())
    document["dataset"] = {"train": "train", "val": "val"}
    (tmp_path / "rgb.yaml").write_text(yaml.safe_dump(document))
    rgb = save_untrained(tmp_path / "rgb.yaml", [])
    config = load_config(path, [f"init_from={rgb.run_dir}"])
    state = prepare(config).model.state_dict()
    source = load_file(rgb.run_dir / "best/model.safetensors")
    stem = source.pop("backbone.stages.0.0.weight")
    for name, value in source.items():
        assert name in ("mean", "std") or torch.equal(state[name], value), name
    convolution = torch.nn.Conv2d(3, 8, 7)
    convolution.weight = torch.nn.Parameter(stem)
    adapt_stem(convolution, 5, (0, 1, 2))
    assert torch.equal(state["backbone.stages.0.0.weight"], convolution.weight)
    assert state["mean"].flatten().tolist() == pytest.approx(config.dataset.mean)
    save_untrained(path, ["output.name=five"])
    with pytest.raises(UsageError, match="was trained on images of 5 bands; set dataset.channels to that"):
        prepare(load_config(tmp_path / "rgb.yaml", [f"init_from={tmp_path / 'runs/five'}"]))


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_data_stats_prints_lines_that_complete_the_config(run, tmp_path):
    path = write_deciding_band(tmp_path, images=3)
    images = [tifffile.imread(image) for image in sorted((tmp_path / "train/images").iterdir())]
    expected = numpy_moments(images)
    text = "dataset:\n  train: train\n  val: val\n  channels: 5\nclasses: {labels: [field, forest]}\n"
    path.write_text(text)
    with pytest.raises(ConfigError, match="dataset.mean: this key is required with dataset.channels"):
        load_config(path)
    code, out, _ = run("data", "stats", path)
    lines = [line for line in out.splitlines() if line.startswith(("  mean: [", "  std: ["))]
    assert code == 0 and len(lines) == 2
    path.write_text(text.replace("channels: 5\n", "channels: 5\n" + "\n".join(lines) + "\n"))
    config = load_config(path)
    assert config.dataset.mean == pytest.approx(expected.mean.tolist(), rel=1e-6)
    assert config.dataset.std == pytest.approx(np.sqrt(expected.squares / expected.count).tolist(), rel=1e-6)
    document = json.loads(run("data", "stats", path, "--json")[1])
    assert document["mean"] == pytest.approx(expected.mean.tolist(), rel=1e-12)


def test_check_and_preview_take_any_bands(run, tmp_path):
    path = write_deciding_band(tmp_path, images=3, extension=".npy")
    code, out, _ = run("data", "check", path)
    assert code == 0 and "warning" not in out and "3 images of 64x64 px" in out
    code, out, _ = run("data", "preview", path, "--augmented", "--out", tmp_path / "p.png")
    assert code == 0 and read(tmp_path / "p.png").shape[1] > 100
    np.save(tmp_path / "val/images/0.npy", np.zeros((SIDE, SIDE, 3), np.uint16))
    code, out, err = run("data", "check", path, "--sheet", tmp_path / "s.png")
    assert code == 3 and "0.npy has 3 bands, expected 5." in out and (tmp_path / "s.png").exists()


def test_sources_have_the_bands_of_the_data_set(tmp_path):
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
        write_deciding_band(tmp_path / name, images=2)
    path = write_config(tmp_path / "c.yaml", 5, [2000.0] * 5, [1000.0] * 5)
    sources = "[{name: north, root: north}, {name: south, root: south}]"
    path.write_text(path.read_text().replace("val: val,", f"val: val, sources: {sources},"))
    config = load_config(path)
    assert [sample.bands.channels for sample in split_samples(config.dataset, "train")] == [5] * 4
    assert dry_run(config)["steps_per_epoch"] == 1


def test_pseudo_labels_and_doctor_take_bands(run, deciding, tmp_path):
    folder = deciding.parent / "runs/bands"
    images = deciding.parent / "val/images"
    assert run("pseudo-label", folder, images, "--out", tmp_path / "masks", "--confidence", "0.5")[0] == 0
    mask = read(tmp_path / "masks/0.png")
    assert (mask == read(deciding.parent / "val/masks/0.png")).mean() > 0.8
    assert "images/s of 64x64 px" in run("doctor", deciding)[1]
