"""`sohes probe` on what people have: one clear line and status 1, or a note and a score."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sohes import cli
from sohes.backbones.timm_folder import save_backbone_folder
from sohes.backbones.weights import resolve_weights
from sohes.probes import features, registry
from sohes.records import read_record
from tests.probes.synthetic import SIZE_HW, write_folder
from tests.probes.test_stage import CALLS, drawn

VAL = "masks/val/01.png"


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    model, provenance = resolve_weights("random:test_vit")
    save_backbone_folder(tmp_path / "backbone", model, provenance)
    return {"backbone": tmp_path / "backbone", "data": write_folder(tmp_path / "bands"), "out": tmp_path / "out"}


def run(paths: dict[str, Path], *settings: str, probe: str = "linear") -> int:
    command = ["probe", str(paths["backbone"]), "--data", str(paths["data"]), "--out", str(paths["out"])]
    return cli.main([*command, "--probe", probe, "--set", "size_px=32", "pictures=0", "max_steps=5", *settings])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line of an error; progress comes before it."""
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if line.startswith("sohes: ")]
    assert lines[-1] == error
    return error


def labels(paths: dict[str, Path]) -> np.ndarray:
    return np.asarray(Image.open(paths["data"] / VAL))


def write(mode: str) -> Callable[[dict[str, Path]], None]:
    def spoil(paths: dict[str, Path]) -> None:
        Image.new(mode, SIZE_HW[::-1]).save(paths["data"] / VAL)

    return spoil


def _larger(paths: dict[str, Path]) -> None:
    Image.new("L", (99, 40)).save(paths["data"] / VAL)


def _deep(paths: dict[str, Path]) -> None:
    Image.fromarray(labels(paths).astype(np.uint16) * 256).save(paths["data"] / VAL)


def _foreign(paths: dict[str, Path]) -> None:
    Image.fromarray(np.full(SIZE_HW, 20, np.uint8)).save(paths["data"] / VAL)


def _damaged_labels(paths: dict[str, Path]) -> None:
    (paths["data"] / VAL).write_bytes((paths["data"] / VAL).read_bytes()[:60])


def _no_val(paths: dict[str, Path]) -> None:
    for kind in ("images", "masks"):
        shutil.rmtree(paths["data"] / kind / "val")
        (paths["data"] / kind / "val").mkdir()


def _no_image(paths: dict[str, Path]) -> None:
    for path in (paths["data"] / "images" / "val").iterdir():
        path.write_text("no image")


def _tiny(paths: dict[str, Path]) -> None:
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        Image.new(mode, (300, 12)).save(paths["data"] / kind / "train" / "00.png")


def _no_data(paths: dict[str, Path]) -> None:
    paths["data"] = paths["data"] / "nothing"


def _no_backbone(paths: dict[str, Path]) -> None:
    paths["backbone"] = paths["data"]


