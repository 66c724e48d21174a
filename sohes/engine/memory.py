"""Memory that a training frees and takes again at every step (README §9)."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt(3)


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for this process instead of handing it back to the system.

    Numbers stay the same. What somebody set by `MALLOC_...` or `GLIBC_TUNABLES` stays too.

    Returns:
        Whether it is so now; only glibc can.
    """
    chosen = [name for name in os.environ if name.startswith("MALLOC_")]
    if sys.platform != "linux" or chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_MMAP_MAX, 0) == 1 and mallopt(_TRIM_THRESHOLD, -1) == 1
