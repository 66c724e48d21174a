"""Published zero-shot mask AR@1000, with this project's numbers in a block of their own."""

from __future__ import annotations

from collections.abc import Sequence

from results.schema import MEASURED, Row, Run
from results.table import DASH, Block, Table, by_key, find, one_decimal, separation_notes, show, supervision_notes

DATASETS = ("COCO", "LVIS", "ADE20K", "EntitySeg", "SA-1B", "PartImageNet", "PACO", "mean of 7")
CITED_METHODS = ("SAM", "FreeSOLO", "CutLER", "HASSOD", "SOHES", "UnSAM")


def zero_shot(runs: Sequence[Run], published: Sequence[Row]) -> Table:
    """Published mask AR@1000 on seven data sets; the runs' own numbers in a block of their own, with other columns."""
    cited = [group for method in CITED_METHODS for group in _cited_groups(method, published)]
    measured = [row for run in runs for row in run.rows if row.metric == "mask_ar_1000"]
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
    rows = [
        row for row in published if row.method == method and row.metric == "mask_ar_1000" and _dataset(row) in DATASETS
    ]
    best: dict[tuple[str, str], list[Row]] = {}
    for (data, supervision, _), group in by_key(rows, "train_data", "supervision", "source").items():
        images = data, supervision
        if len(group) > len(best.get(images, [])):
            best[images] = group
    # sources describe the same training set in different words; what covers fewer data sets adds nothing
    most = max(len(group) for group in best.values())
    return [group for group in best.values() if len(group) == most]


def _dataset(row: Row) -> str:
    return row.data.partition(" (")[0]


def _cited_block(groups: Sequence[Sequence[Row]]) -> Block:
    lines = []
    for group in groups:
        value = {_dataset(row): row.value for row in group}
        first = group[0]
        cells = (value.get(dataset, DASH) for dataset in DATASETS)
        lines.append((first.method, first.backbone.partition(" (")[0], first.train_data, *cells, first.source))
    header = ("Method", "Backbone", "Training images", *DATASETS, "Source")
    return Block(
        measured=False,
        heading="Cited from publications",
        header=header,
        lines=tuple(lines),
        notes=_cited_supervision_notes(groups),
    )


def _own_block(rows: Sequence[Row]) -> Block:
    """A line for each method, a column for each data set; the mean where a method has all of them."""
    columns = list(by_key(rows, "data", "n_images"))
    lines = []
    for (method, backbone, init, run), own in by_key(rows, "method", "backbone", "init", "run").items():
        found = [find(by_key(own, "data", "n_images").get(column, ()), "mask_ar_1000") for column in columns]
        numbers = [row.number for row in found if row is not None]
        mean = str(one_decimal(sum(numbers) / len(numbers))) if len(numbers) == len(columns) else DASH
        means = [mean] if len(columns) > 1 else []
        commits = ", ".join(dict.fromkeys(row.commit for row in own))
        lines.append((method, backbone, init, *map(show, found), *means, f"{MEASURED}: run {run} @{commits}"))
    named = [f"{data} ({n_images} images)" for data, n_images in columns]
    means = ["mean"] if len(columns) > 1 else []
    return Block(
        measured=True,
        heading="Measured by this project · not published numbers",
        header=("Method", "Backbone", "Start weights", *named, *means, "Source"),
        lines=tuple(lines),
        notes=(*separation_notes(rows), *supervision_notes(rows)),
    )


def _cited_supervision_notes(groups: Sequence[Sequence[Row]]) -> tuple[str, ...]:
    methods: dict[str, list[str]] = {}
    for group in groups:
        words = group[0].supervision
        if group[0].method not in methods.setdefault(words, []):
            methods[words].append(group[0].method)
    return tuple(f"Supervision of {', '.join(names)}: {words}." for words, names in methods.items())
