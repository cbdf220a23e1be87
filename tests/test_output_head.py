"""The output head, the losses and sampling against PyTorch and the formula."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from transformer.output_head import (
    OutputHead,
    chunked_cross_entropy,
    cross_entropy,
    sample,
)


def test_tied_is_shared_and_untied_is_not():
    table = nn.Parameter(torch.randn(7, 3))
    tied, own = OutputHead(3, 7, table), OutputHead(3, 7)
    assert tied.weight is table
    assert own.weight.data_ptr() != table.data_ptr()
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(tied(x), F.linear(x, table))
    with pytest.raises(
        ValueError, match=r"tied must have shape .* \(8, 3\), got \(7, 3\)"
    ):
        OutputHead(3, 8, table)


def test_cross_entropy_is_the_formula_and_leaves_filling_out():
    logits = torch.randn(2, 4, 6, dtype=torch.float64)
    targets = torch.tensor([[1, 5, -100, 0], [2, -100, -100, 3]])
    surprises = [
        math.log(row.exp().sum()) - row[y]
        for row, y in zip(logits.flatten(0, 1), targets.flatten().tolist(), strict=True)
        if y >= 0
    ]
    expected = sum(surprises) / len(surprises)
    torch.testing.assert_close(
        cross_entropy(logits, targets), expected, atol=1e-10, rtol=0
    )


@pytest.mark.parametrize("ignore", [-100, 3])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunked_loss_and_gradients(chunk, ignore):
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    weight = torch.randn(11, 8, dtype=torch.float64)
    targets = torch.randint(11, (3, 5))
    targets[0, :4] = ignore  # with chunks of four, one has nothing to add
    results = []
    for form in (
        lambda x, w: F.cross_entropy(
            (x @ w.T).flatten(0, 1), targets.flatten(), ignore_index=ignore
        ),
        lambda x, w: chunked_cross_entropy(x, w, targets, chunk, ignore),
    ):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        value = form(*leaves)
        value.backward()
        results.append([value.detach(), *(t.grad for t in leaves)])
    torch.testing.assert_close(results[1], results[0], atol=1e-10, rtol=1e-10)


def test_one_row_without_leading_axes():
    x, weight, target = torch.randn(8), torch.randn(11, 8), torch.tensor(3)
    expected = -(weight @ x).log_softmax(dim=-1)[3]
    torch.testing.assert_close(cross_entropy(weight @ x, target), expected)
    torch.testing.assert_close(chunked_cross_entropy(x, weight, target), expected)
    assert sample(weight @ x).shape == sample(weight @ x, temperature=0).shape == ()


def test_nothing_is_lost_adding_up_half_precision():
    x, weight = torch.randn(4096, 8).bfloat16(), torch.randn(11, 8).bfloat16()
    targets = torch.randint(11, (4096,))
    got = chunked_cross_entropy(x, weight, targets, chunk=16)
    assert got.dtype == torch.float32
    expected = cross_entropy((x @ weight.T).float(), targets)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_sampling_follows_the_tempered_softmax():
    logits = torch.tensor([0.0, 1.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    for temperature in (0.5, 2.0):
        drawn = sample(logits.expand(40_000, -1), temperature, generator)
        counted = torch.bincount(drawn, minlength=3) / 40_000
        expected = (logits / temperature).softmax(dim=-1)
        assert (counted - expected).abs().max() < 0.01


def test_sampling_edges():
    logits = torch.randn(2, 3, 5)
    assert torch.equal(sample(logits, temperature=0), logits.argmax(dim=-1))
    assert sample(logits).shape == (2, 3)
    first = sample(logits, generator=torch.Generator().manual_seed(3))
    assert torch.equal(
        first, sample(logits, generator=torch.Generator().manual_seed(3))
    )
    for tiny in (1e-40, 1e-300):
        assert torch.equal(sample(100 * logits, tiny), logits.argmax(dim=-1))


@pytest.mark.parametrize("temperature", [-1, float("nan"), float("inf")])
def test_sampling_refuses_a_temperature(temperature):
    with pytest.raises(ValueError, match=f"finite and at least 0, got {temperature}"):
        sample(torch.randn(2, 5), temperature)


def test_a_bias_adds_a_number_to_each_words_logit():
    head = OutputHead(3, 7, bias=True)
    nn.init.normal_(head.bias)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(head(x), F.linear(x, head.weight, head.bias))
    assert OutputHead(3, 7).bias is None
