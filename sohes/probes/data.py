"""Labelled images of a probe, and labels at the resolution of patches (README §2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sohes.data.coco import ImageSet, read_coco
from sohes.data.image_root import with_image_root
from sohes.data.images import is_image_name, load_image
from sohes.data.label_maps import IGNORE, LabelMap, one_sided, read_label_map, read_listing, semantic_classes
from sohes.data.labelled import Labelled, check_labelled, few, read_labelled
from sohes.data.prepare import resolve_labelled
from sohes.data.sources import SOURCE_FILE, split_images
from sohes.errors import DataError
from sohes.files import read_json, read_text, walk_files
from sohes.progress import track
from sohes.records import content_hash

T = TypeVar("T")

SPLITS = ("train", "val")
_HALF = 0.5  # of the images of a single COCO file are val


@dataclass(frozen=True, kw_only=True)
class ProbeImage:
    """One image.

    Attributes:
        name: for messages and pictures.
        image: its file, as `load_image` takes it.
        size_hw: height and width, px.
    """

    name: str
    image: Path
    size_hw: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ProbeItem(ProbeImage):
    """One labelled image.

    Attributes:
        labels: the file that its labels are in.
        label_map: gives the label map (H, W) uint8: class from 0, or 255 where none is annotated.
    """

    labels: Path
    label_map: Callable[[], LabelMap] = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """Labelled data of a probe.

    Attributes:
        name: as tables call it.
        classes: names, in label order; "class 3" where no name is known.
        background: labels of what lies behind objects: a class of that name, and categories that are marked as stuff.
        train, val: images of each split.
        of_train, of_val: how many there are in all.
        notes: what a reader of the scores should know.
    """

    name: str
    classes: tuple[str, ...]
    background: frozenset[int] = frozenset()
    train: tuple[ProbeItem, ...]
    val: tuple[ProbeItem, ...]
    of_train: int
    of_val: int
    notes: tuple[str, ...]

    def digest(self) -> str:
        """Hash of classes and images: it changes with the place, the size and the time of writing of any file."""
        files = [[stamp(item.image), stamp(item.labels)] for item in (*self.train, *self.val)]
        return content_hash([self.classes, len(self.train), files])


def read_probe_data(source: str | Path, *, max_train: int | None = None, max_val: int | None = None) -> ProbeData:
    """Read labelled data of a probe.

    Args:
        source: one of
            - a folder with `train.json` and `val.json`, each a COCO file with categories (painted as `semantic_classes`
              says), or each a list of images and PNG label maps (`sohes.data.label_maps.write_listing`);
            - a folder with `images/train`, `images/val` and PNG label maps of the same names in `masks/train` and
              `masks/val`, and perhaps `classes.txt`, a name on each line;
            - one COCO file with categories: half of its images, drawn with seed 0, are val;
            - the name of a prepared set (`sohes data prepare`).
        max_train: train images at most, drawn with seed 0; None for all.
        max_val: val images at most, the first ones; None for all.

    Raises:
        DataError: not there, or none of these; a label map that cannot be read, of another size than its image, or with
            a label that is no class; a split without labels or without an image that can be read; fewer than two
            classes.
    """
    path = resolve_labelled(source)
    if path.is_file():
        name, found = path.stem, _of_coco(_halves(path))
    elif all((path / f"{split}.json").is_file() for split in SPLITS):
        coco = "annotations" in read_json(path / "train.json")
        name = path.name
        found = _of_coco(read_labelled(path / "train.json", path / "val.json")) if coco else _of_listings(path)
    else:
        name, found = path.name, _of_folder(path)
    chosen = ""
    if (path / SOURCE_FILE).is_file():
        made_of = read_json(path / SOURCE_FILE)
        name = str(made_of.get("name", name))
        images = {split: made_of.get(f"{split}_images") for split in SPLITS}  # where lists of some are known
        chosen = "; ".join(f"{split} images of {name}: {words}" for split, words in images.items() if words)
    drawn = {"train": draw(found.items["train"], max_train), "val": found.items["val"][:max_val]}
    notes = [*found.notes, *filter(None, [chosen]), *shared_images(drawn["train"], drawn["val"])]
    return ProbeData(
        name=name,
        classes=found.classes,
        background=found.background,
        train=drawn["train"],
        val=drawn["val"],
        of_train=len(found.items["train"]),
        of_val=len(found.items["val"]),
        notes=tuple(notes),
    )


def shared_images(train: Sequence[ProbeImage], val: Sequence[ProbeImage]) -> list[str]:
    """A note on the images that are in both splits, where there are any."""
    both = {item.image.resolve() for item in train} & {item.image.resolve() for item in val}
    if not both:
        return []
    return [f"{len(both)} images are in train and in val, e.g. {min(both)}: on them the probe was trained"]


def stamp(path: Path) -> list[str | int]:
    """Place, size in bytes and time of writing of a file.

    Raises:
        DataError: it is not there.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: no such file") from error
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def squashed_labels(label_map: LabelMap, size_px: int) -> LabelMap:
    """A label map (H, W) squashed to a square by nearest neighbour, as Pillow does it."""
    return np.array(Image.fromarray(label_map).resize((size_px, size_px), Image.Resampling.NEAREST))


