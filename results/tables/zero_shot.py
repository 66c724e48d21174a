"""Published zero-shot mask AR@1000, with this project's numbers in a block of their own."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from results.runs import Run
from results.schema import DATA, MEASURED, Row, by_key, find
from results.table import Block, Line, Table
from results.words import data_of, separation_notes, source_of, supervision_notes

DATASETS = ("COCO", "LVIS", "ADE20K", "EntitySeg", "SA-1B", "PartImageNet", "PACO", "mean of 7")
CITED_METHODS = ("SAM", "FreeSOLO", "CutLER", "HASSOD", "SOHES", "UnSAM")
METRIC = "mask_ar_1000"
_COLUMN = ("scale", *DATA, "n_images")


def zero_shot(runs: Sequence[Run], published: Sequence[Row]) -> Table:
    """Published mask AR@1000 on seven data sets; the runs' own numbers in a block of their own, with other columns."""
    cited = [group for method in CITED_METHODS for group in _cited_groups(method, published)]
    measured = [row for run in runs for row in run.rows if row.metric == METRIC]
    blocks = [_cited_block(cited)]
    if measured:
        blocks.append(_own_block(measured))
    return Table(
        name="zero_shot",
        title="Zero-shot class-agnostic mask AR@1000, in %",
        rows=tuple(row for group in cited for row in group) + tuple(measured),
        blocks=tuple(blocks),
        verdicts=() if measured else ("Zero-shot AR@1000 was not measured; the table holds cited numbers only",),
    )


def _cited_groups(method: str, published: Sequence[Row]) -> list[list[Row]]:
    """The method's rows per amount of training data, each from the one source that covers most data sets."""
    rows = [row for row in published if row.method == method and row.metric == METRIC and row.dataset in DATASETS]
    best: dict[tuple[str, str], list[Row]] = {}
    for (data, supervision, _), group in by_key(rows, "train_data", "supervision", "source").items():
        images = data, supervision
        if len(group) > len(best.get(images, [])):
            best[images] = group
    # sources describe the same training set in different words; what covers fewer data sets adds nothing
    most = max(len(group) for group in best.values())
    return [group for group in best.values() if len(group) == most]


def _cited_block(groups: Sequence[Sequence[Row]]) -> Block:
    lines = []
    for group in groups:
        on = {row.dataset: row for row in group}
        first = group[0]
        cells = first.backbone, first.train_data, *(on.get(dataset) for dataset in DATASETS)
        lines.append(Line(first, cells, source_of(group)))
    return Block(
        heading="Cited from publications",
        header=("Method", "Backbone", "Training images", *DATASETS, "Source"),
        lines=tuple(lines),
        notes=_cited_supervision_notes(groups),
    )


def _own_block(rows: Sequence[Row]) -> Block:
    """A line for each method, a column for each data set; the mean where a method has all of them."""
    columns = by_key(rows, *_COLUMN)
    several = len(columns) > 1
    lines = []
    for own in by_key(rows, "method", "backbone", "init", "run").values():
        on = by_key(own, *_COLUMN)
        found = [find(on.get(column, ()), METRIC) for column in columns]
        values = [row.value for row in found if row is not None]
        means = [mean(values) if len(values) == len(columns) else None] if several else []
        lines.append(Line(own[0], (own[0].backbone, own[0].init, *found, *means), _run_of(own)))
    named = [_column_title(group[0]) for group in columns.values()]
    return Block(
        heading="Measured by this project · not published numbers",
        header=("Method", "Backbone", "Start weights", *named, *(["mean"] if several else []), "Source"),
        lines=tuple(lines),
        notes=(*separation_notes(rows), *supervision_notes(rows)),
    )


def _column_title(row: Row) -> str:
    return data_of(row) if row.of_images else f"{data_of(row)} ({row.n_images} images)"


def _run_of(rows: Sequence[Row]) -> str:
    """The run alone: a suite has a record for each data set."""
    commits = ", ".join(dict.fromkeys(row.commit for row in rows))
    return f"{MEASURED}: run {rows[0].run} @{commits}"


def _cited_supervision_notes(groups: Sequence[Sequence[Row]]) -> tuple[str, ...]:
    methods: dict[str, list[str]] = {}
    for group in groups:
        words = group[0].supervision
        if group[0].method not in methods.setdefault(words, []):
            methods[words].append(group[0].method)
    return tuple(f"Supervision of {', '.join(names)}: {words}." for words, names in methods.items())
