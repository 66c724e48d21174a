"""A stage for each combination: names and settings, one that fails among others, and job arrays."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from slurm.attempt import job_id
from slurm.graph import Graph, load_graph
from slurm.launch import main
from slurm.plan import make_plan
from slurm.run_slurm import describe_submission, slurm_answers
from slurm.state import StageFolder
from sohes.errors import ConfigError
from sohes.records import read_record
from tests.slurm.conftest import HERE, run_command
from tests.slurm.test_launch import actions
from tests.slurm.test_slurm import cluster, finish  # noqa: F401  # the fixture

SUITE = [str(HERE / "suite.yaml"), "--scale", str(HERE / "plain.yaml")]
CELLS = [f"score-{model}-{dataset}" for model in ("bad", "good", "quick") for dataset in ("one", "two")]
BAD, GOOD, QUICK = CELLS[:2], CELLS[2:4], CELLS[4:]


def load(*overrides: str, scale: str = "plain.yaml") -> Graph:
    return load_graph(str(HERE / "suite.yaml"), str(HERE / scale), overrides=overrides)


def launch(run_dir: Path, capsys: pytest.CaptureFixture[str], *arguments: str, executor: str = "local") -> str:
    """Output of the launcher in this process; nothing runs but with --executor slurm, whose commands are stand-ins."""
    main([*SUITE, "--run-dir", str(run_dir), "--executor", executor, *arguments])
    return capsys.readouterr().out


def test_a_stage_for_each_combination() -> None:
    stages = load().stages
    assert list(stages) == ["images", *CELLS, "report"]
    cell = stages["score-good-two"]
    assert (cell.group, cell.run, cell.parents) == ("score", "tests.slurm.toy:cell", ("images",))
    assert (cell.config.model, cell.config.dataset, cell.config.limit) == ("good", "two", 7)
    assert stages["score-bad-one"].resources.gpus == 1
    assert {stages[name].resources.hours for name in CELLS} == {3.0}
    assert stages["report"].parents == stages["report"].may_fail == tuple(CELLS)


def test_an_override_of_the_matrix_is_one_of_all_cells_that_have_the_field() -> None:
    stages = load("score.limit=3", "score-good-one.limit=5", "score.resources.hours=9").stages
    assert [stages[name].config.limit for name in BAD + GOOD] == [3, 3, 5, 3]
    assert {stages[name].resources.hours for name in CELLS} == {9.0}


def test_scale_may_name_the_matrix_or_a_cell(tmp_path: Path) -> None:
    scale = tmp_path / "scale.yaml"
    scale.write_text("score: {limit: 2, resources: {cpus: 3}}\nscore-bad-two: {limit: 1}\n")
    stages = load(scale=str(scale)).stages
    assert [stages[name].config.limit for name in BAD + GOOD] == [2, 1, 2, 2]
    assert {stages[name].resources.cpus for name in CELLS} == {3}


def test_another_matrix(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {mine: {run: 'tests.slurm.toy:quick', dataset: x}}\n")
    stages = load(f"score.matrix={file}").stages
    assert list(stages) == ["images", "score-mine", "report"]
    assert stages["score-mine"].config.dataset == "x"


def test_an_entry_may_read_from_other_stages(tmp_path: Path) -> None:
    recipe, matrix = tmp_path / "recipe.yaml", tmp_path / "matrix.yaml"
    text = (HERE / "suite.yaml").read_text().replace("after_any: [score]", "after_any: [score, extra]")
    recipe.write_text(text + "  extra: {run: 'tests.slurm.toy:gather'}\n")
    matrix.write_text(
        "model:\n"
        "  plain: {run: 'tests.slurm.toy:cell'}\n"
        "  extra: {run: 'tests.slurm.toy:cell', inputs: {numbers: extra/numbers.json, more: images}}\n"
        "dataset: {one: {}, two: {inputs: {more: extra/two}}}\n"
    )
    stages = load_graph(str(recipe), str(HERE / "plain.yaml")).stages
    assert {name: dict(stage.inputs) for name, stage in stages.items() if stage.group == "score"} == {
        "score-plain-one": {"numbers": "images/numbers.json"},
        "score-plain-two": {"numbers": "images/numbers.json", "more": "extra/two"},
        "score-extra-one": {"numbers": "extra/numbers.json", "more": "images"},
        "score-extra-two": {"numbers": "extra/numbers.json", "more": "extra/two"},
    }
    assert stages["score-plain-one"].parents == ("images",)
    assert stages["score-plain-two"].parents == ("images", "extra")
    assert stages["score-extra-one"].parents == ("extra", "images")
    assert stages["score-extra-two"].parents == ("extra",)


def test_cells_that_wait_otherwise_are_arrays_of_their_own(cluster: Path, tmp_path: Path) -> None:  # noqa: F811
    """One may run though `images` failed, the other reads from it."""
    recipe, matrix = tmp_path / "recipe.yaml", tmp_path / "matrix.yaml"
    recipe.write_text(
        "stages:\n  images: {run: 'tests.slurm.toy:gather'}\n  score: {matrix: matrix.yaml, after_any: [images]}\n"
    )
    matrix.write_text(
        "model: {a: {run: 'tests.slurm.toy:quick', dataset: x}, "
        "b: {run: 'tests.slurm.toy:quick', dataset: x, inputs: {numbers: images}}}\n"
    )
    plan = make_plan(load_graph(str(recipe), str(HERE / "plain.yaml")), tmp_path / "run")
    lines = describe_submission(plan, tmp_path / "run", {})
    conditions = [re.findall(r"--dependency=\S+", line) for line in lines]
    assert conditions == [[], ["--dependency=afterany:<images>"], ["--dependency=afterok:<images>"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs at least one axis"),
        ("model: {}", "every axis at least one entry"),
        ("model: {Bad/one: {run: 'tests.slurm.toy:quick'}}", "small letters"),
        ("model: {a: {dataset: x}}", "'run' must be module:function, given None"),
        ("modl: {a: {run: 'tests.slurm.toy:quick'}}", "unknown key of score-a 'modl'; did you mean 'model'"),
        ("model: {a: {run: 'tests.slurm.toy:quick', limit: 1}}", "unknown key of score-a 'limit'"),
        ("model: {a: {run: 'tests.slurm.toy:quick'}}", "score-a: .*'dataset'"),
        ("model: {a: 3}", "expected a mapping"),
        (
            "model: {a: {run: 'tests.slurm.toy:quick', inputs: images}}",
            r"mine\.yaml, model\.a\.inputs: expected a mapping",
        ),
        ("model: {a: {run: 'tests.slurm.toy:quick', inputs: {x: 3}}}", r"mine\.yaml, a: 'inputs' holds paths"),
        (
            "model: {a: {run: 'tests.slurm.toy:cell', dataset: x, inputs: {more: imags/x}}}",
            r"mine\.yaml, model\.a: unknown stage 'imags'; did you mean 'images'",
        ),
    ],
)
def test_refused_matrices(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(f"score.matrix={file}")


def test_refused_overrides() -> None:
    with pytest.raises(ConfigError, match="did you mean 'limit'"):
        load("score.limt=3")
    with pytest.raises(ConfigError, match="unknown stage 'scor'; did you mean 'score'"):
        load("scor.matrix=x.yaml")
    with pytest.raises(ConfigError, match="unknown key of images 'matrix'"):
        load("images.matrix=x.yaml")
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read"):
        load("score.matrix=gone.yaml")


def test_only_and_from_take_the_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = actions(launch(tmp_path / "run", capsys, "--dry-run", "--only", "images", "score"))
    assert [name for name, (action, _) in shown.items() if action == "run"] == ["images", *CELLS]
    shown = actions(launch(tmp_path / "run", capsys, "--dry-run", "--from", "score"))
    assert {why for name, (_, why) in shown.items() if name != "images"} == {"--from score"}


def test_a_cell_that_fails_stops_no_other(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = [*SUITE, "--run-dir", str(run_dir), "--executor", "local"]
    done = run_command(*arguments)
    assert done.returncode == 1
    for name in BAD:
        assert f"stage {name} failed after 0 s: numbers.json: number 1 is odd" in done.stdout
    assert "resumes from score-bad-one and 1 more" in done.stdout
    assert read_record(run_dir / "report" / "record.json").artefacts == ["tables/summary.md"]
    table = (run_dir / "report" / "tables" / "summary.md").read_text()
    assert all((name in table) == (name not in BAD) for name in CELLS)

    dry = actions(run_command(*arguments, "--dry-run").stdout)
    assert [name for name, (action, _) in dry.items() if action == "run"] == [*BAD, "report"]
    assert dry[BAD[0]][1] == "failed before: resumes"
    only = run_command(*arguments, "--only", "report")  # the failed cells need not run before
    assert only.returncode == 0, only.stdout

    done = run_command(*arguments, "score.fail=")  # a key that cannot change results: the cells resume
    assert done.returncode == 0, done.stdout
    assert "3 of 8 stages to run" in done.stdout
    assert all(name in (run_dir / "report" / "tables" / "summary.md").read_text() for name in CELLS)
    assert (run_dir / BAD[0] / "attempts.txt").read_text().count("\n") == 2  # the first step was not done again


def test_a_failure_takes_along_what_needs_it(tmp_path: Path) -> None:
    """`after` is not `after_any`."""
    recipe = tmp_path / "recipe.yaml"
    text = (HERE / "suite.yaml").read_text().replace("after_any:", "after:")
    recipe.write_text(text.replace("matrix.yaml", str(HERE / "matrix.yaml")))
    run_dir = tmp_path / "run"
    arguments = ["--scale", str(HERE / "plain.yaml"), "--run-dir", str(run_dir), "--executor", "local"]
    done = run_command(str(recipe), *arguments)
    assert done.returncode == 1
    assert "report: cancelled" in done.stdout
    assert not (run_dir / "report").exists()
    assert StageFolder(run_dir, QUICK[1]).done() is not None


def test_cells_that_ask_for_the_same_are_one_array(
    cluster: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"
    output = launch(run_dir, capsys, "--dry-run", executor="slurm")
    described = [line for line in output.splitlines() if line.startswith("sbatch")]
    assert [line.partition("--array=")[2].partition(" ")[0] for line in described] == ["", "0-1%2", "0-3%4", ""]
    assert "--dependency=afterany:<score-bad-one>:<score-bad-two>:" in described[3]

    file = tmp_path / "cluster.yaml"
    file.write_text("array_parallelism: 3\n")
    output = launch(run_dir, capsys, "--no-wait", "--cluster", str(file), executor="slurm")
    assert "score-good-two: SLURM job 102_1" in output
    scripts = [(cluster / f"{number}.script").read_text() for number in range(4)]
    assert "#SBATCH --array=0-1%2\n" in scripts[1]
    assert "#SBATCH --array=0-3%3\n" in scripts[2]
    assert "#SBATCH --gpus-per-node=1\n" in scripts[1]
    assert all("#SBATCH --job-name=run.score\n" in script for script in scripts[1:3])
    assert "#SBATCH --dependency=afterok:100\n" in scripts[2]
    assert "#SBATCH --dependency=afterany:101_0:101_1:102_0:102_1:102_2:102_3\n" in scripts[3]
    assert len(list((run_dir / ".submitit").glob("102_*submitted.pkl"))) == 4


def test_waiting_for_arrays(
    cluster: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failed cell neither cancels its neighbours nor hides one that vanished; the report runs all the same."""
    monkeypatch.setattr("slurm.run_slurm._LOST_AFTER_S", 0.3)
    run_dir = tmp_path / "run"
    ids = {"images": "100", **dict(zip(BAD, ("101_0", "101_1"), strict=True)), "report": "103"}
    ids |= {name: f"102_{index}" for index, name in enumerate(GOOD + QUICK)}
    for name, number in ids.items():
        if name != QUICK[1]:  # never says a word
            finish(run_dir, name, number, "failed" if name in BAD else "finished")
    for name in BAD:
        StageFolder(run_dir, name).write_error(ValueError("too odd"), "too odd", expected=True)
    output = launch(run_dir, capsys, executor="slurm")
    assert f"stage {BAD[1]} failed after 3 s: too odd" in output
    assert f"stage {QUICK[1]} was killed" in output
    assert f"{QUICK[0]}: finished" in output
    assert "report: finished" in output
    assert "cancelled" not in output


