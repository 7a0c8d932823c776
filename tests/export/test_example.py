"""The example of docs/api.md is complete: onnxruntime, NumPy and Pillow are enough for it."""

from __future__ import annotations

import re
import subprocess
import sys

from seghiero_core import load
from support.masks import LEVELS
from support.processes import ENVIRONMENT, ROOT


def test_the_onnxruntime_example_runs_on_its_own(project_folder):
    """It prints the classes of the upper left pixel, as `load` finds them."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "api.md").read_text(), flags=re.M | re.S)
    (example,) = [block for block in blocks if "onnxruntime" in block]
    code = example + "import sys; assert not {'torch', 'seghiero_core'} & set(sys.modules)\n"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, env=ENVIRONMENT, cwd=project_folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predictor = load(project_folder / "my-project/runs/demo/model.onnx", device="cpu")
    ids = predictor(project_folder / "street.jpg").ids
    names = [predictor.hierarchy.level_names(i)[ids[level][0, 0]] for i, level in enumerate(LEVELS)]
    assert done.stdout.splitlines() == [f"{level} {name}" for level, name in zip(LEVELS, names, strict=True)]
