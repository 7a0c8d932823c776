"""Hierarchical semantic segmentation: the tree, the networks, the losses, the training loop and the measurements."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`from seghiero_core import load`, without importing torch for those who don't ask for it."""
    if name == "load":
        from seghiero_core.infer import load

        return load
    raise AttributeError(f"module 'seghiero_core' has no attribute '{name}'")
