"""Where images come from: a folder of photographs, a COCO file, and the split into train and held-out images."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from sohes.data.coco import Annotation, ImageItem, ImageSet, read_coco, write_coco
from sohes.data.images import SUFFIXES, load_image
from sohes.errors import DataError
from sohes.files import write_json
from sohes.progress import Reporter

__all__ = [
    "ImageItem",
    "ImageSet",
    "Split",
    "check_images",
    "read_coco",
    "scan_folder",
    "split_images",
    "write_split",
]


@dataclass(frozen=True)
class Split:
    """Train and held-out images.

    Attributes:
        train: images to learn from.
        val: images held out, disjoint from `train`.
        truth: id of a held-out image to its id in the ground truth; empty without one.
        unmatched: file names in the ground truth that no usable image answers to.
    """

    train: list[ImageItem]
    val: list[ImageItem]
    truth: dict[int, int] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)


def scan_folder(folder: Path) -> list[Path]:
    """Image files below `folder`, all levels, sorted by path; hidden files and folders are left out.

    Raises:
        DataError: the folder is missing, unreadable, or holds no image.
    """
    folder = Path(folder)
    if not folder.exists():
        raise DataError(f"{folder}: no such folder; give the folder that holds the images")
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file; give the folder that holds the images")

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); make it readable") from error

    found = []
    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where, name) for name in names if not name.startswith(".") and _is_image(name)]
    if not found:
        raise DataError(f"{folder}: no image found, also not in its subfolders; known kinds: {', '.join(SUFFIXES)}")
    return sorted(found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def check_images(paths: Sequence[Path], *, threads: int | None = None) -> tuple[list[ImageItem], dict[str, str]]:
    """Decode every image once: the usable ones, with ids counted from 1 in the order of `paths`, and the skipped ones.

    Returns:
        The items, and the path of each broken file mapped to the reason. A broken file uses up its id, so that mending
        it renumbers no other image.
    """
    items: list[ImageItem] = []
    skipped: dict[str, str] = {}
    pool = ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1))
    try:
        with Reporter("checking images", len(paths)) as reporter:
            for index, (path, result) in enumerate(zip(paths, pool.map(_size_or_reason, paths), strict=True)):
                if isinstance(result, str):
                    skipped[str(path)] = result
                else:
                    items.append(ImageItem(index + 1, Path(path).absolute(), *result))
                reporter.advance()
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt must not wait for the whole folder
    return items, skipped


def _size_or_reason(path: Path) -> tuple[int, int] | str:
    try:
        height, width, _ = load_image(path).shape
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    return height, width


def split_images(
    items: Sequence[ImageItem],
    ground_truth: ImageSet | None = None,
    *,
    max_train: int | None = None,
    max_val: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
) -> Split:
    """Hold images out: those the ground truth names, else `val_fraction` of them.

    An image belongs to a ground-truth entry when it is that very file, else when its path ends with the entry's
    `file_name`, else when it alone has the same base name. When the ground truth names every image, `val_fraction` of
    them are held out. Limits draw at random by `seed`, the order of `items` is kept.

    Args:
        items: usable images.
        ground_truth: masks for some or all of them.
        max_train: most images to train on; None for all.
        max_val: most images to hold out; None for all.
        val_fraction: share held out where the ground truth does not decide, in (0, 1).
        seed: of the draw.

    Raises:
        DataError: fewer than two images; no image, or two images, for a ground-truth entry; sizes that differ.
    """
    if len(items) < 2:
        raise DataError(f"{len(items)} usable image(s); at least two are needed, one to train on and one held out")
    rng = np.random.default_rng(seed)
    truth, unmatched = _match(items, ground_truth) if ground_truth else ({}, [])
    held = [item for item in items if item.id in truth]
    if not held or len(held) == len(items):
        held = _draw(items, max(1, round(val_fraction * len(items))), rng)
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


def _match(items: Sequence[ImageItem], ground_truth: ImageSet) -> tuple[dict[int, int], list[str]]:
    """Image ids to ground-truth ids, and the file names left over."""
    by_name: dict[str, list[ImageItem]] = defaultdict(list)
    for item in items:
        by_name[item.path.name].append(item)
    truth: dict[int, int] = {}
    unmatched = []
    for entry in ground_truth.items:
        found = _candidates(entry, by_name.get(entry.path.name, []), ground_truth.source.parent)
        if len(found) > 1:
            raise DataError(
                f"{ground_truth.source}: '{entry.path.name}' of image {entry.id} could be {found[0].path} or "
                f"{found[1].path}; give 'file_name' with enough of its folder to tell them apart"
            )
        if not found:
            unmatched.append(str(entry.path))
        elif found[0].id in truth:
            raise DataError(
                f"{ground_truth.source}: images {truth[found[0].id]} and {entry.id} are both {found[0].path}"
            )
        else:
            truth[found[0].id] = entry.id
    if not truth:
        example = f"it names e.g. '{ground_truth.items[0].path.name}'" if ground_truth.items else "it names no image"
        raise DataError(
            f"{ground_truth.source}: none of its {len(ground_truth)} images is among the {len(items)} given: "
            f"{example}, the images are called e.g. '{items[0].path.name}'; give the ground truth of these images"
        )
    return truth, unmatched


def _candidates(entry: ImageItem, same_name: list[ImageItem], folder: Path) -> list[ImageItem]:
    exact = [item for item in same_name if item.path.resolve() == entry.path.resolve()]
    if exact:
        return exact
    tail = PurePosixPath(entry.path.relative_to(folder) if entry.path.is_relative_to(folder) else entry.path).parts
    ending = [item for item in same_name if item.path.parts[-len(tail) :] == tail]
    return ending or same_name


def _check_sizes(items: Sequence[ImageItem], truth: Mapping[int, int], ground_truth: ImageSet) -> None:
    for item in items:
        if item.id not in truth:
            continue
        entry = ground_truth.item(truth[item.id])
        if entry.size_hw != item.size_hw:
            raise DataError(
                f"{ground_truth.source}: image {entry.id} is {entry.height} x {entry.width} px (height x width) there, "
                f"but {item.path} is {item.height} x {item.width} px with its EXIF rotation applied; draw its masks "
                "anew or remove it from the ground truth"
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
