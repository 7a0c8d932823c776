"""The network, with its decoding, as a torch.export program in a .pt2 file.

    files = {"metadata.json": ""}  # filled by load
    program = torch.export.load("model.pt2", extra_files=files)
    masks = program.module(check_guards=False)(image)  # {"ids_leaf": B,H,W, ...}

`check_guards=False`, because tracing writes down that its example was no multiple of 32 px, as if that were a
condition; the program itself is right at every size, which is checked. AOTInductor compiles it for C++.
"""

from __future__ import annotations

import io
import json
from typing import Any

import torch
from torch import Tensor, nn

from seghiero_core.export.graph import DecodedModel, output_names, quiet, trace


class NamedOutputs(nn.Module):
    """Images B,3,H,W -> {name: output}: what `DecodedModel` gives under `output_names`, or its logits alone."""

    def __init__(self, model: DecodedModel, outputs: str):
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        if self.outputs == "logits":
            return {"logits": self.model.model(image).logits.float()}
        return dict(zip(output_names(self.model.hierarchy), self.model(image), strict=True))


def to_pt2(
    model: DecodedModel, input_dtype: torch.dtype, outputs: str, metadata: dict[str, Any]
) -> tuple[bytes, list[str]]:
    """A .pt2 file's bytes, with `metadata` as its extra file metadata.json, and the names of what it gives.

    `outputs` is "logits", or "masks": classes and confidence of every level, and the logits all the same.
    """
    program = trace(NamedOutputs(model, outputs), input_dtype)
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    names = output_names(model.hierarchy)
    return file.getvalue(), names[:1] if outputs == "logits" else names
