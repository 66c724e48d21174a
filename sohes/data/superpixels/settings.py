"""Settings of superpixels. [CAST] is the released code, github.com/twke18/CAST at ec85adf."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sohes.configuration import Natural, settings


@settings
class SuperpixelSettings:
    """How an image is cut into superpixels (README §8)."""

    method: Literal["seeds", "slic", "graph", "grid"] = "seeds"
    """Algorithm; seeds [CAST], grid: square blocks."""
    block_px: Annotated[int, Field(ge=4)] = 16
    """One superpixel for so many px squared [CAST]."""
    bins: Annotated[int, Field(ge=2, le=64)] = 15
    """Of a colour histogram of seeds, along each channel; 15 [CAST] in self-supervised training, 5 elsewhere."""
    iterations: Natural = 20
    """Rounds over all pixels, of seeds; 20 [CAST] in self-supervised training, 15 elsewhere."""
