"""Listings of folders, file lists, COCO files and tar archives: order, ids, and the same pixels from each."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sohes.data.coco import ImageItem
from sohes.data.coco_writer import write_coco
from sohes.data.images import load_image
from sohes.data.listing import Listing, list_images
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
    assert listing.names[2] == f"{folder}/sa_000001.tar/sa_8.png"
    assert listing.notes == ["not images: 6 other files (6 .json)"]
    assert values(list_images(str(folder / "sa_000001.tar"))) == [18, 11]
    assert int(load_image(Path(listing.names[2]))[0, 0, 0]) == 18


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


def test_samples_do_not_depend_on_the_order_of_the_listing(tmp_path: Path) -> None:
    for value in range(9):
        (tmp_path / f"{value}.png").write_bytes(png(value))
    listing = list_images(str(tmp_path))
    backwards = Listing(listing.names[::-1], listing.ids)
    three = [int(image[0, 0, 0]) for image in listing.sample(3)]
    assert len(set(three)) == 3
    assert [int(image[0, 0, 0]) for image in backwards.sample(3)] == three
    assert len(list(listing.sample(100))) == 9
    odd = Listing([os.fsdecode(b"/gone/caf\xe9.png"), *listing.names], range(10))
    assert [int(image[0, 0, 0]) for image in odd.sample(3)] == three
    (tmp_path / f"{three[0]}.png").write_bytes(b"no image")  # another takes its place
    assert [int(image[0, 0, 0]) for image in listing.sample(3)][:2] == three[1:]
    assert len(list(listing.sample(3))) == 3


def test_sources_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        list_images(str(tmp_path / "nowhere"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="names no image"):
        list_images(str(tmp_path / "empty.txt"))
    with pytest.raises(DataError, match=r"gone\.tar: not an uncompressed tar"):
        list_images(str(tmp_path / "gone.tar"))
    write_tar(tmp_path / "a" / "x.tar", {"a.json": b"{}"})
    with pytest.raises(DataError, match=r"no image found.*; what is there: 1 other file \(1 \.json\)"):
        list_images(str(tmp_path / "a"))
    with pytest.raises(DataError, match="empty source"):
        list_images("")
    packed = write_tar(tmp_path / "y.tar.gz", {"a.png": png(1)}, "w:gz")
    with pytest.raises(DataError, match=r"y\.tar\.gz: a packed archive is not read; unpack it"):
        list_images(packed)


def names(listing: Listing) -> list[str]:
    return [Path(name).name for name in listing.names]


def put(folder: Path, *paths: str) -> list[Path]:
    """Images whose pixels have the values 0, 1, 2, ..."""
    for value, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(png(value))
    return [folder / path for path in paths]


def test_a_folder_is_searched_at_all_levels_and_sorted(tmp_path: Path) -> None:
    paths = put(tmp_path, "a/c.PNG", "a.jpg", "b/d/e.webp", "a-b.png")
    put(tmp_path, ".hidden/x.png", ".y.png", "a/._c.PNG")
    assert list_images(tmp_path).names == [str(path) for path in sorted(paths)]


def test_several_sources_in_their_order_each_image_once(tmp_path: Path) -> None:
    a, b, c = put(tmp_path / "photos", "a.png", "b.png", "c.png")
    archive = write_tar(tmp_path / "x.tar", {"d.png": png(3)})
    (tmp_path / "list.txt").write_text(f"{c}\n{a}\n{c}\n")
    listing = list_images(b, archive, tmp_path / "list.txt", tmp_path / "photos")
    assert (values(listing), list(listing.ids)) == ([1, 3, 2, 0], [1, 2, 3, 4])
    assert listing.notes == ["given or linked to again: 4 images, taken once each"]
    assert values(list_images(str(tmp_path / "photos" / "[bc].png"))) == [1, 2]
    write_coco(tmp_path / "set.json", [ImageItem(7, a, 4, 6)], {}, [])
    with pytest.raises(DataError, match=r"set\.json: a COCO file numbers its images itself; give it alone"):
        list_images(a, tmp_path / "set.json")


def test_archives_beside_photographs(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "c.png", "sub/e.png")
    write_tar(tmp_path / "b.TAR", {"x.png": png(7), "._x.png": png(8), "a/notes": b"text", "plain": png(9)})
    write_tar(tmp_path / "d.tar.gz", {"x.png": png(7)}, "w:gz")
    listing = list_images(tmp_path)
    assert names(listing) == ["a.png", "x.png", "plain", "c.png", "d.tar.gz", "e.png"]
    assert [int(listing.load(place)[0, 0, 0]) for place in (0, 1, 2, 3, 5)] == [0, 7, 9, 1, 2]
    with pytest.raises(DataError, match=r"d\.tar\.gz: cannot be read as an image \(a packed archive; unpack it"):
        listing.load(4)
    (tmp_path / "broken.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match=r"broken\.tar: not an uncompressed tar"):
        list_images(tmp_path)


def test_odd_members_of_archives(tmp_path: Path) -> None:
    members = {"/etc/a.png": png(1), "../b.png": png(2), "new\nline.png": png(3), "twice.png": png(4)}
    path = write_tar(tmp_path / "odd.tar" / "inner.tar", members)
    with tarfile.open(path, "a") as file:  # an update, as `tar -r` makes it: the later one counts
        info = tarfile.TarInfo("twice.png")
        info.size = len(png(5))
        file.addfile(info, io.BytesIO(png(5)))
    listing = list_images(tmp_path / "odd.tar")
    assert values(listing) == [1, 2, 3, 5]
    assert [int(load_image(Path(name))[0, 0, 0]) for name in listing.names] == [1, 2, 3, 5]
    with pytest.raises(DataError, match=r"gone\.png: no such image"):
        load_image(path / "gone.png")


def test_links_are_followed_and_loops_survived(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "p0.png", "deep/p1.png")
    put(tmp_path / "set", "own.png")
    links = {"part": "../elsewhere", "again": "../elsewhere", "loop": ".", "up": "..", "self": "self"}
    for name, target in links.items():
        (tmp_path / "set" / name).symlink_to(target)
    (tmp_path / "set" / "same.png").symlink_to("own.png")
    (tmp_path / "set" / "gone.png").symlink_to("nowhere.png")
    listing = list_images(tmp_path / "set")
    assert sorted(names(listing)) == ["gone.png", "own.png", "p0.png", "p1.png"]
    assert listing.repeated == 1  # same.png
    with pytest.raises(DataError, match=r"gone\.png: no such image"):
        listing.load(names(listing).index("gone.png"))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "all").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "links" / "p0.png").symlink_to(tmp_path / "elsewhere" / "p0.png")
    assert sorted(names(list_images(tmp_path / "links"))) == ["p0.png", "p1.png"]


def test_every_kind_of_image_is_looked_for_and_all_else_is_counted(tmp_path: Path) -> None:
    picture = Image.fromarray(np.full((4, 6, 3), 90, np.uint8))
    kinds = {"a.jfif": "JPEG", "b.jp2": "JPEG2000", "c.jpe": "JPEG", "d.pgm": "PPM", "e": "PNG", "f.tga": "TGA"}
    for name, kind in kinds.items():
        picture.save(tmp_path / name, format=kind)
    (tmp_path / "g.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (tmp_path / "h.dng").write_bytes((tmp_path / "a.jfif").read_bytes())
    for name in ("README", "notes.txt", "x.json", "y.json", "z.csv", "video.mp4", "page.html"):
        (tmp_path / name).write_text("P3 is how a picture could begin")
    (tmp_path / "i").write_bytes((tmp_path / "g.heic").read_bytes())
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.png")
    listing = list_images(tmp_path)
    assert names(listing) == [*kinds, "g.heic", "h.dng", "i", "pipe.png"]
    assert all(listing.load(place).shape == (4, 6, 3) for place in range(len(kinds)))
    heic = "pip install pillow-heif"
    for place, reason in ((6, heic), (7, "a camera's raw file"), (8, heic), (9, "a pipe or device")):
        with pytest.raises(DataError, match=reason):
            listing.load(place)
    assert listing.notes == ["not images: 8 other files (2 without suffix, 2 .json, 1 .csv, 1 .html, 2 more)"]


def latin1(folder: Path) -> None:
    put(folder, "a.png", "b.png", "c.png")
    os.rename(folder / "b.png", os.fsencode(folder) + b"/caf\xe9.png")


def test_a_name_that_is_not_utf8_is_skipped_by_name(tmp_path: Path) -> None:
    latin1(tmp_path / "photos")
    listing = list_images(tmp_path / "photos")
    assert (list(listing.ids), len(listing.digest)) == ([1, 2, 3], 16)
    with pytest.raises(DataError, match=r"caf\\xe9\.png: the name is not UTF-8; rename it"):
        listing.load(2)
    path = write_tar(tmp_path / "x.tar", {"caf\udce9.png": png(1), "b.png": png(2)})
    members = list_images(path)
    assert int(members.load(1)[0, 0, 0]) == 2
    with pytest.raises(DataError, match="not UTF-8"):
        members.load(0)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_lists_of_paths(tmp_path: Path, encoding: str) -> None:
    put(tmp_path, "ü 漢.png", " lead.png", "#1.png", "x\u2028y.png", "last.png")
    text = "# a comment\r\nü 漢.png\r\n\r\n lead.png\r\n#1.png\r\nx\u2028y.png\r\n  last.png \r\nlast.png"
    (tmp_path / "list.TXT").write_bytes(text.encode(encoding))
    listing = list_images(tmp_path / "list.TXT")
    assert (values(listing), listing.repeated) == ([0, 1, 2, 3, 4], 1)


def test_lists_that_are_no_unicode(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("é.png\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"list\.txt: cannot be read as a list.*save it as UTF-8"):
        list_images(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes("e.png\n".encode("utf-16-le"))
    with pytest.raises(DataError, match="zero bytes"):
        list_images(tmp_path / "list.txt")


def test_what_a_coco_file_leaves_out_is_said(tmp_path: Path) -> None:
    write_coco(
        tmp_path / "a.json", [ImageItem(1, tmp_path / "a.png", 4, 6), ImageItem(2, tmp_path / "b.png", 4, 6)], {}, []
    )
    text = (tmp_path / "a.json").read_text().replace('"b.png"', "null")
    (tmp_path / "a.json").write_text(text)
    listing = list_images(str(tmp_path / "a.json"))
    assert list(listing.ids) == [1]
    (note,) = listing.notes
    assert note.startswith("skipped 1 x entry of 'images' that cannot be used")
