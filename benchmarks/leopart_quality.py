"""What Leopart's training gains on photographs, and what each choice of it is worth: one row a variant, seed and probe.

    python benchmarks/leopart_quality.py --weights FILE --images DIR --data DIR [DIR ...] \
        --out benchmarks/records/leopart_quality

Every variant trains on `--images`; start and result are judged by frozen probes on `--data`. Besides the published
over-clustering, whose clusters are made of the very images that are scored, there is one held out: the train images
give clusters and names. Runs are kept in `--cache`, a folder for each start, so an interrupted call resumes, and
several may work beside one another on different `--variants`. Writes `leopart_quality.csv` and `leopart_quality.png`.
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sohes.backbones.stage import WeightsConfig, weights
from sohes.backbones.timm_vit import load_backbone
from sohes.data.label_maps import IGNORE
from sohes.data.stage import ImagesConfig, images
from sohes.evaluation.cluster_naming import majority
from sohes.evaluation.semantic import confusion_matrix, paired_difference, semantic_scores
from sohes.files import atomic_path, read_json, write_json
from sohes.methods.leopart.settings import LeopartConfig
from sohes.methods.leopart.stage import leopart
from sohes.plotting import INK, MAIN, save, style
from sohes.probes.data import ProbeData, read_probe_data
from sohes.probes.outcome import run_probe
from sohes.probes.overcluster import cluster_maps, nearest, principal_components
from sohes.probes.scoring import Task
from sohes.probes.settings import ProbeConfig
from sohes.records import commit, hardware
from sohes.rle import IntArray

SHORT: dict[str, Any] = {  # a quarter of an hour on one CPU core
    "iterations": 300,
    "batch_size": 8,
    "global_px": 168,
    "local_px": 70,
    "prototypes": 100,
    "queue": 2048,
    "momentum": 0.99,
    "workers": 0,
    "checkpoint_every": 50,
}
ALL = {**SHORT, "mask": "all"}

# what changes, and the settings
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "short": ("", SHORT),
    "long": ("steps", {**SHORT, "iterations": 1000}),
    "all cells": ("mask", ALL),
    "all cells, heads at 1e-3": ("learning rate", {**ALL, "lr": 1e-3, "backbone_lr_factor": 0.01}),
    "ViT at 1e-6": ("learning rate", {**SHORT, "backbone_lr_factor": 0.01}),
    "no queue": ("queue", {**SHORT, "queue": 0}),
    "300 prototypes": ("prototypes", {**SHORT, "prototypes": 300}),
    "no local crops": ("crops", {**SHORT, "local_crops": 0}),
    "crops of 224 and 98 px": ("crops", {**SHORT, "global_px": 224, "local_px": 98}),
}
SIZE_PX, SEEDS = 448, 3
CLUSTERS = (150, 500)
PROBES = tuple(
    ProbeConfig(size_px=SIZE_PX, seeds=SEEDS, **of)
    for of in ({"probe": "overcluster", "clusters": CLUSTERS}, {"probe": "linear"})
)


def main() -> None:
    """Train and probe every variant whose row is missing."""
    options = _options()
    start, photographs = options.cache / "start", options.cache / "images"
    if not (start / "backbone").exists():
        weights(WeightsConfig(source=options.weights), {}, start)
    if not (photographs / "train.json").exists():
        images(ImagesConfig(folder=str(options.images), max_val=100), {}, photographs)
    data = [read_probe_data(source) for source in options.data]
    for name in options.variants or VARIANTS:
        for seed in options.seeds:
            folder = options.cache / name.replace(" ", "_") / str(seed)
            _train(name, seed, start / "backbone", photographs, folder)
            for of in data:
                for config in PROBES:
                    _probe(name, seed, config, of, start, folder)
                _held_out(name, seed, of, start, folder)
        _table(options.cache, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", required=True, help="of the start: timm name, weights file, timm folder, random:NAME"
    )
    parser.add_argument("--images", required=True, type=Path, help="folder of photographs to train on")
    parser.add_argument("--data", required=True, nargs="+", help="labelled data, as `sohes probe` takes them")
    parser.add_argument("--out", required=True, type=Path, help="of the table and the plot, without suffix")
    parser.add_argument("--cache", type=Path, default=Path(".cache/leopart_quality"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="VARIANT")
    return parser.parse_args()


def _train(name: str, seed: int, backbone: Path, photographs: Path, folder: Path) -> None:
    if (folder / "backbone").exists():
        return
    config = LeopartConfig(**VARIANTS[name][1], seed=seed)
    began = time.process_time()
    leopart(config, {"backbone": backbone, "images": photographs}, folder)
    last = pd.read_csv(folder / "history.csv").tail(30)
    facts = {key: float(last[key].mean()) for key in ("loss", "aligned_cells", "prototype_usage")}
    write_json(folder / "facts.json", {**facts, "cpu_seconds": time.process_time() - began, "commit": commit()})


def _probe(name: str, seed: int, config: ProbeConfig, data: ProbeData, start: Path, folder: Path) -> None:
    file = folder / f"{data.name}-{config.probe}.json"
    if file.exists():
        return
    ours = run_probe(config, data, folder / "backbone", folder / data.name)
    theirs = run_probe(config, data, start / "backbone", start / data.name, name="start")
    rows = []
    for place, (method, protocol) in enumerate(zip(ours.methods, ours.protocols, strict=True)):
        ahead = {"probe": method, "protocol": protocol}
        rows.append(ahead | _compared(ours.confusions[:, place], theirs.confusions[:, place]))
    _write(file, rows, theirs.provenance.label, name, seed, data)


def _held_out(name: str, seed: int, data: ProbeData, start: Path, folder: Path) -> None:
    """Over-clustering without a look at the images that are scored: train images give clusters and their names."""
    file = folder / f"{data.name}-held_out.json"
    if file.exists():
        return
    tasks = [_task(of, data) for of in (folder / "backbone", start / "backbone")]
    ours, theirs = map(_clusters_of_train, tasks)
    main_image, start_main_image = map(_main_image, tasks)
    rows = []
    for place, k in enumerate(CLUSTERS):
        ahead = {"probe": f"k-means, {k} clusters, held out", "protocol": f"heldout_cluster{k}_{SIZE_PX}_full_v1"}
        rows.append(ahead | _compared(ours[:, place], theirs[:, place]))
    rows[-1] |= {"main_image": main_image, "start_main_image": start_main_image}
    _write(file, rows, load_backbone(start / "backbone").provenance.label, name, seed, data)


def _task(backbone: Path, data: ProbeData) -> Task:
    vit = load_backbone(backbone, feature="token")
    return Task(config=ProbeConfig(), data=data, backbone=vit, size_px=SIZE_PX, name="", out=backbone)


def _main_image(task: Task) -> float:
    """Percent of the val patches that lie in their cluster's main image: how far clusters tell images apart."""
    points = principal_components(task.val, components=task.config.components)
    maps = cluster_maps(points, CLUSTERS[-1], seed=0, restarts=1)
    patches: IntArray = np.zeros((CLUSTERS[-1], len(maps)), np.int64)
    for image, clusters in enumerate(maps):
        patches[:, image] = np.bincount(clusters.ravel(), minlength=CLUSTERS[-1])
    return float(100 * patches.max(axis=1).sum() / patches.sum())


