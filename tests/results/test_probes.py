"""The table of frozen probes: pairs, spreads, repeats, clusters, and what is cited."""

from __future__ import annotations

from results.published import published_rows
from results.render import lines_in_words, to_latex, to_markdown
from results.runs import load_run
from results.tables.probes import probes
from results.tables.transfer import transfer
from tests.results.conftest import BACKBONE, head_measurements, measurement

START, TRAINED = "DINO", "Leopart from DINO"


def probe_rows(method, protocol, start, trained, *, sd=None, arms=("start", "trained"), **fields):
    rows = []
    for arm, init, value in zip(arms, (START, TRAINED), (start, trained), strict=True):
        common = {"init": init, "arm": arm, "protocol": protocol, "dataset": "voc", "supervision": "none"}
        common |= {"trained_by": "Leopart"} if arm == "trained" else {}
        common |= {} if sd is None else {"sd": sd, "n_seeds": 3}
        rows.append(measurement(method, "miou_dataset", value, **common, **fields))
    return rows


LINEAR = probe_rows("linear probe", "probe_linear_448_full_v1", 38.0, 41.25)
KMEANS = probe_rows("over-clustering, K = 500", "probe_overcluster_500_448_100_v1", 20.0, 19.0, sd=0.44)
COARSE = probe_rows("linear probe", "probe_linear_224_full_v1", 30.0, 30.0)


def test_start_and_trained_stand_in_one_line_with_their_difference(make_run):
    run = load_run(make_run("r", {"probe-linear": LINEAR, "probe-overcluster": KMEANS, "coarse": COARSE}))
    table = probes([run], published_rows())
    own, cited = table.blocks
    lines = [dict(zip(own.header, line, strict=True)) for line in lines_in_words(own)]
    assert [(line["Probe"], line["Start"], line["Leopart"], line["Difference"]) for line in lines] == [
        ("linear probe †demo", "38.0", "41.3", "+3.3"),
        ("over-clustering, K = 500 †demo", "20.0 ± 0.4", "19.0 ± 0.4", "-1.0"),
        ("linear probe †demo", "30.0", "30.0", "+0.0"),  # two resolutions are two protocols, and two lines
    ]
    assert (lines[0]["Backbone"], lines[0]["Start weights"]) == (BACKBONE, START)
    on = "on demo · voc (val), not comparable: the Leopart backbone"
    assert table.verdicts == (
        f"mIoU, linear probe †demo {on} gains 3.3 points (38.0 → 41.3)",
        f"mIoU, over-clustering, K = 500 †demo {on} LOSES 1.0 points (20.0 ± 0.4 → 19.0 ± 0.4)",
        f"mIoU, linear probe †demo {on} changes nothing (30.0 → 30.0)",
    )
    assert [row.value for row in table.rows if row.metric == "miou_dataset_difference"] == [3.25, -1.0, 0.0]
    assert not cited.measured
    assert "Mean ± standard deviation over 3 seeds, where a number depends on one." in own.notes
    gain = next(row for row in table.rows if row.metric == "miou_dataset_difference" and row.value == -1)
    assert (gain.sd, gain.n_seeds) == (None, None)
    to_latex(table)
    assert "| linear probe †demo |" in to_markdown(table)


def test_probes_are_no_downstream_heads(make_run):
    run = load_run(make_run("r", {"probe-linear": LINEAR, "mmseg_start": head_measurements("mmseg_start")}))
    assert "linear probe" not in to_markdown(transfer([run], published_rows()))
    assert "FCN head" not in to_markdown(probes([run], published_rows()))


def test_runs_of_several_seeds_are_averaged(make_run):
    runs = []
    for seed, (start, trained) in enumerate([(10.0, 12.0), (10.0, 14.0), (10.0, 13.0)]):
        rows = probe_rows("linear probe", "probe_linear_448_full_v1", start, trained)
        runs.append(load_run(make_run(f"s{seed}", {"probe-linear": rows}, seed=seed)))
    block = next(block for block in probes(runs, published_rows()).blocks if "3 runs" in block.heading)
    (line,) = lines_in_words(block)
    assert line[3:6] == ("10.0 ± 0.0", "13.0 ± 1.0", "3.0 ± 1.0")
    assert "seeds 0, 1, 2" in block.heading


def test_a_backbone_by_itself_and_half_a_pair(make_run):
    alone = [row for row in LINEAR if row.arm == "start"]
    run = load_run(make_run("r", {"probe-linear": alone}))
    table = probes([run], published_rows())
    assert table.verdicts[0].endswith("measured with the start backbone only")
    bare = probe_rows("linear probe", "probe_linear_448_full_v1", 1.0, 2.0, arms=("", ""))[:1]
    table = probes([load_run(make_run("b", {"probe": bare}))], published_rows())
    assert "one backbone by itself" in table.blocks[0].heading
    assert lines_in_words(table.blocks[0])[0][1:5] == (BACKBONE, START, "mIoU", "1.0")


def test_clusters_as_classes_have_a_block(make_run):
    rows = [
        measurement(method, f"cluster_miou_{rule}", value, protocol=f"cluster_{rule}_v1", dataset="voc")
        for method, values in (("Leopart (CBFE+CD)", (30.0, 31.0)), ("k-means, K = 21", (9.0, 9.5)))
        for rule, value in zip(("leopart", "hungarian"), values, strict=True)
    ]
    facts = {"protocol": "cluster_leopart_v1", "dataset": "voc", "sd": 0.26, "n_seeds": 5}
    rows.append(measurement("CBFE + k-means, K = 20", "cluster_miou_leopart", 25.0, **facts))
    table = probes([load_run(make_run("r", {"semantic": rows}))], published_rows())
    block = table.blocks[0]
    assert "Mean ± standard deviation over 5 seeds, where a number depends on one." in block.notes
    assert "without labels until they are scored" in block.heading
    assert [line[0::3][:2] for line in lines_in_words(block)] == [
        ("Leopart (CBFE+CD) †demo", "30.0"),
        ("k-means, K = 21 †demo", "9.0"),
        ("CBFE + k-means, K = 20 †demo", "25.0 ± 0.3"),
    ]


def test_cited_numbers_are_those_of_the_sources_and_none_that_is_unverified():
    table = probes([], published_rows())
    (block,) = table.blocks
    cells = {line[:2]: dict(zip(block.header, line, strict=True)) for line in lines_in_words(block)}
    leopart = cells["Leopart", "ViT-S/16"]  # as in the repository's README
    assert (leopart["linear mIoU"], leopart["FCN mIoU"], leopart["K=500 mIoU"]) == ("69.3", "71.4", "53.5")
    assert cells["Leopart", "ViT-B/8"]["K=500 mIoU"] == "59.7"
    assert cells["Leopart (CBFE+CD)", "ViT-S/16"]["unsupervised mIoU, 21 classes"] == "41.7"
    assert not any("UNVERIFIED" in line[-1] for line in lines_in_words(block))
    assert table.verdicts == ("Frozen probes were not measured",)
