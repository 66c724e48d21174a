from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sohes.probes.features import Features
from sohes.probes.linear import cross_entropy, fit_linear, standardisation
from sohes.probes.patches import LabelledPatches

CPU = torch.device("cpu")
IMAGES, SIDE, DIM, CLASSES = 5, 6, 7, 3


@pytest.fixture
def patches(tmp_path: Path) -> LabelledPatches:
    """Features far from standardised, one of them constant, with soft labels that follow from them in part."""
    rng = np.random.default_rng(0)
    tokens = (rng.normal(size=(IMAGES, SIDE, SIDE, DIM)) * np.logspace(-1, 2, DIM) + 50).astype(np.float32)
    tokens[..., 3] = 4.0
    files = tuple(tmp_path / f"{place}.npy" for place in range(IMAGES))
    for file, one in zip(files, tokens, strict=True):
        np.save(file, one)
    kept = rng.random((IMAGES, SIDE**2)) < 0.8
    rows = tokens.reshape(IMAGES, -1, DIM)[kept]
    logits = ((rows - rows.mean(0)) / (rows.std(0) + 1e-9)) @ rng.normal(size=(DIM, CLASSES)) + rng.normal(
        size=(len(rows), CLASSES)
    )
    shares = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    return LabelledPatches(Features(files, SIDE * 8, 8, DIM), kept, shares)


def rows(patches: LabelledPatches) -> np.ndarray:
    return np.concatenate([tokens.numpy() for tokens, _ in patches.chunks(CPU)])


def test_standardisation_is_scikit_learns(patches: LabelledPatches) -> None:
    scaler = StandardScaler().fit(rows(patches).astype(np.float64))
    mean, std = standardisation(patches.chunks(CPU))
    np.testing.assert_allclose(mean, scaler.mean_, rtol=1e-6)
    np.testing.assert_allclose(std, scaler.scale_, rtol=1e-5)


def test_with_hard_labels_it_is_scikit_learns_logistic_regression(patches: LabelledPatches) -> None:
    labels = patches.shares.argmax(1)
    hard = LabelledPatches(patches.features, patches.kept, np.eye(CLASSES, dtype=np.float32)[labels])
    fit = fit_linear(hard, l2=1e-2, max_steps=500, device=CPU)
    assert fit.converged
    tokens = rows(patches).astype(np.float64)
    scaled = StandardScaler().fit_transform(tokens)
    theirs = LogisticRegression(C=1 / (1e-2 * len(scaled)), max_iter=5000, tol=1e-10).fit(scaled, labels)
    ours = torch.from_numpy(tokens) @ fit.weight.double() + fit.bias.double()
    probs = torch.softmax(ours, dim=1).numpy()
    np.testing.assert_allclose(probs, theirs.predict_proba(scaled), atol=2e-3)


def test_with_soft_labels_the_gradient_vanishes(patches: LabelledPatches) -> None:
    """By autograd, in double precision, of the loss as it is defined."""
    fit = fit_linear(patches, l2=1e-2, max_steps=500, device=CPU)
    tokens = torch.from_numpy(rows(patches)).double()
    mean, std = (part.double() for part in standardisation(patches.chunks(CPU)))
    weight = (fit.weight.double() * std[:, None]).requires_grad_()
    bias = (fit.bias.double() + mean @ fit.weight.double()).detach().requires_grad_()
    log_probs = torch.log_softmax((tokens - mean) / std @ weight + bias, dim=1)
    loss = -(torch.from_numpy(patches.shares) * log_probs).sum(1).mean() + 0.005 * weight.square().sum()
    loss.backward()
    assert fit.loss == pytest.approx(loss.item(), abs=1e-5)
    assert weight.grad is not None
    assert bias.grad is not None
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-4


def test_gradients_by_hand_are_those_of_autograd(patches: LabelledPatches) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(DIM, CLASSES, generator=generator) / 100
    bias = torch.randn(CLASSES, generator=generator)
    found = cross_entropy(patches.chunks(CPU), weight, bias, count=len(patches))
    weight.requires_grad_()
    bias.requires_grad_()
    log_probs = torch.log_softmax(torch.from_numpy(rows(patches)) @ weight + bias, dim=1)
    loss = -(torch.from_numpy(patches.shares) * log_probs).sum(1).mean()
    loss.backward()
    for ours, expected in zip(found, (loss.detach(), weight.grad, bias.grad), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_patches_in_memory_and_on_disk_give_the_same_layer(
    patches: LabelledPatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sohes.probes.patches._ROWS", 2 * SIDE**2)  # two images a chunk
    held = fit_linear(patches, l2=1e-4, max_steps=5, device=CPU)
    monkeypatch.setattr("sohes.probes.patches.free_bytes", lambda device: 10)
    read = fit_linear(patches, l2=1e-4, max_steps=5, device=CPU)
    assert torch.equal(held.weight, read.weight)
    assert not held.converged
    assert held.steps == 5
