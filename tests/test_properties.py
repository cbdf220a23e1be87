"""What must hold of the parts whatever the weights: short, and written anew.

Nearly every mutant in mutants/mutants.toml dies here. Nothing is compared with the
package's own formulas; each expectation is spelled out with plain sums and loops.
"""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from small import tiny_gpt
from torch import nn

from transformer.attention import attention, attention_weights
from transformer.block import BlockConfig, Stack
from transformer.dropout import Dropout
from transformer.feed_forward import FeedForward, GatedFeedForward
from transformer.masks import causal_mask, sliding_window_mask
from transformer.multi_head import MultiHeadAttention
from transformer.norm import LayerNorm, RMSNorm
from transformer.positions import Rotary, sinusoidal
from transformer.tokens import BYTES, Tokenizer, learn_merges, merge_pair

pytestmark = pytest.mark.usefixtures("exact")


def softmax(scores):
    powers = [math.exp(s) for s in scores]
    return [p / sum(powers) for p in powers]


# --------------------------------------------------------------------------- tokens


def merges_by_recounting(words, n_merges):
    """Byte-pair merges, every pair counted anew each time."""
    spelled = {word: [BYTES.index(byte) for byte in word] for word in words}
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, ids in spelled.items():
            for pair in pairwise(ids):
                counts[pair] += words[word]
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        for word, ids in spelled.items():
            spelled[word] = merge_pair(ids, best, len(BYTES) + len(merges))
        merges.append(best)
    return merges


@pytest.mark.parametrize(
    "words",
    [
        {b"ab": 1, b"cd": 1, b"ef": 1, b"ba": 1},  # nothing but ties
        {b"aaaa": 2, b"aaa": 1, b"baab": 3},
        {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3},
    ],
)
def test_merges_equal_recounting(words):
    assert learn_merges(words, 50) == merges_by_recounting(words, 50)


def test_a_merge_takes_each_token_once():
    assert merge_pair([7, 7, 7, 8, 7, 7], (7, 7), 9) == [9, 7, 8, 9]


def test_earlier_merges_come_first():
    """With bc learned before ab, abc is a + bc."""
    tokenizer = Tokenizer.from_merges([(b"b", b"c"), (b"a", b"b")])
    assert [tokenizer.vocab[i] for i in tokenizer.encode("abc")] == [b"a", b"bc"]


# ------------------------------------------------------------- attention and masks


def by_loops(query, key, mask):
    """The weights of one head, (T, S), entry by entry."""
    rows = []
    for q, allowed in zip(query.tolist(), mask.tolist(), strict=True):
        scores = [
            sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(len(q)) if ok
            else -math.inf
            for k, ok in zip(key.tolist(), allowed, strict=True)
        ]  # fmt: skip
        rows.append(softmax(scores))
    return torch.tensor(rows)


def test_weights_without_a_mask():
    query, key = torch.randn(3, 4), torch.randn(5, 4)
    want = by_loops(query, key, torch.ones(3, 5, dtype=torch.bool))
    torch.testing.assert_close(attention_weights(query, key), want)


def test_weights_with_a_mask():
    query, key, mask = torch.randn(3, 4), torch.randn(5, 4), torch.rand(3, 5) < 0.6
    mask[:, 0] = True
    want = by_loops(query, key, mask)
    torch.testing.assert_close(attention_weights(query, key, mask), want)


def test_fused_attention_is_the_weighted_mean():
    query, key, value = torch.randn(3, 2, 5, 4)
    for mask in (None, torch.eye(5, dtype=torch.bool) | (torch.rand(5, 5) < 0.5)):
        want = attention_weights(query, key, mask) @ value
        torch.testing.assert_close(attention(query, key, value, mask), want)


def test_causal_mask_entry_by_entry():
    for queries, keys in ((4, 4), (1, 4), (2, 5)):
        mask = causal_mask(queries, keys)
        for t in range(queries):
            for s in range(keys):
                assert mask[t, s] == (s <= t + keys - queries)


def test_window_entry_by_entry():
    mask = sliding_window_mask(5, window=2)
    want = [[t - 2 < s <= t for s in range(5)] for t in range(5)]
    assert mask.tolist() == want


