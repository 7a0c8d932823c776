"""The mask-query head: compared with Mask2Former of transformers, and trained with every loss."""

from __future__ import annotations

import json
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import Mask2FormerConfig, Mask2FormerImageProcessor
from transformers.models.mask2former.modeling_mask2former import Mask2FormerTransformerModule

from seghiero_core.config.loading import load_config
from seghiero_core.errors import UsageError
from seghiero_core.export.graph import no_exporter_output
from seghiero_core.export.options import ExportOptions
from seghiero_core.export.single_file import export_checkpoint
from seghiero_core.heads.networks.mask_query import combine
from seghiero_core.heads.networks.query_decoder import QueryDecoder
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.catalog import LOSSES
from seghiero_core.losses.combine import build_loss
from seghiero_core.model.factories import build_model, create_head
from seghiero_core.model.init_from import load_initial_weights
from seghiero_core.training.interrupts import Interrupted
from seghiero_core.training.loop import train
from support.runs import StopAt, assert_same, records, weights
from support.tiny import TINY, save_untrained

CHANNELS = (8, 12, 16, 24)
HEAD = {"type": "mask_query", "proj_dim": 32, "queries": 16}
HIERARCHY = Hierarchy.from_config(
    {"labels": ["sky", "grass", "disc", "ring"], "tree": {"ground": ["sky", "grass"], "round": ["disc", "ring"]}}
)
SMALL_HEAD = [*TINY, f"head={json.dumps(HEAD)}"]


def their_names(name: str) -> list[str]:
    """Ours to theirs: of the decoder's parameters, all of which Mask2Former has."""
    names = {"features": "queries_features", "positions": "queries_embedder", "levels": "level_embed"}
    if name in names:
        return [f"{names[name]}.weight"]
    first, *rest = name.split(".")
    if first == "norm":
        return [f"decoder.layernorm.{rest[0]}"]
    if first == "mask":
        return [f"decoder.mask_predictor.mask_embedder.{int(rest[0]) // 2}.0.{rest[1]}"]
    layer, part, *rest = rest
    if part == "cross" and rest[0] != "out":
        return [f"decoder.layers.{layer}.cross_attn.in_proj_{rest[1]}", rest[0]]
    parts = {
        "cross": "cross_attn.out_proj",
        "self_attention": f"self_attn.{rest[0][0]}_proj" if rest[0] != "out" else "self_attn.out_proj",
        "cross_norm": "cross_attn_layer_norm",
        "self_norm": "self_attn_layer_norm",
        "mlp_norm": "final_layer_norm",
        "mlp": "fc1" if rest[0] == "0" else "fc2",
    }
    return [f"decoder.layers.{layer}.{parts[part]}.{rest[-1]}"]


def load_theirs(own: QueryDecoder, theirs: Mask2FormerTransformerModule) -> None:
    state = theirs.state_dict()
    used = set()
    for name, parameter in own.named_parameters():
        key, *part = their_names(name)
        value = state[key]
        if part:
            value = value.chunk(3)[["query", "key", "value"].index(part[0])]
        used.add(key)
        with torch.no_grad():
            parameter.copy_(value)
    assert used == state.keys()


