"""Generated scenes with an exact forest of ground truth: textured stuff, and objects made of parts made of subparts.

Made for demonstrations and tests (README §7). The masks are those of the visible pixels, so a part lies within its
whole to the pixel. The same seed and index give the same picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sohes.data.coco import Annotation, ImageItem
from sohes.data.coco_writer import write_coco
from sohes.data.scenes.canvas import Band, Canvas
from sohes.data.scenes.figures import FIGURES, PARTS, Figure, Points
from sohes.data.scenes.textures import Rng
from sohes.data.sources import GENERATED, SOURCE_FILE
from sohes.errors import DataError
from sohes.files import atomic_path, read_json, write_json
from sohes.masks import MaskForest, ancestors_of
from sohes.progress import track
from sohes.rle import BoolArray, encode_masks

STUFF = ("sky", "hill", "grass", "sand", "water", "road", "brick", "wood")
VERSION = 2  # of what is written; raise it when the same seed gives something else
MIN_AREA_PX = 16
MIN_VISIBLE = 0.2  # share of an entity that must be in sight to be labelled
MAX_SHARE = 0.9  # a part that is this much of its whole is the same mask by the coverage rule
_SUPERSAMPLE = 2
_VAL_OFFSET = 1_000_000  # scene index of the first held-out scene, so that more training scenes change none of them


def _categories() -> list[dict[str, Any]]:
    """COCO categories: things, stuff (`isthing` 0) and parts (`ispart` 1), by the marks that `transfer.data` reads."""
    rows: list[dict[str, Any]] = [{"name": kind, "supercategory": "object", "isthing": 1} for kind in PARTS]
    rows += [{"name": kind, "supercategory": "stuff", "isthing": 0} for kind in STUFF]
    rows += [
        {"name": f"{kind}:{part}", "supercategory": kind, "isthing": 1, "ispart": 1}
        for kind, parts in PARTS.items()
        for part in parts
    ]
    return [{"id": index} | row for index, row in enumerate(rows, start=1)]


CATEGORIES = _categories()
_CATEGORY_ID = {row["name"]: row["id"] for row in CATEGORIES}


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        forest: masks of the visible pixels; scores 1.
        names: category of each mask: "car", "car:wheel", "grass".
        kinds: category of the root above each mask: "car", "car", "grass".
    """

    image: NDArray[np.uint8]
    forest: MaskForest
    names: tuple[str, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class _Slot:
    """Where objects of some kinds stand: the line of their feet and their size there, in image sides."""

    kinds: tuple[str, ...]
    foot: tuple[float, float]
    size: tuple[float, float]
    count: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class _Theme:
    bands: tuple[Band, ...]
    slots: tuple[_Slot, ...]


_SKY = Band("sky", "sky")
_THEMES = (
    _Theme(  # meadow
        (_SKY, Band("hill", "hill", (0.24, 0.38), 0.07), Band("grass", "grass", (0.46, 0.58), 0.02)),
        (
            _Slot(("house", "tree", "house"), (0.62, 0.72), (0.42, 0.55), (1, 2)),
            _Slot(("person", "flower", "car", "tree"), (0.84, 0.97), (0.42, 0.58), (1, 2)),
        ),
    ),
    _Theme(  # street
        (_SKY, Band("brick", "brick", (0.08, 0.22)), Band("road", "road", (0.6, 0.7))),
        (
            _Slot(("tree", "person"), (0.66, 0.72), (0.46, 0.58), (1, 2)),
            _Slot(("car", "car", "person"), (0.84, 0.96), (0.46, 0.62), (1, 2)),
        ),
    ),
    _Theme(  # suburb
        (_SKY, Band("grass", "grass", (0.42, 0.5), 0.03), Band("road", "road", (0.7, 0.78), 0.004)),
        (
            _Slot(("house", "tree", "house"), (0.62, 0.7), (0.48, 0.6), (1, 2)),
            _Slot(("car", "car", "person"), (0.86, 0.96), (0.44, 0.6), (1, 2)),
        ),
    ),
    _Theme(  # garden
        (_SKY, Band("wood", "wood", (0.16, 0.3)), Band("grass", "grass", (0.58, 0.68), 0.02)),
        (
            _Slot(("tree", "house"), (0.68, 0.76), (0.5, 0.62), (1, 2)),
            _Slot(("flower", "flower", "person"), (0.86, 0.97), (0.42, 0.56), (1, 3)),
        ),
    ),
    _Theme(  # beach
        (_SKY, Band("water", "water", (0.36, 0.44)), Band("sand", "sand", (0.66, 0.76), 0.025)),
        (
            _Slot(("boat",), (0.5, 0.62), (0.4, 0.52), (1, 2)),
            _Slot(("person", "flower", "car"), (0.86, 0.97), (0.44, 0.58), (1, 2)),
        ),
    ),
    _Theme(  # harbour
        (_SKY, Band("water", "water", (0.28, 0.4)), Band("wood", "deck", (0.74, 0.82))),
        (
            _Slot(("boat",), (0.52, 0.7), (0.44, 0.58), (1, 2)),
            _Slot(("person", "flower"), (0.88, 0.97), (0.44, 0.58), (1, 2)),
        ),
    ),
    _Theme(  # under water
        (Band("water", "deep_water"), Band("sand", "sand", (0.74, 0.86), 0.04)),
        (_Slot(("fish",), (0.16, 0.78), (0.34, 0.52), (3, 5)),),
    ),
)
_FLOATS = {"boat", "fish"}  # kinds without a shadow on the ground
_TILT = {"fish": 0.4, "boat": 0.09, "flower": 0.12, "person": 0.06}  # largest turn, in radians
_SCALE = {"car": 1.0, "house": 0.95, "person": 0.95, "tree": 1.1, "fish": 0.95, "flower": 0.85, "boat": 0.95}


def render_scene(seed: int, index: int, size: int = 224) -> Scene:
    """Scene number `index` of the world `seed`, `size` px square.

    Left out of the forest are entities below 16 px² or with less than 20 % in sight, and parts that are 90 % of their
    whole; what is below them moves up to the next ancestor that stays. The parts of a whole left out go with it.
    """
    rng = np.random.default_rng((seed, index))
    canvas = Canvas(rng, size * _SUPERSAMPLE)
    theme = _THEMES[rng.integers(len(_THEMES))]
    canvas.paint_bands(theme.bands)
    for figure, place in _arrange(theme, rng, canvas.side):
        canvas.paint_figure(figure, place, shadow=figure.kind not in _FLOATS)
    forest, nodes = _forest(canvas)
    names = tuple(canvas.names[node] for node in nodes)
    return Scene(_photograph(canvas, size), forest, names, tuple(name.split(":")[0] for name in names))


def _arrange(theme: _Theme, rng: Rng, side: int) -> Iterator[tuple[Figure, Points]]:
    """Figures of a scene from back to front, each with its map to the canvas."""
    placed: list[tuple[float, float, float]] = []  # x, foot and size of those before
    found = []
    for slot in theme.slots:
        for _ in range(rng.integers(slot.count[0], slot.count[1] + 1)):
            kind = slot.kinds[rng.integers(len(slot.kinds))]
            size = rng.uniform(*slot.size) * _SCALE[kind]
            x, foot = _free_place(rng, slot, placed, size)
            placed.append((x, foot, size))
            found.append((foot, kind, x, size))
    for foot, kind, x, size in sorted(found):
        figure = FIGURES[kind](rng)
        turn = rng.uniform(-1, 1) * _TILT.get(kind, 0.03)
        flip = rng.choice((-1.0, 1.0))
        cos, sin = np.cos(turn) * size * side, np.sin(turn) * size * side
        yield figure, np.array(((flip * cos, flip * sin), (-sin, cos), (x * side, foot * side)))


def _free_place(rng: Rng, slot: _Slot, placed: list[tuple[float, float, float]], size: float) -> tuple[float, float]:
    """The least crowded of a few random places: objects may overlap, but seldom hide one another."""
    best, best_gap = (0.5, 0.5), -np.inf
    for _ in range(8):
        x, foot = rng.uniform(0.12, 0.88), rng.uniform(*slot.foot)
        gaps = [np.hypot(x - other, 0.8 * (foot - line)) / (size + reach) for other, line, reach in placed]
        gap = min(gaps, default=1.0) + 0.05 * rng.random()
        if gap > best_gap:
            best, best_gap = (x, foot), gap
    return best


def _photograph(canvas: Canvas, size: int) -> NDArray[np.uint8]:
    """Scale down, light, and add the grain of a camera."""
    rng = canvas.rng
    picture = cv2.resize(canvas.colour, (size, size), interpolation=cv2.INTER_AREA)
    tint = np.float32(rng.uniform(0.88, 1.06)) * (1 + rng.uniform(-0.05, 0.05, 3).astype(np.float32))
    across = np.linspace(-1, 1, size, dtype=np.float32)
    vignette = 1 - 0.07 * (across[:, None] ** 2 + across[None, :] ** 2)
    picture = picture * tint * vignette[..., None]
    picture += rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(1.5, 4))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _forest(canvas: Canvas) -> tuple[MaskForest, list[int]]:
    """The labelled entities, and the canvas node of each."""
    owner = canvas.owner[_SUPERSAMPLE // 2 :: _SUPERSAMPLE, _SUPERSAMPLE // 2 :: _SUPERSAMPLE]
    count, parents = len(canvas.names), canvas.parents
    masks: BoolArray = owner[None] == np.arange(count)[:, None, None]
    seen = np.bincount(canvas.owner.ravel(), minlength=count)
    full = np.array(canvas.full)
    for node in reversed(range(count)):  # a parent comes before its parts
        if parents[node] >= 0:
            masks[parents[node]] |= masks[node]
            seen[parents[node]] += seen[node]
            full[parents[node]] += full[node]
    areas = masks.sum((1, 2))
    labelled = (areas >= MIN_AREA_PX) & (seen >= MIN_VISIBLE * full)
    above = np.full(count, -1)  # nearest labelled ancestor
    for node, parent in enumerate(parents):
        if parent < 0:
            continue
        above[node] = parent if labelled[parent] else above[parent]
        labelled[node] &= above[node] >= 0 and areas[node] < MAX_SHARE * areas[above[node]]
    nodes = np.flatnonzero(labelled)
    place = np.full(count + 1, -1)
    place[nodes] = np.arange(len(nodes))
    parent_of = place[above[nodes]].astype(np.int64)
    forest = MaskForest(
        size_hw=(owner.shape[0], owner.shape[1]),
        rles=encode_masks(masks[nodes]),
        scores=np.ones(len(nodes), dtype=np.float32),
        ancestor=ancestors_of(parent_of),
        parent=parent_of,
    )
    return forest, nodes.tolist()


def write_scenes(out: Path, *, train: int, val: int, size: int = 224, seed: int = 0) -> None:
    """Write generated scenes into `out`: `train/*.png`, `val/*.png`, `train.json`, `val.json` (COCO), `source.json`.

    Scenes of a finished call with the same arguments are left as they are. Held-out scenes do not depend on `train`.

    Raises:
        DataError: `train` or `val` below 1, or `size` below 64.
    """
    for name, value, least in (("train", train, 1), ("val", val, 1), ("size", size, 64)):
        if value < least:
            raise DataError(f"generated scenes: '{name}' is {value}; it must be at least {least}")
    for split, count, offset in (("train", train, 0), ("val", val, _VAL_OFFSET)):
        _write_split(Path(out), split, range(offset, offset + count), size, seed)
    write_json(Path(out) / SOURCE_FILE, {"name": GENERATED})


def _write_split(out: Path, split: str, indices: range, size: int, seed: int) -> None:
    info = {"generator": "sohes scenes", "version": VERSION, "seed": seed, "size": size, "count": len(indices)}
    listing = out / f"{split}.json"
    names = [f"{split}/{place:06d}.png" for place in range(len(indices))]
    if listing.exists() and read_json(listing).get("info") == info and all((out / name).exists() for name in names):
        return
    items: list[ImageItem] = []
    annotations: dict[int, list[Annotation]] = {}
    first = 1
    for index, name in track(list(zip(indices, names, strict=True)), f"{split} scenes"):
        scene = render_scene(seed, index, size)
        item = ImageItem(index + 1, out / name, size, size)
        with atomic_path(item.path) as temporary:
            Image.fromarray(scene.image).save(temporary, compress_level=4)
        items.append(item)
        annotations[item.id] = _annotations(scene, item.id, first)
        first += len(scene.forest)
    write_coco(listing, items, annotations, CATEGORIES, info=info)


def _annotations(scene: Scene, image_id: int, first: int) -> list[Annotation]:
    parents = [int(parent) for parent in scene.forest.parent]
    return [
        Annotation(first + place, image_id, _CATEGORY_ID[name], rle, None if parent < 0 else first + parent)
        for place, (name, rle, parent) in enumerate(zip(scene.names, scene.forest.rles, parents, strict=True))
    ]
