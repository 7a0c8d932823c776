"""Running exported files: ONNX by onnxruntime, .pt2 by PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seghiero_core.errors import CheckpointError, DeviceError, UsageError
from seghiero_core.export.metadata import read_metadata

if TYPE_CHECKING:
    import onnx
    import onnxruntime


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


def pt2_run(path: Path) -> Runner:
    """The program in a file, from arrays to arrays."""
    with path.open("rb") as file:
        module = torch.export.load(file).module(check_guards=False)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {name: output.numpy() for name, output in module(torch.from_numpy(images)).items()}

    return run


Runner = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Images B,3,H,W -> the outputs of an exported file by name, `logits` among them."""


def onnx_run(path: Path) -> Runner:
    """The ONNX file at `path`, from arrays to arrays, giving its inner value `logits` too."""
    graph = read_onnx(path)
    channels = read_metadata(graph, path)["decoding"]["channels"]
    return session_run(make_session(with_logits(graph, channels, only=False).SerializeToString()))


def session_run(session: onnxruntime.InferenceSession) -> Runner:
    """An onnxruntime session, from arrays to arrays."""
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"image": images}), strict=True))
