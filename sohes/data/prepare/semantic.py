"""`sohes data prepare` for semantic data sets: a folder of label maps and a list of them a split (README §6)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sohes.data.images import image_size
from sohes.data.label_maps import write_listing
from sohes.data.prepare.build import draw, find, find_files
from sohes.data.prepare.semantic_sets import SEMANTIC_SETS, LabelledFile
from sohes.data.problems import Problems
from sohes.data.sources import SOURCE_FILE
from sohes.errors import DataError, unknown_name
from sohes.files import atomic_path, read_json, read_text, write_json
from sohes.progress import track


@dataclass(frozen=True)
class PreparedLabels:
    """The folder that was written, and what it holds.

    Attributes:
        path: the folder.
        images: of each split.
        chosen: which these are, in words, of a split of which lists are known.
        classes: how many.
        warnings: what was left out, and counts that are not the official ones.
    """

    path: Path
    images: dict[str, int]
    chosen: dict[str, str]
    classes: int
    warnings: list[str]

    def summary(self) -> str:
        """Two lines for people."""
        chosen = {split: f" ({words})" for split, words in self.chosen.items()}
        counts = ", ".join(f"{count} {split} images{chosen.get(split, '')}" for split, count in self.images.items())
        return f"{counts}, {self.classes} classes\nwritten to {self.path}"


def prepare_semantic(name: str, root: Path, out: Path, *, limit: int | None = None) -> PreparedLabels:
    """Write `labels/SPLIT/*.png`, `train.json` and `val.json` of a data set; its photographs stay where they are.

    What is broken is left out, counted and reported. An interrupted call resumes where it was: label maps that are
    there and no older than their source are kept.

    Args:
        name: of `SEMANTIC_SETS`.
        root: folder of the download.
        out: folder to write.
        limit: take that many images of each split, drawn with a fixed seed; None for all.

    Raises:
        DataError: an unknown name, needed files that are missing (all are named), a list of images that the download
            lacks, no usable image in a split, or an `out` that is no folder or holds something else.
    """
    if name not in SEMANTIC_SETS:
        raise DataError(unknown_name("data set", name, SEMANTIC_SETS))
    dataset = SEMANTIC_SETS[name]
    found = dict(zip(dataset.needs, find_files(name, dataset, root), strict=True))
    source = {"name": name, "description": dataset.title, "page": dataset.page, "root": str(root.resolve())}
    lists = {split: find(part.listed, root) for split, part in dataset.splits.items() if part.listed}
    chosen = {
        split: f"those of {path.relative_to(root)}" if path else "all of the download, which has no list"
        for split, path in lists.items()
    }
    source |= {f"{split}_images": words for split, words in chosen.items()}
    reuse = _claim(out, source)
    problems, warnings = Problems(), []
    pairs: dict[str, list[tuple[Path, Path]]] = {}
    for split, part in dataset.splits.items():
        entries, official = part.open([found[need] for need in part.needs]), part.images
        if listing := lists.get(split):
            entries, official = only_listed(entries, listing), part.listed_images
        targets = [out / "labels" / split / f"{entry.name}.png" for entry in entries]
        drawn = draw(list(zip(entries, targets, strict=True)), limit)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            work = pool.map(lambda pair: _write(*pair, reuse=reuse), drawn)
            faults = list(track(work, f"prepare {name} {split}", total=len(drawn)))
        for fault in filter(None, faults):
            problems.add("image that cannot be used", fault)
        pairs[split] = [
            (entry.image, target) for (entry, target), fault in zip(drawn, faults, strict=True) if not fault
        ]
        if not pairs[split]:
            raise DataError("; ".join([f"{root}: no image of {name} {split} can be used", *problems.lines()]))
        if len(entries) != official:
            warnings.append(
                f"the {'list' if listing else 'download'} has {len(entries)} {split} images, the official one "
                f"{official}; is it complete?"
            )
    for split, files in pairs.items():
        write_listing(out / f"{split}.json", files, dataset.classes)
    counts = {split: len(files) for split, files in pairs.items()}
    return PreparedLabels(out, counts, chosen, len(dataset.classes), problems.lines() + warnings)


def _claim(out: Path, source: dict[str, str]) -> bool:
    """Write into `out` what it is made of, before anything else; whether that stood there already."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: a file; --out must be a folder for {source['name']}")
    if not (out / SOURCE_FILE).is_file():
        if out.is_dir() and any(out.iterdir()):
            raise DataError(f"{out}: holds something else; give --out a new or an empty folder")
        write_json(out / SOURCE_FILE, source)
        return False
    before = read_json(out / SOURCE_FILE)
    if not isinstance(before, dict) or before.get("name") != source["name"]:
        raise DataError(f"{out}: holds another data set, see {SOURCE_FILE}; give --out a new or an empty folder")
    write_json(out / SOURCE_FILE, source)
    return before == source


def only_listed(entries: Sequence[LabelledFile], listing: Path) -> list[LabelledFile]:
    """Those of the entries that a text file names, one on each line, with a suffix or without.

    Raises:
        DataError: it cannot be read, names none, or names one that lacks its photograph or its label map.
    """
    names = dict.fromkeys(Path(line.strip()).stem for line in read_text(listing).splitlines() if line.strip())
    if not names:
        raise DataError(f"{listing}: names no image; give the whole list, or remove it to take all images")
    there = {entry.name for entry in entries if entry.image.is_file()}
    if missing := [name for name in names if name not in there]:
        raise DataError(
            f"{listing}: {len(missing)} of its {len(names)} images lack their photograph or their label map in the "
            f"download, the first is '{missing[0]}'; complete the download, or remove the list to take all images"
        )
    return [entry for entry in entries if entry.name in names]


def _write(entry: LabelledFile, target: Path, *, reuse: bool) -> str:
    """Write one label map; what is wrong, in words, or nothing."""
    try:
        if not entry.image.is_file():
            return f"{entry.image} is missing"
        if not entry.labels.is_file():
            return f"{entry.labels} is missing"
        if reuse and target.is_file() and target.stat().st_mtime >= entry.labels.stat().st_mtime:
            return ""
        labels = entry.read()
        height, width = image_size(entry.image)
        if labels.shape != (height, width):
            return f"{entry.labels} is {labels.shape[0]} x {labels.shape[1]} px, {entry.image} {height} x {width}"
        with atomic_path(target) as temporary:
            Image.fromarray(labels).save(temporary)
    except DataError as error:
        return str(error)
    return ""
