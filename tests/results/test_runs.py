"""Reading run folders: what is left out is named, and runs that differ in their seed alone are found."""

import json
import random
from dataclasses import replace

import pytest

from results.runs import read_runs
from results.schema import COLUMNS
from results.words import bare_data_of, data_of, method_of, number_of, source_of
from sohes.errors import DataError
from tests.results.conftest import HEAD_STAGES, head_measurements, measurement, phase_measurements


def test_one_row_a_number_with_all_that_traces_it(full_run):
    found = read_runs([full_run])
    assert found.problems == ()
    assert tuple(found.frame.columns) == COLUMNS
    assert len(found.frame) == 15 + 8
    row = next(found.frame.itertuples())
    assert (row.kind, row.scale, row.comparable, row.recipe, row.group) == (
        "measured",
        "demo",
        False,
        "sohes_full",
        "demo",
    )
    assert (row.method, row.arm, row.metric, row.value) == ("SOHES labels (phase 1)", "labels", "mask_ar_1000", 12.14)
    assert (row.dataset, row.split, row.n_images, row.seed) == ("scenes", "val", 24, 0)
    assert (row.source, row.commit) == ("runs/demo/evaluate/record.json", "abc123def456")
    assert (row.printed, row.publication, row.bibkey) == ("", "", "")
    assert method_of(row) == "SOHES labels (phase 1) †demo"
    assert (data_of(row), bare_data_of(row)) == ("demo · scenes (val), not comparable", "scenes (val)")
    assert source_of(row) == "measured: runs/demo/evaluate/record.json @abc123def456"
    assert data_of(row._replace(of_images=50)) == "demo · scenes (val) (first 24 of 50 images), not comparable"
    assert number_of(row._replace(sd=0.25)) == "12.1 ± 0.3"


def test_paper_scale_is_ours_not_the_papers(make_run):
    found = read_runs([make_run("big", {"evaluate": phase_measurements()}, scale="paper")])
    row = next(found.frame.itertuples())
    assert row.comparable
    assert method_of(row).endswith(" †ours")
    assert data_of(row) == "ours · scenes (val)"


def test_exactly_the_truncated_records_are_named(make_run):
    """Cut anywhere before their last brace, a hundred of a thousand records."""
    numbers = random.Random(0)
    rows = [measurement("m", "mask_ar_1000", 10.0)]
    runs = [make_run(f"run-{index}", {f"s{place}": rows for place in range(50)}) for index in range(20)]
    paths = [path for run in runs for path in sorted(run.glob("*/record.json"))]
    cut = numbers.sample(paths, 100)
    for path in cut:
        data = path.read_bytes()
        path.write_bytes(data[: numbers.randrange(len(data.rstrip()))])
    found = read_runs(runs)
    assert len(found.problems) == 100
    named = {problem.removeprefix("left out: ").split(": not")[0] for problem in found.problems}
    assert named == {str(path) for path in cut}
    assert sum(len(run.records) for run in found.runs) == 900


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON|Expecting value"),
        (b"\xff\x00\x13", "not a run record"),
        (b"[]", "not a run record"),
        (b'{"schema": 99}', "field 'schema' is 99, this version reads"),
    ],
)
def test_what_is_no_record_is_named_and_the_rest_is_read(make_run, content, reason):
    run = make_run("run", {"evaluate": phase_measurements(), "broken": []})
    (run / "broken" / "record.json").write_bytes(content)
    found = read_runs([run])
    assert len(found.frame) == 15
    with pytest.raises(AssertionError, match=f"broken/record.json: .*({reason})"):
        raise AssertionError(*found.problems)


@pytest.mark.parametrize("field", ["seconds", "config", "notes", "seed", "measurements", "started"])
def test_a_field_of_the_wrong_type_is_named(make_run, field):
    run = make_run("run", {"evaluate": phase_measurements(), "other": []})
    path = run / "other" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: [["x"]] if field == "config" else {"x": 1}}))
    if field == "config":
        path.write_text(json.dumps(json.loads(path.read_text()) | {field: 3}))
    (problem,) = read_runs([run]).problems
    assert f"other/record.json: not a run record (field '{field}" in problem


