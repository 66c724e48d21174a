"""Files written from run folders: all formats, the summary, the command and the stage."""

import csv
import gzip
import io
import json
import re
from decimal import Decimal

import pytest

from results import aggregate as command
from results.aggregate import aggregate, main
from results.render import LINES, plain_decimal, to_csv, to_html, to_markdown
from results.runs import read_runs
from results.schema import COLUMNS, make_frame
from results.stage import TablesConfig, tables
from results.tables.phases import phases
from results.tables.transfer import transfer
from sohes import cli
from sohes.commands import tables as sohes_tables
from sohes.errors import ConfigError
from tests.results.conftest import HEAD_STAGES, PHASES, head_measurements, measurement, phase_measurements
from tests.results.test_tables import build

TABLES = (
    *("methods", "phases", "zero_shot", "hierarchy", "transfer"),
    *("probes", "regions", "part_naming", "ablation", "cost"),
)


@pytest.fixture(scope="module")
def written(full_run):
    return aggregate([full_run], full_run / "tables")


def text_of(written, name):
    return next(path for path in written.files if path.name == name).read_text(encoding="utf-8")


def rows_of(written, name):
    return list(csv.DictReader(io.StringIO(text_of(written, name))))


def test_every_table_in_every_format(written):
    names = {path.relative_to(written.summary.parent).as_posix() for path in written.files}
    assert {name for name in names if not name.startswith("plots/")} == {
        "report.html",
        "summary.md",
        "tables/measured.csv.gz",
        "tables/published.bib",
        *(f"tables/{table}.{suffix}" for table in TABLES for suffix in ("csv", "md", "tex")),
    }


@pytest.mark.parametrize("name", ["phases", "zero_shot", "transfer"])
def test_csv_is_one_number_a_row_with_source(written, name):
    rows = rows_of(written, f"{name}.csv")
    assert rows
    for row in rows:
        assert re.fullmatch(r"-?\d+(\.\d+)?", row["value"])
        assert Decimal(row["value"]).is_finite()
        measured = row["kind"] == "measured"
        assert row["source"].startswith("runs/demo/") == measured
        assert (row["scale"], row["comparable"]) == (("demo", "False") if measured else ("", "True"))
        assert bool(row["printed"]) != measured
        assert not set("†·") & {*row["method"], *row["dataset"]}


def test_measured_numbers_keep_all_digits_in_one_file(written):
    path = next(path for path in written.files if path.name == "measured.csv.gz")
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))
    assert len(rows) == 15 + 8
    assert "7.125" in [row["value"] for row in rows]


def test_markdown_marks_measured_lines_and_the_best(make_run):
    rows = [
        measurement("ours", "mask_ar_1000", 43.5, dataset="coco", split="", n_images=5000, supervision="none"),
        *phase_measurements(),
    ]
    found = aggregate([make_run("r", {"s": rows}, scale="paper")], make_run("out", {"x": []}), tables=["zero_shot"])
    both, own = text_of(found, "zero_shot.md").split("### ")[1:]
    body = [line for line in both.splitlines() if line.startswith("| ")][2:]
    cited, (rule, measured) = body[:-2], body[-2:]
    assert not any("†" in line for line in cited)
    assert rule.startswith("| *measured by this project* |")
    assert measured.startswith("| ours †ours | ")
    assert "**43.5**" in measured  # a tie with MoSA
    assert "<u>28.1</u>" in next(line for line in cited if line.startswith("| CutLER"))
    assert all("†ours" in line for line in own.splitlines() if line.startswith("| SOHES"))
    assert re.search(r"\[\d+\] measured: runs/r/s/record.json @abc123def456", own)


def test_html_has_a_table_for_each_block(full_run):
    table = build(phases, full_run)
    text = to_html(table)
    assert text.startswith('<section class="table" id="table-phases">\n<h2>From labels to segmenter')
    assert text.count("<table") == len(table.blocks) == 1
    assert "<h3>Measured on demo · scenes (val), not comparable, 24 images</h3>" in text
    assert "font-weight: bold" in text
    assert "text-decoration: underline" in text
    assert text == to_html(build(phases, full_run))


def test_every_line_of_html_is_linked_to_its_source(make_run):
    stages = {stage: head_measurements(stage) for stage in HEAD_STAGES}
    text = to_html(build(transfer, make_run("demo", stages)))
    sources = dict(re.findall(r'<li id="([\w-]+)">\[\d+] (.*?)</li>', text))
    assert len(sources) == text.count("<li id=")
    tables = [re.findall(r'href="#([\w-]+)">\[', part) for part in text.split("<table")[1:]]
    assert [[sources[link].split(" @")[0] for link in links] for links in tables[:2]] == [
        [f"measured: runs/demo/{tool}_{side}/record.json" for side in ("start", "trained")]
        for tool in ("mmseg", "mmdet")
    ]
    assert len(tables[2]) == text.split("<table")[3].count("<tr") - 1  # the cited lines, but for their head
    assert not any("measured" in sources[link] for link in tables[2])


