"""Files written from run folders: all formats, the summary, the plots, the command and the stage."""

import ast
import csv
import json
import re
from decimal import Decimal
from pathlib import Path

import pytest
from PIL import Image

import results
from results import aggregate as command
from results.aggregate import aggregate, main
from results.render import escape_latex, plain_decimal
from results.stage import TablesConfig, tables
from sohes.errors import ConfigError
from tests.results.conftest import HEAD_STAGES, PHASES, head_measurements, measurement, phase_measurements

TABLES = ("phases", "zero_shot", "hierarchy", "transfer", "probes", "regions")


@pytest.fixture(scope="module")
def written(full_run):
    return aggregate([full_run], full_run / "tables")


def text_of(written, name):
    return next(path for path in written.files if path.name == name).read_text(encoding="utf-8")


def test_every_table_in_every_format(written):
    names = {path.relative_to(written.summary.parent).as_posix() for path in written.files}
    assert names == {"summary.md", "tables/measured.csv", "plots/phases.png", "plots/transfer.png"} | {
        f"tables/{table}.{suffix}" for table in TABLES for suffix in ("csv", "md", "tex")
    }


@pytest.mark.parametrize("name", ["phases", "zero_shot", "transfer", "measured"])
def test_csv_is_one_number_a_row_with_source(written, name):
    rows = list(csv.DictReader(text_of(written, f"{name}.csv").splitlines()))
    assert rows
    for row in rows:
        assert re.fullmatch(r"-?\d+(\.\d+)?", row["value"])
        assert Decimal(row["value"]).is_finite()
        measured = row["kind"] == "measured"
        assert row["source"].startswith("runs/demo/") == measured
        assert (row["scale"], row["comparable"]) == (("demo", "False") if measured else ("", "True"))
        assert bool(row["printed"]) != measured
        assert not set("†·") & {*row["method"], *row["dataset"]}


def test_csv_keeps_all_digits(written):
    values = [row["value"] for row in csv.DictReader(text_of(written, "phases.csv").splitlines())]
    assert "7.125" in values


@pytest.mark.parametrize("name", ["phases", "zero_shot", "transfer", "hierarchy"])
def test_demo_lines_are_marked_in_markdown_and_latex(written, name):
    """Every line with a number of this run carries the dagger and lies outside the tables of cited numbers."""
    for heading, *lines in (part.splitlines() for part in text_of(written, f"{name}.md").split("### ")[1:]):
        body = [line for line in lines if line.startswith("| ")][2:]
        assert body
        assert all(("†demo" in line) == heading.startswith("Measured") for line in body)
    for environment in text_of(written, f"{name}.tex").split(r"\begin{table}")[1:]:
        caption = re.search(r"\\caption{(.*)}", environment)
        body = environment.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
        assert caption
        assert all((r"\textdagger{}demo" in line) == ("Measured" in caption[1]) for line in body)


@pytest.mark.parametrize("name", TABLES)
def test_latex_is_well_formed(written, name):
    text = text_of(written, f"{name}.tex")
    assert text.isascii()
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    bare = re.sub(r"\\[{}]", "", "\n".join(lines))
    assert bare.count("{") == bare.count("}")
    for kind in ("table", "tabular"):
        assert text.count(rf"\begin{{{kind}}}") == text.count(rf"\end{{{kind}}}")
    for part in text.split(r"\begin{tabular}")[1:]:
        columns = len(re.match(r"{([lr]+)}", part)[1])
        rows = [line for line in part.split(r"\bottomrule")[0].splitlines() if line.endswith(r"\\")]
        assert len(rows) >= 2
        assert all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
    assert not re.search(r"(?<!\\)[%#_]", "\n".join(lines).replace(r"{!}{%", ""))


def test_latex_escapes():
    assert escape_latex("50% of A_b & {c} #1 ~ ^ \\ $ † · →") == (
        r"50\% of A\_b \& \{c\} \#1 \textasciitilde{} \textasciicircum{} \textbackslash{} \$ \textdagger{} "
        r"\textperiodcentered{} $\rightarrow$"
    )
    assert escape_latex("naïve, 4 µm") == "naïve, 4 µm"  # letters stay: LaTeX reads UTF-8


def test_summary_tells_all(written):
    text = text_of(written, "summary.md")
    for wanted in (
        "climbs: 12.1 → 18.0 → 19.2",
        "LOSES 0.8 points",
        "1 of 80 images skipped: broken.jpg (truncated)",
        "no reproduction of a published result",
        "scale demo, seed 0",
        "weights: DINOv2 (timm)",
        "| mmdet_trained | 1 min 00 s | 2025-11-21T10:05:00 | abc123def456 | 0123456789abcdef | Some CPU, 2 cores |",
        "| **sum of the stages** | **3 min 30 s** |",
        "![phases](plots/phases.png)",
        "[evaluate/overlays/1.png](../evaluate/overlays/1.png)",
        "torch 2.12.1",
    ):
        assert wanted in text
    for path in written.files:
        if path.suffix == ".png":
            assert (written.summary.parent / f"plots/{path.name}").exists()


