"""What the gallery shows: images of the runs, and the forests that their label stores hold of them.

A region's parent is the nearest of its ancestors in the Parquet that is shown (README §2, §3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from results.report.panels import data_uri, encoded_panel, matched_colours, ordered, page_sized
from results.runs import Run
from sohes.data.coco import ImageItem, ImageSet, read_coco
from sohes.data.draw import best_masks, paint
from sohes.data.identity import match_store
from sohes.data.image_root import with_image_root
from sohes.data.images import load_image
from sohes.data.label_store import LabelStore
from sohes.data.prepare import resolve_ground_truth
from sohes.data.sources import GENERATED, data_name
from sohes.errors import DataError
from sohes.files import file_digest
from sohes.masks import MaskForest

IMAGES = 12  # at most
_TRUTH = "ground truth"  # name of its panel
_SETS = 4  # of images at most
_HERO_REGIONS = 16


@dataclass(frozen=True)
class Shown:
    """Forests of one image set that stand side by side.

    Attributes:
        title: of the image set.
        truth: its COCO file; without annotations there is no ground truth.
        stores: label store by the name of what made it, in the order of the panels.
        public: whether the images may stand in a page without having been asked for.
        start: of the stores, the one that the last one came from; empty where they have nothing to do with each other.
    """

    title: str
    truth: Path
    stores: Mapping[str, Path]
    public: bool
    start: str = ""


@dataclass(frozen=True)
class Gallery:
    """What the page holds of it.

    Attributes:
        images: JSON-able, see `report.js`.
        hero: caption and data URI of the panels of the first picture.
        notes: what is not shown, and why.
    """

    images: tuple[dict[str, Any], ...] = ()
    hero: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def shown_of(run: Run) -> Iterator[Shown]:
    """What a run folder holds to look at: phases on held-out images, cells of a suite, photographs."""
    suite: dict[tuple[str, str], dict[str, Path]] = {}
    for record in run.records:
        stage, config = run.folder / record.stage, record.config
        if _is_store(stage / "phase3"):
            method = config.get("method", "SOHES")
            named = {f"{method} labels (phase 1)": run.folder / "explore" / "val"}
            named |= {f"{method} phase 2": stage / "phase2", f"{method} phase 3": stage / "phase3"}
            yield replace(_held_out(run, named), start=next(iter(named)))
        elif _is_store(stage / "trained"):
            named = {"phase 1": stage / "phase1", "trained segmenter": stage / "trained"}
            yield Shown("photographs", stage / "images.json", named, public=True, start="phase 1")
        elif _is_store(stage / "predictions"):
            if "model" in config:
                key = config["dataset"], config.get("ground_truth") or config["dataset"]
                suite.setdefault(key, {})[config["model"]] = stage / "predictions"
            elif "dataset" not in config:  # else of squares, for CLIP to name
                method = next((row.method for row in record.measurements), record.stage)
                yield _held_out(run, {method: stage / "predictions"})
    for (dataset, truth), named in suite.items():
        yield Shown(dataset, resolve_ground_truth(truth), named, public=False)


def _is_store(folder: Path) -> bool:
    return (folder / "labels-00000.parquet").is_file()


def _held_out(run: Run, named: Mapping[str, Path]) -> Shown:
    images = run.folder / "images"
    dataset = data_name(images)
    stores = {name: store for name, store in named.items() if _is_store(store)}
    return Shown(f"{dataset}, held out", images / "val.json", stores, public=dataset == GENERATED)


def gallery(runs: Iterable[Run], pictures: Path | None = None) -> Gallery:
    """The first images of each image set that runs hold forests of, `IMAGES` in all.

    Args:
        runs: of those that show the same image set, what the first has of a system.
        pictures: folder of the photographs that the runs' data sets name; without it none of them is shown.
    """
    notes: dict[str, None] = {}
    sets = []
    for shown in _joined(runs, notes):
        if not shown.public and pictures is None:
            notes[f"{shown.title}: photographs are shown where --pictures DIR names their folder"] = None
            continue
        try:
            sets.append(_OpenedSet.read(shown, pictures))
        except (DataError, OSError) as error:
            notes[str(error)] = None
    sets = sorted(sets, key=lambda one: not one.truth.annotations)[:_SETS]
    shares = _shares([len(one.truth) for one in sets])
    images = [one.encoded(item) for one, share in zip(sets, shares, strict=True) for item in one.truth.items[:share]]
    hero = next((one.hero(one.truth.items[0]) for one in sets if len(one.truth)), ())
    return Gallery(tuple(images), hero, tuple(notes))


def _joined(runs: Iterable[Run], notes: dict[str, None]) -> list[Shown]:
    """What runs show of the same images together; a set of the same name with other images is another seed's."""
    sets: dict[str, Shown] = {}
    for run in runs:
        try:
            for shown in shown_of(run):
                truth = file_digest(shown.truth) if shown.truth.is_file() else shown.title
                if truth in sets:
                    sets[truth] = _side_by_side(sets[truth], shown)
                elif shown.title not in {one.title for one in sets.values()}:
                    sets[truth] = shown
        except (DataError, OSError, KeyError) as error:
            notes[f"run {run.name}: {error}"] = None
    return list(sets.values())


