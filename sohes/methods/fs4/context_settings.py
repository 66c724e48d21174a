"""Settings of the context-aware embedding, without torch. All are ours: the paper's abstract gives no number."""

from __future__ import annotations

from typing import Literal

from sohes.configuration import Count, NonNegative, Positive, Share, settings

Context = Literal["none", "appearance", "space", "both"]


@settings
class ContextSettings:
    """Neighbours of a token that are close in appearance and in space (README §8)."""

    cae: Context = "both"
    """What makes a neighbour: appearance, space, both; none: tokens as they are, and no attention [ours]."""
    cae_temperature: Positive = 0.1
    """Of the appearance: cosine below 1 that divides a weight by e [ours]."""
    cae_sigma: Positive = 0.25
    """Of the space: standard deviation, in sides of the region; where the attention's learned ones start [ours]."""
    cae_neighbours: Count = 16
    """Neighbours that a token keeps in a region's embedding [ours]."""
    cae_strength: NonNegative = 0.5
    """Share of its neighbours' mean that a token takes on in each of two smoothing steps [ours]."""
    cae_duplicate: Share = 0.005
    """Cosine below 1 within which a token is a duplicate, which explains nothing [ours]."""
    cae_heads: Count = 4
    """Heads of the attention in the network [ours]."""
    cae_attention_neighbours: Count = 32
    """Neighbours that a token of the network attends to [ours]."""
