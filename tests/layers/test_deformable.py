"""Deformable attention: every path against plain tensor operations, another library's, and values found by hand."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from sohes.layers.deformable import _attend, deformable_attention, reference_deformable_attention

SHAPES = [(3, 5), (1, 1), (4, 1), (7, 6)]
Arguments = tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]


def arguments(
    shapes: list[tuple[int, int]] = SHAPES, *, dtype: torch.dtype = torch.float64, channels: int = 5, seed: int = 0
) -> Arguments:
    """Two images, three heads, seven queries, two points a map; a good part of the points lies outside."""
    generator = torch.Generator().manual_seed(seed)
    pixels, depth = sum(height * width for height, width in shapes), len(shapes)
    value = torch.randn(2, pixels, 3, channels, generator=generator, dtype=dtype)
    locations = torch.rand(2, 7, 3, depth, 2, 2, generator=generator, dtype=dtype) * 1.6 - 0.3
    weights = torch.rand(2, 7, 3, depth, 2, generator=generator, dtype=dtype)
    return value.requires_grad_(), shapes, locations.requires_grad_(), weights.requires_grad_()


def gradients(output: Tensor, tensors: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    direction = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).sin().view(output.shape)
    return torch.autograd.grad(output, tensors, direction)


def test_the_reference_is_the_known_operation() -> None:
    value, shapes, locations, weights = arguments()
    expected = multi_scale_deformable_attention(value, shapes, locations, weights)
    torch.testing.assert_close(reference_deformable_attention(value, shapes, locations, weights), expected)


def test_by_hand() -> None:
    """One map 1 2 / 3 4: centres, the middle, a border, a corner, and far outside."""
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    points = [(0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.0, 0.25), (1.0, 1.0), (-0.25, 0.5), (7.0, 0.5), (0.5, 0.25)]
    expected = [1.0, 2.0, 2.5, 0.5, 1.0, 0.0, 0.0, 1.5]
    locations = torch.tensor(points).view(1, 8, 1, 1, 1, 2)
    output = deformable_attention(value, [(2, 2)], locations, torch.full((1, 8, 1, 1, 1), 2.0))
    assert output.shape == (1, 8, 1)
    assert output.flatten().tolist() == [2 * number for number in expected]


@pytest.mark.parametrize("shapes", [SHAPES, [(1, 1)], [(6, 6), (3, 3)]], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=str)
def test_equal_to_the_reference(shapes: list[tuple[int, int]], dtype: torch.dtype, tolerance: float) -> None:
    value, shapes, locations, weights = arguments(shapes, dtype=dtype)
    tensors = (value, locations, weights)
    ours = deformable_attention(value, shapes, locations, weights)
    reference = reference_deformable_attention(value, shapes, locations, weights)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, reference, atol=tolerance, rtol=tolerance)
    for one, other in zip(gradients(ours, tensors), gradients(reference, tensors), strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_on_pixel_centres_and_edges() -> None:
    """Where a sample changes from one pair of pixels to the next, values still agree."""
    value = arguments([(4, 4)])[0]
    line = torch.tensor([-1 / 8, 0, 1 / 8, 3 / 8, 1 / 2, 7 / 8, 1, 9 / 8], dtype=torch.float64)
    points = torch.cartesian_prod(line, line)[:, None, None, None].expand(2, 64, 3, 1, 1, 2)
    ones = torch.ones(points.shape[:-1], dtype=torch.float64)
    torch.testing.assert_close(
        deformable_attention(value, [(4, 4)], points, ones),
        reference_deformable_attention(value, [(4, 4)], points, ones),
    )


def test_gradients_are_those_of_finite_differences() -> None:
    value, shapes, locations, weights = arguments([(3, 4), (1, 2)], channels=2)
    assert torch.autograd.gradcheck(
        lambda v, at, w: deformable_attention(v, shapes, at, w), (value, locations, weights), fast_mode=True
    )


def test_strided_arguments() -> None:
    value, shapes, locations, weights = arguments()
    expected = deformable_attention(value, shapes, locations, weights)
    strided = (value.mT.contiguous().mT, locations.mT.contiguous().mT, weights.mT.contiguous().mT)
    assert not any(tensor.is_contiguous() for tensor in strided)
    output = deformable_attention(strided[0], shapes, *strided[1:])
    assert torch.equal(output, expected)
    by_row = torch.autograd.grad(output.sum(), (value, locations, weights))  # an expanded gradient: strides of 0
    expected_by_row = torch.autograd.grad(expected, (value, locations, weights), torch.ones_like(expected))
    assert all(torch.equal(one, other) for one, other in zip(by_row, expected_by_row, strict=True))


def test_half_precision_is_summed_in_float32() -> None:
    value, shapes, locations, weights = arguments(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = deformable_attention(value.bfloat16(), shapes, locations, weights)
    expected = deformable_attention(value.bfloat16().float(), shapes, locations, weights)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected.bfloat16())
    (of_value,) = torch.autograd.grad(output.float().sum(), value)
    assert of_value.dtype == torch.float32


def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    value, shapes, locations, weights = arguments(dtype=torch.float32)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        output = deformable_attention(value, shapes, locations, weights)
        found.append((output, *gradients(output, (value, locations, weights))))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_location_that_is_no_number_samples_nothing() -> None:
    value, shapes, locations, weights = arguments(dtype=torch.float32)
    broken = locations.detach().clone()
    broken[0, 0, 0] = torch.nan
    broken[1, 2, 1] = torch.inf
    assert deformable_attention(value, shapes, broken, weights).isfinite().all()


def test_torch_knows_the_operator() -> None:
    """Schema, shapes without data, autograd registration, and the traced graph, checked by torch itself."""
    value, shapes, locations, weights = arguments([(2, 3), (1, 2)], dtype=torch.float32)
    sides = [side for shape in shapes for side in shape]
    torch.library.opcheck(_attend, (value, sides, locations, weights))


@pytest.mark.parametrize("broken", ["shapes", "weights", "locations"])
def test_arguments_that_do_not_fit(broken: str) -> None:
    value, shapes, locations, weights = arguments()
    with pytest.raises(ValueError, match="do not"):
        deformable_attention(
            value,
            [(3, 5), (1, 1)] if broken == "shapes" else shapes,
            locations[..., :1] if broken == "locations" else locations,
            weights[:, :, :2] if broken == "weights" else weights,
        )


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@needs_triton
def test_the_gpu_kernels_under_the_interpreter() -> None:
    """Same values and gradients as on the CPU, for a head width that is no power of two."""
    code = """
        import torch
        from sohes.layers import deformable_cpu, deformable_triton
        from tests.layers.test_deformable import arguments

        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
            value, shapes, locations, weights = arguments(dtype=dtype)
            value, locations, weights = value.detach(), locations.detach(), weights.detach()
            locations[0, 0, 0] = torch.nan
            sides = [side for shape in shapes for side in shape]
            output = deformable_triton.forward(value, sides, locations, weights)
            close = dict(atol=tolerance, rtol=tolerance)
            torch.testing.assert_close(output, deformable_cpu.forward(value, sides, locations, weights), **close)
            ours = deformable_triton.backward(output, value, sides, locations, weights)
            expected = deformable_cpu.backward(output, value, sides, locations, weights)
            for one, other in zip(ours, expected, strict=True):
                torch.testing.assert_close(one, other, **close)
    """
    run_python(code, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.slow
def test_the_gpu_kernels_compile_without_a_gpu() -> None:
    code = """
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from sohes.layers import deformable_triton as module

        sizes = dict(HEADS=8, DEPTH=3, POINTS=4, CHANNELS=32, CHANNEL_BLOCK=32, BLOCK=module.BLOCK)
        for kernel in (module.forward_kernel, module.backward_kernel):
            signature = dict.fromkeys(kernel.arg_names, "*fp32") | dict(levels="*i32", value="*bf16")
            signature |= dict.fromkeys(("triples", "queries", "pixels"), "i32") | dict.fromkeys(sizes, "constexpr")
            places = {(kernel.arg_names.index(name),): size for name, size in sizes.items()}
            for capability in (80, 90):
                source = ASTSource(kernel, signature=signature, constexprs=places)
                assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
    """
    run_python(code)


def run_python(code: str, **environment: str) -> None:
    """Run it in a process of its own, since Triton decides how to compile when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
