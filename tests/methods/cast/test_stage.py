"""From images to a backbone folder: what the stage leaves, learns and refuses, and that it resumes to the bit."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file

from sohes.backbones.timm_folder import load_backbone_folder
from sohes.engine.hooks import SeedHook
from sohes.errors import ConfigError, DataError, SohesError
from sohes.files import read_json, write_json
from sohes.methods.cast.objectives import collapse_notes
from sohes.methods.cast.settings import CastConfig
from sohes.methods.cast.stage import cast
from tests.engine.toy import assert_equal, curves, end, fail, interrupt, stop_at
from tests.methods.cast.tiny import TINY, run


def test_what_it_leaves(start: Path, undisturbed: Path) -> None:
    model = timm.create_model(f"local-dir:{undisturbed / 'backbone'}", pretrained=True)
    trained, before = load_backbone_folder(undisturbed / "backbone"), load_backbone_folder(start / "backbone")
    assert model.state_dict().keys() == trained.model.state_dict().keys() == before.model.state_dict().keys()
    assert not torch.equal(trained.model.pos_embed, before.model.pos_embed)
    assert torch.equal(model.pos_embed, trained.model.pos_embed)
    assert trained.provenance.label == "MoCo-v3 from random weights"
    step = trained.provenance.steps[-1]
    assert (step.images, step.supervision, step.data) == (10, "none", "generated scenes")
    query = {k.removeprefix("query."): v for k, v in end(undisturbed)["model"].items() if k.startswith("query.")}
    assert torch.equal(query["encoder.pos_embed"], trained.model.pos_embed)  # not the key encoder's
    assert int(query["projector.1.num_batches_tracked"]) == 2 * 6  # each step sees two views
    head = load_file(undisturbed / "head.safetensors")
    assert torch.equal(head["projector.0.weight"], query["projector.0.weight"])
    assert head["predictor.3.weight"].shape == (16, 32)


def test_settings_without_effect_are_said(start: Path, tmp_path: Path) -> None:
    """A ViT takes no superpixels."""
    found = cast(
        CastConfig(**TINY | {"iterations": 1}), {name: start / name for name in ("backbone", "images")}, tmp_path
    )
    said = "superpixels=grid, superpixel_px=8: no effect, since vit_tiny_patch16_224 takes no superpixels"
    assert said in found.notes


def test_history(undisturbed: Path) -> None:
    history = pd.read_csv(undisturbed / "history.csv")
    assert history["step"].tolist() == list(range(6))
    assert history.notna().all(axis=None)
    assert history["lr"].iloc[0] == pytest.approx(1e-3)
    assert history[["accuracy", "feature_std"]].stack().between(0, 1).all()


def test_all_parameters_decay(undisturbed: Path) -> None:
    (group,) = end(undisturbed)["optimizer"]["param_groups"]
    names = [name for name in end(undisturbed)["model"] if not name.startswith("key.") and "running" not in name]
    learning = [name for name in names if not name.endswith("num_batches_tracked")]
    assert len(group["params"]) == len(learning)
    assert (group["weight_decay"], group["initial_lr"]) == (0.1, 1e-3)


@pytest.mark.slow
def test_loss_falls(start: Path, tmp_path: Path) -> None:
    out = run(start, tmp_path, iterations=120, batch_size=8, checkpoint_every=200)
    history = pd.read_csv(out / "history.csv")
    assert history["loss"].tail(20).mean() < 0.9 * history["loss"].head(20).mean()


def test_interrupted(undisturbed: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(2, interrupt))
        with pytest.raises(KeyboardInterrupt, match="stopped after step 3"):
            run(start, tmp_path)
    assert not (tmp_path / "backbone").exists()
    with pytest.raises(SohesError, match=r"checkpoint-000003.pth: was written by another configuration"):
        run(start, tmp_path, temperature=0.3)
    assert_same_end(run(start, tmp_path), undisturbed)


def test_failed_between_checkpoints(
    undisturbed: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers change nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(5, fail))
        with pytest.raises(OSError, match="went away"):
            run(start, tmp_path)
    assert end(tmp_path)["step"] == 4
    assert_same_end(run(start, tmp_path, workers=1, checkpoint_every=100), undisturbed)


def assert_same_end(out: Path, expected: Path) -> None:
    """Weights, checkpoint and history are equal to the bit."""
    for name in ("backbone/model.safetensors", "backbone/provenance.json", "head.safetensors"):
        assert (out / name).read_bytes() == (expected / name).read_bytes()
    assert_equal(end(out), end(expected))
    assert curves(out) == curves(expected)


def test_a_view_that_the_patch_does_not_divide(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="view_px=36 is not a multiple of the backbone's 8 px patches; try 32"):
        run(start, tmp_path, view_px=36)


def test_no_image(start: Path, tmp_path: Path) -> None:
    (tmp_path / "backbone").symlink_to(start / "backbone")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "source.json").symlink_to(start / "images" / "source.json")
    write_json(
        tmp_path / "images" / "train.json",
        read_json(start / "images" / "train.json") | {"images": [], "annotations": []},
    )
    with pytest.raises(DataError, match=r"train\.json: holds no image"):
        run(tmp_path, tmp_path / "out")


def test_collapse_is_said(tmp_path: Path) -> None:
    file = tmp_path / "history.csv"
    file.write_text("step,loss,accuracy,feature_std\n0,5,0.9,0.5\n1,4,0.3,0.01\n")
    shares, *warnings = collapse_notes(file, keys=4)
    assert shares.startswith(
        "over the last 1 steps: loss 4.000; 30 % of the queries are nearest to their own of 4 keys"
    )
    assert ["hardly find" in warnings[0], "nearly alike" in warnings[1]] == [True, True]
    file.write_text("step,loss,accuracy,feature_std\n0,5,0.4,0.5\n")
    assert len(collapse_notes(file, keys=4)) == 1
