"""Run a recipe: `python slurm/launch.py sohes_full` runs every stage that is not up to date, here or on a cluster."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent
# The checkout comes first on the path, for others have packages called slurm or results as well; a script's own folder,
# which is there by default, must not be: its modules are to be found as slurm.NAME only.
sys.path[:] = [str(_ROOT), *(path for path in sys.path if Path(path or ".").resolve() not in (_ROOT, _HERE))]

try:
    from rich.console import Console
    from rich.markup import escape

    from slurm import run_local, run_slurm
    from slurm.attempt import Launcher
    from slurm.client import outside_allocation
    from slurm.graph import FLAGS, Graph, load_graph
    from slurm.job import Job, make_job
    from slurm.plan import Planned, make_plan
    from slurm.state import StageFolder, disk_is_full, locked, no_space_message
    from slurm.view import Board, make_console, short, show_plan, show_settings, show_summary
    from sohes.errors import ConfigError, SohesError
    from sohes.help import help_page
except ModuleNotFoundError as error:
    if error.name not in ("submitit", "rich", "yaml", "pydantic"):
        raise
    sys.exit(
        f"{sys.executable} has no '{error.name}'. Run `make install` and use .venv/bin/python, or install what this "
        f'checkout needs: pip install -e "{_ROOT}[slurm]"'
    )

_EXIT_FAILED, _EXIT_INTERRUPTED = 1, 130


class StageFailed(SohesError):
    """Stages failed; the message holds what each said, where its log is, and how to resume."""

    def __init__(self, failed: Mapping[str, str]) -> None:
        first, *others = failed
        more = f" and {len(others)} more" if others else ""
        how = f"What was finished is kept: mend this and run the same command again; it resumes from {first}{more}."
        super().__init__("\n\n".join(failed.values()) + f"\n{how}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 0, 1 after an error that the user can mend, 130 when interrupted."""
    console = make_console()
    options = _parse(arguments)
    try:
        with outside_allocation():
            return _launch(options, console)
    except SohesError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return _EXIT_FAILED
    except OSError as error:
        if not disk_is_full(error):
            raise
        console.print(f"[bold red]error:[/] {escape(no_space_message(_run_dir(options)))}", soft_wrap=True)
        return _EXIT_FAILED
    except KeyboardInterrupt:
        again = "the same command" + (" without --from" if options.start else "")
        console.print(f"\ninterrupted; run {again} again to resume", soft_wrap=True)
        return _EXIT_INTERRUPTED


def make_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="launch.py",
        allow_abbrev=False,  # --set would be taken for --settings
        **help_page(
            "python slurm/launch.py sohes_full instruct.iterations=50 --dry-run",
            "Run every stage of a recipe that is not up to date. A key is STAGE.FIELD, STAGE.resources.FIELD, "
            "STAGE.preset, STAGE.matrix or seed; --settings lists them.",
        ),
    )
    parser.add_argument("recipe", help="name of a recipe in slurm/recipes, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the recipe's")
    parser.add_argument("--scale", default="demo", help="demo, small or paper, or a YAML file (default: demo)")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="default: runs/RECIPE-SCALE in the current folder")
    parser.add_argument("--executor", default="auto", choices=("auto", "local", "slurm", "debug"), help="where to run")
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="YAML file with partition, account, qos, ...")
    parser.add_argument("--no-wait", action="store_true", help="on a cluster, return once everything is submitted")
    parser.add_argument("--dry-run", action="store_true", help="show what would run and why, and run nothing")
    parser.add_argument(
        "--settings", nargs="?", const="", metavar="STAGE", help="list all settings, or a stage's, and run nothing"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="run no other stages than these")
    parser.add_argument("--from", dest="start", metavar="STAGE", help="run this stage and all after it from scratch")
    parser.add_argument("--images", metavar="DIR", help="folder of images, in place of generated scenes")
    parser.add_argument("--ground-truth", metavar="FILE", help="COCO annotations of those images")
    parser.add_argument("--weights", metavar="FILE_OR_NAME", help="start weights: a file or a timm name")
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = make_parser().parse_intermixed_args(arguments)
    # --only takes every word that follows, so overrides written after it land there
    options.overrides += [word for word in options.only if "=" in word]
    options.only = [word for word in options.only if "=" not in word]
    if "=" in (options.settings or ""):
        options.overrides, options.settings = [*options.overrides, options.settings], ""
    return options


