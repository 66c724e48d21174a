"""Images of one class each, for probes of whole images (README §11)."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sohes.data.images import is_image_name
from sohes.data.label_maps import IGNORE, LabelMap
from sohes.data.labelled import few
from sohes.data.listing import Listing
from sohes.data.prepare import resolve_labelled
from sohes.data.sources import check_images
from sohes.errors import DataError
from sohes.files import walk_files
from sohes.probes.data import SPLITS, ProbeImage, ProbeItem, draw, read_probe_data, shared_images, stamp
from sohes.progress import track
from sohes.records import content_hash
from sohes.rle import IntArray


@dataclass(frozen=True, kw_only=True)
class ClassedImage(ProbeImage):
    """An image of one class, a number from 0."""

    label: int


@dataclass(frozen=True, kw_only=True)
class ClassedImages:
    """Labelled data of a probe of whole images.

    Attributes:
        name: as tables call it.
        classes: names of those that occur in train, in label order.
        train, val: images of each split.
        of_val: how many of val there are in all.
        notes: what a reader of the scores should know.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[ClassedImage, ...]
    val: tuple[ClassedImage, ...]
    of_val: int
    notes: tuple[str, ...]

    def digest(self) -> str:
        """Hash of classes and images: it changes with the place, the size and the time of writing of any image."""
        images = [[*stamp(item.image), item.label] for item in (*self.train, *self.val)]
        return content_hash([self.classes, len(self.train), images])

    def labels(self, split: str) -> IntArray:
        """Classes (N,) of the images of "train" or "val"."""
        return np.array([item.label for item in (self.train if split == "train" else self.val)], np.int64)


@dataclass(frozen=True)
class _ClassedSplits:
    """What a source holds, labels being places in `classes`."""

    name: str
    classes: tuple[str, ...]
    train: list[ClassedImage]
    val: list[ClassedImage]
    notes: list[str]


def read_classed_images(
    source: str | Path, *, max_train: int | None = None, max_val: int | None = None
) -> ClassedImages:
    """Read images of one class each.

    Args:
        source: one of
            - a folder of images `train/CLASS/...` and `val/CLASS/...`, as ImageNet's;
            - what `read_probe_data` takes: the class of an image is that with most of its annotated pixels, background
              left out.
        max_train: train images at most, drawn with seed 0; None for all.
        max_val: val images at most, the first ones, in which classes of folders take turns; None for all.

    Raises:
        DataError: not there, or none of these; as `read_probe_data`; no image of a split has a class; train has fewer
            than two classes, or val none of them.
    """
    path = resolve_labelled(source)
    if all((path / split).is_dir() and not (path / f"{split}.json").exists() for split in SPLITS):
        found = _of_folders(path)
    else:
        found = _of_label_maps(path)
    train = draw(found.train, max_train)
    used = sorted({item.label for item in train})
    if len(used) < 2:
        alone = (
            f"all {len(train)} train images are of class '{found.classes[used[0]]}'"
            if used
            else "no train image has a class"
        )
        raise DataError(f"{path}: {alone}; a probe of whole images needs images of at least two")
    number = {label: place for place, label in enumerate(used)}
    unknown = Counter(found.classes[item.label] for item in found.val if item.label not in number)
    val = [item for item in found.val if item.label in number]
    notes = list(found.notes)
    if unknown:
        names = few([f"{name} ({count})" for name, count in sorted(unknown.items())])
        notes.append(
            f"{unknown.total()} of {len(found.val)} val images are of classes that no train image has, and are left "
            f"out: {names}"
        )
    if not val:
        raise DataError(f"{path}: no val image is of a class that a train image has; give both splits the same classes")
    numbered = [_renumbered(items, number) for items in (train, val[:max_val])]
    return ClassedImages(
        name=found.name,
        classes=tuple(found.classes[label] for label in used),
        train=numbered[0],
        val=numbered[1],
        of_val=len(val),
        notes=tuple(notes),
    )


