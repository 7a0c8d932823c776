"""Running exported files: ONNX with onnxruntime, .pt2 with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError

from seghiero_core.errors import CheckpointError, DeviceError, UsageError
from seghiero_core.export.metadata import read_metadata

Runner = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Runs an exported file: images B,N,H,W -> outputs by name, with `logits` among them."""


def onnx_runner(path: Path) -> Runner:
    """Load an ONNX file written by `seghiero export` on the CPU.

    Args:
        path: The file.

    Returns:
        A runner that also gives the graph's inner value `logits`.

    Raises:
        UsageError: The file doesn't exist or was not written by `seghiero export`.
        CheckpointError: The file is damaged.
    """
    graph, metadata = read_export(path)
    graph = with_logits(graph, metadata["decoding"]["channels"], only=False)
    return session_runner(make_session(graph.SerializeToString()))


def session_runner(session: onnxruntime.InferenceSession) -> Runner:
    """Wrap an onnxruntime session.

    Args:
        session: A session with the input `image`.

    Returns:
        A runner that gives all outputs of the session.
    """
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"image": images}), strict=True))

    return run


def pt2_runner(path: Path) -> Runner:
    """Load a .pt2 file written by `seghiero export` on the CPU.

    Args:
        path: The file.

    Returns:
        A runner that gives all outputs of the program.
    """
    with path.open("rb") as file:
        module = torch.export.load(file).module(check_guards=False)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {name: output.numpy() for name, output in module(torch.from_numpy(images)).items()}

    return run


def read_export(path: Path) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Read an ONNX file written by `seghiero export`, and check what `predict` relies on.

    Args:
        path: The file.

    Returns:
        The graph, and a value for each of METADATA_KEYS.

    Raises:
        UsageError: The file doesn't exist or was not written by `seghiero export`.
        CheckpointError: The file is damaged.
    """
    model = read_onnx(path)
    metadata = read_metadata(model, path)
    inputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    if list(inputs) != ["image"] or inputs["image"] not in (onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT):
        raise UsageError(
            f"{path} was not written by `seghiero export`: expected one input `image` of uint8 or float32, "
            f"found {', '.join(inputs) or 'none'}."
        )
    if not any("logits" in node.output for node in model.graph.node):
        raise UsageError(f"{path} was not written by `seghiero export`: its graph has no value `logits`.")
    return model, metadata


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file.

    Args:
        path: The file.

    Returns:
        The graph.

    Raises:
        UsageError: There is no such file.
        CheckpointError: The file is damaged.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file.")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        first_line = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} can't be read as ONNX ({first_line}); export it again.") from None
    return model


def with_logits(model: onnx.ModelProto, channels: int, *, only: bool) -> onnx.ModelProto:
    """Make the inner value `logits` an output of a graph.

    Args:
        model: The graph, which is changed in place.
        channels: The number of channels of the logits.
        only: Remove all other outputs. onnxruntime then doesn't compute them.

    Returns:
        The same graph.
    """
    if only:
        del model.graph.output[:]
    if "logits" not in [output.name for output in model.graph.output]:
        shape = ["batch", channels, "height", "width"]
        model.graph.output.append(onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, shape))
    return model


def make_session(model: bytes, device: str = "cpu") -> onnxruntime.InferenceSession:
    """Create an onnxruntime session that prints nothing; its errors are exceptions.

    Args:
        model: A serialized ONNX graph.
        device: "cuda" or "cuda:N" for a GPU; any other device runs on the CPU.

    Returns:
        The session.

    Raises:
        DeviceError: onnxruntime has no CUDA provider, or can't start it and would fall back to the CPU.
    """
    kind, _, number = device.partition(":")
    providers: list[Any] = ["CPUExecutionProvider"]
    if kind == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise DeviceError("this onnxruntime has no CUDA provider; use --device cpu, or install onnxruntime-gpu.")
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(number or 0)}))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=providers)
    if kind == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise DeviceError(
            f"onnxruntime {onnxruntime.__version__} could not start CUDA on {device}; it needs the CUDA and cuDNN "
            "libraries it was built for. Install onnxruntime-gpu[cuda,cudnn], or use --device cpu."
        )
    return session