def _launch(options: argparse.Namespace, console: Console) -> int:
    graph = load_graph(options.recipe, options.scale, flags=_flags(options), overrides=options.overrides)
    if options.settings is not None:
        names = graph.members(options.settings, "--settings") if options.settings else graph.stages
        show_settings(console, [graph.stages[name] for name in names])
        return 0
    run_dir = _run_dir(options)
    cluster = run_slurm.read_cluster(options.cluster)
    executor = options.executor
    if executor == "auto":
        executor = "slurm" if run_slurm.slurm_answers() else "local"
    if options.no_wait and executor != "slurm":
        raise ConfigError("--no-wait is for a cluster; here the launcher itself runs the stages")
    run_slurm.check_folder(run_dir, executor)
    if options.dry_run:
        plan = make_plan(graph, run_dir, only=options.only, start=options.start)
        return _show_dry_run(console, plan, run_dir, executor, cluster)
    if executor == "slurm" and not run_slurm.slurm_answers():
        raise SohesError("SLURM does not answer here (`sinfo` fails); use --executor local, or log in to the cluster")
    with locked(run_dir / ".lock", f"run folder {run_dir}"):
        plan = make_plan(graph, run_dir, only=options.only, start=options.start)
        _clear_forced(plan, run_dir)
        return _execute(graph, plan, run_dir, executor, cluster, console, wait=not options.no_wait)


def _execute(
    graph: Graph,
    plan: Mapping[str, Planned],
    run_dir: Path,
    executor: str,
    cluster: Mapping[str, Any],
    console: Console,
    *,
    wait: bool,
) -> int:
    jobs = _jobs(graph, plan, run_dir, executor)
    console.print(f"{len(jobs)} of {len(plan)} stages to run ({executor}) in {escape(short(run_dir))}", soft_wrap=True)
    if executor == "slurm":
        ids = run_slurm.submit(plan, jobs, run_dir, cluster)
        for name, number in ids.items():
            console.print(f"{name}: SLURM job {number}")
        if not wait:
            return 0
        try:
            with Board(console, plan) as board:
                failed = run_slurm.wait(plan, ids, run_dir, board)
        except KeyboardInterrupt:
            numbers = " ".join(ids.values())
            console.print(f"\nThe jobs keep running; the same command shows them again. To stop: scancel {numbers}")
            return _EXIT_INTERRUPTED
    else:
        run_slurm.check_idle(run_dir, dict.fromkeys(jobs, ""), "cannot run here")
        if executor == "debug":
            logging.basicConfig(level=logging.INFO)
            for job in jobs.values():
                job()
            failed = {}
        else:
            with Board(console, plan) as board:
                failed = run_local.run_local(plan, jobs, run_dir, board)
    show_summary(console, plan, run_dir, failed)
    if failed:
        raise StageFailed(failed)
    return 0


def _jobs(graph: Graph, plan: Mapping[str, Planned], run_dir: Path, executor: str) -> dict[str, Job]:
    launcher = None
    if executor == "local":
        launcher = Launcher(pid=os.getpid(), visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"))
    return {
        name: make_job(planned, graph, run_dir, launcher=launcher, captures=executor != "debug")
        for name, planned in plan.items()
        if planned.runs
    }


def _clear_forced(plan: Mapping[str, Planned], run_dir: Path) -> None:
    forced = [name for name, planned in plan.items() if planned.forced]
    run_slurm.check_idle(run_dir, dict.fromkeys(forced, ""), "--from")
    for name in forced:
        StageFolder(run_dir, name).clear()


def _show_dry_run(
    console: Console, plan: Mapping[str, Planned], run_dir: Path, executor: str, cluster: Mapping[str, Any]
) -> int:
    running = sum(planned.runs for planned in plan.values())
    console.print(f"{running} of {len(plan)} stages would run ({executor}) in {escape(short(run_dir))}", soft_wrap=True)
    show_plan(console, plan)
    if executor == "slurm":
        for line in run_slurm.describe_submission(plan, run_dir, cluster):
            console.print(escape(line), soft_wrap=True)
    return 0


def _flags(options: argparse.Namespace) -> dict[str, str]:
    """The flags given; paths absolute, so that they mean the same wherever a stage runs."""
    given = {flag: getattr(options, flag) for flag in FLAGS if getattr(options, flag) is not None}
    if "weights" in given and not Path(given["weights"]).expanduser().exists():
        return {**{flag: _absolute(value) for flag, value in given.items()}, "weights": given["weights"]}  # a timm name
    return {flag: _absolute(value) for flag, value in given.items()}


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _run_dir(options: argparse.Namespace) -> Path:
    named = options.run_dir or Path("runs") / f"{Path(options.recipe).stem}-{Path(options.scale).stem}"
    return Path(_absolute(str(named)))


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup has set it so
            signal.signal(number, _as_interrupt)
    sys.exit(main())
