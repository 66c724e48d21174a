"""Errors that a user can cause. Commands print them as one message, without a traceback, and exit with status 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LISTED_AT_MOST = 30


class SohesError(Exception):
    """Base of every error whose message names what was wrong, what was given, and the remedy."""


class ConfigError(SohesError):
    """An unknown stage, key or value in a recipe, an override or on the command line."""


class DataError(SohesError):
    """An image, annotation file or label store that cannot be used."""


class WeightsError(SohesError):
    """Weights that are missing, damaged, or do not fit the architecture."""


def unknown_name(kind: str, given: str, known: Iterable[str]) -> str:
    """Message for a name that does not exist, with the nearest one that does.

    >>> unknown_name("stage", "instuct", ["explore", "instruct"])
    "unknown stage 'instuct'; did you mean 'instruct'? Known: explore, instruct"
    """
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    known_names = f" Known: {', '.join(names)}" if len(names) <= _LISTED_AT_MOST else ""
    return f"unknown {kind} '{given}'{hint}{known_names}"