def _clusters_of_train(task: Task) -> IntArray:
    """Confusions (seeds, numbers of clusters, N, C, C) of the val images."""
    data = task.data
    train, val = (of.stack().reshape(-1, of.dim) for of in (task.train, task.val))
    projection = make_pipeline(StandardScaler(), PCA(50, random_state=0)).fit(train)
    train, val = projection.transform(train), projection.transform(val)
    classes = len(data.classes)
    out: IntArray = np.zeros((SEEDS, len(CLUSTERS), len(data.val), classes, classes), np.int64)
    for seed, (place, k) in product(range(SEEDS), enumerate(CLUSTERS)):
        means = KMeans(k, n_init=1, max_iter=100, random_state=seed).fit(train)
        shape = (-1, task.val.side, task.val.side)
        pixels: IntArray = np.zeros((k, classes), np.int64)
        for clusters, item in zip(means.labels_.reshape(shape), data.train, strict=True):
            truth = item.label_map()
            seen, labelled = nearest(clusters, truth.shape), truth != IGNORE
            np.add.at(pixels, (seen[labelled], truth[labelled]), 1)
        names = majority(pixels).astype(np.uint8)
        for n, (clusters, item) in enumerate(zip(means.predict(val).reshape(shape), data.val, strict=True)):
            truth = item.label_map()
            predicted = names[nearest(clusters, truth.shape)]
            out[seed, place, n] = confusion_matrix(predicted, truth, classes=classes, name=str(item.image))
    return out


