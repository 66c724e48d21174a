"""CAST (Ke, Mo and Yu, ICLR 2024): a ViT over superpixels that groups them on its way (README §8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import calculate_drop_path_rates
from timm.models import checkpoint, named_apply
from timm.models.vision_transformer import Block, init_weights_vit_moco
from torch import Tensor, nn

from sohes.backbones.cast.fusion import Fusion
from sohes.backbones.cast.pooling import NORM_EPS, GraphPooling, attention_mask, gather_tokens
from sohes.backbones.cast.positions import sincos_table
from sohes.backbones.cast.sampling import masked_mean
from sohes.backbones.cast.segment_mean import SegmentMean
from sohes.backbones.cast.segments import SegmentLevels, segment_levels, stand_ins
from sohes.backbones.cast.stem import ConvStem
from sohes.records import usable_cores

if TYPE_CHECKING:
    from sohes.data.superpixels.settings import SuperpixelSettings

PATCH_PX = 8  # stride of the stem [CAST]
LEAST_TOKENS = 64  # of the first level [CAST]
_norm: Any = partial(nn.LayerNorm, eps=NORM_EPS)


class Level(NamedTuple):
    """Of N tokens that a level began with, and K that it ended with.

    Attributes:
        tokens: (B, N, D), what its blocks put out.
        logits: (B, N, K), whose softmax are the shares of each token in the K groups.
        centroids: (B, K, D), the tokens of the next level.
        picked: (B, K) int64, which tokens the groups started from.
        cls: (B, 1, D), the class token for the next level.
    """

    tokens: Tensor
    logits: Tensor
    centroids: Tensor
    picked: Tensor
    cls: Tensor


class Segmented(NamedTuple):
    """A forward pass, N superpixels an image.

    Attributes:
        levels: from fine to coarse.
        cls: (B, D), the class token after the last blocks and the norm; None of a model with fusion.
        fused: (B, N, D), the fused feature of each superpixel; None of a model without.
        superpixels: (B, H, W) int64.
        empty: (B, N) bool, superpixels without a token: of no pixel at all, or of none where the stem's cells are.
    """

    levels: tuple[Level, ...]
    cls: Tensor | None
    fused: Tensor | None
    superpixels: Tensor
    empty: Tensor

    def segments(self) -> SegmentLevels:
        """Segments of each level; an empty superpixel goes where the nearest one goes that is not."""
        return segment_levels([level.logits for level in self.levels], stand_ins(self.superpixels, self.empty))

    def features(self) -> Tensor:
        """(B, N, D) of a model with fusion; (B, N, 4 D) of one without: every level's, each of length 1 [ours]."""
        places = stand_ins(self.superpixels, self.empty)
        if self.fused is not None:
            return gather_tokens(self.fused, places)
        return torch.cat([F.normalize(one, dim=-1) for one in unpooled(self.levels, places)], dim=-1)


