"""`sohes explore` and `sohes labels`: every kind of source, parts of a store, killed and started again."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console

from sohes.cli import main
from sohes.data.label_store import LabelStore
from sohes.data.scenes.scene import write_scenes
from sohes.data.summary import Summary, summarise
from sohes.explore.settings import ExploreSettings
from sohes.files import read_json
from sohes.settings_table import print_table

SETTINGS = ["--set", "size_global=64", "size_local=32", "theta_merge=[0.95, 0.8, 0.5]", "max_crops=2"]
SETTINGS += ["algorithm=sohes", "min_area_px=20", "center=false"]
BACKBONE = ["--backbone", "random:test_vit"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine scenes of 64 px and a broken file among them."""
    folder = tmp_path_factory.mktemp("photos")
    write_scenes(folder, train=9, val=1, size=64, seed=0)
    (folder / "train" / "000004x.png").write_bytes(b"no picture")
    return folder / "train"


def labels(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import partial

    from sohes.explore import stream

    monkeypatch.setattr(stream, "explore_listing", partial(stream.explore_listing, shard_size=3))


def test_a_folder_from_images_to_pictures(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    out = tmp_path / "labels"
    command = ["explore", str(photos), "--out", str(out), *BACKBONE, "--overlays", "2", *SETTINGS]
    assert main(command) == 0
    said = capsys.readouterr()
    store = LabelStore(out)
    assert store.image_ids == [1, 2, 3, 4, 5, 7, 8, 9, 10]  # the broken one uses up its id
    assert f"9 images, 1 skipped; {sum(len(forest) for _, forest in store)} masks" in said.out
    assert "000004x.png: cannot be read as an image" in said.err
    assert [Path(entry["file"]).name for entry in read_json(out / "skipped.json")] == ["000004x.png"]
    assert {path.name for path in (out / "overlays").iterdir()} == {"000000-1.png", "000001-2.png"}
    header = store.header
    assert (header["backbone"], header["refiner"], header["human_trained"]) == ("test_vit", "guided", False)
    assert (header["total"], header["thresholds"]) == (10, [0.95, 0.8, 0.5])
    assert (header["init"], header["supervision"]) == ("random weights", "none")
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert main(command) == 0  # once more over finished work
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    assert main([*command, "theta_small=0.02"]) == 1
    assert "made with other settings (settings: " in capsys.readouterr().err

    # the other commands on this store
    assert main(["labels", "export", str(out), "--out", str(tmp_path / "coco.json")]) == 0
    coco = read_json(tmp_path / "coco.json")
    assert len(coco["annotations"]) == sum(len(forest) for _, forest in store)
    assert main(["labels", "show", str(out), "--out", str(tmp_path / "shown"), "--count", "3"]) == 0
    assert {path.stem.rpartition("-")[2] for path in (tmp_path / "shown").iterdir()} == {"1", "5", "10"}
    capsys.readouterr()
    assert main(["labels", "summary", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read_json(out / "summary.json")


def test_a_record_names_no_refiner_that_did_not_work(photos: Path, tmp_path: Path) -> None:
    command = ["explore", str(photos), "--out", str(tmp_path), *BACKBONE, "--overlays", "0", *SETTINGS]
    assert main([*command, "algorithm=superpixels", "refiner=cascadepsp"]) == 0
    header = LabelStore(tmp_path).header
    assert (header["refiner"], header["human_trained"], header["supervision"]) == ("none", False, "none")
    assert header["thresholds"] is None


def test_a_weight_file_that_leaves_its_normalisation_open(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "mine.pth")
    command = ["explore", str(photos), "--out", str(tmp_path / "out"), "--backbone", str(tmp_path / "mine.pth")]
    command += ["--overlays", "0"]
    assert main([*command, *SETTINGS]) == 1
    assert "--architecture NAME): vit_tiny_patch16_224.moco" in capsys.readouterr().err
    assert main([*command, "--architecture", "vit_tiny_patch16_224.dino", *SETTINGS]) == 0
    header = LabelStore(tmp_path / "out").header
    assert (header["init"], header["supervision"]) == ("file mine (DINO)", "none (probable)")


def test_a_cast_gives_its_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path, train=2, val=1, size=64, seed=0)
    command = ["explore", str(tmp_path / "train"), "--out", str(tmp_path / "out"), "--backbone", "random:cast_tiny"]
    command += ["--overlays", "0", "--set", "min_area_px=20"]
    assert main(command) == 1
    assert "cast_tiny has no keys of all superpixels; use explore.feature=token" in capsys.readouterr().err
    assert main([*command, "feature=token"]) == 0
    store = LabelStore(tmp_path / "out")
    assert (store.header["backbone"], store.header["feature"]) == ("cast_tiny", "token")
    assert [len(forest) > 0 for _, forest in store] == [True, True]


def test_parts_write_the_store_of_a_single_run(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    command = ["explore", str(photos), *BACKBONE, *SETTINGS, "--overlays", "0", "--out"]
    assert main([*command, str(tmp_path / "one")]) == 0
    for part in ("2/3", "0/3", "1/3"):
        capsys.readouterr()
        assert main([*command, str(tmp_path / "three"), "--shard", part]) == 0
        assert ("is done; " in capsys.readouterr().out) == (part != "1/3")
    assert labels(tmp_path / "three") == labels(tmp_path / "one")
    assert len(labels(tmp_path / "one")) == 4
    assert (tmp_path / "three" / "summary.json").exists()


def test_parts_are_even_also_of_few_images(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["explore", str(photos), *BACKBONE, *SETTINGS, "--overlays", "0", "--out"]
    assert main([*command, str(tmp_path / "one")]) == 0
    for part, done in (("0/3", 4), ("1/3", 7), ("0/2", 9), ("1/2", 10)):  # of 10; the number of jobs may change
        capsys.readouterr()
        assert main([*command, str(tmp_path / "many"), "--shard", part]) == 0
        said = capsys.readouterr().out
        assert f"holds {done} of 10 images" in said or done == 10
    assert labels(tmp_path / "many") == labels(tmp_path / "one")


def test_single_files_and_all_else_that_people_have(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    a, b, c, *_ = sorted(photos.glob("*[0-9].png"))
    Image.open(a).save(folder / "a.jfif", format="JPEG")
    Image.open(a).save(folder / "no suffix", format="PNG")
    with tarfile.open(folder / "b.tar", "w") as file:
        file.add(b, "b.png")
    (folder / "c.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (folder / "notes.csv").write_text("a,b")
    os.rename(shutil.copy(c, folder), os.fsencode(folder) + b"/caf\xe9.png")
    (folder / "loop").symlink_to(".")
    os.mkfifo(folder / "pipe.png")
    command = [*BACKBONE, *SETTINGS, "--overlays", "9", "--out", str(tmp_path / "out")]
    assert main(["explore", str(a), str(folder), str(b), *command]) == 0
    said = capsys.readouterr()
    store = LabelStore(tmp_path / "out")
    assert [Path(store.file(image_id)).name for image_id in store.image_ids] == [
        a.name,
        "a.jfif",
        "b.png",
        "no suffix",
        b.name,
    ]
    assert "5 images, 3 skipped" in said.out
    assert "not images: 1 other file (1 .csv)" in said.out
    reasons = {Path(entry["file"]).name: entry["reason"] for entry in read_json(tmp_path / "out" / "skipped.json")}
    assert list(reasons) == ["c.heic", "caf\\xe9.png", "pipe.png"]
    assert "not UTF-8" in reasons["caf\\xe9.png"]
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 5


def test_archives_give_the_masks_of_their_files(photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for path in sorted(photos.glob("*.png"))[:3]:
            file.add(path, path.name)
    command = [*BACKBONE, *SETTINGS, "--overlays", "1", "--out"]
    assert main(["explore", str(tmp_path / "a.tar"), *command, str(tmp_path / "tar")]) == 0
    assert main(["explore", str(photos), *command, str(tmp_path / "folder")]) == 0
    packed, loose = LabelStore(tmp_path / "tar"), LabelStore(tmp_path / "folder")
    assert packed.image_ids == [1, 2, 3]
    for image_id, forest in packed:
        assert forest.rles == loose.forest(image_id).rles
    assert len(list((tmp_path / "tar" / "overlays").iterdir())) == 1


def test_thresholds_come_from_the_images_where_none_are_given(photos: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, "theta_merge=null", "region_counts=[2, 8]"]
    for part in ("0/2", "1/2"):
        command = ["explore", str(photos), *BACKBONE, *settings, "--out", str(tmp_path), "--shard", part]
        assert main(command) == 0
    first, second = LabelStore(tmp_path).header["thresholds"]
    assert -1 <= second < first <= 1


def test_nothing_usable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no picture")
    assert main(["explore", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), *BACKBONE, *SETTINGS]) == 1
    assert "0 images, 1 skipped; 0 masks" in capsys.readouterr().out


def test_nothing_set(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", str(photos), "--out", str(tmp_path), *BACKBONE]) == 0
    assert "without any mask" not in capsys.readouterr().out
    store = LabelStore(tmp_path)
    assert all(len(forest) for _, forest in store)
    assert (store.header["algorithm"], store.header["thresholds"]) == ("superpixels", None)


def test_thresholds_left_to_the_images(photos: Path, tmp_path: Path) -> None:
    assert main(["explore", str(photos), "--out", str(tmp_path), *BACKBONE, "--set", "algorithm=sohes"]) == 0
    store = LabelStore(tmp_path)
    assert all(len(forest) for _, forest in store)
    assert len(store.header["thresholds"]) > 20


def test_the_preset_and_what_changes_it(photos: Path, tmp_path: Path) -> None:
    command = ["explore", str(photos), *BACKBONE, "--preset", "paper", "--set", "size_global=64", "center=true"]
    assert main([*command, "min_area_px=20", "--out", str(tmp_path)]) == 0
    assert LabelStore(tmp_path).header["thresholds"] == [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def test_set_without_settings_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe a setting is one plain line, on a terminal of 80 columns the table keeps within them."""
    with pytest.raises(SystemExit, match="0"):
        main(["explore", "--set"])
    lines = {line.split()[0]: re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()}
    assert lines["size_local"] == ["size_local", "256", "Side of a resized crop, px", "UnSAM"]
    assert lines["nms_iou"][:3] == ["nms_iou", "0.95", "0.9"]
    assert set(lines) > {field.name for field in fields(ExploreSettings)}
    screen = Console(width=80, force_terminal=True, file=io.StringIO(), color_system=None)
    print_table("title", ["key", "meaning"], [["size_local", "word " * 40]], screen)
    assert max(map(len, screen.file.getvalue().splitlines())) <= 80  # type: ignore[attr-defined]


def test_a_store_without_masks_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The summary is written all the same. The remedy is another where thresholds were not what failed."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (64, 48), colour).save(folder / name)
    Image.new("RGB", (64, 48), "red").save(folder / "a.png")
    command = ["explore", str(folder), *BACKBONE, "--out"]
    assert main([*command, str(tmp_path / "fixed"), *SETTINGS]) == 1
    said = capsys.readouterr()
    assert "no mask in any of 2 images. The thresholds theta_merge=[0.95, 0.8, 0.5] do not suit" in said.err
    assert "theta_merge=null" in said.err
    assert "without any mask: 2 images" in said.out
    assert read_json(tmp_path / "fixed" / "summary.json")["images_by_masks"] == {"0": 2}
    assert main([*command, str(tmp_path / "open"), "--set", "min_area_px=4000"]) == 1
    assert "Nothing that was found passes the filters: lower min_area_px (4000 px)" in capsys.readouterr().err


def test_images_without_masks_are_counted(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.open(photos / "000000.png").save(folder / "a.png")
    Image.new("RGB", (64, 64), "red").save(folder / "b.png")
    assert main(["explore", str(folder), *BACKBONE, *SETTINGS, "--out", str(tmp_path / "out")]) == 0
    assert "without any mask: 1 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--shard", "3/3"], "--shard must be I/N with I from 0 to N - 1"),
        (["--shard", "one"], "--shard must be I/N"),
        (["--set", "size_globl=3"], "did you mean 'size_global'"),
        (["--set", "size_global=big"], "size_global must be int of at least 1 or null, given 'big'"),
        (["--set", "size_global"], "write it as key=value"),
    ],
)
def test_wrong_calls(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    assert main(["explore", str(photos), "--out", str(tmp_path), *BACKBONE, *extra]) == 1
    assert message in capsys.readouterr().err


def test_summary_counts(photos: Path, tmp_path: Path) -> None:
    assert main(["explore", str(photos), "--out", str(tmp_path), *BACKBONE, *SETTINGS, "--overlays", "0"]) == 0
    store = LabelStore(tmp_path)
    found = summarise(store)
    forests = [forest for _, forest in store]
    areas = np.concatenate([forest.areas for forest in forests])
    depth = np.concatenate([forest.depth for forest in forests])
    assert (found.images, found.skipped, found.masks) == (9, 1, len(areas))
    assert found.masks_by_size == {
        "s": int((areas < 1024).sum()),
        "m": int(((areas >= 1024) & (areas < 9216)).sum()),
        "l": int((areas >= 9216).sum()),
    }
    assert found.masks_by_depth == {int(d): int((depth == d).sum()) for d in np.unique(depth)}
    assert sum(count * images for count, images in found.images_by_masks.items()) == len(areas)
    assert sum(found.masks_by_source.values()) == len(areas)


def test_summary_of_a_deep_forest_names_three_levels() -> None:
    found = Summary(
        images=1,
        skipped=0,
        masks=200,
        images_by_masks={200: 1},
        masks_by_depth={0: 1, 1: 19, 2: 80, 3: 60, 40: 40},
        masks_by_size={"s": 200},
        masks_by_source={},
    )
    assert "depth: wholes 1 (0 %); parts 19 (10 %); subparts 180 (90 %)" in found.lines()


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL again and again, at moments that come later and later; the end is that of a run left alone."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(260):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"{seed:03d}.png")
    settings = [
        "--set",
        "algorithm=sohes",
        "size_global=64",
        "max_crops=0",
        "min_area_px=20",
    ]  # thresholds are those of the noise
    command = [sys.executable, "-m", "sohes.cli", "explore", str(folder), *BACKBONE, *settings, "--overlays", "0"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for attempt in range(4):
        process = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], **quiet)  # type: ignore[call-overload]
        finished = len(list((tmp_path / "killed").glob("labels-*.parquet")))
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "killed").glob("*labels-*.parquet"))) <= finished:  # also a half-written one
            assert process.poll() is None
            assert time.monotonic() < deadline
        time.sleep(0.02 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, "--out", str(tmp_path / "killed")], check=True, **quiet)  # type: ignore[call-overload]
    subprocess.run([*command, "--out", str(tmp_path / "alone")], check=True, **quiet)  # type: ignore[call-overload]
    assert labels(tmp_path / "killed") == labels(tmp_path / "alone")
    assert len(labels(tmp_path / "alone")) == 260
    assert sum(len(forest) for _, forest in LabelStore(tmp_path / "alone")) > 260