def patch_shares(label_map: LabelMap, *, size_px: int, patch_px: int, classes: int) -> NDArray[np.float32]:
    """Share of each class in each patch of an image that is squashed to a square.

    Args:
        label_map: (H, W) uint8.
        size_px: side of the square, a multiple of the patch.
        patch_px: side of a patch.
        classes: number of classes C.

    Returns:
        (h, w, C + 1) float32, sums of 1; the last one is the share of pixels without a label.
    """
    side = size_px // patch_px
    small = squashed_labels(label_map, size_px)
    label = np.where(small == IGNORE, classes, small).astype(np.int64)
    cells = label.reshape(side, patch_px, side, patch_px).transpose(0, 2, 1, 3).reshape(side * side, -1)
    places = cells + (classes + 1) * np.arange(side * side)[:, None]
    counts = np.bincount(places.ravel(), minlength=side * side * (classes + 1))
    return (counts / patch_px**2).astype(np.float32).reshape(side, side, classes + 1)


@dataclass(frozen=True, kw_only=True)
class _Splits:
    """What a source holds."""

    classes: tuple[str, ...]
    background: frozenset[int]
    items: dict[str, tuple[ProbeItem, ...]]
    notes: Sequence[str]


def _halves(path: Path) -> Labelled:
    """One COCO file as two splits."""
    images = with_image_root(read_coco(path))
    split = split_images(images.items, val_fraction=_HALF)
    halves = [_part(images, {item.id for item in items}) for items in (split.train, split.val)]
    labelled = check_labelled(*halves)
    note = f"{path}: one file; a random half of its images is val ({len(labelled.val)} of {len(images)})"
    return replace(labelled, notes=[note, *labelled.notes])


def _part(images: ImageSet, ids: set[int]) -> ImageSet:
    rows = {image_id: rows for image_id, rows in images.annotations.items() if image_id in ids}
    return replace(images, items=[item for item in images.items if item.id in ids], annotations=rows)


def _of_coco(labelled: Labelled) -> _Splits:
    found = semantic_classes(labelled)
    items = {
        split: tuple(
            ProbeItem(
                name=images.names[item.id],
                image=item.path,
                labels=images.source,
                size_hw=item.size_hw,
                label_map=partial(found.paint, split, item),
            )
            for item in images.items
        )
        for split, images in found.sets.items()
    }
    behind = frozenset(label for key, label in found.label.items() if key in found.stuff)
    return _Splits(
        classes=found.names, background=behind | _called_background(found.names), items=items, notes=found.notes
    )


def _of_listings(folder: Path) -> _Splits:
    read = {split: read_listing(folder / f"{split}.json") for split in SPLITS}
    classes = {split: names for split, (_, names) in read.items()}
    if classes["train"] != classes["val"]:
        raise DataError(f"{folder}: field 'classes' of train.json and of val.json differ; both need the same list")
    pairs = {split: pairs for split, (pairs, _) in read.items()}
    return _of_files(pairs, classes["train"], folder, listed="field 'classes' of train.json")


def _of_folder(folder: Path) -> _Splits:
    pairs: dict[str, list[tuple[Path, Path]]] = {}
    for split in SPLITS:
        images, masks = folder / "images" / split, folder / "masks" / split
        if not (images.is_dir() and masks.is_dir()):
            raise DataError(
                f"{folder}: no data of a probe; it needs train.json and val.json, or images/{split} and masks/{split} "
                "with PNG label maps of the images' names; a probe of whole images also takes train/CLASS and val/CLASS"
            )
        by_stem: dict[str, Path] = {}
        for entry in walk_files(images):
            if not is_image_name(entry.name):
                continue
            path = Path(entry.path)
            stem = str(path.relative_to(images).with_suffix(""))
            if stem in by_stem:
                raise DataError(f"{path} and {by_stem[stem]} would share one label map; rename one of them")
            by_stem[stem] = path
        labels = {
            str(Path(entry.path).relative_to(masks).with_suffix("")): Path(entry.path)
            for entry in walk_files(masks)
            if entry.name.lower().endswith(".png")
        }
        if lonely := sorted(labels.keys() - by_stem.keys()):
            raise DataError(f"{masks}: {len(lonely)} label maps without an image in {images}: {few(lonely)}")
        pairs[split] = [(by_stem[stem], labels[stem]) for stem in sorted(labels)]
    listed = folder / "classes.txt"
    names = tuple(line.strip() for line in read_text(listed).splitlines() if line.strip()) if listed.exists() else None
    return _of_files(pairs, names, folder, listed="classes.txt")


