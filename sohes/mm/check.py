"""What the installed MM stack can do. Everything is tried, nothing is concluded from version numbers."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from sohes.errors import SohesError
from sohes.installation import install_transfer, pip

# --no-cache-dir: pip keeps the wheel it built, which may have been built against another torch
_FROM_SOURCE = ("--no-deps", "--no-build-isolation", "--no-cache-dir", "--no-binary", "onedl-mmcv")
BUILD_OPS = f"MMCV_WITH_OPS=1 {pip('install', '--force-reinstall', *_FROM_SOURCE, 'onedl-mmcv==2.3.6')}"
# upstream distributions that install into the same folders as their maintained continuations
_RIVALS = {
    "onedl-mmengine": ("mmengine", "mmengine-lite"),
    "onedl-mmcv": ("mmcv", "mmcv-full", "mmcv-lite"),
    "onedl-mmdetection": ("mmdet",),
    "onedl-mmsegmentation": ("mmsegmentation",),
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing tried: what it is, whether it works, what was seen, and the command that mends it (else empty)."""

    name: str
    works: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class TransferCheck:
    """All checks of the MM stack."""

    checks: tuple[Check, ...]

    @property
    def works(self) -> bool:
        """Whether both kinds of heads can be trained here."""
        return all(check.works for check in self.checks)

    @property
    def message(self) -> str:
        """One line: what works, or the first thing that does not."""
        broken = self._first_broken()
        if broken is None:
            return "; ".join(f"{check.name}: {check.detail}" for check in self.checks)
        return f"{broken.name}: {broken.detail}"

    @property
    def remedy(self) -> str:
        """The one command that mends the first thing that does not work; empty when all works."""
        broken = self._first_broken()
        return broken.remedy if broken else ""

    def _first_broken(self) -> Check | None:
        return next((check for check in self.checks if not check.works), None)


class _Broken(Exception):
    """A probe's finding: what is wrong, and the remedy."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail, self.remedy = detail, remedy


@cache
def probe() -> TransferCheck:
    """Try the MM stack: one copy of each library, mmcv's compiled ops, MMSegmentation, MMDetection. Takes some seconds.

    Later checks are left out when an earlier one they build on fails.
    """
    probes: tuple[tuple[str, Callable[[], str]], ...] = (
        ("MM packages", _one_of_each),
        ("mmcv ops", _compiled_ops),
        ("MMSegmentation", _mmseg),
        ("MMDetection", _mmdet),
    )
    checks: list[Check] = []
    for name, attempt in probes:
        try:
            with redirect_stdout(io.StringIO()):  # these libraries print while they are imported
                checks.append(Check(name=name, works=True, detail=attempt()))
        except _Broken as broken:
            checks.append(Check(name=name, works=False, detail=broken.detail, remedy=broken.remedy))
            break
    return TransferCheck(tuple(checks))


def require() -> None:
    """Raise SohesError with the remedy unless `probe` finds that everything works."""
    result = probe()
    if not result.works:
        raise SohesError(f"transfer heads cannot run here: {result.message}. Mend it with: {result.remedy}")


def _one_of_each() -> str:
    names = {str(dist.metadata["Name"]).lower() for dist in metadata.distributions() if dist.metadata["Name"]}
    doubled = {ours: [rival for rival in rivals if rival in names] for ours, rivals in _RIVALS.items() if ours in names}
    doubled = {ours: rivals for ours, rivals in doubled.items() if rivals}
    if doubled:
        both = [name for ours, rivals in doubled.items() for name in (ours, *rivals)]
        raise _Broken(
            f"installed twice under the same import name: {', '.join(both)}",
            f"{pip('uninstall', '-y', *both)} && {install_transfer()}",
        )
    missing = [ours for ours in _RIVALS if ours not in names and not any(rival in names for rival in _RIVALS[ours])]
    if missing:
        raise _Broken(f"not installed: {', '.join(missing)}", install_transfer())
    return "one of each"


def _import(module: str, remedy: str) -> None:
    """Import, turning any failure into a finding."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a library may raise anything while it is imported
        raise _Broken(f"import {module} fails ({type(error).__name__}: {error})", remedy) from error


def _compiled_ops() -> str:
    import torch

    _import("mmcv", install_transfer())
    _import("mmcv._ext", BUILD_OPS)
    _import("mmcv.ops", BUILD_OPS)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        build = BUILD_OPS if device == "cpu" else f"FORCE_CUDA=1 {BUILD_OPS}"
        try:
            good = ops_are_right(device)
        except (RuntimeError, NotImplementedError) as error:
            raise _Broken(f"compiled without support for {device} ({str(error).splitlines()[0]})", build) from error
        if not good:
            raise _Broken(f"wrong results on {device}", build)
    return f"nms and roi_align right on {' and '.join(devices)}"


def ops_are_right(device: str) -> bool:
    """Whether mmcv's `nms` and `roi_align` return known answers on `device`."""
    import torch
    from mmcv.ops import nms, roi_align

    boxes = torch.tensor([[0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 29, 29]], dtype=torch.float32, device=device)
    _, kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)
    ramp = torch.arange(16, dtype=torch.float32, device=device).expand(1, 1, 16, 16).contiguous()
    rois = torch.tensor([[0, 4, 4, 8, 8]], dtype=torch.float32, device=device)
    # the halves of 4..8 px have their centres at 5 and 7 px; pixel i has its own at i + 0.5, so the ramp is 4.5 and 6.5
    pooled = roi_align(ramp, rois, (2, 2))
    expected = torch.tensor([[4.5, 6.5], [4.5, 6.5]], device=device)
    return kept.tolist() == [0, 2] and bool(torch.allclose(pooled[0, 0], expected, atol=1e-4))


def _mmseg() -> str:
    for module in ("mmseg.models", "mmseg.datasets", "mmseg.evaluation"):
        _import(module, install_transfer())
    return _found("mmseg.registry", "EncoderDecoder")


def _mmdet() -> str:
    from mmengine.config import Config

    for module in ("mmdet.models", "mmdet.datasets", "mmdet.evaluation"):
        _import(module, install_transfer())
    try:
        Config.fromstring('_base_ = "mmdet::_base_/models/mask-rcnn_r50_fpn.py"\n', ".py")
    except (ImportError, OSError) as error:
        raise _Broken(f"its config zoo is not found ({error})", install_transfer()) from error
    return _found("mmdet.registry", "MaskRCNN")


def _found(registry: str, model: str) -> str:
    models = importlib.import_module(registry).MODELS
    if models.get(model) is None:
        raise _Broken(f"{model} is not in its registry", install_transfer())
    return f"{model} found"
