"""What downstream heads gain from a trained backbone, with published anchors of the same recipes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from results.runs import Run
from results.schema import DATA, Row, by_key, find, is_probe
from results.table import Block, Line, Table
from results.words import data_of, method_of, number_of, one_decimal, separation_notes, source_of, title_of
from sohes.records import START, TRAINED

ANCHOR_RECIPES = ("UperNet 160k, crop 512", "Mask R-CNN 1x", "Mask R-CNN 3x+MS")
ANCHOR_METRICS = ("miou_dataset", "box_ap", "mask_ap")


@dataclass(frozen=True)
class Pair:
    """One metric under one head with the start backbone and with the one that a method trained from it."""

    start: Row | None
    trained: Row | None

    @property
    def any(self) -> Row:
        """Either row: what both have in common."""
        return self.rows[-1]

    @property
    def rows(self) -> list[Row]:
        """The rows that were measured, start first."""
        return [row for row in (self.start, self.trained) if row is not None]

    @property
    def trainer(self) -> str:
        """The method that trained the backbone, empty where it was not measured."""
        return self.trained.trained_by if self.trained else ""

    @property
    def gain(self) -> Decimal | None:
        """Trained minus start, in the metric's unit, from the printed digits; None unless both were measured."""
        if self.start is None or self.trained is None:
            return None
        return one_decimal(self.trained.value) - one_decimal(self.start.value)


def transfer_pairs(runs: Sequence[Run]) -> list[Pair]:
    """Start against trained backbone, one pair per run, head, data, metric and method that trained one."""
    return paired([row for run in runs for row in run.rows if not is_probe(row)])


def paired(rows: Sequence[Row]) -> list[Pair]:
    """The rows of both arms, one pair per run, method, protocol, data, metric and method that trained a backbone."""
    rows = [row for row in rows if row.arm in (START, TRAINED)]
    pairs = []
    for (*_, metric), group in by_key(rows, "run", "method", "protocol", *DATA, "metric").items():
        start = find((row for row in group if row.arm == START), metric)
        trained = by_key((row for row in group if row.arm == TRAINED), "trained_by")
        pairs += [Pair(start, find(own, metric)) for own in trained.values()] or [Pair(start, None)]
    return pairs


def transfer(runs: Sequence[Run], published: Sequence[Row]) -> Table:
    """What a downstream head gains from a trained backbone, with published anchors of the same recipes."""
    pairs = transfer_pairs(runs)
    anchors = [row for row in published if row.method in ANCHOR_RECIPES and row.metric in ANCHOR_METRICS]
    measured = dict.fromkeys(row for pair in pairs for row in pair.rows)
    trainers = [name for name in dict.fromkeys(pair.trainer for pair in pairs) if name]
    only = trainers[0] if len(trainers) == 1 else ""
    blocks: dict[str, list[Pair]] = {}
    for pair in pairs:
        blocks.setdefault(pair.trainer or only, []).append(pair)
    return Table(
        name="transfer",
        title=f"Downstream heads: start backbone against {_backbone(' and '.join(trainers))}",
        rows=(*measured, *(gain_row(pair) for pair in pairs if pair.gain is not None), *anchors),
        blocks=(*(_pair_block(own, trainer) for trainer, own in blocks.items()), _anchor_block(anchors)),
        verdicts=tuple(map(_pair_verdict, pairs)) or ("Downstream heads were not measured",),
    )


def _backbone(trainer: str) -> str:
    return f"{trainer or 'trained'} backbone"


def _pair_block(pairs: Sequence[Pair], trainer: str) -> Block:
    return Block(
        heading="Measured by this project · not published numbers",
        header=("Head", "Metric", "Unit", "Start", trainer or "Trained", "Difference", "Images", "Data", "Source"),
        lines=tuple(
            Line(
                pair.any,
                (
                    title_of(pair.any.metric),
                    pair.any.unit,
                    pair.start,
                    pair.trained,
                    pair.gain,
                    pair.any.n_images,
                    data_of(pair.any),
                ),
                source_of(pair.rows),
            )
            for pair in pairs
        ),
        notes=(
            *_weights_notes("Start", (pair.start for pair in pairs)),
            *_weights_notes(trainer or "Trained", (pair.trained for pair in pairs)),
            *separation_notes([pair.any for pair in pairs]),
        ),
    )


def _weights_notes(name: str, rows: Iterable[Row | None]) -> list[str]:
    words = {
        f"{row.backbone}, {row.init}" + (f"; supervision: {row.supervision}" if row.supervision else "")
        for row in rows
        if row is not None
    }
    return [f"{name} backbone: {text}." for text in sorted(words)]


def gain_row(pair: Pair) -> Row:
    """The difference as a row of its own; its source names both records."""
    assert pair.start is not None
    assert pair.trained is not None
    return replace(
        pair.trained,
        metric=f"{pair.trained.metric}_difference",
        value=round(pair.trained.value - pair.start.value, 6),
        sd=None,
        n_seeds=None,
        unit="points",
        arm="",
        init=f"{pair.trained.init} minus {pair.start.init}",
        source=f"{pair.trained.source} minus {pair.start.source}",
    )


def _pair_verdict(pair: Pair) -> str:
    name = f"{title_of(pair.any.metric)} under {method_of(pair.any)}"
    if pair.start is None or pair.trained is None:
        return f"{name}: measured with the {_backbone(pair.trainer) if pair.trained else 'start backbone'} only"
    trail = f"{number_of(pair.start)} → {number_of(pair.trained)}"
    gain, who = pair.gain or Decimal(0), _backbone(pair.trainer)
    if gain == 0:
        return f"{name}: the {who} changes nothing ({trail})"
    return f"{name}: the {who} {'gains' if gain > 0 else 'LOSES'} {abs(gain):.1f} points ({trail})"


def _anchor_block(rows: Sequence[Row]) -> Block:
    groups = by_key(rows, "method", "backbone", *DATA, "source").values()
    return Block(
        heading="Cited from publications: the same recipes at full size",
        header=("Recipe", "Backbone / start weights", "Data", *map(title_of, ANCHOR_METRICS), "Source"),
        lines=tuple(
            Line(
                group[0],
                (group[0].backbone, data_of(group[0]), *(find(group, metric) for metric in ANCHOR_METRICS)),
                source_of(group),
            )
            for group in groups
        ),
    )
