"""A trained segmenter as one callable: image in, forest out.

segmenter = load_segmenter("runs/demo/correct/segmenter")
forest = segmenter.segment("photo.jpg")
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import logging

from sohes.backbones.precision import autocast, default_device
from sohes.backbones.provenance import PROVENANCE, SOHES, Provenance, Step, read_provenance
from sohes.backbones.timm_folder import CONFIG, save_backbone_folder
from sohes.data.images import ImageLike, as_image
from sohes.errors import SohesError, WeightsError
from sohes.files import atomic_path, read_json, write_json
from sohes.masks import MaskForest, encode_masks
from sohes.segmenters import hub
from sohes.segmenters.decode import decode_parents, relations, select_forest
from sohes.segmenters.mask2former import ENTITY, EntitySegmenter, EntitySegmenterConfig

MAX_MASKS = 1000  # of an image, by score [protocol]
_PIXELS = 1 << 22  # of masks brought to full size at a time: 16 MB, which processors and allocators reuse


class Segmenter:
    """Predicts the forest of an image.

    Args:
        model: in eval mode, on its device.
        provenance: of the ViT inside, the training that made the segmenter last.
    """

    def __init__(self, model: EntitySegmenter, provenance: Provenance) -> None:
        self.model = model.eval()
        self.provenance = provenance
        self.device = next(model.parameters()).device
        config = model.vit.pretrained_cfg
        self._mean, self._std = (np.asarray(config[key], np.float32) for key in ("mean", "std"))
        self._patch = int(model.vit.patch_embed.patch_size[0])

    def input_size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Size at which an image is shown to the model: both sides limited, multiples of the patch, at least two."""
        config = self.model.config
        scale = min(config.inference_short_px / min(size_hw), config.inference_long_px / max(size_hw))
        height, width = (max(2, round(side * scale / self._patch)) * self._patch for side in size_hw)
        return height, width

    @torch.no_grad()
    def predict(self, image: ImageLike) -> MaskForest:
        """All predictions of an image, at most 1,000, best first; this is what is evaluated.

        A score is the probability of an entity times the mean mask probability inside the mask.

        Args:
            image: a path, a PIL image, an array or a tensor; see `as_image`.

        Raises:
            DataError: the image cannot be used.
        """
        array = as_image(image)
        size_hw = (array.shape[0], array.shape[1])
        height, width = self.input_size(size_hw)
        resized = Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC)
        pixels = (np.asarray(resized, np.float32) / 255 - self._mean) / self._std
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self.device)
        with autocast(self.device):
            output = self.model(batch)
        entity, masks = output.entity_logits[-1][0], output.mask_logits()[0]
        scores, rles = self._read(entity, masks, (height, width), size_hw)
        order = torch.argsort(scores, descending=True, stable=True)[:MAX_MASKS]
        probability = output.ancestor_logits[0][order][:, order].sigmoid().cpu().numpy()
        rles = [rles[index] for index in order.tolist()]
        forest = MaskForest(
            size_hw=size_hw,
            rles=rles,
            scores=scores[order].cpu().numpy().astype(np.float32),
            ancestor=np.zeros((len(rles), len(rles)), dtype=bool),
            parent=np.full(len(rles), -1, dtype=np.int64),
        )
        filled = np.flatnonzero(forest.areas > 0)
        return _relate(forest.select(filled), probability[np.ix_(filled, filled)])

    def segment(self, image: ImageLike, *, min_score: float = 0.5) -> MaskForest:
        """The confident, distinct entities of an image as a forest; `image` as for `predict`."""
        return select_forest(self.predict(image), min_score=min_score)

    def save(self, folder: str | Path) -> Path:
        """Write a segmenter folder that `load_segmenter` reads, in place of one that is there.

        Raises:
            WeightsError: the folder holds other files.
        """
        folder = Path(folder)
        others = sorted({path.name for path in folder.iterdir()} - {*hub.FILES, hub.CARD}) if folder.exists() else []
        if others:
            raise WeightsError(f"{folder}: holds other files, {others[0]} for one; name a new folder")
        return save_segmenter(folder, self.model, self.provenance)

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

    def _read(
        self, entity: Tensor, masks: Tensor, input_hw: tuple[int, int], size_hw: tuple[int, int]
    ) -> tuple[Tensor, list[dict]]:
        """Scores (N,) at the size that the model saw, run lengths at the image's, a few masks at a time."""
        scores, rles = [], []
        count = max(1, _PIXELS // max(math.prod(input_hw), math.prod(size_hw)))
        for logits, part in zip(entity.split(count), masks.split(count), strict=True):
            seen = F.interpolate(part[None], input_hw, mode="bilinear", align_corners=False)
            full = F.interpolate(seen, size_hw, mode="bilinear", align_corners=False)[0]
            scores.append(prediction_scores(logits, seen[0]))
            rles += encode_masks((full > 0).cpu().numpy())
        return torch.cat(scores), rles


def prediction_scores(entity_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Scores (N,) of entity logits (N, 2) and mask logits (N, H, W)."""
    inside = mask_logits > 0
    mean = (mask_logits.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    return entity_logits.softmax(-1)[:, ENTITY] * mean


def _relate(forest: MaskForest, probability: NDArray[np.floating]) -> MaskForest:
    areas = forest.areas
    relation = relations(probability, areas)
    parent = decode_parents(relation, areas, probability)
    return MaskForest(forest.size_hw, forest.rles, forest.scores, relation, parent, forest.attributes)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers from drawing a progress bar over ours for one small file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_segmenter(folder: Path, model: EntitySegmenter, provenance: Provenance) -> Path:
    """Write a segmenter folder (config, safetensors, provenance of the ViT), atomically."""
    folder = Path(folder)
    with atomic_path(folder) as temporary:
        with _no_bars():
            model.save_pretrained(temporary)
        write_json(temporary / PROVENANCE, provenance.as_json())
    return folder


def load_model(folder: Path) -> tuple[EntitySegmenter, Provenance]:
    """The bare model of a segmenter folder, on the CPU, and where its ViT comes from, the segmenter's training last.

    Raises:
        WeightsError: not a segmenter folder, or damaged.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else None
    if not isinstance(config, dict) or config.get("model_type") != EntitySegmenterConfig.model_type:
        raise WeightsError(f"{folder}: not a segmenter folder (no config.json of one); give …/segmenter of a run")
    try:
        with _no_bars():
            loaded: Any = EntitySegmenter.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        provenance = read_provenance(folder / PROVENANCE)
    except SohesError:
        raise
    except Exception as error:  # what a config of unknown origin asks for can fail in any library below
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{folder}: cannot be loaded as a segmenter ({reason})") from error
    model, report = loaded
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:  # transformers would go on with random weights
            example = sorted(str(key) for key in report[problem])[0]
            raise WeightsError(f"{folder}: not a segmenter's weights: {problem.replace('_', ' ')}, e.g. {example}")
    if provenance.steps[-1].method != SOHES:  # a folder from when provenance named the start weights alone
        provenance = provenance.then(Step(method=SOHES))
    return model, provenance


def load_segmenter(source: str | Path, *, device: torch.device | str | None = None) -> Segmenter:
    """A segmenter, ready to predict, on `device` (default: the GPU if there is one).

    Args:
        source: a segmenter folder, or "hf-hub:user/name", with "@revision" if one is meant.
        device: of the model.

    Raises:
        WeightsError: not a segmenter, damaged, or not reachable.
    """
    model, provenance = load_model(hub.fetch(str(source)) if str(source).startswith(hub.HUB) else Path(source))
    model.to(torch.device(device or default_device()))  # type: ignore[arg-type]  # transformers wraps nn.Module.to
    return Segmenter(model, provenance)


def export_backbone(segmenter: Path, folder: Path) -> Path:
    """Write the ViT inside the segmenter folder `segmenter` to the timm folder `folder`."""
    model, provenance = load_model(segmenter)
    return save_backbone_folder(folder, model.vit, provenance)
