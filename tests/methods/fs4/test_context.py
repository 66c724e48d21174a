"""Context-aware embedding: against loops over tokens, and what it must do to tokens near, far and alike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.errors import ConfigError
from sohes.methods.fs4.context import ContextAttention, embed_region, grid_positions, neighbourhood, smoothed
from sohes.methods.fs4.context_settings import Context, ContextSettings

MODES: tuple[Context, ...] = ("appearance", "space", "both")


def random_tokens(images: int, count: int, dim: int, seed: int = 0) -> Tensor:
    """Of length 1, some of them alike."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(images, 4, dim, generator=generator)[:, torch.arange(count) % 4]
    return F.normalize(few + 0.5 * torch.randn(images, count, dim, generator=generator), dim=2)


def random_positions(count: int) -> Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(1))


def loop_weights(tokens: np.ndarray, positions: np.ndarray, settings: ContextSettings, neighbours: int) -> np.ndarray:
    """The definition, of one region (m, D)."""
    count = len(tokens)
    weights = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            cosine = float(tokens[i] @ tokens[j])
            if i == j or cosine > 1 - settings.cae_duplicate:
                continue
            weight = 1.0
            if settings.cae != "space":
                weight *= math.exp((cosine - 1) / settings.cae_temperature)
            if settings.cae != "appearance":
                distance = math.dist(positions[i], positions[j])
                weight *= math.exp(-(distance**2) / (2 * settings.cae_sigma**2))
            weights[i, j] = weight
        last = np.sort(weights[i])[-neighbours]
        weights[i, weights[i] < 0.9999 * last] = 0  # tokens that are the same tie
    return weights


def loop_embedding(tokens: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    support, found = weights.sum(1), tokens
    for _ in range(2):
        moved = []
        for i, token in enumerate(found):
            mean = sum(weights[i, j] / support[i] * found[j] for j in range(len(found)))
            moved.append((token + strength * mean) / np.linalg.norm(token + strength * mean))
        found = np.array(moved)
    total = sum(share * token for share, token in zip(support, found, strict=True))
    return total / np.linalg.norm(total)


@pytest.mark.parametrize("cae", MODES)
def test_weights_and_embeddings_are_those_of_loops(cae: Context) -> None:
    settings = ContextSettings(cae=cae, cae_neighbours=5)
    tokens, positions = random_tokens(3, 20, 8), random_positions(20)
    tokens[:, 7] = tokens[:, 3]
    found = neighbourhood(tokens, positions, settings, neighbours=5)
    embedded = embed_region(3 * tokens, positions, settings)
    for image in range(3):
        single, places = tokens[image].double().numpy(), positions.double().numpy()
        expected = loop_weights(single, places, settings, 5)
        np.testing.assert_allclose(found[image].numpy(), expected, atol=1e-6)
        assert set((expected > 0).sum(1)) <= {5, 6}
        assert expected[3, 7] == expected[7, 3] == 0
        np.testing.assert_allclose(embedded[image].numpy(), loop_embedding(single, expected, 0.5), atol=1e-6)


def test_off_is_the_mean() -> None:
    tokens = random_tokens(2, 9, 8)
    expected = F.normalize(tokens.mean(1), dim=1)
    torch.testing.assert_close(embed_region(tokens, random_positions(9), ContextSettings(cae="none")), expected)


@pytest.mark.parametrize("cae", MODES)
def test_the_order_of_the_tokens_does_not_matter(cae: Context) -> None:
    """Also where neighbours tie: on a grid, whose distances repeat."""
    settings = ContextSettings(cae=cae)
    tokens, positions = random_tokens(2, 49, 8), grid_positions((7, 7))
    order = torch.randperm(49, generator=torch.Generator().manual_seed(2))
    weights = neighbourhood(tokens, positions, settings, neighbours=10)
    again = neighbourhood(tokens[:, order], positions[order], settings, neighbours=10)
    torch.testing.assert_close(again, weights[:, order][:, :, order])
    torch.testing.assert_close(smoothed(tokens[:, order], again, 0.5), smoothed(tokens, weights, 0.5)[:, order])
    one, other = embed_region(tokens, positions, settings), embed_region(tokens[:, order], positions[order], settings)
    torch.testing.assert_close(one, other)


def test_neighbours_in_space_are_a_disc_of_the_grid() -> None:
    """The 16 nearest of a token in the middle of a grid: 12 to a distance of 2, and all 8 at the square root of 5."""
    settings = ContextSettings(cae="space")
    weights = neighbourhood(random_tokens(1, 81, 8), grid_positions((9, 9)), settings, neighbours=16)
    middle = weights[0, 40].unflatten(0, (9, 9)) > 0
    y, x = torch.meshgrid(torch.arange(9) - 4, torch.arange(9) - 4, indexing="ij")
    squared = x**2 + y**2
    assert torch.equal(middle, (squared > 0) & (squared <= 5))


def test_what_is_far_in_space_or_in_appearance_weighs_nothing() -> None:
    tokens = F.normalize(torch.tensor([[[1.0, 0.1, 0], [1, 0, 0.1], [1, -0.1, 0], [0, 0, 1]]]), dim=2)
    positions = torch.tensor([[0.1, 0.1], [0.2, 0.1], [1.0, 1.0], [0.2, 0.2]])
    weights = neighbourhood(tokens, positions, ContextSettings(), neighbours=16)
    means = weights / weights.sum(2, keepdim=True)
    assert float(means[0, 0, 1]) > 0.99
    assert float(weights[0, 0, 2]) < 1e-3  # alike but in the other corner
    assert float(weights[0, 0, 3]) < 1e-3  # near but unlike
    assert float(means[0, 0, 2:].max()) < 1e-3


def test_without_strength_tokens_stay() -> None:
    tokens = random_tokens(2, 20, 8)
    weights = neighbourhood(tokens, random_positions(20), ContextSettings(), neighbours=5)
    torch.testing.assert_close(smoothed(tokens, weights, 0.0), tokens)


@pytest.mark.parametrize("cae", MODES)
def test_a_constant_region_has_no_neighbours_and_no_nan(cae: Context) -> None:
    settings = ContextSettings(cae=cae)
    tokens, positions = F.normalize(torch.ones(2, 16, 8), dim=2), grid_positions((4, 4))
    weights = neighbourhood(tokens, positions, settings, neighbours=4)
    assert not weights.any()
    torch.testing.assert_close(smoothed(tokens, weights, 0.5), tokens)
    torch.testing.assert_close(embed_region(tokens, positions, settings), tokens[:, 0])
    module = attention(8, settings)
    maps = torch.ones(1, 8, 4, 4)
    changed, pooled = module(maps)
    torch.testing.assert_close(changed, maps)
    (changed.sum() + pooled.sum()).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in module.parameters())


