"""Dropout against its definition, PyTorch's layer and the statistics of coins."""

import math

import pytest
import torch
from torch import nn

from transformer.dropout import Dropout, check_dropout


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_entries_are_zero_or_paid_back(p):
    x = torch.randn(50, 40, dtype=torch.float64)
    y = Dropout(p)(x)
    gone = y == 0
    assert 0 < gone.sum() < x.numel()
    torch.testing.assert_close(y[~gone], x[~gone] / (1 - p), atol=1e-10, rtol=0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_mean_and_spread_over_many_masks(p):
    x, n = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64), 200_000
    y = Dropout(p)(x.expand(n, 3))
    spread = x.abs() * math.sqrt(p / (1 - p))
    assert ((y.mean(dim=0) - x).abs() < 5 * spread / math.sqrt(n)).all()
    torch.testing.assert_close(y.std(dim=0), spread, atol=0, rtol=0.02)


def test_every_entry_has_a_coin_of_its_own():
    gone = (Dropout(0.5)(torch.ones(20_000, 2, 3)) == 0).flatten(1).double()
    ties = torch.corrcoef(gone.T) - torch.eye(6, dtype=torch.float64)
    assert ties.abs().max() < 0.05


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_layer_of_pytorch(p, dtype):
    results = []
    for layer in (Dropout(p), nn.Dropout(p)):
        torch.manual_seed(1)
        x = torch.arange(1.0, 61, dtype=dtype).reshape(3, 4, 5).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        results.append((y, x.grad))
    torch.testing.assert_close(results[0], results[1], atol=0, rtol=0)
    assert results[0][0].dtype == dtype


def test_the_gradient_passes_where_the_entry_passed():
    x = torch.randn(30, 20, dtype=torch.float64, requires_grad=True)
    y = Dropout(0.4)(x)
    y.sum().backward()
    expected = (y != 0).double() / 0.6
    torch.testing.assert_close(x.grad, expected, atol=1e-10, rtol=0)


def test_each_call_draws_anew():
    layer, x = Dropout(0.5), torch.ones(100)
    assert not torch.equal(layer(x), layer(x))


def test_does_nothing_in_use_and_wakes_again():
    model, x = nn.Sequential(Dropout(0.5)), torch.randn(100)
    model.eval()
    assert torch.equal(model(x), x)
    model.train()
    assert not torch.equal(model(x), x)


def test_no_chance_is_no_dropout():
    x = torch.randn(100)
    assert torch.equal(Dropout()(x), x)


@pytest.mark.parametrize("p", [1.0, 1.5, 25, -0.1, math.nan])
def test_a_chance_out_of_range(p):
    for build in (check_dropout, Dropout):
        with pytest.raises(
            ValueError, match=rf"^dropout must lie in \[0, 1\), got {p}$"
        ):
            build(p)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.999])
def test_a_chance_in_range(p):
    check_dropout(p)
    assert Dropout(p).p == p


def test_has_no_weights_and_shows_its_chance():
    layer = Dropout(0.1)
    assert not layer.state_dict() and not list(layer.parameters())
    assert repr(layer) == "Dropout(p=0.1)"