def test_future_does_not_change_the_past():
    model, ids = tiny_gpt(), torch.randint(11, (2, 8))
    changed = ids.clone()
    changed[:, 5] = (ids[:, 5] + 1) % 11
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(dim=(0, 2)).min() > 1e-6


def test_padding_is_not_seen():
    model, ids = tiny_gpt(), torch.randint(11, (2, 8))
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 2] = False
    changed = ids.clone()
    changed[1, 2] = (ids[1, 2] + 1) % 11
    a, b = model(ids, mask=mask), model(changed, mask=mask)
    torch.testing.assert_close(a[mask], b[mask])


def test_heads_share_keys_in_neighbouring_groups():
    """Query heads 0, 1 read key head 0; query heads 2, 3 read key head 1."""
    layer, x = MultiHeadAttention(8, n_heads=4, n_kv_heads=2), torch.randn(1, 5, 8)
    maps = layer.weights(x)
    for head in range(4):
        rows, pair = slice(2 * head, 2 * head + 2), 2 * (head // 2)
        query = (layer.query(x)[0])[:, rows]  # (T, K)
        key = (layer.key(x)[0])[:, pair : pair + 2]  # (S, K)
        want = by_loops(query, key, torch.ones(5, 5, dtype=torch.bool))
        torch.testing.assert_close(maps[0, head], want)
    value = layer.value(x)[0].split(2, dim=-1)  # two of (S, K)
    joined = torch.cat([maps[0, h] @ value[h // 2] for h in range(4)], dim=-1)
    torch.testing.assert_close(layer(x)[0], layer.output(joined))


# ------------------------------------------------------------------------ positions


def test_sine_then_cosine():
    table = sinusoidal(6, 8)
    for t in range(6):
        for i in range(4):
            angle = t / 10_000 ** (2 * i / 8)
            assert table[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert table[t, 2 * i + 1].item() == pytest.approx(
                math.cos(angle), abs=1e-12
            )


def test_rotary_turns_each_pair():
    """Pair (i, i + K/2) is a complex number, multiplied by exp(i angle)."""
    x = torch.randn(1, 1, 6, 8)
    turned = Rotary(6, 8)(x)
    for t in range(6):
        for i in range(4):
            angle = t / 10_000 ** (2 * i / 8)
            old = complex(x[0, 0, t, i].item(), x[0, 0, t, i + 4].item())
            new = old * complex(math.cos(angle), math.sin(angle))
            assert turned[0, 0, t, i].item() == pytest.approx(new.real)
            assert turned[0, 0, t, i + 4].item() == pytest.approx(new.imag)


def test_rotary_scores_depend_on_the_distance():
    """The same words further along attend to each other as before."""
    layer = MultiHeadAttention(8, 2, rotary=Rotary(16, 4))
    x = torch.randn(1, 1, 8).expand(1, 9, 8)  # one word, nine times
    maps = layer.weights(x).log()  # (B, H, T, S)
    gap = maps[0, :, 0, 3] - maps[0, :, 0, 0]
    later = maps[0, :, 5, 8] - maps[0, :, 5, 5]
    torch.testing.assert_close(gap, later)
    assert gap.abs().min() > 1e-6


def test_order_matters_with_positions_only():
    """Without positions the last row cannot tell the order of the rows before it."""
    ids = torch.tensor([[1, 2, 3, 4]])
    swapped = torch.tensor([[2, 1, 3, 4]])
    for positions in ("learned", "sinusoidal", "rotary", "none"):
        # one layer, since a second one reads sums that the mask made order-dependent
        model = tiny_gpt(positions=positions, n_layers=1)
        same = torch.allclose(model(ids)[:, -1], model(swapped)[:, -1], atol=1e-9)
        assert same == (positions == "none")


# -------------------------------------------------------------- norm, feed-forward


def test_layer_norm_divides_by_the_biased_deviation():
    norm, x = LayerNorm(4), torch.randn(3, 4)
    for row, got in zip(x.tolist(), norm(x).tolist(), strict=True):
        mean = sum(row) / 4
        variance = sum((v - mean) ** 2 for v in row) / 4
        assert got == pytest.approx(
            [(v - mean) / (variance + 1e-5) ** 0.5 for v in row]
        )


def test_rms_norm_keeps_the_mean():
    norm, x = RMSNorm(4), torch.randn(3, 4) + 2
    for row, got in zip(x.tolist(), norm(x).tolist(), strict=True):
        size = (sum(v * v for v in row) / 4 + 1e-6) ** 0.5
        assert got == pytest.approx([v / size for v in row])


def identity_network(activation):
    network = FeedForward(1, 1, activation)
    for layer in (network.up, network.down):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    return lambda v: network(torch.tensor([v])).item()


@pytest.mark.parametrize("v", [-3.0, -1.0, -0.1, 0.0, 0.5, 2.0])
def test_activations(v):
    inner = math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)
    want = {
        "relu": max(v, 0.0),
        "gelu": v * (1 + math.erf(v / math.sqrt(2))) / 2,
        "gelu_tanh": v * (1 + math.tanh(inner)) / 2,
        "silu": v / (1 + math.exp(-v)),
    }
    for name, value in want.items():
        assert identity_network(name)(v) == pytest.approx(value, abs=1e-12), name


def test_gate_is_the_side_with_the_bend():
    network, x = GatedFeedForward(4, 6), torch.randn(3, 4)
    gate, up = x @ network.gate.weight.T, x @ network.up.weight.T
    want = (gate / (1 + (-gate).exp()) * up) @ network.down.weight.T
    torch.testing.assert_close(network(x), want)


# --------------------------------------------------------------------------- dropout


def test_dropout_keeps_the_mean():
    dropped = Dropout(0.25)(torch.ones(100_000))
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert set(dropped.unique().tolist()) == {0.0, 1 / 0.75}


def test_dropout_sleeps_in_eval():
    model, ids = tiny_gpt(dropout=0.5), torch.randint(11, (2, 8))
    assert torch.equal(model(ids), model(ids))
    calm = tiny_gpt()
    calm.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(ids), calm(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_attention_dropout_wakes_in_training():
    layer, x = MultiHeadAttention(8, 2, dropout=0.5), torch.randn(1, 5, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


# ----------------------------------------------------------------------------- blocks


def test_silent_layers_pass_the_stream():
    """With all output matrices zero, only the residual is left."""
    x = torch.randn(2, 5, 8)
    for order in ("pre", "parallel", "post"):
        stack = Stack(BlockConfig(d_model=8, n_heads=2, n_layers=2, order=order))
        for name, weight in stack.named_parameters():
            if "output" in name or "down" in name:
                nn.init.zeros_(weight)
        bare = nn.functional.layer_norm(x, (8,))
        torch.testing.assert_close(stack(x), bare, atol=1e-4, rtol=1e-4)


def test_pre_norm_block_by_hand():
    block = Stack(BlockConfig(d_model=8, n_heads=2, n_layers=1)).blocks[0]
    x = torch.randn(2, 5, 8)
    mixed = x + block.attention(nn.functional.layer_norm(x, (8,)))
    want = mixed + block.feed_forward(nn.functional.layer_norm(mixed, (8,)))
    torch.testing.assert_close(block(x), want)


def test_post_norm_block_by_hand():
    config = BlockConfig(d_model=8, n_heads=2, n_layers=1, order="post")
    block, x = Stack(config).blocks[0], torch.randn(2, 5, 8)
    mixed = nn.functional.layer_norm(x + block.attention(x), (8,))
    want = nn.functional.layer_norm(mixed + block.feed_forward(mixed), (8,))
    torch.testing.assert_close(block(x), want)


# -------------------------------------------------------------------------------- gpt


def test_one_table_when_tied():
    tied, untied = tiny_gpt(tied=True), tiny_gpt(tied=False)
    table = 11 * 8
    sizes = [sum(p.numel() for p in model.parameters()) for model in (tied, untied)]
    assert sizes[1] - sizes[0] == table
    tied(torch.randint(11, (1, 4))).sum().backward()
    assert tied.head.weight.grad is tied.embedding.weight.grad


def test_embeddings_grow_by_the_root_of_the_width():
    plain = tiny_gpt()
    scaled = tiny_gpt(scale_embeddings=True)
    scaled.load_state_dict(plain.state_dict())
    ids = torch.randint(11, (2, 4))
    want = plain.embedding(ids) * math.sqrt(8)
    torch.testing.assert_close(scaled.embedding(ids), want)
