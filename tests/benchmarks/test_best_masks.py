"""What to run for the best masks: every row is there, once, and says how it was made."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import best_masks
from sohes.backbones.timm_vit import load_backbone
from sohes.data.scenes.scene import write_scenes
from sohes.segmenters.entity import save_segmenter
from tests.segmenters.tiny import PROVENANCE, tiny_segmenter


def test_a_row_for_each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    write_scenes(tmp_path / "scenes", train=1, val=2, size=64, seed=0)
    folder = save_segmenter(tmp_path / "segmenter", tiny_segmenter("eomt"), PROVENANCE)
    monkeypatch.setattr(best_masks, "load_backbone", lambda name: load_backbone("random:test_vit"))
    out = tmp_path / "found"
    arguments = ["--checkpoint", str(folder), "--ground-truth", str(tmp_path / "scenes" / "val.json")]
    monkeypatch.setattr(sys, "argv", ["", *arguments, "--out", str(out), "--cache", str(tmp_path / "cache")])
    best_masks.main()
    written = out.with_suffix(".csv").read_bytes()
    table = pd.read_csv(out.with_suffix(".csv"))
    assert table["run"].tolist() == list(best_masks.ROWS)
    assert (table["images"] == 2).all()
    assert table["checkpoint"].nunique() == 1
    assert (table["seconds"] > 0).all()
    for column in ("ar_10", "ar_100", "ar_200", "ar_1000", "ar_1000_s", "ar_1000_m"):
        assert table[column].between(0, 100).all()
    assert table.set_index("run").loc["segment (no checkpoint)", "ar_1000"] > 0
    best_masks.main()
    assert out.with_suffix(".csv").read_bytes() == written
