"""What settings change: groups of runs of one recipe and scale, the settings in which they differ as columns."""

from __future__ import annotations

from typing import Any

import pandas as pd

from results.runs import Measurements, Run
from results.table import DATA_KEYS, Block, Table, averaged, by_data, data_title, make_block
from results.verdicts import Verdict, compared, paired_difference
from results.words import marker, one_decimal, title_of

METRICS = ("mask_ar_1000", "miou_dataset", "box_ap", "mask_ap")
_SETTINGS = 6  # columns of settings; further ones share one
_WORDS = {1: "is above", 0: "is not shown to differ from", -1: "is BELOW"}
_OTHERS = "Other settings"


def ablation(found: Measurements, published: pd.DataFrame) -> Table:
    """Main metrics of groups of runs that share recipe and scale, with the settings that differ."""
    frame = found.frame[found.frame["metric"].isin(METRICS)]
    changed = changed_settings(found.runs)
    frame = frame[frame["group"].isin(changed)]
    frame = frame.assign(
        column=frame["metric"].map(title_of) + ", " + frame["arm"].where(frame["arm"] != "", frame["method"])
    )
    rows = averaged(frame)
    return Table(
        name="ablation",
        title="Settings: runs of one recipe that differ in more than their seed",
        frame=rows,
        blocks=tuple(
            _block(own, changed)
            for _, kind in rows.groupby("recipe", sort=False)
            for own in by_data(kind)
            if own["group"].nunique() > 1
        ),
        verdicts=tuple(_verdicts(frame)),
    )


def changed_settings(runs: tuple[Run, ...]) -> dict[str, dict[str, str]]:
    """For each group of runs, the settings in which it differs from another of its recipe and scale, as text.

    Groups without another beside them are left out.
    """
    kinds: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for run in runs:
        first = run.records[0]
        kinds.setdefault((first.recipe, first.scale), {}).setdefault(run.group, _settings(run))
    changed: dict[str, dict[str, str]] = {}
    for groups in kinds.values():
        if len(groups) > 1:
            values: dict[str, set[str]] = {}
            for own in groups.values():
                for key, value in own.items():
                    values.setdefault(key, set()).add(value)
            keys = [key for key, found in values.items() if len(found) > 1]
            changed |= {group: {key: own.get(key, "") for key in keys} for group, own in groups.items()}
    return changed


def _settings(run: Run) -> dict[str, str]:
    return {
        f"{record.stage}.{key}": str(value)
        for record in run.records
        for key, value in record.config.items()
        if key != "seed"
    }


def _block(rows: pd.DataFrame, changed: dict[str, dict[str, str]]) -> Block:
    settings = pd.DataFrame([changed[group] for group in rows["group"]], index=rows.index).fillna("")
    settings = settings.loc[:, settings.nunique() > 1]
    others = settings.columns[_SETTINGS:]
    words = {name: f"setting {name}" for name in settings.columns[:_SETTINGS]}
    rows = rows.assign(**{f"setting {name}": settings[name] for name in words})
    if len(others):
        words[_OTHERS] = _OTHERS
        rows[_OTHERS] = [
            ", ".join(f"{key}={value}" for key, value in row.items() if value)
            for row in settings[others].to_dict("records")
        ]
    rows["name"] = rows["group"] + " " + rows["scale"].map(marker)
    return make_block(
        f"Recipe {rows['recipe'].iloc[0]}, measured on {data_title(rows.iloc[0])}",
        rows.assign(line=rows["group"]),
        words={"Runs": "name", **words},
        columns=list(dict.fromkeys(rows["column"])),
    )


def _verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Each group against the first of its recipe and data, on the seeds that both have."""
    verdicts = []
    for own in compared(frame, ("recipe", "column", *DATA_KEYS), "group", run="seed"):
        first, *others = dict.fromkeys(group for run in own.runs.values() for group in run)
        for group in others:
            if len(gains := own.differences(group, first)) > 1:
                gain = paired_difference(gains)
                trail = f"{one_decimal(own.mean(first))} → {one_decimal(own.mean(group))}"
                sentence = f"{own.row.column} of {group} {_WORDS[gain.sign]} that of {first}: {trail} ({gain.words})"
                verdicts.append(Verdict(gain.kind, sentence))
    return verdicts
