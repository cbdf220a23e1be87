"""Attention against loops and PyTorch's own layer."""

import math

import pytest
import torch
from torch.nn import functional as F

from transformer.attention import attention, attention_weights


def by_loop(query, key, value, mask):
    """One number at a time, in plain floats."""
    out = []
    for t, q in enumerate(query.tolist()):
        scores = [
            sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(len(q))
            for k in key.tolist()
        ]
        kept = [math.exp(s) if mask[t][i] else 0.0 for i, s in enumerate(scores)]
        total = sum(kept) or 1.0
        columns = zip(*value.tolist(), strict=True)
        out.append(
            [sum(w * v for w, v in zip(kept, c, strict=True)) / total for c in columns]
        )
    return torch.tensor(out, dtype=query.dtype)


@pytest.mark.parametrize("form", ["fused", "written out"])
def test_equals_the_loop_with_a_mask_and_an_empty_row(form):
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    key = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    value = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 6, generator=generator) < 0.5
    mask[2] = False  # may attend to nothing: zeros
    if form == "fused":
        got = attention(query[None, None], key[None, None], value[None, None], mask)[
            0, 0
        ]
    else:
        got = attention_weights(query, key, mask) @ value
    torch.testing.assert_close(
        got, by_loop(query, key, value, mask), atol=1e-10, rtol=0
    )
    assert torch.equal(got[2], torch.zeros_like(got[2]))


def test_an_empty_row_has_no_nan_in_its_gradient():
    query = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False], [False, False], [True, True]])
    weights = attention_weights(query, query[:2], mask)
    weights.square().sum().backward()
    assert query.grad is not None
    assert bool(query.grad.isfinite().all())


def test_causal_flag_equals_the_mask():
    query, key, value = torch.randn(3, 2, 2, 5, 4, dtype=torch.float64)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    expected = attention_weights(query, key, mask) @ value
    got = attention(query, key, value, causal=True)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)


def test_a_cached_step_must_bring_its_mask():
    """PyTorch would show a single cached query only the first key, and say nothing."""
    query, key = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 5, 4)
    silent = F.scaled_dot_product_attention(query, key, key, is_causal=True)
    torch.testing.assert_close(silent[0, 0, 0], key[0, 0, 0])  # the trap
    with pytest.raises(ValueError, match=r"1 queries, 5 keys, mask absent"):
        attention(query, key, key, causal=True)
    with pytest.raises(ValueError, match="mask given"):
        attention(key, key, key, torch.ones(5, 5, dtype=torch.bool), causal=True)


def test_a_mask_of_numbers_is_refused():
    """PyTorch would add ones and zeros to the scores, and say nothing."""
    query = torch.randn(1, 1, 5, 4)
    for dtype in (torch.float32, torch.int64):
        mask = torch.ones(5, 5, dtype=dtype).tril()
        with pytest.raises(TypeError, match=f"mask must be boolean.*got {dtype}"):
            attention(query, query, query, mask)
        with pytest.raises(TypeError, match=f"mask must be boolean.*got {dtype}"):
            attention_weights(query, query, mask)


def test_dropout_silences_weights():
    query, key = torch.randn(2, 1, 1, 8, 4)
    value = torch.ones(1, 1, 8, 4)
    torch.manual_seed(0)
    dropped = attention(query, key, value, dropout=0.5)
    assert not torch.allclose(dropped, torch.ones_like(dropped))
    torch.testing.assert_close(attention(query, key, value), torch.ones(1, 1, 8, 4))
