"""The face of the package: public names are there, and torch is imported only when one of them is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import seghiero_core


def test_public_names_are_listed_and_resolve():
    assert set(seghiero_core.__all__) <= set(dir(seghiero_core))
    assert all(getattr(seghiero_core, name) for name in seghiero_core.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Hierarchie'"):
        seghiero_core.Hierarchie  # noqa: B018


@pytest.mark.parametrize(
    ("code", "imported"),
    [
        ("import seghiero_core; dir(seghiero_core); seghiero_core.__version__", False),
        ("from seghiero_core import Hierarchy", False),
        ("import seghiero_core.registry, seghiero_core.plugins, seghiero_core.checkpoint", False),
        ("from seghiero_core import Metrics", True),
    ],
)
def test_torch_is_imported_only_when_needed(code, imported):
    done = subprocess.run([sys.executable, "-c", f"{code}\nimport sys; sys.exit('torch' in sys.modules)"], timeout=120)
    assert done.returncode == imported
