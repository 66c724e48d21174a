"""What frozen probes find in a trained backbone and in its start, and unsupervised classes; with published numbers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from results.runs import Measurements
from results.schema import is_probe
from results.table import Block, Table, averaged, by_data, cited_blocks, data_title, make_block, method_blocks, named
from results.tables.transfer import backbones_block, differences, gain_verdicts
from results.verdicts import MISSING, Verdict
from results.words import supervision_notes, title_of

CITED = ("miou_linear_probe", "miou_fcn_probe", "miou_overcluster_500", "miou_retrieval", "miou_hungarian_21")
WHOLE_IMAGES = ("acc_top1_linear", "acc_top1_knn")  # of probes of these
ONE_EACH, CLUSTER_PROBE = "probe_cluster_crop", "cluster probe"  # how its protocols begin, and its method
STUFF = "COCO-Stuff-27"  # where clusters of pixels are published
_WORDS = {"Method": "method", "Backbone": "backbone", "Training images": "train_data", "Data": "data"}
_CITED_IMAGES = "Cited from publications: a linear layer trained by SGD on augmented images"
CLUSTERS = tuple(f"cluster_miou_{rule}" for rule in ("leopart", "hungarian", "iou", "majority"))


def probes(found: Measurements, published: pd.DataFrame) -> Table:
    """Scores of frozen probes, start against trained backbone; clusters scored as classes; cited numbers."""
    frame = found.frame[is_probe(found.frame)]
    rows, gains = averaged(frame), averaged(differences(frame))
    clusters = averaged(found.frame[found.frame["metric"].isin(CLUSTERS)])
    cited = published[published["metric"].isin(CITED)]
    classified = published[published["metric"].isin(WHOLE_IMAGES)]
    one_each = rows["protocol"].str.startswith(ONE_EACH)
    own = one_each & (rows["method"] != CLUSTER_PROBE)  # of a segmenter
    shown = rows[(rows["metric"].str.startswith("miou") | rows["metric"].isin(WHOLE_IMAGES)) & ~own]
    blocks = [
        backbones_block(own, gains, f"Measured on {data_title(own.iloc[0])}", _Titles(own)) for own in by_data(shown)
    ]
    blocks += method_blocks(clusters, CLUSTERS, "Clusters as classes, without labels until they are scored.")
    blocks += [_one_each_block(those) for those in by_data(rows[one_each]) if own[those.index].any()]
    stuff = published[published["dataset"] == STUFF]
    main = frame[frame["metric"].isin(("miou_dataset", *WHOLE_IMAGES)) & (frame["arm"] != "")]
    return Table(
        name="probes",
        title="Frozen probes: trained backbones against their start",
        frame=pd.concat([rows, gains, clusters, cited, classified, stuff]),
        blocks=(
            *blocks,
            *cited_blocks(cited, CITED, words=_WORDS),
            *cited_blocks(classified, WHOLE_IMAGES[:1], words=_WORDS, heading=_CITED_IMAGES),
            *([_cited_stuff_block(stuff)] if len(stuff) else []),
        ),
        verdicts=gain_verdicts(main) or (() if len(frame) else (Verdict(MISSING, "Frozen probes were not measured"),)),
    )


class _Titles:
    """Title of a probe's column: with its protocol where two probes differ in that alone."""

    def __init__(self, rows: pd.DataFrame) -> None:
        protocols = rows.groupby(["method", "metric"])["protocol"].nunique()
        self._several = set(protocols.index[protocols > 1])

    def __call__(self, row: Any) -> str:
        title = f"{row.method} {title_of(row.metric)}"
        return f"{title} {row.protocol}" if (row.method, row.metric) in self._several else title


def _one_each_block(rows: pd.DataFrame) -> Block:
    """Clusters of a segmenter and, by the same protocol, of frozen features: a line for each."""
    rows = rows.assign(column=rows["metric"].map(title_of), name=named(rows))
    return make_block(
        f"One cluster per class, measured on {data_title(rows.iloc[0])}",
        rows.assign(line=rows["name"] + "\0" + rows["backbone"] + "\0" + rows["init"]),
        words={"Clusters of": "name", "Backbone": "backbone", "Weights": "init"},
        columns=list(dict.fromkeys(rows["column"])),
        notes=("Clusters are matched one to one by pixels, on the images that are scored.", *supervision_notes(rows)),
    )


def _cited_stuff_block(rows: pd.DataFrame) -> Block:
    return make_block(
        f"Cited from publications: one cluster per class on {STUFF}",
        rows.assign(
            line=rows.groupby(["method", "backbone", "source"], sort=False).ngroup(),
            column=rows["metric"].map(title_of),
        ),
        words={"Method": "method", "Backbone": "backbone", "Supervision": "supervision"},
        columns=list(dict.fromkeys(rows["metric"].map(title_of))),
        ranked=(),
    )
