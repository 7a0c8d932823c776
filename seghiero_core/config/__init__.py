"""The config of a run: the schema of its YAML file, and loading it."""

from seghiero_core.config.loading import load_config, parse_config
from seghiero_core.config.schema import Config

__all__ = ["Config", "load_config", "parse_config"]