def main_class(label_map: LabelMap, background: frozenset[int]) -> int | None:
    """The class with most pixels; the lowest of several; None where there is none.

    Args:
        label_map: (H, W) uint8, 255 where nothing is annotated.
        background: labels that are not counted.
    """
    counts = np.bincount(label_map.ravel(), minlength=IGNORE + 1)
    counts[[IGNORE, *background]] = 0
    return int(counts.argmax()) if counts.any() else None


def _of_folders(folder: Path) -> _ClassedSplits:
    notes: list[str] = []
    found: dict[str, list[tuple[str, ProbeImage]]] = {}
    for split in SPLITS:
        root = folder / split
        files = sorted(Path(entry.path) for entry in walk_files(root) if is_image_name(entry.name))
        inside = [file for file in files if file.parent != root]
        if not inside:
            raise DataError(f"{root}: no image in a folder of its class; put images into {root}/CLASS/")
        if len(inside) < len(files):
            notes.append(f"{len(files) - len(inside)} images directly in {root} have no class and are left out")
        checked, broken = check_images(Listing([str(file) for file in inside], range(1, len(inside) + 1)))
        if broken:
            reasons = few([f"{name} ({reason})" for name, reason in broken.items()])
            if not checked:
                raise DataError(f"{root}: none of the images can be read: {reasons}")
            notes.append(f"{len(broken)} of {len(inside)} images of {root} cannot be read and are left out: {reasons}")
        items = [ProbeImage(name=item.path.name, image=item.path, size_hw=item.size_hw) for item in checked]
        found[split] = _in_turns([(item.image.relative_to(root).parts[0], item) for item in items])
    classes = tuple(sorted({name for items in found.values() for name, _ in items}))
    place = {name: label for label, name in enumerate(classes)}
    train, val = ([_labelled(item, place[name]) for name, item in found[split]] for split in SPLITS)
    notes += shared_images(train, val)
    return _ClassedSplits(folder.name, classes, train, val, notes)


def _in_turns(items: Sequence[tuple[str, ProbeImage]]) -> list[tuple[str, ProbeImage]]:
    """The first image of each class, then the second of each, so that the first ones are of all classes."""
    by_class: dict[str, list[ProbeImage]] = defaultdict(list)
    for name, item in items:
        by_class[name].append(item)
    ranked = [(rank, name, item) for name, own in sorted(by_class.items()) for rank, item in enumerate(own)]
    return [(name, item) for _, name, item in sorted(ranked, key=lambda one: one[:2])]


def _of_label_maps(path: Path) -> _ClassedSplits:
    data = read_probe_data(path)
    notes = [f"label maps: {note}" for note in data.notes]
    splits: dict[str, list[ClassedImage]] = {}
    for split, items in (("train", data.train), ("val", data.val)):

        def label(item: ProbeItem) -> int | None:
            return main_class(item.label_map(), data.background)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            labels = list(track(pool.map(label, items), f"classes of {split} images", total=len(items)))
        splits[split] = [_labelled(item, label) for item, label in zip(items, labels, strict=True) if label is not None]
        if without := len(items) - len(splits[split]):
            notes.append(f"{without} of {len(items)} {split} images have no annotated class and are left out")
    names = few([data.classes[label] for label in sorted(data.background)])
    but = f", background left out ({names})" if names else ""
    notes.append(f"the class of an image is that with most of its annotated pixels{but}")
    return _ClassedSplits(data.name, data.classes, splits["train"], splits["val"], notes)


def _labelled(item: ProbeImage, label: int) -> ClassedImage:
    return ClassedImage(name=item.name, image=item.image, size_hw=item.size_hw, label=label)


def _renumbered(items: Sequence[ClassedImage], number: dict[int, int]) -> tuple[ClassedImage, ...]:
    return tuple(replace(item, label=number[item.label]) for item in items)
