"""A forward and backward pass of CAST against the released one: `python benchmarks/cast_step.py [--json FILE]`.

The class-token form at 224² px, whose superpixels are averaged on the stem's grid, and the fusion form at 512² px as
dense tasks have it, whose superpixels are averaged pixel by pixel. `cast_published.py` says what it is compared with.
Same weights, images and superpixels (SEEDS of smooth noise), training mode without dropout, both in turns in one
process; before anything is timed, outputs and gradients must agree. Averaging and sampling, where the arithmetic
differs most, are timed by themselves too: what is averaged and what is sampled must agree as well.

Peaks of memory are those of a process each, which does nothing else. All on one thread of the processor, in float32;
time is that of the processor, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

import sohes  # noqa: F401, registers CAST with timm
from benchmarks.cast_published import PublishedCAST, average, farthest, positions_of
from benchmarks.superpixels import generated, square
from benchmarks.train_step import peak_gb, reset_peak
from sohes.backbones.cast.model import CAST, PATCH_PX
from sohes.backbones.cast.sampling import farthest_points
from sohes.backbones.cast.segment_mean import SegmentMean
from sohes.data.superpixels.settings import SuperpixelSettings
from sohes.data.superpixels.superpixels import superpixels
from sohes.files import write_json
from sohes.records import commit, hardware, versions

FORMS = ("class token", "dense")
TOLERANCE = 1e-4  # of outputs, as of the golden values, and of all gradients together


class Inputs(NamedTuple):
    """A form's model, and images (B, 3, S, S) with their superpixels (B, S, S)."""

    model: CAST
    images: Tensor
    superpixels: Tensor

    @property
    def dense(self) -> bool:
        """Whether superpixels are averaged pixel by pixel."""
        return self.model.fusion is not None

    def ours(self) -> Tensor:
        """The class token, or the fused superpixels."""
        found = self.model.segment(self.images, self.superpixels, full_resolution=self.dense)
        output = found.fused if self.dense else found.cls
        assert output is not None
        return output


def make_inputs(form: str, size: str, side: int, batch: int) -> Inputs:
    """Smooth noise, its superpixels, and a random model without dropout."""
    torch.manual_seed(0)
    name = f"cast_{size}" + ("_fusion" if form == "dense" else "")
    # what is empty is left out by ours alone; where nothing is, there is no difference
    model = timm.create_model(name, num_classes=0, img_size=side, mask_empty=False).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    pictures = [square(image, side) for image, _ in generated(batch)]
    labels = [torch.from_numpy(superpixels(picture, SuperpixelSettings())).long() for picture in pictures]
    images = torch.stack([torch.from_numpy(picture) for picture in pictures]).permute(0, 3, 1, 2).float() / 128 - 1
    return Inputs(model, images, torch.stack(labels))


def published(inputs: Inputs) -> Callable[[], Tensor]:
    """The released forward pass."""
    network, counts = PublishedCAST(inputs.model), inputs.model.token_counts(*inputs.images.shape[2:])
    return lambda: network(inputs.images, inputs.superpixels, counts, full_resolution=inputs.dense)


def with_gradients(forward: Callable[[], Tensor], module: nn.Module) -> Callable[[], Tensor]:
    """Forward and backward pass, weighted at random; gives the output."""

    def step() -> Tensor:
        module.zero_grad()
        output = forward()
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
        (output * weights).mean().backward()
        return output.detach()

    return step


