"""`seghiero train`: bad data and impossible settings stop it with one message before the first step."""

from __future__ import annotations

import json
import shlex
import signal

import pytest
from PIL import Image

from seghiero_core.training import loop
from support.processes import seghiero


def damage(small, what):
    """Damage the data of `small` and return (exit code, parts of the message)."""
    folder = small.parent
    mask, image = folder / "train/masks/0.png", folder / "train/images/0.png"
    if what == "missing folder":
        (folder / "train/masks").rename(folder / "elsewhere")
        return 3, [str(folder / "train/masks")]
    if what == "empty folder":
        for file in (folder / "val/images").iterdir():
            file.unlink()
        return 3, [str(folder / "val/images")]
    if what == "image without mask":
        mask.unlink()
        return 3, ["no mask", str(image)]
    if what == "strange value":
        with Image.open(mask) as opened:
            copy = opened.copy()
        copy.paste(77, (10, 10, 15, 12))
        copy.save(mask)
        return 3, [str(mask), "77", "10 "]
    if what == "another size":
        Image.new("L", (10, 10)).save(mask)
        return 3, [str(mask), "10"]
    if what == "truncated image":
        Image.effect_noise((64, 48), 60).convert("RGB").save(image.with_suffix(".jpg"))
        image.unlink()
        data = image.with_suffix(".jpg").read_bytes()
        image.with_suffix(".jpg").write_bytes(data[: len(data) // 2])
        return 3, [str(image.with_suffix(".jpg"))]
    raise ValueError(what)


@pytest.mark.parametrize(
    "what",
    ["missing folder", "empty folder", "image without mask", "strange value", "another size", "truncated image"],
)
def test_bad_data_is_one_message_before_the_first_step(run, small, what):
    expected, parts = damage(small, what)
    code, out, err = run("train", small)
    assert code == expected
    assert all(part in err for part in parts), err
    assert "Traceback" not in err
    assert out == ""
    assert not (small.parent / "runs").exists()


@pytest.mark.parametrize(
    ("override", "expected", "part"),
    [
        ("training.device=cuda:7", 4, "device cuda:7 is not available"),
        ("training.device=tpu", 2, "cuda:N or mps, found 'tpu'"),
        ("training.monitor=level9", 2, "training.monitor: unknown metric 'level9'"),
        ("backbone={type: resnet, depth: 18, pretrained: nowhere.pth}", 4, "nowhere.pth"),
        ("training.precision=fp16", 4, "fp16 needs a GPU"),
        ("loss={preset: marginl}", 2, "Did you mean 'marginal'?"),
    ],
)
def test_impossible_settings_stop_the_run(run, small, override, expected, part):
    code, _, err = run("train", small, "--set", override)
    assert (code, part in err, "Traceback" in err) == (expected, True, False), err
    assert not (small.parent / "runs").exists()


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--epochs", "3"], "--set training.epochs=3"),
        (["--epochs=3"], "--set training.epochs=3"),
        (["--batch-size", "4"], "--set training.batch_size=4"),
        (["--training.lr", "0.1"], "--set training.lr=0.1"),
        (["--freeze-norm"], "--set training.freeze_norm=true"),
        (["--type", "x"], "--set dataset.type=x or --set backbone.type=x or --set head.type=x"),
    ],
)
def test_an_option_that_is_a_key_of_the_config_says_how_to_set_it(run, small, words, meant):
    for order in ([small, *words], [*words, small]):
        code, out, err = run("train", *order)
        assert (code, out) == (2, "")
        option = words[0].partition("=")[0]
        assert err == f"error: {option}: train has no such option. Did you mean {meant}?\n"


def test_an_option_that_is_no_key_is_left_to_click(run, small):
    code, _, err = run("train", small, "--sett", "x=1")
    assert code == 2 and "No such option: --sett" in err and "--set" in err


def test_pretrained_without_network_or_cache_stops_and_says_how(small, tmp_path):
    done = seghiero(
        "train",
        small,
        "--set",
        "backbone.pretrained=true",
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HOME=str(tmp_path / "cache"),
    )
    assert done.returncode == 4, done.stderr
    assert "resnet18" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (small.parent / "runs").exists()


def test_a_stopped_run_prints_the_whole_command_to_continue(run, small, monkeypatch):
    def stop_after_a_step(*_, **__):
        signal.raise_signal(signal.SIGINT)
        return False

    monkeypatch.setattr(loop, "is_bad_step", stop_after_a_step)
    words = ["--set", "training.epochs=3", "--set", "head={type: extremely_fast_segformer, proj_dim: 8}"]
    code, out, err = run("--no-plugins", "train", small, *words)
    assert (code, out) == (130, "") and "error:" not in err
    *_, message, command = err.splitlines()
    assert message == "stopped at step 1 of 6; continue with --resume. The command:"
    expected = ["seghiero", "--no-plugins", "train", str(small), *words, "--resume"]
    assert shlex.split(command) == expected


def test_train_says_whether_its_table_is_that_of_the_best(run, small, monkeypatch):
    code, _, err = run("train", small, "--set", "training.epochs=1")
    assert code == 0 and "Last validation, after epoch 1 (the best so far):" in err
    record = json.loads((small.parent / "runs/small/metrics.jsonl").read_text().splitlines()[-1])
    monkeypatch.setattr(loop, "train", lambda *_, **__: record | {"best": False})
    code, _, err = run("train", small, "--set", "training.epochs=1")
    assert code == 0 and "after epoch 1 (not the best, which eval and predict use):" in err
