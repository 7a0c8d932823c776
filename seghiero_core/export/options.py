"""What to export: format, precision, input, outputs and decoding."""

from __future__ import annotations

from dataclasses import dataclass, replace

from seghiero_core.decode_modes import DEFAULT_DECODING, check_decoding
from seghiero_core.errors import UsageError, nearest

OPSETS = range(18, 24)
DEFAULT_OPSET = 20


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        format: "onnx" or "pt2".
        precision: "fp32", "fp16" or "int8" (ONNX only).
        input: "uint8" or "float32", both with values 0..255; of networks for other bands than RGB only "float32". None
            chooses "uint8" for RGB.
        outputs: "masks" (ids and confidence of every level) or "logits".
        mode: A decoding mode, one of `decode_modes.MODES`.
        confidence: The threshold in 0..1 below which predictions back off to a coarser level, see `decode`; None or 0
            turns that off.
        opset: The ONNX opset, one of OPSETS (ONNX only); None means DEFAULT_OPSET.
    """

    format: str = "onnx"
    precision: str = "fp32"
    input: str | None = None
    outputs: str = "masks"
    mode: str = DEFAULT_DECODING.mode
    confidence: float | None = None
    opset: int | None = None

    @property
    def onnx_opset(self) -> int:
        """The requested opset, or the default."""
        return DEFAULT_OPSET if self.opset is None else self.opset

    def for_images(self, channels: int | None) -> ExportOptions:
        """Fill in `input`.

        Args:
            channels: `dataset.channels` of the network's config; None for RGB.

        Returns:
            The options with a type of the input.

        Raises:
            UsageError: The network takes floats only.
        """
        if channels is not None and self.input == "uint8":
            raise UsageError(
                f"--input uint8: this network takes {channels} bands in stored units, as float32; remove --input."
            )
        return replace(self, input=self.input or ("uint8" if channels is None else "float32"))

    def validate(self) -> None:
        """Check every option.

        Raises:
            UsageError: An option has an unknown value, or the format doesn't support it.
        """
        if self.format == "pt2" and self.opset is not None:
            raise UsageError("--opset only applies to ONNX; remove --opset or --pt2.")
        if self.format == "pt2" and self.precision == "int8":
            raise UsageError("--int8 only applies to ONNX; remove --int8 or --pt2.")
        for flag, value, known in (
            ("--input", self.input or "uint8", ("uint8", "float32")),
            ("--outputs", self.outputs, ("masks", "logits")),
            ("--opset", str(self.onnx_opset), tuple(str(opset) for opset in OPSETS)),
        ):
            if value not in known:
                raise UsageError(f"{flag}: unknown value '{value}'.{nearest(value, known)} Known: {', '.join(known)}.")
        check_decoding(self.mode, self.confidence)
