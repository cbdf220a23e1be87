"""Multi-head attention against PyTorch's own layer and against loops over heads."""

import math

import pytest
import torch
from torch import nn

from transformer.multi_head import MultiHeadAttention, attention_maps
from transformer.positions import Rotary

CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()
REAL = torch.arange(5) < torch.tensor([[5], [3]])  # (B, S)


@pytest.fixture(autouse=True, params=[torch.float64, torch.float32], ids=str)
def close(request):
    """Compare as tightly as the number type allows."""
    torch.manual_seed(0)
    torch.set_default_dtype(request.param)
    tolerance = 1e-10 if request.param == torch.float64 else 1e-5
    yield lambda a, b: torch.testing.assert_close(a, b, atol=tolerance, rtol=0)
    torch.set_default_dtype(torch.float32)


def pair(d_model=8, n_heads=2, bias=True):
    """Our layer and PyTorch's with the same weights."""
    ours = MultiHeadAttention(d_model, n_heads, bias=bias).eval()
    theirs = nn.MultiheadAttention(d_model, n_heads, bias=bias, batch_first=True).eval()
    inputs = (ours.query, ours.key, ours.value)
    for part in (*inputs, ours.output):
        if bias:  # PyTorch and we start them differently
            nn.init.normal_(part.bias)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in inputs]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        if bias:
            theirs.in_proj_bias.copy_(torch.cat([p.bias for p in inputs]))
            theirs.out_proj.bias.copy_(ours.output.bias)
    return ours, theirs


def by_hand(layer, x, memory, allowed):
    """One sentence and one head at a time; ``allowed`` is (T, S)."""
    per_key = layer.n_heads // layer.n_kv_heads
    sentences = []
    for asks, answers in zip(x, memory, strict=True):
        query, key, value = layer.query(asks), layer.key(answers), layer.value(answers)
        heads = []
        for h in range(layer.n_heads):
            own = slice(h * layer.head_dim, (h + 1) * layer.head_dim)
            shared = slice(
                h // per_key * layer.head_dim, (h // per_key + 1) * layer.head_dim
            )
            scores = query[:, own] @ key[:, shared].T / math.sqrt(layer.head_dim)
            powers = scores.exp() * allowed
            heads.append(powers / powers.sum(dim=-1, keepdim=True) @ value[:, shared])
        sentences.append(layer.output(torch.cat(heads, dim=-1)))
    return torch.stack(sentences)


# ----------------------------------------------------------- against PyTorch's layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_heads", [1, 2, 4, 8])
def test_equals_pytorch(close, n_heads, bias):
    ours, theirs = pair(n_heads=n_heads, bias=bias)
    x = torch.randn(2, 5, 8)
    output, maps = theirs(x, x, x, average_attn_weights=False)
    close(ours(x), output)
    close(ours.weights(x), maps)


def test_causal_equals_pytorch(close):
    ours, theirs = pair()
    x = torch.randn(2, 5, 8)
    output, maps = theirs(x, x, x, attn_mask=~CAUSAL, average_attn_weights=False)
    close(ours(x, causal=True), output)
    close(ours(x, mask=CAUSAL), output)
    close(ours.weights(x, causal=True), maps)


def test_padding_equals_pytorch(close):
    ours, theirs = pair()
    x = torch.randn(2, 5, 8)
    output, maps = theirs(x, x, x, key_padding_mask=~REAL, average_attn_weights=False)
    close(ours(x, mask=REAL[:, None, None]), output)
    close(ours.weights(x, mask=REAL[:, None, None]), maps)


def test_causal_with_padding_equals_pytorch(close):
    ours, theirs = pair()
    x = torch.randn(2, 5, 8)
    output, maps = theirs(
        x, x, x, key_padding_mask=~REAL, attn_mask=~CAUSAL, average_attn_weights=False
    )
    mask = REAL[:, None, None]
    close(ours(x, mask=mask, causal=True), output)
    close(ours.weights(x, mask=mask, causal=True), maps)


def test_memory_equals_pytorch(close):
    ours, theirs = pair()
    x, memory = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    output, maps = theirs(x, memory, memory, average_attn_weights=False)
    close(ours(x, memory), output)
    close(ours.weights(x, memory), maps)


def test_gradients_equal_pytorch(close):
    ours, theirs = pair()
    x = torch.randn(2, 5, 8)
    ours(x, causal=True).square().sum().backward()
    theirs(x, x, x, attn_mask=~CAUSAL)[0].square().sum().backward()
    close(ours.output.weight.grad, theirs.out_proj.weight.grad)
    grads = [part.weight.grad for part in (ours.query, ours.key, ours.value)]
    close(torch.cat(grads), theirs.in_proj_weight.grad)


# ------------------------------------------------------------------ against loops


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_shared_keys_by_hand(close, n_kv_heads):
    layer = MultiHeadAttention(8, 4, n_kv_heads=n_kv_heads)
    x, memory = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    close(layer(x), by_hand(layer, x, x, torch.ones(5, 5)))
    close(layer(x, causal=True), by_hand(layer, x, x, CAUSAL))
    close(layer(x, memory), by_hand(layer, x, memory, torch.ones(5, 3)))
    assert layer.key.out_features == layer.value.out_features == 2 * n_kv_heads


