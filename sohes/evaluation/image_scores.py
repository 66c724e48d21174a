"""What an evaluation found image by image, as files that `sohes compare` reads (README §8).

`images.csv` has a line for each method and image; `scored.json` says of each method on what it was scored, and where
its predictions lie.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sohes.data.coco import ImageSet
from sohes.errors import DataError
from sohes.evaluation.mask_recall import MaskRecall
from sohes.evaluation.predictions import Predictions
from sohes.files import read_json, write_json, write_text

IMAGES, SCORED = "images.csv", "scored.json"
_FACTS = ("method", "arm", "dataset", "split", "ground_truth", "predictions")


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """One method on one ground truth.

    Attributes:
        method, arm, dataset, split: as in `Measurement`.
        ground_truth: the COCO file.
        predictions: what was scored, see `open_predictions`; None where no file has it.
        images: `MaskRecall.images`, by the images' names instead of their ids.
    """

    method: str
    arm: str = ""
    dataset: str
    split: str = ""
    ground_truth: Path
    predictions: Path | None
    images: pd.DataFrame

    @property
    def data(self) -> str:
        """What it was scored on, in words."""
        return self.dataset + (f" ({self.split})" if self.split else "")


def image_scores(
    masks: MaskRecall, truth: ImageSet, found: Predictions, *, method: str, dataset: str, split: str = "", arm: str = ""
) -> ImageScores:
    """What `masks` says of the predictions `found` on `truth`; the other arguments are those of `ImageScores`."""
    names = truth.names
    files = pd.Index([names[image_id] for image_id in masks.images.index], name="file")
    return ImageScores(
        method=method,
        arm=arm,
        dataset=dataset,
        split=split,
        ground_truth=truth.source,
        predictions=found.path,
        images=masks.images.set_axis(files),
    )


def write_scores(folder: Path, scores: Sequence[ImageScores]) -> list[Path]:
    """Write both files; paths in them are relative to `folder`. Methods differ in their names."""
    assert len({one.method for one in scores}) == len(scores)
    table = pd.concat({one.method: one.images for one in scores}, names=["method", "file"])
    with np.errstate(invalid="ignore"):
        table.insert(0, "mask_ar_1000", (10 * table["found_1000"] / table["objects"]).round(4))  # for readers, in %
    write_text(folder / IMAGES, table.to_csv(lineterminator="\n"))
    facts = [{name: getattr(one, name) for name in _FACTS} for one in scores]
    for row in facts:
        for name in ("ground_truth", "predictions"):
            row[name] = row[name] and Path(os.path.relpath(row[name], folder)).as_posix()
    write_json(folder / SCORED, facts)
    return [folder / IMAGES, folder / SCORED]


def read_scores(folder: Path) -> list[ImageScores]:
    """The scores of a run folder, or of a folder of `sohes evaluate --out`; each by what it was scored on and by what.

    Raises:
        DataError: no scores in it, files that cannot be read, or one method twice on the same data.
    """
    places = [path.parent for pattern in (SCORED, f"*/{SCORED}") for path in sorted(Path(folder).glob(pattern))]
    if not places:
        raise DataError(
            f"{folder}: no {SCORED} in it or in a stage of it; give a run folder in which masks were evaluated by this "
            "version, a folder of `sohes evaluate --out`, or predictions together with --ground-truth"
        )
    scores = [one for place in places for one in _read(place)]
    keys = [(one.data, one.method) for one in scores]
    if twice := [key for place, key in enumerate(keys) if key in keys[:place]]:
        raise DataError(f"{folder}: '{twice[0][1]}' was scored twice on {twice[0][0]}; give the folder of one stage")
    return scores


def _read(folder: Path) -> list[ImageScores]:
    try:
        table = pd.read_csv(folder / IMAGES, dtype={"method": str, "file": str}, keep_default_na=False, na_values=[""])
        by_method = dict(iter(table.set_index("file").drop(columns="mask_ar_1000").groupby("method")))
        facts = [{name: row[name] for name in _FACTS} for row in read_json(folder / SCORED)]
        return [
            ImageScores(
                **row
                | {name: row[name] and folder / row[name] for name in ("ground_truth", "predictions")}
                | {"images": by_method[row["method"]].drop(columns="method").astype(np.int64)}
            )
            for row in facts
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / IMAGES}: not as an evaluation writes it ({error}); evaluate again") from error
