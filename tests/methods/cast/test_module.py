"""One step: who learns, who follows, what the loss is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn import functional as F

from sohes.backbones.timm_folder import build_backbone, build_vit
from sohes.engine.schedules import cosine
from sohes.errors import ConfigError
from sohes.methods.cast.encoder import takes_superpixels
from sohes.methods.cast.module import MocoModule
from sohes.methods.cast.settings import ContrastSettings
from tests.backbones.conftest import VARIANTS, tiny
from tests.methods.cast.tiny import VIT, SegmentMeans

HEADS = {"hidden_dim": 32, "projection_dim": 16}


def module(encoder: Any = None, *, bf16: bool = False, **changes: Any) -> MocoModule:
    torch.manual_seed(0)
    settings = ContrastSettings(**HEADS | changes)
    return MocoModule(encoder or build_vit(VIT), settings, iterations=10, bf16=bf16).train()


def batch(images: int = 4, side: int = 32, superpixels: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    made = {"images": torch.randint(0, 256, (images, 2, 3, side, side), dtype=torch.uint8, generator=rng)}
    if superpixels:
        labels = torch.randint(0, superpixels, (images, 2, side, side), generator=rng)
        made["superpixels"] = labels.to(torch.int16)
    return made


@pytest.mark.parametrize("kind", [*VARIANTS, "CAST", "ResNet"])
@pytest.mark.parametrize("bf16", [False, True])
def test_any_encoder_trains(kind: str, bf16: bool) -> None:
    encoders = {"CAST": SegmentMeans, "ResNet": lambda: build_backbone({"architecture": "test_resnet"})}
    encoder = encoders[kind]() if kind in encoders else tiny(kind).model
    assert takes_superpixels(encoder) == (kind == "CAST")
    patch_px = encoder.patch_embed.patch_size[0] if kind in VARIANTS else 16
    trained = module(encoder, bf16=bf16)
    data = batch(side=2 * patch_px, superpixels=9 if kind == "CAST" else 0)
    trained.check(**data)
    trained.train()
    outputs = trained(**data)
    outputs["loss"].backward()
    assert all(bool(value.isfinite().all()) for value in outputs.values())
    learning = [*trained.query.named_parameters(), *trained.predictor.named_parameters()]
    silent = [name for name, p in learning if p.requires_grad and p.grad is None]
    assert not silent  # or a distributed training would wait for them
    assert all(p.grad is None for p in trained.key.parameters())
    trained.follow(0)


def test_loss_is_symmetric_and_of_the_other_view() -> None:
    """Written out by cross-entropy, with the networks of the module in the order in which it uses them."""
    trained, plain = module(), module()
    data = batch()
    found = trained(**data)
    views = [(data["images"][:, view].float() / 255 - plain.mean) / plain.std for view in range(2)]
    keys = [F.normalize(plain.key(view, None)[1], dim=1) for view in views]
    queries = [F.normalize(plain.predictor(plain.query(view, None)[1]), dim=1) for view in views]
    own = torch.arange(4)
    expected = sum(F.cross_entropy(queries[one] @ keys[1 - one].T / 0.2, own) for one in range(2))
    torch.testing.assert_close(found["loss"], 2 * 0.2 * expected)


def test_key_encoder_starts_equal_and_follows_with_its_momentum() -> None:
    trained = module(momentum=0.5)
    assert all(map(torch.equal, trained.key.parameters(), trained.query.parameters()))
    before = trained.key.projector[0].weight.clone()
    with torch.no_grad():
        for parameter in trained.query.parameters():
            parameter += 1
    trained.follow(10)  # the last one: momentum 1
    assert torch.equal(trained.key.projector[0].weight, before)
    trained.follow(4)
    torch.testing.assert_close(trained.key.projector[0].weight, before + 1 - cosine(0.5, 1.0, 4, 10))


def test_superpixels_go_with_their_view() -> None:
    """Superpixels of a view that all are one label each: the colours of the whole view alone decide."""
    trained = module(SegmentMeans())
    data = batch(superpixels=9)
    one = trained.query.encoder.segment(data["images"][:, 1].float(), data["superpixels"][:, 1].long())
    (_, second) = trained._views(**data)
    again = trained.query.encoder.segment((second[0] * trained.std + trained.mean) * 255, second[1])
    torch.testing.assert_close(one, again, atol=1e-2, rtol=0)


def test_an_encoder_that_refuses_the_view() -> None:
    with pytest.raises(ConfigError, match=r"view_px=32 does not fit the backbone: 3 superpixels are fewer than 4"):
        module(SegmentMeans()).check(**batch(superpixels=3))


def test_batch_norms_see_one_view() -> None:
    trained = module()
    seen: list[int] = []
    norm = next(layer for layer in trained.predictor if isinstance(layer, nn.BatchNorm1d))
    norm.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    trained(**batch())
    assert seen == [4, 4]


def test_batch_norms_over_processes_have_the_same_parameters() -> None:
    """So they may be exchanged after the parameters were grouped, as the stage does on GPUs."""
    trained = module(build_backbone({"architecture": "test_resnet"}))
    before, names = [id(p) for p in trained.parameters()], trained.state_dict().keys()
    assert convert_sync_batchnorm(trained) is trained
    assert [id(p) for p in trained.parameters()] == before
    assert trained.state_dict().keys() == names
    norms = [layer for layer in trained.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 10
    assert all(isinstance(layer, nn.SyncBatchNorm) for layer in norms)


def test_a_fixed_batch_is_learnt_by_heart() -> None:
    """Two equal views: from chance, one in eight, to every query with its own key, in 40 steps."""
    trained, data = module(momentum=0.9), batch(images=8)
    data["images"][:, 1] = data["images"][:, 0]
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=1e-3)
    history = []
    for _ in range(40):
        trained.follow(0)
        outputs = trained(**data)
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
        history.append({name: value.detach() for name, value in outputs.items()})
    assert float(history[0]["accuracy"]) < 0.5
    assert float(history[-1]["accuracy"]) == 1
    assert float(history[-1]["loss"]) < 0.5 * float(history[0]["loss"])