def test_plots_are_pictures_and_reproducible(written, full_run, tmp_path):
    again = aggregate([full_run], tmp_path / "again")
    for first, second in zip(written.files, again.files, strict=True):
        if first.suffix == ".png":
            with Image.open(first) as picture:
                assert picture.width >= 1000
                assert picture.convert("L").getextrema()[0] < 100
        assert first.name == second.name
        if first.name != "summary.md":
            assert first.read_bytes() == second.read_bytes()


def test_several_runs_stand_side_by_side(make_run, tmp_path, capsys):
    flat = dict(PHASES) | {"SOHES phase 3": (18.0, 5.0, 17.0, 33.0, 6.0)}
    first = make_run("one", {"evaluate": phase_measurements()})
    second = make_run("two", {"evaluate": phase_measurements(flat)}, scale="small")
    assert main([str(first), str(second), "--out", str(tmp_path / "both")]) == 0
    printed = capsys.readouterr().out
    assert "Mask AR of run one (demo · scenes (val), not comparable) climbs: 12.1 → 18.0 → 19.2" in printed
    assert "Mask AR of run two (small · scenes (val), not comparable) does NOT climb at phase 3" in printed
    assert {path.name for path in (tmp_path / "both" / "plots").iterdir()} == {"phases_1.png", "phases_2.png"}
    with pytest.raises(SystemExit):
        main([str(first), str(second)])


def test_runs_that_repeat_each_other_share_a_plot(make_run, tmp_path):
    stages = {"evaluate": phase_measurements()} | {stage: head_measurements(stage) for stage in HEAD_STAGES}
    runs = [str(make_run(f"seed-{seed}", stages, seed=seed)) for seed in (0, 1)]
    assert main([*runs, "--out", str(tmp_path / "out"), "--tables", "phases", "hierarchy"]) == 0
    assert [path.name for path in (tmp_path / "out" / "plots").iterdir()] == ["phases.png"]
    assert {path.stem for path in (tmp_path / "out" / "tables").iterdir()} == {"phases", "hierarchy", "measured"}


def test_command_says_what_is_wrong(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "no */record.json in it" in capsys.readouterr().err


def test_stage_writes_into_its_folder_and_is_not_its_own_input(make_run):
    run = make_run("demo", {"evaluate": phase_measurements(), "tables": []})
    result = tables(TablesConfig(), {"run": run}, run / "tables")
    assert all(path.exists() and path.is_relative_to(run / "tables") for path in result.artefacts)
    assert any("climbs: 12.1" in note for note in result.notes)
    assert result.measurements == ()
    assert "| tables |" not in (run / "tables" / "summary.md").read_text(encoding="utf-8")


def test_a_run_without_any_number_still_gets_its_tables(make_run):
    run = make_run("photos", {"images": [], "evaluate": []})
    written = aggregate([run], run / "tables")
    assert "was not measured: no ground truth was given" in written.summary.read_text(encoding="utf-8")
    assert not any(path.suffix == ".png" for path in written.files)


def test_results_imports_the_foundation_only():
    foundation = {"errors", "files", "help", "progress", "records", "configuration", "plotting"}
    for path in Path(results.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            ours = {name for name in names if name.split(".")[0] in {"sohes", "transfer", "benchmarks", "slurm"}}
            assert ours <= {f"sohes.{name}" for name in foundation}, path


def test_the_stage_knows_all_tables():
    assert set(TablesConfig().tables) == set(command.TABLES) == set(TABLES)


def test_stages_that_did_not_finish_are_listed_with_the_reason(make_run, tmp_path):
    run = make_run("suite", {"score-a-x": [measurement("a", "mask_ar_1000", 10.0)]})
    for stage, error in (
        ("score-b-x", {"message": "b's weights are not there"}),
        ("score-c-x", None),
        ("tables", None),
    ):
        (run / stage).mkdir()
        (run / stage / "status.json").write_text("{}")
        if error:
            (run / stage / "error.json").write_text(json.dumps(error))
    written = aggregate([run], tmp_path / "out", tables=["zero_shot"])
    expected = ["score-b-x did not finish: b's weights are not there"]
    expected += ["score-c-x did not finish: it still runs, or was interrupted or killed"]
    assert list(written.verdicts) == expected
    page = written.summary.read_text()
    assert "### Stages that did not finish\n\n- score-b-x: b's weights are not there\n- score-c-x: it still" in page
    assert sorted(path.name for path in (tmp_path / "out" / "tables").glob("*.md")) == ["zero_shot.md"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-7, "0.0000001"), (12.0, "12.0"), (3, "3.0"), (1 / 3, "0.3333333333333333"), (1e16, "1" + "0" * 16)],
)
def test_plain_decimal(value, text):
    assert plain_decimal(value) == text


def test_an_unknown_table(make_run, tmp_path):
    with pytest.raises(ConfigError, match="unknown table 'zeroshot'; did you mean 'zero_shot'"):
        aggregate([make_run("run", {"images": []})], tmp_path, tables=["zeroshot"])