def _side_by_side(first: Shown, second: Shown) -> Shown:
    """Both of one truth: what came from a start stands last; of a system that both have, the first's."""
    last, other = (second, first) if second.start and not first.start else (first, second)
    stores = {name: first.stores.get(name) or second.stores[name] for name in (*other.stores, *last.stores)}
    return replace(max(first, second, key=lambda one: one.public), stores=stores, start=last.start)


def _shares(sizes: Sequence[int]) -> list[int]:
    """How many images of each set make up `IMAGES`: equally many, and what small sets lack goes to larger ones.

    >>> _shares([80, 4])
    [8, 4]
    """
    shares = [0] * len(sizes)
    for place, index in enumerate(sorted(range(len(sizes)), key=lambda index: sizes[index])):
        shares[index] = min(sizes[index], (IMAGES - sum(shares)) // (len(sizes) - place))
    return shares


@dataclass(frozen=True)
class _OpenedSet:
    """Images that all stores of `shown` hold, and where each store has them."""

    shown: Shown
    truth: ImageSet
    stores: Mapping[str, tuple[LabelStore, Mapping[int, int]]]

    @classmethod
    def read(cls, shown: Shown, pictures: Path | None) -> _OpenedSet:
        truth = read_coco(shown.truth)
        truth = with_image_root(truth) if shown.public else _lying_in(truth, pictures)
        stores = {name: LabelStore(folder) for name, folder in shown.stores.items()}
        places = {name: (store, match_store(store, truth)) for name, store in stores.items()}
        everywhere = set.intersection(*(set(place) for _, place in places.values()))
        return cls(shown, _only(truth, everywhere), places)

    def forests(self, item: ImageItem) -> dict[str, MaskForest]:
        """By the name of their panel, the ground truth first."""
        forests = {name: store.forest(place[item.id]) for name, (store, place) in self.stores.items()}
        if not self.truth.annotations:
            return forests
        truth = self.truth.forest(item.id)
        return {_TRUTH: truth.select(np.flatnonzero(truth.attributes["iscrowd"] == 0)), **forests}

    def encoded(self, item: ImageItem) -> dict[str, Any]:
        """The image and its forests, JSON-able."""
        image, forests = page_sized(load_image(item.path)), self.forests(item)
        size_hw = (image.shape[0], image.shape[1])
        truth = forests.get(_TRUTH)
        return {
            "name": item.path.stem,
            "set": self.shown.title,
            "size": list(size_hw),
            "area": item.height * item.width,
            "source": data_uri(image),
            "panels": [encoded_panel(name, forest, truth, size_hw) for name, forest in forests.items()],
        }

    def hero(self, item: ImageItem) -> tuple[tuple[str, str], ...]:
        """From the image over the first system to the last, and what people see."""
        image, forests = page_sized(load_image(item.path)), self.forests(item)
        truth = {name: forests.pop(name) for name in (_TRUTH,) if name in forests}
        names = list(forests)
        start = self.shown.start if self.shown.start in names else ""
        drawn = {name: forests[name] for name in dict.fromkeys((start or names[0], names[-1]))} | truth
        words = {start: f"start: {start}", names[-1]: f"result: {names[-1]}"} if start else {}
        panels = [("image", data_uri(image))]
        for name, forest in drawn.items():
            order = ordered(forest) if name in truth else ordered(forest, best_masks(forest, _HERO_REGIONS))
            best = forest.select(order)
            picture = paint(image, best, matched_colours(best, truth.get(_TRUTH)))
            panels.append((words.get(name, name), data_uri(picture)))
        return tuple(panels)


def _only(truth: ImageSet, image_ids: set[int]) -> ImageSet:
    items = [item for item in truth.items if item.id in image_ids]
    return ImageSet(truth.source, items, truth.annotations, truth.categories, truth.image_root)


def _lying_in(truth: ImageSet, folder: Path | None) -> ImageSet:
    """The images that lie in `folder`, under their name or the last part of it."""
    assert folder is not None
    items = []
    for item in truth.items:
        name = truth.names[item.id]
        path = next((p for p in (folder / name, folder / Path(name).name) if p.is_file()), None)
        if path is not None:
            items.append(ImageItem(item.id, path, item.height, item.width))
        if len(items) == IMAGES:
            break
    if not items:
        raise DataError(f"--pictures {folder}: none of the images of {truth.source} lies there")
    return ImageSet(truth.source, items, truth.annotations, truth.categories, truth.image_root)
