"""A backbone on disk: a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads (README §3).

config.json          timm's: architecture, arguments, input normalisation
model.safetensors    the state dict
provenance.json      where the weights come from and every training since
README.md            model card
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import ResNet, is_model_in_modules, save_for_hf
from torch import Tensor, nn

from sohes.backbones.card import CARD, Card
from sohes.backbones.cast.registry import CASTS, CONV_VITS
from sohes.backbones.provenance import PROVENANCE, Provenance, Step, known_step, read_provenance
from sohes.errors import WeightsError, unknown_name
from sohes.files import atomic_path, file_digest, read_json, write_json, write_text

# timm's ViTs, of any of their classes; what they are made of is set at run time, so a type checker cannot follow
VisionTransformer: TypeAlias = Any
TimmModel: TypeAlias = Any  # a VisionTransformer, a ResNet or a CAST
Kind: TypeAlias = Literal["ViT", "ResNet", "CAST"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
NAME_IT = "Name the architecture they were made for: weights.architecture=NAME (sohes explore: --architecture NAME)"
ARCHITECTURES = ["vit_*", "resnet[0-9]*", "cast_*"]  # of timm, that are proposed where a name is unknown
_USE = """import {packages}
model = timm.create_model("local-dir:.", pretrained=True).eval()
features = model.forward_features(torch.zeros(1, {size}))"""
_NAMES: dict[Kind, str] = {"ViT": "vit_*", "ResNet": "resnet*", "CAST": "cast_*"}
_TAGS: dict[Kind, list[str]] = {
    "ViT": ["vision-transformer"],
    "ResNet": ["resnet"],
    "CAST": ["vision-transformer", "superpixels"],
}
# classifiers, which features do not need
_LEFT_OUT = re.compile(r"(head|head_dist|fc|fc_norm|pre_logits)\.")
_COUNTED = ".num_batches_tracked"  # batch norm's steps, which older files lack; torch fills them in


@dataclass(frozen=True)
class BackboneFolder:
    """A loaded folder: the model in eval mode, timm's config and the provenance."""

    model: TimmModel
    timm_config: dict[str, Any]
    provenance: Provenance

    @property
    def patch_px(self) -> int:
        """Pixels along a side for which the model's map has one feature: a ViT's patch, the stride of another."""
        if isinstance(self.model, ResNet):
            maps: Any = self.model.feature_info
            return int(maps[-1]["reduction"])
        return int(self.model.patch_embed.patch_size[0])

    @property
    def vit(self) -> VisionTransformer:
        """The model, for what needs a ViT.

        Raises:
            WeightsError: it is something else.
        """
        _check_kind(self.provenance.timm_name, "ViT")
        return self.model

    @property
    def transformer(self) -> TimmModel:
        """The model, for what takes a ViT or a CAST.

        Raises:
            WeightsError: it is a ResNet.
        """
        _check_kind(self.provenance.timm_name, "ViT", "CAST")
        return self.model


def kind_of(architecture: str) -> Kind:
    """What timm's name, with tag or without, stands for; a ViT where it is neither of the others.

    >>> kind_of("resnet50.tv_in1k"), kind_of("vit_base_patch16_224.dino"), kind_of("cast_small_fusion")
    ('ResNet', 'ViT', 'CAST')
    """
    if architecture.partition(".")[0] in CASTS:
        return "CAST"
    return "ResNet" if is_model_in_modules(architecture, ("resnet",)) else "ViT"


def without_classifier(architecture: str) -> dict[str, Any]:
    """timm's arguments for a model of features alone, that takes any input size."""
    return {"num_classes": 0} | ({"dynamic_img_size": True} if kind_of(architecture) == "ViT" else {})


def no_kind(name: str, error: TypeError) -> str:
    """That timm's model is of no kind that we know, by its answer to `without_classifier`."""
    return (
        f"{name}: neither a ViT that takes any input size nor a ResNet nor CAST ({error}); choose a timm vit_*, "
        "resnet18/50 or cast_*"
    )


