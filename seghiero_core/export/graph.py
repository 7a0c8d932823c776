"""The network, with its decoding, as an ONNX graph that says what it is."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
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
"""H, W of the example that is traced: odd, so that no size is taken for a multiple of something."""


class DecodedModel(nn.Module):
    """Images B,3,H,W -> logits B,C,H,W, then ids B,H,W int64 of every level, then confidence B,H,W of every level.

    With `confidence`, a threshold in 0..1, predictions back off as in `decode`; ids are then as in `written_ids`.
    """

    def __init__(self, model: nn.Module, hierarchy: Hierarchy, scores: str, mode: str, confidence: float | None = None):
        super().__init__()
        self.model, self.hierarchy, self.scores, self.mode = model, hierarchy, scores, mode
        self.confidence = confidence

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        logits = self.model(image).logits.float()
        decoded = self.decode(logits)
        return logits, *self.written(decoded), *decoded.confidence

    def decode(self, logits: Tensor) -> Decoded:
        """Classes and confidence of logits B,C,H,W; -1 where it backed off."""
        return decode(logits, self.hierarchy, self.mode, self.confidence, scores=self.scores)

    def written(self, decoded: Decoded) -> tuple[Tensor, ...]:
        """The ids as the file gives them."""
        return decoded.ids if self.confidence is None else written_ids(decoded, self.hierarchy)


class HalfPrecision(nn.Module):
    """A backbone that computes in float16 between float32 images and features.

    The head stays in float32: it is the smaller part, and logits of a trained network, which are of the order of 10,
    would be rounded to 0.01 in float16.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone.half()

    def forward(self, x: Tensor) -> list[Tensor]:
        return [feature.float() for feature in self.backbone(x.half())]


def output_names(hierarchy: Hierarchy) -> list[str]:
    """Names of what DecodedModel gives."""
    levels = [level.name for level in hierarchy.levels]
    return ["logits", *(f"ids_{name}" for name in levels), *(f"confidence_{name}" for name in levels)]


def trace(model: nn.Module, input_dtype: torch.dtype) -> torch.export.ExportedProgram:
    """`model`, with the input `image`, as a torch.export program whose batch, height and width are free."""
    example = torch.randint(0, 256, (2, 3, *EXAMPLE_SIZE)).to(input_dtype)
    free = torch.export.Dim.DYNAMIC
    with quiet(), torch.no_grad():
        return torch.export.export(model.eval(), (example,), dynamic_shapes={"image": {0: free, 2: free, 3: free}})


def to_onnx(program: torch.export.ExportedProgram, hierarchy: Hierarchy, opset: int) -> onnx.ModelProto:
    """The program as ONNX, with the input `image` and the outputs of `output_names`."""
    with quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["image"],
            output_names=output_names(hierarchy),
            opset_version=opset,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    model = exported.model_proto
    _name_dimensions(model)
    return model


def check_opset(model: onnx.ModelProto, opset: int) -> None:
    """Raise CheckFailed if the graph has another opset than was asked for."""
    have = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if have != opset:
        raise CheckFailed(f"the exporter wrote opset {have}, not {opset}; leave --opset out, or give {have}.")


def keep_outputs(model: onnx.ModelProto, names: list[str]) -> None:
    """Leave only these outputs; nodes that then lead nowhere are removed. The value `logits` keeps its name."""
    kept = [output for output in model.graph.output if output.name in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    needed = {*names, "logits"}
    nodes = []
    for node in reversed(model.graph.node):  # a node stands after those it needs
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.insert(0, node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    if len(used) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(used)


def _name_dimensions(model: onnx.ModelProto) -> None:
    """Call the free dimensions batch, height and width instead of what the tracer called them."""
    image = model.graph.input[0].type.tensor_type.shape.dim
    names = {image[i].dim_param: name for i, name in ((0, "batch"), (2, "height"), (3, "width"))}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence: the exporter's advice to programmers isn't for the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def softmax(x: Any, dim: int, dtype: int = -1) -> Any:
    """aten::softmax.int; over the last dimension, as in attention, by onnxruntime's kernel."""
    if dim in (-1, len(x.shape) - 1):
        return op.Softmax(x, axis=dim)
    powers = op.Exp(_shifted(x, dim))
    return op.Div(powers, op.ReduceSum(powers, [dim]))


def log_softmax(x: Any, dim: int, dtype: int = -1) -> Any:
    """aten::log_softmax.int; over the last dimension by onnxruntime's kernel."""
    if dim in (-1, len(x.shape) - 1):
        return op.LogSoftmax(x, axis=dim)
    shifted = _shifted(x, dim)
    return op.Sub(shifted, op.Log(op.ReduceSum(op.Exp(shifted), [dim])))


def _shifted(x: Any, dim: int) -> Any:
    """`x` less its greatest value along `dim`, so that no power overflows."""
    return op.Sub(x, op.ReduceMax(x, [dim]))


TRANSLATIONS = {torch.ops.aten.softmax.int: softmax, torch.ops.aten.log_softmax.int: log_softmax}
"""For `custom_translation_table` of torch.onnx.export."""
