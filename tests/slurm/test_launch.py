"""The command in this process: what runs, what is skipped and why, and how it goes wrong."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from slurm.state import StageFolder, locked
from sohes.records import read_record
from tests.slurm.conftest import HERE, ROOT, TOY, Launch, run_command

STAGES = ("images", "work", "other", "report")


def stamps(run_dir: Path) -> dict[str, str | None]:
    return {stage: StageFolder(run_dir, stage).stamp() for stage in STAGES}


def actions(output: str) -> dict[str, tuple[str, str]]:
    """Action and reason of each stage from the table of a dry run."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    return {row[0]: (row[2], row[3]) for row in rows if row[0]}


def test_runs_writes_everything_and_skips_the_second_time(launch: Launch, run_dir: Path) -> None:
    status, output = launch()
    assert status == 0
    assert "images: gathered 4 with seed 0" in output  # note
    assert "sum" in output  # measurement
    assert "report/tables/  summary.md" in output  # artefact, by folder
    for stage in STAGES:
        names = {path.name for path in (run_dir / stage).iterdir()}
        assert {"config.yaml", "record.json", "done.json", "status.json"} <= names
    record = read_record(run_dir / "work" / "record.json")
    assert (record.run, record.stage, record.recipe, record.scale) == ("run", "work", "toy", "tiny")
    assert record.config["sizes"] == [1, 2]
    assert record.measurements[0].value == 3.5
    assert read_record(run_dir / "report" / "record.json").artefacts == ["tables/summary.md"]
    assert (run_dir / "work" / "config.yaml").read_text().startswith("rate: 0.5\nsizes:\n- 1\n- 2\n")

    before = stamps(run_dir)
    status, output = launch()
    assert status == 0
    assert stamps(run_dir) == before
    assert "0 of 4 stages to run" in output
    assert "kept from before" in output
    assert "images: gathered 4 with seed 0" in output  # a skipped stage's notes are shown as well


def test_settings_name_the_layer_that_set_them(launch: Launch, run_dir: Path) -> None:
    status, output = launch("--settings", "work", "work.fast=true", "work.resources.cpus=3")
    assert status == 0
    assert not run_dir.exists()
    lines = {line.split()[0]: line.split()[1:] for line in output.splitlines()[2:]}
    assert lines["rate"] == ["0.5", "recipe"]
    assert lines["sizes"] == ["[1,", "2]", "default"]
    assert lines["fast"] == ["true", "override"]
    assert lines["resources.cpus"][:2] == ["3", "override"]
    assert lines["resources.hours"] == ["0.5", "recipe", "Time", "limit", "on", "a", "cluster,", "hours."]
    everything = launch("--images", str(run_dir.parent), "seed=4", "--settings")[1]
    assert [stage for stage in STAGES if f"{stage}.KEY=VALUE" in everything] == list(STAGES)
    assert re.search(r"^folder +\S+ +--images", everything, re.MULTILINE)
    assert re.search(r"^seed +4 +seed of the run", everything, re.MULTILINE)
    assert re.search(r"^count +4 +scale tiny", everything, re.MULTILINE)
    assert launch("--settings", "wrok")[0] == 1


def test_reasons(launch: Launch, run_dir: Path) -> None:
    assert actions(launch("--dry-run")[1]) == dict.fromkeys(STAGES, ("run", "never ran"))
    assert not run_dir.exists()
    launch()
    assert actions(launch("--dry-run")[1]) == dict.fromkeys(STAGES, ("skip", "up to date"))
    assert actions(launch("--dry-run", "work.rate=1e-4", "work.fast=true")[1]) == {
        "images": ("skip", "up to date"),
        "work": ("run", "config changed: work.rate 0.5 → 0.0001, work.fast False → True"),
        "other": ("skip", "up to date"),
        "report": ("run", "input work will run"),
    }
    changed = actions(launch("--dry-run", "seed=5")[1])
    assert changed["images"] == ("run", "config changed: images.seed 0 → 5")
    assert changed["report"] == ("run", "input work, other will run")
    (run_dir / "other" / "done.json").unlink()
    assert actions(launch("--dry-run")[1])["other"] == ("run", "interrupted: resumes")


