"""Weight files as their authors publish them: the backbone inside under timm's names, and its normalisation.

See README §2, §7 and §8.

What a file does not say is not guessed in silence: its keys tell most pretrainings, its name may (the note says so),
and else the answer is asked for.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from sohes.backbones.cast.published import SIGN, architecture_of, from_published
from sohes.backbones.origins import Origin, family_by_keys, has_layer_scale, origin_of, timm_entry
from sohes.backbones.provenance import IMAGE_LABELS, PROBABLY, Provenance, Step, join_supervision, known_step
from sohes.backbones.timm_folder import (
    ARCHITECTURES,
    NAME_IT,
    TimmModel,
    build_backbone,
    left_out_note,
    load_state,
    read_safetensors,
)
from sohes.errors import WeightsError, unknown_name
from sohes.files import file_digest

_LOG = logging.getLogger(__name__)
_PATCHES = "patch_embed.proj.weight"  # that a ViT has
_STAGE = "layer1.0.conv1.weight"  # that a ResNet has
_CLASSIFIERS = {"head.weight", "fc.weight"}  # of a ViT or CAST, of a ResNet
_DEEPEST = 8  # levels of nested dictionaries that are searched
_OWN_CAST = ".pools.0.affinity.bias"  # a key of ours, which no published file has
_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1536: "giant"}
_RESNETS: dict[tuple[int, ...], str] = {  # blocks of each stage, and convolutions of a block
    (2, 2, 2, 2, 2): "resnet18",
    (3, 4, 6, 3, 2): "resnet34",
    (3, 4, 6, 3, 3): "resnet50",
    (3, 4, 23, 3, 3): "resnet101",
    (3, 8, 36, 3, 3): "resnet152",
}
_CHOSEN = re.compile(r"(^|\.)(teacher|base_encoder|encoder_q)\.")  # beside a student, beside a momentum encoder
_AVERAGE = "model_ema."  # of DeiT's code, beside the model that it evaluates
_OF_PRETRAINING = re.compile(r"(mask_token|masked_embed)$|decoder_|(projection_head|prototypes)\.")
_RENAMED = (
    (re.compile(r"^blocks\.\d+\.(\d+\.)"), r"blocks.\1"),  # DINOv2 in training keeps its blocks in chunks
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1."),  # DINOv2 ViT-g
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
    (re.compile(r"^register_tokens$"), "reg_token"),
)


def load_checkpoint(path: Path, architecture: str | None) -> tuple[TimmModel, Provenance]:
    """The backbone in a weight file, loaded strictly: all of its tensors are used, what is left out is named.

    Args:
        path: a state dict as safetensors or of torch.save, or a training checkpoint with one in it.
        architecture: timm's name for it, best with the tag of the weights that these are, or are normalised as.

    Returns:
        The model in eval mode, and its origin with notes on what was assumed and left out, which are logged too.

    Raises:
        WeightsError: no such backbone, several, one that does not fit, or one whose normalisation cannot be told.
    """
    tensors = dict(_flat(_read(path)))
    prefix = _prefix(path, tensors)
    inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    left_out = [key for key in tensors if not key.startswith(prefix) or _OF_PRETRAINING.match(key, len(prefix))]
    state = {_renamed(key): value for key, value in inside.items() if not _OF_PRETRAINING.match(key)}
    name, arguments = _architecture(path, state, architecture)
    state = from_published(state) if SIGN in state else state
    known = known_step(state)
    if known is not None:
        why = f"its values are those of {known.method}"
        origin = Origin(known.method, "vit_small_patch14_dinov2.lvd142m", why, known.supervision)
    else:
        origin = origin_of(path, name, architecture, family_by_keys(name, tensors, state))
    if origin.family == "MoCo-v3" and "cls_token" in state and state["cls_token"].shape[-1] == 384:
        arguments["num_heads"] = 12  # as its authors', where timm's ViT-S has 6
    model = _build(path, name, arguments, origin.entry, state)
    left_out += [prefix + key for key in load_state(model, state, str(path))]
    mean, std = (", ".join(f"{value:g}" for value in model.pretrained_cfg[key]) for key in ("mean", "std"))
    note = f"{path.name}: input normalised by mean {mean} and std {std}, as timm's {origin.entry}: {origin.why}"
    note = "; ".join(filter(None, (note, left_out_note(left_out, prefix))))
    _LOG.warning(note)
    classifier = _CLASSIFIERS & inside.keys() and not prefix.endswith("encoder_q.")  # MoCo-v1 projects by it
    supervision = [origin.supervision, *([IMAGE_LABELS + PROBABLY] if classifier else [])]
    step = Step(method=origin.method, supervision=join_supervision(supervision), note=note)
    return model.eval(), Provenance(timm_name=name, steps=(step,)).saved(file_digest(path))


def _read(path: Path) -> Any:
    """Content of the file: nothing in it is executed."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    # training checkpoints keep their arguments beside the weights: names and values, no code
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            # torch's own message is a page long and advises to switch the protection off
            raise WeightsError(
                f"{path}: cannot be read as tensors alone ({type(error).__name__}{_foreign(path)}); only safetensors "
                "files and what torch.save writes of tensors are accepted, nothing that would execute code. Where you "
                "trust the file, save its state dict alone: "
                "torch.save(torch.load(FILE, weights_only=False)[KEY], NEW_FILE)"
            ) from error


def _foreign(path: Path) -> str:
    """What else than tensors the file asks for, where that can be told."""
    try:
        return ": " + ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))[:3])
    except Exception:  # damaged, or in torch's old format
        return ""


