"""Settings of the segmenter's losses."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sohes.configuration import Count, NonNegative, Share, settings


@settings
class LossSettings:
    """Weights of the terms and numbers of sampled points; defaults are Mask2Former's, the ancestor's weight is ours."""

    entity_weight: NonNegative = 2.0
    """Weight of the term for entity or nothing [Mask2Former]."""
    mask_weight: NonNegative = 5.0
    """Weight of the cross-entropy of masks [Mask2Former]."""
    dice_weight: NonNegative = 5.0
    """Weight of the dice term of masks [Mask2Former]."""
    ancestor_weight: NonNegative = 1.0
    """Weight of the term for which mask is part of which [ours]."""
    no_object_weight: NonNegative = 0.1
    """Weight of the class "nothing" within the entity term [Mask2Former]."""
    soft_no_object: bool = False
    """Queries whose mask is unlike every target are excluded from the no-object loss [ours]."""
    points: Count = 12544
    """Points at which a mask is compared [Mask2Former]."""
    oversample: Annotated[float, Field(ge=1)] = 3.0
    """Points drawn for each that is taken [Mask2Former]."""
    uncertain: Share = 0.75
    """Share of the points that is taken where the prediction is least certain [Mask2Former]."""