def test_html_escapes_what_records_say(make_run):
    rows = [measurement("<b>&x", "mask_ar_1000", 10.0, arm="phase 3", dataset="<i>")]
    text = to_html(build(phases, make_run("r", {"s": rows})))
    assert "<b>" not in text.replace("<body>", "")
    assert "<i>" not in text
    assert "&lt;b&gt;&amp;x" in text


def test_summary_tells_all(written):
    text = text_of(written, "summary.md")
    for wanted in (
        "12.1 → 18.0 → 19.2 (AR@1000, labels → phase 2 → phase 3): one seed, no verdict",
        "the SOHES backbone, 10.0 → 9.2 (-0.8, one seed, no verdict)",
        "1 of 80 images skipped: broken.jpg (truncated)",
        "no reproduction of a published result",
        "scale demo, seed 0",
        "weights: DINOv2 (timm)",
        "| mmdet_trained | 1 min 00 s | 2025-11-21T10:05:00 | abc123def456 | 0123456789abcdef | Some CPU, 2 cores |",
        "| **sum of the stages** | **3 min 30 s** |",
        "[evaluate/overlays/1.png](../evaluate/overlays/1.png)",
        "torch 2.12.1",
    ):
        assert wanted in text
    for plot in re.findall(r"!\[[^]]*]\((.*?)\)", text):
        assert (written.summary.parent / plot).exists()
    for table in TABLES:
        assert text_of(written, f"{table}.md").strip() in text


def test_the_same_records_give_the_same_bytes(written, full_run, tmp_path):
    again = aggregate([full_run], tmp_path / "again", tables=["phases", "transfer", "cost"])
    theirs = {path.name: path for path in written.files}
    for path in again.files:
        if path.suffix in (".csv", ".md", ".tex", ".gz") and path.name != "summary.md":
            assert path.read_bytes() == theirs[path.name].read_bytes(), path


def test_many_runs_leave_pages_of_bounded_size(make_run):
    """Each with settings of its own: the CSV has them all, the pages say how many they leave out."""
    rows = {"evaluate": phase_measurements({"SOHES phase 3": PHASES["SOHES phase 3"]})}
    runs = [make_run(f"r{index}", rows, lr=1.0 + index) for index in range(LINES + 20)]
    written = aggregate(runs, make_run("out", {"x": []}), tables=["phases", "ablation"])
    assert len(rows_of(written, "phases.csv")) == 5 * (LINES + 20)
    text = text_of(written, "phases.md")
    assert text.count("| SOHES phase 3") == LINES
    assert "20 more lines are in the CSV file." in text
    assert text_of(written, "phases.tex").count(r"\textdagger{}demo \textperiodcentered{} r") <= 42
    assert len({path.stem for path in written.files if path.parent.name == "plots"}) <= 20
    summary = text_of(written, "summary.md")
    assert summary.count("## Run ") == 20
    assert f"{LINES} more runs: see their records." in summary
    assert f"- and {LINES + 20 - 60} more" in summary  # verdicts
    assert any("are not drawn" in problem for problem in written.problems)


def test_command_reads_globs_and_names_what_it_left_out(make_run, tmp_path, capsys):
    for index in range(3):
        make_run(f"one-{index}", {"evaluate": phase_measurements()}, seed=index)
    broken = tmp_path / "runs" / "one-1" / "evaluate" / "record.json"
    broken.write_text(broken.read_text()[:100])
    assert main([str(tmp_path / "runs" / "one-*"), "--out", str(tmp_path / "out"), "--tables", "phases"]) == 0
    printed = capsys.readouterr().out
    assert "12.1 → 18.0 → 19.2 (AR@1000, labels → phase 2 → phase 3)" in printed
    assert f"1 left out:\nleft out: {broken}: not a run record (" in printed
    assert f"left out: {broken}" in (tmp_path / "out" / "summary.md").read_text()
    assert {path.name for path in (tmp_path / "out" / "tables").glob("*.md")} == {"phases.md"}


