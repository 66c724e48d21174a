"""What FS4's pyramid labels and context add to PiCIE's loss on photographs: one row a variant, seed and data set.

    python benchmarks/fs4_quality.py --weights FILE --images FOLDER --data SOURCE [SOURCE ...] \
        --out benchmarks/records/fs4_quality

Every variant trains on `train.json` of `--images`, a folder of the stage of images, with the same budget; its own
clusters of pixels, made of the same images, are matched to the classes of `--data` (centre squares of 320 px, one
cluster a class, five k-means). Runs are kept in `--cache`, so an interrupted call resumes, and several may work beside
one another on different `--variants`. Writes `fs4_quality.csv` and `fs4_quality.png`, and prints the means.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd

from sohes.backbones.stage import WeightsConfig, weights
from sohes.data.coco import read_coco
from sohes.data.listing import Listing
from sohes.data.sources import data_name
from sohes.files import atomic_path, read_json, write_json
from sohes.methods.fs4.make import make_segmenter
from sohes.methods.fs4.segment_settings import Fs4SegmentSettings
from sohes.methods.fs4.semantic_stage import Fs4SemanticConfig, semantic
from sohes.methods.fs4.settings import Fs4Config
from sohes.methods.fs4.stage import DECODER, fs4
from sohes.plotting import MAIN, save, style
from sohes.probes.data import read_probe_data
from sohes.records import commit, hardware

BUDGET: dict[str, Any] = {  # twelve minutes on one CPU core
    "rounds": 2,
    "iterations": 30,
    "batch_size": 20,
    "base_px": 320,
    "view_px": 168,
    "embedding_side": 42,
    "lr": 5e-4,
    "warmup": 4,
    "cluster_batch": 50,
    "init_batches": 3,
    "pgg_crop_levels": 1,
    "pgg_pool_px": 322,
    "pgg_clusters": (32, 64, 128),
    "pgg_dims": 64,
    "checkpoint_every": 30,
    "workers": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "PiCIE": {"pgg": False, "cae": "none"},
    "+ PGG": {"cae": "none"},
    "+ CAE": {"pgg": False},
    "both": {},
}
PIXELS = 100_000  # that give the first centroids of the clusters that are scored


def main() -> None:
    """Train and score every variant whose row is missing."""
    options = _options()
    start = options.cache / "start"
    if not (start / "backbone").exists():
        weights(WeightsConfig(source=options.weights), {}, start)
    classes = {source: len(read_probe_data(source).classes) for source in options.data}
    for seed in options.seeds:
        for name in options.variants:
            folder = options.cache / name.replace(" ", "_") / str(seed)
            _train(name, seed, start / "backbone", options.images, folder)
            for source in options.data:
                _score(name, seed, source, tuple(sorted(set(classes.values()))), options.images, folder)
            _table(options.cache, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="of the start: timm name, weights file, timm folder")
    parser.add_argument("--images", required=True, type=Path, help="folder with train.json and source.json")
    parser.add_argument("--data", required=True, nargs="+", help="labelled data, as `sohes probe` takes them")
    parser.add_argument("--out", required=True, type=Path, help="of the table and the plot, without suffix")
    parser.add_argument("--cache", type=Path, default=Path(".cache/fs4_quality"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    return parser.parse_args()


def _train(name: str, seed: int, backbone: Path, images: Path, folder: Path) -> None:
    if (folder / "facts.json").exists():
        return
    config = Fs4Config(**{**BUDGET, **VARIANTS[name]}, seed=seed)
    began = time.process_time()
    fs4(config, {"backbone": backbone, "images": images}, folder)
    epochs = pd.concat([pd.read_csv(folder / f"round-{number}" / "epochs.csv") for number in (1, 2)])
    facts = {
        "images": len(read_coco(images / "train.json").items),
        "least_clusters": int(epochs[["clusters_1", "clusters_2"]].min().min()),
        "largest_share": 100 * float(epochs[["largest_share_1", "largest_share_2"]].max().max()),
        "agreement": 100 * float(epochs["agreement"].iloc[-1]),
        "cpu_seconds": time.process_time() - began,
        "commit": commit(),
    }
    write_json(folder / "facts.json", facts)


def _score(name: str, seed: int, source: str, clusters: tuple[int, ...], images: Path, folder: Path) -> None:
    file = folder / f"{Path(source).name}.json"
    if file.exists():
        return
    segmenter = folder / "segmenter"
    if not segmenter.exists():
        settings = Fs4SegmentSettings(clusters=clusters, levels=(8,), init_pixels=PIXELS)
        listing = Listing.of_items(read_coco(images / "train.json").items)
        data = data_name(images)
        made = make_segmenter(folder / "backbone", folder / DECODER, listing, settings, folder / "pixels", data=data)
        made.save(segmenter)
    found = semantic(Fs4SemanticConfig(data=source), {"segmenter": segmenter}, folder).measurements
    start = read_json(folder / "backbone" / "provenance.json")["steps"][0]["method"]
    rows = [
        {
            "start": start,
            "variant": name,
            "seed": seed,
            "dataset": row.dataset,
            "protocol": row.protocol,
            "metric": row.metric,
            "value": row.value,
            "sd": row.sd,
            "n_val": row.n_images,
            **read_json(folder / "facts.json"),
            "hardware": hardware(),
        }
        for row in found
    ]
    write_json(file, rows)


def _table(cache: Path, out: Path) -> None:
    """All rows that there are, their means, and the difference to PiCIE's loss alone, seed by seed."""
    files = [file for file in sorted(cache.glob("*/[0-9]*/*.json")) if file.name != "facts.json"]
    rows = pd.DataFrame([row for file in files for row in read_json(file)])
    with atomic_path(out.with_suffix(".csv")) as temporary:
        rows.to_csv(temporary, index=False, float_format="%.2f")
    rows = rows[rows["metric"] == "miou_dataset"]
    wide = rows.pivot_table(index="seed", columns=["dataset", "variant"], values="value")
    for dataset in rows["dataset"].unique():
        values = wide[dataset]
        print(dataset, values.agg(["mean", "std", "count"]).T.round(2).to_string(), sep="\n")
        if "PiCIE" in values:
            gains = values.sub(values["PiCIE"], axis=0).drop(columns="PiCIE")
            print("minus PiCIE", gains.agg(["mean", "std"]).T.round(2).to_string(), sep="\n", flush=True)
    _plot(rows, out.with_suffix(".png"))


def _plot(rows: pd.DataFrame, path: Path) -> None:
    """A dot a seed, lines join a seed's variants; a column a data set."""
    from matplotlib.figure import Figure

    names = [name for name in VARIANTS if name in set(rows["variant"])]
    sets = list(rows["dataset"].unique())
    with style():
        figure = Figure(figsize=(4.2 * len(sets), 3.2), dpi=130, layout="constrained")
        for axes, dataset in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
            wide = rows[rows["dataset"] == dataset].pivot_table(index="variant", columns="seed", values="value")
            for seed in wide:
                axes.plot(names, wide[seed].reindex(names), "o-", ms=4, lw=0.8, color=MAIN)
            axes.set(title=f"{dataset}, val", ylabel="mIoU of the network's own clusters")
        save(figure, path)


if __name__ == "__main__":
    main()
