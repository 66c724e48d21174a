"""Which training weights in a file come from, and whose input normalisation is theirs (README §2)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import timm
from timm.models import PretrainedCfg, get_pretrained_cfg, is_model_pretrained
from torch import Tensor

from sohes.backbones.provenance import IMAGE_LABELS, NONE, PROBABLY, UNKNOWN, join_supervision, timm_step
from sohes.backbones.timm_folder import Kind, kind_of
from sohes.errors import WeightsError, unknown_name


@dataclass(frozen=True)
class Family:
    """A way to pretrain backbones.

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
_DINO_KEYS = r"(^|\.)(head\.(mlp|last_layer)\.|(student|teacher)\.(.*\.)?backbone\.)"
_MOCO_V3_KEYS = r"(^|\.)(base|momentum)_encoder\."
_VITS = (
    Family("MoCo-v3", _DINO, NONE, ("moco", "mocov3"), _MOCO_V3_KEYS),
    Family("MAE", "vit_base_patch16_224.mae", NONE, ("mae",), r"(^|\.)decoder_(embed|pos_embed|blocks|norm|pred)\b"),
    Family("iBOT", _DINO, NONE, ("ibot",), r"(^|\.)(masked_embed$|head\.last_layer2)"),
    Family(
        "DINOv2",
        "vit_small_patch14_dinov2.lvd142m",
        NONE,
        ("dinov2", "lvd142m"),
        r"(^|\.)(register_tokens$|ibot_head\.)",
    ),
    Family("DINO", _DINO, NONE, ("dino",), _DINO_KEYS),
    Family("AugReg", "vit_small_patch16_224.augreg_in21k_ft_in1k", IMAGE_LABELS, ("augreg",)),
)
# Of self-supervised ResNets timm has none; their code normalises as torchvision does (SwAV's red by 0.228, not 0.229).
_TORCHVISION = "resnet50.tv_in1k"
_RESNETS = (
    Family("torchvision", _TORCHVISION, IMAGE_LABELS, ("torchvision",)),
    Family("MoCo", _TORCHVISION, NONE, ("mocov2", "mocov1"), r"(^|\.)encoder_[qk]\."),
    Family("MoCo-v3", _TORCHVISION, NONE, ("mocov3",), _MOCO_V3_KEYS),
    Family("SwAV", _TORCHVISION, NONE, ("swav",), r"(^|\.)(projection_head|prototypes)\."),
    Family("SimSiam", _TORCHVISION, NONE, ("simsiam",), r"(^|\.)encoder\.fc\.6\."),  # its projector's third layer
    Family("DINO", _TORCHVISION, NONE, ("dino",), _DINO_KEYS),
)
_CASTS = (
    Family("CAST, by MoCo-v3", "cast_small", NONE, ("moco", "mocov3"), _MOCO_V3_KEYS),
    Family("CAST, by labels", "cast_small", IMAGE_LABELS, ("deit",), r"^model(_ema)?\."),
)
_OF_KIND: dict[Kind, Sequence[Family]] = {"ViT": _VITS, "ResNet": _RESNETS, "CAST": _CASTS}


def _families(name: str) -> Sequence[Family]:
    """Those of an architecture."""
    return _OF_KIND[kind_of(name)]


