"""The model: the values of the authors' code in both variants, and what must not change them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sohes.backbones.cast.model import CAST
from sohes.backbones.cast.sampling import masked_mean
from sohes.backbones.cast.segments import segment_levels
from sohes.errors import ConfigError
from tests.backbones.cast.reference import golden, weights

TINY: dict[str, Any] = {"img_size": 64, "embed_dim": 24, "tokens": (8, 6, 4, 2)}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def theirs(name: str, **options: Any) -> tuple[CAST, dict[str, Tensor], Tensor]:
    """The model with their weights, their values, and the images."""
    values = golden(name)
    depths = values["depth"].tolist()
    arguments: dict[str, Any] = {"mask_empty": False, "num_classes": 10, "fusion": name == "model_fusion", **options}
    model = CAST(**TINY, depths=depths, **arguments)
    model.load_state_dict(weights(values))
    return model.eval(), values, values["image"].float()


def squares(side: int, block: int) -> Tensor:
    places = torch.arange(side) // block
    return places[:, None] * (side // block) + places


@torch.no_grad()
def test_their_class_token_model() -> None:
    model, values, images = theirs("model_cls")
    # they see superpixel 16 of the first image nowhere, and number 16 of them; its pixels go with superpixel 15
    superpixels = values["superpixels"].long().clamp(max=15)
    found = model.segment(images, superpixels)
    close(model.patch_embed(images), values["stem"])
    assert torch.equal(found.superpixels[:, ::8, ::8], values["labels_at_stem"].long())
    assert torch.equal(found.empty, values["empty"])
    for place, level in enumerate(found.levels, start=1):
        assert torch.equal(level.picked, values[f"sampled_inds{place}"])
        close(level.tokens, values[f"block{place}"])
        close(level.logits, values[f"logit{place}"])
        close(level.centroids, values[f"centroid{place}"])
    close(model.forward_features(images, superpixels), values["out"])
    close(model(images, superpixels), values["head"])
    own = torch.arange(16).expand(2, -1)
    maps = segment_levels([level.logits for level in found.levels], own).maps(superpixels)
    assert torch.equal(torch.stack(maps), values["segments"].long())


@torch.no_grad()
def test_their_fusion_model() -> None:
    model, values, images = theirs("model_fusion")
    superpixels = values["superpixels"].long()
    seen = superpixels.clamp(max=15)
    found = model.segment(images, seen)
    for place in (1, 2, 3):
        close(found.levels[place - 1].logits, values[f"logit{place}"])
    close(model.forward_features(images, seen), values["pooled"])
    close(model(images, seen), values["pooled_head"])
    found = model.segment(images, superpixels, full_resolution=True)
    assert found.fused is not None
    for place in (1, 2, 3):
        close(found.levels[place - 1].logits, values[f"dense_logit{place}"])
    close(found.fused, values["dense"])
    close(model.head(found.fused), values["dense_head"])


@torch.no_grad()
def test_their_statistics_in_training() -> None:
    """Of the fusion's batch norm, which sees the class tokens beside the superpixels."""
    model, values, images = theirs("model_fusion")
    for module in model.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0
    close(model.forward_features(images, values["superpixels"].long().clamp(max=15)), values["train_pooled"])
    assert model.fusion is not None
    close(model.fusion.norm.running_mean, values["train_fusion_running_mean"])


def batches() -> tuple[Tensor, list[Tensor]]:
    """Images, and their superpixels: 64, 16 and 41 of them, of which one is too small for the stem's cells."""
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    third = squares(64, 8).clamp(max=39)
    third[1:4, 1:4] = 40
    return images, [squares(64, 8), squares(64, 16), third]


