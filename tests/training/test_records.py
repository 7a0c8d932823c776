"""metrics.jsonl after kills and resumes: every step once, and every line a document."""

from __future__ import annotations

import json

import pytest

from seghiero_core.config.loading import load_config
from seghiero_core.training.interrupts import Interrupted
from seghiero_core.training.loop import train
from support.runs import StopAt, records
from support.tiny import TINY


@pytest.fixture
def stopped(small):
    """The config of a run of four steps that stopped after the first, and that is like one in `whole`."""
    options = [*TINY, "training.epochs=2"]
    train(load_config(small, [*options, "output.name=whole"]))
    config = load_config(small, options)
    with pytest.raises(Interrupted):
        train(config, notify=StopAt(1))
    return config


def test_steps_after_the_last_checkpoint_and_a_torn_line_are_written_anew(stopped):
    path = stopped.run_dir / "metrics.jsonl"
    first = json.loads(path.read_text())
    later = [json.dumps(first | {"step": step}) for step in (2, 3)]  # made, and lost with the process
    path.write_text("\n".join([json.dumps(first), *later, json.dumps(first | {"step": 4})[:40]]))
    train(stopped, resume=True)
    assert records(stopped.run_dir) == records(stopped.run_dir.with_name("whole"))


def test_a_line_without_its_end_stays_a_line(stopped):
    path = stopped.run_dir / "metrics.jsonl"
    path.write_text(path.read_text().rstrip())
    train(stopped, resume=True)
    assert records(stopped.run_dir) == records(stopped.run_dir.with_name("whole"))


def test_a_run_that_starts_anew_keeps_no_records(small):
    config = load_config(small, [*TINY, "training.epochs=1"])
    train(config)
    expected = records(config.run_dir)
    for link in ("best", "last"):
        (config.run_dir / link).unlink()
    for folder in (config.run_dir / "checkpoints").iterdir():
        folder.rename(small.parent / folder.name)
    train(config, resume=True)
    assert records(config.run_dir) == expected


def test_epochs_count_from_one_everywhere(small, run):
    config = load_config(small, TINY)
    events = []
    train(config, notify=events.append)
    assert [event["epoch"] for event in events if "epoch" in event and event["event"] != "end"] == [1, 1, 1, 2, 2, 2]
    assert [row["epoch"] for row in records(config.run_dir)] == [1, 1, 1, 2, 2, 2]
    assert json.loads((config.run_dir / "last/metrics.json").read_text())["epoch"] == 2
    assert events[-1]["epoch"] == 2
    words = [word for option in TINY for word in ("--set", option)]
    code, _, err = run("train", small, *words, "--force")
    assert code == 0 and "epoch 2/2 step 2/2" in err and "after epoch 2" in err and "epoch 1/2: leaf" in err


def test_the_logged_loss_is_the_sum_of_the_shares_of_the_batches_of_the_step(small, monkeypatch):
    from seghiero_core.losses.combine import HierarchicalLoss

    seen, call = [], HierarchicalLoss.__call__

    def keep(self, *arguments, **options):
        total, terms = call(self, *arguments, **options)
        seen.append({"loss": float(total.detach()), **{name: float(value) for name, value in terms.items()}})
        return total, terms

    monkeypatch.setattr(HierarchicalLoss, "__call__", keep)
    config = load_config(
        small, [*TINY, "training.batch_size=1", "training.gradient_accumulation=4", "training.epochs=1"]
    )
    train(config)
    (step, _) = records(config.run_dir)
    assert len(seen) == 4
    total = {name: sum(row[name] for row in seen) for name in seen[0]}
    assert {"loss": step["loss"], **step["terms"]} == pytest.approx(total, rel=1e-6)
    assert abs(step["loss"] - 4 * seen[-1]["loss"]) > 1e-4
