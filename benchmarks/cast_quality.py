"""What a CAST and a plain ViT, trained alike on photographs without labels, make of wholes, parts and classes.

    python benchmarks/cast_quality.py --images DIR [DIR ...] --ground-truth NAME=FILE [NAME=FILE ...] \
        --labelled DIR --seeds 0 1 2 --out benchmarks/records/cast_quality

MoCo-v3 of `cast_tiny` and of `vit_conv_tiny`, the same images, views, steps and heads. Each model segments before and
after: CAST by its groups, the ViT by k-means of its tokens in as many clusters on as many levels, as CAST's authors
compare; images are brought to about the same number of pixels. The best overlap of annotated wholes and parts, and the
accuracy of probes of the images' classes, are written to `cast_quality.csv`; means and paired differences are printed;
`cast_quality.png` shows them, and `cast_quality.jpg` the segments of scikit-image's photographs. Trainings and
predictions are kept in `--cache`, so an interrupted call resumes, and several may work beside one another on different
`--seeds`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from skimage.segmentation import mark_boundaries

from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_folder import build_backbone, load_backbone_folder, save_backbone_folder
from sohes.baselines.kmeans import VitKmeans
from sohes.baselines.settings import VitKmeansSettings
from sohes.data.coco import ImageSet, read_coco
from sohes.data.draw import grid
from sohes.data.image_root import with_image_root
from sohes.data.images import ImageArray
from sohes.data.label_store import LabelStore
from sohes.data.labelling import label_images
from sohes.data.problems import Problems
from sohes.data.stage import ImagesConfig, images
from sohes.errors import DataError
from sohes.evaluation.best_overlap import evaluate_best_overlap
from sohes.evaluation.predictions import from_store
from sohes.explore.photographs import small_photographs
from sohes.files import atomic_path, read_json, write_json
from sohes.masks import MaskForest
from sohes.methods.cast.segmenter import SUPERPIXELS, CASTSegmenter
from sohes.methods.cast.settings import CastConfig
from sohes.methods.cast.stage import cast
from sohes.plotting import MUTED, START, TRAINED, save, style
from sohes.probes.settings import ProbeConfig
from sohes.probes.stage import probe
from sohes.records import commit, hardware

CAST, VIT = "cast_tiny", "vit_conv_tiny"
ARMS = ("start", "trained")
# as CAST's authors compare, and so many that it has about as many masks as CAST
CLUSTERS = {"ViT": (64, 32, 16, 8), "ViT, 4 times the clusters": (256, 128, 64, 32)}
TRAINING_ITSELF = "the training"  # in place of a data set
TITLES = {"acc_top1_knn": "k-NN accuracy of images", "acc_top1_linear": "linear accuracy of images"}
ENCODERS = ("CAST", "ViT")  # of which no other row has the weights
COLOURS = dict(zip(("CAST", *CLUSTERS), (TRAINED, START, MUTED), strict=True))
TRAINING: dict[str, Any] = {  # some four epochs of 2,450 images, half an hour on one CPU core
    "iterations": 280,
    "batch_size": 32,
    "warmup": 28,
    "lr": 1.5e-3,
    "hidden_dim": 1024,
    "projection_dim": 128,
    "view_px": 160,
    "workers": 0,
    "bf16": False,
    "checkpoint_every": 40,
}
# of a photograph of 4 : 3 as many pixels as of the ViT's square of 224 px, and as many groups as that has clusters
SHORT_PX, SQUARE_PX = 192, 224
PROBES = (ProbeConfig(probe="image_knn"), ProbeConfig(probe="image_linear"))


def main() -> None:
    """Train, segment and probe what the cache does not hold yet."""
    options = _options()
    photographs = options.cache / "images"
    if not (photographs / "train.json").exists():
        images(ImagesConfig(folder=str(options.images), val_fraction=0.02), {}, photographs)
    truths = {name: with_image_root(read_coco(file)) for name, file in options.ground_truth.items()}
    rows = []
    ours, control = product(ENCODERS, options.seeds), product([*CLUSTERS][1:], options.seeds[:1])
    for model, seed in (*ours, *control):
        folder = options.cache / (CAST if model == "CAST" else VIT) / str(seed)
        train(folder.parent.name, seed, photographs, folder)
        for arm in ARMS if model in ENCODERS else ARMS[1:]:
            ahead = {"model": model, "seed": seed, "arm": arm}
            for name, truth in truths.items():
                rows += [ahead | row for row in _overlaps(model, seed, folder / arm, name, truth)]
            if model in ENCODERS:
                rows += [ahead | row for row in _accuracies(folder / arm, options.labelled)]
        if model in ENCODERS:
            rows += [{"model": model, "seed": seed, "arm": ARMS[1]} | row for row in _training_facts(folder)]
    behind = {"hardware": hardware(), "commit": commit()}
    table = pd.DataFrame([row | behind for row in rows])
    with atomic_path(options.out.with_suffix(".csv")) as temporary:
        table.to_csv(temporary, index=False, float_format="%.3f")
    print(summary(table).to_string(float_format="%.1f"))
    _plot(table, options.out.with_suffix(".png"))
    _picture(options.cache, options.seeds[0], options.out.with_suffix(".jpg"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=Path, help="folder of photographs to train on")
    parser.add_argument(
        "--ground-truth", required=True, nargs="+", action=_Named, metavar="NAME=FILE", help="COCO files to score on"
    )
    parser.add_argument("--labelled", required=True, help="labelled data, as `sohes probe` takes them")
    parser.add_argument("--out", required=True, type=Path, help="of the table and the plot, without suffix")
    parser.add_argument("--cache", type=Path, default=Path(".cache/cast_quality"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args()


class _Named(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, dict(value.split("=", 1) for value in values))


def train(encoder: str, seed: int, photographs: Path, folder: Path) -> None:
    """A model with the weights of this seed in `folder/start`, and trained in `folder/trained`."""
    if not (folder / "start").exists():
        torch.manual_seed(seed)
        model = build_backbone({"architecture": encoder}).eval()
        save_backbone_folder(folder / "start", model, Provenance(timm_name=encoder, steps=(RANDOM,)))
    if not (folder / "facts.json").exists():
        began = time.process_time()
        config = CastConfig(**TRAINING, seed=seed)
        cast(config, {"backbone": folder / "start", "images": photographs}, folder / "training")
        last = pd.read_csv(folder / "training" / "history.csv").tail(28)
        facts = {key: float(last[key].mean()) for key in ("loss", "accuracy", "feature_std")}
        write_json(folder / "facts.json", {**facts, "cpu_seconds": time.process_time() - began, "commit": commit()})
    if not (folder / "trained").exists():
        (folder / "trained").symlink_to("training/backbone")


def _predictor(model: str, seed: int, backbone: Path) -> Callable[[ImageArray], MaskForest]:
    if model in CLUSTERS:
        settings = VitKmeansSettings(backbone=str(backbone), size_px=SQUARE_PX, clusters=CLUSTERS[model], seed=seed)
        return VitKmeans(settings).predict
    segmenter = CASTSegmenter(load_backbone_folder(backbone), short_px=SHORT_PX)

    def groups(image: ImageArray) -> MaskForest:
        """Without the superpixels, for which the ViT has nothing."""
        forest = segmenter.predict(image)
        return forest.select(np.flatnonzero(np.asarray(forest.attributes["source"]) != SUPERPIXELS))

    return groups


def _overlaps(model: str, seed: int, backbone: Path, dataset: str, truth: ImageSet) -> list[dict[str, Any]]:
    """Best overlap in % of all annotated objects, of wholes and of parts, and masks per image."""
    store = backbone.parent / f"{backbone.name}-{model}-{dataset}"
    header = {"model": model, "seed": seed, "images": truth.source.name, "px": [SHORT_PX, SQUARE_PX]}
    if not (store / "overlaps.json").exists():
        predict = _predictor(model, seed, backbone)
        failed = label_images(predict, truth, store, header=header, description=f"{model} {seed} {dataset}")
        if failed:
            raise DataError(f"{len(failed)} images cannot be read: {next(iter(failed.values()))}")
        found = evaluate_best_overlap(truth, from_store(LabelStore(store), truth, Problems(strict=True)))
        values = {f"best overlap, {kind}": 100 * getattr(found, kind) for kind in ("objects", "wholes", "parts")}
        values = {name: value for name, value in values.items() if not math.isnan(value)}  # of data without parts
        write_json(store / "overlaps.json", values | {"masks per image": found.masks_per_image})
    ahead = {"dataset": dataset, "n": len(truth)}
    return [ahead | {"metric": metric, "value": value} for metric, value in read_json(store / "overlaps.json").items()]


def _accuracies(backbone: Path, labelled: str) -> list[dict[str, Any]]:
    """What the probes find, in %."""
    rows = []
    for config in PROBES:
        out = backbone.parent / f"{backbone.name}-{config.probe}"
        file = out / "measured.json"
        if not file.exists():
            found = probe(config, {"backbone": backbone, "data": Path(labelled)}, out).measurements
            write_json(file, [[one.metric, one.dataset, one.n_images, one.value] for one in found])
        rows += [dict(zip(("metric", "dataset", "n", "value"), row, strict=True)) for row in read_json(file)]
    return rows


def _training_facts(folder: Path) -> list[dict[str, Any]]:
    """How a training ended, over its last tenth, and how long it took."""
    facts = read_json(folder / "facts.json")
    values = {
        "loss": facts["loss"],
        "queries nearest to their key": 100 * facts["accuracy"],
        "CPU minutes": facts["cpu_seconds"] / 60,
    }
    return [{"dataset": TRAINING_ITSELF, "metric": name, "value": value} for name, value in values.items()]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and deviation over seeds of each model, before and after, and of what CAST is ahead, paired by seed."""
    table = table.assign(model=table["model"] + ", " + table["arm"])
    values = table.pivot_table(index=["dataset", "metric", "seed"], columns="model", values="value")
    for other in [name for name in values if not name.startswith("CAST")]:
        arm = other.rpartition(", ")[2]
        values[f"CAST, {arm} - {other}"] = values[f"CAST, {arm}"] - values[other]
    return values.groupby(["dataset", "metric"]).agg(["mean", "std"]).stack("model", future_stack=True)


