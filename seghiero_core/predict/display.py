"""Showing crops of an image with any bands."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from seghiero_core.data.display import shown_as_rgb, shown_span


class Display:
    """Makes pictures of crops, all of which show the same span of values.

    Args:
        rgb: The positions of red, green and blue; empty for none.
        sample: Gives pixels h,w,C of the image that the span of values is found from. It is called at most once.
    """

    def __init__(self, rgb: tuple[int, ...], sample: Callable[[], np.ndarray]) -> None:
        self.rgb, self.sample = rgb, sample

    @cached_property
    def span(self) -> np.ndarray:
        """The values that are shown as black and white, as `shown_span` returns them."""
        return shown_span(self.sample(), self.rgb)

    def __call__(self, crop: np.ndarray) -> np.ndarray:
        """Make a picture of a crop.

        Args:
            crop: h,w,C.

        Returns:
            h,w,3 uint8, black where there is no data.
        """
        return shown_as_rgb(crop, self.rgb, self.span)
