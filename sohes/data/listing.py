"""The images that a source names, as one numbered list: folders, files, lists of paths, a COCO file, tar archives.

Every command and stage finds its images here. Nothing is decoded to make the list, so a million images are listed in
seconds to minutes; of each only the name stays in memory, and of a member of an archive its place there. What looks
like an image is listed even if it cannot be read: opening it says so by name, and repairing it renumbers no other.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sohes.data import images
from sohes.data.archives import PACKED, Span, is_archive_name, members, read_span
from sohes.data.coco import ImageItem, read_coco
from sohes.data.image_root import with_image_root
from sohes.data.images import ImageArray, is_image_content, is_image_name
from sohes.errors import DataError
from sohes.files import printable, read_text, walk_files
from sohes.progress import track

_KINDS_NAMED = 4


@dataclass(frozen=True)
class Listing:
    """Images in a fixed order.

    Attributes:
        names: where each is: a path, for a member of an archive that of the archive and the member's behind it.
        ids: of the images; counted from 1 in their order, unless a COCO file says otherwise.
        spans: for members of archives, offset and length in bytes (N, 2); negative for files. None without archives.
        others: number of files that were passed over because they are no images, by suffix.
        repeated: number of names or links that lead to an image that is listed already.
        problems: what of a COCO file could not be used, in words.
    """

    names: Sequence[str]
    ids: Sequence[int]
    spans: NDArray[np.int64] | None = None
    others: Mapping[str, int] = field(default_factory=dict)
    repeated: int = 0
    problems: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of_items(cls, items: Sequence[ImageItem]) -> Listing:
        """The images of a COCO file."""
        return cls([str(item.path) for item in items], [item.id for item in items])

    @property
    def notes(self) -> list[str]:
        """What was not taken, in words."""
        notes = [*self.problems]
        if self.others:
            notes.append(f"not images: {_kinds(self.others)}")
        if self.repeated:
            notes.append(f"given or linked to again: {self.repeated:,} images, taken once each")
        return notes

    def load(self, place: int) -> ImageArray:
        """The image at `place`, see `load_image`."""
        name = self.names[place]
        if self.spans is None or self.spans[place, 0] < 0:
            return images.load_image(Path(name))
        offset, length = self.spans[place].tolist()
        return images.load_image(Path(name), read_span(name, (offset, length)))

    def sample(self, count: int = 32) -> Iterator[ImageArray]:
        """Up to `count` images that can be read, drawn by name: the same ones in whatever order they are listed."""
        digest = [hashlib.sha256(os.path.basename(name).encode(errors="surrogatepass")).digest() for name in self.names]
        drawn = sorted(zip(digest, self.names, range(len(self)), strict=True))
        left = count
        for _, _, place in drawn:
            if not left:
                return
            try:
                image = self.load(place)
            except DataError:
                continue  # reported by whatever goes through all images
            left -= 1
            yield image

    @property
    def digest(self) -> str:
        """Hash of names and ids: the same as long as every image keeps its place."""
        digest = hashlib.sha256()
        for image_id, name in zip(self.ids, self.names, strict=True):
            digest.update(f"{image_id} {name}\n".encode(errors="surrogatepass"))
        return digest.hexdigest()[:16]


def list_images(*sources: str | Path, leave_out: Path | None = None) -> Listing:
    """The images that `sources` name, in their order, each once.

    Args:
        sources: any number of: a folder (its images and those in its `.tar` archives, all levels, sorted by path,
            links followed, hidden names left out); an image; a `.tar` archive; a `.txt` file with a path on each line,
            relative ones from its folder; a pattern, as `shards/{000..019}.tar` or `photos/*.jpg`. Or one COCO `.json`.
        leave_out: a folder that is not searched where it lies below a source: results are written there.

    Raises:
        DataError: nothing there, no image in it, or it cannot be read.
    """
    paths = [path for source in sources for path in _expanded(str(source))]
    coco = [path for path in paths if path.suffix.lower() == ".json" and not path.is_dir()]
    if coco and len(paths) > 1:
        raise DataError(f"{coco[0]}: a COCO file numbers its images itself; give it alone, not as one of {len(paths)}")
    if coco:
        listed = with_image_root(read_coco(coco[0].absolute()))
        return replace(Listing.of_items(listed.items), problems=listed.problems.lines())
    found = _Found(leave_out)
    for path in paths:
        found.add_source(path)
    return found.listing(printable(paths[0]))


class _Found:
    """Files found so far, in order: images, and archives that are yet to be opened."""

    def __init__(self, leave_out: Path | None) -> None:
        self._leave_out = leave_out
        self._names: dict[str, None] = {}
        self._others: Counter[str] = Counter()
        self._repeated = 0

    def add_source(self, path: Path) -> None:
        """Take one source."""
        name = str(path.absolute())
        if path.is_dir():
            self._add_folder(name)
        elif path.suffix.lower() == ".txt":
            for line in _lines(path):
                self._add(line)
        elif path.name.lower().endswith(PACKED):
            raise DataError(f"{path}: a packed archive is not read; unpack it, or make it a plain .tar")
        elif os.path.lexists(path) or is_archive_name(name) or is_image_name(name):
            self._add(name)  # one that is gone is reported like one that vanishes later
        else:
            raise DataError(f"{printable(path)}: no such folder or file")

    def _add(self, name: str) -> None:
        self._repeated += name in self._names
        self._names[name] = None

    def _add_folder(self, folder: str) -> None:
        found = walk_files(folder, leave_out=self._leave_out)
        entries = sorted(found, key=lambda entry: entry.path.replace("/", "\0"))  # as paths
        linked = any(entry.is_symlink() for entry in entries)
        real = {_identity(entry) for entry in entries if not entry.is_symlink()} if linked else set()
        for entry in entries:
            if not (_is_image(entry) or is_archive_name(entry.name) or entry.name.lower().endswith(PACKED)):
                self._others[os.path.splitext(entry.name)[1].lower()] += 1
            elif entry.is_symlink() and os.path.exists(entry.path) and _identity(entry) in real:
                self._repeated += 1
            else:
                self._add(entry.path)
                if entry.is_symlink() and os.path.exists(entry.path):
                    real.add(_identity(entry))

    def listing(self, source: str) -> Listing:
        """All images, those in the archives in the place of these; `source` is what was searched, in words."""
        archives = [name for name in self._names if is_archive_name(name)]
        inside = {archive: self._members(archive) for archive in track(archives, "listing archives")}
        names = list(self._names)
        spans = None
        if inside:
            places = array("q")
            names = []
            for name in self._names:
                found = inside.pop(name, {name: (-1, -1)})
                names += found
                for span in found.values():
                    places.extend(span)
            spans = np.frombuffer(places, dtype=np.int64).reshape(-1, 2)
        if not names:
            also = f"; what is there: {_kinds(self._others)}" if self._others else ""
            raise DataError(f"{source}: no image found, also not in its subfolders and .tar archives{also}")
        return Listing(names, range(1, len(names) + 1), spans, self._others, self._repeated)

    def _members(self, archive: str) -> dict[str, Span]:
        """Images in an archive; of several of one name the last, as when it is unpacked."""
        found: dict[str, Span] = {}
        for name, span, content in members(Path(archive)):
            suffix = os.path.splitext(name)[1].lower()
            if is_image_name(name) or (not suffix and is_image_content(content)):
                found[f"{archive}/{name}"] = span
            else:
                self._others[suffix] += 1
        return found


def _is_image(entry: os.DirEntry[str]) -> bool:
    if os.path.splitext(entry.name)[1]:
        return is_image_name(entry.name)
    return os.path.isfile(entry.path) and is_image_content(Path(entry.path))


def _identity(entry: os.DirEntry[str]) -> tuple[int, int]:
    stat = entry.stat()
    return stat.st_dev, stat.st_ino


def _kinds(others: Mapping[str, int]) -> str:
    """Numbers of files by suffix, the most frequent first."""
    ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} {printable(suffix) or 'without suffix'}" for suffix, count in ranked[:_KINDS_NAMED]]
    if len(ranked) > _KINDS_NAMED:
        shown.append(f"{sum(count for _, count in ranked[_KINDS_NAMED:]):,} more")
    total = sum(others.values())
    return f"{total:,} other file{'s' if total > 1 else ''} ({', '.join(shown)})"


def _lines(path: Path) -> list[str]:
    """The paths in a list. A line is taken as it stands where that exists: names may begin with a space or `#`."""
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read as a list of paths ({error}); save it as UTF-8") from error
    if "\0" in text:
        raise DataError(f"{path}: cannot be read as a list of paths (it holds zero bytes); save it as UTF-8")
    folder = str(path.parent.absolute())
    names = []
    for line in text.split("\n"):  # splitlines would cut at characters that names may hold
        plain = line.strip()
        if (line != plain or plain.startswith("#")) and not os.path.lexists(os.path.join(folder, line)):
            line = "" if plain.startswith("#") else plain
        if line.strip():
            names.append(str(Path(folder, line)))
    if not names:
        raise DataError(f"{path}: names no image; write one path on each line")
    return names


def _expanded(source: str) -> Iterator[Path]:
    """What a pattern stands for; a name that exists, or that matches nothing, stands for itself."""
    if not source:
        raise DataError("an empty source of images; give a folder, image files, a list, a COCO file or archives")
    path = Path(source).expanduser()
    if os.path.lexists(path):
        yield path
        return
    for pattern in _numbered(str(path)):
        yield from map(Path, sorted(glob(pattern)) or [pattern])


def _numbered(pattern: str) -> Iterator[str]:
    """Ranges of numbers written out, zeros kept.

    >>> list(_numbered("sa_{08..10}.tar"))
    ['sa_08.tar', 'sa_09.tar', 'sa_10.tar']
    """
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        yield pattern
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _numbered(pattern[: match.start()] + str(number).zfill(len(first)) + pattern[match.end() :])