def family_by_keys(name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Family | None:
    """The family that a file's keys tell: `tensors` are all of it, `state` those of the backbone, `name` timm's."""
    found = next(
        (one for one in _families(name) if one.keys and any(re.search(one.keys, key) for key in tensors)), None
    )
    masked = any(key.endswith("mask_token") for key in tensors)
    if has_layer_scale(state) and (found.name == "DINO" if found else masked):
        return _family(name, "dinov2")  # which trains as DINO does
    return found


def _family(name: str, word: str) -> Family | None:
    return next((family for family in _families(name) if word.partition("_")[0] in family.words), None)


def has_layer_scale(state: Mapping[str, Tensor]) -> bool:
    """Whether a ViT's branches are scaled, as DINOv2's are."""
    return "blocks.0.ls1.gamma" in state


@dataclass(frozen=True)
class Origin:
    """What weights in a file are, and who says so."""

    method: str
    entry: str  # of timm, with the same input normalisation
    why: str
    supervision: str
    family: str = ""


def origin_of(path: Path, name: str, given: str | None, family: Family | None) -> Origin:
    """Who tells, in this order: the user, the keys, the file's name, an architecture that one family alone has.

    Raises:
        WeightsError: nothing does, or the user names what timm does not know.
    """

    def of(found: Family | None, entry: str, why: str, doubt: str = "") -> Origin:
        if found is None:
            supervision = join_supervision([timm_step(entry).supervision])
            return Origin(f"file {path.stem} (as {entry}{doubt})", entry, why, supervision)
        return Origin(
            f"file {path.stem} ({found.name}{doubt})", entry, why, found.supervision + PROBABLY, family=found.name
        )

    tag = (given or "").partition(".")[2]
    if tag:
        said, entry = _family(name, tag), f"{name}.{tag}"
        if said is None and not is_model_pretrained(entry):
            words = [word for one in _families(name) for word in one.words]
            known = [*timm.list_pretrained(f"{name}.*"), *(f"{name}.{word}" for word in words)]
            raise WeightsError(unknown_name("timm weights", entry, known))
        return of(family or said, entry if is_model_pretrained(entry) else said.entry, "as was said")  # type: ignore[union-attr]
    if family is not None:
        return of(family, family.entry, f"its keys are those of {family.name}")
    by_name = ", by its name"
    if path.stem in _published():
        entry = _published()[path.stem]
        found = _family(name, entry.partition(".")[2])
        return of(found, entry, f"assumed, for the file is named as timm's {entry}", by_name)
    in_name = set(re.split(r"[^a-z0-9]+", path.stem.lower()))
    named = [family for family in _families(name) if in_name & set(family.words)]
    if len(named) == 1:
        return of(named[0], named[0].entry, f"assumed, for the file's name says {named[0].name}", by_name)
    if name.endswith("_dinov2"):
        why = "only DINOv2, and what was trained further from it, has this architecture"
        return Origin(f"file {path.stem}", f"{name}.lvd142m", why, UNKNOWN)
    raise WeightsError(_question(path, name))


@cache
def _published() -> dict[str, str]:
    """Timm's weights by their own names and by those of the files that their authors published."""
    names = timm.list_pretrained(["vit_*", "deit*", "resnet*"])
    files = {Path(str(timm_entry(name).url)).stem: name for name in names if timm_entry(name).url}
    return files | {name: name for name in names}


def timm_entry(name: str) -> PretrainedCfg:
    """What timm says of weights that it has."""
    entry = get_pretrained_cfg(name)
    assert entry is not None, f"timm has no {name}"
    return entry


def _question(path: Path, name: str) -> str:
    """That it cannot be told how the images were normalised, what the answers are, and how to give one."""
    answers: dict[tuple[tuple[float, ...], tuple[float, ...]], list[str]] = {}
    known = {f"{name}.{family.words[0]}": family.entry for family in _families(name) if family.name != "DINOv2"}
    for answer, entry in {**known, **{entry: entry for entry in timm.list_pretrained(f"{name}.*")}}.items():
        answers.setdefault((timm_entry(entry).mean, timm_entry(entry).std), []).append(answer)
    shown = "; ".join(
        f"{' or '.join(names[:4])} for mean {mean} and std {std}" for (mean, std), names in answers.items()
    )
    return (
        f"{path}: neither its keys nor its name tell how images were normalised for it. Say which weights they are, or "
        "are normalised as, with weights.architecture=NAME (Python: architecture=NAME; sohes explore: --architecture "
        f"NAME): {shown}. For other "
        "values give a timm folder, whose config.json holds mean and std"
    )
