"""One step: what the loss is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.backbones.timm_folder import build_vit
from sohes.methods.fs4.losses import view_losses
from sohes.methods.fs4.module import Fs4Module
from sohes.methods.fs4.pixel_labels import make_pixel_labels
from sohes.methods.fs4.pyramid import PyramidLabels
from sohes.methods.fs4.pyramid_loss import RegionView
from sohes.methods.fs4.views import collate
from tests.methods.fs4.tiny import PICIE, VIT, config, samples


def module(**changes: Any) -> Fs4Module:
    torch.manual_seed(0)
    return Fs4Module(build_vit(VIT), config(**changes))


@pytest.fixture
def batch(start: Path) -> dict[str, Tensor]:
    return collate([samples(start).sample(0, index) for index in (5, 2)])


def labelled(start: Path, folder: Path, epoch: int = 0, **changes: Any) -> Fs4Module:
    """A module with the labels of an epoch."""
    made = module(**changes).eval()
    made.labels, _ = make_pixel_labels(
        lambda batch: made.embed(batch["view_a"], batch["view_b"], batch["crop"]),
        samples(start),
        epoch,
        folder,
        made.config,
        workers=0,
    )
    return made.train()


def test_embeddings_are_aligned_and_of_unit_length(batch: dict[str, Tensor]) -> None:
    """The whole image without a mirror is one view as the other."""
    made = module().eval()
    whole = torch.tensor([[0.0, 0, 1, 1, 0], [0, 0, 1, 1, 1]])
    first, second = made.embed(batch["view_b"], batch["view_b"], whole)
    assert first.shape == (2, 8, 16, 16)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(2, 16, 16))
    torch.testing.assert_close(second[0], first[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(second[1], first[1].flip(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mse", [False, True])
def test_loss(start: Path, tmp_path: Path, batch: dict[str, Tensor], mse: bool) -> None:
    """By the labels of the images themselves, whatever their place in the batch."""
    made = labelled(start, tmp_path, mse=mse, class_weight="freq", **PICIE)
    outputs = made(**batch)
    assert set(outputs) == {"loss_pixels", "within", "across"} | ({"mse"} if mse else set())
    assert made.labels is not None
    shares = made.labels.counts / made.labels.counts.sum(1, keepdim=True)
    labels = made.labels.of(torch.tensor([5, 2]))
    expected = view_losses(
        made.embed(batch["view_a"], batch["view_b"], batch["crop"]),
        labels,
        made.labels.centroids,
        weights=shares.float(),
        temperature=0.1,
        mse=mse,
    )
    assert float(outputs["loss_pixels"]) == pytest.approx(float(expected.total), rel=1e-6)
    outputs["loss_pixels"].backward()
    assert not [name for name, p in made.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(("epoch", "weight"), [(0, 1.0), (1, 0.5)])
def test_regions_join_the_loss(start: Path, tmp_path: Path, epoch: int, weight: float) -> None:
    """With the weight of the epoch in its round; view 1 shows its crop of the base, view 2 all of it."""
    made = labelled(start, tmp_path, epoch=epoch, pgg_start_epochs=1, cae="none")
    assert made.heads is not None
    labels, confidence = torch.arange(40).view(8, 5) % 3, torch.linspace(0.1, 1, 40).view(8, 5)
    made.begin_round(0, PyramidLabels((1, 2), labels.numpy().astype(np.uint16), confidence.numpy(), ()))
    batch = collate([samples(start).sample(epoch, index) for index in (5, 2)])
    outputs = made(**batch)
    views = []
    for name, crop in (("view_a", batch["crop"]), ("view_b", torch.tensor([[0.0, 0, 1, 1, 0]] * 2))):
        seen = made.network((batch[name].float() / 255 - made.mean) / made.std)
        views.append(RegionView(crop, seen.deep, None, seen.embeddings))
    expected = made.heads(views, labels[[5, 2]], confidence[[5, 2]])
    torch.testing.assert_close(outputs["loss_pyramid"], weight * expected.pyramid)
    torch.testing.assert_close(outputs["loss_link"], 0.1 * expected.link)
    sum(outputs[name] for name in outputs if name.startswith("loss")).backward()
    assert not [name for name, p in made.named_parameters() if p.requires_grad and p.grad is None]


def test_labels_of_another_epoch_are_not_taken(start: Path, tmp_path: Path) -> None:
    made = labelled(start, tmp_path, **PICIE)
    with pytest.raises(AssertionError):
        made(**collate([samples(start).sample(1, 0)]))


def test_a_step_lowers_the_loss(start: Path, tmp_path: Path, batch: dict[str, Tensor]) -> None:
    made = labelled(start, tmp_path, **PICIE)
    optimizer = torch.optim.Adam(made.network.decoder.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = made(**batch)["loss_pixels"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)


def test_a_resnet_trains(start: Path, batch: dict[str, Tensor]) -> None:
    """With PiCIE's pyramid, a quarter of the image's side."""
    import timm

    resnet = timm.create_model("resnet18", pretrained=False, num_classes=0)
    made = Fs4Module(resnet, config(embedding_side=8, **PICIE)).eval()
    embeddings = made.embed(batch["view_a"], batch["view_b"], batch["crop"])
    assert embeddings[0].shape == embeddings[1].shape == (2, 8, 8, 8)
    F.mse_loss(*embeddings).backward()
