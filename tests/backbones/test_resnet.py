"""ResNets as backbones, against torchvision's, which is not timm's code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from sohes.backbones.cost import backbone_cost
from sohes.backbones.precision import autocast
from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_cnn import DenseCNN
from sohes.backbones.timm_folder import (
    BackboneFolder,
    build_backbone,
    load_backbone_folder,
    save_backbone_folder,
)
from sohes.backbones.timm_vit import DenseViT, load_backbone
from sohes.backbones.weights import resolve_weights
from sohes.errors import ConfigError, WeightsError

State = dict[str, Tensor]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """torchvision's ResNet-18 with random weights, and statistics of batch norm that are not those of the start."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    for name, values in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            values.add_(torch.rand_like(values))
    return model.eval()


def state_of(model: nn.Module) -> State:
    """Its tensors but the classifier's."""
    return {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}


def pictures() -> Tensor:
    """Two random pictures, wider than high, so that mixed-up axes show."""
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def their_map(model: Any, images: Tensor) -> Tensor:
    with torch.no_grad(), autocast(images.device):
        x = model.maxpool(model.relu(model.bn1(model.conv1((images - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)))))
        return model.layer4(model.layer3(model.layer2(model.layer1(x)))).float()


def ours(theirs: nn.Module) -> BackboneFolder:
    model = build_backbone({"architecture": "resnet18"})
    model.load_state_dict(state_of(theirs))
    return BackboneFolder(model.eval(), {}, Provenance(timm_name="resnet18", steps=(RANDOM,)))


def test_features_are_the_map_of_the_last_stage(theirs: nn.Module) -> None:
    backbone = DenseCNN(ours(theirs))
    found, cls_token = backbone(pictures())
    assert (backbone.patch_size, backbone.embed_dim, backbone.feature) == (32, 512, "token")
    assert (found.shape, found.dtype, cls_token) == ((2, 512, 2, 3), torch.float32, None)
    torch.testing.assert_close(found, their_map(theirs, pictures()), rtol=0.02, atol=0.02)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not found.requires_grad


def test_sides_must_be_multiples_of_the_stride(theirs: nn.Module) -> None:
    with pytest.raises(ValueError, match="64x80 px is not a multiple of the patch size 32"):
        DenseCNN(ours(theirs))(torch.zeros(1, 3, 64, 80))


def test_a_dilated_resnet_has_a_finer_map() -> None:
    model = build_backbone({"architecture": "resnet18", "model_args": {"output_stride": 16}}).eval()
    backbone = DenseCNN(BackboneFolder(model, {}, Provenance(timm_name="resnet18", steps=(RANDOM,))))
    assert backbone.patch_size == 16
    assert backbone(pictures()).map.shape == (2, 512, 4, 6)


def test_a_folder_goes_out_and_in(theirs: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = ours(theirs)
    folder = save_backbone_folder(tmp_path / "a", start.model, start.provenance)
    loaded = load_backbone_folder(folder)
    again = save_backbone_folder(tmp_path / "b", loaded.model, loaded.provenance)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in again.iterdir()
    }
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    expected = start.model.forward_features(pictures())
    assert torch.equal(by_timm.forward_features(pictures()), expected)
    backbone = load_backbone(folder, feature="token", device="cpu")
    assert torch.equal(backbone(pictures()).map, DenseCNN(start)(pictures()).map)
    assert backbone.weights_digest() == DenseCNN(start).weights_digest()
    card = (folder / "README.md").read_text()
    assert "A ResNet (resnet18) for dense features" in card
    assert "- resnet\n" in card
    monkeypatch.chdir(folder)
    lines: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0], lines)
    assert lines["features"].shape == (1, 512, 7, 7)


def test_a_folder_made_elsewhere_has_a_classifier(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=7).eval()
    save_for_hf(model, str(tmp_path / "theirs"), safe_serialization=True)
    loaded = load_backbone_folder(tmp_path / "theirs")
    assert loaded.provenance.steps[0].note == "left out: fc.*"
    assert torch.equal(loaded.model.forward_features(pictures()), model.forward_features(pictures()))


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


