"""Which plots are drawn, and their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from results.plots.recall import plot_data_sets, plot_depths, plot_phases, plot_recall
from results.plots.transfer import plot_transfer
from results.schema import DATA, MEASURED, is_probe
from results.table import by_data
from sohes.plotting import save_all, style
from sohes.records import PHASES, START, TRAINED

MAX_PLOTS = 20
_NAMED = 5  # of what is left out
Draw = Callable[[pd.DataFrame], tuple[Figure, list[str]]]


@dataclass(frozen=True, eq=False)
class PlotPlan:
    """A plot to be drawn.

    Attributes:
        kind: "phases", "recall", "data_sets", "transfer" or "depths".
        about: the runs or the data that it shows, in words.
        draw: makes the figure of `rows`.
    """

    kind: str
    about: str
    draw: Draw
    rows: pd.DataFrame


def choose(frame: pd.DataFrame) -> tuple[list[PlotPlan], list[str]]:
    """The plots that are drawn of measured numbers, `MAX_PLOTS` at most, and sentences about those that are not.

    The first of each kind come first, then the second of each, and so on.

    Args:
        frame: rows with the columns `schema.COLUMNS`.
    """
    measured = frame[frame["kind"] == MEASURED]
    kinds = [list(kind(measured)) for kind in (_phases, _recall, _data_sets, _transfer, _depths)]
    plans = [plan for plan in chain.from_iterable(zip_longest(*kinds)) if plan is not None]
    drawn, rest = plans[:MAX_PLOTS], plans[MAX_PLOTS:]
    left_out = []
    for kind in dict.fromkeys(plan.kind for plan in rest):
        own = [plan.about for plan in rest if plan.kind == kind]
        more = f" and {len(own) - _NAMED} more" if len(own) > _NAMED else ""
        all_of_kind = sum(plan.kind == kind for plan in plans)
        left_out.append(
            f"{len(own)} of {all_of_kind} plots of {kind.replace('_', ' ')} are not drawn, as {MAX_PLOTS} plots is the "
            f"most: {', '.join(own[:_NAMED])}{more}"
        )
    return drawn, left_out


def write_plots(frame: pd.DataFrame, folder: Path) -> tuple[list[Path], list[str]]:
    """Draw what `choose` chooses.

    Args:
        frame: rows with the columns `schema.COLUMNS`.
        folder: of the files, KIND.png or KIND_NUMBER.png, .pdf and .svg.

    Returns:
        The files, and a sentence for what was left out.
    """
    plans, left_out = choose(frame)
    count = {kind: sum(plan.kind == kind for plan in plans) for kind in {plan.kind for plan in plans}}
    paths: list[Path] = []
    numbers = dict.fromkeys(count, 0)
    for plan in plans:
        numbers[plan.kind] += 1
        name = plan.kind if count[plan.kind] == 1 else f"{plan.kind}_{numbers[plan.kind]}"
        with style():
            figure, missing = plan.draw(plan.rows)
            paths += save_all(figure, folder / f"{name}.png")
        if missing:
            left_out.append(f"not in {name}.png: {', '.join(missing)}")
    return paths, left_out


def _about(rows: pd.DataFrame, *columns: str) -> str:
    first = rows.iloc[0]
    return " ".join(str(first[column]) for column in columns if first[column])


def _phases(frame: pd.DataFrame) -> Iterator[PlotPlan]:
    rows = frame[frame["arm"].isin(PHASES) & frame["metric"].str.startswith("mask_ar_1000")]
    for own in by_data(rows, "group"):
        yield PlotPlan("phases", _about(own, "group", "dataset", "split"), plot_phases, own)


def _recall(frame: pd.DataFrame) -> Iterator[PlotPlan]:
    for own in by_data(frame[frame["metric"].str.match(r"mask_(ar_\d+$|recall_iou)")]):
        if own["metric"].nunique() > 2:  # not of AR@1000 alone
            yield PlotPlan("recall", _about(own, "scale", "dataset", "split"), plot_recall, own)


def _data_sets(frame: pd.DataFrame) -> Iterator[PlotPlan]:
    rows = frame[frame["metric"].str.startswith("mask_ar_1000")]
    for scale, own in rows.groupby("scale", sort=False):
        if len(own[list(DATA)].drop_duplicates()) > 1 or (own["arm"] == "").any():  # else the plot of phases shows it
            yield PlotPlan("data_sets", str(scale), plot_data_sets, own)


def _transfer(frame: pd.DataFrame) -> Iterator[PlotPlan]:
    rows = frame[frame["arm"].isin([START, TRAINED]) & ~is_probe(frame) & (frame["unit"] == "%")]
    trained = rows[rows["arm"] == TRAINED]
    for (group, trainer), own in trained.groupby(["group", "trained_by"], sort=False):
        start = rows[(rows["group"] == group) & (rows["arm"] == START)]
        both = pd.concat([start, own])
        keys = ["run", "method", "metric", "dataset", "split"]
        if len(start.merge(own, on=keys)):
            yield PlotPlan("transfer", f"{group} {trainer}", plot_transfer, both)


def _depths(frame: pd.DataFrame) -> Iterator[PlotPlan]:
    for own in by_data(frame[frame["metric"].str.startswith("masks_depth_")]):
        yield PlotPlan("depths", _about(own, "scale", "dataset", "split"), plot_depths, own)
