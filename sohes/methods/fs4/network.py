"""A network that embeds pixels: a timm ViT or ResNet, and a decoder that brings its maps to one grid (README §3)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sohes.backbones.precision import autocast
from sohes.errors import ConfigError, SohesError, WeightsError
from sohes.files import atomic_path
from sohes.methods.fs4.context import ContextAttention
from sohes.methods.fs4.context_settings import ContextSettings

_GROUPS = 8  # of the decoder's norm
_TRUNK = "trunk."
_STAGES = 4  # of a ResNet, at strides 4, 8, 16 and 32


class PixelMaps(NamedTuple):
    """What the network says of images; float32.

    Attributes:
        embeddings: (B, C, h, w) of pixels.
        deep: (B, D, h', w'), the trunk's last map, after its last norm, in context.
        pooled: (B, D) of whole images, by the context's query; None without one.
    """

    embeddings: Tensor
    deep: Tensor
    pooled: Tensor | None


class PixelNetwork(nn.Module):
    """Embeds pixels; the trunk's last map is seen in context before the decoder takes it, where there is a context.

    Args:
        trunk: a timm ViT or ResNet.
        decoder: makes an embedding map of the trunk's maps, the finest first.
        maps: how many of these it takes, the last ones.
        context: of the last one, see `ContextAttention`.
        built: arguments that `build_network` made it with, JSON-able.
    """

    def __init__(
        self, trunk: Any, decoder: nn.Module, *, maps: int, context: ContextAttention | None, built: dict[str, Any]
    ) -> None:
        super().__init__()
        self.trunk, self.decoder, self.maps, self.context, self.built = trunk, decoder, maps, context, built
        if hasattr(trunk, "fc_norm"):
            trunk.fc_norm.requires_grad_(False)  # of a pooled classifier; no map goes through it

    def forward(self, images: Tensor, *, bf16: bool = False) -> PixelMaps:
        """Of normalised images (B, 3, S, S) float32; `bf16`: heavy products in bfloat16, where the device has it."""
        with autocast(images.device, enabled=bf16):
            *finer, deep = self.trunk.forward_intermediates(
                images, indices=self.maps, norm=True, intermediates_only=True
            )
            pooled = None
            if self.context is not None:
                deep, pooled = self.context(deep)
            embeddings = self.decoder([*finer, deep])
        return PixelMaps(embeddings.float(), deep.float(), None if pooled is None else pooled.float())


class TokenDecoder(nn.Module):
    """Tokens of a ViT at another resolution: narrowed, resized bilinearly, and refined.

    Args:
        width: channels of the tokens.
        dim: C, of the embeddings; a multiple of 8.
        side: h and w of the embeddings.
    """

    def __init__(self, width: int, dim: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.narrow = nn.Conv2d(width, dim, 1)
        self.refine = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1), nn.GroupNorm(_GROUPS, dim), nn.GELU(), nn.Conv2d(dim, dim, 1)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, C, side, side) of one map (B, D, h', w')."""
        narrow = self.narrow(maps[-1])
        return self.refine(F.interpolate(narrow, size=(self.side, self.side), mode="bilinear", align_corners=False))


class FpnDecoder(nn.Module):
    """PiCIE's feature pyramid: coarse maps are enlarged and added to finer ones, nothing follows.

    Args:
        widths: channels of the maps, the finest first.
        dim: C, of the embeddings.
    """

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in widths)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, C, h, w) on the grid of the finest map."""
        *finer, total = [layer(one) for layer, one in zip(self.lateral, maps, strict=True)]
        for lateral in reversed(finer):
            size = lateral.shape[-2:]
            total = lateral + F.interpolate(total, size=size, mode="bilinear", align_corners=False)
        return total


def build_network(
    trunk: Any, *, dim: int, side: int, view_px: int, context: ContextSettings, pool: bool
) -> PixelNetwork:
    """A timm ViT or ResNet with its random decoder, and with a context that changes nothing yet.

    Args:
        trunk: with its start weights.
        dim: C, of the embeddings.
        side: h and w of the embeddings.
        view_px: side of the images.
        context: of the context; `cae=none`: there is none.
        pool: whether the context also pools whole images.

    Raises:
        ConfigError: neither of both, a ResNet whose finest map has another side, or channels that the heads of the
            context cannot share.
    """
    chosen = {field.name: getattr(context, field.name) for field in fields(ContextSettings)}
    built = {"dim": dim, "side": side, "view_px": view_px, "context": chosen, "pool": pool}
    seen = None if context.cae == "none" else ContextAttention(trunk.num_features, context, pool=pool)
    if hasattr(trunk, "patch_embed") and hasattr(trunk, "forward_intermediates"):  # CAST has no maps
        return PixelNetwork(trunk, TokenDecoder(trunk.embed_dim, dim, side), maps=1, context=seen, built=built)
    if not hasattr(trunk, "layer4"):
        raise ConfigError(f"{type(trunk).__name__} is neither a ViT nor a ResNet; give a backbone of one of these")
    if side != -(-view_px // 4):
        raise ConfigError(
            f"embedding_side={side}, but the finest map of a ResNet has a side of {-(-view_px // 4)} where "
            f"view_px={view_px}; set embedding_side to that"
        )
    widths = [stage["num_chs"] for stage in trunk.feature_info[-_STAGES:]]
    return PixelNetwork(trunk, FpnDecoder(widths, dim), maps=_STAGES, context=seen, built=built)


def rebuild_network(trunk: Any, built: Mapping[str, Any]) -> PixelNetwork:
    """What `build_network` makes with the arguments that a `PixelNetwork` has in `built`."""
    return build_network(trunk, **{**built, "context": ContextSettings(**built["context"])})


def save_network(path: Path, network: PixelNetwork) -> None:
    """Write decoder and context, without the trunk, to a safetensors file."""
    state = {name: value.cpu() for name, value in network.state_dict().items() if not name.startswith(_TRUNK)}
    with atomic_path(path) as temporary:
        save_file(state, temporary, {"network": json.dumps(network.built)})


def load_network(trunk: Any, path: Path) -> PixelNetwork:
    """The network of a trunk and of what `save_network` wrote, in evaluation mode.

    Raises:
        WeightsError: missing, damaged, or of another trunk.
    """
    try:
        with safe_open(path, "pt") as file:
            network = rebuild_network(trunk, json.loads(file.metadata()["network"]))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        own = {f"{_TRUNK}{name}": value for name, value in trunk.state_dict().items()}
        network.load_state_dict(state | own)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, SohesError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{path}: not the decoder of this backbone ({reason})") from error
    return network.eval()
