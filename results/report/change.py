"""From the start to the result: what a run's last step changed, as a few pairs of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from results.words import title_of
from sohes.records import PHASES, START, TRAINED, describe_data

_PAIRS = ((PHASES[0], PHASES[-1]), (START, TRAINED))
_METRICS = ("mask_ar_1000", "miou_dataset", "mask_ap", "box_ap", "relation_f1")  # one number a task
_SHOWN = 6


@dataclass(frozen=True)
class Change:
    """One number before and after.

    Attributes:
        title: the metric, and under which head.
        data: what it was measured on, and the group of runs where there are several.
        names: of what was before and after.
        before, after: means over the group's runs, in the unit of the metric.
        runs: how many have both.
    """

    title: str
    data: str
    names: tuple[str, str]
    before: float
    after: float
    runs: int

    @property
    def difference(self) -> float:
        """Of the two with all digits, as in the verdicts; those printed may differ by 0.1 more or less."""
        return self.after - self.before

    @property
    def widths(self) -> tuple[float, float]:
        """Of their bars, in % of the longer."""
        longest = max(self.before, self.after) or 1.0
        return 100 * self.before / longest, 100 * self.after / longest


def changes(frame: pd.DataFrame) -> list[Change]:
    """At most six, of the groups of runs of which most have both ends; a group's runs differ in their seed alone.

    Args:
        frame: one row a number, columns as `schema.COLUMNS`.
    """
    several = frame["group"].nunique() > 1
    found = [change for pair in _PAIRS for change in _changes(frame, pair, several)]
    return sorted(found, key=lambda change: -change.runs)[:_SHOWN]


def _changes(frame: pd.DataFrame, pair: tuple[str, str], several: bool) -> Iterator[Change]:
    rows = frame[frame["arm"].isin(pair) & frame["metric"].isin(_METRICS)]
    heads = [] if pair[0] == PHASES[0] else ["method"]
    facts = ["metric", *heads, "dataset", "split", "n_images", "group"]
    ends = rows.pivot_table(index=[*facts, "run"], columns="arm", values="value", aggfunc="mean")
    if not set(pair) <= set(ends.columns):
        return
    means = ends.dropna(subset=list(pair)).groupby(level=facts)[list(pair)].agg(["mean", "size"])
    found = zip(means.index, means[pair[0], "mean"], means[pair[1], "mean"], means[pair[0], "size"], strict=True)
    for key, before, after, runs in sorted(
        found, key=lambda row: (_METRICS.index(row[0][0]), [str(fact) for fact in row[0][1:]])
    ):
        metric, *head, dataset, split, n_images, group = key
        yield Change(
            title=title_of(metric) + "".join(f", {name}" for name in head),
            data=f"{describe_data(dataset, split, None, None)}, {int(n_images):,} images"
            + (f", {group}" if several else ""),
            names=("labels", PHASES[-1]) if not head else ("start backbone", "trained backbone"),
            before=float(before),
            after=float(after),
            runs=int(runs),
        )