def attention(dim: int, settings: ContextSettings, gamma: float = 0.7) -> ContextAttention:
    """With weights that matter: gamma as given, and a sigma for each head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = ContextAttention(dim, settings)
    with torch.no_grad():
        module.gamma.fill_(gamma)
        if module.log_sigma is not None:
            module.log_sigma += torch.linspace(-0.5, 0.5, module.heads)
    return module


@pytest.mark.parametrize("cae", MODES)
def test_attention_is_that_of_loops(cae: Context) -> None:
    settings = ContextSettings(cae=cae, cae_heads=2, cae_attention_neighbours=5)
    module = attention(8, settings)
    maps = random_tokens(1, 12, 8)[0].T.reshape(1, 8, 3, 4) * 2
    found = module(maps)[0].detach().numpy()
    tokens = maps[0].flatten(1).T.double().numpy()
    positions = np.array([[(x + 0.5) / 4, (y + 0.5) / 3] for y in range(3) for x in range(4)])
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    chosen = neighbourhood(torch.tensor(unit[None]).float(), torch.tensor(positions).float(), settings, neighbours=5)
    state = {name: value.double().numpy() for name, value in module.state_dict().items()}
    values = tokens @ state["values.weight"].T + state["values.bias"]
    expected = np.zeros((12, 8))
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        for i in range(12):
            logits = {}
            for j in np.flatnonzero(chosen[0, i].numpy()):
                logits[j] = 0.0
                if cae != "space":
                    weight, bias = state["queries_keys.weight"], state["queries_keys.bias"]
                    query, key = (tokens[i] @ weight.T + bias)[:8], (tokens[j] @ weight.T + bias)[8:]
                    logits[j] += query[part] @ key[part] / math.sqrt(4)
                if cae != "appearance":
                    sigma = math.exp(state["log_sigma"][head])
                    logits[j] -= math.dist(positions[i], positions[j]) ** 2 / (2 * sigma**2)
            total = sum(math.exp(logit) for logit in logits.values())
            for j, logit in logits.items():
                expected[i, part] += math.exp(logit) / total * values[j, part]
    expected = tokens + 0.7 * expected @ state["out.weight"].T
    np.testing.assert_allclose(found[0].reshape(8, 12).T, expected, atol=1e-5)


@pytest.mark.parametrize("cae", MODES)
def test_attention_begins_as_nothing_and_all_of_it_learns(cae: Context) -> None:
    settings = ContextSettings(cae=cae, cae_attention_neighbours=6)
    maps = torch.randn(2, 16, 5, 4, generator=torch.Generator().manual_seed(0))
    changed, pooled = attention(16, settings, gamma=0.0)(maps)
    torch.testing.assert_close(changed, maps)
    assert pooled.shape == (2, 16)
    module = attention(16, settings)
    changed, pooled = module(maps)
    (changed.square().sum() + pooled.square().sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


def test_attention_goes_with_the_map() -> None:
    """Mirrored maps give mirrored maps and the same global feature."""
    module = attention(16, ContextSettings(cae_attention_neighbours=6))
    maps = torch.randn(2, 16, 5, 4, generator=torch.Generator().manual_seed(0))
    changed, pooled = module(maps)
    mirrored, same = module(maps.flip(3))
    torch.testing.assert_close(mirrored.flip(3), changed, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(same, pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", [{"cae": "colour"}, {"cae_temperature": 0.0}, {"cae_neighbours": 0}])
def test_bad_settings(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        ContextSettings(**change)


def test_heads_share_the_channels() -> None:
    with pytest.raises(ConfigError, match="cae_heads=4 does not divide the 6 channels"):
        ContextAttention(6, ContextSettings())
