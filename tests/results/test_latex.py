"""LaTeX: escapes, and that pdflatex sets every table in four styles without an error, within its width and page."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from results.aggregate import TABLES
from results.latex import _wrapped, escape_latex, to_latex
from results.published import published_rows
from results.runs import read_runs
from results.tables.phases import phases
from sohes.files import write_text
from tests.results.conftest import HEAD_STAGES, head_measurements, measurement, phase_measurements, write_run
from tests.results.test_tables import build

STYLES = {
    "article": r"\documentclass{article}",
    "article in two columns": r"\documentclass[twocolumn]{article}",
    # 5.5 in of text, as NeurIPS
    "one wide column": r"\documentclass{article}\usepackage[letterpaper,textwidth=5.5in,textheight=9in]{geometry}",
    # two columns of 3.25 in, as CVPR
    "two columns": r"\documentclass[twocolumn,letterpaper]{article}"
    r"\usepackage[textwidth=6.875in,textheight=8.875in,columnsep=0.375in]{geometry}",
}
ODD = "a_b/Some_Very-Long.Name&With%Everything#In{It}~^\\<|>$ [1] 日本 naïve µ² “q” Supercalifragilisticexpialidocious"


@pytest.fixture(scope="module")
def tables(full_run, tmp_path_factory) -> list[Path]:
    """The tables of a run of everything, of runs with odd names, and of many runs."""
    folder = tmp_path_factory.mktemp("latex")
    stages = {"images": [], "evaluate": phase_measurements()}
    stages |= {stage: head_measurements(stage) for stage in HEAD_STAGES}
    stages["hierarchy"] = [
        measurement("SOHES phase 3", metric, 50.0)
        for metric in ("relation_precision", "relation_f1", "coverage_relation_f1", "coverage_parent_accuracy")
    ]
    stages["public"] = [
        measurement("ours", "mask_ar_1000", 33.3, dataset=name, split="", n_images=count)
        for name, count in (("coco", 5000), ("ade20k", 2000), ("paco", 2410))
    ]
    stages["suite"] = [
        measurement("ours", "mask_ar_1000", 33.3, dataset=f"a data set of some name {index}") for index in range(12)
    ]
    stages["probes"] = [
        measurement(f"probe {index}, K = 500", "miou_dataset", 33.3, arm=arm, trained_by=arm, protocol="probe_x")
        for index in range(8)
        for arm in ("start", "trained")
    ]
    seeds = [write_run(folder / f"seed-{seed}", stages, seed=seed, scale="paper") for seed in range(3)]
    odd = {"evaluate": [replace(row, method=f"{ODD} {row.arm}", init=ODD, dataset=ODD) for row in phase_measurements()]}
    odd |= {"mmseg_start": [replace(row, method=ODD, init=ODD) for row in head_measurements("mmseg_start")]}
    strange = [write_run(folder / f"odd_{index}&%", odd, lr=float(index)) for index in range(2)]
    many = [write_run(folder / f"many-{index}", {"evaluate": phase_measurements()}, lr=index) for index in range(60)]
    found = []
    for name, runs in (("seeds", seeds), ("odd", strange), ("many", many), ("full", [full_run])):
        measured = read_runs(runs)
        for table in TABLES:
            found.append(folder / name / f"{table}.tex")
            write_text(found[-1], to_latex(TABLES[table](measured, published_rows())))
    return found


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("style", STYLES)
def test_pdflatex_sets_every_table(tables, tmp_path, style):
    """No error, nothing beyond the text or the page, no letter below 7 pt."""
    inputs = "\n".join(rf"\input{{{path.relative_to(tables[0].parents[1])}}}\clearpage" for path in tables)
    text = rf"{STYLES[style]}\usepackage{{booktabs}}\usepackage{{tabularx}}\begin{{document}}{inputs}\end{{document}}"
    (tmp_path / "page.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", f"-output-directory={tmp_path}", str(tmp_path / "page.tex")]
    subprocess.run(command, cwd=tables[0].parents[1], capture_output=True, timeout=300, check=False)
    log = (tmp_path / "page.log").read_text(encoding="latin-1")
    assert "Output written on" in log
    assert not re.findall(r"^!.*", log, re.MULTILINE)
    assert not re.findall(r"^Overfull.*", log, re.MULTILINE)
    assert "Float too large" not in log
    sizes = {int(size) for size in re.findall(r"/cm/cm[a-z]+(\d+)\.pfb", log)}
    assert sizes
    assert min(sizes) >= 7


def test_verdicts_stand_nowhere_in_latex_and_cites_do(tables):
    text = "\n".join(path.read_text(encoding="utf-8") for path in tables)
    assert not re.search(r"verdict|LOSES|\bgains\b|climb|interval", text)
    assert r"SAM \cite{wang2024unsam}" in text
    assert r"\textbf{" in text
    assert r"\underline{" in text
    assert r"\resizebox" not in text


def test_cited_and_measured_lines_are_separated_by_a_rule(tables):
    text = next(path for path in tables if path.name == "zero_shot.tex" and "seeds" in path.parts).read_text()
    first = text.split(r"\end{table*}")[0]
    _, cited, measured = first.split(r"\midrule")
    assert cited.count(r"\cite{") == cited.count("\\\\\n") == 10
    assert "ours" in measured
    assert r"\cite" not in measured


def test_latex_is_balanced(tables):
    for path in tables:
        text = path.read_text(encoding="utf-8")
        bare = re.sub(r"\\[\\{}]", "", text)
        assert bare.count("{") == bare.count("}")
        for kind in ("table*", "tabularx"):
            assert text.count(rf"\begin{{{kind}}}") == text.count(rf"\end{{{kind}}}")


def test_what_a_page_has_no_room_for_is_said(tables):
    text = next(path for path in tables if path.name == "phases.tex" and "many" in path.parts).read_text()
    shown = text.count(r"\textdagger{}demo \textperiodcentered{} many")
    assert 0 < shown < 180
    assert f"{180 - shown} more lines are in the CSV file." in text


def test_escapes():
    assert escape_latex("50% of A_b & {c} #1 ~ ^ \\ $ † · →") == (
        r"50\% of A\_b \& \{c\} \#1 \textasciitilde{} \textasciicircum{} \textbackslash{} \$ \textdagger{} "
        r"\textperiodcentered{} $\rightarrow$"
    )
    assert escape_latex("naïve 日") == "naïve ?"
    assert escape_latex("vit_small_patch14_dinov2").replace(r"\allowbreak{}", "") == r"vit\_small\_patch14\_dinov2"
    assert r"\allowbreak{}" in escape_latex("vit_small_patch14_dinov2")


@pytest.mark.parametrize(
    ("title", "lines"),
    [
        ("PartImageNet", ["Part", "ImageNet"]),
        ("mean of 7", ["mean of", "7"]),
        ("AR@1000", ["AR@1000"]),
        ("SA-1B", ["SA-1B"]),
        ("relation precision", ["relation", "precision"]),
        ("Δ mIoU", ["Δ mIoU"]),
    ],
)
def test_titles_wrap(title, lines):
    assert _wrapped(title) == lines


def test_a_table_without_blocks(make_run):
    assert r"\begin" not in to_latex(build(phases, make_run("r", {"images": []})))