def test_maps_times_values_is_the_output(close):
    layer = MultiHeadAttention(8, 4, n_kv_heads=2, rotary=Rotary(5, 2))
    x = torch.randn(2, 5, 8)
    value = layer.value(x).view(2, 5, 2, 2)[:, :, [0, 0, 1, 1]]  # (B, S, H, K)
    mixed = torch.einsum("bhts,bshk->bthk", layer.weights(x, causal=True), value)
    close(layer(x, causal=True), layer.output(mixed.flatten(2)))


def test_rotary_turns_queries_and_keys(close):
    layer, x = MultiHeadAttention(8, 2, rotary=Rotary(5, 4)), torch.randn(1, 5, 8)
    turn = Rotary(5, 4)
    query = turn(layer.query(x).view(1, 5, 2, 4).transpose(1, 2))
    key = turn(layer.key(x).view(1, 5, 2, 4).transpose(1, 2))
    scores = torch.einsum("bhtk,bhsk->bhts", query, key) / 2
    close(layer.weights(x), scores.softmax(dim=-1))


def test_dropout_only_while_training():
    layer, x = MultiHeadAttention(8, 2, dropout=0.5), torch.randn(1, 5, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


# ------------------------------------------------------------------ attention_maps


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = MultiHeadAttention(8, 2)
        self.second = MultiHeadAttention(8, 4)

    def forward(self, x, causal=False):
        return self.second(self.first(x, causal=causal), mask=REAL[:, None, None])


def test_maps_of_every_layer(close):
    model, x = TwoLayers(), torch.randn(2, 5, 8)
    first, second = attention_maps(model, x, causal=True)
    close(first, model.first.weights(x, causal=True))
    between = model.first(x, causal=True)
    close(second, model.second.weights(between, mask=REAL[:, None, None]))
    assert not first.requires_grad


def test_maps_leave_no_hook():
    model = TwoLayers()
    attention_maps(model, torch.randn(2, 5, 8))
    with pytest.raises(ValueError, match="x must have shape"):
        attention_maps(model, torch.randn(2, 5, 7))
    assert not model.first._forward_hooks
    assert not model.second._forward_hooks


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((10, 4), "d_model must be divisible by n_heads, got 10 and 4"),
        ((8, 4, 3), "n_heads must be divisible by n_kv_heads, got 4 and 3"),
        ((8, 0), "n_heads and n_kv_heads must be at least 1, got 0 and 0"),
        ((8, 4, 0), "n_heads and n_kv_heads must be at least 1, got 4 and 0"),
        ((8, 4, 4, True, 1.0), r"dropout must lie in \[0, 1\), got 1.0"),
        ((8, 4, 4, True, -0.1), r"dropout must lie in \[0, 1\), got -0.1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(*options)


@pytest.mark.parametrize(
    ("x", "memory", "message"),
    [
        ((2, 5, 6), None, r"x must have .* = \(2, any, 8\), got \(2, 5, 6\)"),
        ((5, 8), None, r"x must have shape \(batch, positions, d_model\)"),
        ((2, 5, 8), (2, 3, 6), r"memory must .* \(2, any, 8\), got \(2, 3, 6\)"),
        ((2, 5, 8), (3, 3, 8), r"memory must .* \(2, any, 8\), got \(3, 3, 8\)"),
    ],
)
def test_bad_shapes(x, memory, message):
    memory = None if memory is None else torch.zeros(memory)
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(8, 2)(torch.zeros(x), memory)


@pytest.mark.parametrize("method", ["forward", "weights"])
@pytest.mark.parametrize("causal", [False, True])
def test_bad_masks(method, causal):
    layer, x = MultiHeadAttention(8, 2), torch.zeros(2, 5, 8)
    call = getattr(layer, method)
    with pytest.raises(TypeError, match=r"mask must be boolean.*float"):
        call(x, mask=torch.ones(5, 5), causal=causal)
    with pytest.raises(ValueError, match=r"mask must broadcast.*got \(2, 5\)"):
        call(x, mask=REAL, causal=causal)


def test_causal_with_fewer_queries_asks_from_the_end(close):
    layer, x = MultiHeadAttention(8, 2), torch.randn(2, 5, 8)
    for n in (1, 3, 5):
        close(layer(x[:, -n:], x, causal=True), layer(x, causal=True)[:, -n:])
        maps = layer.weights(x, causal=True)[:, :, -n:]
        close(layer.weights(x[:, -n:], x, causal=True), maps)


def test_causal_needs_no_fewer_keys():
    layer = MultiHeadAttention(8, 2)
    with pytest.raises(ValueError, match="got 3 keys, 5 queries"):
        layer(torch.zeros(2, 5, 8), torch.zeros(2, 3, 8), causal=True)
