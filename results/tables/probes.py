"""What frozen probes find in a trained backbone and in its start, and unsupervised classes; with published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from statistics import mean, stdev

from results.runs import Run, group_repeats
from results.schema import DATA, Row, by_key, find, is_probe
from results.table import Block, Cell, Line, Mean, Table
from results.tables.transfer import Pair, gain_row, paired
from results.words import (
    data_of,
    method_of,
    number_of,
    seed_notes,
    separation_notes,
    source_of,
    supervision_notes,
    title_of,
)

CITED = ("miou_linear_probe", "miou_fcn_probe", "miou_overcluster_500", "miou_retrieval", "miou_hungarian_21")
CLUSTERS = tuple(f"cluster_miou_{rule}" for rule in ("leopart", "hungarian", "iou", "majority"))
_HEADING = "Measured by this project · not published numbers"


def probes(runs: Sequence[Run], published: Sequence[Row]) -> Table:
    """Scores of frozen probes, start against trained backbone; clusters scored as classes; cited numbers."""
    rows = [row for run in runs for row in run.rows if is_probe(row)]
    clusters = [row for run in runs for row in run.rows if row.metric in CLUSTERS]
    cited = [row for row in published if row.metric in CITED and "UNVERIFIED" not in row.source]
    pairs = paired(rows)
    alone = [row for row in rows if not row.arm]
    blocks = [_pair_block(own) for own in _by_trainer(pairs)]
    blocks += _repeats_blocks(runs, pairs)
    blocks += [_alone_block(alone)] if alone else []
    blocks += [_clusters_block(clusters)] if clusters else []
    gains = tuple(gain_row(pair) for pair in pairs if pair.gain is not None)
    return Table(
        name="probes",
        title="Frozen probes: start against trained backbone",
        rows=(*rows, *gains, *clusters, *cited),
        blocks=(*blocks, _cited_block(cited)),
        verdicts=tuple(_verdict(pair) for pair in pairs if pair.any.metric == "miou_dataset")
        or (() if rows else ("Frozen probes were not measured",)),
    )


def _by_trainer(pairs: Sequence[Pair]) -> list[list[Pair]]:
    trainers = [name for name in dict.fromkeys(pair.trainer for pair in pairs) if name]
    only = trainers[0] if len(trainers) == 1 else ""  # a start without a trained one stands with the others
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.trainer or only, []).append(pair)
    return list(groups.values())


def _pair_block(pairs: Sequence[Pair]) -> Block:
    trainer = next((pair.trainer for pair in pairs if pair.trainer), "Trained")
    lines = []
    for pair in pairs:
        row = pair.any
        start = pair.start.init if pair.start else None
        cells: tuple[Cell, ...] = (row.backbone, start, title_of(row.metric))
        cells += (pair.start, pair.trained, pair.gain, row.n_images, data_of(row))
        lines.append(Line(row, (*cells, row.protocol), source_of(pair.rows)))
    found = [row for pair in pairs for row in pair.rows]
    header = ("Probe", "Backbone", "Start weights", "Metric", "Start", trainer, "Difference", "Images", "Data")
    return Block(
        heading=_HEADING,
        header=(*header, "Protocol", "Source"),
        lines=tuple(lines),
        notes=(*separation_notes(found), *supervision_notes(found), *seed_notes(found)),
    )


def _repeats_blocks(runs: Sequence[Run], pairs: Sequence[Pair]) -> list[Block]:
    """Means over runs that differ in their seed alone."""
    blocks = []
    for group in group_repeats(runs):
        names = {run.name: str(run.records[0].seed) for run in group}
        whole = [pair for pair in pairs if pair.any.run in names and pair.gain is not None]
        if len(group) == 1 or not whole:
            continue
        by_probe: dict[tuple[object, ...], list[Pair]] = {}
        for pair in whole:
            by_probe.setdefault(_key(pair), []).append(pair)
        lines = []
        for own in by_probe.values():
            if len(own) < len(group):
                continue
            starts = [pair.start.value for pair in own if pair.start]
            ends = [pair.trained.value for pair in own if pair.trained]
            gains = [end - start for start, end in zip(starts, ends, strict=True)]
            row = own[0].any
            cells: tuple[Cell, ...] = (row.backbone, title_of(row.metric), *map(_mean, (starts, ends, gains)))
            lines.append(Line(row, (*cells, data_of(row), row.protocol), source_of([pair.any for pair in own])))
        header = ("Probe", "Backbone", "Metric", "Start", "Trained", "Difference", "Data", "Protocol", "Source")
        blocks.append(
            Block(
                heading=f"Measured · {len(group)} runs, seeds {', '.join(names.values())}",
                header=header,
                lines=tuple(lines),
                notes=("Mean ± standard deviation over the runs, which differ in their seed alone.",),
            )
        )
    return blocks


def _key(pair: Pair) -> tuple[object, ...]:
    row = pair.any
    return row.method, row.protocol, row.metric, pair.trainer, *(getattr(row, name) for name in DATA)


def _mean(values: Sequence[float]) -> Mean:
    return Mean(mean(values), stdev(values))


def _alone_block(rows: Sequence[Row]) -> Block:
    """Backbones that were probed by themselves."""
    lines = []
    for row in rows:
        cells: tuple[Cell, ...] = (row.backbone, row.init, title_of(row.metric), row, row.n_images, data_of(row))
        lines.append(Line(row, (*cells, row.protocol), source_of([row])))
    return Block(
        heading="Measured by this project · one backbone by itself · not published numbers",
        header=("Probe", "Backbone", "Weights", "Metric", "Value", "Images", "Data", "Protocol", "Source"),
        lines=tuple(lines),
        notes=(*separation_notes(rows), *supervision_notes(rows), *seed_notes(rows)),
    )


def _clusters_block(rows: Sequence[Row]) -> Block:
    """Classes that nobody named: clusters matched to annotated classes afterwards."""
    groups = by_key(rows, "run", "method", "backbone", "init", *DATA).values()
    return Block(
        heading="Measured by this project · clusters as classes, without labels until they are scored",
        header=("Method", "Backbone", "Start weights", *map(title_of, CLUSTERS), "Images", "Data", "Source"),
        lines=tuple(
            Line(
                own[0],
                (
                    *(own[0].backbone, own[0].init),
                    *(find(own, metric) for metric in CLUSTERS),
                    *(own[0].n_images, data_of(own[0])),
                ),
                source_of(own),
            )
            for own in groups
        ),
        notes=(*separation_notes(rows), *supervision_notes(rows), *seed_notes(rows)),
    )


def _cited_block(rows: Sequence[Row]) -> Block:
    groups = by_key(rows, "method", "backbone", "train_data", *DATA, "source").values()
    return Block(
        heading="Cited from publications",
        header=("Method", "Backbone", "Training images", "Data", *map(title_of, CITED), "Source"),
        lines=tuple(
            Line(
                own[0],
                (own[0].backbone, own[0].train_data, data_of(own[0]), *(find(own, metric) for metric in CITED)),
                source_of(own),
            )
            for own in groups
        ),
    )


def _verdict(pair: Pair) -> str:
    name = f"{title_of(pair.any.metric)}, {method_of(pair.any)} on {data_of(pair.any)}"
    if pair.start is None or pair.trained is None:
        return f"{name}: measured with the {'trained' if pair.trained else 'start'} backbone only"
    gain = pair.gain or Decimal(0)
    trail = f"{number_of(pair.start)} → {number_of(pair.trained)}"
    who = f"the {pair.trainer} backbone"
    if gain == 0:
        return f"{name}: {who} changes nothing ({trail})"
    return f"{name}: {who} {'gains' if gain > 0 else 'LOSES'} {abs(gain):.1f} points ({trail})"
