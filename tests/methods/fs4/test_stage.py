"""From images to a backbone folder: what the stage leaves and refuses, and that it resumes to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors import safe_open

from sohes.backbones.provenance import IMAGE_LABELS, RANDOM, Provenance, Step
from sohes.backbones.timm_folder import load_backbone_folder, save_backbone_folder
from sohes.data.coco import ImageItem
from sohes.engine.hooks import SeedHook
from sohes.errors import ConfigError, DataError, SohesError
from sohes.files import read_json, write_json
from sohes.methods.fs4 import pixel_labels, rounds
from sohes.methods.fs4.network import load_network
from sohes.methods.fs4.pyramid import PyramidLabels
from sohes.methods.fs4.settings import Fs4Config
from sohes.methods.fs4.stage import fs4, region_notes, supervision_notes
from sohes.methods.fs4.views import usable_images
from tests.engine.toy import assert_equal, curves, end, fail, interrupt, stop_at
from tests.methods.fs4.tiny import PICIE, config, run

ROUNDS = ("round-1", "round-2")


def test_what_it_leaves(start: Path, undisturbed: Path) -> None:
    model = timm.create_model(f"local-dir:{undisturbed / 'backbone'}", pretrained=True)
    trained, before = load_backbone_folder(undisturbed / "backbone"), load_backbone_folder(start / "backbone")
    assert model.state_dict().keys() == trained.model.state_dict().keys() == before.model.state_dict().keys()
    assert not torch.equal(trained.model.pos_embed, before.model.pos_embed)
    assert trained.provenance.label == "FS4 (reconstruction) from random weights"
    step = trained.provenance.steps[-1]
    assert (step.images, step.supervision, step.data) == (8, "none", "generated scenes")
    with safe_open(undisturbed / "decoder.safetensors", "pt") as file:
        built = json.loads(file.metadata()["network"])
        assert (built["view_px"], built["side"], built["dim"], built["pool"]) == (32, 16, 8, True)
        assert {name.split(".")[0] for name in file.keys()} == {"decoder", "context"}  # noqa: SIM118
    assert not list(undisturbed.glob("round-*/pixel_labels"))


@pytest.mark.parametrize("number", ROUNDS)
def test_history_and_epochs(undisturbed: Path, number: str) -> None:
    history = pd.read_csv(undisturbed / number / "history.csv")
    assert history["step"].tolist() == list(range(6))
    assert history.notna().all(axis=None)
    assert history["lr"].iloc[0] == pytest.approx(1e-3)  # each round has a schedule of its own
    epochs = pd.read_csv(undisturbed / number / "epochs.csv")
    assert epochs["epoch"].tolist() == ([0, 1] if number == "round-1" else [2, 3])
    assert epochs[["clusters_1", "clusters_2"]].stack().between(2, 4).all()
    shares = epochs.drop(columns=["epoch", "clusters_1", "clusters_2"])
    assert shares.stack().between(0, 1).all()


def test_which_parameters_decay_and_learn_how_fast(undisturbed: Path) -> None:
    groups = end(undisturbed / "round-1")["optimizer"]["param_groups"]
    found = {(group["initial_lr"], group["weight_decay"]): len(group["params"]) for group in groups}
    # of the ViT the patches and 4 matrices of each of 2 blocks decay, of the decoder 3 kernels, of the context 3
    # matrices and 2 of its pool, of the heads 2 levels and the link
    assert found == {
        (1e-4, 0.05): 1 + 2 * 4,
        (1e-4, 0): 3 + 2 * 8 + 2,
        (1e-3, 0.05): 3 + 5 + 3,
        (1e-3, 0): 5 + 7,
    }


@pytest.mark.parametrize("step", [1, 3])
def test_interrupted(
    undisturbed: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In the middle of an epoch, whose labels are then taken from their file, and after its last step."""
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(step, interrupt))
        with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step + 1}"):
            run(start, tmp_path)
        if step == 1:
            patch.setattr(rounds, "make_pixel_labels", only_from(1))
        with pytest.raises(SohesError, match=r"checkpoint-00000\d.pth: was written by another configuration"):
            run(start, tmp_path, temperature=0.2)
        run(start, tmp_path, workers=1, checkpoint_every=2)
    assert_same_end(tmp_path, undisturbed)


def only_from(first: int) -> Callable[..., Any]:
    """A replacement of `make_pixel_labels` that refuses earlier epochs."""
    real = pixel_labels.make_pixel_labels

    def make(embed: Any, samples: Any, epoch: int, *args: Any, **options: Any) -> Any:
        assert epoch >= first
        return real(embed, samples, epoch, *args, **options)

    return make


