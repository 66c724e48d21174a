"""Every speed claim's script still runs, at the smallest size: each asserts that ours and the reference agree."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sohes.data.scenes.scene import write_scenes
from sohes.files import read_json
from sohes.masks import MaskForest
from sohes.probes.settings import ProbeConfig
from tests.probes.synthetic import write_folder

EXPLORE = ["--limit", "2", "--scenes-px", "96", "--set", "size_global=98", "max_crops=1", "size_local=56"]
EXPLORE += ["algorithm=sohes", "min_side_px=16", "min_area_px=20", "center=true", "theta_merge=null"]
CAST_DATA = ["--backbone", "cast_tiny", "--side", "144", "--images", "2", "--steps", "2"]
CAST_STEP = ["--size", "tiny", "--sides", "144", "144", "--batches", "1", "1", "--rounds", "1"]
FS4 = ["--models", "tiny", "--images", "6", "--side", "16", "--cluster-batch", "2", "--init-batches", "2"]
PROBES = ["--backbone", "random:vit_tiny_patch16_224", "--size", "128", "--images", "8", "--rounds", "1"]
SCRIPTS: dict[str, tuple[str, list[str]]] = {
    "cast_data": ("cast_data", CAST_DATA),
    "cast_step": ("cast_step", CAST_STEP),
    "clustering": ("clustering", ["6", "9", "--channels", "5"]),
    "deformable": ("deformable", ["--repeats", "1"]),
    "evaluation": ("evaluation", ["--images", "2", "--objects", "5"]),
    "explore_memory": ("explore_throughput", ["--repeat", "20", *EXPLORE]),
    "explore_throughput": ("explore_throughput", ["--rounds", "1", *EXPLORE]),
    "fs4_epoch": ("fs4_epoch", [*FS4, "--batch", "2", "--steps", "1"]),
    "leopart_step": ("leopart_step", ["--batch", "1", "--steps", "1", "--prototypes", "8", "--queue", "64"]),
    "mask_algebra": ("mask_algebra", ["--masks", "40"]),
    "probes": ("probes", [*PROBES, "--set", "fcn_steps=1"]),
    "superpixels": ("superpixels", ["--images", "1"]),
    "train_step": ("train_step", ["--sizes", "64", "--batch", "1", "--queries", "8", "--targets", "2", "--steps", "1"]),
    "training_data": ("training_data", ["--samples", "1"]),
}
SLOW = {"cast_data", "cast_step", "deformable", "fs4_epoch", "leopart_step", "training_data"}


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [number for part in (value.values() if isinstance(value, dict) else value) for number in numbers(part)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SCRIPTS]
)
def test_it_runs_and_writes_its_record(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, arguments = SCRIPTS[name]
    record = tmp_path / "record.json"
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--json", str(record)])
    import_module(f"benchmarks.{script}").main()
    found = read_json(record)
    assert found["hardware"]
    assert len(numbers(found)) >= 3
    committed = read_json(Path(__file__).parents[2] / "benchmarks" / "records" / f"{name}.json")
    assert found.keys() == committed.keys(), "the committed record is of another version of the script"
    assert capsys.readouterr().out


def test_quality_of_phase_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for a variant, made once; squares that stand out are found, by few masks too."""
    script = import_module("benchmarks.explore_quality")
    monkeypatch.setattr(script, "VARIANTS", {"tiny": ("size", {"size_global": 64, "min_area_px": 20})})
    rng, images, rows = np.random.default_rng(0), [], []
    (tmp_path / "images").mkdir()
    for image_id in (1, 2):
        picture, mask = np.full((48, 64, 3), 60, np.uint8), np.zeros((1, 48, 64), dtype=bool)
        mask[0, 10:30, 20 : 30 + image_id] = True
        picture[mask[0]] = rng.integers(120, 256, 3)
        Image.fromarray(picture).save(tmp_path / "images" / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 48, "width": 64})
        rows += MaskForest.from_masks(mask).to_coco(image_id=image_id, first_id=image_id)
    categories = [{"id": 1, "name": "entity"}]
    truth, out = tmp_path / "truth.json", tmp_path / "found"
    truth.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    folder = str(tmp_path / "images")
    arguments = ["--weights", "random:vit_tiny_patch16_224", "--ground-truth", str(truth), "--images", folder]
    arguments += ["--calibrate-on", folder, "--out", str(out), "--cache", str(tmp_path / "cache")]
    monkeypatch.setattr(sys, "argv", ["", *arguments])
    script.main()
    table = out.with_suffix(".csv").read_bytes()
    script.main()
    assert out.with_suffix(".csv").read_bytes() == table
    assert out.with_suffix(".png").exists()
    (row,) = pd.read_csv(out.with_suffix(".csv")).to_dict("records")
    assert (row["variant"], row["images"]) == ("tiny", 2)
    assert 50 < row["ar_1000"] <= 100
    assert 50 < row["abo_20"] <= 100


