"""What is trained on: images that can be read, and their split into train and held-out ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from sohes.data.coco import Annotation, ImageItem, ImageSet
from sohes.data.coco_writer import write_coco
from sohes.data.identity import match_names
from sohes.data.listing import Listing
from sohes.errors import DataError
from sohes.files import printable, read_json, write_json
from sohes.progress import Reporter

_VAL_FRACTION = 0.1
SOURCE_FILE = "source.json"  # what a folder of images was made of
GENERATED = "generated scenes"  # the name of images that are nobody's photographs


def data_name(folder: Path) -> str:
    """Name of the data that a folder of images was made of.

    Raises:
        DataError: it holds no `source.json` with a name.
    """
    path = folder / SOURCE_FILE
    remedy = 'make the images again, or write {"name": "..."} into it'
    if not path.exists():
        raise DataError(f"{path}: not there, so nothing says what these images are; {remedy}")
    try:
        return str(read_json(path)["name"])
    except (KeyError, TypeError):
        raise DataError(f"{path}: has no field 'name'; {remedy}") from None


@dataclass(frozen=True)
class Split:
    """Train and held-out images.

    Attributes:
        train: images to train on.
        val: images held out, disjoint from `train`.
        truth: id of a held-out image to its id in the ground truth; empty without one.
        unmatched: file names in the ground truth that no usable image answers to.
    """

    train: list[ImageItem]
    val: list[ImageItem]
    truth: dict[int, int] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)


def check_images(listing: Listing, *, threads: int | None = None) -> tuple[list[ImageItem], dict[str, str]]:
    """Decode every image once: the usable ones, with the listing's ids, and the skipped ones.

    Returns:
        The items, and the name of each broken file mapped to the reason.
    """
    items: list[ImageItem] = []
    skipped: dict[str, str] = {}
    pool = ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1))
    try:
        with Reporter("checking images", len(listing)) as reporter:
            results = pool.map(partial(_size_or_reason, listing), range(len(listing)))
            for image_id, name, result in zip(listing.ids, listing.names, results, strict=True):
                if isinstance(result, str):
                    skipped[printable(name)] = result
                else:
                    items.append(ImageItem(image_id, Path(name), *result))
                reporter.advance()
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt must not wait for the whole folder
    return items, skipped


def _size_or_reason(listing: Listing, place: int) -> tuple[int, int] | str:
    try:
        height, width, _ = listing.load(place).shape
    except DataError as error:
        return str(error).removeprefix(f"{printable(listing.names[place])}: ")
    return height, width


def split_images(
    items: Sequence[ImageItem],
    ground_truth: ImageSet | None = None,
    *,
    max_train: int | None = None,
    max_val: int | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    skipped: Mapping[str, str] | None = None,
) -> Split:
    """Hold images out: those the ground truth names, without one a share of them.

    Which image a ground-truth entry means `identity.match_names` decides. Limits draw at random by `seed`, the order
    of `items` is kept.

    Args:
        items: usable images.
        ground_truth: masks for some of them.
        max_train: most images to train on; None for all.
        max_val: most images to hold out; None for all.
        val_fraction: share held out where no ground truth decides, in (0, 1); None for 0.1. With a ground truth that
            names every image: None holds all of them out, and leaves none to train on.
        seed: of the draw.
        skipped: path and reason of the images that cannot be used; an entry that means one of them is left over.

    Raises:
        DataError: fewer than two images and no ground truth; one that names none of them; an entry that could mean two
            images; sizes that differ.
    """
    if len(items) < 2 and not ground_truth:
        raise DataError(f"{len(items)} usable image(s); at least two are needed, one to train on and one held out")
    rng = np.random.default_rng(seed)
    truth, unmatched = _match(items, ground_truth, skipped or {}) if ground_truth else ({}, [])
    held = [item for item in items if item.id in truth]
    if not ground_truth or (len(held) == len(items) and val_fraction is not None):
        fraction = _VAL_FRACTION if val_fraction is None else val_fraction
        held = _draw(items, max(1, round(fraction * len(items))), rng)
    held_ids = {item.id for item in held}
    train = _draw([item for item in items if item.id not in held_ids], max_train, rng)
    val = _draw(held, max_val, rng)
    if ground_truth:
        _check_sizes(val, truth, ground_truth)
    return Split(train, val, {item.id: truth[item.id] for item in val if item.id in truth}, unmatched)


def _draw(items: Sequence[ImageItem], count: int | None, rng: np.random.Generator) -> list[ImageItem]:
    if count is None or len(items) <= count:
        return list(items)
    return [items[index] for index in sorted(rng.permutation(len(items))[:count])]


def _match(
    items: Sequence[ImageItem], ground_truth: ImageSet, skipped: Mapping[str, str]
) -> tuple[dict[int, int], list[str]]:
    """Image ids to ground-truth ids, and the file names left over."""
    files: dict[int | str, str] = {file: file for file in skipped}
    files.update((item.id, str(item.path)) for item in items)
    names = ground_truth.names
    found = match_names(
        names, files, roots=(ground_truth.root, Path()), sources=(str(ground_truth.source), "the images given")
    )
    truth = {place: entry for entry, place in found.items() if isinstance(place, int)}
    if not truth:
        raise DataError(f"{ground_truth.source}: all its images were skipped, e.g. {next(iter(skipped.items()))}")
    matched = set(truth.values())
    return truth, [name for entry, name in names.items() if entry not in matched]


def _check_sizes(items: Sequence[ImageItem], truth: Mapping[int, int], ground_truth: ImageSet) -> None:
    for item in items:
        if item.id not in truth:
            continue
        entry = ground_truth.item(truth[item.id])
        if entry.size_hw != item.size_hw:
            raise DataError(
                f"{ground_truth.source}: image {entry.id} is {entry.height} x {entry.width} px (height x width) there, "
                f"but {item.path} is {item.height} x {item.width} px with its EXIF rotation applied; draw its masks "
                "again or remove it from the ground truth"
            )


def write_split(
    out: Path, split: Split, *, ground_truth: ImageSet | None = None, skipped: Mapping[str, str] | None = None
) -> None:
    """Write `train.json`, `val.json` (COCO form; masks of the held-out images only) and `skipped.json` into `out`."""
    out = Path(out)
    rows: dict[int, list[Annotation]] = {}
    if ground_truth:
        for item_id, truth_id in split.truth.items():
            rows[item_id] = [replace(row, image_id=item_id) for row in ground_truth.annotations.get(truth_id, ())]
    categories = ground_truth.categories if ground_truth else []
    write_coco(out / "train.json", split.train, {}, categories)
    write_coco(out / "val.json", split.val, rows, categories)
    entries = [{"file": file, "reason": reason} for file, reason in (skipped or {}).items()]
    write_json(out / "skipped.json", entries)