@pytest.mark.parametrize("full_resolution", [False, True])
@pytest.mark.parametrize("name", ["model_cls", "model_fusion"])
@torch.no_grad()
def test_an_image_is_the_same_in_any_batch(name: str, full_resolution: bool) -> None:
    model, _, _ = theirs(name, mask_empty=True)
    images, superpixels = batches()
    together = model.segment(images, torch.stack(superpixels), full_resolution=full_resolution)
    features, levels = together.features(), together.segments()
    for place, labels in enumerate(superpixels):
        alone = model.segment(images[place : place + 1], labels[None], full_resolution=full_resolution)
        count = alone.empty.shape[1]
        close(alone.features()[0], features[place, :count])
        for one, many in zip(alone.segments().labels, levels.labels, strict=True):
            assert torch.equal(one[0], many[place, :count])
        read = model.forward_features(images[place : place + 1], labels[None])
        close(read[0], model.forward_features(images, torch.stack(superpixels))[place])
    assert bool(together.empty[2, 40]) != full_resolution


@torch.no_grad()
def test_a_superpixel_without_a_token_goes_with_the_nearest() -> None:
    model, _, _ = theirs("model_cls", mask_empty=True)
    images, superpixels = batches()
    found = model.segment(images[2:], superpixels[2][None])
    assert found.empty[0].nonzero().tolist() == [[40]]
    assert all(level[0, 40] == level[0, 0] for level in found.segments().labels)
    assert torch.equal(found.features()[0, 40], found.features()[0, 0])


@pytest.mark.parametrize("name", ["model_cls", "model_fusion"])
def test_fewer_tokens_than_groups_do_not_end_a_training(name: str) -> None:
    """Of eight superpixels, as many as tokens, one vanishes on the stem's grid; the image is the same in any batch."""
    model, _, _ = theirs(name, mask_empty=True)
    images, superpixels = batches()
    few = squares(64, 8) // 8  # eight rows of 8 px
    few[few == 7] = 6
    few[57:60, 57:60] = 7
    alone = model.segment(images[2:], few[None])
    assert alone.empty[0].nonzero().tolist() == [[7]]
    model.forward_features(images[2:], few[None]).square().sum().backward()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)
    together = model.segment(images[1:], torch.stack([superpixels[1], few]))
    close(together.features()[1, :8], alone.features()[0])
    with pytest.raises(ValueError, match="has 7 superpixels, fewer than the 8 tokens"):
        model.segment(images[2:], few.clamp(max=6)[None])


@torch.no_grad()
def test_gaps_in_the_numbers_change_nothing() -> None:
    model, _, _ = theirs("model_cls", mask_empty=True)
    images, superpixels = batches()
    whole = model.forward_features(images[:1], superpixels[0][None])
    close(model.forward_features(images[:1], 5 * superpixels[0][None] + 3), whole)


@torch.no_grad()
def test_segments_nest() -> None:
    model, _, _ = theirs("model_fusion", mask_empty=True)
    images, superpixels = batches()
    maps = model.segment(images, torch.stack(superpixels)).segments().maps(torch.stack(superpixels))
    finer = torch.stack(superpixels)
    for level, most in zip(maps, (8, 6, 4, 2), strict=True):
        for image in range(3):
            pairs = set(zip(finer[image].flatten().tolist(), level[image].flatten().tolist(), strict=True))
            assert len(pairs) == len({fine for fine, _ in pairs})
            assert len({coarse for _, coarse in pairs}) <= most
        finer = level


@torch.no_grad()
def test_square_superpixels_are_the_tokens_of_a_plain_vit() -> None:
    """Of means of 2 x 2 cells, through the first level's blocks."""
    model, _, images = theirs("model_cls", mask_empty=True)
    found = model.segment(images, squares(64, 16).expand(2, -1, -1))
    cells = (model.patch_embed(images) + model.pos_embed[:, 1:].view(1, 8, 8, 24)).permute(0, 3, 1, 2)
    patches = nn.functional.avg_pool2d(cells, 2).flatten(2).transpose(1, 2)
    x = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(2, -1, -1), patches], dim=1)
    for block in model.blocks[:2]:
        x = block(x)
    close(found.levels[0].tokens, x[:, 1:])


