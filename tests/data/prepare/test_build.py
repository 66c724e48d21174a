"""What all data sets share: names, needs, checksums, the written file, and the command."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from sohes.cli import main
from sohes.data.prepare import DATASETS, data_folder, resolve_ground_truth
from sohes.data.prepare.build import prepare, wrong_digests
from sohes.errors import DataError

from .conftest import Prepare, box, photo, save


@pytest.fixture
def car_parts(root: Path) -> Path:
    """Three images, two of them with a mask."""
    images, rows = [], []
    for number in (3, 1, 2):
        photo(root / f"images/train/car{number}.jpg")
        images.append({"id": number, "file_name": f"train/car{number}.jpg", "width": 8, "height": 6})
        if number != 2:
            rows.append({"id": number, "image_id": number, "category_id": 5, "segmentation": box(0, 0, number, 2)})
    save(root / "instances.json", {"images": images, "annotations": rows})
    return root


@pytest.mark.parametrize("name", DATASETS)
def test_an_empty_folder_is_told_everything_it_lacks(root: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out.json"
    with pytest.raises(DataError) as caught:
        prepare(name, root, out)
    message = str(caught.value)
    needs = DATASETS[name].needs
    assert f"{len(needs)} of the {len(needs)} files or folders that {name} needs are missing" in message
    for need in needs:
        assert need.source in message
        assert all(place in message for place in need.places)
    assert DATASETS[name].page in message
    assert DATASETS[name].licence in message
    assert not out.exists()


def test_only_what_is_missing_is_named(car_parts: Path, tmp_path: Path) -> None:
    (car_parts / "instances.json").unlink()
    with pytest.raises(DataError, match="1 of the 2 files or folders") as caught:
        prepare("car_parts", car_parts, tmp_path / "out.json")
    assert "  instances.json\n" in str(caught.value)
    assert "  images\n" not in str(caught.value)


def test_no_folder_and_no_such_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; --root is the folder that holds the download of coco"):
        prepare("coco", tmp_path / "gone", tmp_path / "out.json")
    with pytest.raises(DataError, match="unknown data set 'cooc'; did you mean 'coco'"):
        prepare("cooc", tmp_path, tmp_path / "out.json")


def test_the_file(car_parts: Path, prepared: Prepare) -> None:
    report, images = prepared("car_parts")
    assert [item.id for item in images.items] == [3, 1, 2]  # as in the download
    assert images.forest(3).areas.tolist() == [6]
    assert images.forest(1).areas.tolist() == [2]
    text = report.path.read_bytes()
    assert json.loads(text)["images"][0]["file_name"] == str(car_parts / "images/train/car3.jpg")
    assert prepared("car_parts")[0].path.read_bytes() == text
    inside = prepare("car_parts", car_parts, car_parts / "entities.json")
    assert json.loads(inside.path.read_text())["images"][0]["file_name"] == "images/train/car3.jpg"


def test_missing_images_are_counted_and_named(car_parts: Path, prepared: Prepare) -> None:
    (car_parts / "images/train/car3.jpg").unlink()
    report, images = prepared("car_parts")
    assert [item.id for item in images.items] == [1, 2]
    assert report.warnings == [
        f"skipped 1 x image that cannot be used, e.g. {car_parts / 'images/train/car3.jpg'} is missing",
        "the download has 3 images, the official one 140; is it complete?",
    ]
    for number in (1, 2):
        (car_parts / f"images/train/car{number}.jpg").unlink()
    before = report.path.read_bytes()
    with pytest.raises(
        DataError, match=r"no images of car_parts can be used; skipped 3 x image .*car1\.jpg is missing"
    ):
        prepared("car_parts")
    assert report.path.read_bytes() == before  # a failure leaves what was there


def test_an_archive_with_another_checksum(root: Path) -> None:
    (root / "a.zip").write_bytes(b"archive")
    right = hashlib.sha256(b"archive").hexdigest()
    dataset = replace(DATASETS["coco"], digests={"a.zip": f"sha256:{right}", "gone.zip": "md5:0"})
    assert wrong_digests(dataset, root) == []
    (line,) = wrong_digests(replace(dataset, digests={"a.zip": "sha256:00"}), root)
    assert line == f"{root / 'a.zip'}: sha256 is {right}, the official one is 00; download it again"


def test_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOHES_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    with pytest.raises(DataError, match="not prepared yet; run: sohes data prepare lvis --root DIR"):
        resolve_ground_truth("lvis")
    (tmp_path / "lvis.json").touch()
    assert resolve_ground_truth("lvis") == tmp_path / "lvis.json"
    assert resolve_ground_truth(str(tmp_path / "lvis.json")) == tmp_path / "lvis.json"
    with pytest.raises(DataError, match="unknown data set 'lvsi'; did you mean 'lvis'"):
        resolve_ground_truth("lvsi")
    for path in ("truth.json", str(tmp_path / "truth")):
        with pytest.raises(DataError, match=r"no such file; give a COCO file or the name"):
            resolve_ground_truth(path)
    monkeypatch.delenv("SOHES_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".cache/sohes/data"


def test_command(
    car_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOHES_DATA", str(tmp_path / "data"))
    assert main(["data", "prepare", "car_parts", "--root", str(car_parts)]) == 0
    output = capsys.readouterr()
    assert output.out == (
        "3 images, 2 masks, 0.7 per image\nwith a parent 0.0%, size S 100.0%, size M 0.0%, size L 0.0%\n"
        f"written to {tmp_path / 'data/car_parts.json'}\n"
    )
    assert "sohes: car_parts: the download has 3 images, the official one 140" in output.err
    assert main(["data", "list"]) == 0
    listing = capsys.readouterr().out
    assert f"car_parts               {tmp_path / 'data/car_parts.json'}\n" in listing
    assert "coco                    not prepared\n" in listing
    assert all(dataset.page in listing for dataset in DATASETS.values())


def test_command_limit_and_out(car_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "prepare", "car_parts", "--root", str(car_parts), "--out", str(tmp_path / "x.json")]
    assert main([*arguments, "--limit", "2"]) == 0
    value = json.loads((tmp_path / "x.json").read_text())
    assert len(value["images"]) == 2
    assert value["info"]["drawn"] == {"images": 2, "of": 3, "seed": 0}
    assert "masks, the official one" not in capsys.readouterr().err  # a subset has other counts
    assert main([*arguments, "--limit", "0"]) == 1
    assert capsys.readouterr().err == "sohes: --limit must be at least 1, not 0\n"
