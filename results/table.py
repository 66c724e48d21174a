"""A table: blocks of lines, one a method; numbers stay numbers beside their words until rendered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from results.schema import CITED, DATA, MEASURED, each
from results.verdicts import Verdict
from results.words import (
    DASH,
    SEEDS_NOTE,
    data_of,
    method_of,
    number_of,
    source_of,
    supervision_class,
    supervision_notes,
    title_of,
)
from sohes.errors import DataError

BEST, SECOND = "best", "second"
SEEDS = "Seeds"
DATA_KEYS = ("scale", *DATA, "n_images")  # what numbers in one block have in common
_SOURCES = 4  # of a line that are named
_CSS = {BEST: "font-weight: bold", SECOND: "text-decoration: underline", "": ""}
_LATEX = {BEST: "textbf: --rwrap", SECOND: "underline: --rwrap", "": ""}
_SAME = (  # of numbers that are averaged
    *("kind", "scale", "group", "method", "arm", "backbone", "init", "trained_by", "supervision"),
    *("dataset", "split", "n_images", "of_images", "protocol", "metric", "unit"),
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Lines under one header.

    Attributes:
        lines: what is read, as text: columns of words, the method first, then columns of numbers, then the seeds.
        values: the numbers, NaN where nothing was measured; the index of `lines`, and its columns of numbers.
        facts: of each line `cited` (bool), `supervision` (a class of `supervision_class`), `bibkey` and `source`.
        ranked: columns of numbers whose best and second best are marked.
        lower: those of them where less is better.
        notes: sentences below the lines.

    Raises:
        DataError: on construction, when cited lines do not all stand before measured ones.
    """

    heading: str
    lines: pd.DataFrame
    values: pd.DataFrame
    facts: pd.DataFrame
    ranked: tuple[str, ...] = ()
    lower: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.facts["cited"].is_monotonic_decreasing:
            raise DataError(f"table block '{self.heading}': a cited line below a measured one")

    @property
    def words(self) -> list[str]:
        """The columns of words."""
        return [str(name) for name in self.lines if name not in self.values and name != SEEDS]

    @property
    def rule(self) -> int:
        """How many lines stand above the rule between cited and measured ones; 0 where all are of one kind."""
        cited = int(self.facts["cited"].sum())
        return cited if cited < len(self.lines) else 0

    @cached_property
    def marks(self) -> pd.DataFrame:
        """BEST and SECOND of the printed numbers within each class of supervision, "" elsewhere; shaped as `lines`."""
        marks = pd.DataFrame("", index=self.lines.index, columns=self.lines.columns, dtype=object)
        classes = self.facts["supervision"].tolist()
        for name in self.ranked:
            cells = zip(classes, self.lines[name], self.values[name].notna(), strict=True)
            printed = [(own, float(text.split(" ")[0])) if there else None for own, text, there in cells]
            places: dict[tuple[str, float], str] = {}
            for own in set(classes):
                distinct = {cell for cell in printed if cell is not None and cell[0] == own}
                ordered = sorted(distinct, key=itemgetter(1), reverse=name not in self.lower)
                places |= dict(zip(ordered, (BEST, SECOND), strict=False)) if len(ordered) > 1 else {}
            marks[name] = ["" if cell is None else places.get(cell, "") for cell in printed]
        return marks


