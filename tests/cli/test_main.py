"""The program as a whole: help, global options, messages for failures, and how fast it starts."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time

import pytest
import typer

from seghiero_cli.main import app
from support.processes import seghiero

TYPER_ALONE = "import typer; app = typer.Typer(); app.command()(lambda: None); app(['--help'])"


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
    """--help takes at most 1.5x and the others 2x of it; medians of interleaved runs, because machines are noisy."""
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
    lines = [line for line in err.splitlines() if not line.startswith("checkpoint: ")]
    assert (code, out) == (4, "") and len(lines) == 1 and "ran out of memory" in err
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


def all_commands() -> list[tuple[list[str], str]]:
    """Every command as words, with the example that ends its help."""
    found, waiting = [], [([], typer.main.get_command(app))]
    while waiting:
        words, command = waiting.pop()
        found.append((words, command.epilog))
        waiting += [([*words, name], child) for name, child in getattr(command, "commands", {}).items()]
    return found


@pytest.mark.parametrize(("words", "example"), all_commands(), ids=lambda value: " ".join(value))
def test_help_fits_a_terminal_and_its_example_is_one_line(run, words, example, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(*words, "--help")
    lines = [line.strip() for line in out.splitlines()]
    assert code == 0 and example in lines and len(lines) <= 60
    assert max(map(len, out.splitlines())) <= 80


def test_version(run):
    from seghiero_core.version import __version__

    assert run("--version") == (0, f"{__version__}\n", "")


def test_debug_shows_the_traceback(small):
    done = seghiero("--debug", "train", small, "--set", "training.device=tpu")
    assert "Traceback" in done.stderr
