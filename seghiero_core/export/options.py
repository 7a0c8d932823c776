"""What to export, and whether it can be had."""

from __future__ import annotations

from dataclasses import dataclass

from seghiero_core.decode_modes import MODES, check_decoding
from seghiero_core.errors import UsageError, nearest

OPSETS = range(18, 24)


DEFAULT_OPSET = 20


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        format: onnx or pt2.
        precision: fp32, fp16 or int8 (ONNX only).
        input: uint8, or float32 with the same values 0..255.
        outputs: "masks" (ids and confidence of every level) or "logits".
        mode: a decoding of MODES.
        confidence: a threshold in 0..1 to back off from, see `decode`; None or 0 for none.
        opset: of OPSETS, ONNX only; None is DEFAULT_OPSET, see `onnx_opset`.
    """

    format: str = "onnx"
    precision: str = "fp32"
    input: str = "uint8"
    outputs: str = "masks"
    mode: str = "leaf"
    confidence: float | None = None
    opset: int | None = None

    @property
    def onnx_opset(self) -> int:
        """The opset that was asked for, or the default."""
        return DEFAULT_OPSET if self.opset is None else self.opset

    def check(self) -> None:
        """Raise UsageError for a value that there isn't, or that the format has not."""
        if self.format == "pt2" and (self.precision == "int8" or self.opset is not None):
            flag = "--opset" if self.opset is not None else "--int8"
            raise UsageError(f"{flag} is for ONNX; leave it out, or leave out --pt2.")
        for flag, value, known in (
            ("--input", self.input, ("uint8", "float32")),
            ("--outputs", self.outputs, ("masks", "logits")),
            ("--decode", self.mode, tuple(MODES)),
            ("--opset", str(self.onnx_opset), tuple(str(opset) for opset in OPSETS)),
        ):
            if value not in known:
                raise UsageError(f"{flag} {value}: unknown.{nearest(value, known)} Known: {', '.join(known)}.")
        check_decoding(self.mode, self.confidence)
