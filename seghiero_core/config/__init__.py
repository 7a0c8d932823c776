"""The YAML of a run: what it may hold, and reading it."""

from seghiero_core.config.loading import load_config, parse_config
from seghiero_core.config.schema import Config

__all__ = ["Config", "load_config", "parse_config"]