def in_turns(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median processor seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    found = {f"{name}_s": median(taken) for name, taken in seconds.items()}
    return {**found, "ratio": found["published_s"] / found["ours_s"]}


def gradient_error(ours: nn.Module, theirs: nn.Module) -> float:
    """Of all gradients as one vector, relative."""
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all((one.grad is None) == (other.grad is None) for one, other in pairs), "not the same parameters learn"
    left, right = (
        torch.cat([pair[side].grad.flatten() for pair in pairs if pair[0].grad is not None]) for side in (0, 1)
    )
    return float((left - right).norm() / right.norm())


def whole_step(inputs: Inputs, rounds: int) -> dict[str, float]:
    """Forward and backward pass."""
    theirs = PublishedCAST(inputs.model)
    counts = inputs.model.token_counts(*inputs.images.shape[2:])
    ways = {
        "ours": with_gradients(inputs.ours, inputs.model),
        "published": with_gradients(
            lambda: theirs(inputs.images, inputs.superpixels, counts, full_resolution=inputs.dense), theirs
        ),
    }
    error = float((ways["ours"]() - ways["published"]()).abs().max())
    of_gradients = gradient_error(inputs.model, theirs.model)
    assert max(error, of_gradients) < TOLERANCE, f"outputs differ by {error}, gradients by {of_gradients}"
    return {"error": error, "gradient_error": of_gradients, **in_turns(ways, rounds)}


def averaging(inputs: Inputs, rounds: int) -> dict[str, float]:
    """From the stem's map to tokens with positions, and back."""
    side, batch = inputs.images.shape[2] // PATCH_PX, len(inputs.images)
    cells = nn.Parameter(torch.randn(batch, side, side, inputs.model.embed_dim))
    labels, positions = inputs.superpixels, positions_of(inputs.model).detach()
    if not inputs.dense:
        labels = labels[:, ::PATCH_PX, ::PATCH_PX]

    def ours() -> Tensor:
        mean = SegmentMean(labels, int(labels.max()) + 1)
        return mean(cells) + mean(positions, "bicubic")

    def theirs() -> Tensor:
        return average(cells, inputs.superpixels, positions, upsample=inputs.dense, reduce=not inputs.dense)[0]

    holder = nn.ParameterList([cells])
    ways = {"ours": with_gradients(ours, holder), "published": with_gradients(theirs, holder)}
    error = float((ways["ours"]() - ways["published"]()).abs().max())
    assert error < TOLERANCE, f"means differ by {error}"
    return {"error": error, **in_turns(ways, rounds)}


def sampling(inputs: Inputs, rounds: int) -> dict[str, float]:
    """Of the centroids of all levels."""
    counts = inputs.model.token_counts(*inputs.images.shape[2:])
    most = int(inputs.superpixels.max()) + 1
    levels = [
        (torch.randn(len(inputs.images), size, inputs.model.embed_dim), count)
        for size, count in zip((most, *counts), counts, strict=False)
    ]
    nothing = [torch.zeros(tokens.shape[:2], dtype=torch.bool) for tokens, _ in levels]
    ways: dict[str, Callable[[], list[Tensor]]] = {
        "ours": lambda: [farthest_points(*level) for level in levels],
        "published": lambda: [
            farthest(tokens, empty, count) for (tokens, count), empty in zip(levels, nothing, strict=True)
        ],
    }
    assert all(map(torch.equal, ways["ours"](), ways["published"]())), "other tokens are picked"
    return in_turns(ways, rounds)


def peak(form: str, size: str, side: int, batch: int, way: str) -> dict[str, float]:
    """GB of this process before a forward and backward pass and at its peak; the pass is the first one."""
    torch.set_num_threads(1)
    inputs = make_inputs(form, size, side, batch)
    tokens = torch.zeros(1, 2, 8)
    farthest(tokens, torch.zeros(1, 2, dtype=torch.bool), 1)  # loaded, as all else is
    forward = inputs.ours if way == "ours" else published(inputs)
    reset_peak(torch.device("cpu"))
    before = peak_gb(torch.device("cpu"))
    forward().mean().backward()
    return {"before_gb": before, "peak_gb": peak_gb(torch.device("cpu"))}


def memory(form: str, size: str, side: int, batch: int) -> dict[str, Any]:
    """Of both, each in a process of its own; `ratio` is of what the pass adds."""
    found: dict[str, Any] = {}
    for way in ("ours", "published"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[way] = pool.apply(peak, (form, size, side, batch, way))
    added = {way: peaks["peak_gb"] - peaks["before_gb"] for way, peaks in found.items()}
    return {**found, "ratio": added["published"] / added["ours"]}


def describe(result: dict[str, Any]) -> str:
    """A few lines for a reader."""
    step, peaks = result["step"], result["memory"]
    lines = [
        f"{result['form']}, {result['batch']} images of {result['side_px']}² px: outputs equal to {step['error']:.0e}, "
        f"gradients to {step['gradient_error']:.0e}"
    ]
    for name in ("step", "averaging", "sampling"):
        part = result[name]
        lines.append(
            f"  {name:10} {part['ours_s']:8.3f} s, published {part['published_s']:8.3f} s: {part['ratio']:.2f} x"
        )
    lines.append(
        f"  memory     {peaks['ours']['peak_gb']:8.2f} GB, published {peaks['published']['peak_gb']:7.2f} GB; "
        f"of what the pass adds {peaks['ratio']:.2f} x"
    )
    return "\n".join(lines)


def main() -> None:
    """Compare both forms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", help="of the model: small (default), base, tiny, ...")
    parser.add_argument(
        "--sides", type=int, nargs=2, default=(224, 512), metavar="PX", help="of the images of each form"
    )
    parser.add_argument("--batches", type=int, nargs=2, default=(8, 1), metavar="N", help="images of each form")
    parser.add_argument("--rounds", type=int, default=3, help="that are timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(hardware(), flush=True)
    results = []
    for form, side, batch in zip(FORMS, options.sides, options.batches, strict=True):
        inputs = make_inputs(form, options.size, side, batch)
        result: dict[str, Any] = {"form": form, "side_px": side, "batch": batch}
        result |= {"step": whole_step(inputs, options.rounds), "averaging": averaging(inputs, options.rounds)}
        result |= {"sampling": sampling(inputs, options.rounds), "memory": memory(form, options.size, side, batch)}
        results.append(result)
        print(describe(result), flush=True)
    if options.json:
        record = {"hardware": hardware(), "commit": commit(), "versions": versions()}
        setting = {"size": options.size, "rounds": options.rounds}
        write_json(options.json, {**record, "setting": setting, "results": results})


if __name__ == "__main__":
    main()
