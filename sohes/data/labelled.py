"""Labelled images of heads and probes: two COCO files that mean the same by a category, and fit their images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sohes.data.coco import Annotation, ImageSet, read_coco
from sohes.data.image_root import with_image_root
from sohes.data.listing import Listing
from sohes.data.sources import check_images
from sohes.errors import DataError, unknown_name
from sohes.files import read_json

Category = dict[str, Any]
T = TypeVar("T")

_MARKS = ("isthing", "ispart")
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Both splits, their categories those of train under train's ids; notes say what was left out of them."""

    train: ImageSet
    val: ImageSet
    notes: list[str]


def read_labelled(train: Path, val: Path) -> Labelled:
    """Read two COCO files; see `check_labelled`."""
    return check_labelled(*(with_image_root(read_coco(path)) for path in (train, val)))


def check_labelled(train: ImageSet, val: ImageSet) -> Labelled:
    """Two sets made to mean the same by a category; every image is opened once.

    The categories of val are matched to those of train by name, whatever their ids. Entries that cannot be used, and
    images that cannot be read, are left out.

    Raises:
        DataError: as `read_coco`; a split without images, or none that can be read; an annotation whose category is not
            listed; an annotated category of val that train does not list; two annotated ones that cannot be told apart
            by name; an image of another size than its annotations. All faults of a kind are in one message.
    """
    sets = [train, val]
    notes = [f"{images.source}: {line}" for images in sets for line in images.problems.lines()]
    _of_both(_check_categories, sets)
    usable = _of_both(_usable, _numbered_alike(*sets))
    notes += [note for _, found in usable for note in found]
    return Labelled(train=usable[0][0], val=usable[1][0], notes=notes)


def few(names: Sequence[str]) -> str:
    """The first ones, and how many more there are."""
    return "; ".join(names[:_SHOWN]) + (f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _of_both(check: Callable[[ImageSet], T], sets: Sequence[ImageSet]) -> list[T]:
    """What `check` returns for each split; the faults of both in one message."""
    results, faults = [], []
    for images in sets:
        try:
            results.append(check(images))
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n".join(faults))
    return results


def _check_categories(images: ImageSet) -> None:
    """Refuse a list of categories that contradicts itself, and annotations that it does not cover."""
    file = images.source
    if not images.items:
        raise DataError(f"{file}: field 'images' is empty; at least one image is needed")
    known: dict[int | None, str] = {}
    for category in images.categories:
        name = f"category {category['id']} '{category['name']}'"
        for key in _MARKS:
            if category.get(key, 0) not in (0, 1):
                raise DataError(f"{file}: field '{key}' of {name} is {category[key]!r}; it must be 0 or 1")
        if category["id"] in known:
            raise DataError(f"{file}: {name} repeats the id of '{known[category['id']]}'; ids must be unique")
        known[category["id"]] = category["name"]
    unlisted = {row.id: row.category_id for row in _rows(images) if row.category_id not in known}
    if not unlisted:
        return
    found: list[str] = []
    for index, entry in enumerate(read_json(file)["annotations"]):
        annotation = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(annotation, int | float) and annotation in unlisted:
            given = unlisted[int(annotation)]
            found.append(f"annotations[{index}] has {'no category_id' if given is None else f'category_id {given}'}")
    listed = few([f"{key} '{name}'" for key, name in known.items()]) or "none"
    raise DataError(
        f"{file}: 'categories' does not list the category of {len(unlisted)} annotation(s): {few(found)}; it lists "
        f"{listed}. Add what is missing, or remove these annotations"
    )


def _numbered_alike(train: ImageSet, val: ImageSet) -> list[ImageSet]:
    """Both with the categories of train, found for val by name."""
    listed = {category["name"]: category for category in reversed(train.categories)}
    alike: dict[str, list[tuple[ImageSet, Category]]] = {}
    unknown = []
    for images in (train, val):
        used = {row.category_id for row in _rows(images)}
        for category in images.categories:
            if category["id"] not in used:
                continue
            name = category["name"]
            same = alike.setdefault(" ".join(name.split()).casefold(), [])
            for others, other in same:
                if others is images or other["name"] != name:
                    raise DataError(
                        f"{images.source}: category {category['id']} '{name}' and category {other['id']} "
                        f"'{other['name']}' of {others.source} cannot be told apart; classes are matched by name, so "
                        "give each one id in a file, and the same spelling in both"
                    )
            same.append((images, category))
            if images is train:
                listed[name] = category  # of two with this name, the one that has annotations
            elif name not in listed:
                unknown.append(unknown_name("category", name, listed))
    if unknown:
        raise DataError(
            f"{val.source}: {len(unknown)} annotated categories are not among those of {train.source}: {few(unknown)}. "
            "Classes are matched by name: rename these, or list them in train's 'categories' as well"
        )
    categories = [category for category in train.categories if listed[category["name"]] is category]
    number: dict[int | None, int] = {c["id"]: listed[c["name"]]["id"] for c in val.categories if c["name"] in listed}
    rows = {
        image_id: [replace(row, category_id=number[row.category_id]) for row in group]
        for image_id, group in val.annotations.items()
    }
    return [replace(train, categories=categories), replace(val, categories=categories, annotations=rows)]


def _usable(images: ImageSet) -> tuple[ImageSet, list[str]]:
    """Only the images that can be read, each of the size that its annotations are made for; a note about the others."""
    found, broken = check_images(Listing.of_items(images.items))
    reasons = [f"{file} ({reason})" for file, reason in broken.items()]
    if not found:
        raise DataError(f"{images.source}: none of its {len(images)} images can be read: {few(reasons)}")
    items = [images.item(read.id) for read in found]
    wrong = [
        f"{item.path} is {read.height} x {read.width}, its entry says {item.height} x {item.width}"
        for item, read in zip(items, found, strict=True)
        if item.size_hw != read.size_hw
    ]
    if wrong:
        raise DataError(
            f"{images.source}: {len(wrong)} image(s) are of another size (height x width, EXIF rotation applied) than "
            f"their annotations: {few(wrong)}. Use the images that were annotated, or scale the annotations"
        )
    if not reasons:
        return images, []
    gone = len(images) - len(items)
    note = f"{images.source}: {gone} of {len(images)} images cannot be read and are left out: {few(reasons)}"
    rows = {item.id: images.annotations[item.id] for item in items if item.id in images.annotations}
    return replace(images, items=items, annotations=rows), [note]


def _rows(images: ImageSet) -> list[Annotation]:
    return [row for group in images.annotations.values() for row in group]
