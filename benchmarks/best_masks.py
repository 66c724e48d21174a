"""What to run for the best masks: phase 1, a trained segmenter, or both; mask AR on a COCO file, one row for each.

    python benchmarks/best_masks.py --checkpoint runs/NAME/correct/segmenter --ground-truth bsds500/val.json \
        --out benchmarks/records/best_masks

Writes `best_masks.csv`. Predictions are kept in `--cache`, so an interrupted one resumes; seconds are processor seconds
for an image, measured by themselves on the first ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sohes.backbones.timm_vit import load_backbone
from sohes.backbones.weights import PACKAGED
from sohes.data.coco import ImageSet, read_coco
from sohes.data.image_root import with_image_root
from sohes.data.images import load_image
from sohes.data.label_store import LabelStore
from sohes.data.labelling import label_images
from sohes.data.problems import Problems
from sohes.errors import DataError
from sohes.evaluation.inputs import first_images
from sohes.evaluation.mask_recall import evaluate_masks
from sohes.evaluation.predictions import from_store
from sohes.explore.explorer import Explorer
from sohes.explore.inference import make_inference
from sohes.files import atomic_path, file_digest
from sohes.masks import MaskForest
from sohes.records import commit, hardware
from sohes.segmenters.segmenter import load_segmenter

TIMED_IMAGES = 5  # after one that compiles

METRICS = (
    *(f"mask_ar_{limit}" for limit in (10, 100, 200, 1000)),
    *(f"mask_ar_1000_{part}" for part in ("low", "high", "s", "m", "l")),
)

# how `sohes segment` is called, and with which options for its checkpoint; None for no checkpoint
ROWS: dict[str, dict[str, Any] | None] = {
    "segment": {},
    "segment --snap": {"snap": True},
    "segment (no checkpoint)": None,
    "segment --explore": {"explore": True},
    "segment --tiles 2": {"tiles": 2},
    "segment --tiles 2 --snap": {"tiles": 2, "snap": True},
    "segment --tiles 2 --explore": {"tiles": 2, "explore": True},
}


def main() -> None:
    """Score every row that the table does not hold yet."""
    options = _options()
    truth = first_images(with_image_root(read_coco(options.ground_truth)), options.limit)
    digest = file_digest(options.checkpoint / "model.safetensors")
    table = options.out.with_suffix(".csv")
    rows = pd.read_csv(table).to_dict("records") if table.exists() else []
    for name, keys in ROWS.items():
        if any(row["run"] == name and row["checkpoint"] == digest for row in rows):
            continue
        predict = _predictor(options.checkpoint, keys)
        found = _scores(name, predict, truth, options.cache, digest)
        rows.append({"run": name, **found, "checkpoint": digest, "hardware": hardware(), "commit": commit()})
        with atomic_path(table) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.4g")
        print(pd.DataFrame(rows).iloc[:, :12].to_string(index=False, float_format="%.1f"), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="segmenter folder")
    parser.add_argument("--ground-truth", required=True, type=Path, help="COCO file")
    parser.add_argument("--out", required=True, type=Path, help="of the table, without suffix")
    parser.add_argument("--cache", type=Path, default=Path(".cache/best_masks"))
    parser.add_argument("--limit", type=int, help="score the first images only")
    return parser.parse_args()


def _predictor(checkpoint: Path, keys: dict[str, Any] | None) -> Callable[[Any], MaskForest]:
    if keys is None:
        return Explorer(load_backbone(PACKAGED))
    trained = load_segmenter(checkpoint)
    return (make_inference(**keys).around(trained) if keys else trained).predict


def _scores(
    name: str, predict: Callable[[Any], MaskForest], truth: ImageSet, cache: Path, digest: str
) -> dict[str, Any]:
    store = cache / f"{digest[:12]} {name}"
    header = {"run": name, "checkpoint": digest, "images": truth.source.name}
    failed = label_images(predict, truth, store, header=header, description=name)
    if failed:
        raise DataError(f"{len(failed)} images cannot be read: {next(iter(failed.values()))}")
    scores = evaluate_masks(truth, from_store(LabelStore(store), truth, Problems(strict=True)))
    metrics = {name: value for name, (value, _) in scores.metrics().items()}
    metrics["mask_ar_200"] = 100 * scores.recall_at_count[199]
    return {
        **{name.removeprefix("mask_"): metrics[name] for name in METRICS},
        "masks_an_image": scores.n_predictions / len(truth),
        "seconds": _seconds(predict, truth),
        "images": len(truth),
        "protocol": "mask_ar1000_v1",
    }


def _seconds(predict: Callable[[Any], MaskForest], truth: ImageSet) -> float:
    """Median processor time of an image, s."""
    found = []
    for item in truth.items[: TIMED_IMAGES + 1]:
        image, start = load_image(item.path), time.process_time()
        predict(image)
        found.append(time.process_time() - start)
    return float(np.median(found[1:] or found))


if __name__ == "__main__":
    main()