def _compared(ours: IntArray, theirs: IntArray) -> dict[str, float | None]:
    """Scores over seeds and the paired difference of both, of confusions (seeds, N, C, C)."""
    found = paired_difference(ours.sum(axis=0), theirs.sum(axis=0))
    return {
        **_scores(ours, ""),
        **_scores(theirs, "start_"),
        "difference": 100 * found.value,
        "low": 100 * found.low,
        "high": 100 * found.high,
    }


def _scores(confusions: IntArray, prefix: str) -> dict[str, float | None]:
    found = pd.Series([100 * semantic_scores(one).miou for one in confusions])
    return {f"{prefix}miou": found.mean(), f"{prefix}sd": found.std() if len(found) > 1 else None}


def _write(file: Path, rows: list[dict[str, Any]], start: str, name: str, seed: int, data: ProbeData) -> None:
    ahead = {"start": start, "variant": name, "changed": VARIANTS[name][0], "seed": seed, "dataset": data.name}
    behind = {"n_val": len(data.val), **read_json(file.parent / "facts.json"), "hardware": hardware()}
    rows = [ahead | row | behind for row in rows]
    write_json(file, rows)
    print(pd.DataFrame(rows).iloc[:, :12].to_string(index=False, float_format="%.1f"), flush=True)


def _table(cache: Path, out: Path) -> None:
    """All rows of this start, beside those of others that the table has."""
    rows = pd.DataFrame([row for file in sorted(cache.glob("*/*/*-*.json")) for row in read_json(file)])
    file = out.with_suffix(".csv")
    if file.exists():
        before = pd.read_csv(file)
        rows = pd.concat([before[~before["start"].isin(rows["start"])], rows])
    with atomic_path(file) as temporary:
        rows.to_csv(temporary, index=False, float_format="%.2f")
    _plot(pd.read_csv(file), out.with_suffix(".png"))


def _plot(table: pd.DataFrame, path: Path) -> None:
    """Difference to the start: a dot a seed, with its interval; a column a probe."""
    from matplotlib.figure import Figure

    table = table[table["dataset"] == table["dataset"].iloc[0]]
    labels = table["variant"] + " [" + table["start"].str.split(" ").str[0] + "]"
    names = list(dict.fromkeys(labels))
    probes = [f"k-means, {CLUSTERS[-1]} clusters", f"k-means, {CLUSTERS[-1]} clusters, held out", "linear probe"]
    with style():
        figure = Figure(figsize=(12, 0.45 * len(names) + 1.2), dpi=130, layout="constrained")
        for axes, probe in zip(figure.subplots(1, len(probes), sharey=True), probes, strict=True):
            rows = table[table["probe"] == probe]
            heights = [names.index(label) for label in labels[rows.index]] + 0.15 * (rows["seed"] - 1)
            reach = [rows["difference"] - rows["low"], rows["high"] - rows["difference"]]
            axes.errorbar(rows["difference"], heights, xerr=reach, fmt="o", ms=4, color=MAIN, capsize=2, lw=1)
            axes.axvline(0, color=INK, lw=0.8)
            axes.set(title=probe, xlabel="mIoU against the start (95 % over images)")
            axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        save(figure, path)


if __name__ == "__main__":
    main()
