"""`seghiero export --hf`: the options it refuses. That its folder gives the same logits is tested with `init_from`."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "flags", [["--input", "uint8"], ["--outputs", "masks"], ["--decode", "leaf"], ["--opset", "20"], ["--int8"]]
)
def test_options_of_a_single_file_are_refused(run, tiny_run, tmp_path, flags):
    code, out, err = run("export", tiny_run, "--hf", tmp_path / "hf", *flags)
    assert (code, out) == (2, "") and f"remove {flags[0]}." in err and not (tmp_path / "hf").exists()
