"""Predictions of any system as forests by image id, made when asked for; what is broken is named, skipped and counted.

Four sources: a label store, a segmenter folder (which is run, its predictions kept as a label store), a COCO file with
scores as `sohes labels export` writes it, and a COCO results file of another system,
`[{"image_id": 7, "segmentation": {"size": ..., "counts": ...}, "score": 0.9}, ...]`. Its image ids are those of the
ground truth, by the definition of the format; everywhere else images are known by their names (`data.identity`). A
results file is read entry by entry; of all its masks the compressed RLE stays in memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sohes.data.coco import Annotation, ImageItem, ImageSet, check_segmentation, read_coco
from sohes.data.identity import match_names, match_store
from sohes.data.label_store import LabelStore
from sohes.data.labelling import label_images
from sohes.data.problems import Problems
from sohes.errors import ConfigError, DataError
from sohes.evaluation.inputs import first_images
from sohes.files import file_digest, text_encoding
from sohes.masks import MaskForest
from sohes.progress import Reporter

if TYPE_CHECKING:
    from sohes.segmenters.segmenter import Inference, Segmenter

NOT_STATED = "not stated"
_CHUNK = 1 << 20  # characters read at a time
_LONGEST_ENTRY = 1 << 26

_END = re.compile(r"\s*\]")
_SEPARATOR = re.compile(r"\s*,?\s*")
_BAD_SCORE = "score that is not a finite number"
_OUTSIDE = "image outside the ground truth"

_Mask = tuple[str, float, str]  # counts, score, category


@dataclass(frozen=True, eq=False)
class Predictions(Mapping[int, MaskForest]):
    """Forests by image id.

    Attributes:
        image_ids: of the images that have predictions.
        forest: makes the forest of one of them.
        path: of the files that hold them; None where nothing does.
        related: whether the forests tell wholes from parts.
        backbone: timm name of the ViT that made them, where known.
        init: where its weights come from, in words, where known.
        supervision: what people gave whatever made them, where known.
    """

    image_ids: Sequence[int]
    forest: Callable[[int], MaskForest]
    path: Path | None = None
    related: bool = True
    backbone: str = NOT_STATED
    init: str = NOT_STATED
    supervision: str = NOT_STATED

    def __getitem__(self, image_id: int) -> MaskForest:
        return self.forest(image_id)

    def __iter__(self) -> Iterator[int]:
        return iter(self.image_ids)

    def __len__(self) -> int:
        return len(self.image_ids)


def open_predictions(
    path: Path,
    truth: ImageSet,
    problems: Problems,
    *,
    out: Path | None = None,
    limit: int | None = None,
    inference: Inference | None = None,
) -> Predictions:
    """The predictions at `path` on the images of `truth`, or on the first `limit` of them.

    Args:
        path: label store, segmenter folder, COCO file with scores, or COCO results file.
        truth: the ground truth.
        problems: counts what is skipped; of a store only once its forests are asked for.
        out: where a segmenter's predictions are kept, in the folder `predictions`.
        inference: how a segmenter is to predict, where not as it does by itself.

    Raises:
        DataError: nothing of the kind is there, none of it can be used, or strict `problems`.
        ConfigError: a segmenter without `out`, or `inference` without a segmenter.
    """
    wanted = first_images(truth, limit)
    if inference is not None and (path.is_file() or not (path / "config.json").is_file()):
        raise ConfigError(f"{path} is no segmenter folder, so {inference.name} has nothing to predict with")
    if path.is_file():
        read = read_results if _is_results_file(path) else read_scored_coco
        predictions = read(path, truth, problems)
    elif any(path.glob("labels-*.parquet")):
        predictions = from_store(LabelStore(path), truth, problems)
    elif (path / "config.json").is_file():
        predictions = _from_segmenter(path, truth, wanted, problems, out, inference)
    else:
        raise DataError(
            f"{path}: no predictions here; give a label store (labels-00000.parquet), a segmenter folder "
            "(config.json), or a COCO file of results"
        )
    known = set(predictions)
    return replace(predictions, image_ids=[item.id for item in wanted.items if item.id in known])


def _from_segmenter(
    folder: Path,
    truth: ImageSet,
    wanted: ImageSet,
    problems: Problems,
    out: Path | None,
    inference: Inference | None,
) -> Predictions:
    if out is None:
        raise ConfigError(f"{folder} is a segmenter: give --out DIR, where its predictions are kept")
    store, failed = run_segmenter(folder, wanted, out / "predictions", f"predict {short_name(folder)}", inference)
    if failed and not len(store):
        raise DataError(
            f"none of the {len(failed)} images of {truth.source} can be read: {next(iter(failed.values()))}"
        )
    for reason in failed.values():
        problems.add("image that cannot be read", reason)
    return from_store(store, truth, problems)


def run_segmenter(
    folder: Path, source: ImageSet, out: Path, description: str, inference: Inference | None = None
) -> tuple[LabelStore, dict[str, str]]:
    """All predictions of the segmenter at `folder` on `source`, kept in the store `out`; and the images that failed."""
    from sohes.segmenters.segmenter import load_segmenter

    trained = load_segmenter(folder)
    segmenter, name = (inference.around(trained), inference.name) if inference else (trained, "")
    identity = file_digest(folder / "model.safetensors")
    return keep_predictions(segmenter, source, out, description, identity=identity, inference=name)


def keep_predictions(
    segmenter: Segmenter, source: ImageSet, out: Path, description: str, *, identity: str, inference: str = ""
) -> tuple[LabelStore, dict[str, str]]:
    """As `run_segmenter`, of any segmenter.

    Args:
        identity: tells its predictions from others' that are there already.
        inference: name of a way to predict that is not the segmenter's own.
    """
    header = {
        "segmenter": identity,
        "images": short_name(source.source),
        "backbone": segmenter.backbone,
        "init": segmenter.init,
        "supervision": segmenter.supervision,
        **({"inference": inference} if inference else {}),
    }
    failed = label_images(segmenter.predict, source, out, header=header, description=description)
    return LabelStore(out), failed


def short_name(path: Path) -> str:
    """A path's last two parts: the same on every machine."""
    return "/".join(path.absolute().parts[-2:])


