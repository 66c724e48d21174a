"""Weight files as their authors publish them: the ViT inside under timm's names, and its normalisation (README §2).

What a file does not say is not guessed in silence: its keys tell DINO, iBOT, DINOv2, MAE and MoCo-v3, its name may (the
note says so), and else the answer is asked for.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_pretrained_cfg, is_model_pretrained
from torch import Tensor

from sohes.backbones.provenance import (
    IMAGE_LABELS,
    NONE,
    PROBABLY,
    UNKNOWN,
    Provenance,
    Step,
    join_supervision,
    known_step,
    timm_step,
)
from sohes.backbones.timm_folder import (
    NAME_IT,
    VisionTransformer,
    build_vit,
    left_out_note,
    load_state,
    read_safetensors,
)
from sohes.errors import WeightsError, unknown_name
from sohes.files import file_digest

_LOG = logging.getLogger(__name__)
_PATCHES = "patch_embed.proj.weight"
_DEEPEST = 8  # levels of nested dictionaries that are searched
_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1536: "giant"}
_CHOSEN = re.compile(r"(^|\.)(teacher|base_encoder)\.")  # beside a student, beside a momentum encoder
_OF_PRETRAINING = re.compile(r"(mask_token|masked_embed)$|decoder_")
_RENAMED = (
    (re.compile(r"^blocks\.\d+\.(\d+\.)"), r"blocks.\1"),  # DINOv2 in training keeps its blocks in chunks
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1."),  # DINOv2 ViT-g
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
    (re.compile(r"^register_tokens$"), "reg_token"),
)


@dataclass(frozen=True)
class Family:
    """A way to pretrain ViTs.

    Attributes:
        name: as people call it.
        entry: weights of timm that have its input normalisation.
        supervision: what people gave it.
        words: what names it, in a file's name or as the tag of an architecture.
        keys: pattern that keys of its own checkpoints match; None where they look like others.
    """

    name: str
    entry: str
    supervision: str
    words: tuple[str, ...]
    keys: str | None = None


# The first whose keys match. Of MoCo-v3 and iBOT timm has no weights; their code normalises as DINO's does.
_DINO = "vit_small_patch16_224.dino"
FAMILIES = (
    Family("MoCo-v3", _DINO, NONE, ("moco", "mocov3"), r"(^|\.)(base|momentum)_encoder\."),
    Family("MAE", "vit_base_patch16_224.mae", NONE, ("mae",), r"(^|\.)decoder_(embed|pos_embed|blocks|norm|pred)\b"),
    Family("iBOT", _DINO, NONE, ("ibot",), r"(^|\.)(masked_embed$|head\.last_layer2)"),
    Family(
        "DINOv2",
        "vit_small_patch14_dinov2.lvd142m",
        NONE,
        ("dinov2", "lvd142m"),
        r"(^|\.)(register_tokens$|ibot_head\.)",
    ),
    Family("DINO", _DINO, NONE, ("dino",), r"(^|\.)(head\.(mlp|last_layer)\.|(student|teacher)\.(.*\.)?backbone\.)"),
    Family("AugReg", "vit_small_patch16_224.augreg_in21k_ft_in1k", IMAGE_LABELS, ("augreg",)),
)


def load_checkpoint(path: Path, architecture: str | None) -> tuple[VisionTransformer, Provenance]:
    """The ViT in a weight file, loaded strictly: every tensor of the backbone is used, what is left out is named.

    Args:
        path: a state dict as safetensors or of torch.save, or a training checkpoint with one in it.
        architecture: timm's name for it, best with the tag of the weights that these are, or are normalised as.

    Returns:
        The model in eval mode, and its origin with notes on what was assumed and left out, which are logged too.

    Raises:
        WeightsError: no ViT, several, one that does not fit, or one whose normalisation cannot be told.
    """
    tensors = dict(_flat(_read(path)))
    prefix = _prefix(path, tensors)
    inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    left_out = [key for key in tensors if not key.startswith(prefix) or _OF_PRETRAINING.match(key, len(prefix))]
    state = {_renamed(key): value for key, value in inside.items() if not _OF_PRETRAINING.match(key)}
    name, arguments = _architecture(path, state, architecture)
    known = known_step(state)
    if known is not None:
        why = f"its values are those of {known.method}"
        origin = _Origin(known.method, "vit_small_patch14_dinov2.lvd142m", why, known.supervision)
    else:
        origin = _origin(path, name, architecture, _by_keys(tensors, state))
    if origin.family == "MoCo-v3" and state["cls_token"].shape[-1] == 384:
        arguments["num_heads"] = 12  # as its authors', where timm's ViT-S has 6
    model = _build(path, name, arguments, origin.entry, state)
    left_out += [prefix + key for key in load_state(model, state, str(path))]
    mean, std = (", ".join(f"{value:g}" for value in model.pretrained_cfg[key]) for key in ("mean", "std"))
    note = f"{path.name}: input normalised by mean {mean} and std {std}, as timm's {origin.entry}: {origin.why}"
    note = "; ".join(filter(None, (note, left_out_note(left_out, prefix))))
    _LOG.warning(note)
    supervision = [origin.supervision, *([IMAGE_LABELS + PROBABLY] if "head.weight" in inside else [])]
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
    """What the keys of the one ViT in the file begin with, "teacher.backbone."; of teacher and student the teacher."""
    found = [key.removesuffix(_PATCHES) for key in tensors if f".{key}".endswith(f".{_PATCHES}")]
    found = [prefix for prefix in found if _CHOSEN.search(prefix)] or found
    if not found:
        shown = f"keys: {', '.join(list(tensors)[:5])}, …" if tensors else "it holds no dictionary of tensors"
        raise WeightsError(
            f"{path}: no '{_PATCHES}', so not a timm ViT ({shown}); files of timm and of the authors of DINO, DINOv2, "
            "iBOT, MAE and MoCo-v3 are read, and timm folders"
        )
    if len(found) > 1:
        raise WeightsError(
            f"{path}: holds {len(found)} ViTs ({', '.join(found)}); save the state dict of the one you mean alone"
        )
    return found[0]


def _renamed(key: str) -> str:
    for pattern, name in _RENAMED:
        key = pattern.sub(name, key)
    return key


def _by_keys(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Family | None:
    """The family that a file's keys tell."""
    found = next(
        (family for family in FAMILIES if family.keys and any(re.search(family.keys, k) for k in tensors)), None
    )
    masked = any(key.endswith("mask_token") for key in tensors)
    if _layer_scale(state) and (found.name == "DINO" if found else masked):
        return _family("dinov2")  # which trains as DINO does
    return found


