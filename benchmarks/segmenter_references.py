"""The segmenters of `transformers` with the weights of ours, and how far the two are from one another."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import EomtConfig, EomtForUniversalSegmentation, Mask2FormerForUniversalSegmentation

from sohes.segmenters.eomt import EomtSegmenter
from sohes.segmenters.losses import drawn_points, segmentation_loss
from sohes.segmenters.matching import Matching, Targets, match
from sohes.segmenters.model import EntitySegmenter
from sohes.segmenters.points import random_points
from sohes.segmenters.settings import LossSettings

LOSSES = LossSettings()
EOMT_NAMES = {  # of weights here, in timm's terms where they are the ViT's, and in `transformers`
    "encoder.blocks.": "layers.",
    "encoder.norm.": "layernorm.",
    "encoder.cls_token": "embeddings.cls_token",
    "encoder.reg_token": "embeddings.register_tokens",
    "encoder.patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    ".attn.proj.": ".attention.out_proj.",
    ".ls1.gamma": ".layer_scale1.lambda1",
    ".ls2.gamma": ".layer_scale2.lambda1",
    "queries.": "query.",
    "upscale.": "upscale_block.",
}


def reference_of(segmenter: EntitySegmenter, side: int) -> nn.Module:
    """The model of `transformers` with the segmenter's weights; class 0 is an entity, the one after it nothing."""
    if isinstance(segmenter, EomtSegmenter):
        return eomt_reference(segmenter, side)
    config = copy.deepcopy(segmenter.config)
    config.num_labels = 1
    config.class_weight, config.mask_weight = LOSSES.entity_weight, LOSSES.mask_weight
    config.dice_weight, config.no_object_weight = LOSSES.dice_weight, LOSSES.no_object_weight
    config.train_num_points, config.oversample_ratio = LOSSES.points, LOSSES.oversample
    config.importance_sample_ratio = LOSSES.uncertain
    config.use_auxiliary_loss = config.output_auxiliary_logits = True
    reference = Mask2FormerForUniversalSegmentation(config)
    report = reference.load_state_dict(segmenter.state_dict(), strict=False)
    assert all(key.startswith("ancestor_head.") for key in report.unexpected_keys), report.unexpected_keys
    assert report.missing_keys in ([], ["criterion.empty_weight"]), report.missing_keys
    return reference.to(segmenter.device)