def test_nothing_usable_is_exit_1(make_run, tmp_path, capsys):
    run = make_run("run", {"evaluate": phase_measurements()})
    (run / "evaluate" / "record.json").write_text("{")
    assert main([str(run)]) == 1
    assert "evaluate/record.json: not a run record" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing*")]) == 1
    assert "nothing*: no such folder" in capsys.readouterr().err
    assert main([str(run), str(run.parent), "--out", str(tmp_path / "x"), "--tables", "phases"]) == 1
    capsys.readouterr()
    good = make_run("good", {"evaluate": phase_measurements()})
    assert main([str(run), str(good)]) == 1
    assert "several runs need --out DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--tables", "zeroshot", "unknown table 'zeroshot'; did you mean 'zero_shot'"),
        ("--methods", "SOHES phase 4", "unknown method 'SOHES phase 4'; did you mean 'SOHES phase"),
        ("--datasets", "scene", "unknown data set 'scene'; did you mean 'scenes'"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(full_run, tmp_path, capsys, option, name, message):
    assert main([str(full_run), "--out", str(tmp_path), option, name]) == 1
    assert message in capsys.readouterr().err


def test_filters_hold_for_measured_and_cited_rows(full_run, tmp_path):
    chosen = {"methods": ["SOHES phase 3", "SAM"], "datasets": ["scenes", "COCO"]}
    written = aggregate([full_run], tmp_path, tables=["zero_shot"], **chosen)
    rows = rows_of(written, "zero_shot.csv")
    assert [(row["method"], row["dataset"]) for row in rows] == [("SAM", "COCO"), ("SOHES phase 3", "scenes")]
    written = aggregate([full_run], tmp_path, tables=["transfer"], methods=["SOHES"])  # a backbone that it trained
    assert {row["arm"] for row in rows_of(written, "transfer.csv")} == {"trained"}


def test_sohes_tables_is_the_same_command(full_run, tmp_path, capsys, monkeypatch):
    arguments = [str(full_run), "--tables", "phases", "--out"]
    assert cli.main(["tables", *arguments, str(tmp_path / "a")]) == 0
    assert main([*arguments, str(tmp_path / "b")]) == 0
    first, second = (tmp_path / name / "tables" / "phases.tex" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    capsys.readouterr()
    monkeypatch.setattr(sohes_tables, "CHECKOUT", tmp_path)
    assert cli.main(["tables", str(full_run)]) == 1
    assert "in no wheel; clone the repository" in capsys.readouterr().err


def test_stage_writes_into_its_folder_and_is_not_its_own_input(make_run):
    stages = {"evaluate": phase_measurements(), "tables": []} | {
        stage: head_measurements(stage) for stage in HEAD_STAGES
    }
    run = make_run("demo", stages)
    record = run / "mmdet_start" / "record.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seconds": "long"}))
    result = tables(TablesConfig(), {"run": run}, run / "tables")
    assert all(path.exists() and path.is_relative_to(run / "tables") for path in result.artefacts)
    assert result.notes[0] == f"the report: {run / 'tables' / 'report.html'}"  # which the launcher prints
    assert any("12.1 → 18.0 → 19.2" in note for note in result.notes)
    assert any("mmdet_start/record.json: not a run record (field 'seconds'" in note for note in result.notes)
    assert result.measurements == ()
    assert "| tables |" not in (run / "tables" / "summary.md").read_text(encoding="utf-8")


def test_a_run_without_any_number_still_gets_its_tables(make_run):
    run = make_run("photos", {"images": [], "evaluate": []})
    written = aggregate([run], run / "tables")
    assert "was not measured: no ground truth was given" in written.summary.read_text(encoding="utf-8")
    assert "| evaluate | Some CPU, 2 cores |" in text_of(written, "cost.md") or "| evaluate |" in text_of(
        written, "cost.md"
    )


def test_the_stage_knows_all_tables():
    assert TablesConfig().tables == tuple(command.TABLES) == TABLES


def test_stages_that_did_not_finish_are_listed_with_the_reason(make_run, tmp_path):
    run = make_run("suite", {"score-a-x": [measurement("a", "mask_ar_1000", 10.0)]})
    (run / "score-b-x").mkdir()
    (run / "score-b-x" / "status.json").write_text("{}")
    (run / "score-b-x" / "error.json").write_text(json.dumps({"message": "b's weights are not there"}))
    written = aggregate([run], tmp_path / "out", tables=["zero_shot"])
    assert written.verdicts == ("score-b-x did not finish: b's weights are not there",)
    assert "### Stages that did not finish\n\n- score-b-x: b's weights are not there" in written.summary.read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-7, "0.0000001"),
        (12.0, "12.0"),
        (3, "3.0"),
        (1 / 3, "0.3333333333333333"),
        (1e16, "1" + "0" * 16),
        (float("nan"), ""),
    ],
)
def test_plain_decimal(value, text):
    assert plain_decimal(value) == text


def test_an_unknown_table(make_run, tmp_path):
    with pytest.raises(ConfigError, match="unknown table 'zeroshot'; did you mean 'zero_shot'"):
        aggregate([make_run("run", {"images": []})], tmp_path, tables=["zeroshot"])
    assert to_markdown(build(phases, make_run("again", {"images": []}))).startswith("## From labels")
    assert read_runs([tmp_path / "runs" / "run"]).frame.empty


def test_csv_is_that_of_pandas() -> None:
    methods = ['with "quotes", a comma', "two\nlines", "", "plain"]
    numbers = {"value": [1.5, 0.1 + 0.2, 100.0, 2.25], "sd": [None, 1.0, None, 0.5], "n_seeds": [3, None, 1, 2]}
    frame = make_frame({"method": methods, **numbers})
    assert to_csv(frame) == frame.to_csv(columns=list(COLUMNS), index=False, lineterminator="\n")
