"""Weight files of DINO, DINOv2, MAE and MoCo-v3 in the forms in which their authors publish them, values untrained."""

from __future__ import annotations

import argparse
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from sohes.backbones.timm_folder import load_backbone_folder, save_backbone_folder
from sohes.backbones.weights import resolve_weights
from sohes.errors import WeightsError

State = dict[str, Tensor]

# as the papers' code states them
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGREG = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def untrained(name: str, **arguments: Any) -> State:
    torch.manual_seed(0)
    state: State = timm.create_model(name, num_classes=0, **arguments).state_dict()
    return {key: torch.randn(value.shape) for key, value in state.items()}


@pytest.fixture(scope="module")
def tiny() -> State:
    """Twelve blocks of width 192, patch 16, without classifier."""
    return untrained("vit_tiny_patch16_224")


@pytest.fixture(scope="module")
def dinov2() -> State:
    return untrained("vit_small_patch14_dinov2")


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def normalisation(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])


def same(model: torch.nn.Module, state: State) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(value, state[key]) for key, value in own.items())


# around a state dict, as training scripts save it; what the note must name as left out
FORMS: dict[str, tuple[Callable[[State], Any], str, str]] = {
    "DINO, the whole checkpoint": (
        lambda state: {
            "student": prefixed(state, "module.backbone."),
            "teacher": prefixed(state, "backbone.") | {"head.last_layer.weight_g": torch.ones(3, 1)},
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
            "epoch": 100,
            "args": argparse.Namespace(arch="vit_tiny", lr=0.1),
        },
        "DINO",
        "left out: optimizer.*, student.*, teacher.head.*",
    ),
    "DINO, the teacher as in one process": (lambda state: {"teacher": prefixed(state, "backbone.")}, "DINO", ""),
    "DINO, the teacher as in several": (lambda state: {"teacher": prefixed(state, "module.backbone.")}, "DINO", ""),
    "iBOT": (
        lambda state: {"teacher": prefixed(state | {"masked_embed": torch.zeros(1, 192)}, "backbone.")},
        "iBOT",
        "left out: teacher.backbone.masked_embed",
    ),
    "MAE, in pretraining": (
        lambda state: {
            "model": state
            | {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 197, 8)}
            | {"decoder_embed.weight": torch.zeros(8, 192), "decoder_blocks.0.norm1.weight": torch.ones(8)},
            "args": argparse.Namespace(),
        },
        "MAE",
        "left out: model.decoder_blocks.*, model.decoder_embed.*, model.decoder_pos_embed, model.mask_token",
    ),
    "MoCo-v3": (
        lambda state: {
            "arch": "vit_tiny",
            "state_dict": prefixed(state | {"head.0.weight": torch.zeros(4, 192)}, "module.base_encoder.")
            | prefixed({key: value + 1 for key, value in state.items()}, "module.momentum_encoder.")
            | {"module.predictor.0.weight": torch.zeros(4, 4)},
        },
        "MoCo-v3",
        "left out: state_dict.module.base_encoder.head.*, state_dict.module.momentum_encoder.*, "
        "state_dict.module.predictor.*",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_keys_tell(form: str, tiny: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrap, family, left_out = FORMS[form]
    torch.save(wrap(tiny), tmp_path / "checkpoint.pth")
    model, provenance = resolve_weights(str(tmp_path / "checkpoint.pth"))
    assert provenance.timm_name == "vit_tiny_patch16_224"
    assert normalisation(model) == IMAGENET
    assert same(model, tiny)
    (step,) = provenance.steps
    assert (step.method, step.supervision) == (f"file checkpoint ({family})", "none (probable)")
    assert f"its keys are those of {family}" in step.note
    assert step.note.partition("; ")[2] == left_out
    assert caplog.record_tuples == [("sohes.backbones.checkpoints", logging.WARNING, step.note)]


def test_moco_v3_small_has_twelve_heads(tmp_path: Path) -> None:
    small = untrained("vit_small_patch16_224")
    torch.save({"state_dict": prefixed(small, "module.base_encoder.")}, tmp_path / "a.pth.tar")
    assert resolve_weights(str(tmp_path / "a.pth.tar"))[0].blocks[0].attn.num_heads == 12  # type: ignore[index, union-attr]
    torch.save({"teacher": prefixed(small, "backbone.")}, tmp_path / "b.pth")
    assert resolve_weights(str(tmp_path / "b.pth"))[0].blocks[0].attn.num_heads == 6  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    "mark", [{"mask_token": torch.zeros(1, 384)}, {}], ids=["as published", "without a mask token"]
)
def test_dinov2(mark: State, dinov2: State, tmp_path: Path) -> None:
    torch.save(dinov2 | mark, tmp_path / "mine.pth")
    model, provenance = resolve_weights(str(tmp_path / "mine.pth"))
    assert provenance.timm_name == "vit_small_patch14_dinov2"
    assert model.pos_embed.shape == (1, 1370, 384)  # type: ignore[union-attr]  # 518 px
    assert normalisation(model) == IMAGENET
    assert same(model, dinov2)
    # without the mark it may have been trained further: the architecture is DINOv2's, the weights need not be
    assert ("DINOv2" in provenance.label) == bool(mark)
    assert provenance.supervision == ("none (probable)" if mark else "unknown")


@pytest.mark.parametrize("masked", [True, False])
def test_dinov2_with_registers(masked: bool, tmp_path: Path) -> None:
    """Their class token has a position, which timm adds to the token itself."""
    state = untrained("vit_small_patch14_reg4_dinov2", img_size=98)
    theirs = {key: value for key, value in state.items() if key != "reg_token"} | {
        "register_tokens": state["reg_token"]
    }
    position = torch.full((1, 1, 384), 0.25)
    theirs["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    theirs |= {"mask_token": torch.zeros(1, 384)} if masked else {}
    save_file(theirs, tmp_path / "mine.safetensors")
    model, provenance = resolve_weights(str(tmp_path / "mine.safetensors"))
    assert provenance.timm_name == "vit_small_patch14_reg4_dinov2"
    assert same(model, state | {"cls_token": state["cls_token"] + 0.25})
    assert normalisation(model) == IMAGENET


def test_dinov2_in_training(dinov2: State, tmp_path: Path) -> None:
    """Blocks in chunks, heads beside the backbone."""
    chunked = {key.replace("blocks.", f"blocks.{int(key.split('.')[1]) // 3}.") if "blocks." in key else key: value
               for key, value in dinov2.items()}  # fmt: skip
    heads = {"dino_head.mlp.0.weight": torch.zeros(2, 2), "ibot_head.mlp.0.weight": torch.zeros(2, 2)}
    torch.save({"teacher": prefixed(chunked, "backbone.") | heads}, tmp_path / "teacher_checkpoint.pth")
    model, provenance = resolve_weights(str(tmp_path / "teacher_checkpoint.pth"))
    assert same(model, dinov2)
    assert provenance.label == "file teacher_checkpoint (DINOv2)"


def test_dinov2_cut_to_other_patches(tmp_path: Path) -> None:
    state = untrained("vit_small_patch14_dinov2", patch_size=16, img_size=224)
    save_file(state, tmp_path / "cut.safetensors")
    model, provenance = resolve_weights(str(tmp_path / "cut.safetensors"))
    assert same(model, state)
    assert (provenance.timm_name, model.patch_embed.patch_size) == ("vit_small_patch14_dinov2", (16, 16))  # type: ignore[union-attr]


def test_mae_tuned_by_its_authors_pools_patches(tiny: State, tmp_path: Path) -> None:
    state = {key.replace("norm.", "fc_norm.", 1) if key.startswith("norm.") else key: v for key, v in tiny.items()}
    torch.save({"model": state | {"head.weight": torch.zeros(5, 192)}}, tmp_path / "mae_finetuned.pth")
    model, provenance = resolve_weights(str(tmp_path / "mae_finetuned.pth"))
    assert same(model, state)
    assert provenance.supervision == "image labels (probable)"  # the classifier that was left out saw them
    assert "left out: model.head.*" in provenance.steps[0].note


@pytest.mark.parametrize(
    ("name", "family", "expected"),
    [
        ("dino_deitsmall16_pretrain.pth", "DINO, by its name", IMAGENET),  # its authors' name
        ("vit_small_patch16_224.dino.pth", "DINO, by its name", IMAGENET),  # timm's
        ("vit_small_patch16_224.augreg_in21k.pth", "AugReg, by its name", AUGREG),
        ("deit_small_patch16_224-cd65a155.pth", "as deit_small_patch16_224.fb_in1k, by its name", IMAGENET),
        ("dino_small16.pth", "DINO, by its name", IMAGENET),
        ("mae_like.pth", "MAE, by its name", IMAGENET),
        ("my-augreg.pth", "AugReg, by its name", AUGREG),
    ],
)
def test_what_a_name_tells_is_said_to_be_assumed(
    name: str, family: str, expected: Any, tiny: State, tmp_path: Path
) -> None:
    torch.save(tiny, tmp_path / name)
    model, provenance = resolve_weights(str(tmp_path / name))
    assert normalisation(model) == expected
    assert provenance.label == f"file {Path(name).stem} ({family})"
    assert "assumed, for the file" in provenance.steps[0].note


@pytest.mark.parametrize("name", ["mine.pth", "vit_tiny_patch16_224.pth", "dino_or_augreg.pth"])
def test_what_nothing_tells_is_asked_for(name: str, tiny: State, tmp_path: Path) -> None:
    torch.save(tiny, tmp_path / name)
    with pytest.raises(WeightsError) as caught:
        resolve_weights(str(tmp_path / name))
    message = str(caught.value)
    for words in (
        "weights.architecture=NAME",
        "--architecture NAME",
        "vit_tiny_patch16_224.dino for mean (0.485, 0.456, 0.406)",
        "vit_tiny_patch16_224.augreg_in21k or vit_tiny_patch16_224.augreg_in21k_ft_in1k for mean (0.5, 0.5, 0.5)",
        "a timm folder, whose config.json holds mean and std",
    ):
        assert words in message


@pytest.mark.parametrize(
    ("answer", "expected"), [("vit_tiny_patch16_224.dino", IMAGENET), ("vit_tiny_patch16_224.augreg_in21k", AUGREG)]
)
def test_the_answer_counts_and_the_position_table_is_the_files(answer: str, expected: Any, tmp_path: Path) -> None:
    state = untrained("vit_tiny_patch16_224", img_size=448)
    save_file(state, tmp_path / "at_448px.safetensors")
    model, provenance = resolve_weights(str(tmp_path / "at_448px.safetensors"), architecture=answer)
    assert normalisation(model) == expected
    assert model.patch_embed.grid_size == (28, 28)  # type: ignore[union-attr]  # as in the file, not resampled
    assert same(model, state)
    assert provenance.timm_name == "vit_tiny_patch16_224"
    assert provenance.steps[0].note.endswith(": as was said")


def test_answers_for_architectures_that_timm_has_other_weights_of(tiny: State, tmp_path: Path) -> None:
    save_file(tiny, tmp_path / "mine.safetensors")
    path = str(tmp_path / "mine.safetensors")
    assert normalisation(resolve_weights(path, architecture="vit_tiny_patch16_224.mocov3")[0]) == IMAGENET
    with pytest.raises(
        WeightsError, match=r"unknown timm weights 'vit_tiny_patch16_224\.dinos'; did you mean .*\.dino'"
    ):
        resolve_weights(path, architecture="vit_tiny_patch16_224.dinos")
    with pytest.raises(WeightsError, match="unknown timm architecture 'vit_tiny_patch61_224'"):
        resolve_weights(path, architecture="vit_tiny_patch61_224.dino")
    with pytest.raises(WeightsError, match="neither its keys nor its name"):  # an architecture alone says nothing
        resolve_weights(path, architecture="vit_tiny_patch16_224")


def test_a_folder_carries_the_normalisation(tiny: State, tmp_path: Path) -> None:
    torch.save({"teacher": prefixed(tiny, "backbone.")}, tmp_path / "dino.pth")
    folder = save_backbone_folder(tmp_path / "vit", *resolve_weights(str(tmp_path / "dino.pth")))
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert normalisation(by_timm) == IMAGENET
    again = save_backbone_folder(tmp_path / "again", *resolve_weights(str(folder)))
    assert normalisation(timm.create_model(f"local-dir:{again}", pretrained=True)) == IMAGENET
    # these are not the weights that timm has under the default tag of the architecture
    assert "tag" not in load_backbone_folder(again).timm_config["pretrained_cfg"]


def test_an_architecture_that_cannot_be_told(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"patch_embed.proj.weight": torch.zeros(64, 3, 16, 16)}, path)
    with pytest.raises(WeightsError, match=r"width 64, patch 16 matches no known ViT.*weights\.architecture="):
        resolve_weights(str(path))
    save_file({"patch_embed.proj.weight": torch.zeros(64, 768)}, path)
    with pytest.raises(WeightsError, match=r"of shape \(64, 768\), not a ViT's"):
        resolve_weights(str(path))
    save_file({"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"no 'patch_embed.proj.weight'.*keys: conv1.weight, fc.bias"):
        resolve_weights(str(path))


def test_an_architecture_that_is_given(tmp_path: Path) -> None:
    state = untrained("test_vit")
    save_file(state, tmp_path / "odd.safetensors")
    model, provenance = resolve_weights(str(tmp_path / "odd.safetensors"), architecture="test_vit.r160_in1k")
    assert provenance.timm_name == "test_vit"
    assert same(model, state)


def test_wrong_keys_are_listed(tiny: State, tmp_path: Path) -> None:
    state = {key.replace("norm1", "ln_1"): value for key, value in tiny.items()}
    save_file(state, tmp_path / "dino.safetensors")
    with pytest.raises(WeightsError) as caught:
        resolve_weights(str(tmp_path / "dino.safetensors"))
    message = str(caught.value)
    assert "24 missing: blocks.0.norm1.weight, blocks.0.norm1.bias" in message
    assert "24 unexpected: blocks.0.ln_1.weight, blocks.0.ln_1.bias" in message or "blocks.0.ln_1.bias" in message
    assert "dino.safetensors" in message


def test_several_vits_are_not_chosen_from(tiny: State, tmp_path: Path) -> None:
    torch.save({"state_dict": tiny, "state_dict_ema": tiny}, tmp_path / "dino.pth")
    with pytest.raises(WeightsError, match=r"holds 2 backbones \(state_dict\., state_dict_ema\.\); save the state"):
        resolve_weights(str(tmp_path / "dino.pth"))


def test_a_position_table_that_is_no_square(tiny: State, tmp_path: Path) -> None:
    torch.save(tiny | {"pos_embed": torch.zeros(1, 1 + 14 * 21, 192)}, tmp_path / "dino.pth")
    with pytest.raises(WeightsError, match="position table of 295 rows"):
        resolve_weights(str(tmp_path / "dino.pth"))


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], torch.zeros(3), {"model": [1]}])
def test_a_file_of_torch_without_a_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"not a timm ViT.*holds no dictionary of tensors"):
        resolve_weights(str(tmp_path / "a.pth"))


class Intruder:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_pickled_code_is_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Intruder(trace)))
    assert trace.exists()  # the intruder works ...
    trace.unlink()
    for place, content in enumerate(
        ({"a": torch.zeros(1), "b": Intruder(trace)}, argparse.Namespace(b=Intruder(trace)))
    ):
        torch.save(content, tmp_path / f"bad{place}.pth")
        with pytest.raises(
            WeightsError, match=r"tensors alone \(UnpicklingError: builtins\.getattr, pathlib\.Path"
        ) as caught:
            resolve_weights(str(tmp_path / f"bad{place}.pth"))
        assert "save its state dict alone" in str(caught.value)
    assert not trace.exists()  # ... but was not let in
