"""Images inside tar archives, read where they lie: what an archive holds, and one member of it."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

from sohes.errors import DataError

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip", ".7z", ".rar")
_ENDS = re.compile(r"\.tar(?=/)", re.IGNORECASE)

Span = tuple[int, int]  # offset and length in the archive, bytes


def is_archive_name(name: str) -> bool:
    """Whether a file's name says that it is an archive whose members can be read."""
    return name.lower().endswith(".tar")


def members(archive: Path) -> Iterator[tuple[str, Span, IO[bytes]]]:
    """Name, place and open file of each file in an archive, hidden ones left out, in the order in which they lie there.

    Raises:
        DataError: it cannot be read as an uncompressed archive to its end.
    """
    try:
        with tarfile.open(archive, "r:") as file:
            for member in file:
                name = _plain(member.name)
                if member.isfile() and not any(part.startswith(".") and part != ".." for part in name.split("/")):
                    content = file.extractfile(member)
                    assert content is not None  # it is a file
                    yield name, (member.offset_data, member.size), content
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{archive}: not an uncompressed tar archive that can be read ({error})") from error


def read_span(name: str, span: Span) -> bytes:
    """A member's content, by the member's name and its place.

    Raises:
        DataError: the archive is gone or cut off.
    """
    archive, _ = _split(name)
    if not archive:
        raise DataError(f"{name}: cannot be read from its archive, which is gone")
    try:
        with Path(archive).open("rb") as file:
            file.seek(span[0])
            content = file.read(span[1])
    except OSError as error:
        raise DataError(f"{name}: cannot be read from its archive ({error})") from error
    if len(content) < span[1]:
        raise DataError(f"{name}: cannot be read from its archive, which is cut off")
    return content


def read_member(path: Path) -> bytes | None:
    """The content of a member, by the path of its archive and its own behind it; None where there is no such archive.

    Raises:
        DataError: the archive cannot be read.
    """
    archive, member = _split(str(path))
    if not archive:
        return None
    stat = Path(archive).stat()
    span = _spans(archive, stat.st_size, stat.st_mtime_ns).get(_plain(member))
    return None if span is None else read_span(str(path), span)


@lru_cache(maxsize=16)
def _spans(archive: str, size: int, mtime_ns: int) -> dict[str, Span]:
    return {name: span for name, span, _ in members(Path(archive))}


def _split(name: str) -> tuple[str, str]:
    """The archive's and the member's part of a name; empty where no archive is on its way."""
    for end in _ENDS.finditer(name):
        if Path(name[: end.end()]).is_file():
            return name[: end.end()], name[end.end() + 1 :]
    return "", ""


def _plain(name: str) -> str:
    """A member's name as a path has it: `./a//b` is `a/b`, and nothing is absolute."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))
