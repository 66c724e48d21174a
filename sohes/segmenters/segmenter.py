"""What every way to segment an image offers, and how one that was trained comes back from its folder (README §1)."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult
from safetensors.torch import save_file
from torch import Tensor

from sohes.backbones.card import CARD, read_numbers
from sohes.backbones.precision import default_device
from sohes.backbones.provenance import PROVENANCE, Provenance
from sohes.backbones.timm_folder import CONFIG, WEIGHTS
from sohes.data.images import ImageLike
from sohes.errors import WeightsError, unknown_name
from sohes.files import atomic_path, file_digest, read_json, write_json, write_text
from sohes.masks import MaskForest
from sohes.segmenters import hub
from sohes.segmenters.card import segmenter_card
from sohes.segmenters.decode import select_forest

# `model_type` in a folder's config.json -> what loads it, given the folder and a device; imported when it is needed
KINDS = {
    "sohes_entity_segmenter": "sohes.segmenters.entity:load_entity_predictor",  # Mask2Former
    "sohes_eomt_segmenter": "sohes.segmenters.entity:load_entity_predictor",
    "leopart_segmenter": "sohes.methods.leopart.segmenter:load_leopart_segmenter",
    "fs4_segmenter": "sohes.methods.fs4.segmenter:load_fs4_segmenter",
    "cast_segmenter": "sohes.methods.cast.segmenter:load_cast_segmenter",
}


class Segmenter(ABC):
    """An image in, a forest of masks out.

    Attributes:
        backbone: timm name of the ViT inside, or what stands for one in a record.
        init: where its weights come from, in words.
        supervision: what people gave to its masks, in the words of `Provenance`.
    """

    backbone: str
    init: str
    supervision: str

    @abstractmethod
    def predict(self, image: ImageLike) -> MaskForest:
        """Every mask of an image, at most 1,000, ranked by score; this is what is evaluated.

        Args:
            image: a path, a PIL image, an array or a tensor; see `as_image`.

        Raises:
            DataError: the image cannot be used.
        """

    def segment(self, image: ImageLike, *, min_score: float = 0.5) -> MaskForest:
        """The confident, distinct masks of an image as a forest; `image` as for `predict`."""
        return select_forest(self.predict(image), min_score=min_score)


class TrainedSegmenter(Segmenter):
    """A segmenter around a ViT, kept in a folder.

    Args:
        provenance: of the ViT inside, the training that made the segmenter last.

    Attributes:
        description: what it is and predicts, for a model card.
        results: what was measured of it, for the same.
    """

    description: str
    results: Sequence[EvalResult] = ()

    def __init__(self, provenance: Provenance) -> None:
        self.provenance = provenance
        self.backbone, self.init = provenance.timm_name, provenance.start.label
        self.supervision = provenance.supervision

    @abstractmethod
    def _write(self, folder: Path) -> Path:
        """Write `hub.FILES` and a card to the folder, atomically; its config.json has a `model_type` of `KINDS`."""

    def _write_files(self, folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Path:
        """`_write` of a segmenter that is tensors and a JSON-able config with its `model_type`."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, temporary / WEIGHTS)
            write_json(temporary / CONFIG, config)
            write_json(temporary / PROVENANCE, self.provenance.as_json())
            digest = file_digest(temporary / WEIGHTS)
            card = segmenter_card(self.description, self.provenance, digest, results=self.results)
            write_text(temporary / CARD, card)
        return folder

    def save(self, folder: str | Path) -> Path:
        """Write a segmenter folder that `load_segmenter` reads, in place of one that is there.

        Raises:
            WeightsError: the folder holds other files.
        """
        folder = Path(folder)
        others = sorted({path.name for path in folder.iterdir()} - {*hub.FILES, CARD}) if folder.exists() else []
        if others:
            raise WeightsError(f"{folder}: holds other files, {others[0]} for one; name a new folder")
        return self._write(folder)

    def push_to_hub(self, repo_id: str, *, license: str = "unknown", dry_run: str | Path | None = None) -> str:
        """Upload the segmenter with a model card to the Hugging Face hub; made there if new.

        Args:
            repo_id: "user/name".
            license: of the weights, as the hub writes it ("apache-2.0"); the start weights decide what it may be.
            dry_run: a folder to write what would be uploaded to; nothing is contacted.

        Returns:
            Address of the commit, or the folder of a dry run.

        Raises:
            WeightsError: not a name, not reachable, not allowed, or the folder holds other files.
        """
        return hub.push(self, repo_id, license=license, dry_run=dry_run)


@dataclass(frozen=True)
class Inference:
    """A way to predict with a trained segmenter other than its own `predict`.

    Attributes:
        name: tells it from all others, for records.
        around: what predicts, given the segmenter.
    """

    name: str
    around: Callable[[TrainedSegmenter], Segmenter]


def load_segmenter(source: str | Path, *, device: torch.device | str | None = None) -> TrainedSegmenter:
    """A segmenter of any of `KINDS`, ready to predict, on `device` (default: the GPU if there is one).

    Args:
        source: a segmenter folder, or "hf-hub:user/name", with "@revision" if one is meant.
        device: of the model.

    Raises:
        WeightsError: not a segmenter, of an unknown kind, damaged, or not reachable.
    """
    folder = hub.fetch(str(source)) if str(source).startswith(hub.HUB) else Path(source)
    load = pkgutil.resolve_name(KINDS[segmenter_kind(folder)])
    segmenter: TrainedSegmenter = load(folder, torch.device(device or default_device()))
    segmenter.results = read_numbers(folder)
    return segmenter


def segmenter_kind(folder: Path) -> str:
    """Which of `KINDS` a segmenter folder holds.

    Raises:
        WeightsError: none of them, or not a segmenter folder.
    """
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind is None:
        raise WeightsError(f"{folder}: not a segmenter folder (no config.json of one); give …/segmenter of a run")
    if str(kind) not in KINDS:
        raise WeightsError(f"{folder / CONFIG}: {unknown_name('kind of segmenter (model_type)', str(kind), KINDS)}")
    return str(kind)