def eomt_reference(segmenter: EomtSegmenter, side: int) -> EomtForUniversalSegmentation:
    """The same of EoMT, whose ViT in `transformers` is that of DINOv2, on images of one size."""
    vit, patch = segmenter.vit, int(segmenter.vit.patch_embed.patch_size[0])
    reference = EomtForUniversalSegmentation(
        EomtConfig(
            hidden_size=vit.embed_dim,
            num_hidden_layers=len(vit.blocks),
            num_attention_heads=vit.blocks[0].attn.num_heads,
            image_size=side,
            patch_size=patch,
            num_register_tokens=vit.num_reg_tokens,
            num_blocks=len(segmenter.masked),
            num_queries=segmenter.config.num_queries,
            num_labels=1,
            class_weight=LOSSES.entity_weight,
            mask_weight=LOSSES.mask_weight,
            dice_weight=LOSSES.dice_weight,
            no_object_weight=LOSSES.no_object_weight,
            train_num_points=LOSSES.points,
            oversample_ratio=LOSSES.oversample,
            importance_sample_ratio=LOSSES.uncertain,
        )
    )
    state = {name: value for name, value in segmenter.state_dict().items() if not name.startswith("ancestor_head.")}
    table, patches = state.pop("encoder.pos_embed")[0], (side // patch) ** 2
    given = {"embeddings.position_embeddings.weight": table[-patches:]}
    if len(table) > patches:  # the class token has a place in the table as well
        state["encoder.cls_token"] = state["encoder.cls_token"] + table[:-patches]
    for name, value in state.items():
        for ours, theirs in EOMT_NAMES.items():
            name = name.replace(ours, theirs)
        if ".attn.qkv." in name:
            parts = zip("qkv", value.chunk(3), strict=True)
            given |= {name.replace(".attn.qkv.", f".attention.{part}_proj."): own for part, own in parts}
        else:
            given[name] = value
    report = reference.load_state_dict(given, strict=False)
    assert report.unexpected_keys == []
    # layers that do nothing where the ViT has none
    own = ("attn_mask_probs", "criterion.empty_weight", "embeddings.register_tokens", ".layer_scale")
    assert all(any(part in key for part in own) for key in report.missing_keys), report.missing_keys
    return reference.to(segmenter.device)


def reference_layers(reference: nn.Module, pixels: Tensor) -> list[dict[str, Tensor]]:
    """Logits of each layer under the names that `transformers` gives them."""
    if isinstance(reference, EomtForUniversalSegmentation):
        found = []

        def predict(tokens: Tensor) -> tuple[Tensor, Tensor]:
            found.append(EomtForUniversalSegmentation.predict(reference, tokens))
            return found[-1]

        with mock.patch.object(reference, "predict", predict):
            reference(pixels)
        return [{"masks_queries_logits": masks, "class_queries_logits": classes} for masks, classes in found]
    theirs = reference(pixels, output_auxiliary_logits=True)
    return [*theirs.auxiliary_logits, vars(theirs)]


def labels_of(targets: Targets) -> dict[str, list[Tensor]]:
    """`mask_labels` and `class_labels` as `transformers` wants them."""
    masks = [masks[valid].float() for masks, valid in zip(targets.masks, targets.valid, strict=True)]
    return {"mask_labels": masks, "class_labels": [mask.new_zeros(len(mask), dtype=torch.long) for mask in masks]}


@contextmanager
def our_points(targets: Targets, matchings: list[Matching]) -> Iterator[None]:
    """`torch.rand` deals out our random points in the order in which the reference's loss asks for them."""
    device, images = targets.masks.device, len(targets.valid)
    keys = targets.keys.tolist()
    shared = random_points(keys, 0, [1] * images, LOSSES.points, device)
    dealt = []
    for layer in (len(matchings) - 1, *range(len(matchings) - 1)):  # the last layer comes first there
        matching = matchings[layer]
        rows = torch.bincount(matching.image, minlength=images).tolist()
        random = random_points(keys, layer + 1, rows, drawn_points(LOSSES), device)
        queries = int(matching.query.max()) + 1
        order = (matching.image * queries + matching.query).argsort()  # pairs are sorted by their queries there
        many = int(LOSSES.points * LOSSES.oversample)
        dealt += [*shared.split(1), random[order, :many], random[order, many:]]
    remaining = iter(dealt)

    def deal(*shape: int, **_: Any) -> Tensor:
        points = next(remaining)
        assert points.shape == shape, f"the reference asks for {shape}, ours were {tuple(points.shape)}"
        return points

    with mock.patch.object(torch, "rand", deal):
        yield
    assert next(remaining, None) is None


@torch.no_grad()
def agreement(segmenter: EntitySegmenter, reference: nn.Module, pixels: Tensor, targets: Targets) -> dict[str, float]:
    """Relative errors of logits (root mean square, worst layer) and of each loss term, asserted to be small."""
    ours, layers = segmenter(pixels), reference_layers(reference, pixels)
    errors = {}
    masks = [ours.mask_logits(layer) for layer in range(len(layers))]
    for name, own, foreign in (
        ("class logits", ours.entity_logits, "class_queries_logits"),
        ("mask logits", masks, "masks_queries_logits"),
    ):
        errors[name] = max(float((a - b[foreign]).norm() / b[foreign].norm()) for a, b in zip(own, layers, strict=True))
    # on the same logits, since the smallest difference in them may change a matching
    *auxiliary, last = (
        {"masks_queries_logits": mask, "class_queries_logits": entity}
        for mask, entity in zip(masks, ours.entity_logits, strict=True)
    )
    matchings = match(ours, targets, LOSSES)
    terms = segmentation_loss(ours, targets, matchings, LOSSES)
    with our_points(targets, matchings):
        found = reference.get_loss_dict(**last, **labels_of(targets), auxiliary_predictions=auxiliary)
    for name, prefix in (("entity", "loss_cross_entropy"), ("mask", "loss_mask"), ("dice", "loss_dice")):
        expected = sum(value for key, value in found.items() if key.startswith(prefix))
        errors[f"{name} loss"] = abs(float(terms[name] / expected) - 1)
    assert max(errors.values()) < 1e-3, f"the two disagree: {errors}"
    return errors
