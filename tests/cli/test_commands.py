"""The command line as a user meets it: shapes of output, exit codes, messages, and how fast it starts."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time

import pytest
from PIL import Image

from support.processes import ENVIRONMENT

TYPER_ALONE = "import typer; app = typer.Typer(); app.command()(lambda: None); app(['--help'])"


def seghiero(*words, cwd=None, **variables):
    environment = ENVIRONMENT | variables
    return subprocess.run(
        [sys.executable, "-m", "seghiero_cli", *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_channels_equal_the_guide(tmp_path):
    rows = json.loads(seghiero("channels", "--json", cwd=tmp_path).stdout)
    table = {(row["type"], row.get("depth", row.get("variant"))): row["channels"] for row in rows}
    wide, narrow = [256, 512, 1024, 2048], [64, 128, 256, 512]
    assert table == {
        **{("resnet", depth): narrow for depth in (18, 34)},
        **{("resnet", depth): wide for depth in (50, 101, 152)},
        ("convnext", "tiny"): [96, 192, 384, 768],
        ("convnext", "small"): [96, 192, 384, 768],
        ("convnext", "base"): [128, 256, 512, 1024],
        ("convnext", "large"): [192, 384, 768, 1536],
        ("convnext", "xlarge"): wide,
        ("segformer", "mit-b0"): [32, 64, 160, 256],
        **{("segformer", f"mit-b{i}"): [64, 128, 320, 512] for i in range(1, 6)},
    }
    assert all(row["strides"] == [4, 8, 16, 32] for row in rows)


def test_channels_of_a_config_follow_its_output_stride(run, small):
    small.write_text(small.read_text().replace("depth: 18", "depth: 50, output_stride: 8"))
    code, out, _ = run("channels", "--config", small, "--json")
    assert code == 0
    assert json.loads(out) == [
        {"type": "resnet", "depth": 50, "channels": [256, 512, 1024, 2048], "strides": [4, 8, 8, 8]}
    ]


def test_channels_verify_compares_with_a_real_forward(run):
    code, out, _ = run("channels", "resnet", "--depth", "18", "--verify", "--json")
    assert code == 0
    assert json.loads(out)[0]["verified"] is True


def test_list_backbones_names_variants_and_weights(tmp_path):
    entries = {entry["type"]: entry for entry in json.loads(seghiero("list-backbones", "--json", cwd=tmp_path).stdout)}
    assert sorted(entries) == ["convnext", "resnet", "segformer"]
    assert sum(len(entry["variants"]) for entry in entries.values()) == 16
    assert all(entry["weights"][variant] for entry in entries.values() for variant in entry["variants"])


def test_list_heads_names_four(run):
    code, out, _ = run("list-heads", "--json")
    assert code == 0
    heads = {entry["type"]: entry["proj_dim"] for entry in json.loads(out)}
    assert heads == {"aspp": 256, "segformer": 256, "ultrafast_segformer": 128, "extremely_fast_segformer": 64}


@pytest.mark.parametrize(
    "words", [["--help"], ["list-backbones"], ["list-heads"], ["channels"], ["train", "--help"], ["eval", "--help"]]
)
def test_listing_never_imports_torch(words, tmp_path):
    code = (
        f"import sys, runpy; sys.argv = ['seghiero', *{words}]\n"
        "try: runpy.run_module('seghiero_cli', run_name='__main__')\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "assert not {'torch', 'timm', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_start_up_time_is_near_bare_typer(tmp_path):
    """Within 1.5x for --help and 2x for the others; medians of interleaved runs, because machines are noisy."""
    commands = {"bare": [sys.executable, "-c", TYPER_ALONE]}
    for words in (["--help"], ["list-backbones"], ["list-heads"], ["channels"]):
        commands[words[0]] = [sys.executable, "-m", "seghiero_cli", *words]
    seconds = {name: [] for name in commands}
    for _ in range(15):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
            seconds[name].append(time.perf_counter() - started)
    ratio = {name: statistics.median(times) / statistics.median(seconds["bare"]) for name, times in seconds.items()}
    print(ratio)
    assert ratio["--help"] <= 1.5
    assert max(ratio.values()) <= 2.0


@pytest.mark.parametrize(
    "command",
    ["train", "eval", "predict", "export", "list-backbones", "list-heads", "channels", "init", "demo"]
    + ["scaffold-backbone", "scaffold-head"],
)
def test_every_help_ends_with_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: seghiero {command}" in out


def damage(small, what):
    """Break the data of `small` and return (exit code, what the message must hold)."""
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
        ("training.device=cuda:7", 4, "cuda:7 was asked for"),
        ("training.device=tpu", 2, "cuda:N or mps, found 'tpu'"),
        ("training.monitor=level9", 2, "training.monitor: there is no 'level9'"),
        ("backbone={type: resnet, depth: 18, pretrained: nowhere.pth}", 4, "nowhere.pth"),
        ("training.precision=fp16", 4, "fp16 needs a GPU"),
        ("loss={preset: marginl}", 2, "Did you mean 'marginal'?"),
    ],
)
def test_what_cannot_be_had_stops_the_run(run, small, override, expected, part):
    code, _, err = run("train", small, "--set", override)
    assert (code, part in err, "Traceback" in err) == (expected, True, False), err
    assert not (small.parent / "runs").exists()


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


def test_unknown_run_is_a_usage_error(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("eval", "nothing-here")
    assert (code, "nothing-here: there is no such run" in err) == (2, True)
    code, _, err = run("eval")
    assert (code, "no run under" in err) == (2, True)


def test_only_the_weights_themselves_stand_for_their_checkpoint(tiny_run):
    from seghiero_core.checkpoint import find_checkpoint
    from seghiero_core.errors import UsageError

    best = tiny_run / "best"
    assert find_checkpoint(best / "model.safetensors") == best
    with pytest.raises(UsageError, match="training.safetensors is no checkpoint"):
        find_checkpoint(best / "training.safetensors")


def test_channels_of_a_depth_or_variant_of_any_backbone(run):
    code, out, _ = run("channels", "--depth", "50", "--json")
    assert code == 0
    assert [(row["type"], row["depth"]) for row in json.loads(out)] == [("resnet", 50)]
    code, out, _ = run("channels", "--variant", "mit-b0", "--json")
    assert [(row["type"], row["variant"]) for row in json.loads(out)] == [("segformer", "mit-b0")]
    for words, part in (
        (["--depth", "51"], "no backbone has the depth '51'. Known: 18, 34"),
        (["--depth", "50", "--variant", "tiny"], "give one of them"),
        (["convnext", "--depth", "50"], "chosen by --variant"),
    ):
        code, _, err = run("channels", *words)
        assert (code, part in err) == (2, True), err


CPU_MEMORY = "[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.mark.parametrize("command", ["eval", "predict"])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_too_little_memory_is_one_message_with_options_that_the_command_has(
    run, tiny_run, starter_folder, tmp_path, monkeypatch, command, on_gpu
):
    import torch

    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.") if on_gpu else RuntimeError(CPU_MEMORY)

    monkeypatch.setattr("seghiero_core.model.segmentation.SegmentationModel.forward", no_memory)
    image = next((starter_folder / "data/val/images").iterdir())
    words = [image, "--out", tmp_path] if command == "predict" else []
    code, out, err = run(command, tiny_run, *words, "--device", "cpu")
    assert (code, out) == (4, "") and len(err.splitlines()) == 1 and "ran out of memory" in err
    _, help_text, _ = run(command, "--help")
    options = re.findall(r"--[a-z-]+", err)
    assert "--batch-size" in options and ("--device" in options) == on_gpu
    assert all(option in help_text for option in options)


def test_other_runtime_errors_keep_their_traceback(tiny_run, monkeypatch):
    from seghiero_cli import main

    def fault(*_, **__):
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr("seghiero_core.model.segmentation.SegmentationModel.forward", fault)
    monkeypatch.setattr("sys.argv", ["seghiero", "eval", str(tiny_run), "--device", "cpu"])
    with pytest.raises(RuntimeError, match="a fault of the program"):
        main.main()


def test_version(run):
    from seghiero_core.version import __version__

    assert run("--version") == (0, f"{__version__}\n", "")


def test_debug_shows_the_traceback(small):
    done = seghiero("--debug", "train", small, "--set", "training.device=tpu")
    assert "Traceback" in done.stderr
