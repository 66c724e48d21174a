"""Linear probe: classes of patches by a linear layer on standardised frozen features (README §4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from sohes.probes.patches import LabelledPatches, labelled_patches
from sohes.probes.scoring import Scored, Task, score_patches
from sohes.progress import Reporter

_GRADIENT, _CHANGE = 1e-6, 1e-10  # at which L-BFGS has converged
_HISTORY = 20
_STEPS_A_CALL = 10


@dataclass(frozen=True)
class LinearFit:
    """A linear layer on raw features.

    Attributes:
        weight: (D, C).
        bias: (C,).
        loss: that it ended with.
        steps: of L-BFGS.
        converged: whether it ended by itself.
    """

    weight: Tensor
    bias: Tensor
    loss: float
    steps: int
    converged: bool


def linear_probe(task: Task, seed: int) -> list[Scored]:
    """DINOv2's linear probe, batch norm and a 1x1 convolution on the last tokens, solved as the convex problem it is.

    The seed does nothing: the optimum is unique.
    """
    patches = labelled_patches(task)
    fit = fit_linear(patches, l2=task.config.l2, max_steps=task.config.max_steps, device=task.backbone.device)
    ended = "converged" if fit.converged else "stopped"
    note = f"linear probe: L-BFGS {ended} after {fit.steps} steps, loss {fit.loss:.4f}"

    def scores(place: int) -> Tensor:
        return torch.tensor(task.val[place]).to(fit.weight.device) @ fit.weight + fit.bias

    return [score_patches(task, scores, method="linear probe", probe="linear", notes=(note,))]


def fit_linear(patches: LabelledPatches, *, l2: float, max_steps: int, device: torch.device) -> LinearFit:
    """Multinomial logistic regression on the shares of classes, features standardised over the patches.

    The loss is the mean cross-entropy plus l2 / 2 times the squared norm of the weights on standardised features; the
    bias is free. Features that do not fit in memory are read again for each step.
    """
    chunks = patches.passes(device)
    mean, std = standardisation(chunks())
    dim, classes = len(mean), patches.shares.shape[1]
    weight = torch.zeros(dim, classes, device=device, requires_grad=True)
    bias = torch.zeros(classes, device=device, requires_grad=True)

    def raw() -> tuple[Tensor, Tensor]:
        """The layer on features as they are."""
        scaled = weight / std[:, None]
        return scaled, bias - mean @ scaled

    def closure() -> Tensor:
        optimizer.zero_grad()
        on_raw = raw()
        loss, d_weight, d_bias = cross_entropy(chunks(), *(part.detach() for part in on_raw), count=len(patches))
        penalty = l2 / 2 * weight.square().sum()
        torch.autograd.backward([*on_raw, penalty], [d_weight, d_bias, torch.ones_like(penalty)])
        return loss + penalty.detach()

    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_STEPS_A_CALL,
        max_eval=20 * _STEPS_A_CALL,  # or its line searches would end it early
        history_size=_HISTORY,
        tolerance_grad=_GRADIENT,
        tolerance_change=_CHANGE,
        line_search_fn="strong_wolfe",
    )
    steps, converged = 0, False
    with Reporter("linear probe", max_steps) as reporter:
        while steps < max_steps and not converged:
            optimizer.param_groups[0]["max_iter"] = wanted = min(_STEPS_A_CALL, max_steps - steps)
            optimizer.step(closure)
            done = optimizer.state[weight]["n_iter"]
            converged = done - steps < wanted
            reporter.advance(done - steps)
            steps = done
    loss = float(closure())
    with torch.no_grad():
        scaled, shifted = raw()
    return LinearFit(scaled, shifted, loss, steps, converged)


def cross_entropy(
    chunks: Iterable[tuple[Tensor, Tensor]], weight: Tensor, bias: Tensor, *, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over `count` patches of the cross-entropy with soft labels, and its gradients by weight and bias."""
    loss, d_weight, d_bias = torch.zeros_like(bias[0]), torch.zeros_like(weight), torch.zeros_like(bias)
    for tokens, shares in chunks:
        log_probs = log_softmax(torch.addmm(bias, tokens, weight), dim=1)
        loss -= (shares * log_probs).sum() / count
        excess = log_probs.exp_().sub_(shares).div_(count)  # shares sum to 1
        d_weight += tokens.T @ excess
        d_bias += excess.sum(dim=0)
    return loss, d_weight, d_bias


def standardisation(chunks: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of the features, float32; 1 for a feature that never changes."""
    count = 0
    shift: Tensor | None = None
    total = squares = torch.zeros(())
    for tokens, _ in chunks:
        wide = tokens.double()
        if shift is None:
            shift = wide.mean(dim=0)  # near the mean, so that nothing cancels
            total, squares = torch.zeros_like(shift), torch.zeros_like(shift)
        count += len(wide)
        total += (wide - shift).sum(dim=0)
        squares += (wide - shift).square().sum(dim=0)
    assert shift is not None
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return (shift + mean).float(), torch.where(std > 1e-6, std, 1.0).float()
