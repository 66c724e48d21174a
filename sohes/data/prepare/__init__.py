"""Official data sets as class-agnostic COCO files or as label maps, kept in one folder and called by name."""

from __future__ import annotations

import os
from pathlib import Path

from sohes.data.prepare.catalogue import DATASETS
from sohes.data.prepare.semantic_sets import SEMANTIC_SETS
from sohes.errors import DataError, unknown_name

__all__ = ["DATASETS", "SEMANTIC_SETS", "data_folder", "prepared", "resolve_ground_truth", "resolve_labelled"]


def data_folder() -> Path:
    """Where prepared data sets are kept: $SOHES_DATA, else ~/.cache/sohes/data."""
    return Path(os.environ.get("SOHES_DATA") or Path.home() / ".cache" / "sohes" / "data")


def prepared(name: str) -> Path:
    """What `sohes data prepare NAME` writes unless told otherwise: a COCO file, or a folder of label maps.

    It need not exist.
    """
    return data_folder() / (name if name in SEMANTIC_SETS else f"{name}.json")


def resolve_ground_truth(value: str) -> Path:
    """The COCO file meant by `value`: an existing path, or the name of a prepared data set.

    Raises:
        DataError: neither; the message has the nearest name, or the command that prepares a known data set.
    """
    if Path(value).is_file():
        return Path(value)
    if value in DATASETS:
        path = prepared(value)
        if not path.is_file():
            raise DataError(f"{path}: not prepared yet; run: sohes data prepare {value} --root DIR")
        return path
    if value in SEMANTIC_SETS:
        raise DataError(f"{value}: a data set of label maps, without masks; it is for sohes probe")
    if Path(value).name != value or Path(value).suffix:
        raise DataError(f"{value}: no such file; give a COCO file or the name of a data set (sohes data list)")
    raise DataError(unknown_name("data set", value, DATASETS))


def resolve_labelled(source: str | Path) -> Path:
    """The labelled data meant by `source`: an existing file or folder, or the name of a prepared set.

    Raises:
        DataError: neither; the message has the command that prepares a known set.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    own = data_folder() / str(source)
    if Path(source).name == str(source) and own.is_dir():
        return own
    if str(source) in SEMANTIC_SETS:
        raise DataError(f"{own}: not prepared yet; run: sohes data prepare {source} --root DIR")
    raise DataError(
        f"{source}: no such file, folder or prepared set. Give a COCO file with categories, a folder with images/ and "
        "masks/, or a set that `sohes data prepare` made"
    )