def _of_files(
    pairs: dict[str, list[tuple[Path, Path]]], names: tuple[str, ...] | None, folder: Path, *, listed: str
) -> _Splits:
    """Check every label map against its image, and see which classes occur; images that cannot be read are left out.

    `listed` says where the names stand.
    """
    items: dict[str, tuple[ProbeItem, ...]] = {}
    present: dict[str, set[int]] = {}
    notes: list[str] = []
    for split, files in pairs.items():
        if not files:
            raise DataError(f"{folder}: no label map in split '{split}'; at least one is needed")
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            checked = list(track(pool.map(_checked, files), f"checking {split} label maps", total=len(files)))
        if broken := [one for one in checked if isinstance(one, str)]:
            if len(broken) == len(files):
                raise DataError(f"{folder}: none of the images of split '{split}' can be read: {few(broken)}")
            left_out = f"{len(broken)} of {len(files)} images of split '{split}' cannot be read and are left out"
            notes.append(f"{left_out}: {few(broken)}")
        usable = [(*pair, *one) for pair, one in zip(files, checked, strict=True) if not isinstance(one, str)]
        if wrong := [fault for *_, fault in usable if fault]:
            raise DataError(
                f"{folder}: {len(wrong)} label map(s) of another size than their images: {few(wrong)}. Give each the "
                "size of its image, scaled by nearest neighbour"
            )
        present[split] = set()
        for _, mask, _, labels, _ in usable:
            present[split] |= labels
            if names is not None and labels and max(labels) >= len(names):
                raise DataError(
                    f"{mask}: label {max(labels)}, but {listed} has {len(names)} names, so labels end at "
                    f"{len(names) - 1}; add the name, or make such pixels 255"
                )
        if not present[split]:
            raise DataError(f"{folder}: all pixels of split '{split}' are 255; labels are needed in train and in val")
        items[split] = tuple(
            ProbeItem(
                name=image.name, image=image, labels=mask, size_hw=size_hw, label_map=partial(read_label_map, mask)
            )
            for image, mask, size_hw, *_ in usable
        )
    seen = present["train"] | present["val"]
    classes = names or tuple(f"class {label}" for label in range(max(seen) + 1))
    if len(seen) < 2:
        raise DataError(f"{folder}: only '{classes[min(seen)]}' occurs in the label maps; at least two classes needed")
    if never := [name for label, name in enumerate(classes) if label not in seen]:
        notes.append(f"{len(never)} of {len(classes)} classes never occur: {few(never)}")
    return _Splits(
        classes=classes,
        background=_called_background(classes),
        items=items,
        notes=[*notes, *one_sided(classes, present)],
    )


def _called_background(classes: Sequence[str]) -> frozenset[int]:
    return frozenset(label for label, name in enumerate(classes) if name.casefold() == "background")


def _checked(pair: tuple[Path, Path]) -> tuple[tuple[int, int], set[int], str] | str:
    """Size of the image, labels that occur, and what is wrong with the size of the label map; or why it is left out."""
    image, mask = pair
    label_map = read_label_map(mask)
    try:
        height, width, _ = load_image(image).shape
    except DataError as error:
        return str(error)
    fault = ""
    if label_map.shape != (height, width):
        fault = (
            f"{mask} is {label_map.shape[0]} x {label_map.shape[1]}, {image.name} {height} x {width} (height x width)"
        )
    return (height, width), set(np.unique(label_map).tolist()) - {IGNORE}, fault


def draw(items: Sequence[T], most: int | None) -> tuple[T, ...]:
    """As many of them at most, drawn with seed 0 and in their order; None for all."""
    if most is None or len(items) <= most:
        return tuple(items)
    chosen = np.random.default_rng(0).permutation(len(items))[:most]
    return tuple(items[place] for place in sorted(chosen.tolist()))
