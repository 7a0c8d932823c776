"""`seghiero export`: the table for people and the document for programs."""

from __future__ import annotations

import json

from seghiero_core.export import single_file

ROW = {
    "path": "long-" * 20 + "a.onnx",
    "checkpoint": "runs/a/best",
    "opset": 20,
    "precision": "int8",
    "input": "uint8",
    "outputs": ["ids_leaf", "confidence_leaf"],
    "mib": 1.5,
    "max_abs_error": 1e-5,
    "max_abs_logit": 7.0,
    "argmax_agreement": 0.9999,
    "argmax_agreement_by_level": {"leaf": 0.9999, "level1": 1.0},
    "parity_images": "validation",
    "miou_fp32": 0.5,
    "miou_int8": 0.495,
    "miou_images": 12,
}


def test_the_table_has_names_for_people_and_the_path_is_whole(run, tiny_run, monkeypatch):
    monkeypatch.setattr(single_file, "export_checkpoint", lambda *_, **__: dict(ROW))
    code, out, err = run("export", tiny_run)
    assert code == 0, err
    assert f"Wrote {ROW['path']}\n" in out
    assert not [key for key in ROW if "_" in key and key in out]
    cells = dict(line.strip().split("  ", 1) for line in out.splitlines() if "  " in line.strip())
    expected = {
        "largest difference of logits": "1e-05",
        "same class as PyTorch": "99.9900 %",
        "level1": "100.0000 %",
        "leaf mIoU in 8 bits": "49.50 %",
        "images for mIoU": "12",
    }
    assert {name: cells[name].strip() for name in expected} == expected
    assert json.loads(run("export", tiny_run, "--json")[1]) == ROW
