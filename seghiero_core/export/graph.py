"""The network with its decoding as an ONNX graph.

From top to bottom: the modules that are traced (`DecodedModel`, `HalfPrecision`), tracing and conversion (`trace`,
`to_onnx`), editing the graph, and our own ONNX operators for softmax.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnxscript import opset18 as op
from torch import Tensor, nn

from seghiero_core.decode import Decoded, decode, written_ids
from seghiero_core.errors import CheckFailed
from seghiero_core.hierarchy.tree import Hierarchy

EXAMPLE_SIZE = (97, 131)
"""H, W (px) of the example image for tracing. Odd, so that the tracer can't conclude that sizes are multiples of
something."""


# ── modules to trace ─────────────────────────────────────────────────────────────────────────────────────────────────


class DecodedModel(nn.Module):
    """A network followed by its decoding.

    Maps images B,N,H,W to a flat tuple: logits B,C,H,W, then the ids B,H,W int64 of every level, then the confidence
    B,H,W of every level. `output_names` names them.

    Attributes:
        model: The network; its forward returns an object with `.logits`.
        hierarchy: The classes.
        scores, mode: How logits become classes, see `decode`.
        confidence: The threshold below which predictions back off to a coarser level, or None.
    """

    def __init__(self, model: nn.Module, hierarchy: Hierarchy, scores: str, mode: str, confidence: float | None = None):
        super().__init__()
        self.model = model
        self.hierarchy = hierarchy
        self.scores, self.mode, self.confidence = scores, mode, confidence

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Predict and decode.

        Args:
            image: B,N,H,W as for `SegmentationModel`.

        Returns:
            Logits B,C,H,W, then ids B,H,W per level, then confidence B,H,W per level.
        """
        logits = self.model(image).logits.float()
        decoded = self.decode(logits)
        return logits, *self.file_ids(decoded), *decoded.confidence

    def decode(self, logits: Tensor) -> Decoded:
        """Decode logits.

        Args:
            logits: B,C,H,W.

        Returns:
            Ids and confidence per level; ids are -1 where the prediction backed off.
        """
        return decode(logits, self.hierarchy, self.mode, self.confidence, scores=self.scores)

    def file_ids(self, decoded: Decoded) -> tuple[Tensor, ...]:
        """Return ids as exported files give them, with `undecided_id` in place of -1.

        Args:
            decoded: What `decode` returned.

        Returns:
            B,H,W int64 per level.
        """
        return decoded.ids if self.confidence is None else written_ids(decoded, self.hierarchy)


class HalfPrecision(nn.Module):
    """A backbone that computes in float16, with float32 images and features.

    Only the backbone: the head is the smaller part, and float16 would round the logits of a trained network, which are
    around 10, to steps of 0.01.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone.half()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the features of normalized images.

        Args:
            x: B,N,H,W float32.

        Returns:
            The backbone's features, B,C,h,w float32 each.
        """
        return [feature.float() for feature in self.backbone(x.half())]


def output_names(hierarchy: Hierarchy) -> list[str]:
    """Return the names of a DecodedModel's outputs.

    Args:
        hierarchy: The classes.

    Returns:
        "logits", then "ids_LEVEL" and "confidence_LEVEL" for every level, finest level first.
    """
    levels = [level.name for level in hierarchy.levels]
    return ["logits", *(f"ids_{name}" for name in levels), *(f"confidence_{name}" for name in levels)]


# ── tracing and conversion ───────────────────────────────────────────────────────────────────────────────────────────


def trace(model: nn.Module, input_dtype: torch.dtype, channels: int = 3) -> torch.export.ExportedProgram:
    """Trace a module whose forward takes one tensor named `image`.

    Args:
        model: The module; it is put in eval mode.
        input_dtype: The dtype of the image.
        channels: Its number of channels.

    Returns:
        A program with free batch, height and width.
    """
    example = torch.randint(0, 256, (2, channels, *EXAMPLE_SIZE)).to(input_dtype)
    free = torch.export.Dim.DYNAMIC
    with no_exporter_output(), torch.no_grad():
        return torch.export.export(model.eval(), (example,), dynamic_shapes={"image": {0: free, 2: free, 3: free}})