def test_the_decoder_equals_transformers_where_masks_are_sharp():
    """Mask probabilities are 0 or 1 here; in between, ours dims what Mask2Former hides."""
    torch.manual_seed(0)
    width, queries, layers = 32, 9, 4
    config = Mask2FormerConfig(
        hidden_dim=width,
        mask_feature_size=width,
        num_queries=queries,
        decoder_layers=layers + 1,
        dim_feedforward=4 * width,
    )
    theirs = Mask2FormerTransformerModule(width, config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    last = theirs.decoder.mask_predictor.mask_embedder.layers[2].layers[0]
    with torch.no_grad():
        last.weight.mul_(1e8)
        last.bias.mul_(1e8)
    own = QueryDecoder(width, queries, layers, 4 * width).eval()
    load_theirs(own, theirs)
    maps = [torch.randn(2, width, height, 2 * height + 1) for height in (3, 6, 12)]
    pixels = torch.randn(2, width, 24, 50)
    with torch.no_grad():
        expected = theirs(maps, pixels)
        found = own(maps, pixels)
        assert len(found) == len(expected.intermediate_hidden_states) == layers + 1
        masks = [torch.einsum("bqc,bchw->bqhw", own.mask(x), pixels) for x in found]
    assert all((m > 0).flatten(2).any(2).all() for m in expected.masks_queries_logits)  # no mask is empty
    for own_queries, their_queries in zip(found, expected.intermediate_hidden_states, strict=True):
        torch.testing.assert_close(own_queries, their_queries.transpose(0, 1), atol=1e-5, rtol=1e-5)
    for own_masks, their_masks in zip(masks, expected.masks_queries_logits, strict=True):
        torch.testing.assert_close(own_masks / 1e8, their_masks / 1e8, atol=1e-5, rtol=1e-5)


def test_the_logits_are_the_log_of_mask2formers_scores():
    torch.manual_seed(0)
    class_logits, mask_logits = torch.randn(2, 9, 6), 3 * torch.randn(2, 9, 384, 384)  # where it resizes nothing
    found = combine(class_logits, mask_logits)
    scores = torch.einsum("bqk,bqhw->bkhw", class_logits.softmax(2)[..., :5], mask_logits.sigmoid())
    torch.testing.assert_close(found.exp(), scores, atol=1e-5, rtol=1e-5)
    outputs = SimpleNamespace(class_queries_logits=class_logits, masks_queries_logits=mask_logits)
    expected = Mask2FormerImageProcessor().post_process_semantic_segmentation(outputs)
    assert (found.argmax(1) == torch.stack(expected)).float().mean() > 0.9999


def test_logits_and_gradients_are_finite_and_exact_for_extreme_scores():
    """Each class has a query of its own. What is 60 below the others, in its class and its mask, still learns."""
    class_logits = torch.full((1, 3, 4), -60.0).diagonal_scatter(torch.zeros(1, 3), dim1=1, dim2=2).requires_grad_()
    mask_logits = torch.tensor([60.0, -60.0, -3000.0]).reshape(1, 3, 1, 1).requires_grad_()
    found = combine(class_logits, mask_logits)
    log_p, log_mask = class_logits.double().log_softmax(2)[..., :3], F.logsigmoid(mask_logits.double())
    expected = (log_p[..., None, None] + log_mask[:, :, None]).logsumexp(1)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
    found.log_softmax(1)[0, 1].backward()
    assert all(torch.isfinite(x.grad).all() for x in (class_logits, mask_logits))
    assert mask_logits.grad[0, 1] > 0.4


def test_onnxruntime_computes_the_logits_of_sharp_masks():
    """Trained networks have mask logits of -60 and less."""
    torch.manual_seed(0)
    inputs = 30 * torch.randn(1, 3, 5), 40 * torch.randn(1, 3, 16, 16)

    class Combine(torch.nn.Module):
        def forward(self, class_logits, mask_logits):
            return combine(class_logits, mask_logits)

    with no_exporter_output():
        program = torch.onnx.export(Combine(), inputs, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    feed = {x.name: value.numpy() for x, value in zip(session.get_inputs(), inputs, strict=True)}
    expected = combine(*inputs)
    assert expected.min() < -60
    torch.testing.assert_close(torch.from_numpy(session.run(None, feed)[0]), expected, atol=1e-4, rtol=1e-5)


def test_only_training_returns_what_its_loss_needs():
    features = [torch.randn(2, c, 40 // s, 72 // s) for c, s in zip(CHANNELS, (1, 2, 4, 8), strict=True)]
    head = create_head({"head": HEAD}, CHANNELS, 3)
    logits, _, outputs = head(features)
    assert outputs["class_logits"].shape == (2, 4, 16, 4)
    assert outputs["mask_logits"].shape == (2, 4, 16, 40, 72)
    torch.testing.assert_close(logits, combine(outputs["class_logits"][:, -1], outputs["mask_logits"][:, -1]))
    assert len(head.eval()(features)) == 2
    unsupervised = {**HEAD, "class_weight": 0, "mask_weight": 0, "dice_weight": 0}
    assert len(create_head({"head": unsupervised}, CHANNELS, 3)(features)) == 2


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_every_parameter_learns_from_the_logits_alone(layers):
    features = [torch.randn(2, c, 40 // s, 72 // s) for c, s in zip(CHANNELS, (1, 2, 4, 8), strict=True)]
    head = create_head({"head": {**HEAD, "layers": layers}}, CHANNELS, 3, embedding=False)
    head(features)[0].square().mean().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


def test_a_width_that_has_no_position_encoding_is_refused():
    with pytest.raises(UsageError, match="head.proj_dim: mask_query needs a multiple of 4, found 18"):
        create_head({"head": {**HEAD, "proj_dim": 18}}, CHANNELS, 3)


def fit(section, steps=60, own=True):
    """Train on one image of four quadrants; return the loss of `section` before and after, and the accuracy."""
    torch.manual_seed(0)
    loss_weights = {} if own else {"class_weight": 0, "mask_weight": 0, "dice_weight": 0}
    config = {"backbone": {"type": "tiny"}, "head": {**HEAD, **loss_weights}}
    loss = build_loss(section, HIERARCHY)
    model = build_model(config, loss.num_channels, embedding=loss.uses_embedding)
    loss = build_loss(section, HIERARCHY, head_loss=model.head.loss)
    quadrant = torch.arange(64) // 32
    target = (2 * quadrant[:, None] + quadrant)[None].repeat(2, 1, 1)
    target[:, 28:36] = -1
    images = 60 * target[:, None].clamp(min=0) + 20 * torch.rand(2, 3, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    history = []
    for _ in range(steps):
        output = model(images)
        total, terms = loss(output.logits, target, embedding=output.embedding, head_outputs=output.head_outputs)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(sum(term.weight * terms[name].item() for name, term in loss.terms.items()))
    correct = output.logits[:, :4].argmax(1) == target
    return history[0], history[-1], correct[target >= 0].float().mean().item()


@pytest.mark.parametrize("loss", [name for name, entry in LOSSES.items() if entry.channels == "leaves"])
def test_every_loss_over_leaves_learns(loss):
    section = {"terms": {loss: 1.0}} if loss != "region_mutual_information" else {"terms": {"focal": 1.0, loss: 1.0}}
    before, after, accuracy = fit(section)
    assert after < 0.5 * before
    assert accuracy > 0.9


@pytest.mark.parametrize("loss", ["leaf_cross_entropy", "marginal_cross_entropy", "dice", "focal", "lovasz"])
def test_losses_over_leaves_learn_without_the_heads_own(loss):
    before, after, accuracy = fit({"terms": {loss: 1.0}}, steps=100, own=False)
    assert after < 0.6 * before
    assert accuracy > 0.7


@pytest.mark.parametrize("preset", ["hssn", "logicseg"])
def test_losses_over_nodes_and_embeddings_learn(preset):
    before, after, accuracy = fit({"preset": preset})
    assert after < before
    assert accuracy > 0.9


def test_a_run_records_the_terms_and_its_file_passes_the_gate(small, tmp_path):
    options = [*SMALL_HEAD, "loss={preset: hssn, auxiliary: 0.4}", "training.ema=0.5", "training.freeze=1"]
    config = load_config(small, options)
    train(config)
    steps = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    terms = steps[0]["terms"]
    assert {"head_class", "head_mask", "head_dice", "tree_triplet", "auxiliary_leaf_cross_entropy"} <= terms.keys()
    weighted = {"head_class": 2, "head_mask": 5, "head_dice": 5, "focal_tree_min": 5, "leaf_cross_entropy": 1}
    weighted |= {"auxiliary_focal_tree_min": 2, "auxiliary_leaf_cross_entropy": 0.4}
    assert steps[0]["loss"] == pytest.approx(sum(weight * terms[name] for name, weight in weighted.items()), rel=1e-5)
    row = export_checkpoint(config.run_dir / "best", tmp_path / "model.onnx", ExportOptions(precision="fp32"))
    assert row["max_abs_error"] <= 1e-4 * max(1, row["max_abs_logit"])
    assert row["argmax_agreement"] >= 0.9999


def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(small):
    options = [*SMALL_HEAD, "training.epochs=2", "training.precision=bf16"]
    whole, parts = (load_config(small, [*options, f"output.name={name}"]) for name in ("whole", "parts"))
    train(whole)
    with pytest.raises(Interrupted):
        train(parts, resume=True, notify=StopAt(3))
    train(parts, resume=True)
    assert_same(weights(whole.run_dir), weights(parts.run_dir))
    assert records(whole.run_dir) == records(parts.run_dir)


def test_init_from_matches_the_classes_by_name(small):
    source = save_untrained(small, [*SMALL_HEAD, "output.name=source"])
    renamed = "{labels: [disc, sky, moss, ring], tree: {ground: [sky, moss], round: [disc, ring]}}"
    config = load_config(small, [*SMALL_HEAD, f"classes={renamed}", f"init_from={source.run_dir}"])
    model = build_model(config, 4)
    new = model.head.classifier.weight[2].clone()
    report = load_initial_weights(model, config, config.hierarchy)
    state = load_file(source.run_dir / "last/model.safetensors")
    rows = state["head.classifier.weight"]
    torch.testing.assert_close(model.head.classifier.weight, torch.stack([rows[2], rows[0], new, rows[3]]))
    torch.testing.assert_close(model.head.no_object.weight, state["head.no_object.weight"])
    assert (report.classes_dropped, report.classes_new, report.missing) == (("grass",), ("moss",), ())
