"""What a run may do without: freezing, layer decay, skipped steps, batch_size: auto, trackers, dry runs, doctor."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from seghiero_core.config.loading import load_config
from seghiero_core.config.schema import TrainingConfig
from seghiero_core.errors import DeviceError, UsageError
from seghiero_core.losses.combine import HierarchicalLoss
from seghiero_core.model.factories import build_model, create_backbone
from seghiero_core.training import bad_steps, batch_size, trackers
from seghiero_core.training.dry_run import dry_run
from seghiero_core.training.freezing import backbone_stages, freeze, set_training_mode
from seghiero_core.training.loop import train
from seghiero_core.training.optimizer import make_optimizer
from seghiero_core.training.run import Run, prepare


def expected_stage(name):
    """From the names of the built-in backbones; the code under test looks at the graph and knows none."""
    if name.startswith(("conv1", "bn1", "stem")):
        return 1
    kind, number = name.replace("layer", "layer.").split(".")[:2]
    return int(number) + (kind == "stages")


@pytest.mark.parametrize(
    "section",
    [
        {"type": "resnet", "depth": 18},
        {"type": "segformer", "variant": "mit-b0", "gradient_checkpointing": True},
        {"type": "convnext", "variant": "tiny"},
    ],
    ids=lambda section: section["type"],
)
def test_stages_are_read_off_the_graph(section):
    backbone = create_backbone({"backbone": section}).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    stages = backbone_stages(backbone)
    assert stages == {name: expected_stage(name) for name, _ in backbone.named_parameters()}
    assert all(module.training for module in backbone.modules())
    assert all(tensor.equal(before[name]) for name, tensor in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize("how", [2, "backbone"])
def test_frozen_stages_learn_nothing_and_keep_their_statistics(small, how):
    options = [f"training.freeze={how}", "training.epochs=1"]
    config = load_config(small, options)
    torch.manual_seed(config.training.seed)
    start = prepare(config).model.state_dict()
    start = {name: tensor.clone() for name, tensor in start.items()}
    train(config)
    end = load_file(config.run_dir / "last/model.safetensors")
    frozen = ("bn1", "conv1", "layer1", "layer2") if how == 2 else ("",)
    for name, tensor in end.items():
        if name.startswith(tuple(f"backbone.{part}" for part in frozen)):
            assert tensor.equal(start[name]), name
        elif name.endswith(("weight", "running_mean")):
            assert not tensor.equal(start[name]), name


def test_freeze_norm_keeps_statistics_and_trains_weights(small):
    config = load_config(small, ["training.freeze_norm=true", "training.epochs=1"])
    start = {name: tensor.clone() for name, tensor in prepare(config).model.state_dict().items()}
    train(config)
    end = load_file(config.run_dir / "last/model.safetensors")
    assert end["backbone.bn1.running_mean"].equal(start["backbone.bn1.running_mean"])
    assert not end["backbone.bn1.weight"].equal(start["backbone.bn1.weight"])


def test_training_mode_without_freezing_is_that_of_pytorch():
    model = nn.ModuleDict({"backbone": nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout())}).eval()
    freeze(model, 0)
    set_training_mode(model, freeze_norm=False)
    assert all(module.training for module in model.modules())
    freeze(model, "backbone")
    set_training_mode(model, freeze_norm=False)
    assert not any(module.training for module in model["backbone"].modules())


def test_every_stage_learns_at_a_share_of_the_next_ones_rate():
    sections = {"backbone": {"type": "resnet", "depth": 18}, "head": {"type": "extremely_fast_segformer"}}
    model = build_model(sections, 3, embedding=False)
    training = TrainingConfig(lr=1.0, layer_decay=0.5)
    rates = {p: g["lr"] for g in make_optimizer(model, training, pretrained=True).param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        if name.startswith("backbone."):
            stage = expected_stage(name.removeprefix("backbone."))
            assert rates[parameter] == pytest.approx(0.1 * 0.5 ** (4 - stage)), name
        else:
            assert rates[parameter] == 1.0, name


@pytest.fixture
def poisoned(monkeypatch):
    """`poisoned(steps)`: the loss of these steps (from 0) is made NaN by its term `marginal_cross_entropy`."""
    call, count = HierarchicalLoss.__call__, iter(range(10**6))

    def poison(steps):
        def spoiled(self, *arguments):
            total, terms = call(self, *arguments)
            if next(count) in steps:
                terms["marginal_cross_entropy"] = total.detach() * math.nan
                total = total * math.nan
            return total, terms

        monkeypatch.setattr(HierarchicalLoss, "__call__", spoiled)

    return poison


def test_a_bad_step_is_skipped_and_told(small, poisoned):
    poisoned({1})
    config = load_config(small, ["training.batch_size=1", "training.epochs=1", "training.ema=0.5"])
    events = []
    train(config, notify=events.append)
    warnings = [event["text"] for event in events if event["event"] == "warning"]
    assert warnings == ["step 1 was skipped: loss term marginal_cross_entropy is not finite (1 of 10)."]
    records = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record.get("loss") is None for record in records] == [False, True, False, False, True]
    assert all(tensor.isfinite().all() for tensor in load_file(config.run_dir / "last/model.safetensors").values())
    assert not (config.run_dir / "bad_batch.json").exists()


def test_a_bad_step_leaves_no_trace_in_the_statistics(small, monkeypatch):
    from seghiero_core.training import loop as module

    batches = module.batches

    def one_infinite(loader):
        for number, batch in enumerate(batches(loader)):
            if number == 1:
                batch["image"] = batch["image"].float()
                batch["image"][0, 0, 0, 0] = math.inf
            yield batch

    monkeypatch.setattr(module, "batches", one_infinite)
    config = load_config(small, ["training.batch_size=1", "training.epochs=1"])
    train(config)
    tensors = load_file(config.run_dir / "last/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert {int(value) for name, value in tensors.items() if name.endswith("num_batches_tracked")} == {3}


def test_too_many_bad_steps_stop_the_run_and_name_the_batch(small, poisoned):
    poisoned({4, 6, 7})
    config = load_config(small, ["training.batch_size=1", "training.max_bad_steps=3", "training.epochs=3"])
    with pytest.raises(DeviceError, match="cross_entropy is not finite at step 7.*first, at step 4") as caught:
        train(config)
    assert caught.value.exit_code == 4
    document = json.loads((config.run_dir / "bad_batch.json").read_text())
    assert document["first"] == {"step": 4, "what": "loss term marginal_cross_entropy is not finite"}
    (batch,) = document["batches"]
    assert batch["terms"].pop("marginal_cross_entropy") == "nan"
    assert all(math.isfinite(value) for value in batch["terms"].values())
    (image,) = batch["images"]
    assert image in {str(small.parent / f"train/images/{i}.png") for i in range(4)}


class Scaler:
    def __init__(self, scale):
        self.scale = scale

    def get_scale(self):
        return self.scale


@pytest.mark.parametrize(
    ("loss", "norm", "scale", "bad"),
    [
        (1.0, 1.0, None, False),
        (1.0, math.inf, None, True),
        (math.nan, 1.0, None, True),
        (1.0, math.inf, 65536.0, False),  # the scaler looks for its scale
        (1.0, math.nan, 0.5, True),  # and has found none
        (math.inf, math.inf, 65536.0, True),
    ],
)
def test_steps_that_the_gradient_scaler_skips_by_itself_are_not_bad(small, loss, norm, scale, bad):
    run = prepare(load_config(small))
    run.accelerator.scaler = None if scale is None else Scaler(scale)
    passes = [(torch.tensor([0]), {"a": torch.tensor(loss)})]
    assert bad_steps.is_bad(run, passes, norm) == bad


@pytest.mark.parametrize(("room", "expected"), [(0, 0), (1, 1), (5, 4), (8, 8), (100, 16)])
def test_the_largest_power_of_two_that_fits(room, expected):
    tried = []
    assert batch_size.largest_batch(lambda n: tried.append(n) or n <= room, most=30) == expected
    assert tried == [1, 2, 4, 8, 16][: len(tried)]


def test_batch_size_auto_changes_nothing_but_the_batch_size(small, monkeypatch):
    whole = load_config(small, ["training.batch_size=2", "output.name=whole", "training.epochs=1"])
    train(whole)
    config = load_config(small, ["training.batch_size=auto", "training.epochs=1"])
    monkeypatch.setattr(batch_size, "available_bytes", lambda: 2**40)
    assert prepare(config).config.training.batch_size == 4  # as many as there are images
    per_image = []
    kept = batch_size._kept_for_backward
    monkeypatch.setattr(batch_size, "_kept_for_backward", lambda step: per_image.append(kept(step) / 2) or kept(step))
    prepare(config)
    static = sum(batch_size.static_mib(prepare(config).model, ema=False).values()) * 2**20
    room = static + 3 * per_image[0] * batch_size.ALLOCATOR
    monkeypatch.setattr(batch_size, "available_bytes", lambda: int(room / batch_size.SHARE))
    train(config)
    assert load_config(config.run_dir / "config.yaml").training.batch_size == 2
    a, b = (load_file(run / "last/model.safetensors") for run in (whole.run_dir, config.run_dir))
    assert all(torch.equal(a[name], b[name]) for name in a)
    monkeypatch.setattr(batch_size, "available_bytes", lambda: 2**40)
    longer = load_config(small, ["training.batch_size=auto", "training.epochs=2"])
    train(longer, resume=True)  # goes on with the size that it began with
    assert load_config(config.run_dir / "config.yaml").training.batch_size == 2
    monkeypatch.setattr(batch_size, "available_bytes", lambda: 2**20)
    with pytest.raises(DeviceError, match="ran out of memory with batches of 1: weights .*gradient_checkpointing"):
        prepare(config)


def test_what_a_step_keeps_is_counted():
    layer = nn.Linear(256, 256, bias=False)
    x = torch.randn(64, 256)
    kept = batch_size._kept_for_backward(lambda: layer(layer(x).relu()).sum().backward())
    weights, activation = layer.weight.nbytes, x.nbytes
    assert kept == weights + 2 * activation  # the weight once, the input, and relu's output for both that need it


def advice(run: Run) -> str:
    return str(batch_size.out_of_memory(run.config, run.model, run.accelerator.device))


def test_advice_for_too_little_memory_comes_in_order_and_leaves_out_what_is_done(small, monkeypatch):
    run = prepare(load_config(small, ["head.type=aspp", "training.precision=fp32"]))
    text = advice(run)
    order = ["gradient_checkpointing: true", "precision: bf16", "batch_size: 1 with", "lighter head", "transform.size"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    weights = sum(t.nbytes for t in run.model.state_dict().values()) / 2**20
    assert f"weights {weights:.0f} MiB" in text
    run = prepare(load_config(small, ["backbone.gradient_checkpointing=true", "training.precision=bf16"]))
    assert "gradient_checkpointing" not in advice(run)
    assert "bf16" not in advice(run)

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(HierarchicalLoss, "__call__", no_memory)
    with pytest.raises(DeviceError, match="ran out of memory with batches of 2: weights"):
        train(load_config(small))


def test_a_dry_run_tells_and_writes_nothing(small, run):
    before = sorted(small.parent.rglob("*"))
    code, out, err = run("train", small, "--dry-run", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["batch_size"] == 2
    assert facts["steps_per_epoch"] == 2
    assert 0 < facts["seconds_per_step"] * 4 < facts["seconds"]
    assert facts["seconds_per_epoch"] == pytest.approx(facts["seconds"] / 2)
    assert facts["memory_mib"]["peak"] > facts["memory_mib"]["weights"] > 40
    code, out, _ = run("train", small, "--dry-run")
    assert code == 0
    assert "per epoch of 2 steps" in out
    assert sorted(small.parent.rglob("*")) == before


def test_a_dry_run_leaves_a_run_that_exists_alone(small):
    train(load_config(small, ["training.epochs=1"]))
    before = {path: path.stat().st_mtime_ns for path in small.parent.rglob("*")}
    dry_run(load_config(small), force=True)
    assert {path: path.stat().st_mtime_ns for path in small.parent.rglob("*")} == before


def test_a_tracker_that_is_missing_names_its_extra(small, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"wandb isn't installed here; `pip install 'seghiero\[wandb\]'`"):
        train(load_config(small, ["training.trackers=[wandb]"]))
    with pytest.raises(UsageError, match="training.trackers"):
        load_config(small, ["training.trackers=[abacus]"])


@pytest.mark.filterwarnings("default")  # TensorBoard's own imports warn
def test_tensorboard_gets_what_metrics_jsonl_has(small):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = load_config(small, ["training.trackers=[tensorboard]"])
    train(config)
    records = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["event"] == "step"]
    events = EventAccumulator(str(config.run_dir / "seghiero")).Reload()
    found = [(scalar.step, scalar.value) for scalar in events.Scalars("train/loss")]
    assert found == [(record["step"], pytest.approx(record["loss"])) for record in steps]
    last = [record for record in records if record["event"] == "validation"][-1]
    assert events.Scalars("val/mean_miou")[-1].value == pytest.approx(last["metrics"]["mean_miou"])


def test_doctor_finds_this_machine_fit_and_names_what_is_not(small, run):
    code, out, err = run("doctor", small, "--json")
    findings = {finding["name"]: finding for finding in json.loads(out)}
    assert findings["torch"]["found"] == torch.__version__.partition("+")[0]
    assert "images/s of 48x64 px" in findings["loader"]["found"]
    assert code == (5 if any(finding["advice"] for finding in findings.values()) else 0), err
    (small.parent / "train/masks/1.png").unlink()
    code, out, err = run("doctor", small)
    assert code == 5
    assert "FIX  loader" in out
    assert "loader" in err
    assert not (small.parent / "runs").exists()


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(small):
    plain = train(load_config(small, ["training.epochs=1", "output.name=plain"]))
    compiled = train(load_config(small, ["training.epochs=1", "training.compile=true"]))
    assert compiled["metrics"]["mean_miou"] == pytest.approx(plain["metrics"]["mean_miou"], abs=0.05)
    a, b = (load_file(small.parent / f"runs/{name}/last/model.safetensors") for name in ("plain", "small"))
    assert a.keys() == b.keys()
    for name in a:
        if "running_" not in name:  # those of the last stage come from a few values, and magnify rounding
            torch.testing.assert_close(a[name], b[name], atol=5e-3, rtol=5e-2)
