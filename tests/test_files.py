"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from sohes.errors import DataError, SohesError
from sohes.files import atomic_path, printable, read_json, shortened, walk_files, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "inside.txt").write_text(text)


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent  # same file system, so that the rename is atomic
        assert temporary.suffix == ".png"  # image writers choose the format by it
        temporary.write_text("x")
        assert not path.exists()
    assert path.read_text() == "x"
    assert names(path.parent) == ["a.png"]


def test_a_folder_replaces_the_one_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "model"
    fill(path, "old")
    (path / "left over.txt").touch()
    with atomic_path(path) as temporary:
        fill(temporary, "new")
    assert names(path) == ["inside.txt"]
    assert (path / "inside.txt").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_a_folder_replaces_a_link_but_not_what_it_points_to(tmp_path: Path) -> None:
    fill(tmp_path / "target", "kept")
    (tmp_path / "link").symlink_to("target")
    with atomic_path(tmp_path / "link") as temporary:
        fill(temporary, "new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link" / "inside.txt").read_text() == "new"
    assert (tmp_path / "target" / "inside.txt").read_text() == "kept"


@pytest.mark.parametrize("stop", [ValueError("bad"), KeyboardInterrupt()])
def test_an_exception_leaves_what_was_there(tmp_path: Path, stop: BaseException) -> None:
    (tmp_path / "a.txt").write_text("old")
    fill(tmp_path / "b", "old")

    def write(path: Path, *, folder: bool) -> None:
        with atomic_path(path) as temporary:
            fill(temporary, "half") if folder else temporary.write_text("half")
            raise stop

    with pytest.raises(type(stop)):
        write(tmp_path / "a.txt", folder=False)
    with pytest.raises(type(stop)):
        write(tmp_path / "b", folder=True)
    assert names(tmp_path) == ["a.txt", "b"]
    assert (tmp_path / "a.txt").read_text() == "old"
    assert (tmp_path / "b" / "inside.txt").read_text() == "old"


def failing_replace(code: int) -> Any:
    def replace(source: object, target: object) -> None:
        raise OSError(code, os.strerror(code))

    return replace


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "replace", failing_replace(code))
    with pytest.raises(SohesError, match=r"no space left while writing a\.txt.*run the same command") as caught:
        write_text(tmp_path / "a.txt", "x")
    assert str(tmp_path) in str(caught.value)
    assert names(tmp_path) == []


def test_other_errors_of_the_disk_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", failing_replace(errno.EACCES))
    with pytest.raises(PermissionError):
        write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == []


def test_json_there_and_back(tmp_path: Path) -> None:
    value = {"ä": [1, 2.5, None], "b": {"c": True}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_nan_is_refused_and_the_old_file_kept(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", [float("nan")])
    assert read_json(tmp_path / "a.json") == [1]


def test_unreadable_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match=r"a\.json: no such file"):
        read_json(path)
    path.write_text('{"a": 1,\n oops}')
    with pytest.raises(DataError, match=r"a\.json: not valid JSON .*line 2"):
        read_json(path)
    for damaged in (b"\xff\xfe\x00", b"[" * 100_000, b"[" + b"9" * 5000 + b"]", "[é]".encode("latin-1")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not valid JSON"):
            read_json(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_json(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_json_in_any_unicode_encoding(tmp_path: Path, encoding: str) -> None:
    text = ("\ufeff" if encoding == "utf-16-be" else "") + '{"ä": ["漢"]}\r\n'
    (tmp_path / "a.json").write_bytes(text.encode(encoding))
    assert read_json(tmp_path / "a.json") == {"ä": ["漢"]}


def test_names_that_are_not_utf8() -> None:
    name = os.fsdecode(b"/x/caf\xe9 \xe6\xbc\xa2\n.png")
    assert printable(name) == "/x/caf\\xe9 漢\n.png"
    assert printable(r"C:\udce9") == r"C:\udce9"
    with pytest.raises(SohesError, match=r"caf\\xe9 漢\n.*not UTF-8; choose another folder"):
        write_text(Path(name), "x")


def test_a_long_name_leaves_room_for_what_is_added() -> None:
    assert shortened("漢" * 84) == "漢" * 33
    assert shortened("caf\udce9") == "caf\\xe9"


def test_a_folder_is_walked_once_whatever_leads_to_it(tmp_path: Path) -> None:
    for name in ("in/a", "in/sub/b", "out/c", "in/.git/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, target in (("sub/loop", "../.."), ("again", "sub"), ("self", "self"), ("gone", "nowhere")):
        (tmp_path / "in" / name).symlink_to(target)
    found = sorted(os.path.relpath(entry.path, tmp_path) for entry in walk_files(tmp_path / "in"))
    assert found == ["in/a", "in/gone", "in/self", "in/sub/b", "in/sub/loop/out/c"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "locked", "x")
    scandir = os.scandir

    def refuse_locked(path: str) -> Any:
        if Path(path).name == "locked":  # permissions alone would not stop a superuser
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_locked)
    with pytest.raises(DataError, match=r"locked: cannot be listed \(Permission denied\)"):
        list(walk_files(tmp_path))
