"""Options of the commands that predict with a checkpoint: what is done for better masks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sohes.errors import ConfigError

if TYPE_CHECKING:
    from sohes.segmenters.segmenter import Inference


def add_inference(parser: argparse.ArgumentParser) -> None:
    """The options of a parser."""
    group = parser.add_argument_group("better masks of a segmenter, for more time")
    group.add_argument("--tiles", type=int, metavar="N", help="predict N x N overlapping tiles as well")
    group.add_argument("--snap", action="store_true", help="replace each mask by the region of phase 1 most like it")
    group.add_argument("--explore", action="store_true", help="all regions of phase 1, ranked by the segmenter as well")


def parse_inference(options: argparse.Namespace) -> Inference | None:
    """What the options ask for; None where they ask for nothing.

    Raises:
        ConfigError: less than two tiles.
    """
    if options.tiles is not None and options.tiles < 2:
        raise ConfigError(f"--tiles must be at least 2, not {options.tiles}")
    if not (options.tiles or options.snap or options.explore):
        return None
    from sohes.explore.inference import make_inference

    return make_inference(tiles=options.tiles, snap=options.snap, explore=options.explore)