@pytest.mark.slow
def test_leopart_on_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains and probes once, then finds both done; one row a probe."""
    monkeypatch.setenv("SOHES_CACHE", str(tmp_path / "features"))
    script = import_module("benchmarks.leopart_quality")
    tiny = {
        "iterations": 2,
        "batch_size": 2,
        "global_px": 64,
        "local_px": 32,
        "prototypes": 8,
        "queue": 0,
        "workers": 0,
    }
    monkeypatch.setattr(script, "VARIANTS", {"tiny": ("", {**tiny, "workers": 0})})
    monkeypatch.setattr(script, "SIZE_PX", 64)
    monkeypatch.setattr(script, "CLUSTERS", (6, 8))
    probes = ({"probe": "overcluster", "clusters": (6, 8)}, {"probe": "linear", "max_steps": 3})
    monkeypatch.setattr(script, "PROBES", tuple(ProbeConfig(size_px=64, seeds=1, **of) for of in probes))
    data = write_folder(tmp_path / "data", train=6, val=4)
    out, cache = tmp_path / "found", tmp_path / "cache"
    arguments = ["--weights", "random:vit_tiny_patch16_224", "--images", str(data / "images"), "--data", str(data)]
    monkeypatch.setattr(sys, "argv", ["", *arguments, "--out", str(out), "--cache", str(cache), "--seeds", "0"])
    script.main()
    table = out.with_suffix(".csv").read_bytes()
    trained = (cache / "tiny" / "0" / "head.safetensors").stat().st_mtime_ns
    script.main()
    assert out.with_suffix(".csv").read_bytes() == table
    assert (cache / "tiny" / "0" / "head.safetensors").stat().st_mtime_ns == trained
    assert out.with_suffix(".png").exists()
    rows = pd.read_csv(out.with_suffix(".csv"))
    assert set(rows["probe"]) == {
        "linear probe",
        *(f"k-means, {k} clusters" for k in (3, 6, 8)),
        *(f"k-means, {k} clusters, held out" for k in (6, 8)),
    }
    assert np.allclose(rows["miou"] - rows["start_miou"], rows["difference"], atol=1.5)


@pytest.mark.slow
def test_cast_on_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains and segments once, then finds all done; the models' rows, and what CAST is ahead."""
    monkeypatch.setenv("SOHES_CACHE", str(tmp_path / "features"))
    script = import_module("benchmarks.cast_quality")
    tiny = {"iterations": 2, "batch_size": 2, "warmup": 0, "hidden_dim": 16, "projection_dim": 8, "view_px": 144}
    monkeypatch.setattr(script, "TRAINING", {**tiny, "workers": 0, "bf16": False})
    monkeypatch.setattr(script, "SHORT_PX", 144)
    monkeypatch.setattr(script, "SQUARE_PX", 64)
    monkeypatch.setattr(script, "PROBES", (ProbeConfig(probe="image_knn", image_px=144, image_neighbours=2),))
    write_scenes(tmp_path / "scenes", train=4, val=2, size=160)
    scenes, out = tmp_path / "scenes", tmp_path / "found"
    arguments = ["--images", str(scenes / "train"), "--ground-truth", f"scenes={scenes / 'val.json'}"]
    arguments += ["--labelled", str(scenes), "--seeds", "0", "1", "--cache", str(tmp_path / "cache")]
    monkeypatch.setattr(sys, "argv", ["", *arguments, "--out", str(out)])
    script.main()
    table = out.with_suffix(".csv").read_bytes()
    trained = (tmp_path / "cache" / "cast_tiny" / "1" / "facts.json").stat().st_mtime_ns
    script.main()
    assert out.with_suffix(".csv").read_bytes() == table
    assert (tmp_path / "cache" / "cast_tiny" / "1" / "facts.json").stat().st_mtime_ns == trained
    assert out.with_suffix(".png").exists()
    assert out.with_suffix(".jpg").exists()
    rows = pd.read_csv(out.with_suffix(".csv"))
    assert set(rows["model"]) == set(script.COLOURS)
    values = rows[(rows["metric"] == "best overlap, parts") & (rows["arm"] == "trained")].set_index(["model", "seed"])
    ahead = [values.loc[("CAST", seed), "value"] - values.loc[("ViT", seed), "value"] for seed in (0, 1)]
    found = script.summary(rows).loc[("scenes", "best overlap, parts", "CAST, trained - ViT, trained")]
    assert np.allclose([found["mean"], found["std"]], [np.mean(ahead), np.std(ahead, ddof=1)])
