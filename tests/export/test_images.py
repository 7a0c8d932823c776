"""Exporting where the data set of the run isn't."""

from __future__ import annotations

import json
import shutil

from support.tiny import TINY, save_untrained


def test_without_the_data_set(starter_folder, run_export, tmp_path):
    """Parity is then measured on random images, and 8-bit export isn't possible."""
    shutil.copytree(starter_folder / "data", tmp_path / "moved" / "data")
    shutil.copy(starter_folder / "cfg.yaml", tmp_path / "moved" / "cfg.yaml")
    run = save_untrained(tmp_path / "moved" / "cfg.yaml", TINY).run_dir
    shutil.rmtree(tmp_path / "moved" / "data")
    code, out, err = run_export("--json", checkpoint=run)
    assert code == 0 and json.loads(out)["parity_images"] == "random"
    assert "warning: compared on random images" in err and "--set dataset.root=FOLDER" in err
    code, _, err = run_export("--int8", checkpoint=run)
    assert code == 3 and "calibrated" in err and str(tmp_path / "moved" / "data") in err
