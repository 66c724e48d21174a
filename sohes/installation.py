"""How this copy of sohes got here, and so which command brings what is missing or broken."""

from __future__ import annotations

import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

MAKE = "make -B install"  # -B: also the steps that it has a mark of, for somebody may have removed a package since
_ROOT = Path(__file__).resolve().parent.parent


def in_checkout() -> bool:
    """Whether this package lies in a checkout of the suite, with the launcher beside it; else pip installed it."""
    return (_ROOT / "pyproject.toml").is_file() and (_ROOT / "slurm" / "launch.py").is_file()


def pip(*arguments: str) -> str:
    """The command line of pip for this very interpreter."""
    return shlex.join([sys.executable, "-m", "pip", *arguments])


def install_extra(extra: str) -> str:
    """The command that adds one of sohes' extras to what is installed."""
    return MAKE if in_checkout() else pip("install", f"sohes[{extra}]")


def install_transfer() -> str:
    """The command that adds the MM stack; mmcv is compiled, which needs torch and these tools at hand."""
    if in_checkout():
        return MAKE
    tools = pip("install", "setuptools>=77,<82", "wheel", "ninja", "packaging")
    return f"{tools} && MMCV_WITH_OPS=1 {pip('install', '--no-build-isolation', 'sohes[transfer]')}"


def reinstall(*packages: str) -> str:
    """The command that brings packages that sohes needs and that are missing or do not work here."""
    if not in_checkout():
        return pip("install", "--force-reinstall", *map(requirement, packages))
    if all(map(_is_installed, packages)):  # pip alone would leave them as they are
        return pip("install", "--force-reinstall", "-c", str(_ROOT / "constraints.txt"), *packages)
    return MAKE


def requirement(package: str) -> str:
    """The package with the versions that sohes asks for; the bare name where it asks for none.

    >>> requirement("not-a-requirement")
    'not-a-requirement'
    """
    requirements = metadata.requires("sohes") or [] if _is_installed("sohes") else []
    found = (text.partition(";")[0].strip() for text in requirements)
    return next((text for text in found if re.match(rf"{re.escape(package)}(?![\w.-])", text)), package)


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