# around the tensors of a ResNet, as training scripts save them: file name, family, and what the note must name
FORMS: dict[str, tuple[Callable[[State], Any], str, str, str]] = {
    "MoCo-v2": (
        lambda state: {
            "epoch": 800,
            "state_dict": prefixed(
                state | {"fc.0.weight": torch.ones(2), "fc.2.weight": torch.ones(2)}, "module.encoder_q."
            )
            | prefixed({key: value + 1 for key, value in state.items()}, "module.encoder_k.")
            | {"module.queue": torch.ones(2)},
        },
        "a.pth.tar",
        "MoCo",
        "left out: state_dict.module.encoder_k.*, state_dict.module.encoder_q.fc.*, state_dict.module.queue",
    ),
    "MoCo-v1": (
        lambda state: {"state_dict": prefixed(state | {"fc.weight": torch.ones(2)}, "module.encoder_q.")},
        "a.pth.tar",
        "MoCo",
        "left out: state_dict.module.encoder_q.fc.*",
    ),
    "MoCo-v3": (
        lambda state: {
            "state_dict": prefixed(state, "module.base_encoder.") | prefixed(state, "module.momentum_encoder.")
        },
        "a.pth.tar",
        "MoCo-v3",
        "left out: state_dict.module.momentum_encoder.*",
    ),
    "SimSiam": (
        lambda state: {
            "state_dict": prefixed(state | {"fc.6.weight": torch.ones(2)}, "module.encoder.")
            | {"module.predictor.0.weight": torch.ones(2)},
        },
        "a.pth.tar",
        "SimSiam",
        "left out: state_dict.module.encoder.fc.*, state_dict.module.predictor.*",
    ),
    "SwAV": (
        lambda state: prefixed(
            state | {"projection_head.0.weight": torch.ones(2), "prototypes.weight": torch.ones(2)}, "module."
        ),
        "a.pth.tar",
        "SwAV",
        "left out: module.projection_head.*, module.prototypes.*",
    ),
    "DINO": (
        lambda state: {
            "student": prefixed({key: value + 1 for key, value in state.items()}, "module.backbone."),
            "teacher": prefixed(state, "backbone.") | {"head.mlp.0.weight": torch.ones(2)},
        },
        "a.pth",
        "DINO",
        "left out: student.*, teacher.head.*",
    ),
    "by its name": (
        lambda state: {"state_dict": prefixed(state, "backbone.")},
        "swav_rn18.pth",
        "SwAV, by its name",
        "",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_files_of_pretrainings_without_labels(form: str, theirs: nn.Module, tmp_path: Path) -> None:
    wrap, file, family, left_out = FORMS[form]
    state = state_of(theirs)
    torch.save(wrap(state), tmp_path / file)
    model, provenance = resolve_weights(str(tmp_path / file))
    assert provenance.timm_name == "resnet18"
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.tensor(model.pretrained_cfg["mean"]), MEAN)
    assert torch.equal(torch.tensor(model.pretrained_cfg["std"]), STD)
    (step,) = provenance.steps
    assert (step.method, step.supervision) == (f"file {Path(file).stem} ({family})", "none (probable)")
    assert step.note.partition("; ")[2] == left_out


@pytest.mark.parametrize("counted", [True, False], ids=["of today", "of before torch 0.4.1"])
def test_torchvisions_file_is_supervised(counted: bool, theirs: nn.Module, tmp_path: Path) -> None:
    state = {key: value for key, value in theirs.state_dict().items() if counted or "num_batches" not in key}
    file = tmp_path / "resnet18-f37072fd.pth"  # their name
    torch.save(state, file)
    backbone = load_backbone(file, feature="token", device="cpu")
    assert torch.equal(backbone(pictures()).map, DenseCNN(ours(theirs))(pictures()).map)
    (step,) = backbone.provenance.steps
    assert (step.method, step.supervision) == (
        "file resnet18-f37072fd (as resnet18.tv_in1k, by its name)",
        "image labels (probable)",
    )
    assert step.note.endswith("assumed, for the file is named as timm's resnet18.tv_in1k; left out: fc.*")


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "resnet101", "resnet152"])
def test_the_architecture_is_told_from_the_blocks(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = state_of(getattr(torchvision.models, name)())
    state = {key: torch.zeros(value.shape) for key, value in shapes.items() if "num_batches" not in key}
    save_file({key: value.half() for key, value in state.items()}, tmp_path / "simsiam.safetensors")
    assert resolve_weights(str(tmp_path / "simsiam.safetensors"))[1].timm_name == name


def test_what_nothing_tells_is_asked_for(theirs: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "mine.pth"
    torch.save(theirs.state_dict(), file)
    with pytest.raises(WeightsError, match=r"neither its keys nor its name.*resnet18\.torchvision or resnet18\.mocov2"):
        resolve_weights(str(file))
    _, provenance = resolve_weights(str(file), architecture="resnet18.swav")
    # said to be without labels, but there is a classifier beside it
    assert provenance.supervision == "image labels (probable)"
    with pytest.raises(WeightsError, match=r"unknown timm weights 'resnet18\.svav'; did you mean 'resnet18\.swav'"):
        resolve_weights(str(file), architecture="resnet18.svav")


def test_blocks_of_no_known_resnet(theirs: nn.Module, tmp_path: Path) -> None:
    state = {key: value for key, value in state_of(theirs).items() if not key.startswith("layer3.1.")}
    torch.save(state, tmp_path / "swav.pth")
    with pytest.raises(WeightsError, match=r"stages of 2, 2, 1, 2 blocks of 2 convolutions.*weights\.architecture="):
        resolve_weights(str(tmp_path / "swav.pth"))
    del state["layer1.0.conv2.weight"]
    torch.save(state, tmp_path / "swav.pth")
    with pytest.raises(WeightsError, match=r"missing: .*layer1\.0\.conv2\.weight"):
        resolve_weights(str(tmp_path / "swav.pth"), architecture="resnet18.swav")


def test_from_timms_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def fetched(name: str, **arguments: Any) -> nn.Module:
        assert arguments == {"pretrained": True, "num_classes": 0}
        return create(name, num_classes=0)

    monkeypatch.setattr(timm, "create_model", fetched)
    _, provenance = resolve_weights("resnet50.tv_in1k")
    assert (provenance.label, provenance.supervision) == ("timm resnet50.tv_in1k", "image labels (probable)")
    monkeypatch.undo()
    with pytest.raises(WeightsError, match=r"did you mean 'resnet50\.tv_in1k'"):
        resolve_weights("resnet50.tv_in2k")
    with pytest.raises(WeightsError, match=r"neither a ViT that takes any input size nor a ResNet"):
        resolve_weights("test_convnext.r160_in1k")


def test_what_needs_a_vit_says_so(theirs: nn.Module) -> None:
    folder = ours(theirs)
    with pytest.raises(WeightsError, match=r"resnet18 is a ResNet, where a ViT is needed: choose a timm vit_"):
        DenseViT(folder, feature="token")
    with pytest.raises(ConfigError, match=r"resnet18 is a ResNet and has no keys; use explore\.feature=token"):
        load_backbone("random:resnet18", device="cpu")
    with pytest.raises(ConfigError, match="not 'query'"):
        load_backbone("random:resnet18", feature="query", device="cpu")


def test_operations_by_hand() -> None:
    """Twice the products of ResNet-18's convolutions at 224 px: out side squared, in x out channels, kernel squared."""
    convolutions = [(112, 3, 64, 7), *[(56, 64, 64, 3)] * 4]
    for side, width in ((28, 128), (14, 256), (7, 512)):
        convolutions += [(side, width // 2, width, 3), *[(side, width, width, 3)] * 3, (side, width // 2, width, 1)]
    expected = sum(2 * side**2 * inside * outside * kernel**2 for side, inside, outside, kernel in convolutions)
    cost = backbone_cost(build_backbone({"architecture": "resnet18"}).eval())
    assert cost["gflops"] == pytest.approx(expected / 1e9, rel=1e-9)
    assert cost["parameters"] == pytest.approx(11.689512 - 0.513)  # as published, less the classifier
