"""What each choice of phase 1 is worth: mask AR on a COCO file of photographs, one row a variant.

    python benchmarks/explore_quality.py --weights FILE --ground-truth val.json --images DIR \
        --calibrate-on DIR --out benchmarks/records/explore_quality

Thresholds that come from images are calibrated on `--calibrate-on`, never on the images that are scored. Features are
kept in `--cache`, so an interrupted one resumes and variants share them; the seconds they took are kept with them.
Writes `explore_quality.csv` and `explore_quality.png`.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from sohes.backbones.timm_folder import BackboneFolder
from sohes.backbones.timm_vit import DenseViT
from sohes.backbones.weights import resolve_weights
from sohes.data.coco import ImageItem, ImageSet, read_coco
from sohes.data.images import load_image
from sohes.data.listing import list_images
from sohes.errors import DataError
from sohes.evaluation.best_overlap import evaluate_best_overlap
from sohes.evaluation.mask_recall import evaluate_masks
from sohes.explore.explorer import Explorer, View
from sohes.explore.settings import ExploreSettings
from sohes.files import atomic_path
from sohes.masks import FloatArray, MaskForest
from sohes.plotting import INK, categorical, save, style
from sohes.progress import track
from sohes.records import commit, hardware

T = TypeVar("T")

CALIBRATION_IMAGES = 32

WITHOUT_LOCAL: dict[str, Any] = {
    "algorithm": "sohes",
    "center": False,
    "size_global": 1176,
    "keep_aspect": True,
    "theta_merge": None,
    "max_crops": 0,
    "min_patches": 2,
    "refine_iou": 0.3,
    "nms_iou": 0.95,
    "max_masks": 1000,
}
SOHES: dict[str, Any] = {**WITHOUT_LOCAL, "size_local": 252, "max_crops": 16}
SUPERPIXELS: dict[str, Any] = {"size_global": 784}
PUBLISHED = (5, 8, 13, 23, 40, 76)  # regions that 0.1 ... 0.6 leave on DINO ViT-B/8 (sohes/explore/README.md §7)

# what changes, and the settings; rows of "sohes" differ from "sohes, no local step" in one choice
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing set": ("defaults", {}),
    "sohes, nothing else set": ("defaults", {"algorithm": "sohes"}),
    "superpixels": ("superpixels", SUPERPIXELS),
    "sohes": ("sohes", SOHES),
    "sohes, no local step": ("local step", WITHOUT_LOCAL),
    "sohes, mean feature removed": ("thresholds", {**WITHOUT_LOCAL, "center": True}),
    "sohes, cosines 0.6 ... 0.1": ("thresholds", {**WITHOUT_LOCAL, "theta_merge": (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)}),
    "sohes, 6 calibrated": ("thresholds", {**WITHOUT_LOCAL, "region_counts": PUBLISHED}),
    "sohes, 784 px": ("resolution", {**WITHOUT_LOCAL, "size_global": 784}),
    "sohes, 392 px": ("resolution", {**WITHOUT_LOCAL, "size_global": 392}),
    "sohes, filters as published": ("filters", {**WITHOUT_LOCAL, "min_patches": 4, "refine_iou": 0.5, "nms_iou": 0.9}),
    "sohes, no refiner": ("refiner", {**WITHOUT_LOCAL, "refiner": "none"}),
    "sohes, local CRF": ("refiner", {**WITHOUT_LOCAL, "refiner": "local_crf"}),
    "sohes, 784 px, tokens": ("feature", {**WITHOUT_LOCAL, "size_global": 784, "feature": "token"}),
    "superpixels, 392 px": ("resolution", {**SUPERPIXELS, "size_global": 392}),
    "superpixels, 1176 px": ("resolution", {**SUPERPIXELS, "size_global": 1176}),
    "superpixels, tokens": ("feature", {**SUPERPIXELS, "feature": "token"}),
    "superpixels, without edges": ("linkage", {**SUPERPIXELS, "edge_weight": 0.0}),
    "superpixels, without size": ("linkage", {**SUPERPIXELS, "size_weight": 0.0}),
    "superpixels, edges alone": ("linkage", {**SUPERPIXELS, "edge_weight": 1e3}),
    "superpixels, one tree": ("trees", {**SUPERPIXELS, "superpixel_scale": (50.0,)}),
    "superpixels, three trees": ("trees", {**SUPERPIXELS, "superpixel_scale": (25.0, 50.0, 100.0)}),
}


class CachedExplorer(Explorer):
    """An explorer that keeps features in files, with the processor seconds that they took."""

    def __init__(self, backbone: DenseViT, settings: ExploreSettings, cache: Path) -> None:
        super().__init__(backbone, settings)
        self.cache = cache
        self.vit_seconds = 0.0
        weights = backbone.provenance.sha256
        self._key = f"{weights} {settings.feature} {backbone.patch_size}".encode()

    def features(self, views: Sequence[View]) -> list[FloatArray]:
        """Feature maps of views, from files where they are there."""
        return [self._cached(view) for view in views]

    def _cached(self, view: View) -> FloatArray:
        digest = hashlib.sha256(self._key + str(view.shape).encode() + view.tobytes()).hexdigest()
        path = self.cache / digest[:2] / f"{digest}.npz"
        if not path.exists():
            start = time.process_time()
            (features,) = super().features([view])
            seconds = time.process_time() - start
            with atomic_path(path) as temporary:
                np.savez(temporary, features=features.astype(np.float16), seconds=seconds)
        with np.load(path) as kept:
            self.vit_seconds += float(kept["seconds"])
            features = kept["features"].astype(np.float32)
        return features


def main() -> None:
    """Score every variant that the table does not hold yet."""
    options = _options()
    truth = _with_images(read_coco(options.ground_truth), options.images, options.limit)
    calibration = _spread([Path(name) for name in list_images(options.calibrate_on).names], CALIBRATION_IMAGES)
    model, provenance = resolve_weights(options.weights, architecture=options.architecture)
    backbone = options.name or provenance.label
    table = options.out.with_suffix(".csv")
    rows = pd.read_csv(table).to_dict("records") if table.exists() else []
    for name in options.variants or VARIANTS:
        if any(row["variant"] == name and row["backbone"] == backbone for row in rows):
            continue
        changed, keys = VARIANTS[name]
        settings = ExploreSettings(**keys)
        vit = DenseViT(BackboneFolder(model, {}, provenance), feature=settings.feature)
        explorer = CachedExplorer(vit, settings, options.cache)
        thresholds = explorer.calibrated(load_image(path) for path in calibration).settings.theta_merge
        explorer.settings = replace(settings, theta_merge=thresholds)
        rows.append({"variant": name, "changed": changed, "backbone": backbone, **_score(explorer, truth, name)})
        with atomic_path(table) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.2f")
        print(pd.DataFrame(rows).iloc[:, :13].to_string(index=False, float_format="%.1f"), flush=True)
    _plot(pd.DataFrame(rows), options.out.with_suffix(".png"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="timm name, weights file or timm folder")
    parser.add_argument("--architecture", help="timm name of a weights file, with tag, where it does not tell")
    parser.add_argument("--name", help="what the table calls the backbone (default: where its weights come from)")
    parser.add_argument("--ground-truth", required=True, type=Path, help="COCO file")
    parser.add_argument("--images", required=True, type=Path, help="folder of its images; others are left out")
    parser.add_argument("--calibrate-on", required=True, type=Path, help="folder of other images")
    parser.add_argument("--out", required=True, type=Path, help="of the table and the plot, without suffix")
    parser.add_argument("--cache", type=Path, default=Path(".cache/explore_quality"))
    parser.add_argument("--limit", type=int, help="score this many images only, spread over the file")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="VARIANT")
    return parser.parse_args()


def _with_images(truth: ImageSet, folder: Path, limit: int | None) -> ImageSet:
    there = [replace(item, path=folder / item.path.name) for item in truth.items]
    there = [item for item in there if item.path.exists()]
    if not there:
        raise DataError(f"{folder}: holds none of the images of {truth.source}; --images is their folder")
    items = _spread(there, limit or len(there))
    return replace(truth, items=items, annotations={item.id: truth.annotations.get(item.id, []) for item in items})


def _spread(values: Sequence[T], count: int) -> list[T]:
    places = np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int))
    return [values[place] for place in places]


def _score(explorer: CachedExplorer, truth: ImageSet, name: str) -> dict[str, Any]:
    forests: dict[int, MaskForest] = {}
    spent = 0.0  # on loading and making features in this run; what they cost is in `vit_seconds`
    explorer.vit_seconds = 0.0
    for item in track(truth.items, name):
        forests[item.id], seconds = _explored(explorer, item)
        spent += seconds
    scores = evaluate_masks(truth, forests)
    count = len(truth.items)
    thresholds = explorer.settings.theta_merge if explorer.settings.algorithm == "sohes" else None
    return {
        "ar_1000": 100 * scores.mask_ar_1000,
        "ar_s": 100 * scores.mask_ar_1000_s,
        "ar_m": 100 * scores.mask_ar_1000_m,
        "ar_l": 100 * scores.mask_ar_1000_l,
        "ar_100": 100 * scores.mask_ar_100,
        "ar_200": 100 * scores.recall_at_count[199],
        "abo_20": 100 * evaluate_best_overlap(truth, forests, count=20).objects,
        "ar_1000_low": 100 * scores.intervals["mask_ar_1000"][0],
        "ar_1000_high": 100 * scores.intervals["mask_ar_1000"][1],
        "masks_an_image": scores.n_predictions / count,
        "vit_seconds": explorer.vit_seconds / count,
        "other_seconds": spent / count,
        "images": count,
        "protocol": "mask_ar1000_v1",
        "thresholds": " ".join(map(str, thresholds or ())),
        "hardware": hardware(),
        "commit": commit(),
    }


def _explored(explorer: CachedExplorer, item: ImageItem) -> tuple[MaskForest, float]:
    """The forest of an image, and the processor seconds it took beside the ViT."""
    image = load_image(item.path)
    seconds, exploration = 0.0, explorer.explore(image)
    maps: Sequence[FloatArray] | None = None
    while True:
        start = time.process_time()
        try:
            views = next(exploration) if maps is None else exploration.send(maps)
        except StopIteration as end:
            return end.value, seconds + time.process_time() - start
        seconds += time.process_time() - start
        maps = explorer.features(views)


def _plot(table: pd.DataFrame, path: Path) -> None:
    import seaborn as sns
    from matplotlib.figure import Figure

    label = table["variant"]
    if table["backbone"].nunique() > 1:
        label = label + " [" + table["backbone"] + "]"
    with style():
        figure = Figure(figsize=(12, 0.32 * len(table) + 1.2), dpi=130, layout="constrained")
        bars, sizes = figure.subplots(1, 2, sharey=True)
        colours = categorical(table["changed"].nunique()).tolist()
        hues = {"hue": table["changed"], "palette": colours, "saturation": 1, "dodge": False, "legend": False}
        sns.barplot(x=table["ar_1000"], y=label, ax=bars, **hues)
        errors = [table["ar_1000"] - table["ar_1000_low"], table["ar_1000_high"] - table["ar_1000"]]
        bars.errorbar(table["ar_1000"], range(len(table)), xerr=errors, fmt="none", ecolor=INK, capsize=2, lw=0.8)
        bars.set(xlabel="mask AR@1000 (95 % over images)", ylabel="")
        for size, marker, colour in zip("sml", "osD", categorical(3), strict=True):
            sizes.plot(table[f"ar_{size}"], range(len(table)), marker, color=colour, label=size.upper())
        sizes.set(xlabel="mask AR@1000 by size of the object")
        sizes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
        save(figure, path)


if __name__ == "__main__":
    main()