def _out_is_a_file(paths: dict[str, Path]) -> None:
    paths["out"].write_text("mine")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_larger, ("01.png is 40 x 99, 01.png 40 x 56 (height x width). Give each the size of its image",)),
        (_deep, ("01.png: labels 0 to 65280; they must lie in 0 to 254",)),
        (write("RGB"), ("01.png: a picture of mode RGB, no label map", "Convert its colours to class numbers")),
        (write("LA"), ("01.png: a picture of mode LA, no label map",)),
        (_foreign, ("01.png: label 20, but classes.txt has 3 names, so labels end at 2; add the name, or make",)),
        (_damaged_labels, ("01.png: cannot be read as a PNG label map",)),
        (_no_val, ("no label map in split 'val'; at least one is needed",)),
        (_no_image, ("none of the images of split 'val' can be read:",)),
        (_tiny, ("00.png: 12 x 300 px", "smaller than a patch of 16 px; leave out such images (1 of 4)")),
        (_no_data, ("nothing: no such file, folder or prepared set. Give a COCO file",)),
        (_no_backbone, ("bands: not a timm folder, config.json is missing; give a folder that has it",)),
        (_out_is_a_file, ("out: a file, where a folder for the results is needed; name another",)),
    ],
)
def test_one_line(
    spoil: Callable[[dict[str, Path]], None],
    words: tuple[str, ...],
    paths: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(paths)
    assert run(paths) == 1
    error = one_line(capsys)
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("probe", "settings", "words"),
    [
        ("overcluster", ["clusters=[500]"], "500 clusters, but the val images have 12 patches; take fewer clusters"),
        ("overcluster", ["clusters=[2]"], "2 clusters cannot name 3 classes; take more"),
        (
            "cluster",
            ["tokens=2"],
            "3 clusters, one for each class, but 2 of the 1600 train patches are clustered; give",
        ),
        ("knn", ["neighbours=17"], "neighbours=17: there are only 16 labelled train patches; lower it"),
        ("incontext", ["bank_size=3"], "bank_size=3 is less than a patch of each of the 4 train images; raise it"),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_features_are_extracted(
    probe: str,
    settings: list[str],
    words: str,
    paths: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(features, "_maps", None)
    assert run(paths, *settings, probe=probe) == 1
    assert words in one_line(capsys)


def test_features_that_the_disk_cannot_hold(
    paths: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = features._maps
    monkeypatch.setattr(features, "_maps", None)
    free = 7 * 4 * 64 * 2**2  # seven images of 2 x 2 patches
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free - 1))
    assert run(paths) == 1
    assert "the features of 7 images need 0.0 GB" in (error := one_line(capsys))
    assert "lower them with size_px=N, max_train=N or max_val=N, or let $SOHES_CACHE name a larger disk" in error
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setattr(features, "_maps", maps)
    assert run(paths) == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert run(paths, "l2=0.1") == 0  # all are there


def test_features_that_are_no_numbers(tmp_path: Path, paths: dict[str, Path], capsys: Any) -> None:
    model, provenance = resolve_weights("random:test_vit")
    model.norm.bias.data[3] = float("nan")
    save_backbone_folder(tmp_path / "broken", model, provenance)
    assert run(paths | {"backbone": tmp_path / "broken"}) == 1
    assert "00.png: its features are not finite (NaN or infinite)" in (error := one_line(capsys))
    assert error.endswith("take another checkpoint")


def test_label_maps_of_one_channel_of_any_kind(paths: dict[str, Path]) -> None:
    expected = []
    for kind in ("grey", "palette", "16 bits"):
        image = Image.fromarray(labels(paths).astype(np.uint16 if kind == "16 bits" else np.uint8))
        if kind == "palette":
            image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        image.save(paths["data"] / VAL)
        assert run(paths) == 0
        expected.append([row.value for row in read_record(paths["out"] / "record.json").measurements])
    assert expected[0] == expected[1] == expected[2]


def test_classes_that_never_occur_are_a_note(paths: dict[str, Path]) -> None:
    assert run(paths) == 0
    before = read_record(paths["out"] / "record.json")
    (paths["data"] / "classes.txt").write_text("rose\ngrass\nsky\nunicorn\n")
    assert run(paths) == 0
    record = read_record(paths["out"] / "record.json")
    assert "1 of 4 classes never occur: unicorn" in record.notes
    assert record.measurements[0].value == pytest.approx(before.measurements[0].value, abs=2)  # a mean over three


def test_a_broken_image_is_left_out_and_said(paths: dict[str, Path]) -> None:
    image = paths["data"] / "images" / "val" / "01.png"
    image.write_bytes(image.read_bytes()[:-500])  # its header is whole
    assert run(paths) == 0
    record = read_record(paths["out"] / "record.json")
    (note,) = [note for note in record.notes if "left out" in note]
    assert note.startswith(f"1 of 3 images of split 'val' cannot be read and are left out: {image}: cannot be read")
    assert record.measurements[0].n_images == 2


def test_an_interruption_keeps_features_and_finished_seeds(
    paths: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    CALLS.clear()

    def interrupted(task: Any, seed: int) -> Any:
        _ = task.train
        if seed == 1:
            raise KeyboardInterrupt
        return drawn(task, seed)

    monkeypatch.setattr(registry.Probe, "load", lambda self: interrupted)
    assert run(paths, "seeds=3", probe="fcn") == 130
    assert "interrupted; run the same command again to resume" in capsys.readouterr().err
    monkeypatch.setattr(registry.Probe, "load", lambda self: drawn)
    monkeypatch.setattr(features, "_maps", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sohes.probes.scoring.extract_features", lambda *_, **__: [])
        assert run(paths, "seeds=3", probe="fcn") == 0
    assert CALLS == [0, 1, 2]
