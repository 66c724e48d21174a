"""`sohes probe`: what the frozen features of a backbone know of labelled classes."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sohes.help import help_page
from sohes.probes.registry import probe_names

if TYPE_CHECKING:
    from sohes.probes.settings import ProbeConfig
    from sohes.records import StageResult

_SCALE = "probe"  # marks rows from here in tables, as `evaluate` does


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "probe",
        help="judge a frozen backbone by classes of labelled images, in minutes",
        **help_page(
            "sohes probe runs/mine/export/backbone --data voc/ --probe linear --out probe/",
            "Features are extracted once and kept in $SOHES_CACHE/features (else ~/.cache/sohes/features), so a second "
            "probe of the same backbone begins at once.",
        ),
    )
    parser.add_argument("backbone", metavar="BACKBONE", help="timm folder, weights file, timm name, or random:NAME")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="folder with images/ and masks/ (PNG, 255 = ignore), or with train.json and val.json; a COCO file with "
        "categories; or a prepared set; for image_linear and image_knn also one with train/CLASS/ and val/CLASS/",
    )
    parser.add_argument(
        "--probe", default="linear", metavar="NAME", help=f"{', '.join(probe_names())} (default linear)"
    )
    parser.add_argument("--start", metavar="BACKBONE", help="the backbone it is compared with, image by image")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="repetitions of a probe with a seed (default 3; cluster 5)"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings of the probe that differ"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for record, table and pictures")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Probe, print a table, and leave record and pictures."""
    config = _config(options)
    from rich.console import Console

    from sohes.probes.stage import probe

    started = datetime.now(UTC)
    inputs = {"backbone": options.backbone, "data": options.data}
    if options.start is not None:
        inputs["start"] = options.start
    result = probe(config, {name: Path(value) for name, value in inputs.items()}, options.out)
    _print(result, Console())
    print(_write_record(options, config, result, started), file=sys.stderr)
    return 0


def _config(options: argparse.Namespace) -> ProbeConfig:
    """Settings from the command line.

    Raises:
        ConfigError: an unknown key, or a value that does not fit.
    """
    from sohes.configuration import Settings
    from sohes.errors import ConfigError
    from sohes.probes.settings import ProbeConfig

    settings = Settings(ProbeConfig, "probe")
    settings.update({"probe": options.probe}, "--probe")
    if options.seeds is not None:
        settings.update({"seeds": options.seeds}, "--seeds")
    for pair in options.set:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: write it as key=value")
        settings.update_text(key, value, f"--set {pair}")
    built: ProbeConfig = settings.build()
    return built


def _print(result: StageResult, console: Any) -> None:
    from sohes.settings_table import print_table

    rows = [
        (
            *(row.method, " ".join(filter(None, (row.arm, row.init))), row.metric),
            f"{row.value:.2f}" + ("" if row.sd is None else f" ± {row.sd:.2f}"),
            row.protocol,
        )
        for row in result.measurements
    ]
    print_table("Frozen probe", ("method", "backbone", "metric", "%", "protocol"), rows, console)
    for note in result.notes:
        print(note)


def _write_record(options: argparse.Namespace, config: ProbeConfig, result: StageResult, started: datetime) -> Path:
    from sohes.records import Record, commit, config_hash, hardware, versions, write_record

    out = options.out.absolute()
    record = Record(
        run=out.parent.name,
        stage=out.name,
        recipe="sohes probe",
        scale=_SCALE,
        seed=0,
        config=asdict(config) | {"backbone": options.backbone, "start": options.start, "data": options.data},
        config_hash=config_hash(config),
        commit=commit(),
        versions=versions(),
        hardware=hardware(),
        started=started.isoformat(timespec="seconds"),
        seconds=round((datetime.now(UTC) - started).total_seconds(), 3),
        measurements=result.measurements,
        notes=result.notes,
        artefacts=[path.name for path in result.artefacts],
    )
    return write_record(out, record)
