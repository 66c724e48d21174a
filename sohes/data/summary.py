"""What a label store holds, in numbers and as a picture: masks per image, depths, sizes, where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sohes.data.draw import LEVELS
from sohes.data.label_store import LabelStore
from sohes.masks import AREA_CLASSES
from sohes.plotting import MAIN, MUTED, save, style

_SIZE_NAMES = {"s": "small, < 32²", "m": "medium, to 96²", "l": "large"}


@dataclass(frozen=True)
class Summary:
    """Counts over a label store.

    Attributes:
        images: with a row in the store, those without any mask among them.
        skipped: images that could not be used.
        masks: in all.
        images_by_masks: number of masks to number of images with so many.
        masks_by_depth: 0 for wholes, 1 for parts, ...
        masks_by_size: COCO's classes of area, px² of the image: "s", "m", "l".
        masks_by_source: "global" or "local" clustering; empty where the store does not say.
    """

    images: int
    skipped: int
    masks: int
    images_by_masks: dict[int, int]
    masks_by_depth: dict[int, int]
    masks_by_size: dict[str, int]
    masks_by_source: dict[str, int]

    @property
    def masks_per_image(self) -> float:
        """Mean number of masks; 0 without images."""
        return self.masks / max(self.images, 1)

    @property
    def without_masks(self) -> int:
        """Images that have none."""
        return self.images_by_masks.get(0, 0)

    def as_json(self) -> dict[str, object]:
        """Everything, with the mean, for a JSON file."""
        return asdict(self) | {"masks_per_image": round(self.masks_per_image, 3)}

    def lines(self) -> list[str]:
        """For the terminal."""
        counts = np.repeat(list(self.images_by_masks), list(self.images_by_masks.values()))
        spread = f", median {np.median(counts):.0f}, at most {counts.max()}" if self.images else ""
        lines = [f"{self.images:,} images, {self.skipped:,} skipped; {self.masks:,} masks"]
        lines.append(f"masks per image: mean {self.masks_per_image:.1f}{spread}")
        if self.without_masks:
            lines.append(f"without any mask: {self.without_masks:,} images")
        depths: dict[str, int] = {}
        for depth, number in self.masks_by_depth.items():
            name = LEVELS[min(depth, len(LEVELS) - 1)]
            depths[name] = depths.get(name, 0) + number
        for title, table in (
            ("depth", depths),
            ("size", {_SIZE_NAMES[name]: count for name, count in self.masks_by_size.items()}),
            ("source", self.masks_by_source),
        ):
            lines.append(f"{title}: " + "; ".join(self._share(name, count) for name, count in table.items()))
        return [line for line in lines if not line.endswith(": ")]

    def _share(self, name: str, count: int) -> str:
        return f"{name} {count:,} ({100 * count / max(self.masks, 1):.0f} %)"


def summarise(store: LabelStore) -> Summary:
    """Count what is in a store, shard by shard."""
    tables: dict[str, dict] = {"masks": {}, "depth": {}, "size": {}, "source": {}}
    edges = np.array([high for _, high in AREA_CLASSES.values()])

    def count(name: str, values: np.ndarray) -> None:
        for value, number in zip(*np.unique(values, return_counts=True), strict=True):
            tables[name][value.item()] = tables[name].get(value.item(), 0) + int(number)

    for masks in store.columns("area", "depth", "source"):
        flat = masks.flatten()
        count("masks", pc.list_value_length(masks).to_numpy(zero_copy_only=False))
        count("depth", flat.field("depth").to_numpy(zero_copy_only=False))
        count("size", np.searchsorted(edges, flat.field("area").to_numpy(zero_copy_only=False), side="right"))
        count("source", np.asarray(flat.field("source").drop_null().to_pylist(), dtype=str))
    return Summary(
        images=len(store),
        skipped=len(store.skipped),
        masks=sum(tables["depth"].values()),
        images_by_masks=dict(sorted(tables["masks"].items())),
        masks_by_depth=dict(sorted(tables["depth"].items())),
        masks_by_size={name: tables["size"].get(index, 0) for index, name in enumerate(AREA_CLASSES)},
        masks_by_source=dict(sorted(tables["source"].items())),
    )


def plot_summary(summary: Summary, title: str, path: Path) -> Path:
    """Three panels: images by number of masks, masks by depth, masks by size."""
    with style():
        figure = Figure(figsize=(11, 3.6), dpi=160, layout="constrained")
        by_count, by_depth, by_size = figure.subplots(1, 3)
        by_count.hist(
            list(summary.images_by_masks), weights=list(summary.images_by_masks.values()), bins=40, color=MAIN
        )
        by_count.set(xlabel="masks", ylabel="images", title="Masks per image")
        _bars(by_depth, summary.masks_by_depth, "Depth in the tree")
        by_depth.set(xlabel="0: whole, 1: part, 2: subpart, …", ylabel="masks")
        sizes = {_SIZE_NAMES[name].replace(", ", "\n"): count for name, count in summary.masks_by_size.items()}
        _bars(by_size, sizes, "Area in px²")
        for axis in (by_count.yaxis, by_depth.xaxis, by_depth.yaxis, by_size.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        for axes in (by_count, by_depth, by_size):
            axes.set_ylim(bottom=0)
            sns.despine(ax=axes, left=True)
        heading = f"{title} · {summary.images:,} images, {summary.masks:,} masks"
        figure.suptitle(heading, x=0.012, ha="left", size=11, color=MUTED)
        return save(figure, path)


def _bars(axes: Axes, counts: Mapping[Any, int], title: str) -> None:
    axes.bar(list(counts), list(counts.values()), color=MAIN)
    axes.grid(visible=False, axis="x")
    axes.set_title(title)