def _family(word: str) -> Family | None:
    return next((family for family in FAMILIES if word.partition("_")[0] in family.words), None)


def _layer_scale(state: Mapping[str, Tensor]) -> bool:
    return "blocks.0.ls1.gamma" in state


def _architecture(path: Path, state: Mapping[str, Tensor], given: str | None) -> tuple[str, dict[str, Any]]:
    """Timm's name without tag, and the arguments in which this ViT differs from it."""
    arguments: dict[str, Any] = {}
    if "norm.weight" not in state and "fc_norm.weight" in state:  # as MAE's authors tune it
        arguments["global_pool"] = "avg"
    if given is not None:
        name = given.partition(".")[0]
        if not timm.is_model(name):
            raise WeightsError(unknown_name("timm architecture", name, timm.list_models("vit_*")))
        return name, arguments
    if state[_PATCHES].ndim != 4:
        raise WeightsError(f"{path}: '{_PATCHES}' of shape {tuple(state[_PATCHES].shape)}, not a ViT's (D, 3, P, P)")
    dim, _, patch, _ = state[_PATCHES].shape
    size = _SIZES.get(dim, f"width{dim}")
    name = f"vit_{size}_patch{patch}_224"
    if _layer_scale(state):
        name = f"vit_{size}_patch14{'_reg4' if 'reg_token' in state else ''}_dinov2"
        arguments |= {"patch_size": patch} if patch != 14 else {}
    if not timm.is_model(name):
        raise WeightsError(f"{path}: width {dim}, patch {patch} matches no known ViT. {NAME_IT}")
    return name, arguments