def _plot(table: pd.DataFrame, path: Path) -> None:
    """A dot a seed; a panel a metric, a line a data set."""
    from matplotlib.figure import Figure

    table = table[(table["metric"] != "masks per image") & (table["dataset"] != TRAINING_ITSELF)]
    kinds = list(dict.fromkeys(table["metric"]))
    series = [(model, arm) for model, arm in product(COLOURS, ARMS) if model in ENCODERS or arm == ARMS[1]]
    with style():
        figure = Figure(figsize=(11, 2.1 * -(-len(kinds) // 3) + 0.6), dpi=130, layout="constrained")
        panels = figure.subplots(-(-len(kinds) // 3), 3, squeeze=False).ravel()
        for axes, kind in zip(panels, kinds, strict=False):
            rows = table[table["metric"] == kind]
            datasets = list(dict.fromkeys(rows["dataset"]))
            for place, (model, arm) in enumerate(series):
                own = rows[(rows["model"] == model) & (rows["arm"] == arm)]
                heights = [datasets.index(name) + 0.16 * (place - 2) for name in own["dataset"]]
                face = COLOURS[model] if arm == "trained" else "none"
                label = f"{model}, {arm}"
                axes.scatter(own["value"], heights, s=22, facecolors=face, edgecolors=COLOURS[model], label=label)
            axes.set(title=f"{TITLES.get(kind, kind)} (%)", ylim=(len(datasets) - 0.4, -0.6))
            axes.set_yticks(range(len(datasets)), datasets)
        for axes in panels[len(kinds) :]:
            axes.set_axis_off()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        save(figure, path)


def _picture(cache: Path, seed: int, path: Path) -> None:
    """Each photograph, and below it the four levels of both trained models, each segment in its mean colour."""
    tiles: list[ImageArray] = []
    captions: list[str] = []
    folders = {"CAST": cache / CAST, "ViT": cache / VIT}
    predictors = {of: _predictor(of, seed, folder / str(seed) / "trained") for of, folder in folders.items()}
    for photograph in small_photographs().values():
        for name, predict in predictors.items():
            levels = _levels(photograph, predict(photograph))
            tiles += [photograph, *levels]
            captions += ["", *(f"{name}, level {level}" for level in range(len(levels), 0, -1))]
    with atomic_path(path) as temporary:
        sheet = Image.fromarray(grid(tiles, captions, columns=5))
        sheet.reduce(2).save(temporary, "JPEG", quality=85)


def _levels(image: ImageArray, forest: MaskForest) -> list[ImageArray]:
    """From the coarsest to the finest; what is one segment on several levels is a mask of the coarsest alone."""
    source, masks = np.asarray(forest.attributes["source"]), forest.masks
    canvas, panels = image.copy(), []
    labels = np.zeros(image.shape[:2], np.int64)
    for name in sorted(set(source), reverse=True):
        for index in np.flatnonzero(source == name):
            canvas[masks[index]] = image[masks[index]].mean(axis=0).round()
            labels[masks[index]] = index + 1
        panels.append((255 * mark_boundaries(canvas, labels, color=(1, 1, 1))).astype(np.uint8))
    return panels


if __name__ == "__main__":
    main()