def from_store(store: LabelStore, truth: ImageSet, problems: Problems) -> Predictions:
    """The forests of a label store on the images of `truth`, less what cannot be scored.

    Raises:
        DataError: no image of the store is one of the ground truth, or one could be several; or strict `problems`.
    """
    places = match_store(store, truth)
    matched = set(places.values())
    for image_id, file in store.files.items():
        if image_id not in matched:
            problems.add(_OUTSIDE, f"{store.folder}: '{file}' is not in {truth.source}")

    def forest(image_id: int) -> MaskForest:
        where = f"{store.folder}: {store.file(places[image_id])}"
        return _usable(store.forest(places[image_id]), truth.item(image_id), where, problems)

    return Predictions(
        list(places),
        forest,
        path=store.folder,
        backbone=store.header.get("backbone", NOT_STATED),
        init=store.header.get("init", NOT_STATED),
        supervision=store.header.get("supervision", NOT_STATED),
    )


def _usable(forest: MaskForest, item: ImageItem, where: str, problems: Problems) -> MaskForest:
    if forest.size_hw != item.size_hw:
        problems.add("image of another size", f"{where}: masks are {forest.size_hw} px, the image {item.size_hw} px")
        return MaskForest.from_rles([], item.size_hw)
    finite = np.isfinite(forest.scores)
    for index in np.flatnonzero(~finite):
        problems.add(_BAD_SCORE, f"{where}, mask {index}: field 'score' is {forest.scores[index]}")
    return forest if finite.all() else forest.select(np.flatnonzero(finite))


def read_scored_coco(path: Path, truth: ImageSet, problems: Problems) -> Predictions:
    """The annotations of a COCO file that have a score, on the images of `truth`.

    Raises:
        DataError: not such a file, no image of it is one of the ground truth, no score, or strict `problems`.
    """
    found = read_coco(path, problems)
    places = match_names(
        truth.names, found.names, roots=(truth.root, found.root), sources=(str(truth.source), str(path))
    )
    for item in found.items:
        if item.id not in places.values():
            problems.add(_OUTSIDE, f"{path}: '{found.names[item.id]}' is not in {truth.source}")
    scored: dict[int, list[Annotation]] = {}
    for image_id, rows in found.annotations.items():
        scored[image_id] = [row for row in rows if row.score is not None]
        for row in rows:
            if row.score is None:
                problems.add(_BAD_SCORE, f"{path}: annotation {row.id} has no 'score'")
    if not any(scored.values()):
        raise DataError(f"{path}: no annotation has a 'score', so nothing ranks them; predictions need one")
    found = replace(found, annotations=scored)

    def forest(image_id: int) -> MaskForest:
        where = f"{path}: {found.names[places[image_id]]}"
        return _usable(found.forest(places[image_id]), truth.item(image_id), where, problems)

    related = any(row.parent_id is not None for rows in scored.values() for row in rows)
    return Predictions(list(places), forest, path=path, related=related)