@dataclass(frozen=True)
class _Origin:
    """What weights in a file are, and who says so."""

    method: str
    entry: str  # of timm, with the same input normalisation
    why: str
    supervision: str
    family: str = ""


def _origin(path: Path, name: str, given: str | None, family: Family | None) -> _Origin:
    """Who tells, in this order: the user, the keys, the file's name, an architecture that one family alone has.

    Raises:
        WeightsError: nothing does, or the user names what timm does not know.
    """

    def of(found: Family | None, entry: str, why: str, doubt: str = "") -> _Origin:
        if found is None:
            supervision = join_supervision([timm_step(entry).supervision])
            return _Origin(f"file {path.stem} (as {entry}{doubt})", entry, why, supervision)
        return _Origin(
            f"file {path.stem} ({found.name}{doubt})", entry, why, found.supervision + PROBABLY, family=found.name
        )

    tag = (given or "").partition(".")[2]
    if tag:
        said, entry = _family(tag), f"{name}.{tag}"
        if said is None and not is_model_pretrained(entry):
            known = [*timm.list_pretrained(f"{name}.*"), *(f"{name}.{word}" for f in FAMILIES for word in f.words)]
            raise WeightsError(unknown_name("timm weights", entry, known))
        return of(family or said, entry if is_model_pretrained(entry) else said.entry, "as was said")  # type: ignore[union-attr]
    if family is not None:
        return of(family, family.entry, f"its keys are those of {family.name}")
    by_name = ", by its name"
    if path.stem in _published():
        entry = _published()[path.stem]
        return of(_family(entry.partition(".")[2]), entry, f"assumed, for the file is named as timm's {entry}", by_name)
    words = set(re.split(r"[^a-z0-9]+", path.stem.lower()))
    named = [family for family in FAMILIES if words & set(family.words)]
    if len(named) == 1:
        return of(named[0], named[0].entry, f"assumed, for the file's name says {named[0].name}", by_name)
    if name.endswith("_dinov2"):
        why = "only DINOv2, and what was trained further from it, has this architecture"
        return _Origin(f"file {path.stem}", f"{name}.lvd142m", why, UNKNOWN)
    raise WeightsError(_question(path, name))


@cache
def _published() -> dict[str, str]:
    """Timm's weights by their own names and by those of the files that their authors published."""
    names = timm.list_pretrained(["vit_*", "deit*"])
    files = {Path(str(_entry(name).url)).stem: name for name in names if _entry(name).url}
    return files | {name: name for name in names}


def _entry(name: str) -> PretrainedCfg:
    """What timm says of weights that it has."""
    entry = get_pretrained_cfg(name)
    assert entry is not None, f"timm has no {name}"
    return entry


def _question(path: Path, name: str) -> str:
    """That it cannot be told how the images were normalised, what the answers are, and how to give one."""
    answers: dict[tuple[tuple[float, ...], tuple[float, ...]], list[str]] = {}
    known = {f"{name}.{family.words[0]}": family.entry for family in FAMILIES if family.name != "DINOv2"}
    for answer, entry in {**known, **{entry: entry for entry in timm.list_pretrained(f"{name}.*")}}.items():
        answers.setdefault((_entry(entry).mean, _entry(entry).std), []).append(answer)
    shown = "; ".join(
        f"{' or '.join(names[:4])} for mean {mean} and std {std}" for (mean, std), names in answers.items()
    )
    return (
        f"{path}: neither its keys nor its name tell how images were normalised for it. Say which weights they are, or "
        "are normalised as, with weights.architecture=NAME (Python: architecture=NAME; sohes explore: --architecture "
        f"NAME): {shown}. For other "
        "values give a timm folder, whose config.json holds mean and std"
    )


def _build(
    path: Path, name: str, arguments: Mapping[str, Any], entry: str, state: dict[str, Tensor]
) -> VisionTransformer:
    """The ViT with a position table of the file's size; `state`'s table and class token are brought to timm's form."""
    normalisation = {key: getattr(_entry(entry), key) for key in ("mean", "std")}
    config = {"architecture": name, "model_args": dict(arguments), "pretrained_cfg": normalisation}
    model = build_vit(config)
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
        model = build_vit(config)
    return model
