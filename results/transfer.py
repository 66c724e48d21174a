"""What downstream heads gain from the SOHES backbone, with published anchors of the same recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from results.schema import Row, Run, plain_decimal
from results.table import DASH, Block, Table, by_key, find, one_decimal, separation_notes, show, title_of
from sohes.records import START, TRAINED

ANCHOR_RECIPES = ("UperNet 160k, crop 512", "Mask R-CNN 1x", "Mask R-CNN 3x+MS")
ANCHOR_METRICS = ("miou_dataset", "box_ap", "mask_ap")


@dataclass(frozen=True)
class Pair:
    """One metric under one head with the start backbone and with the one SOHES trained."""

    start: Row | None
    sohes: Row | None

    @property
    def any(self) -> Row:
        """Either row: what both have in common."""
        return self.rows[-1]

    @property
    def rows(self) -> list[Row]:
        """The rows that were measured, start first."""
        return [row for row in (self.start, self.sohes) if row is not None]

    @property
    def gain(self) -> Decimal | None:
        """SOHES minus start, in the metric's unit, from the printed digits; None unless both were measured."""
        if self.start is None or self.sohes is None:
            return None
        return one_decimal(self.sohes.number) - one_decimal(self.start.number)


def transfer_pairs(runs: Sequence[Run]) -> list[Pair]:
    """Start against SOHES backbone, one pair per run, head, data and metric."""
    rows = [row for run in runs for row in run.rows if row.arm in (START, TRAINED)]
    pairs = []
    for (*_, metric), group in by_key(rows, "run", "method", "data", "metric").items():
        arms = by_key(group, "arm")
        pairs.append(Pair(*(find(arms.get((arm,), ()), metric) for arm in (START, TRAINED))))
    return pairs


def transfer(runs: Sequence[Run], published: Sequence[Row]) -> Table:
    """What a downstream head gains from the SOHES backbone, with published anchors of the same recipes."""
    pairs = transfer_pairs(runs)
    anchors = [row for row in published if row.method in ANCHOR_RECIPES and row.metric in ANCHOR_METRICS]
    measured = [row for pair in pairs for row in pair.rows]
    blocks = [_anchor_block(anchors)]
    if pairs:
        blocks.insert(0, _pair_block(pairs))
    return Table(
        name="transfer",
        title="Downstream heads: start backbone against SOHES backbone",
        rows=(*measured, *(_gain_row(pair) for pair in pairs if pair.gain is not None), *anchors),
        blocks=tuple(blocks),
        verdicts=tuple(map(_pair_verdict, pairs)) or ("Downstream heads were not measured",),
    )


def _pair_block(pairs: Sequence[Pair]) -> Block:
    return Block(
        measured=True,
        heading="Measured by this project · not published numbers",
        header=("Head", "Metric", "Unit", "Start", "SOHES", "Difference", "Images", "Data", "Source"),
        lines=tuple(
            (
                pair.any.method,
                title_of(pair.any.metric),
                pair.any.unit,
                show(pair.start),
                show(pair.sohes),
                DASH if pair.gain is None else f"{pair.gain:+.1f}",
                pair.any.n_images,
                pair.any.data,
                " and ".join(dict.fromkeys(row.source for row in pair.rows)),
            )
            for pair in pairs
        ),
        notes=(*_backbone_notes(pairs), *separation_notes([pair.any for pair in pairs])),
    )


def _gain_row(pair: Pair) -> Row:
    """The difference as a row of its own; its source names both records."""
    assert pair.start is not None
    assert pair.sohes is not None
    values = {name: getattr(pair.sohes, name) for name in Row.__dataclass_fields__}
    difference = plain_decimal(round(pair.sohes.number - pair.start.number, 6))
    minuend, subtrahend = pair.sohes.source, pair.start.source.removeprefix("measured: ")
    values |= {
        "metric": f"{pair.sohes.metric}_difference",
        "value": difference,
        "unit": "points",
        "arm": "",
        "init": f"{pair.sohes.init} minus {pair.start.init}",
        "source": f"{minuend} minus {subtrahend}",
    }
    return Row(**values)


def _pair_verdict(pair: Pair) -> str:
    name = f"{title_of(pair.any.metric)} under {pair.any.method}"
    if pair.gain is None:
        return f"{name}: measured with the {'start' if pair.sohes is None else 'SOHES'} backbone only"
    trail = f"{show(pair.start)} → {show(pair.sohes)}"
    if pair.gain == 0:
        return f"{name}: the SOHES backbone changes nothing ({trail})"
    return f"{name}: the SOHES backbone {'gains' if pair.gain > 0 else 'LOSES'} {abs(pair.gain):.1f} points ({trail})"


def _backbone_notes(pairs: Sequence[Pair]) -> tuple[str, ...]:
    starts = {_backbone(row) for pair in pairs if (row := pair.start) is not None}
    trained = {_backbone(row) for pair in pairs if (row := pair.sohes) is not None}
    return tuple(f"Start backbone: {words}." for words in sorted(starts)) + tuple(
        f"SOHES backbone: {words}." for words in sorted(trained)
    )


def _backbone(row: Row) -> str:
    return f"{row.backbone}, {row.init}" + (f"; supervision: {row.supervision}" if row.supervision else "")


def _anchor_block(rows: Sequence[Row]) -> Block:
    groups = by_key(rows, "method", "backbone", "data", "source")
    return Block(
        measured=False,
        heading="Cited from publications: the same recipes at full size",
        header=("Recipe", "Backbone / start weights", "Data", *map(title_of, ANCHOR_METRICS), "Source"),
        lines=tuple(
            (method, backbone, data, *(show(find(group, metric)) for metric in ANCHOR_METRICS), source)
            for (method, backbone, data, source), group in groups.items()
        ),
    )
