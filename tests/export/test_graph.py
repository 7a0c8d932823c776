"""Softmax over channels in an exported graph: the same values as in torch, without onnxruntime's slow kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seghiero_core.export.graph import SOFTMAX_TRANSLATIONS, no_exporter_output
from seghiero_core.export.runner import make_session


class Softmax(torch.nn.Module):
    def __init__(self, dim: int, log: bool):
        super().__init__()
        self.dim, self.log = dim, log

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.log_softmax(self.dim) if self.log else x.softmax(self.dim)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("dim", "kernel"), [(1, False), (-3, False), (-1, True), (3, True)])
def test_values_and_operators(dim, kernel, log):
    torch.manual_seed(0)
    free = torch.export.Dim.DYNAMIC
    example = torch.randn(2, 5, 7, 9)
    with no_exporter_output():
        program = torch.export.export(Softmax(dim, log), (example,), dynamic_shapes={"x": {0: free, 2: free}})
        model = torch.onnx.export(program, dynamo=True, custom_translation_table=SOFTMAX_TRANSLATIONS, verbose=False)
    graph = model.model_proto
    used = {node.op_type for node in graph.graph.node}
    assert bool(used & {"Softmax", "LogSoftmax"}) == kernel
    session = make_session(graph.SerializeToString())
    for size, scale in (((1, 5, 1, 9), 1), ((3, 5, 11, 9), 1e4), ((2, 5, 4, 9), 1e-3)):
        x = torch.randn(*size) * scale
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(found, Softmax(dim, log)(x).numpy(), rtol=1e-5, atol=1e-6)
