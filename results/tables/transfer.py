"""What a trained backbone is worth under downstream heads and frozen probes, each against the backbone it began as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from results.runs import Measurements
from results.schema import DATA, POINTS, each, is_probe
from results.table import Block, Table, averaged, by_data, cited_blocks, data_title, make_block
from results.verdicts import MISSING, Verdict, compared, paired_difference
from results.words import data_of, marker, one_decimal, supervision_class, supervision_notes, title_of
from sohes.records import START, TRAINED

ANCHOR_RECIPES = ("UperNet 160k, crop 512", "Mask R-CNN 1x", "Mask R-CNN 3x+MS")
ANCHOR_METRICS = ("miou_dataset", "box_ap", "mask_ap")
_ANCHOR_WORDS = {"Recipe": "method", "Backbone / start weights": "backbone", "Data": "data"}
_ANCHORS = "Cited from publications: the same recipes at full size"
_TEST = ["method", "protocol", *DATA, "n_images", "metric"]  # what the numbers of two backbones have in common
_VERDICTS = {1: " gains", 0: " is not shown to change anything", -1: " LOSES"}
_RANK = {START: 0, TRAINED: 1, "": 2}


def transfer(found: Measurements, published: pd.DataFrame) -> Table:
    """What a downstream head gains from a trained backbone, with published anchors of the same recipes."""
    frame = found.frame[found.frame["arm"].isin((START, TRAINED)) & ~is_probe(found.frame)]
    anchors = published[published["method"].isin(ANCHOR_RECIPES) & published["metric"].isin(ANCHOR_METRICS)]
    rows, gains = averaged(frame), averaged(differences(frame))
    blocks = [
        backbones_block(
            own, gains, f"{method}, measured on {data_title(own.iloc[0])}", lambda row: title_of(row.metric)
        )
        for data in by_data(rows)
        for method, own in data.groupby("method", sort=False)
    ]
    return Table(
        name="transfer",
        title="Downstream heads: trained backbones against their start",
        frame=pd.concat([rows, gains, anchors]),
        blocks=(
            *blocks,
            *cited_blocks(anchors, ANCHOR_METRICS, words=_ANCHOR_WORDS, heading=_ANCHORS, ranked=()),
        ),
        verdicts=gain_verdicts(frame) or (Verdict(MISSING, "Downstream heads were not measured"),),
    )


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """Trained minus start backbone of each run, head or probe, data and metric, as rows in points."""
    keys = ["run", *_TEST]
    starts = frame.loc[frame["arm"] == START, [*keys, "value", "source"]].drop_duplicates(keys)
    pairs = frame[frame["arm"] == TRAINED].merge(starts, on=keys, suffixes=("", "_start"))
    return pairs.assign(
        value=pairs["value"] - pairs["value_start"],
        sd=float("nan"),
        n_seeds=pd.array([pd.NA] * len(pairs), dtype="Int64"),
        unit=pairs["unit"].where(pairs["unit"] != "%", POINTS),
        metric=pairs["metric"] + "_difference",
        source=pairs["source"] + " minus " + pairs["source_start"],
    )[list(frame.columns)]


def backbones_block(rows: pd.DataFrame, gains: pd.DataFrame, heading: str, title: Callable[..., str]) -> Block:
    """A line for each backbone, start first; beside each number how much it is above the start's.

    Args:
        rows: averaged, on one data set.
        gains: averaged differences; those of other tests are left out.
        title: of the column of a row.
    """
    tests = rows.drop_duplicates(_TEST)
    titles = {test: title(row) for test, row in zip(tests[_TEST].itertuples(index=False), each(tests), strict=True)}
    gains = gains.assign(metric=gains["metric"].str.removesuffix("_difference"))
    both = pd.concat([rows.assign(prefix=""), gains.assign(prefix="Δ ")])
    both = both[both["scale"].isin(rows["scale"])]
    columns = [titles.get(test, "") for test in both[_TEST].itertuples(index=False)]
    both = both.assign(column=columns)[[column != "" for column in columns]]
    both["column"] = both["prefix"] + both["column"]
    both = both.sort_values("arm", key=lambda arm: arm.map(_RANK), kind="stable")
    several = both["group"].nunique() > 1
    both["name"] = [
        f"{'start' if row.arm == START else row.trained_by if row.arm == TRAINED else row.init} {marker(row.scale)}"
        + (f" · {row.group}" if several else "")
        for row in each(both)
    ]
    both["line"] = both["name"] + "\0" + both["backbone"] + "\0" + both["init"] + "\0" + both["arm"]
    both["class"] = both["supervision"].map(supervision_class)
    there = set(both["column"])
    plain = list(dict.fromkeys(titles.values()))
    return make_block(
        heading,
        both,
        words={"Trained by": "name", "Backbone": "backbone", "Weights": "init", "Supervision": "class"},
        columns=[name for plain_name in plain for name in (plain_name, f"Δ {plain_name}") if name in there],
        ranked=plain,
        notes=("Δ: trained minus start backbone of the same run.", *supervision_notes(rows)),
    )


def gain_verdicts(frame: pd.DataFrame) -> tuple[Verdict, ...]:
    """What each trained backbone gains, for each group of runs, head or probe, data and metric."""
    verdicts = []
    rows = frame.assign(side=frame["trained_by"].where(frame["arm"] == TRAINED, ""))
    for own in compared(rows, ("scale", "group", *_TEST), "side"):
        trainers = dict.fromkeys(side for run in own.runs.values() for side in run if side)
        for trainer in trainers:
            if gains := own.differences(trainer, ""):
                gain = paired_difference(gains)
                does = _VERDICTS[gain.sign] if gain.seeds > 1 else ""
                trail = " → ".join(str(one_decimal(own.mean(side))) for side in ("", trainer))
                sentence = f"{_test(own.row)}: the {trainer} backbone{does}, {trail} ({gain.words})"
                verdicts.append(Verdict(gain.kind, sentence))
            else:
                verdicts.append(Verdict(MISSING, f"{_test(own.row)}: measured with the {trainer} backbone only"))
        if not trainers:
            verdicts.append(Verdict(MISSING, f"{_test(own.row)}: measured with the start backbone only"))
    return tuple(verdicts)


def _test(row: Any) -> str:
    return f"{title_of(row.metric)} under {row.method} on {data_of(row)}, {row.group}"