def test_a_cell_of_an_array_knows_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "205")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "200")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")
    assert job_id() == "200_5"
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    assert job_id() == "205"
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "77")
    assert job_id() == "77"


@pytest.mark.parametrize("scale", ["demo", "small", "paper"])
def test_the_suite_resolves_at_every_scale(scale: str) -> None:
    graph = load_graph("zero_shot_suite", scale)
    tables = graph.stages["tables"]
    assert len(tables.may_fail) == len(graph.stages) - 1 > 50
    assert {graph.stages[name].config.max_images for name in tables.may_fail} == {
        {"demo": 10, "small": 1000, "paper": None}[scale]
    }


@pytest.mark.parametrize("scale", ["demo", "small", "paper"])
def test_part_naming_resolves_at_every_scale(scale: str) -> None:
    stages = load_graph("part_naming", scale).stages
    cells = {name.removeprefix("name-"): stages[name].config for name in stages["tables"].may_fail}
    assert {"cast", "sam_vit_b", "sam_vit_h", "vit_kmeans", "sohes_labels"} < set(cells)
    assert {config.method for config in cells.values()} == set(cells)
    assert {config.dataset for config in cells.values()} == {"partimagenet_hierarchy"}
    assert {config.max_images for config in cells.values()} == {{"demo": 10, "small": 300, "paper": None}[scale]}
    levels = {name for name, config in cells.items() if config.read_out == "levels"}
    assert levels == {"cast", "vit_kmeans"}  # the rest has none
    # a baseline is its own segmenter
    assert {name for name, config in cells.items() if hasattr(config, "segmenter")} == {"cast", "sohes"}


@pytest.mark.slurm
@pytest.mark.skipif(not slurm_answers(), reason="no SLURM answers here (`sinfo` fails)")
def test_arrays_on_a_real_cluster(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    no_gpu = [f"{name}.resources.gpus=0" for name in BAD]
    arguments = [*SUITE, "--run-dir", str(run_dir), "--executor", "slurm", *no_gpu]
    done = run_command(*arguments)
    assert done.returncode == 1
    assert "report: finished" in done.stdout
    status = StageFolder(run_dir, QUICK[1]).status()
    assert status is not None
    assert status.job_id.endswith("_5")
    assert run_command(*arguments, "score.fail=").returncode == 0