def styled(lines: pd.DataFrame, marks: pd.DataFrame, *, latex: bool = False) -> Styler:
    """Lines with their marks as CSS, or as commands of LaTeX."""
    css = marks.map((_LATEX if latex else _CSS).__getitem__)
    return Styler(lines, cell_ids=False).apply(lambda _: css, axis=None).hide(axis="index")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table in all its forms: `frame` for the CSV (one row one number), `blocks` for reading."""

    name: str
    title: str
    frame: pd.DataFrame
    blocks: tuple[Block, ...]
    verdicts: tuple[Verdict, ...] = ()


def averaged(measured: pd.DataFrame, *apart: str) -> pd.DataFrame:
    """One row for each number of runs that differ in their seed alone: `value` is the mean, `sd` that of a sample.

    A number of one run alone keeps its own deviation. Rows that differ in the columns `apart` are not averaged.
    """
    if measured.empty:
        return measured
    names = [*_SAME, *apart]
    found = measured.groupby(names, sort=False, dropna=False)["value"].agg(["mean", "std", "count"])
    rows = measured.drop_duplicates(names).copy()
    several = found["count"].to_numpy() > 1
    rows.loc[several, "value"] = found["mean"].to_numpy()[several]
    rows.loc[several, "sd"] = found["std"].to_numpy()[several]
    rows.loc[several, "n_seeds"] = found["count"].to_numpy()[several]
    rows.loc[several, "seed"] = pd.NA
    rows.loc[several, "run"] = rows.loc[several, "group"]
    more = pd.Series(found["count"].to_numpy() - 1, index=rows.index)[several].astype(str)
    rows.loc[several, "source"] = rows.loc[several, "source"] + " and " + more + " more"
    return rows


def named(rows: pd.DataFrame) -> pd.Series[str]:
    """The method of each row in words, with the group of its runs where several groups have one of that name."""
    names = pd.Series([method_of(row) for row in each(rows)], index=rows.index, dtype=object)
    same = [rows[name] for name in ("method", "backbone", "init", "arm", "trained_by", "scale")]
    several = rows["group"].groupby(same).transform("nunique") > 1
    return names.where(~several, names + " · " + rows["group"])


def data_title(row: Any) -> str:
    """What a block is measured on: "demo · scenes (val), not comparable, 24 images"."""
    return data_of(row) if not pd.isna(row.of_images) else f"{data_of(row)}, {row.n_images} images"


def by_data(rows: pd.DataFrame, *more: str) -> Iterator[pd.DataFrame]:
    """The rows of each scale, data set and number of images, and of the columns `more`, in order of appearance."""
    for _, own in rows.groupby([*more, *DATA_KEYS], sort=False, dropna=False):
        yield own


def method_blocks(rows: pd.DataFrame, metrics: Sequence[str], *notes: str, **marks: Sequence[str]) -> list[Block]:
    """Blocks of averaged measured rows, one for each data set: one line a method, a column for each metric.

    Args:
        marks: `ranked` and `lower` of `make_block`, as metrics.
    """
    titles = {metric: title_of(metric) for metric in metrics}
    return [
        make_block(
            f"Measured on {data_title(own.iloc[0])}",
            own.assign(line=named(own), column=own["metric"].map(titles), name=named(own)),
            words={"Method": "name", "Backbone": "backbone", "Start weights": "init"},
            columns=[titles[metric] for metric in metrics if (own["metric"] == metric).any()],
            notes=(*notes, *supervision_notes(own)),
            **{name: [titles[metric] for metric in given] for name, given in marks.items()},
        )
        for own in by_data(rows)
    ]


def cited_blocks(
    rows: pd.DataFrame,
    metrics: Sequence[str],
    *,
    words: Mapping[str, str],
    heading: str = "Cited from publications",
    ranked: Sequence[str] | None = None,
    lower: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> list[Block]:
    """A block of published rows: a line for what their words, data and source tell apart, a column for each metric.

    Of no rows there is none.

    Args:
        words: as of `make_block`; "data" is what `data_of` says.
        ranked, lower: as of `make_block`, as metrics.
    """
    if not len(rows):
        return []
    keys = [*(field for field in words.values() if field != "data"), *DATA, "source"]
    return [
        make_block(
            heading,
            rows.assign(
                line=rows.groupby(keys, dropna=False, sort=False).ngroup(),
                column=rows["metric"].map(title_of),
                data=[data_of(row) for row in each(rows)],
            ),
            words=words,
            columns=list(map(title_of, metrics)),
            ranked=None if ranked is None else list(map(title_of, ranked)),
            lower=list(map(title_of, lower)),
            notes=notes,
        )
    ]


def make_block(
    heading: str,
    rows: pd.DataFrame,
    *,
    words: Mapping[str, str],
    columns: Sequence[str],
    ranked: Sequence[str] | None = None,
    lower: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Block:
    """A block of averaged rows; cited lines come first, otherwise lines are in order of appearance.

    A column of words that says the same of every line becomes a note.

    Args:
        rows: with two columns more than `schema.COLUMNS`: `line`, what the numbers of a line share, and `column`, the
            title under which a number stands.
        words: titles of the columns of words, and the columns of `rows` that hold them.
        columns: titles of the columns of numbers, in order.
        ranked: those of them whose best are marked; None for all.
        lower: those where less is better.
        notes: sentences.
    """
    rows = rows.sort_values("kind", key=lambda kind: kind == MEASURED, kind="stable")
    rows = rows.drop_duplicates(["line", "column"])
    first = rows.drop_duplicates("line").set_index("line")
    values = rows.pivot(index="line", columns="column", values="value").reindex(
        index=first.index, columns=list(columns)
    )
    printed = rows.assign(words=[number_of(row) for row in each(rows)])
    printed = printed.pivot(index="line", columns="column", values="words").reindex(
        index=first.index, columns=list(columns)
    )
    lines = pd.DataFrame({title: first[name].replace("", DASH) for title, name in words.items()})
    said = [title for title in list(words)[1:] if lines[title].nunique() == 1]
    notes = [*notes, *(f"{title}: {lines[title].iloc[0]}." for title in said if lines[title].iloc[0] != DASH)]
    lines = pd.concat([lines.drop(columns=said), printed.astype(object).fillna(DASH)], axis=1)
    if (first["kind"] == MEASURED).any():
        seeds = (
            rows.assign(n=rows["n_seeds"].fillna(1).astype(int)).groupby("line", sort=False)["n"].agg(["min", "max"])
        )
        texts = [str(low) if low == high else f"{low}{DASH}{high}" for low, high in seeds.itertuples(index=False)]
        lines[SEEDS] = pd.Series(texts, index=seeds.index).where(first["kind"] == MEASURED, DASH)
        notes = [*notes, *([SEEDS_NOTE] if (seeds["max"] > 1).any() else [])]
    sources: dict[Any, dict[str, None]] = {}  # of each line, in the order of `first`
    for line, row in zip(rows["line"].tolist(), each(rows), strict=True):
        sources.setdefault(line, {})[source_of(row)] = None
    facts = pd.DataFrame(
        {
            "cited": first["kind"] == CITED,
            "supervision": first["supervision"].map(supervision_class),
            "bibkey": first["bibkey"],
            "source": [_joined(found) for found in sources.values()],
        }
    )
    for frame in (lines, values, facts):
        frame.index, frame.columns.name = pd.RangeIndex(len(first)), None
    return Block(
        heading=heading,
        lines=lines,
        values=values,
        facts=facts,
        ranked=tuple(name for name in columns if ranked is None or name in ranked),
        lower=frozenset(lower),
        notes=tuple(notes),
    )


def _joined(sources: Iterable[str]) -> str:
    distinct = [source.removeprefix(f"{MEASURED}: ") for source in sources]
    words = "; ".join(distinct[:_SOURCES]) + (
        f" and {len(distinct) - _SOURCES} more records" if len(distinct) > _SOURCES else ""
    )
    return f"{MEASURED}: {words}" if next(iter(sources)).startswith(MEASURED) else words
