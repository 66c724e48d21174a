"""Settings of the segmenter, without torch (README §8)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sohes.configuration import settings


@settings
class CastSegmentSettings:
    """How an image comes to the network."""

    short_px: Annotated[int, Field(ge=16)] = 224
    """Short side of the image that is segmented, px [CAST]; about (short_px / 16)² superpixels of a square one."""