def _flat(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in dictionaries of dictionaries, by the names on the way to it joined with dots."""
    if isinstance(value, Tensor) and key:
        yield key, value
    elif isinstance(value, Mapping) and depth < _DEEPEST:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name), depth + 1)


def _prefix(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """What keys of the one backbone in the file begin with, "teacher.backbone."; of teacher and student the teacher."""
    signs = (_PATCHES, _STAGE, SIGN)
    found = [key.removesuffix(one) for one in signs for key in tensors if f".{key}".endswith(f".{one}")]
    found = [prefix for prefix in found if _CHOSEN.search(prefix)] or found
    found = [prefix for prefix in found if prefix != _AVERAGE] or found
    if any(f".{key}".endswith(_OWN_CAST) for key in tensors):
        raise WeightsError(
            f"{path}: weights of a CAST as this project saves them; give the folder that they lie in, whose "
            "config.json says which CAST it is and how it finds superpixels"
        )
    if not found:
        shown = f"keys: {', '.join(list(tensors)[:5])}, …" if tensors else "it holds no dictionary of tensors"
        raise WeightsError(
            f"{path}: no '{_PATCHES}', '{_STAGE}' or '{SIGN}', so not a timm ViT or ResNet, nor CAST ({shown}); files "
            "of timm, torchvision and of the authors of CAST, DINO, DINOv2, iBOT, MAE, MoCo-v2, MoCo-v3, SimSiam and "
            "SwAV are read, and timm folders"
        )
    if len(found) > 1:
        raise WeightsError(
            f"{path}: holds {len(found)} backbones ({', '.join(found)}); save the state dict of the one you mean alone"
        )
    return found[0]


def _renamed(key: str) -> str:
    for pattern, name in _RENAMED:
        key = pattern.sub(name, key)
    return key


def _architecture(path: Path, state: Mapping[str, Tensor], given: str | None) -> tuple[str, dict[str, Any]]:
    """Timm's name without tag, and the arguments in which this backbone differs from it."""
    arguments: dict[str, Any] = {}
    if "norm.weight" not in state and "fc_norm.weight" in state:  # as MAE's authors tune it
        arguments["global_pool"] = "avg"
    if given is not None:
        name = given.partition(".")[0]
        if not timm.is_model(name):
            raise WeightsError(unknown_name("timm architecture", name, timm.list_models(ARCHITECTURES)))
    if SIGN in state:
        return _cast(path, state, given)
    if given is not None:
        return name, arguments
    if _STAGE in state:
        blocks = [len({key.split(".")[1] for key in state if key.startswith(f"layer{n}.")}) for n in (1, 2, 3, 4)]
        convolutions = 3 if "layer1.0.conv3.weight" in state else 2
        if (*blocks, convolutions) not in _RESNETS:
            shown = f"stages of {', '.join(map(str, blocks))} blocks of {convolutions} convolutions"
            raise WeightsError(f"{path}: {shown} match no known ResNet. {NAME_IT}")
        return _RESNETS[*blocks, convolutions], arguments
    if state[_PATCHES].ndim != 4:
        raise WeightsError(f"{path}: '{_PATCHES}' of shape {tuple(state[_PATCHES].shape)}, not a ViT's (D, 3, P, P)")
    dim, _, patch, _ = state[_PATCHES].shape
    size = _SIZES.get(dim, f"width{dim}")
    name = f"vit_{size}_patch{patch}_224"
    if has_layer_scale(state):
        name = f"vit_{size}_patch14{'_reg4' if 'reg_token' in state else ''}_dinov2"
        arguments |= {"patch_size": patch} if patch != 14 else {}
    if not timm.is_model(name):
        raise WeightsError(f"{path}: width {dim}, patch {patch} matches no known ViT. {NAME_IT}")
    return name, arguments


def _cast(path: Path, state: Mapping[str, Tensor], given: str | None) -> tuple[str, dict[str, Any]]:
    try:
        name, arguments = architecture_of(state)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None
    if given is not None and given.partition(".")[0] != name:
        raise WeightsError(f"{path}: these weights are of {name}, not of {given}; leave the architecture away")
    return name, arguments


def _build(path: Path, name: str, arguments: Mapping[str, Any], entry: str, state: dict[str, Tensor]) -> TimmModel:
    """The model, with a position table of the file's size; `state`'s and its class token are brought to timm's form."""
    normalisation = {key: getattr(timm_entry(entry), key) for key in ("mean", "std")}
    config = {"architecture": name, "model_args": dict(arguments), "pretrained_cfg": normalisation}
    model = build_backbone(config)
    table = state.get("pos_embed")
    if table is None or table.ndim != 3 or getattr(model, "pos_embed", None) is None:
        return model
    own = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    if not own and "cls_token" in state and math.isqrt(table.shape[1] - 1) ** 2 == table.shape[1] - 1:
        # timm's ViTs with registers have no position of the class token: it is part of the token
        state["cls_token"] = state["cls_token"] + table[:, :1]
        state["pos_embed"] = table = table[:, 1:]
    side = math.isqrt(max(0, table.shape[1] - own))
    if side**2 != table.shape[1] - own:
        raise WeightsError(f"{path}: position table of {table.shape[1]} rows, which is no square and {own} tokens")
    if model.patch_embed.grid_size != (side, side):
        config["model_args"] = {**arguments, "img_size": side * int(model.patch_embed.patch_size[0])}
        model = build_backbone(config)
    return model