def test_numbers_that_cannot_be_one_are_refused_alone(make_run):
    rows = phase_measurements()
    rows[1] = replace(rows[1], value=100.5)
    rows[2] = replace(rows[2], value=-0.5)
    rows[3] = replace(rows[3], sd=1.0, n_seeds=3)
    rows.append(measurement("m", "region_vi_ods", 101.0, unit="bits"))
    run = make_run("run", {"evaluate": rows})
    path = run / "evaluate" / "record.json"
    path.write_text(path.read_text().replace('"sd": 1.0', '"sd": NaN').replace("12.14", "Infinity"))
    found = read_runs([run])
    assert found.problems == (
        "left out: runs/run/evaluate/record.json, mask_ar_1000 of 'SOHES labels (phase 1)': "
        "field 'value' is inf, not a finite number",
        "left out: runs/run/evaluate/record.json, mask_ar_1000_s of 'SOHES labels (phase 1)': "
        "field 'value' is 100.5, not a percentage from 0 to 100",
        "left out: runs/run/evaluate/record.json, mask_ar_1000_m of 'SOHES labels (phase 1)': "
        "field 'value' is -0.5, not a percentage from 0 to 100",
        "left out: runs/run/evaluate/record.json, mask_ar_1000_l of 'SOHES labels (phase 1)': "
        "field 'sd' is nan, not a finite number",
    )
    assert len(found.frame) == len(rows) - 4


def test_two_numbers_for_one_cell_are_neither(make_run):
    rows = phase_measurements()
    again = [replace(rows[0], value=1.0), rows[1]]  # one differs, one is the same again
    found = read_runs([make_run("twice", {"evaluate": rows, "again": again})])
    assert found.problems == (
        "left out: 2 values of mask_ar_1000 for 'SOHES labels (phase 1)' on 'scenes': "
        "runs/twice/evaluate/record.json, runs/twice/again/record.json",
    )
    assert len(found.frame) == 14


def test_records_of_schema_2_are_migrated(make_run):
    run = make_run("old", {"evaluate": phase_measurements()})
    path = run / "evaluate" / "record.json"
    record = json.loads(path.read_text()) | {"schema": 2}
    for row in record["measurements"]:
        row["data"] = f"{row.pop('dataset')} ({row.pop('split')})"
        for name in ("of_images", "trained_by", "sd", "n_seeds"):
            del row[name]
    del record["cost"]
    path.write_text(json.dumps(record))
    found = read_runs([run])
    assert found.problems == ()
    assert set(found.frame["dataset"] + "|" + found.frame["split"]) == {"scenes|val"}


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no \*/record.json in it; give the folder of a run"):
        read_runs([tmp_path])
    with pytest.raises(DataError, match="no run folder was given"):
        read_runs([])


def test_a_folder_counts_once_and_runs_of_one_name_keep_apart(make_run, tmp_path):
    rows = {"evaluate": phase_measurements()}
    first, second = make_run("a/demo", rows), make_run("b/demo", rows, seed=1)
    found = read_runs([first, second, first / ".." / "demo"])
    assert [(run.name, run.group) for run in found.runs] == [("a/demo", "a/demo"), ("b/demo", "a/demo")]
    assert len(found.frame) == 30


@pytest.mark.parametrize(
    ("others", "groups"),
    [
        ([{"seed": 1}, {"seed": 2}], ["run", "run", "run"]),
        ([{"seed": 0}], ["run-0", "run-1"]),  # one seed twice is no repeat
        ([{"seed": 1, "lr": 0.2}], ["run-0", "run-1"]),
        ([{"seed": 1, "scale": "small"}], ["run-0", "run-1"]),
        ([{"seed": 1, "stages": HEAD_STAGES[:1]}, {"seed": 2}], ["run", "run", "run"]),  # the second is not finished
    ],
)
def test_runs_that_differ_in_their_seed_alone_are_a_group(make_run, others, groups):
    runs = []
    for index, options in enumerate([{}, *others]):
        stages = {stage: head_measurements(stage) for stage in options.pop("stages", HEAD_STAGES)}
        runs.append(make_run(f"run-{index}", stages, **options))
    assert [run.group for run in read_runs(runs).runs] == groups


def test_stages_that_did_not_finish_have_a_reason(make_run):
    run = make_run("suite", {"score-a-x": [measurement("a", "mask_ar_1000", 10.0)]})
    errors = {"score-b-x": '{"message": "b has no weights"}', "score-c-x": None, "score-d-x": "{", "tables": None}
    for stage, error in errors.items():
        (run / stage).mkdir()
        (run / stage / "status.json").write_text("{}")
        if error:
            (run / stage / "error.json").write_text(error)
    (found,) = read_runs([run]).runs
    unknown = "it still runs, or was interrupted or killed"
    assert found.unfinished == {"score-b-x": "b has no weights", "score-c-x": unknown, "score-d-x": unknown}
