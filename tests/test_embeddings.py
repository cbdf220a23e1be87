"""The embedding table against PyTorch's own, and its door."""

import math

import pytest
import torch
from torch import nn

from transformer.embeddings import TokenEmbedding, check_ids


@pytest.mark.parametrize("scale", [False, True])
def test_equals_nn_embedding_and_its_gradient(scale):
    ours, theirs = TokenEmbedding(11, 6, scale).double(), nn.Embedding(11, 6).double()
    with torch.no_grad():
        theirs.weight.copy_(ours.weight)
    ids = torch.randint(11, (3, 7))
    factor = math.sqrt(6) if scale else 1.0
    torch.testing.assert_close(ours(ids), factor * theirs(ids), atol=1e-10, rtol=0)
    above = torch.randn(3, 7, 6, dtype=torch.float64)
    (ours(ids) * above).sum().backward()
    (factor * theirs(ids) * above).sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, atol=1e-10, rtol=0)


def test_starts_small():
    weight = TokenEmbedding(2000, 64).weight
    assert abs(weight.std().item() - 0.02) < 1e-3
    assert abs(weight.mean().item()) < 1e-3


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.tensor([[0, 5]]), IndexError, r"ids must lie in \[0, 5\), got 5"),
        (torch.tensor([[-1, 2]]), IndexError, r"ids must lie in \[0, 5\), got -1"),
        (torch.tensor([[1.0]]), TypeError, "int64 or int32, got torch.float32"),
        (torch.tensor([[True]]), TypeError, "int64 or int32, got torch.bool"),
    ],
)
def test_wrong_ids_are_told_at_the_door(ids, error, message):
    with pytest.raises(error, match=message):
        check_ids(ids, 5)
    with pytest.raises(error, match=message):
        TokenEmbedding(5, 2)(ids)


def test_the_edges_and_nothing_at_all_are_fine():
    check_ids(torch.tensor([0, 4], dtype=torch.int32), 5)
    assert TokenEmbedding(5, 2)(torch.empty(2, 0, dtype=torch.int64)).shape == (2, 0, 2)
