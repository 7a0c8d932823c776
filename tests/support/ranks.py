"""`seghiero train` as a script: `torchrun --nproc-per-node 2 tests/support/ranks.py CFG [KEY=VALUE...]`."""

from __future__ import annotations

import sys

import support.tiny  # noqa: F401 (registers the backbone "tiny")
from seghiero_cli.main import main

cfg, *overrides = sys.argv[1:]
sys.argv = ["seghiero", "train", cfg, *(word for override in overrides for word in ("--set", override))]
main()
