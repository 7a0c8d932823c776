"""Options of `seghiero export` that don't exist or don't fit."""

from __future__ import annotations

import pytest

from support.tiny import TINY, save_untrained


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--opset", "12"], "--opset: unknown value '12'. Known: 18, 19, 20"),
        (["--opset", "0"], "--opset: unknown value '0'. Did you mean '20'? Known: 18, 19, 20"),
        (["--fp16", "--int8"], "not both"),
        (["--input", "uint16"], "Did you mean 'uint8'"),
        (["--outputs", "mask"], "Did you mean 'masks'"),
        (["--decode", "leave"], "Did you mean 'leaf'"),
    ],
)
def test_unknown_values_write_nothing(run_export, tmp_path, flags, words):
    code, out, err = run_export(*flags)
    assert code == 2 and out == "" and words in err and list(tmp_path.iterdir()) == []


def test_a_decoding_that_does_not_fit_the_scores(starter_folder, run_export):
    overrides = [*TINY, "output.name=sigmoid", "loss={terms: {node_bce: 1}}"]
    run = save_untrained(starter_folder / "cfg.yaml", overrides).run_dir
    code, _, err = run_export("--decode", "expected_cost", checkpoint=run)
    assert code == 2 and "needs a distribution over the leaves" in err
