"""What the stages of a recipe cost, as far as their records say."""

from __future__ import annotations

import pandas as pd

from results.runs import Measurements
from results.schema import MEASURED, make_frame
from results.table import Block, Table, averaged, make_block
from results.words import title_of
from sohes.records import COSTS

HOURS = "cost_hours"


def cost(found: Measurements, published: pd.DataFrame) -> Table:
    """Hours of every stage and, where it recorded them, parameters, GFLOPs, images a second and memory.

    Runs of one recipe, scale and hardware share a line, whatever their settings.
    """
    rows = averaged(_frame(found), "hardware")
    blocks = [_block(own) for _, own in rows.groupby(["recipe", "scale"], sort=False)]
    return Table(name="cost", title="Cost of the stages", frame=rows, blocks=tuple(blocks))


def _frame(found: Measurements) -> pd.DataFrame:
    """A row for each cost of each stage; the group is the recipe."""
    rows = [
        {
            "kind": MEASURED,
            "scale": record.scale,
            "method": record.stage,
            "metric": f"cost_{name}",
            "value": value,
            "unit": COSTS.get(name, "h"),
            "source": f"{run.name}/{record.stage}",
            "run": run.name,
            "stage": record.stage,
            "recipe": record.recipe,
            "group": record.recipe,
            "seed": record.seed,
            "commit": record.commit,
            "hardware": record.hardware,
            "date": record.started,
        }
        for run in found.runs
        for record in run.records
        for name, value in {**record.cost, "hours": record.seconds / 3600}.items()
    ]
    return make_frame({name: [row[name] for row in rows] for name in rows[0]})


def _block(rows: pd.DataFrame) -> Block:
    columns = [title_of(f"cost_{name}") for name in (*COSTS, "hours")]
    there = rows["metric"].map(title_of)
    return make_block(
        f"Recipe {rows['recipe'].iloc[0]}, scale {rows['scale'].iloc[0]}",
        rows.assign(line=rows["method"] + "\0" + rows["hardware"], column=there),
        words={"Stage": "method", "Hardware": "hardware"},
        columns=[name for name in columns if name in set(there)],
        ranked=(),
        notes=("Means of all runs of the recipe, whatever their settings.",),
    )
