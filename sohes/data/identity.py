"""Which image is meant: one rule for labels, predictions, ground truths, splits and heads (README §3).

Two names mean the same image when they are the same file, or else when one is the end of the other, whole folder names
compared: `b/1.png` is `/data/b/1.png`, is neither `/data/a/1.png` nor `/data/ab/1.png`, and `1.png` is any of them that
is the only one. Where both files are there and differ in size they are two images, whatever their names. Ids are never
compared: those of two files have nothing to do with each other.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from sohes.data.coco import ImageSet
from sohes.data.label_store import LabelStore
from sohes.errors import DataError

K = TypeVar("K")
L = TypeVar("L")

Parts = tuple[str, ...]


def match_names(
    wanted: Mapping[K, str], given: Mapping[L, str], *, roots: tuple[Path, Path], sources: tuple[str, str]
) -> dict[K, L]:
    """For each name that is wanted, the one among those given that means the same image.

    Args:
        wanted: names by key, absolute or relative.
        given: names by key, absolute or relative; a member of an archive is named below it.
        roots: folders of the relative names of each side.
        sources: what the names of each side come from, for messages.

    Returns:
        Keys of `given` by keys of `wanted`; a name without its like is missing there.

    Raises:
        DataError: a name could mean several of the other side, or no name has its like; the message has the names.
    """
    exact: dict[str, L] = {}
    by_base: dict[str, list[tuple[Parts, L]]] = defaultdict(list)
    for key, name in given.items():
        parts = _parts(name)
        exact.setdefault(os.path.abspath(roots[1] / name), key)
        by_base[parts[-1]].append((parts, key))
    found: dict[K, L] = {}
    taken: dict[L, K] = {}
    for wanted_key, name in wanted.items():
        parts = _parts(name)
        file = os.path.abspath(roots[0] / name)
        same = exact.get(file)
        like = [key for other, key in by_base[parts[-1]] if _one_ends_with_other(parts, other)] if same is None else []
        if like:
            real = os.path.realpath(file)
            same = next((key for key in like if os.path.realpath(roots[1] / given[key]) == real), None)
            like = [key for key in like if not _differ_in_size(roots[1] / given[key], file)]
        if same is None and len(like) > 1:
            raise DataError(
                f"{sources[0]}: '{name}' could be '{given[like[0]]}' or '{given[like[1]]}' of {sources[1]}; name it "
                "with enough of its folders to tell them apart"
            )
        if same is None and not like:
            continue
        key = like[0] if same is None else same
        if key in taken:
            raise DataError(
                f"{sources[0]}: '{wanted[taken[key]]}' and '{name}' both mean '{given[key]}' of {sources[1]}; remove "
                "one, or name both with their folders"
            )
        found[wanted_key] = key
        taken[key] = wanted_key
    if wanted and given and not found:
        first, other = next(iter(wanted.values())), next(iter(given.values()))
        raise DataError(
            f"none of the {len(wanted)} images of {sources[0]} is among the {len(given)} of {sources[1]}: the first "
            f"are called '{first}' and '{other}'. An image is known by its file name, and by its folders where both "
            "name some; a file that is there with another size is another image. Give files that name the same images"
        )
    return found


def match_store(store: LabelStore, images: ImageSet) -> dict[int, int]:
    """The id that a label store has for each image of a set that it holds, in the set's order.

    An image that the store skipped is matched as well and then left out, lest another take its place.

    Raises:
        DataError: an image that could be several of the store, or no image that is there.
    """
    files: dict[int | str, str] = {file: file for file in store.skipped}
    files.update(store.files.items())
    sources = (str(images.source), str(store.folder))
    found = match_names(images.names, files, roots=(images.root, Path()), sources=sources)
    return {image_id: place for image_id, place in found.items() if isinstance(place, int)}


def _parts(name: str) -> Parts:
    """Folders and file name for comparison: separators of Windows, dots and ways of writing an accent made alike."""
    parts = unicodedata.normalize("NFC", name.replace("\\", "/")).split("/")
    kept: list[str] = []
    for part in parts:
        if part == "..":
            kept.clear()
        elif part not in ("", "."):
            kept.append(part)
    return tuple(kept) or (name,)


def _one_ends_with_other(one: Parts, other: Parts) -> bool:
    common = min(len(one), len(other))
    return one[-common:] == other[-common:]


def _differ_in_size(one: Path, other: str) -> bool:
    """Whether both files are there and cannot be copies of each other."""
    try:
        return os.path.getsize(one) != os.path.getsize(other)
    except (OSError, ValueError):
        return False