def test_keys_that_cannot_change_results_do_not_make_it_run(launch: Launch, run_dir: Path) -> None:
    launch()
    assert actions(launch("--dry-run", "work.step_s=9")[1]) == dict.fromkeys(STAGES, ("skip", "up to date"))


def test_a_changed_setting_removes_old_results_of_that_stage_only(launch: Launch, run_dir: Path) -> None:
    launch("images.count=6")
    assert (run_dir / "work" / "step_5.txt").exists()
    mine = run_dir / "mine.txt"
    mine.write_text("not a stage's")
    other = stamps(run_dir)["images"]
    launch("images.count=6", "work.limit=2")
    assert stamps(run_dir)["images"] == other
    launch("images.count=2")
    assert not (run_dir / "work" / "step_5.txt").exists()
    assert mine.read_text() == "not a stage's"


def test_outside_files(launch: Launch, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    (photos / "deep" / "a.png").write_text("1")
    launch("--images", str(photos))
    assert actions(launch("--dry-run", "--images", str(photos))[1])["images"] == ("skip", "up to date")
    (photos / "deep" / "a.png").write_text("22")
    _, output = launch("--dry-run", "--images", str(photos), "images.count=5")
    action, why = actions(output.replace("\n│        │             │        │ ", ""))["images"]
    assert action == "run"
    assert why.startswith("config changed: images.count 4 → 5")
    assert "outside input" in output
    status, output = launch("--images", str(tmp_path / "nowhere"))
    assert status == 1
    assert f"stage images: {tmp_path / 'nowhere'} does not exist" in output


def test_an_outside_folder_with_links_that_loop(launch: Launch, tmp_path: Path) -> None:
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    photos.mkdir()
    elsewhere.mkdir()
    for name, target in {"loop": ".", "part": "../elsewhere", "again": "../elsewhere", "gone.png": "nowhere"}.items():
        (photos / name).symlink_to(target)
    (photos / "caf\udce9.png").touch()  # a name that is not UTF-8
    launch("--images", str(photos))
    assert actions(launch("--dry-run", "--images", str(photos))[1])["images"] == ("skip", "up to date")
    (elsewhere / "a.png").touch()
    assert actions(launch("--dry-run", "--images", str(photos))[1])["images"][0] == "run"


def test_outside_file_is_known_by_its_bytes(launch: Launch, tmp_path: Path) -> None:
    truth = tmp_path / "truth.json"
    truth.write_text("one")
    launch("--images", str(truth))
    truth.unlink()
    truth.write_text("one")
    os.utime(truth, (1, 1))  # a fresh clone or copy: same bytes, another time
    assert actions(launch("--dry-run", "--images", str(truth))[1])["images"] == ("skip", "up to date")
    truth.write_text("two")
    assert actions(launch("--dry-run", "--images", str(truth))[1])["images"][0] == "run"


def test_only(launch: Launch, run_dir: Path) -> None:
    status, output = launch("--only", "report")
    assert status == 1
    assert "Run those first: --only images work other" in output
    assert launch("--only", "images", "work")[0] == 0
    assert {stage for stage, stamp in stamps(run_dir).items() if stamp} == {"images", "work"}
    status, output = launch("--only", "work", "work.rate=2")
    assert status == 0
    assert read_record(run_dir / "work" / "record.json").config["rate"] == 2.0
    assert "not in --only (never ran)" in output
    assert "unknown stage 'wrok'; did you mean 'work'" in launch("--only", "wrok")[1]


def test_from_runs_again_what_was_up_to_date(launch: Launch, run_dir: Path) -> None:
    launch()
    (run_dir / "work" / "leftover.txt").write_text("old")
    before = stamps(run_dir)
    assert actions(launch("--dry-run", "--from", "work")[1])["work"] == ("run", "--from work")
    assert launch("--from", "work")[0] == 0
    after = stamps(run_dir)
    assert {stage for stage in STAGES if before[stage] != after[stage]} == {"work", "report"}
    assert not (run_dir / "work" / "leftover.txt").exists()


def test_a_parent_that_ran_again_alone_makes_its_children_run(launch: Launch, run_dir: Path) -> None:
    launch()
    assert launch("--only", "work", "--from", "work")[0] == 0
    assert actions(launch("--dry-run")[1])["report"] == ("run", "input work ran again")


def test_a_missing_input_says_how_to_make_it_again(run_dir: Path, launch: Launch) -> None:
    launch("--only", "images")
    (run_dir / "images" / "numbers.json").unlink()
    status, output = launch("--only", "work")
    assert status == 1
    assert "images/numbers.json is missing; run again with --from images" in output


def test_a_folder_that_is_not_ours_is_left_alone(launch: Launch, run_dir: Path) -> None:
    (run_dir / "work").mkdir(parents=True)
    (run_dir / "work" / "thesis.tex").write_text("precious")
    for arguments in ([], ["--from", "work"], ["--dry-run"]):
        status, output = launch(*arguments)
        assert status == 1
        assert "holds files that no stage wrote" in output
    assert (run_dir / "work" / "thesis.tex").read_text() == "precious"


def test_clearing_does_not_follow_links(launch: Launch, run_dir: Path, tmp_path: Path) -> None:
    launch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("kept")
    (run_dir / "work" / "link").symlink_to(outside)
    launch("--from", "work")
    assert not (run_dir / "work" / "link").exists()
    assert (outside / "kept.txt").read_text() == "kept"


def test_two_launches_at_once(launch: Launch, run_dir: Path) -> None:
    with locked(run_dir / ".lock", "x"):
        status, output = launch()
    assert status == 1
    assert f"run folder {run_dir} is in use by process" in output
    assert launch()[0] == 0


def test_a_damaged_mark_is_named(launch: Launch, run_dir: Path) -> None:
    launch()
    (run_dir / "work" / "done.json").write_text("{")
    status, output = launch()
    assert status == 1
    assert "done.json: not valid JSON" in output


def test_no_wait_needs_a_cluster(launch: Launch) -> None:
    status, output = launch("--no-wait")
    assert status == 1
    assert "--no-wait is for a cluster" in output


def test_dry_run_is_light_and_works_from_anywhere(tmp_path: Path) -> None:
    """From a folder of the user's, whose modules and ours must not be mixed up, and without torch."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, json, sys\n"
        "names = ('torch', 'graph', 'job', 'plan', 'state', 'view', 'settings')\n"
        "atexit.register(lambda: print(json.dumps([n for n in names if n in sys.modules]), file=sys.stderr))\n"
    )
    arguments = [*TOY, "--run-dir", str(tmp_path / "run"), "--dry-run", "--executor", "local"]
    done = run_command(*arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == []
    assert actions(done.stdout) == dict.fromkeys(STAGES, ("run", "never ran"))


@pytest.mark.parametrize("gpus", [1, 2])
def test_the_checkout_comes_before_packages_of_the_same_names(tmp_path: Path, gpus: int) -> None:
    """In the launcher, in a stage, in each of its processes and in what they start."""
    for name in ("results", "slurm", "sohes", "tests"):
        (tmp_path / "others" / name).mkdir(parents=True)
        (tmp_path / "others" / name / "__init__.py").write_text("raise ImportError('not the one of this checkout')\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("stages: {places: {run: 'tests.slurm.toy:places', distributed: true}}\n")
    run_dir = tmp_path / "run"
    arguments = [str(recipe), "--scale", str(HERE / "plain.yaml"), "--run-dir", str(run_dir), "--executor", "local"]
    arguments.append(f"places.resources.gpus={gpus}")
    for more in (["--dry-run"], []):
        done = run_command(*arguments, *more, PYTHONPATH=str(tmp_path / "others"), CUDA_VISIBLE_DEVICES="")
        assert done.returncode == 0, done.stdout + done.stderr
    mine = [str(ROOT / name / "__init__.py") for name in ("results", "slurm")]
    assert read_record(run_dir / "places" / "record.json").notes == mine * 2


def test_an_error_is_one_message(tmp_path: Path) -> None:
    done = run_command(*TOY, "work.rat=1", "--dry-run")
    assert done.returncode == 1
    assert done.stdout == "error: work.rat=1: unknown key of work 'rat'; did you mean 'rate'? Known: " + (
        "fail, fast, limit, name, rate, sizes, step_s\n"
    )
    assert done.stderr == ""
