"""Images that come without superpixels: the model finds them itself, and knows how many tokens that makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

pytest.importorskip("sohes.data.superpixels.superpixels")

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def model(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("cast_small", num_classes=0, embed_dim=24, depths=(1, 1, 1, 1), **arguments).eval()


def photographs() -> tuple[NDArray[np.uint8], Tensor]:
    """As 8-bit RGB, and normalised."""
    values = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    values = values.repeat(16, axis=1).repeat(16, axis=2)
    return values, (torch.from_numpy(values).permute(0, 3, 1, 2) / 255 - MEAN) / STD


@pytest.mark.parametrize("settings", [{}, {"method": "slic"}, {"method": "grid", "block_px": 8}])
@torch.no_grad()
def test_superpixels_are_those_of_the_image(settings: dict[str, Any]) -> None:
    from sohes.data.superpixels.settings import SuperpixelSettings
    from sohes.data.superpixels.superpixels import superpixels

    values, images = photographs()
    cast = model(superpixels=settings, tokens=(8, 4, 2, 1))
    found = cast.find_superpixels(images)
    expected = [superpixels(image, SuperpixelSettings(**settings)) for image in values]
    assert found.dtype == torch.int64
    assert np.array_equal(found.numpy(), expected)
    assert torch.equal(cast(images), cast(images, found))


def test_numbers_of_tokens() -> None:
    """The authors' at 224² and 512² px; at 375 x 500 px there are 540 superpixels, and 5/16 of that is 168.75."""
    cast = model()
    assert cast.token_counts(224, 224) == cast.token_counts(128, 128) == (64, 32, 16, 8)
    assert cast.token_counts(512, 512) == (320, 160, 80, 40)
    assert cast.token_counts(375, 500) == (169, 84, 42, 21)
    assert model(superpixels={"block_px": 8}).token_counts(256, 256) == (320, 160, 80, 40)
    with pytest.raises(ValueError, match=r"96 x 96 px has 36 .* at least 128 x 128 px, sides multiples of 16, or `tok"):
        cast(torch.zeros(1, 3, 96, 96))
