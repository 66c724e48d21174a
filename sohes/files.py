"""Files as people have them: written under a temporary name and renamed, so a reader never sees half of one; text in
any Unicode encoding; folders with links in them.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sohes.errors import DataError, SohesError

_NOT_UTF8 = re.compile(r"[\ud800-\udfff]")  # how Python keeps such bytes of a file's name
_LONGEST_PART = 100  # bytes; file systems allow 255 for a whole name
_MARKS = {  # the longer ones first: UTF-32 begins as UTF-16 does
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix); rename it to `path` on success, delete it on any exception.

    The temporary may be written as a file or as a folder; a folder replaces the folder that was there.

    Raises:
        SohesError: the disk is full, or the path is not UTF-8, which some writers need; the message names it.
    """
    path = Path(path)
    if printable(path) != str(path):
        raise SohesError(f"{printable(path)}: nothing is written where a name is not UTF-8; choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        if temporary.is_dir() and path.is_symlink():
            path.unlink()  # what it points to belongs to someone else
        elif temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SohesError(
                f"{path.parent}: no space left while writing {path.name}. Free some space and run the same command "
                "again; what was finished is kept."
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Write JSON atomically; NaN is refused, since it is not JSON."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        DataError: the file cannot be read or is not JSON; the message names the file and the line.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # also a number of too many digits
        raise DataError(f"{path}: not valid JSON ({error})") from error


def read_text(path: Path) -> str:
    """Read text: UTF-8, or whatever its byte order mark says; line ends become newlines.

    Raises:
        DataError: the file is missing or cannot be opened.
        UnicodeDecodeError: it is in another encoding.
    """
    try:
        return Path(path).read_text(encoding=text_encoding(path))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def text_encoding(path: Path) -> str:
    """The encoding that a text file's byte order mark stands for; UTF-8, mark or not, for all others."""
    with Path(path).open("rb") as file:
        head = file.read(4)
    return next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), "utf-8-sig")


def printable(name: str | Path) -> str:
    """A file's name as valid Unicode: what is not UTF-8 in it is escaped, as in `caf\\xe9.jpg`."""
    return _NOT_UTF8.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", str(name))


def shortened(name: str) -> str:
    """The beginning of a file's name, short enough that what is made of it can be a file's name."""
    return printable(name).encode()[:_LONGEST_PART].decode(errors="ignore")


def walk_files(folder: str | Path, *, leave_out: Path | None = None) -> Iterator[os.DirEntry[str]]:
    """All that is no folder below a folder, links followed, hidden names left out; in no particular order.

    Every real folder is visited once, under its own name where it has one below `folder`: links may form a loop, or
    lead twice to the same place. A folder `leave_out` below is not visited.

    Raises:
        DataError: a folder cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    if leave_out is not None and leave_out.exists() and not leave_out.samefile(folder):
        seen.add(_identity(leave_out))
    folders, links = [os.fspath(folder)], list[str]()
    while folders or links:
        where = folders.pop() if folders else links.pop(0)
        try:
            if _identity(where) in seen:
                continue
            seen.add(_identity(where))
            with os.scandir(where) as found:
                entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            raise DataError(f"{printable(where)}: cannot be listed ({error.strerror}); make it readable") from error
        for entry in entries:
            if entry.is_symlink():
                if os.path.isdir(entry.path):
                    links.append(entry.path)
                    continue
            elif entry.is_dir():
                folders.append(entry.path)
                continue
            yield entry


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(path: str | Path) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino
