"""Registers CAST with timm as soon as both are there, and imports neither timm nor torch for that (README §8).

`import sohes` must cost nothing, and yet `timm.create_model("local-dir:FOLDER")` must know CAST after it, whichever of
the two was imported first. So where timm is not there yet, the import of timm itself is watched: Python asks the
finders in `sys.meta_path` for each module that it has not seen, and ours, asked for timm, answers with timm's own
loader and one line more.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_REGISTRY = "sohes.backbones.cast.registry"


def register_with_timm() -> None:
    """Register now if timm is imported, else right after it will be."""
    if "timm" in sys.modules:
        importlib.import_module(_REGISTRY)
    else:
        sys.meta_path.insert(0, _TimmFinder())


class _TimmFinder(MetaPathFinder):
    """Finds timm as the others do, until it was imported, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _TimmLoader(spec.loader, self)
        return spec


class _TimmLoader(Loader):
    """Timm's own loader, which takes its place again before it runs; after it CAST is registered."""

    def __init__(self, own: Loader, finder: _TimmFinder) -> None:
        self._own, self._finder = own, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._own
        self._own.exec_module(module)
        sys.meta_path.remove(self._finder)
        importlib.import_module(_REGISTRY)
