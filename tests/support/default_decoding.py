"""`python default_decoding.py MODE CFG`: train and measure with another default decoding, as if its line were changed.

Prints as JSON: the defaults of functions, classes and options, what the run measured, and what `eval` measures of it.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import sys
from importlib import import_module
from pathlib import Path

from seghiero_core import decode_modes

mode, cfg = sys.argv[1:]
decode_modes.DEFAULT_DECODING = decode_modes.Decoding(mode)  # before anything that reads it is imported

import support.tiny  # noqa: E402, F401 (registers the backbone "tiny")
from seghiero_cli.main import main  # noqa: E402
from seghiero_core import load  # noqa: E402
from seghiero_core.config.loading import load_config  # noqa: E402
from seghiero_core.decode import decode  # noqa: E402
from seghiero_core.evaluation.checkpoint import evaluate_checkpoint  # noqa: E402
from seghiero_core.evaluation.evaluate import evaluate  # noqa: E402
from seghiero_core.export.options import ExportOptions  # noqa: E402
from seghiero_core.model.measuring import count_images  # noqa: E402
from seghiero_core.predict.predictor import Predictor  # noqa: E402
from seghiero_core.training.loop import train  # noqa: E402


def default(function, name):
    return inspect.signature(function).parameters[name].default


def help_of(command):
    sys.argv = ["seghiero", command, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    return " ".join(out.getvalue().replace("│", " ").split())


eval_command = import_module("seghiero_cli.commands.eval")
config = load_config(cfg, [*support.tiny.TINY, "training.epochs=1"])
record = train(config)
run = config.run_dir
image = next(Path(config.dataset.val.images).iterdir())
print(
    json.dumps(
        {
            "modes": [
                default(decode, "mode"),
                default(evaluate_checkpoint, "mode"),
                default(evaluate, "decoding").mode,
                default(count_images, "decoding").mode,
                default(eval_command.evaluate, "decode"),
                ExportOptions().mode,
                default(Predictor, "mode"),
                load(run, device="cpu").mode,
            ],
            "help": [f"{mode}." in help_of(command) for command in ("eval", "predict", "export")],
            "run": record["metrics"],
            "eval": evaluate_checkpoint(run / "best").document,
            "leaf": evaluate_checkpoint(run / "best", mode="leaf").document,
            "predict": bool((load(run)(image).ids["leaf"] == load(run, mode=mode)(image).ids["leaf"]).all()),
        }
    )
)