def build_vit(timm_config: Mapping[str, Any]) -> VisionTransformer:
    """See `build_backbone`, for what needs a ViT.

    Raises:
        WeightsError: as there; or it is something else.
    """
    _check_kind(timm_config["architecture"], "ViT")
    return build_backbone(timm_config)


def _check_kind(name: str, *wanted: Kind) -> None:
    kind = kind_of(name)
    if kind not in wanted:
        names = " or ".join(_NAMES[one] for one in wanted)
        raise WeightsError(
            f"{name} is a {kind}, where a {' or '.join(wanted)} is needed: choose a timm {names} model "
            "(weights.source=NAME). ResNets and CAST are backbones for probes and for phase 1 with "
            "explore.feature=token, ResNets for FS4 too, CAST for heads of MMSegmentation and MMDetection too"
        )


def build_backbone(timm_config: Mapping[str, Any]) -> TimmModel:
    """An untrained timm ViT, ResNet or CAST of `config.json`'s content, without classifier, taking any input size.

    Where "architecture" carries the tag of one of timm's weights ("vit_base_patch16_224.dino"), the input normalisation
    is that entry's.

    Raises:
        WeightsError: timm does not know the architecture or tag, it is of none of these kinds, or its arguments are not
            its own.
    """
    name = timm_config["architecture"]
    if not timm.is_model(name):
        raise WeightsError(unknown_name("timm architecture", name, timm.list_models(ARCHITECTURES)))
    arguments: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in timm_config.get("model_args", {}).items()
    }
    arguments |= without_classifier(name)
    try:
        model: TimmModel = timm.create_model(name, pretrained=False, **arguments)
    except TypeError as error:
        raise WeightsError(no_kind(name, error)) from None
    except ValueError as error:
        raise WeightsError(f"{name}: its model_args do not go together: {error}") from None
    except RuntimeError:
        known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise WeightsError(unknown_name("timm weights", name, known)) from None
    if "pretrained_cfg" in timm_config:  # or timm would still call the weights by its default's tag
        model.pretrained_cfg.update({"tag": None, "license": None, **timm_config["pretrained_cfg"]})
    return model


def with_stochastic_depth(timm_config: dict[str, Any], rate: float) -> dict[str, Any]:
    """`timm_config` with stochastic depth, `rate` in the last block and linear from 0 in the first; 0: as it is."""
    if not rate:
        return timm_config
    return timm_config | {"model_args": timm_config.get("model_args", {}) | {"drop_path_rate": rate}}


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> list[str]:
    """Load `state` strictly, in the model's own dtype, but for a classifier in it; the keys that were left out.

    Raises:
        WeightsError: keys are missing, unexpected or of another shape; the message lists them.
    """
    own = model.state_dict()
    left_out = [key for key in state if key not in own and _LEFT_OUT.match(key)]
    given = {key: value for key, value in state.items() if key not in left_out}
    problems = []
    for title, keys in (
        ("missing", [key for key in own if key not in given and not key.endswith(_COUNTED)]),
        ("unexpected", [key for key in given if key not in own]),
        (
            "of another shape",
            [
                f"{key} {tuple(given[key].shape)} instead of {tuple(own[key].shape)}"
                for key in own
                if key in given and given[key].shape != own[key].shape
            ],
        ),
    ):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            problems.append(f"{len(keys)} {title}: {', '.join(keys[:5])}{more}")
    if problems:
        raise WeightsError(
            f"{source}: the weights do not fit {type(model).__name__}; {'; '.join(problems)}. "
            f"{NAME_IT}; or where timm itself reads the file: timm.create_model(NAME, pretrained=True, num_classes=0, "
            "pretrained_cfg_overlay=dict(file=FILE)), timm.models.save_for_hf(model, FOLDER), and give the FOLDER."
        )
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in given.items()})
    return left_out


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        WeightsError: missing or damaged; the message names the file.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged safetensors file ({error}); copy or download it again") from error