def test_everything_trainable_learns() -> None:
    """Or training in parallel would wait for it; in both variants, with superpixels that have no token."""
    images, superpixels = batches()
    for fusion in (False, True):
        torch.manual_seed(0)
        model = CAST(**TINY, depths=(1, 1, 1, 1), num_classes=5, fusion=fusion)
        model(images, torch.stack(superpixels)).square().sum().backward()
        learning = {name for name, value in model.named_parameters() if value.grad is not None}
        assert learning == {name for name, value in model.named_parameters() if value.requires_grad}
        assert not any(name.startswith(("pos_embed", "pools.3.affinity")) for name in learning)
        assert any(name.startswith("pools.3") for name in learning) == fusion
    free = CAST(**TINY, depths=(1, 1, 1, 1), learned_positions=True)
    assert free.pos_embed.requires_grad


def test_checkpointing_changes_no_gradient() -> None:
    images, superpixels = batches()
    gradients = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = CAST(**TINY, depths=(2, 1, 1, 1), num_classes=5)
        model.set_grad_checkpointing(enable)
        model(images, torch.stack(superpixels)).square().sum().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name])


@torch.no_grad()
def test_other_sizes_in_half_precision() -> None:
    for name in ("model_cls", "model_fusion"):
        model, _, _ = theirs(name, mask_empty=True)
        images = torch.randn(1, 3, 48, 96, generator=torch.Generator().manual_seed(0))
        superpixels = torch.arange(48 * 96).view(1, 48, 96) // 96 // 4  # rows
        exact = model.segment(images, superpixels, full_resolution=True).features()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model.segment(images, superpixels, full_resolution=True).features()
        assert torch.nn.functional.cosine_similarity(exact, found.float(), dim=-1).min() > 0.98
        found = model.bfloat16().segment(images.bfloat16(), superpixels, full_resolution=True).features()
        assert found.dtype == torch.bfloat16
        # a token may go elsewhere
        assert torch.nn.functional.cosine_similarity(exact, found.float(), dim=-1).median() > 0.99


def test_what_does_not_fit_is_refused() -> None:
    model, _, images = theirs("model_cls")
    with pytest.raises(ValueError, match=r"64 x 64 px has 4 superpixels, fewer than the 8 tokens"):
        model(images, squares(64, 32).expand(2, -1, -1))
    with pytest.raises(ValueError, match=r"superpixels \(2, 32, 32\) of torch\.int64 for images \(2, 3, 64, 64\)"):
        model(images, squares(32, 8).expand(2, -1, -1))
    with pytest.raises(ValueError, match=r"superpixels \(2, 64, 64\) of torch\.float32 .* a whole number"):
        model(images, squares(64, 8).expand(2, -1, -1).float())
    with pytest.raises(ValueError, match="a superpixel is -1"):
        model(images, squares(64, 8).expand(2, -1, -1) - 1)
    with pytest.raises(ValueError, match=r"a superpixel is 70000000, of images of 4096 pixels: number those of each"):
        model(images, (squares(64, 8) * 10**6).expand(2, -1, -1) + 7 * 10**6)
    with pytest.raises(ConfigError, match="unknown key 'metod'; did you mean 'method'"):
        CAST(superpixels={"metod": "slic"})
    with pytest.raises(ValueError, match=r"tokens \(4, 8, 2, 1\) must be 4 numbers, each at most the one before"):
        CAST(tokens=(4, 8, 2, 1))
    with pytest.raises(ValueError, match=r"width 12: the stride must be one of \[8, 16\], the width a multiple of 8"):
        CAST(embed_dim=12)


def test_mean_of_what_is_not_empty() -> None:
    tokens = torch.arange(6.0).view(1, 3, 2)
    assert masked_mean(tokens, torch.tensor([[False, True, False]])).tolist() == [[[2, 3]]]
