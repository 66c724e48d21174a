"""What phase 1 looks at, as one numbered list: a folder of photographs, a file list, a COCO file, or tar archives.

Nothing is decoded to make the list, so a million images are listed in seconds to minutes; of each only the name stays
in memory, and of a member of an archive its place there.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sohes.data import images
from sohes.data.coco import ImageItem, read_coco
from sohes.data.sources import scan_folder
from sohes.errors import DataError
from sohes.progress import track


@dataclass(frozen=True)
class Listing:
    """Images in a fixed order.

    Attributes:
        names: where each is: a path, for a member of an archive that of the archive and the member's behind it.
        ids: of the images; counted from 1 in their order, unless a COCO file says otherwise.
        spans: for members of archives, offset and length in bytes (N, 2).
    """

    names: Sequence[str]
    ids: Sequence[int]
    spans: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of_items(cls, items: Sequence[ImageItem]) -> Listing:
        """The images of a COCO file."""
        return cls([str(item.path) for item in items], [item.id for item in items])

    def load(self, place: int) -> images.ImageArray:
        """The image at `place`, see `load_image`."""
        name = self.names[place]
        if self.spans is None:
            return images.load_image(Path(name))
        offset, length = self.spans[place].tolist()
        try:
            with open(_archive(name), "rb") as file:
                file.seek(offset)
                content = file.read(length)
        except OSError as error:
            raise DataError(f"{name}: cannot be read from its archive ({error})") from error
        return images.load_image(Path(name), content)

    def sample(self, count: int = 32) -> Iterator[images.ImageArray]:
        """Some images, spread evenly over all, less those that cannot be read."""
        for place in np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int)).tolist():
            try:
                yield self.load(place)
            except DataError:
                continue  # whoever goes through all images reports it

    @property
    def digest(self) -> str:
        """Hash of names and ids: the same as long as every image keeps its place."""
        digest = hashlib.sha256()
        for image_id, name in zip(self.ids, self.names, strict=True):
            digest.update(f"{image_id} {name}\n".encode())
        return digest.hexdigest()[:16]


def list_images(source: str) -> Listing:
    """The images that `source` names.

    Args:
        source: a folder (of images, or of tar archives), a `.txt` file with a path on each line, relative ones from
            its folder; a COCO `.json`; a `.tar` archive, or several as `shards/{000..019}.tar` or `shards/*.tar`.

    Raises:
        DataError: nothing there, nothing in it, or it cannot be read.
    """
    path = Path(source).expanduser()
    if path.suffix == ".txt":
        return _numbered(_lines(path))
    if path.suffix == ".json":
        return Listing.of_items(read_coco(path.absolute()).items)
    archives = _archives(path)
    if archives:
        return _members(archives)
    return _numbered([str(found.absolute()) for found in scan_folder(path)])


def load_named(name: str) -> images.ImageArray:
    """An image by its name in a `Listing`."""
    archive = _archive(name)
    if not archive or not Path(archive).is_file():
        return images.load_image(Path(name))
    try:
        with tarfile.open(archive, "r:") as file:
            member = file.extractfile(name[len(archive) + 1 :])
            content = member.read() if member else b""
    except (OSError, KeyError, tarfile.TarError) as error:
        raise DataError(f"{name}: cannot be read from its archive ({error})") from error
    return images.load_image(Path(name), content)


def _numbered(names: list[str]) -> Listing:
    return Listing(names, range(1, len(names) + 1))


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of paths ({error})") from error
    names = [str(path.parent.absolute() / line.strip()) for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path}: names no image; write one path on each line")
    return names


def _archives(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    found = [Path(name) for pattern in _expanded(str(path)) for name in (sorted(glob(pattern)) or [pattern])]
    return found if all(archive.name.endswith((".tar", ".tar.gz", ".tgz")) for archive in found) else []


def _expanded(pattern: str) -> Iterator[str]:
    """Ranges of numbers written out, zeros kept.

    >>> list(_expanded("sa_{08..10}.tar"))
    ['sa_08.tar', 'sa_09.tar', 'sa_10.tar']
    """
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        yield pattern
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expanded(pattern[: match.start()] + str(number).zfill(len(first)) + pattern[match.end() :])


def _members(archives: Sequence[Path]) -> Listing:
    names: list[str] = []
    spans = array("q")
    for archive in track(archives, "listing archives"):
        try:
            with tarfile.open(archive, "r:") as file:
                for member in file:
                    if member.isfile() and member.name.lower().endswith(images.SUFFIXES):
                        names.append(f"{archive.absolute()}/{member.name}")
                        spans.extend((member.offset_data, member.size))
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{archive}: not an uncompressed tar archive that can be read ({error})") from error
    if not names:
        kinds = ", ".join(images.SUFFIXES)
        raise DataError(f"{archives[0]}: no image in it nor in the {len(archives) - 1} others; known kinds: {kinds}")
    return Listing(names, range(1, len(names) + 1), np.frombuffer(spans, dtype=np.int64).reshape(-1, 2))


def _archive(name: str) -> str:
    """The archive's part of a member's name; "" when it has none."""
    end = name.find(".tar/")
    return name[: end + 4] if end >= 0 else ""