def save_backbone_folder(folder: Path, model: nn.Module, provenance: Provenance) -> Path:
    """Write `model` (a timm ViT, ResNet or CAST) as a timm folder, atomically, and return the folder."""
    folder = Path(folder)
    with atomic_path(folder) as temporary:
        save_for_hf(model, str(temporary), safe_serialization=True)
        saved = provenance.saved(file_digest(temporary / WEIGHTS))
        write_json(temporary / PROVENANCE, saved.as_json())
        write_text(temporary / CARD, _card(saved))
    return folder


def _card(provenance: Provenance) -> str:
    kind = kind_of(provenance.timm_name)
    ours = provenance.timm_name.partition(".")[0] in (*CASTS, *CONV_VITS)  # of which timm learns from sohes
    return Card(
        name=f"{provenance.timm_name} by {provenance.steps[-1].method}",
        description=f"A {kind} ({provenance.timm_name}) for dense features, without a classifier: {provenance.label}.",
        use=_USE.format(
            packages="sohes, timm, torch" if ours else "timm, torch",
            size='*model.pretrained_cfg["input_size"]' if kind == "ResNet" else "3, *model.patch_embed.img_size",
        ),
        provenance=provenance,
        sha256=provenance.sha256,
        library="timm",
        task="image-feature-extraction",
        tags=["timm", "sohes", *_TAGS[kind], "dense-features"],
    ).text()


def load_backbone_folder(folder: Path) -> BackboneFolder:
    """Load a timm folder; one made elsewhere, without `provenance.json`, gets its own name as origin.

    Raises:
        WeightsError: a file is missing or damaged, or the weights do not fit.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        raise WeightsError(
            f"{folder}: not a timm folder, {CONFIG} is missing; give a folder that has it, weights or a timm name"
        )
    timm_config = read_json(folder / CONFIG)
    if not isinstance(timm_config, dict) or "architecture" not in timm_config:
        raise WeightsError(f"{folder / CONFIG}: no field 'architecture', so not timm's; give a folder that timm saved")
    model = build_backbone(timm_config)
    state = read_safetensors(folder / WEIGHTS)
    left_out = load_state(model, state, str(folder / WEIGHTS))
    if (folder / PROVENANCE).exists():
        provenance = read_provenance(folder / PROVENANCE)
    else:
        made = Step(method=f"timm folder {folder.name}", note=left_out_note(left_out))
        provenance = Provenance(timm_name=timm_config["architecture"], steps=(made,))
    known = known_step(state)
    if known is not None and len(provenance.steps) == 1:  # whatever the folder calls them
        provenance = replace(provenance, steps=(replace(known, note=provenance.steps[0].note),))
    return BackboneFolder(model.eval(), timm_config, provenance.saved(file_digest(folder / WEIGHTS)))


def left_out_note(keys: Iterable[str], prefix: str = "") -> str:
    """Which tensors of a file were not needed, shortened to where their names part from `prefix`; empty for none."""
    chosen, names = prefix.split("."), set()
    for key in keys:
        parts = key.split(".")
        shared = next((i for i, (a, b) in enumerate(zip(parts, chosen, strict=False)) if a != b), len(chosen) - 1)
        names.add(".".join(parts[: shared + 1]) + (".*" if len(parts) > shared + 1 else ""))
    return f"left out: {', '.join(sorted(names))}" if names else ""


def weights_digest(model: nn.Module) -> str:
    """Hash of names and values of the weights: the same wherever they were read from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def input_normalisation(model: TimmModel) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1, 3, 1, 1) float32 that the weights expect of RGB in [0, 1]."""
    mean, std = (torch.tensor(model.pretrained_cfg[key], dtype=torch.float32) for key in ("mean", "std"))
    return mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
