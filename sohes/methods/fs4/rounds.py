"""A round: labels of regions, then a training whose epochs begin with new labels of pixels (README §3 to §6)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import Dataset

from sohes.backbones.precision import default_device
from sohes.backbones.timm_folder import BackboneFolder
from sohes.backbones.timm_vit import frozen
from sohes.data.coco import ImageItem
from sohes.data.images import load_image
from sohes.engine.checkpoints import CheckpointHook, checkpoints
from sohes.engine.hooks import bare
from sohes.engine.stopping import Stopped
from sohes.methods.fs4.module import Fs4Module
from sohes.methods.fs4.monitor import Row, check_collapse, write_rows
from sohes.methods.fs4.pixel_labels import PixelLabels, labels_path, make_pixel_labels
from sohes.methods.fs4.pyramid import PyramidLabels, label_regions
from sohes.methods.fs4.regions import RegionEmbedder, RegionStore
from sohes.methods.fs4.settings import Fs4Config
from sohes.methods.fs4.views import Fs4Samples, base_square, image_tensor
from sohes.records import config_hash, content_hash

EPOCHS, LABELS = "epochs.csv", "pixel_labels"
_REGION_BATCH = 32  # images that are seen together


class BaseSquares(Dataset[Tensor]):
    """The base squares (3, P, P) uint8 of images, as they are."""

    def __init__(self, items: Sequence[ImageItem], base_px: int) -> None:
        self._items, self._base_px = list(items), base_px

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tensor:
        return image_tensor(base_square(load_image(self._items[index].path), self._base_px))


def region_labels(
    backbone: BackboneFolder, items: Sequence[ImageItem], config: Fs4Config, folder: Path
) -> PyramidLabels:
    """Labels of the regions of a round's images, from its folder or, the first time, by the backbone as it now is.

    An interruption loses 256 images' embeddings at most.

    Raises:
        ConfigError, DataError: see `RegionEmbedder`, `RegionStore` and `label_regions`.
    """
    seen_by = frozen(replace(backbone, model=copy.deepcopy(backbone.model)), feature="token")
    embed = RegionEmbedder(seen_by.to(default_device()), config, config)
    listed = content_hash([[str(item.path), *item.size_hw] for item in items])
    identity = content_hash([embed.identity, listed, config_hash(config)])
    path = folder / f"regions-{identity}.safetensors"  # so that labels of other settings are never taken for these
    if path.exists():
        return PyramidLabels.load(path)
    store = RegionStore(folder / "regions", len(items), identity)
    store.fill(embed, BaseSquares(items, config.base_px), batch=_REGION_BATCH, workers=config.workers)
    labels = label_regions(store, config, seed=config.seed)  # on each process: none waits for a quarter of an hour
    if is_main_process():
        labels.save(path)
    store.remove()
    return labels


class PixelLabelHook(Hook):
    """Labels the pixels before the first step of each epoch, by the network as it then is; collapses end the training.

    Leaves `epochs.csv`, a line per epoch, and the label files that checkpoints from the middle of an epoch need.

    Args:
        samples: of the training.
        config: how pixels are clustered.
        folder: of the round.
    """

    def __init__(self, samples: Fs4Samples, config: Fs4Config, folder: Path) -> None:
        self._samples, self._config, self._folder = samples, config, folder
        self._saved: dict[str, Any] | None = None  # of a checkpoint
        self._labels: PixelLabels | None = None
        self._rows: list[Row] = []

    def state_dict(self) -> dict[str, Any]:
        """Labels without their file, and the lines."""
        return {"labels": None if self._labels is None else self._labels.state(), "rows": list(self._rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._saved, self._rows = state["labels"], list(state["rows"])

    def before_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        epoch = self._epoch(batch_idx)
        if self._labels is not None and self._labels.epoch == epoch:
            return
        module: Fs4Module = bare(runner.model)
        if self._saved is not None and self._saved["epoch"] == epoch:
            self._labels = PixelLabels.resumed(self._saved, self._folder / LABELS)
        else:
            self._labels = self._made(runner, module, epoch)
        module.labels = self._labels

    def _epoch(self, step: int) -> int:
        return self._samples.first_epoch + step // self._samples.steps

    def _made(self, runner: Runner, module: Fs4Module, epoch: int) -> PixelLabels:
        module.eval()  # also for clustering, unlike PiCIE
        labels, row = make_pixel_labels(
            lambda batch: module.embed(batch["view_a"], batch["view_b"], batch["crop"]),
            self._samples,
            epoch,
            self._folder / LABELS,
            self._config,
            workers=self._config.workers,
            pause=lambda: _stop_if_asked(runner, epoch),
        )
        module.train()
        self._rows = [*self._rows, row]
        if is_main_process():
            write_rows(self._folder / EPOCHS, self._rows)
            self._remove_old(epoch)
        check_collapse(self._rows, self._config.clusters)
        return labels

    def _remove_old(self, epoch: int) -> None:
        """Keep the files of this epoch and of those that a checkpoint may resume in; nothing that is half written."""
        steps = (int(path.stem.split("-")[1]) for path in checkpoints(self._folder))
        first = min([epoch, *map(self._epoch, steps)])
        folder = self._folder / LABELS
        old = (path for path in folder.glob("epoch-*.npy") if path < labels_path(folder, first))
        for path in (*old, *folder.glob(".epoch-*")):
            path.unlink()


def _stop_if_asked(runner: Runner, epoch: int) -> None:
    """After a signal end here: labelling takes longer than a job's warning, and a checkpoint is there already."""
    keeper = next(hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
    number = torch.tensor(keeper.signals.number)
    all_reduce(number, op="max")
    if number:
        barrier()
        raise Stopped(
            int(number),
            f"stopped while the pixels of epoch {epoch} were labelled; run the same command again to resume",
        )
