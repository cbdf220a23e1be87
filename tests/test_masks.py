"""Masks against their definitions, pair by pair, and their doors."""

import pytest
import torch
from torch import nn

from transformer.masks import causal_mask, check_mask, padding_mask, sliding_window_mask


@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 1), (4, 4), (1, 6), (3, 5)])
def test_causal_counts_from_the_end(n_queries, n_keys):
    expected = [
        [s <= t + n_keys - n_queries for s in range(n_keys)] for t in range(n_queries)
    ]
    assert causal_mask(n_queries, n_keys).tolist() == expected


def test_causal_equals_pytorch():
    theirs = nn.Transformer.generate_square_subsequent_mask(7)
    assert torch.equal(causal_mask(7), theirs == 0)


@pytest.mark.parametrize("window", [1, 2, 3, 10])
@pytest.mark.parametrize("n_queries", [2, 6])
def test_window_is_causal_and_short(window, n_queries):
    n_keys = 6
    offset = n_keys - n_queries
    expected = [
        [t + offset - window < s <= t + offset for s in range(n_keys)]
        for t in range(n_queries)
    ]
    assert sliding_window_mask(n_queries, window, n_keys).tolist() == expected


def test_padding_stretches_over_heads_and_queries():
    real = torch.tensor([[True, True, False], [True, False, False]])
    full = padding_mask(real).expand(2, 4, 3, 3)
    for b in range(2):
        for h in range(4):
            for t in range(3):
                assert torch.equal(full[b, h, t], real[b])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: causal_mask(3, 2), ValueError, "2 keys, 3 queries"),
        (lambda: sliding_window_mask(3, 0), ValueError, "window must be at least 1"),
        (lambda: padding_mask(torch.ones(2, 3)), TypeError, "got torch.float32"),
        (
            lambda: padding_mask(torch.ones(3, dtype=torch.bool)),
            ValueError,
            r"\(B, S\), got \(3,\)",
        ),
        (
            lambda: check_mask(torch.ones(2, 2), (1, 1, 2, 2)),
            TypeError,
            "boolean, True = may attend, got torch.float32",
        ),
        (
            lambda: check_mask(torch.ones(3, 2, dtype=torch.bool), (1, 1, 2, 2)),
            ValueError,
            r"\(1, 1, 2, 2\), got \(3, 2\)",
        ),
        (
            lambda: check_mask(
                torch.ones(1, 1, 1, 2, 2, dtype=torch.bool), (1, 1, 2, 2)
            ),
            ValueError,
            "must broadcast",
        ),
    ],
)
def test_doors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_shapes_that_broadcast_pass():
    for shape in [(2, 3), (1, 3), (4, 1, 1, 3), (4, 5, 2, 3), (3,)]:
        check_mask(torch.ones(shape, dtype=torch.bool), (4, 5, 2, 3))
