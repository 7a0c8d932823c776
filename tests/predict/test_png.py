"""A PNG written in strips reads back."""

from __future__ import annotations

import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seghiero_core.predict import png


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["palette", "gray16", "rgb"]), st.integers(1, 9))
def test_png_written_in_strips_reads_back(tmp_path_factory, height, width, kind, rows):
    rng = np.random.default_rng(height * 41 + width)
    shape, limit, dtype = {
        "palette": ((height, width), 256, np.uint8),
        "gray16": ((height, width), 1 << 16, np.uint16),
        "rgb": ((height, width, 3), 256, np.uint8),
    }[kind]
    values = rng.integers(0, limit, shape).astype(dtype)
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8) if kind == "palette" else None
    path = tmp_path_factory.mktemp("png") / "a.png"
    writer = png.PngWriter(path, height, width, kind, palette)
    for top in range(0, height, rows):
        writer.write(values[top : top + rows])
    writer.finish()
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert np.array_equal(np.array(image), values)
        if palette is not None:
            assert np.array_equal(np.array(image.convert("RGB")), palette[values])
