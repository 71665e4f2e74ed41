"""Products by oneDNN have the values and gradients of PyTorch's own, on every path that depends on the size."""

from __future__ import annotations

import pytest
import torch

from gradus.pipeline.policy.forward import matmul
from gradus.pipeline.policy.forward.matmul import Packed, linear, onednn_layers

SHAPES = {
    "short sums": (200, 40, 24),
    "few rows": (3, 40, 300),
    "many rows": (200, 40, 300),
    "laid out": (5, 512, 256),
    "huge": (2, 4096, 1024),
}


def operands(rows: int, outputs: int, inputs: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, inputs), (outputs, inputs), (outputs,), (rows, outputs)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


@pytest.fixture(params=[matmul.AVX2, matmul.AVX512], ids=["avx2", "avx512"], autouse=True)
def thresholds(request, monkeypatch):
    """The thresholds of each kind of processor, whatever this machine has."""
    monkeypatch.setattr(matmul, "thresholds", lambda: request.param)
    return request.param


def test_the_shapes_above_take_every_way():
    short, wide = matmul.AVX2, matmul.AVX512
    assert short.rows <= 200 and 24 < short.terms <= 256 and short.laid_out <= 512 * 256 < matmul.HUGE <= 4096 * 1024
    assert 200 * 40 * 24 < wide.work <= 200 * 40 * 300 and 40 * 300 < wide.laid_out <= 512 * 256


def test_the_rule_is_one_of_the_two(monkeypatch):
    monkeypatch.undo()
    assert matmul.thresholds() in (matmul.AVX2, matmul.AVX512) and matmul.thresholds() is matmul.thresholds()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("biased", [False, True])
def test_products_and_their_gradients_are_pytorchs(shape, biased):
    states, weight, bias, pull = operands(*shape)
    inputs = [states, weight, *([bias] if biased else [])]

    def results(function):
        leaves = [part.clone().requires_grad_() for part in inputs]
        product = function(*leaves) if biased else function(*leaves, None)
        return product.detach(), *torch.autograd.grad((product * pull).sum(), leaves)

    for got, wanted in zip(results(linear), results(torch.nn.functional.linear), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("biased", [False, True])
def test_a_packed_layer_gives_and_adds_the_product(shape, biased):
    states, weight, bias, other = operands(*shape)
    layer = Packed(weight, bias if biased else None)
    wanted = torch.nn.functional.linear(states, weight, bias if biased else None)
    torch.testing.assert_close(layer(states), wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(layer.added(other, states), other + wanted, rtol=1e-4, atol=1e-3)


def test_layers_multiply_by_it_and_are_given_back(monkeypatch):
    calls = []
    monkeypatch.setattr(matmul, "linear", lambda *given: calls.append(given) or linear(*given))
    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.ReLU(), torch.nn.Linear(300, 300))
    states = torch.randn(300, 300)
    wanted = model(states)
    with onednn_layers(model):
        torch.testing.assert_close(model(states), wanted)
    assert len(calls) == 2
    model(states)
    assert len(calls) == 2


def test_other_types_and_a_frozen_weight_are_left_to_pytorch():
    states, weight, _, _ = operands(200, 40, 300)
    low = linear(states.bfloat16(), weight.bfloat16(), None)
    assert low.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(states, weight, None).dtype == torch.bfloat16
    states.requires_grad_()
    linear(states, weight, None).sum().backward()
    torch.testing.assert_close(states.grad, weight.sum(0).expand(200, -1), rtol=1e-4, atol=1e-4)
    assert weight.grad is None


@pytest.mark.parametrize(("left", "right"), [(40, 300), (300, 40), (8, 4)])
def test_an_outer_product_of_columns(left, right):
    first, second = torch.randn(200, left), torch.randn(200, right)
    found = matmul.outer(first, second)
    torch.testing.assert_close(found, first.t() @ second, rtol=1e-4, atol=1e-3)
    assert found.is_contiguous()


def test_kernels_are_few_however_many_rows_there_are():
    found = {len(matmul._filled(torch.empty(rows, 1))) for rows in range(1, 5000)}
    assert len(found) < 160 and all(rows in found for rows in range(1, 32))
    assert max(len(matmul._filled(torch.empty(rows, 1))) / rows for rows in range(1, 5000)) < 1.07


@pytest.mark.parametrize("rows", [33, 257, 1001])
def test_rows_that_are_filled_up_change_nothing(rows):
    states, weight, bias, other = operands(rows, 300, 512)
    wanted = torch.nn.functional.linear(states, weight, bias)
    torch.testing.assert_close(linear(states, weight, bias), wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(linear(states[None], weight, None), wanted[None] - bias, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(Packed(weight, bias).added(other, states), other + wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(matmul.outer(states, other), states.t() @ other, rtol=1e-4, atol=1e-2)
