"""Train or go on training, alone or for torchrun: `python tests/support/resumed.py CFG [KEY=VALUE...]`."""

from __future__ import annotations

import os
import sys

import support.tiny  # noqa: F401 (registers the backbone "tiny")
from seghiero_core.config.loading import load_config
from seghiero_core.training.loop import train

cfg, *overrides = sys.argv[1:]
train(load_config(cfg, overrides), resume=True)
sys.stdout.flush()
os._exit(0)
