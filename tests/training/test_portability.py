"""What Windows lacks is imported by no module when it is loaded."""

from __future__ import annotations

import subprocess
import sys

from support.processes import ENVIRONMENT, ROOT

# The libraries come first: on Linux some of them do need these modules, and only ours are under test.
SCRIPT = """
import importlib, sys
import accelerate, huggingface_hub, matplotlib.figure, psutil, rich.live, timm, torch, torchvision.transforms.v2
import torch.distributed.checkpoint, torch.utils.data, transformers.utils, typer
modules = sys.argv[1:]
for missing in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[missing] = None
for module in modules:
    importlib.import_module(module)
print(len(modules))
"""


def test_every_module_can_be_imported_without_what_only_posix_has():
    paths = [path for name in ("seghiero_core", "seghiero_cli") for path in (ROOT / name).rglob("*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    modules = sorted(name.removesuffix(".__init__") for name in names if not name.endswith("__main__"))
    words = [sys.executable, "-c", SCRIPT, *modules]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == len(modules) > 100