@pytest.mark.parametrize("work", ["clusters", "pixel labels"])
def test_interrupted_while_labelling(
    undisturbed: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    """In the second epoch: no half file is left, and that epoch's labels are made anew."""
    real = pixel_labels.track
    half_written = tmp_path / "round-1" / "pixel_labels" / ".epoch-0000.1.tmp.npy"  # by a process that was killed
    half_written.parent.mkdir(parents=True)
    half_written.touch()

    def track(items: Any, description: str) -> Any:
        if description == f"{work}, epoch 1":
            interrupt()
        return real(items, description)

    with monkeypatch.context() as patch:
        patch.setattr(pixel_labels, "track", track)
        with pytest.raises(KeyboardInterrupt, match="stopped while the pixels of epoch 1 were labelled"):
            run(start, tmp_path)
    assert [path.name for path in (tmp_path / "round-1" / "pixel_labels").iterdir()] == ["epoch-0000.npy"]
    assert_same_end(run(start, tmp_path), undisturbed)


def test_labels_of_earlier_epochs_stay_while_a_checkpoint_needs_them(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 9 is in epoch 2, the last checkpoint in epoch 1."""
    changes = {"iterations": 12, "checkpoint_every": 6, "rounds": 1}
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(9, fail))
        with pytest.raises(OSError, match="went away"):
            run(start, tmp_path / "failed", **changes)
    labels = tmp_path / "failed" / "round-1" / "pixel_labels"
    assert sorted(path.name for path in labels.iterdir()) == ["epoch-0001.npy", "epoch-0002.npy"]
    run(start, tmp_path / "failed", **changes)
    run(start, tmp_path / "whole", **changes)
    assert_same_end(tmp_path / "failed", tmp_path / "whole", "round-1")


def test_labels_that_are_gone(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(1, interrupt))
        with pytest.raises(KeyboardInterrupt):
            run(start, tmp_path)
    path = tmp_path / "round-1" / "pixel_labels" / "epoch-0000.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SohesError, match=r"epoch-0000.npy: the pixel labels of epoch 0 are damaged, .* or remove"):
        run(start, tmp_path)
    path.unlink()
    with pytest.raises(SohesError, match=r"epoch-0000.npy: the pixel labels of epoch 0 are missing, .* or remove"):
        run(start, tmp_path)


def assert_same_end(out: Path, expected: Path, *numbers: str) -> None:
    """Weights, checkpoints, histories and lines of the epochs are equal to the bit."""
    for name in ("backbone/model.safetensors", "backbone/provenance.json", "decoder.safetensors"):
        assert (out / name).read_bytes() == (expected / name).read_bytes()
    for number in numbers or ROUNDS:
        assert_equal(end(out / number), end(expected / number))
        assert curves(out / number) == curves(expected / number)
        assert (out / number / "epochs.csv").read_text() == (expected / number / "epochs.csv").read_text()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"view_px": 36}, ConfigError, "view_px=36 is not a multiple of the backbone's 8 px patches; try 32"),
        (
            {"view_px": 104},
            DataError,
            "train.json: all 8 images have a short side below view_px=104, 96 px at most",
        ),
        ({"batch_size": 9}, ConfigError, "batch_size=9 is more than the 8 images there are; set it to at most 8"),
        ({"pgg_pool_px": 36}, ConfigError, "pgg_pool_px=36 is no multiple of the backbone's patch of 8 px; take 32"),
        ({"pgg_clusters": (9, 4)}, ConfigError, "pgg_clusters has 9 for a level of 8 regions; .* at most 8"),
        ({"clusters": 1600}, ConfigError, "clusters=1600 is more than the 1,536 points"),  # 6 images of 16 x 16
    ],
)
def test_what_it_refuses(start: Path, tmp_path: Path, changes: dict, error: type[SohesError], message: str) -> None:
    with pytest.raises(error, match=message):
        run(start, tmp_path, **changes)
    assert not (tmp_path / "backbone").exists()


def test_regions_are_labelled_once_a_round(
    undisturbed: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the network as it then is; a resumed round takes them from their file."""
    first, second = (PyramidLabels.load(*(undisturbed / number).glob("regions-*")) for number in ROUNDS)
    assert first.labels.shape == second.labels.shape == (8, 5)
    assert not np.array_equal(first.clusters[0].projection.mean, second.clusters[0].projection.mean)
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(1, interrupt))
        with pytest.raises(KeyboardInterrupt):
            run(start, tmp_path, rounds=1)
    monkeypatch.setattr(rounds, "label_regions", None)
    run(start, tmp_path, rounds=1)
    assert not (tmp_path / "round-1" / "regions").exists()


def test_picie_alone(start: Path, tmp_path: Path) -> None:
    run(start, tmp_path, **PICIE, rounds=1)
    columns = set(pd.read_csv(tmp_path / "round-1" / "history.csv").columns)
    assert "loss_pixels" in columns
    assert not {"loss_pyramid", "loss_link"} & columns
    assert not list((tmp_path / "round-1").glob("regions*"))
    with safe_open(tmp_path / "decoder.safetensors", "pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"decoder"}  # noqa: SIM118
    assert load_backbone_folder(tmp_path / "backbone").provenance.steps[-1].method == "PiCIE"


def test_a_resnet(start: Path, tmp_path: Path) -> None:
    """With PiCIE's pyramid; its last stride is the patch."""
    resnet = timm.create_model("resnet18", pretrained=False, num_classes=0)
    provenance = Provenance(timm_name="resnet18", steps=(RANDOM,))
    backbone = save_backbone_folder(tmp_path / "resnet", resnet, provenance)
    inputs = {"backbone": backbone, "images": start / "images"}
    changes = {"rounds": 1, "iterations": 2, "view_px": 64, "pgg_crop_px": 64, "pgg_pool_px": 64}
    fs4(config(**changes), inputs, tmp_path / "fs4")
    trained = load_backbone_folder(tmp_path / "fs4" / "backbone")
    assert trained.provenance.label == "FS4 (reconstruction) from random weights"
    assert not torch.equal(trained.model.conv1.weight, resnet.conv1.weight)
    network = load_network(trained.model, tmp_path / "fs4" / "decoder.safetensors")
    assert network(torch.rand(1, 3, 64, 64)).embeddings.shape == (1, 8, 16, 16)
    with pytest.raises(ConfigError, match="view_px=48 is not a multiple of the backbone's 32 px patches; try 64"):
        fs4(config(view_px=48), inputs, tmp_path / "other")


@pytest.mark.parametrize("name", Fs4Config.PRESETS)
def test_presets(name: str) -> None:
    made = Fs4Config(**Fs4Config.PRESETS[name])
    supervised = name == "picie_sup"
    assert (made.pgg, made.cae == "none") == (not supervised, supervised)
    assert (made.backbone_lr_factor == 1) == (name != "vits16")


def test_notes_of_regions() -> None:
    def labels(rows: list[list[int]]) -> PyramidLabels:
        return PyramidLabels((1, 2), np.array(rows, np.uint16), np.ones((2, 5), np.float32), ())

    one, other = labels([[0, 0, 1, 2, 3], [1, 0, 1, 2, 3]]), labels([[0, 0, 0, 1, 1], [1, 0, 1, 0, 1]])
    assert region_notes([one, one])[1] == (
        "round 2: labels of regions share 0.00, 1.00 with their places and 1.00, 1.00 with those of the round before "
        "(mutual information adjusted for chance, level by level)"
    )
    assert len(region_notes([one, other])) == 2
    assert region_notes([]) == []


def test_strict() -> None:
    supervised = Provenance(timm_name="vit", steps=(Step(method="DeiT", supervision=IMAGE_LABELS),))
    with pytest.raises(ConfigError, match=r"strict=true, but the start weights are DeiT, and .*: image labels; give"):
        supervision_notes(supervised, strict=True)
    (note,) = supervision_notes(supervised, strict=False)
    assert note.startswith("WARNING: the start weights are DeiT")
    with pytest.raises(ConfigError, match="unknown"):
        supervision_notes(Provenance(timm_name="vit", steps=(Step(method="DeiT"),)), strict=True)


def test_a_list_that_names_missing_files(start: Path, tmp_path: Path) -> None:
    listed = read_json(start / "images" / "train.json")
    listed["images"][3]["file_name"] = "moved.png"
    write_json(tmp_path / "images" / "train.json", listed)
    for name in ("train", "source.json"):
        (tmp_path / "images" / name).symlink_to(start / "images" / name)
    with pytest.raises(
        DataError, match=r"train.json: 1 of 8 images are not there, .*moved\.png for one; put them back"
    ):
        fs4(config(), {"backbone": start / "backbone", "images": tmp_path / "images"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_small_images() -> None:
    """Below a view they are left out, below the base square enlarged; said before anything is trained."""
    sizes = {"large": (100, 64), "small": (100, 40), "tiny": (100, 31)}
    items = [ImageItem(i, Path(f"{name}.jpg"), *size) for i, (name, size) in enumerate(sizes.items())]
    kept, notes = usable_images(items, config())
    assert [item.path.stem for item in kept] == ["large", "small"]
    assert notes == [
        "1 of 3 images have a short side below view_px=32 and are left out, tiny.jpg (31 x 100 px) for one",
        "1 of 2 images have a short side below base_px=64 and are enlarged to it",
    ]
    assert usable_images(items[:1], config()) == (items[:1], [])
    with pytest.raises(DataError, match="no image, so there is nothing to learn from"):
        usable_images([], config())
