"""Which image is meant: by file, by the end of the path, by a name that only one has; never by a number."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sohes.data.coco import ImageItem, ImageSet
from sohes.data.identity import match_names, match_store
from sohes.data.label_store import LabelStore, LabelWriter
from sohes.errors import DataError
from sohes.masks import MaskForest


def match(wanted: str | list[str], given: str | list[str], root: str = "/gt") -> dict[int, int]:
    """Matches by place in the lists."""
    sides = [dict(enumerate([names] if isinstance(names, str) else names)) for names in (wanted, given)]
    return match_names(*sides, roots=(Path(root), Path("/given")), sources=("truth.json", "labels"))


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ("a.png", "/gt/a.png"),  # the very file
        ("a.png", "/photos/a.png"),  # no folder is named
        ("b/a.png", "/photos/b/a.png"),
        ("/photos/b/a.png", "a.png"),
        ("b/a.png", "b/a.png"),
        ("./b//a.png", "/photos/b/a.png"),
        ("../images/a.png", "/photos/images/a.png"),
        ("b\\a.png", "/photos/b/a.png"),  # written on Windows
        ("cafe\u0301.png", "/photos/caf\u00e9.png"),  # an accent in two letters, as macOS writes it
        ("b/a.png", "/photos/pack.tar/b/a.png"),  # a member of an archive
    ],
)
def test_the_same_image(wanted: str, given: str) -> None:
    assert match(wanted, given) == {0: 0}


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ("a.png", "/photos/aa.png"),
        ("b/a.png", "/photos/c/a.png"),  # the folders say otherwise
        ("b/a.png", "/photos/ab/a.png"),
        ("a.png", "/photos/A.png"),
        ("a.png", "/photos/a.jpg"),
        ("/old/a.png", "/new/a.png"),
    ],
)
def test_other_images(wanted: str, given: str) -> None:
    with pytest.raises(DataError, match=r"none of the 1 images of truth\.json is among the 1 of labels"):
        match(wanted, given)
    assert match([wanted, "sure.png"], [given, "/x/sure.png"]) == {1: 1}


def test_folders_tell_equal_names_apart() -> None:
    given = ["/p/drive1/0.png", "/p/drive2/0.png", "/p/drive1/1.png"]
    assert match(["drive2/0.png", "drive1/0.png"], given) == {0: 1, 1: 0}
    assert match(["drive2/0.png", "drive2/1.png"], given) == {0: 1}  # that of the other drive is no stand-in
    assert match("0.png", given, root="/p/drive1") == {0: 0}  # the very file
    with pytest.raises(DataError, match=r"'0\.png' could be '/p/drive1/0\.png' or '/p/drive2/0\.png' of labels"):
        match("0.png", given)


def test_one_image_cannot_be_wanted_twice() -> None:
    with pytest.raises(DataError, match=r"'a\.png' and 'b/a\.png' both mean '/p/b/a\.png' of labels; remove one"):
        match(["a.png", "b/a.png"], "/p/b/a.png")


def test_nothing_to_match() -> None:
    assert match([], "a.png") == match("a.png", []) == {}


def test_files_that_are_there(tmp_path: Path) -> None:
    """A link is the same file; a file of another size is another image, a copy is not."""
    for folder in ("gt", "frames", "copies"):
        (tmp_path / folder).mkdir()
    (tmp_path / "gt" / "0.png").write_bytes(b"one")
    (tmp_path / "frames" / "0.png").write_bytes(b"another")
    (tmp_path / "copies" / "0.png").write_bytes(b"one")
    (tmp_path / "link").symlink_to(tmp_path / "gt")
    names = [str(tmp_path / folder / "0.png") for folder in ("frames", "link", "copies")]
    assert match("0.png", names, root=str(tmp_path / "gt")) == {0: 1}
    assert match("0.png", names[2], root=str(tmp_path / "gt")) == {0: 0}
    with pytest.raises(DataError, match="a file that is there with another size is another image"):
        match("0.png", names[0], root=str(tmp_path / "gt"))


def forest(masks: int) -> MaskForest:
    return MaskForest.from_masks(np.ones((masks, 4, 4), bool))


def test_a_store_keeps_its_own_numbers(tmp_path: Path) -> None:
    items = [ImageItem(number, tmp_path / f"{name}.png", 4, 4) for number, name in enumerate("cbad", start=1)]
    with LabelWriter(tmp_path / "store", header={}) as writer:
        for number, name in enumerate("abx"):
            writer.add(number, os.fspath(tmp_path / f"{name}.png"), forest(number))
        writer.skip(os.fspath(tmp_path / "d.png"), "broken")
    images = ImageSet(tmp_path / "truth.json", items)
    assert match_store(LabelStore(tmp_path / "store"), images) == {2: 1, 3: 0}


def test_an_image_that_a_store_skipped_gives_its_place_to_no_other(tmp_path: Path) -> None:
    with LabelWriter(tmp_path / "store", header={}) as writer:
        writer.add(1, "/video/drive1/1.png", forest(1))
        writer.add(2, "/video/drive2/0.png", forest(1))
        writer.skip("/video/drive2/1.png", "cut off")
    store = LabelStore(tmp_path / "store")
    items = [ImageItem(number, Path(f"/video/drive2/{number}.png"), 4, 4) for number in (0, 1)]
    assert match_store(store, ImageSet(Path("/video/truth.json"), items)) == {0: 2}
    assert match_store(store, ImageSet(Path("/video/drive2/truth.json"), items)) == {0: 2}
