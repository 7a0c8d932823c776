"""The network with its decoding as a torch.export program in a .pt2 file.

To run one:

    files = {"metadata.json": ""}  # filled in by load
    program = torch.export.load("model.pt2", extra_files=files)
    masks = program.module(check_guards=False)(image)  # {"ids_leaf": B,H,W, ...}

`check_guards=False` is needed because tracing records, as if it were a condition, that the size of its example was no
multiple of 32 px. The program itself works at every size, and the export checks that. AOTInductor compiles it for C++.
"""

from __future__ import annotations

import io
import json
from typing import Any

import torch
from torch import Tensor, nn

from seghiero_core.export.graph import DecodedModel, no_exporter_output, output_names, trace


class NamedOutputs(nn.Module):
    """A DecodedModel that returns its outputs by name.

    Attributes:
        model: The network with its decoding.
        outputs: "masks" for everything in `output_names`, "logits" for the logits alone.
    """

    def __init__(self, model: DecodedModel, outputs: str):
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Predict and decode.

        Args:
            image: B,N,H,W as for `SegmentationModel`.

        Returns:
            The outputs by name.
        """
        if self.outputs == "logits":
            return {"logits": self.model.model(image).logits.float()}
        return dict(zip(output_names(self.model.hierarchy), self.model(image), strict=True))


def to_pt2(
    model: DecodedModel, input_dtype: torch.dtype, outputs: str, metadata: dict[str, Any]
) -> tuple[bytes, list[str]]:
    """Trace a model and save it in the .pt2 format.

    Args:
        model: The network with its decoding.
        input_dtype: The dtype of the images.
        outputs: "masks" (classes and confidence of every level, and the logits) or "logits".
        metadata: The values of `metadata.METADATA_KEYS`, stored as the extra file metadata.json.

    Returns:
        The file's bytes, and the names of its outputs.
    """
    program = trace(NamedOutputs(model, outputs), input_dtype, metadata["channels"] or 3)
    file = io.BytesIO()
    with no_exporter_output():
        torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    names = ["logits"] if outputs == "logits" else output_names(model.hierarchy)
    return file.getvalue(), names
