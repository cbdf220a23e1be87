"""The norms, against plain sums and PyTorch's layers."""

import math

import pytest
import torch
from torch import nn

from transformer.norm import LayerNorm, RMSNorm

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def rows(dtype, *shape):
    """Rows that are neither centred nor of one size, and one nearly even row."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 3 + 1
    x.view(-1, shape[-1])[0] *= 1e-3
    return x.to(dtype)


def with_weights(module, dtype):
    """The module with a gain and a shift that are not one and zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return module.to(dtype)


def layer_norm_by_sums(x, weight, bias, eps):
    """One number at a time, in Python's floats."""
    out = []
    for row in x.reshape(-1, x.shape[-1]).tolist():
        mean = sum(row) / len(row)
        variance = sum((v - mean) ** 2 for v in row) / len(row)
        deviation = math.sqrt(variance + eps)
        shift = [0.0] * len(row) if bias is None else bias.tolist()
        triples = zip(row, weight.tolist(), shift, strict=True)
        out.append([(v - mean) / deviation * g + b for v, g, b in triples])
    return torch.tensor(out, dtype=torch.float64).view(x.shape)


def rms_norm_by_sums(x, weight, eps):
    """One number at a time, in Python's floats."""
    out = []
    for row in x.reshape(-1, x.shape[-1]).tolist():
        size = math.sqrt(sum(v * v for v in row) / len(row) + eps)
        out.append([v / size * g for v, g in zip(row, weight.tolist(), strict=True)])
    return torch.tensor(out, dtype=torch.float64).view(x.shape)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 3, 64), (2, 2, 3, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_by_sums(dtype, shape, bias):
    x = rows(dtype, *shape)
    norm = with_weights(LayerNorm(shape[-1], bias=bias), dtype)
    want = layer_norm_by_sums(x, norm.weight, norm.bias, 1e-5)
    got = norm(x)
    assert got.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(got.double(), want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 3, 64), (2, 2, 3, 2)])
def test_rms_norm_by_sums(dtype, shape):
    x = rows(dtype, *shape)
    norm = with_weights(RMSNorm(shape[-1]), dtype)
    want = rms_norm_by_sums(x, norm.weight, 1e-6)
    got = norm(x)
    assert got.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(got.double(), want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.5])
def test_eps_stands_under_the_root(eps):
    """A row of deviation 0.001: outside the root, eps would weigh differently."""
    x = 1e-3 * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    for norm in (LayerNorm(4, eps=eps), RMSNorm(4, eps=eps)):
        want = x / math.sqrt(1e-6 + eps)
        torch.testing.assert_close(norm.double()(x), want, atol=0, rtol=1e-10)


def test_same_as_pytorch_with_gradients():
    """Under PyTorch's names, so that its state loads into ours."""
    for ours, theirs in (
        (LayerNorm(6), nn.LayerNorm(6)),
        (LayerNorm(6, bias=False), nn.LayerNorm(6, bias=False)),
        (RMSNorm(6), nn.RMSNorm(6, eps=1e-6)),
    ):
        with_weights(theirs, torch.float64)
        ours.double().load_state_dict(theirs.state_dict())
        grads = []
        for norm in (ours, theirs):
            x = rows(torch.float64, 3, 6).requires_grad_()
            out = norm(x)
            grads.append(
                [out, *torch.autograd.grad(out.sin().sum(), [x, *norm.parameters()])]
            )
        torch.testing.assert_close(grads[0], grads[1], atol=1e-10, rtol=1e-10)


def test_gradient_by_differences():
    for norm in (LayerNorm(5), RMSNorm(5)):
        with_weights(norm, torch.float64)
        x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(norm, x)


def test_starts_as_a_plain_norm():
    x = rows(torch.float64, 50, 9)[1:]  # the row that is nearly even keeps its eps
    ours = LayerNorm(9).double()(x)
    torch.testing.assert_close(
        ours.mean(-1), torch.zeros(49).double(), atol=1e-10, rtol=0
    )
    torch.testing.assert_close(
        ours.norm(dim=-1), torch.full((49,), 3.0).double(), atol=1e-4, rtol=0
    )
    length = RMSNorm(9).double()(x).norm(dim=-1)
    torch.testing.assert_close(
        length, torch.full((49,), 3.0).double(), atol=1e-4, rtol=0
    )


def test_what_is_forgotten():
    """Layer norm forgets a row's mean and size, RMS norm only its size."""
    x = rows(torch.float64, 7, 8)[1:]
    layer, rms = LayerNorm(8, eps=0).double(), RMSNorm(8, eps=0).double()
    torch.testing.assert_close(layer(5 * x - 3), layer(x), atol=1e-10, rtol=0)
    torch.testing.assert_close(rms(5 * x), rms(x), atol=1e-10, rtol=0)
    assert (rms(x + 3) - rms(x)).abs().max() > 0.1


def test_even_rows_give_no_nan():
    for norm in (LayerNorm(4), RMSNorm(4)):
        for value in (0.0, 7.0):
            x = torch.full((2, 4), value, requires_grad=True)
            out = norm(x)
            (gradient,) = torch.autograd.grad(out.square().sum(), x)
            assert out.isfinite().all() and gradient.isfinite().all()


def test_no_row_sees_another():
    for norm in (LayerNorm(4), RMSNorm(4)):
        x = rows(torch.float64, 2, 5, 4)
        changed = x.clone()
        changed[1, 3] += torch.tensor([9.0, 0.0, -4.0, 1.0])
        moved = (norm.double()(changed) - norm(x)).abs().amax(dim=-1) > 0
        want = torch.zeros(2, 5, dtype=torch.bool)
        want[1, 3] = True
        assert torch.equal(moved, want)


def test_parameters():
    assert [n for n, _ in LayerNorm(4).named_parameters()] == ["weight", "bias"]
    assert [n for n, _ in LayerNorm(4, bias=False).named_parameters()] == ["weight"]
    assert [n for n, _ in RMSNorm(4).named_parameters()] == ["weight"]
    norm = LayerNorm(4)
    assert norm.weight.tolist() == [1.0] * 4 and norm.bias.tolist() == [0.0] * 4


@pytest.mark.parametrize("make", [LayerNorm, RMSNorm])
def test_errors(make):
    with pytest.raises(ValueError, match="d_model must be at least 1, got 0"):
        make(0)
    with pytest.raises(ValueError, match="eps must not be negative, got -1e-05"):
        make(4, eps=-1e-5)
    with pytest.raises(RuntimeError, match=r"\[\*(, )?4\].*\[2, 3\]"):
        make(4)(torch.zeros(2, 3))
