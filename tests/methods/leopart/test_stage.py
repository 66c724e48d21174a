"""From images to a backbone folder: what the stage leaves, learns and refuses, and that it resumes to the bit."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file

from sohes.backbones.timm_folder import load_backbone_folder, save_backbone_folder
from sohes.backbones.weights import resolve_weights
from sohes.data.listing import Listing
from sohes.engine.hooks import SeedHook
from sohes.errors import ConfigError, SohesError, WeightsError
from sohes.methods.leopart.make import make_segmenter
from sohes.methods.leopart.segment_settings import SegmentSettings
from sohes.methods.leopart.stage import LeopartConfig, collapse_notes, leopart
from tests.engine.toy import assert_equal, curves, end, fail, interrupt, stop_at
from tests.methods.leopart.tiny import TINY, run


def test_what_it_leaves(start: Path, undisturbed: Path) -> None:
    model = timm.create_model(f"local-dir:{undisturbed / 'backbone'}", pretrained=True)
    trained, before = load_backbone_folder(undisturbed / "backbone"), load_backbone_folder(start / "backbone")
    assert model.state_dict().keys() == trained.model.state_dict().keys() == before.model.state_dict().keys()
    assert not torch.equal(trained.model.pos_embed, before.model.pos_embed)
    assert torch.equal(model.pos_embed, trained.model.pos_embed)
    assert trained.provenance.label == "Leopart from random weights"
    step = trained.provenance.steps[-1]
    assert (step.images, step.supervision, step.data) == (5, "none", "generated scenes")
    head = load_file(undisturbed / "head.safetensors")
    assert head["prototypes.weight"].shape == (8, 16)
    assert len(head) == 7
    torch.testing.assert_close(head["prototypes.weight"].norm(dim=1), torch.ones(8))
    assert end(undisturbed)["model"]["queue.pushed"].min() > 0


def test_history(undisturbed: Path) -> None:
    history = pd.read_csv(undisturbed / "history.csv")
    assert history["step"].tolist() == list(range(6))
    assert history.notna().all(axis=None)
    assert history["lr"].iloc[0] == pytest.approx(1e-2)  # no warm-up
    assert history["lr"].is_monotonic_decreasing
    assert history[["aligned_cells", "prototype_usage", "token_entropy"]].stack().between(0, 1.001).all()


def test_which_parameters_decay_and_learn_how_fast(undisturbed: Path) -> None:
    groups = end(undisturbed)["optimizer"]["param_groups"]
    found = {(group["initial_lr"], group["weight_decay"] > 0): len(group["params"]) for group in groups}
    # tokens, embeddings and matrices of the ViT decay: class token, positions, patches, 4 of each of 2 blocks
    assert found == {
        (1e-3, True): 3 + 2 * 4,
        (1e-3, False): 1 + 2 * 8 + 2,
        (1e-2, True): 4,
        (1e-2, False): 3,
    }
    assert max(group["weight_decay"] for group in groups) == pytest.approx(0.04 + 0.46 * 0.933, abs=1e-3)  # step 5 of 6


@pytest.mark.slow
def test_learns(start: Path, tmp_path: Path) -> None:
    """Loss falls over 20 steps, without a collapse."""
    out = run(start, tmp_path, iterations=20, batch_size=4, queue=32)
    losses = pd.read_csv(out / "history.csv")["loss"]
    assert losses.tail(5).mean() < 0.8 * losses.iloc[1:6].mean()
    notes = collapse_notes(out / "history.csv")
    assert len(notes) == 1


def test_interrupted(undisturbed: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(2, interrupt))
        with pytest.raises(KeyboardInterrupt, match="stopped after step 3"):
            run(start, tmp_path)
    assert not (tmp_path / "backbone").exists()
    with pytest.raises(SohesError, match=r"checkpoint-000003.pth: was written by another configuration"):
        run(start, tmp_path, epsilon=0.06)
    assert_same_end(run(start, tmp_path), undisturbed)


def test_failed_between_checkpoints(
    undisturbed: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue of the last checkpoint is taken, not that of the failure; workers change nothing."""
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


def test_a_crop_that_the_patch_does_not_divide(start: Path, tmp_path: Path) -> None:
    inputs = {name: start / name for name in ("backbone", "images")}
    with pytest.raises(ConfigError, match="local_px=30 is not a multiple of the backbone's 8 px patches"):
        leopart(LeopartConfig(**TINY | {"local_px": 30}), inputs, tmp_path)


def test_collapse_is_said(tmp_path: Path) -> None:
    file = tmp_path / "history.csv"
    file.write_text("step,loss,prototype_usage,aligned_cells\n0,5,1,0.5\n1,4,0.05,0.01\n")
    usage, *warnings = collapse_notes(file)
    assert usage == "over the last 1 steps: loss 4.000, 5 % of the prototypes in use, 1 % of the aligned cells count"
    assert ["few prototypes" in warnings[0], "aligned cell" in warnings[1]] == [True, True]


def test_a_resnet_is_refused(start: Path, tmp_path: Path) -> None:
    resnet = save_backbone_folder(tmp_path / "resnet", *resolve_weights("random:test_resnet"))
    with pytest.raises(WeightsError, match="test_resnet is a ResNet, where a ViT is needed"):
        leopart(LeopartConfig(**TINY), {"backbone": resnet, "images": start / "images"}, tmp_path / "out")
    with pytest.raises(WeightsError, match="test_resnet is a ResNet, where a ViT is needed"):
        make_segmenter(resnet, Listing([], []), SegmentSettings(), tmp_path / "work")