def to_onnx(program: torch.export.ExportedProgram, hierarchy: Hierarchy, opset: int) -> onnx.ModelProto:
    """Convert a traced DecodedModel to ONNX.

    Args:
        program: What `trace` returned.
        hierarchy: The classes, which name the outputs.
        opset: The ONNX opset.

    Returns:
        A graph with the input `image` and the outputs of `output_names`.
    """
    with no_exporter_output():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["image"],
            output_names=output_names(hierarchy),
            opset_version=opset,
            custom_translation_table=SOFTMAX_TRANSLATIONS,
            verbose=False,
        )
    model = exported.model_proto
    _name_dimensions(model)
    return model


@contextmanager
def no_exporter_output() -> Iterator[None]:
    """Silence the exporters' warnings and log messages, which are advice for programmers.

    Yields:
        Nothing; the silence lasts as long as the block.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _name_dimensions(model: onnx.ModelProto) -> None:
    """Rename the free dimensions from the tracer's names to batch, height and width."""
    image = model.graph.input[0].type.tensor_type.shape.dim
    names = {image[0].dim_param: "batch", image[2].dim_param: "height", image[3].dim_param: "width"}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


# ── editing the graph ────────────────────────────────────────────────────────────────────────────────────────────────


def check_opset(model: onnx.ModelProto, opset: int) -> None:
    """Check that a graph has the requested opset.

    Args:
        model: The graph.
        opset: The requested opset.

    Raises:
        CheckFailed: The exporter chose another opset.
    """
    have = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if have != opset:
        raise CheckFailed(f"the exporter wrote opset {have} instead of {opset}; remove --opset, or use --opset {have}.")


def required_nodes(model: onnx.ModelProto, values: Iterable[str]) -> list[onnx.NodeProto]:
    """Find the nodes that some values depend on.

    Args:
        model: The graph.
        values: Names of values in the graph.

    Returns:
        The nodes, in the graph's order.
    """
    needed, nodes = set(values), []
    for node in reversed(model.graph.node):  # a node comes after the nodes it depends on
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    return nodes[::-1]


def keep_outputs(model: onnx.ModelProto, names: list[str]) -> None:
    """Remove all other outputs from a graph, and the nodes and weights that only they need.

    The value `logits` stays in the graph even if it is no longer an output: `runner.with_logits` relies on it.

    Args:
        model: The graph, which is changed in place.
        names: The outputs to keep.
    """
    outputs = [output for output in model.graph.output if output.name in names]
    nodes = required_nodes(model, [*names, "logits"])
    inputs = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in inputs]
    del model.graph.output[:], model.graph.node[:]
    model.graph.output.extend(outputs)
    model.graph.node.extend(nodes)
    if len(weights) < len(model.graph.initializer):  # copying weights takes time
        del model.graph.initializer[:]
        model.graph.initializer.extend(weights)


# ── softmax ──────────────────────────────────────────────────────────────────────────────────────────────────────────
# onnxruntime's Softmax kernel is slow over channels, because it takes rows of a few values one at a time: 40 ms of the
# 190 ms of a ResNet-50 at 512x512 px on a CPU. Exp, ReduceSum and Div over whole planes take 8 ms.


def _softmax(x: Any, dim: int, dtype: int = -1) -> Any:
    """aten::softmax.int"""
    if dim in (-1, len(x.shape) - 1):  # as in attention: here the kernel is fast
        return op.Softmax(x, axis=dim)
    powers = op.Exp(_minus_maximum(x, dim))
    return op.Div(powers, op.ReduceSum(powers, [dim]))


def _log_softmax(x: Any, dim: int, dtype: int = -1) -> Any:
    """aten::log_softmax.int"""
    if dim in (-1, len(x.shape) - 1):
        return op.LogSoftmax(x, axis=dim)
    shifted = _minus_maximum(x, dim)
    return op.Sub(shifted, op.Log(op.ReduceSum(op.Exp(shifted), [dim])))


def _minus_maximum(x: Any, dim: int) -> Any:
    """Subtract the maximum along `dim`, so that Exp can't overflow."""
    return op.Sub(x, op.ReduceMax(x, [dim]))


SOFTMAX_TRANSLATIONS = {torch.ops.aten.softmax.int: _softmax, torch.ops.aten.log_softmax.int: _log_softmax}
"""The `custom_translation_table` for torch.onnx.export."""
