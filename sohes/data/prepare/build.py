"""`sohes data prepare`: check a download, convert it image by image, write one class-agnostic COCO file (README §5)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sohes.data.coco import ImageItem
from sohes.data.images import image_size
from sohes.data.prepare.catalogue import DATASETS, Dataset, Need
from sohes.data.prepare.semantic_sets import SemanticSet
from sohes.data.prepare.source import Source
from sohes.data.prepare.writer import CocoWriter
from sohes.data.problems import Problems
from sohes.errors import DataError, unknown_name
from sohes.files import atomic_path
from sohes.masks import AREA_CLASSES
from sohes.progress import track

SEED = 0  # of the draw of a subset


@dataclass(frozen=True)
class Prepared:
    """The file that was written, and what it holds.

    Attributes:
        path: the COCO file.
        counts: see `CocoWriter`.
        warnings: what was left out, and counts or checksums that are not the official ones.
    """

    path: Path
    counts: Counter[str]
    warnings: list[str]

    def summary(self) -> str:
        """Three lines for people."""
        images, masks = self.counts["images"], self.counts["masks"]
        names = ["with a parent", *(f"size {name.upper()}" for name in AREA_CLASSES)]
        shares = ", ".join(f"{name} {self.counts[name] / max(masks, 1):.1%}" for name in names)
        crowds = f", of them {self.counts['crowds']} crowds" if self.counts["crowds"] else ""
        return (
            f"{images} images, {masks} masks{crowds}, {masks / max(images, 1):.1f} per image\n"
            f"{shares}\nwritten to {self.path}"
        )


def prepare(name: str, root: Path, out: Path, *, limit: int | None = None) -> Prepared:
    """Write the class-agnostic COCO file of a data set.

    Masks are numbered from 1 in the order of the download, images keep their ids. What is broken is left out, counted
    and reported. The same download gives the same bytes.

    Args:
        name: of `DATASETS`.
        root: folder of the download.
        out: file to write.
        limit: take that many images, drawn with a fixed seed; None for what the data set says, usually all.

    Raises:
        DataError: an unknown name, needed files that are missing (all are named), or no usable image or mask.
    """
    if name not in DATASETS:
        raise DataError(unknown_name("data set", name, DATASETS))
    dataset = DATASETS[name]
    problems = Problems()
    files = find_files(name, dataset, root)
    warnings = wrong_digests(dataset, root)
    source = dataset.convert(root, files, problems)
    limit = limit or dataset.sample
    entries = draw(source.entries, limit)
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        writer = CocoWriter(file, out.resolve().parent, problems)
        for entry in track(entries, f"prepare {name}"):
            try:
                image = source.read(entry)
                check_image(image.item)
            except DataError as error:
                problems.add("image that cannot be used", str(error))
            else:
                writer.add(image)
        for what in ("images", "masks"):
            if writer.counts[what] == 0:
                raise DataError("; ".join([f"{root}: no {what} of {name} can be used", *problems.lines()]))
        names = len(source.categories)
        writer.finish(
            source.categories,
            {
                "description": f"{dataset.title}; {'one category' if names == 1 else f'{names} categories'}",
                "dataset": name,
                "page": dataset.page,
                "drawn": {"images": len(entries), "of": len(source.entries), "seed": SEED} if limit else None,
            },
        )
    warnings += problems.lines()
    return Prepared(out, writer.counts, warnings + other_counts(dataset, source, writer.counts))


def find_files(name: str, dataset: Dataset | SemanticSet, root: Path) -> list[Path]:
    """What the data set needs below the root.

    Raises:
        DataError: something is missing; the message names every missing file, the places searched, and its source.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; --root is the folder that holds the download of {name}")
    found, missing = [], []
    for need in dataset.needs:
        path = find(need, root)
        if path is None:
            missing.append(f"  {' or '.join(need.places)}\n    from {need.source}")
        else:
            found.append(path)
    if missing:
        raise DataError(
            f"{root}: {len(missing)} of the {len(dataset.needs)} files or folders that {name} needs are missing:\n"
            + "\n".join(missing)
            + f"\n{dataset.title}: {dataset.page}\nlicence: {dataset.licence}"
        )
    return found


def find(need: Need, root: Path) -> Path | None:
    """Where below the root it lies; None if it does not."""
    return next((path for place in need.places for path in sorted(root.glob(place))), None)


def wrong_digests(dataset: Dataset, root: Path) -> list[str]:
    """A line for each archive in the root whose checksum is not the official one; an archive may be gone."""
    lines = []
    for archive, expected in dataset.digests.items():
        algorithm, digest = expected.split(":")
        if (root / archive).is_file():
            with (root / archive).open("rb") as file:
                found = hashlib.file_digest(file, algorithm).hexdigest()
            if found != digest:
                lines.append(
                    f"{root / archive}: {algorithm} is {found}, the official one is {digest}; download it again"
                )
    return lines


def draw(entries: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """At most `limit` entries, drawn with the fixed seed, in their order."""
    if limit is None or len(entries) <= limit:
        return entries
    return [entries[index] for index in sorted(np.random.default_rng(SEED).permutation(len(entries))[:limit])]


def check_image(item: ImageItem) -> None:
    """Refuse an image that is missing, is none, or is of another size than its masks; the pixels are not decoded.

    Raises:
        DataError: naming the file.
    """
    if not item.path.is_file():
        raise DataError(f"{item.path} is missing")
    height, width = image_size(item.path)
    if sorted((height, width)) != sorted(item.size_hw):  # annotators may have seen it before EXIF turned it
        raise DataError(f"{item.path} is {height} x {width} px, its masks are {item.height} x {item.width}")


def other_counts(dataset: Dataset, source: Source, counts: Mapping[str, int]) -> list[str]:
    """A line for each count that is not the official one; masks are compared when every image was taken."""
    images, masks = len(source.entries), counts["masks"] + counts["left out"]
    found = {"images": (images, dataset.images), "categories": (len(source.categories), dataset.categories)}
    if counts["images"] == images:
        found["masks"] = (masks, dataset.masks)
    return [
        f"the download has {here} {what}, the official one {official}; is it complete?"
        for what, (here, official) in found.items()
        if official not in (None, here)
    ]