class CAST(nn.Module):
    """A ViT whose tokens are superpixels, which graph pooling groups after each of four runs of blocks.

    The class-token variant reads the class token of the last level; the fusion variant joins the tokens of all levels
    for each superpixel, and reads their mean.

    Args:
        img_size: that the table of positions is made for; images of other sizes have it interpolated.
        num_classes: of the head; 0 for none.
        embed_dim: D, a multiple of 8 and of num_heads.
        depths: blocks of each level.
        num_heads: of every attention.
        fusion: whether it is the fusion variant.
        tokens: K of each level; None for 64, 32, 16, 8 of images up to 224² px and 320, 160, 80, 40 at 512² [CAST].
        superpixels: settings of `SuperpixelSettings`, for images that come without.
        learned_positions: whether positions are learned, as in the authors' supervised models.
        mask_empty: whether superpixels without a token are left out of attention and pooling. False is the released
            code's arithmetic, in which an image's result depends on the rest of its batch.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block, linear from 0 in the first.

    Raises:
        ValueError: what the arguments say of themselves does not hold.
        ConfigError: a setting of `superpixels` is none, or out of bounds.
    """

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 384,
        depths: Sequence[int] = (3, 3, 3, 2),
        num_heads: int = 12,
        fusion: bool = False,
        tokens: Sequence[int] | None = None,
        superpixels: Mapping[str, Any] | None = None,
        learned_positions: bool = False,
        mask_empty: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if tokens is not None and (len(tokens) != len(depths) or min(tokens) < 1 or sorted(tokens)[::-1] != [*tokens]):
            raise ValueError(f"tokens {tuple(tokens)} must be {len(depths)} numbers, each at most the one before it")
        self.in_chans, self.num_classes, self.num_prefix_tokens = in_chans, num_classes, 1
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.depths, self.tokens = tuple(depths), tokens
        self.superpixel_settings = dict(superpixels or {})
        self._superpixel_settings()  # or a wrong one would be found only with the first image
        self.mask_empty, self.grad_checkpointing = mask_empty, False
        self.pretrained_cfg: dict[str, Any] = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
        self.patch_embed = ConvStem(img_size, PATCH_PX, in_chans, embed_dim, strict_img_size=False, output_fmt="NHWC")
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim).normal_(std=1e-6))
        table = sincos_table(self.patch_embed.grid_size, embed_dim)
        self.pos_embed = nn.Parameter(table, requires_grad=learned_positions)
        rates: Any = calculate_drop_path_rates(drop_path_rate, sum(depths))
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, qkv_bias=True, drop_path=rate, norm_layer=_norm) for rate in rates
        )
        self.pools = nn.ModuleList(GraphPooling(embed_dim, num_heads, mask_empty=mask_empty) for _ in depths)
        # what nothing learns from: the last groups, which only segments need; in the fusion variant the class token
        # that leaves the last pooling is part of the batch norm's statistics
        last: Any = self.pools[-1]
        (last.affinity if fusion else last).requires_grad_(False)
        self.norm = None if fusion else _norm(embed_dim)
        self.fusion = Fusion(embed_dim, len(depths)) if fusion else None
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes)
        named_apply(partial(init_weights_vit_moco, needs_reset=False), self)  # [CAST]

    def token_counts(self, height: int, width: int) -> tuple[int, ...]:
        """Tokens that each level of an image of this size is pooled to.

        64 or 5/16 of the superpixels, whichever is more, then halves: [CAST] at 224² and 512² px, [ours] elsewhere.
        """
        if self.tokens is not None:
            return tuple(self.tokens)
        from sohes.data.superpixels.grid import grid_hw

        rows, columns = grid_hw(height, width, self._superpixel_settings().block_px)
        first = max(LEAST_TOKENS, round(5 * rows * columns / 16))
        return tuple(max(1, first >> level) for level in range(len(self.depths)))

    def _superpixel_settings(self) -> SuperpixelSettings:
        from sohes.data.superpixels.settings import SuperpixelSettings

        return SuperpixelSettings(**self.superpixel_settings)

    def segment(self, images: Tensor, superpixels: Tensor | None = None, *, full_resolution: bool = False) -> Segmented:
        """The whole forward pass but for the head.

        Args:
            images: (B, 3, H, W), normalised as `pretrained_cfg` says, H and W multiples of 8.
            superpixels: (B, H, W) of integers from 0; found here, on the CPU, where none are given.
            full_resolution: whether superpixels are averaged pixel by pixel, over the stem's map interpolated to the
                image, as in the authors' dense tasks; else at the stem's own resolution, where small ones vanish.

        Raises:
            ValueError: superpixels of another size, negative ones, numbers beyond that of pixels, or an image with
                fewer superpixels than tokens of the first level.
        """
        superpixels = self.find_superpixels(images) if superpixels is None else superpixels
        if superpixels.shape != (len(images), *images.shape[2:]) or superpixels.is_floating_point():
            raise ValueError(
                f"superpixels {tuple(superpixels.shape)} of {superpixels.dtype} for images {tuple(images.shape)}: give "
                "a whole number for each pixel"
            )
        superpixels = superpixels.to(images.device, torch.int64)
        least, most = (int(value) for value in superpixels.aminmax())
        if least < 0:
            raise ValueError(f"a superpixel is {least}; they are numbered from 0, and every pixel has one")
        if most >= superpixels[0].numel():  # each number takes a token's memory, whether a pixel has it or not
            raise ValueError(
                f"a superpixel is {most}, of images of {superpixels[0].numel()} pixels: number those of each image "
                "from 0 on, without gaps"
            )
        counts = self.token_counts(*images.shape[2:])
        labels = superpixels if full_resolution else superpixels[:, ::PATCH_PX, ::PATCH_PX]
        mean = SegmentMean(labels, most + 1)
        fewest = int((~mean.empty).sum(dim=1).min())
        if fewest < counts[0]:
            # what only vanished on the stem's grid, a few of many, must not end a training
            there = int((~SegmentMean(superpixels, most + 1).empty).sum(dim=1).min())
            if there < counts[0]:
                raise ValueError(self._too_few(there, counts[0], images))
        cells = self.patch_embed(images)
        tokens = (mean(cells) + mean(self._positions(cells.shape[1:3]), "bicubic")).to(self.cls_token.dtype)
        empty = mean.empty if fewest <= most else None
        levels, cls = self._levels(tokens, counts, empty)
        if self.norm is not None:
            return Segmented(levels, self.norm(cls)[:, 0], None, superpixels, mean.empty)
        assert self.fusion is not None
        joined = torch.cat(unpooled(levels), dim=-1)
        fused = self.fusion(torch.cat([level.cls for level in levels], dim=-1), joined, self._masked(empty))
        return Segmented(levels, None, fused, superpixels, mean.empty)

    def _masked(self, empty: Tensor | None) -> Tensor | None:
        return empty if self.mask_empty else None

    def _levels(self, tokens: Tensor, counts: Sequence[int], empty: Tensor | None) -> tuple[tuple[Level, ...], Tensor]:
        """Every level, and the class token (B, 1, D) of the last one before its pooling."""
        cls = self.cls_token + self.pos_embed[:, :1]
        cls = cls.expand(len(tokens), -1, -1)
        levels, blocks = [], iter(self.blocks)
        for depth, pool, count in zip(self.depths, self.pools, counts, strict=True):
            mask = attention_mask(self._masked(empty), prefix=1)
            x = torch.cat([cls, tokens], dim=1)
            for block in islice(blocks, depth):
                x = checkpoint(block, x, attn_mask=mask) if self.grad_checkpointing else block(x, attn_mask=mask)
            before, tokens = x[:, :1], x[:, 1:]
            pooled = pool(before, tokens, count, empty)
            levels.append(Level(tokens, pooled.logits, pooled.tokens, pooled.picked, pooled.cls))
            cls, tokens, empty = pooled.cls, pooled.tokens, None  # no group is empty
        return tuple(levels), before

    def _too_few(self, found: int, wanted: int, images: Tensor) -> str:
        height, width = images.shape[2:]
        remedy = "larger images, or fewer `tokens`"
        if self.tokens is None:
            block = self._superpixel_settings().block_px
            side = math.isqrt(LEAST_TOKENS) * block
            remedy = f"images of at least {side} x {side} px, sides multiples of {block}, or `tokens`"
        return (
            f"an image of {height} x {width} px has {found} superpixels, fewer than the {wanted} tokens of the first "
            f"level: give {remedy}"
        )

    def _positions(self, grid_hw: Sequence[int]) -> Tensor:
        """Table (1, h, w, D) for a map of this size."""
        own = self.patch_embed.grid_size
        table = self.pos_embed[:, 1:].unflatten(1, own)
        if tuple(grid_hw) == own:
            return table
        resized = F.interpolate(table.permute(0, 3, 1, 2), size=tuple(grid_hw), mode="bicubic", align_corners=False)
        return resized.permute(0, 2, 3, 1)

    @torch.no_grad()
    def find_superpixels(self, images: Tensor) -> Tensor:
        """Superpixels (B, H, W) int64 of normalised images (B, 3, H, W), by the model's own settings, on the CPU.

        Images are shared out to all cores, by threads: the search does not hold the GIL.
        """
        from sohes.data.superpixels.superpixels import superpixels

        mean, std = (torch.tensor(self.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        rgb = (images.float().cpu() * std + mean).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
        find = partial(superpixels, settings=self._superpixel_settings())
        with ThreadPoolExecutor(min(len(rgb), usable_cores())) as pool:
            found = [torch.from_numpy(labels) for labels in pool.map(find, rgb)]
        return torch.stack(found).to(images.device, torch.int64)

    def forward_features(self, images: Tensor, superpixels: Tensor | None = None) -> Tensor:
        """What is read of images, see `segment`: (B, D), the class token, or the mean of the fused superpixels."""
        found = self.segment(images, superpixels)
        if found.fused is None:
            assert found.cls is not None
            return found.cls
        return masked_mean(found.fused, self._masked(found.empty))[:, 0]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of features (B, D)."""
        features = self.head_drop(features)
        return features if pre_logits else self.head(features)

    def forward(self, images: Tensor, superpixels: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes), or features (B, D) where there are no classes; see `segment`."""
        return self.forward_head(self.forward_features(images, superpixels))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head. There is nothing to choose about pooling.

        Raises:
            ValueError: `global_pool` is chosen.
        """
        if global_pool is not None:
            raise ValueError(f"global_pool='{global_pool}': CAST reads the class token, or the mean of superpixels")
        self.num_classes = num_classes
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self.head.to(self.cls_token.device)

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimizers leave undecayed; the authors' decay all [CAST]."""
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the layers, as timm has them: the stem, then each block, poolings with the block before them."""
        blocks: list[tuple[str, Any]] = [(r"^blocks\.(\d+)", None)]
        last = accumulate(self.depths)
        blocks += [(rf"^pools\.{level}\.", (count - 1,)) for level, count in enumerate(last)]
        return {"stem": r"^cls_token|pos_embed|patch_embed", "blocks": [*blocks, (r"^(?:norm|fusion)\.", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are computed again in the backward pass, which saves their memory."""
        self.grad_checkpointing = enable


def unpooled(levels: Sequence[Level], places: Tensor | None = None) -> list[Tensor]:
    """What the blocks of each level put out for each superpixel, by the most probable groups: each (B, N, D).

    Args:
        levels: of a pass.
        places: (B, M) int64, superpixels; None for all.
    """
    first = levels[0].tokens
    if places is None:
        places = torch.arange(first.shape[1], device=first.device).expand(len(first), -1)
    groups = segment_levels([level.logits for level in levels[:-1]], places).labels
    return [gather_tokens(level.tokens, group) for level, group in zip(levels, (places, *groups), strict=True)]