def _is_results_file(path: Path) -> bool:
    with path.open(encoding=text_encoding(path), errors="replace") as file:
        return not file.read(_CHUNK).lstrip().startswith("{")


def read_results(path: Path, truth: ImageSet, problems: Problems) -> Predictions:
    """The masks of a COCO results file; they carry no relations.

    An entry needs no id of its own; one that it has is ignored.

    Raises:
        DataError: not a JSON list, no entry that can be used, or strict `problems`; the message names file, entry and
            field.
    """
    items = {item.id: item for item in truth.items}
    masks: dict[int, dict[_Mask, None]] = {}  # by image; a dictionary keeps the order and finds what is there twice
    for index, entry in _entries(path):
        where = f"{path}: [{index}]"
        try:
            image_id, mask = _mask(entry, where, items)
            if mask in masks.get(image_id, ()):
                raise _Unusable("duplicate", f"{where}: an earlier entry has the same image, mask, score and category")
        except _Unusable as broken:
            problems.add(broken.kind, broken.message)
            continue
        masks.setdefault(image_id, {})[mask] = None
    if not masks:
        raise DataError("; ".join([f"{path}: no entry can be used as a prediction", *problems.lines()]))
    return Predictions(
        list(masks), lambda image_id: _flat_forest(masks[image_id], items[image_id]), path=path, related=False
    )


class _Unusable(Exception):
    """One entry that cannot be used."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind, self.message = kind, message


def _mask(entry: Any, where: str, items: Mapping[int, ImageItem]) -> tuple[int, _Mask]:
    """Image id and mask of one entry of a results file."""
    if not isinstance(entry, dict):
        raise _Unusable("entry that is no object", f"{where} must be an object, not {type(entry).__name__}")
    image_id, score, shape = (entry.get(key) for key in ("image_id", "score", "segmentation"))
    if isinstance(image_id, bool) or not isinstance(image_id, int | float) or image_id not in items:
        raise _Unusable(_OUTSIDE, f"{where} field 'image_id': the ground truth has no image {image_id!r}")
    if not shape:
        what = "a box without a mask" if "bbox" in entry else "missing"
        raise _Unusable("entry without a mask", f"{where} field 'segmentation': {what}; masks are scored, not boxes")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise _Unusable(_BAD_SCORE, f"{where} field 'score' is {score!r}")
    item = items[int(image_id)]
    try:
        check_segmentation(f"{where} field 'segmentation'", shape, item.size_hw)
    except (DataError, TypeError, ValueError, OverflowError) as error:
        message = str(error) if isinstance(error, DataError) else f"{where} field 'segmentation': {error}"
        raise _Unusable("segmentation that is no mask of its image", message) from error
    rle = Annotation(id=0, image_id=item.id, category_id=1, segmentation=shape).rle(item.size_hw)
    return item.id, (rle["counts"], float(score), repr(entry.get("category_id")))


def _flat_forest(masks: Mapping[_Mask, None], item: ImageItem) -> MaskForest:
    count = len(masks)
    return MaskForest(
        size_hw=item.size_hw,
        rles=[{"size": list(item.size_hw), "counts": counts} for counts, _, _ in masks],
        scores=np.array([score for _, score, _ in masks], np.float32),
        ancestor=np.broadcast_to(np.False_, (count, count)),
        parent=np.full(count, -1, np.int64),
    )


def _entries(path: Path) -> Iterator[tuple[int, Any]]:
    """Index and value of each element of the JSON list in `path`, one at a time."""
    decoder = json.JSONDecoder()
    chunks = max(1, math.ceil(path.stat().st_size / _CHUNK))
    encoding = text_encoding(path)
    with path.open(encoding=encoding, errors="replace") as file, Reporter(f"read {path.name}", chunks) as reporter:
        text, place, index = file.read(_CHUNK).lstrip(), 1, 0
        if not text.startswith("["):
            raise DataError(f"{path}: a COCO results file is a JSON list of masks; this begins with {text[:20]!r}")
        while not _END.match(text, place):
            try:
                value, place = decoder.raw_decode(text, _SEPARATOR.match(text, place).end())  # type: ignore[union-attr]
            except RecursionError as error:
                raise DataError(f"{path}: [{index}] is nested too deep to be a prediction") from error
            except json.JSONDecodeError as error:
                more = file.read(_CHUNK)  # the entry may continue there
                if not more or len(text) - place > _LONGEST_ENTRY:
                    raise DataError(f"{path}: [{index}] is not valid JSON ({error.msg}); is it cut off?") from error
                text, place = text[place:] + more, 0
                reporter.advance()
            else:
                yield index, value
                index += 1
        reporter.advance()
