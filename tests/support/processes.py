"""Where the checkout is, and the environment of the processes that a test starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

# One thread, so that two processes don't wait for each other; `support` can be imported, as it can here.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")])),
}


def seghiero(*words: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own, with environment `variables` added."""
    return subprocess.run(
        [sys.executable, "-m", "seghiero_cli", *map(str, words)],
        cwd=cwd,
        env=ENVIRONMENT | variables,
        capture_output=True,
        text=True,
    )


def torchrun(
    cfg: object, *options: object, script: str = "ranks.py", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder in two processes that work together, with environment `variables` added."""
    words = [*TORCHRUN, SUPPORT / script, cfg, *options]
    return subprocess.run(words, env=ENVIRONMENT | variables, capture_output=True, text=True, timeout=300)


def leave_processes() -> NoReturn:
    """End a process of torchrun whose checks have passed.

    Python's own end would destroy what still refers to the process group; there gloo aborts one process in thirty.
    """
    import torch.distributed

    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)
