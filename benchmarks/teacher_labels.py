"""How good the labels are that phase 3 begins with: sets of a run's labels and of phase 2's best masks, scored.

    python benchmarks/teacher_labels.py runs/mine

Needs a run with a ground truth, up to `evaluate`. "As many" is as many masks as each image has labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from sohes.data.coco import read_coco
from sohes.data.label_store import LabelStore
from sohes.evaluation.mask_recall import evaluate_masks
from sohes.evaluation.predictions import Predictions
from sohes.masks import MaskForest
from sohes.segmenters.decode import select_forest


def main() -> None:
    """Print one row a set of masks, AR in percent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    run = parser.parse_args().run
    truth = read_coco(run / "images" / "val.json")
    labels, predictions = LabelStore(run / "explore" / "val"), LabelStore(run / "evaluate" / "phase2")

    def teacher(nms_iou: float, share: float) -> Callable[[int], MaskForest]:
        def best(image_id: int) -> MaskForest:
            distinct = select_forest(predictions.forest(image_id), min_score=0.0, nms_iou=nms_iou)
            return distinct.select(range(min(len(distinct), int(share * len(labels.forest(image_id))))))

        return best

    def both(image_id: int) -> MaskForest:
        ours, theirs = labels.forest(image_id), teacher(0.8, 1)(image_id)
        return MaskForest.from_rles([*ours.rles, *theirs.rles], ours.size_hw)

    sets: dict[str, Callable[[int], MaskForest]] = {
        "labels": labels.forest,
        "teacher, all": predictions.forest,
        "teacher, as many, IoU <= 0.8": teacher(0.8, 1),
        "teacher, 1.5 times as many, IoU <= 0.8": teacher(0.8, 1.5),
        "teacher, 1.5 times as many, IoU <= 0.9": teacher(0.9, 1.5),
        "labels and teacher, as many, IoU <= 0.8": both,
    }
    ids = [item.id for item in truth.items if item.id in labels and item.id in predictions]
    rows = []
    for name, forest in sets.items():
        scores = evaluate_masks(truth, Predictions(ids, forest))
        sizes = {size: 100 * getattr(scores, f"mask_ar_1000_{size.lower()}") for size in "SML"}
        row = {"masks": name, "an image": scores.n_predictions / len(ids), "AR": 100 * scores.mask_ar_1000}
        rows.append(row | sizes)
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.1f"))


if __name__ == "__main__":
    main()
