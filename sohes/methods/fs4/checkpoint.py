"""A network on disk: its trunk as a timm folder, the rest of it in a safetensors file beside that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sohes.backbones.timm_folder import read_safetensors
from sohes.errors import ConfigError, WeightsError
from sohes.files import atomic_path
from sohes.methods.fs4.context_settings import ContextSettings
from sohes.methods.fs4.network import PixelNetwork, build_network

_TRUNK, _ARGUMENTS = "trunk.", "network"


def save_network(network: PixelNetwork, path: Path) -> None:
    """Write all of a network but its trunk."""
    rest = {name: value.contiguous() for name, value in network.state_dict().items() if not name.startswith(_TRUNK)}
    with atomic_path(path) as temporary:
        save_file(rest, temporary, metadata={_ARGUMENTS: json.dumps(network.built)})


def load_network(trunk: Any, path: Path) -> PixelNetwork:
    """A network around a trained trunk, in evaluation mode.

    Raises:
        WeightsError: the file is missing, damaged, or of another trunk.
    """
    rest = read_safetensors(path)
    try:
        with safe_open(path, "pt") as file:
            arguments = json.loads((file.metadata() or {})[_ARGUMENTS])
    except (SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(f"{path}: says not what network it is of ({error!r}); give the one of an FS4 run") from error
    state = {_TRUNK + name: value for name, value in trunk.state_dict().items()}
    return restored_network(trunk, arguments, state | rest, path)


def restored_network(
    trunk: Any, arguments: Mapping[str, Any], state: Mapping[str, Tensor], source: Path
) -> PixelNetwork:
    """The network that was `built` with these arguments, with all its weights, in evaluation mode.

    Raises:
        WeightsError: they do not fit; the message names `source`.
    """
    try:
        network = build_network(trunk, **{**arguments, "context": ContextSettings(**arguments["context"])})
        network.load_state_dict(state)
    except (ConfigError, KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{source}: does not fit the network that it names; make it again ({error})") from error
    return network.eval()
