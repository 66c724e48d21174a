"""Which mask an annotation is part of: the `parent_id` of COCO files, checked to be a forest (README §2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sohes.errors import DataError

_NAMED_AT_MOST = 5

Parents = Mapping[int, int | None]  # annotation id to the id of its parent; None for a root


def resolve_parents(
    path: Path, given: Parents, place: Mapping[int, int], image_of: Mapping[int, int]
) -> dict[int, int | None]:
    """The parent of every usable annotation; one that was left out hands its parts on to its own parent.

    Args:
        path: of the file.
        given: `parent_id` of all annotations, those left out among them.
        place: position of every usable annotation in the file.
        image_of: its image.

    Raises:
        DataError: parents that are no annotation of the image, or that go round in a circle; all are named. Or an
            annotation 0 that cannot be distinguished from the mark of a root.
    """
    above = {child: parent or None for child, parent in given.items()} if zero_is_root(path, given) else given
    wrong = []
    parents: dict[int, int | None] = {}
    for child in place:
        seen = {child}
        parent = above[child]
        while parent is not None and parent not in image_of and parent in above and parent not in seen:
            seen.add(parent)
            parent = above[parent]
        parents[child] = parent
        if parent is not None and (parent in seen or image_of.get(parent) != image_of[child]):
            wrong.append(f"annotations[{place[child]}] (parent_id {given[child]})")
    if wrong:
        raise DataError(
            f"{path}: a parent_id must be the id of another annotation of the same image, or null for a root; these "
            f"are not: {first_few(wrong)}"
        )
    if circle := _circle(parents):
        places = [f"annotations[{place[child]}]" for child in place if child in circle]
        raise DataError(f"{path}: by their parent_id these are their own ancestors: {first_few(places)}")
    return parents


def zero_is_root(path: Path, parents: Parents) -> bool:
    """Whether parent_id 0 means "none" in this file.

    Raises:
        DataError: 0 is an annotation and marks roots as well, so its parts cannot be told from roots.
    """
    if 0 not in parents:
        return True
    if parents[0] != 0:
        return False
    if set(parents.values()) <= {0, None}:  # no mask is part of another
        return True
    raise DataError(
        f"{path}: an annotation has the id 0, and parent_id 0 marks roots as well; write null for a root, or number "
        "the annotations from 1"
    )


def first_few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(names[:_NAMED_AT_MOST]) + more


def _circle(parents: Parents) -> set[int]:
    """The members of a cycle, or those that lead into it; empty without one."""
    safe: set[int | None] = {None}
    for start in parents:
        chain: dict[int | None, None] = {}
        current: int | None = start
        while current not in safe and current not in chain:
            chain[current] = None
            current = parents[current] if current is not None else None
        if current in chain:
            return {member for member in chain if member is not None}
        safe.update(chain)
    return set()
