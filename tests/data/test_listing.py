"""Listings of folders, file lists, COCO files and tar archives: order, ids, and the same pixels from each."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sohes.data.coco import ImageItem, write_coco
from sohes.data.listing import Listing, list_images, load_named
from sohes.errors import DataError


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(out, format="png")
    return out.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def values(listing: Listing) -> list[int]:
    return [int(listing.load(place)[0, 0, 0]) for place in range(len(listing))]


def sa1b(folder: Path) -> Path:
    """Three archives as SA-1B has them: an image and a JSON file of each, in the order of download."""
    for number in range(3):
        members = {}
        for value in (9 - number, number):
            members[f"./sa_{value}.png"] = png(10 * number + value)
            members[f"./sa_{value}.json"] = b"{}"
        write_tar(folder / f"sa_{number:06d}.tar", members)
    return folder


def test_archives_in_order_members_as_they_come(tmp_path: Path) -> None:
    folder = sa1b(tmp_path)
    for source in ("", "*.tar", "sa_{000000..000002}.tar"):
        listing = list_images(str(folder / source))
        assert values(listing) == [9, 0, 18, 11, 27, 22]
        assert list(listing.ids) == [1, 2, 3, 4, 5, 6]
    assert listing.names[2] == f"{folder}/sa_000001.tar/./sa_8.png"
    assert values(list_images(str(folder / "sa_000001.tar"))) == [18, 11]
    assert int(load_named(listing.names[2])[0, 0, 0]) == 18


def test_webdataset_keys_with_dots_and_folders(tmp_path: Path) -> None:
    long = "a" * 120 + "/b.c.jpeg"  # longer than a plain header can hold
    path = write_tar(tmp_path / "x.tar", {"k/0.cls": b"3", "k/0.PNG": png(5), long: png(6), "k/0.txt": b"text"})
    assert values(list_images(str(path))) == [5, 6]


def test_a_broken_member_is_an_image_that_cannot_be_used(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.png": png(1)[:40], "b.png": png(2)})
    listing = list_images(str(path))
    with pytest.raises(DataError, match=r"x\.tar/a\.png: cannot be read as an image"):
        listing.load(0)
    assert int(listing.load(1)[0, 0, 0]) == 2
    assert len(list(listing.sample())) == 1
    path.unlink()
    with pytest.raises(DataError, match="cannot be read from its archive"):
        listing.load(1)


def test_folder_list_and_coco(tmp_path: Path) -> None:
    for name, value in (("b.png", 2), ("a.png", 1), ("sub/c.png", 3)):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(png(value))
    folder = list_images(str(tmp_path / "photos"))
    assert (values(folder), list(folder.ids)) == ([1, 2, 3], [1, 2, 3])

    (tmp_path / "list.txt").write_text(f"photos/sub/c.png\n\n{tmp_path}/photos/a.png\nphotos/gone.png\n")
    lines = list_images(str(tmp_path / "list.txt"))
    assert list(lines.ids) == [1, 2, 3]
    assert [int(lines.load(place)[0, 0, 0]) for place in (0, 1)] == [3, 1]
    with pytest.raises(DataError, match="no such image"):
        lines.load(2)

    items = [ImageItem(70, tmp_path / "photos" / "b.png", 4, 6), ImageItem(5, tmp_path / "photos" / "a.png", 4, 6)]
    write_coco(tmp_path / "set.json", items, {}, [])
    coco = list_images(str(tmp_path / "set.json"))
    assert (values(coco), list(coco.ids)) == ([2, 1], [70, 5])
    digests = {folder.digest, lines.digest, coco.digest, Listing(coco.names, [70, 6]).digest}
    assert len(digests) == 4
    assert list_images(str(tmp_path / "photos")).digest == folder.digest


def test_samples_are_spread_and_the_same_each_time(tmp_path: Path) -> None:
    for value in range(9):
        (tmp_path / f"{value}.png").write_bytes(png(value))
    listing = list_images(str(tmp_path))
    assert [int(image[0, 0, 0]) for image in listing.sample(3)] == [0, 4, 8]
    assert len(list(listing.sample(100))) == 9


def test_sources_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        list_images(str(tmp_path / "nowhere"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="names no image"):
        list_images(str(tmp_path / "empty.txt"))
    with pytest.raises(DataError, match=r"gone\.tar: not an uncompressed tar"):
        list_images(str(tmp_path / "gone.tar"))
    write_tar(tmp_path / "a" / "x.tar", {"a.json": b"{}"})
    with pytest.raises(DataError, match="no image in it"):
        list_images(str(tmp_path / "a"))
    packed = write_tar(tmp_path / "y.tar.gz", {"a.png": png(1)}, "w:gz")
    with pytest.raises(DataError, match=r"y\.tar\.gz: not an uncompressed tar"):
        list_images(str(packed))
