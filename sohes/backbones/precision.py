"""Which number format the heavy matrix products have on this device (README §5)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch


@cache
def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices itself; emulated, they are slower than float32."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast_dtype(device: torch.device | str) -> torch.dtype | None:
    """bfloat16 where the device computes it natively, else None (stay in float32)."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    return torch.bfloat16 if kind == "cpu" and _cpu_has_bf16() else None


def autocast(device: torch.device | str, *, enabled: bool = True) -> torch.autocast:
    """Context in which matrix products are done in `autocast_dtype(device)`."""
    dtype = autocast_dtype(device)
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=enabled and dtype is not None)


def default_device() -> torch.device:
    """The GPU where torch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
