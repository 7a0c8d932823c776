"""An exported ONNX file: what its metadata says, and running it with onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from seghiero_core.decodings import Decoding
from seghiero_core.errors import CheckpointError, DeviceError, UsageError
from seghiero_core.hierarchy import Hierarchy
from seghiero_core.tiles import Forward

if TYPE_CHECKING:
    import onnx
    import onnxruntime

METADATA_KEYS = (
    "labels",
    "tree",
    "colors",
    "ignore",
    "normalization",
    "levels",
    "decoding",
    "seghiero_version",
    "config_sha256",
)
"""Each holds one JSON document: `labels` {mask value: name}; `tree` nested {name: {children}}; `colors`
{name: [r, g, b]}; `ignore` the mask value of ignored pixels; `normalization` {"mean", "std"} of R, G, B in 0..1, done
inside; `levels` [{"name", "ids", "confidence", "classes": [name]}] finest first, the outputs' names and the classes by
number; `decoding` {"mode", "scores", "channels", "confidence", "undecided"}, the channels being those of the logits and
`undecided` what ids hold where a score below `confidence` made the prediction back off (both null without a
threshold); `seghiero_version`; `config_sha256` of the training's config."""


def open_onnx(path: Path, device: str) -> tuple[Hierarchy, str, Decoding, Forward]:
    """(hierarchy, scores, decoding, forward: B,3,H,W uint8 -> logits B,C,H,W float32) of an exported file.

    The graph's own decoding is left aside: its inner value `logits` is made its only output. Raises UsageError for a
    file that isn't there or isn't from `seghiero export`, CheckpointError for a damaged one.
    """
    model = read_onnx(path)
    metadata = read_metadata(model, path)
    decoding = metadata["decoding"]
    hierarchy = Hierarchy.from_config(
        {
            "labels": {int(value): name for value, name in metadata["labels"].items()},
            "tree": metadata["tree"],
            "ignore": metadata["ignore"],
            "colors": metadata["colors"],
        }
    )
    session = make_session(with_logits(model, decoding["channels"], only=True).SerializeToString(), device)
    dtype = np.uint8 if session.get_inputs()[0].type == "tensor(uint8)" else np.float32

    def forward(images: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"image": images.cpu().numpy().astype(dtype, copy=False)})
        return torch.from_numpy(logits)

    # files of before there were thresholds have no such key
    return hierarchy, decoding["scores"], Decoding(decoding["mode"], decoding.get("confidence")), forward


def read_onnx(path: Path) -> onnx.ModelProto:
    """The file as a protobuf. Raises UsageError if there is none, CheckpointError if it is damaged."""
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise UsageError(f"{path}: there is no such file.")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        first = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} can't be read as ONNX ({first}); export it again.") from None
    return model


def read_metadata(model: onnx.ModelProto, path: Path) -> dict[str, Any]:
    """The values of METADATA_KEYS. Raises UsageError where one is missing."""
    found = {entry.key: entry.value for entry in model.metadata_props}
    if missing := [key for key in METADATA_KEYS if key not in found]:
        raise UsageError(f"{path} was not written by `seghiero export`: its metadata has no {', '.join(missing)}.")
    return {key: json.loads(found[key]) for key in METADATA_KEYS}


def with_logits(model: onnx.ModelProto, channels: int, *, only: bool) -> onnx.ModelProto:
    """`model` changed to give its value `logits` too, or nothing else; onnxruntime drops what then has no use."""
    import onnx

    if only:
        del model.graph.output[:]
    if "logits" not in [output.name for output in model.graph.output]:
        shape = ["batch", channels, "height", "width"]
        model.graph.output.append(onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, shape))
    return model


def make_session(model: bytes, device: str = "cpu") -> onnxruntime.InferenceSession:
    """An onnxruntime session that keeps its warnings to itself; on the GPU for a `device` of cuda or cuda:N.

    Raises DeviceError where onnxruntime has no CUDA, or can't start it and would go on with the CPU.
    """
    import onnxruntime

    kind, _, number = device.partition(":")
    providers: list[Any] = ["CPUExecutionProvider"]
    if kind == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise DeviceError("this onnxruntime has no CUDA provider; use --device cpu, or install onnxruntime-gpu.")
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(number or 0)}))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=providers)
    if kind == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise DeviceError(
            f"onnxruntime {onnxruntime.__version__} could not start CUDA on {device}; it needs the CUDA and cuDNN "
            "libraries that it was built for. Install onnxruntime-gpu[cuda,cudnn], or use --device cpu."
        )
    return session
