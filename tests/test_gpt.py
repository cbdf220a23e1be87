"""GPT whole: against PyTorch's encoder layers, its loop that writes, and its doors.

Logits against Hugging Face's GPT-2 are in test_parity_gpt2.py.
"""

import io
import pickle
import re

import pytest
import torch
from small import SIZE, tiny_gpt
from torch import nn

from transformer.feed_forward import ACTIVATIONS
from transformer.gpt import GPT, GPTConfig, generate, shift

pytestmark = pytest.mark.usefixtures("exact")


# ---------------------------------------------------------------------- the model


def pytorch_layers(model):
    """``nn.TransformerEncoderLayer``s with the model's weights."""
    c = model.config
    layers = []
    for block in model.stack.blocks:
        layer = nn.TransformerEncoderLayer(
            c.d_model, c.n_heads, 4 * c.d_model, dropout=0.0, activation="relu",
            batch_first=True, norm_first=c.order == "pre",
        ).eval()  # fmt: skip
        ours = {k: v.detach() for k, v in block.named_parameters()}
        for kind in ("weight", "bias"):
            parts = [ours[f"attention.{p}.{kind}"] for p in ("query", "key", "value")]
            layer.self_attn.get_parameter(f"in_proj_{kind}").data = torch.cat(parts)
            for theirs, name in {
                "self_attn.out_proj": "attention.output",
                "linear1": "feed_forward.up",
                "linear2": "feed_forward.down",
                "norm1": "norm_1",
                "norm2": "norm_2",
            }.items():
                layer.get_parameter(f"{theirs}.{kind}").data = ours[f"{name}.{kind}"]
        layers.append(layer)
    return layers


@pytest.mark.parametrize("scale_embeddings", [False, True])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_logits_equal_pytorch_layers(order, scale_embeddings):
    model = tiny_gpt(order=order, activation="relu", scale_embeddings=scale_embeddings)
    ids = torch.randint(11, (3, 7))
    x = model.embedding.weight[ids] * (8**0.5 if scale_embeddings else 1.0)
    x = x + model.positions.weight[:7]
    future = torch.ones(7, 7, dtype=torch.bool).triu(1)  # True = hidden, for PyTorch
    for layer in pytorch_layers(model):
        x = layer(x, src_mask=future)
    if order == "pre":
        last = model.stack.norm
        x = nn.functional.layer_norm(x, (8,), last.weight, last.bias)
    expected = x @ model.embedding.weight.T
    torch.testing.assert_close(model(ids), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("positions", "told_apart"),
    [("none", False), ("learned", True), ("sinusoidal", True), ("rotary", True)],
)
def test_positions_tell_order(positions, told_apart):
    """One layer, the same last word: only positions know the others' order."""
    model = tiny_gpt(positions=positions, n_layers=1)
    ids = torch.tensor([[1, 2, 3, 4], [3, 2, 1, 4]])
    last = model(ids)[:, -1]
    assert torch.allclose(last[0], last[1]) != told_apart


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "none"])
def test_a_row_equals_its_prefix(positions):
    model, ids = tiny_gpt(positions=positions), torch.randint(11, (2, 8))
    whole = model(ids)
    for t in range(1, 9):
        torch.testing.assert_close(model(ids[:, :t])[:, -1], whole[:, t - 1])


def test_padding_on_the_right_changes_nothing():
    model, ids = tiny_gpt(), torch.randint(11, (2, 8))
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 5:] = False
    torch.testing.assert_close(model(ids, mask=mask)[1, :5], model(ids[1:, :5])[0])


@pytest.mark.parametrize("tied", [True, False])
def test_number_of_parameters(tied):
    model = GPT(GPTConfig(**SIZE, tied=tied))
    v, t, d, n, f = 11, 8, 8, 2, 32
    block = 4 * (d * d + d) + (2 * d * f + f + d) + 4 * d
    expected = (1 if tied else 2) * v * d + t * d + n * block + 2 * d
    assert sum(p.numel() for p in model.parameters()) == expected


def test_what_writes_into_the_stream_starts_smaller():
    model = GPT(GPTConfig(**(SIZE | {"d_model": 128, "n_layers": 8})))
    for block in model.stack.blocks:
        for writes in (block.attention.output, block.feed_forward.down):
            assert writes.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
            assert not writes.bias.any()
        for reads in (block.attention.query, block.feed_forward.up):
            assert reads.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not reads.bias.any()


def test_dropout_wakes_only_in_training():
    model, ids = tiny_gpt(dropout=0.5), torch.randint(11, (2, 8))
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.allclose(model(ids), model(ids))


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_compiles_without_graph_breaks(positions):
    model, ids = tiny_gpt(positions=positions), torch.randint(11, (2, 8))
    mask = torch.ones(2, 8, dtype=torch.bool)
    fast = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(fast(ids), model(ids))
    torch.testing.assert_close(fast(ids, mask), model(ids, mask))


def test_saved_weights_give_the_same_logits():
    model, ids, file = tiny_gpt(), torch.randint(11, (2, 8)), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = GPT(model.config).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(ids), model(ids))
    assert other.head.weight is other.embedding.weight


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "swiglu"])
def test_pickled_whole_it_gives_the_same_logits(activation):
    model, ids = tiny_gpt(activation=activation), torch.randint(11, (2, 8))
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(other(ids), model(ids))
    assert other.head.weight is other.embedding.weight


def test_a_tied_model_refuses_two_tables():
    untied, tied = tiny_gpt(tied=False), tiny_gpt()
    before = tied.embedding.weight.clone()
    with pytest.raises(ValueError, match=r"embedding\.weight and head\.weight differ"):
        tied.load_state_dict(untied.state_dict())
    assert torch.equal(tied.embedding.weight, before)
    untied.load_state_dict(tiny_gpt(tied=False).state_dict())
    assert not torch.equal(untied.embedding.weight, untied.head.weight)


@pytest.mark.parametrize("way", ["assign", "meta", "to_empty"])
def test_loading_leaves_a_tied_model_tied(way):
    model, ids = tiny_gpt(), torch.randint(11, (2, 8))
    with torch.device("cpu" if way == "assign" else "meta"):
        other = GPT(model.config).eval()
    if way == "to_empty":
        other = other.to_empty(device="cpu")
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    other.load_state_dict(state, assign=way != "to_empty")
    assert other.head.weight is other.embedding.weight
    assert sum(p.numel() for p in other.parameters()) == sum(
        p.numel() for p in model.parameters()
    )
    assert torch.equal(other(ids), model(ids))


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("kind", ["autocast", "bfloat16", "float64"])
def test_runs_in_other_types(kind, positions):
    model = tiny_gpt(positions=positions, d_ff=24).float()
    ids = torch.randint(11, (2, 8))
    expected = model(ids)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        if kind != "autocast":
            model.to(getattr(torch, kind))
        logits = model(ids)
        written = generate(model, ids, 3, temperature=0.7)
    near = 1e-4 if kind == "float64" else 0.1 * expected.abs().max().item()
    torch.testing.assert_close(logits.float(), expected, atol=near, rtol=0)
    assert logits.dtype == (torch.float64 if kind == "float64" else torch.bfloat16)
    assert written.shape == (2, 11)


# ------------------------------------------------------------- targets and writing


def test_shift_asks_for_the_next_id():
    ids = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]])
    inputs, targets = shift(ids)
    assert inputs.tolist() == [[5, 6, 7], [1, 2, 3]]
    assert targets.tolist() == [[6, 7, 8], [2, 3, 4]]


def test_greedy_writing_is_the_argmax_of_the_last_row():
    model, ids = tiny_gpt(), torch.randint(11, (3, 2))
    expected = ids.clone()
    for _ in range(5):
        best = model(expected)[:, -1].argmax(dim=-1, keepdim=True)
        expected = torch.cat((expected, best), dim=1)
    assert torch.equal(generate(model, ids, 5, temperature=0), expected)


def test_writing_past_the_context_reads_its_end():
    model, ids = tiny_gpt(), torch.randint(11, (1, 20))
    last = model(ids[:, -8:])[:, -1].argmax(dim=-1)
    written = generate(model, ids, 1, temperature=0)
    assert written.shape == (1, 21)
    assert torch.equal(written[:, :20], ids)
    assert torch.equal(written[:, 20], last)


def test_sampling_follows_the_shares():
    model, ids = tiny_gpt(), torch.tensor([[3, 1, 4]])
    for temperature in (0.5, 2.0):
        expected = (model(ids)[0, -1] / temperature).softmax(dim=-1)
        generator = torch.Generator().manual_seed(0)
        drawn = generate(model, ids.repeat(5_000, 1), 1, temperature, generator)[:, -1]
        counts = torch.bincount(drawn, minlength=11) / len(drawn)
        torch.testing.assert_close(counts, expected, atol=0.03, rtol=0)


def test_sampling_repeats_with_its_generator():
    model, ids = tiny_gpt(), torch.randint(11, (4, 2))
    a, b, c = (
        generate(model, ids, 6, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_writing_is_without_dropout_and_leaves_the_mode_alone():
    model, ids = tiny_gpt(dropout=0.5), torch.randint(11, (1, 4))
    expected = generate(model, ids, 4, temperature=0)
    model.train()
    assert torch.equal(generate(model, ids, 4, temperature=0), expected)
    assert model.training
    with pytest.raises(ValueError, match="temperature"):
        generate(model, ids, 4, temperature=-1)
    assert model.training
    generate(model.eval(), ids, 1)
    assert not model.training


def test_writing_keeps_nothing_for_a_gradient():
    model, ids, kept = tiny_gpt(), torch.randint(11, (1, 4)), []
    model.register_forward_hook(lambda *seen: kept.append(seen[-1].requires_grad))
    assert model(ids).requires_grad
    generate(model, ids, 2)
    assert kept == [True, False, False]


def test_writing_nothing_gives_the_prompt():
    ids = torch.randint(11, (2, 3))
    assert torch.equal(generate(tiny_gpt(), ids, 0), ids)


# ----------------------------------------------------------------------- the doors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 9}, "d_model must be divisible by n_heads, got 9 and 2"),
        ({"dropout": 1.0}, "dropout must lie in [0, 1), got 1.0"),
        ({"dropout": -0.1}, "dropout must lie in [0, 1), got -0.1"),
        ({"positions": "relative"}, "positions must be one of"),
        ({"order": "sideways"}, "order must be one of"),
        ({"norm": "batch"}, "norm must be one of"),
        ({"activation": "tanh"}, "activation must be one of"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"max_len": -1}, "max_len must be at least 1, got -1"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        GPTConfig(**(SIZE | change))


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_odd_widths_have_no_pairs(positions):
    config = GPTConfig(**(SIZE | {"d_model": 9, "n_heads": 3}), positions=positions)
    with pytest.raises(ValueError, match=r"must be even for .* pairs, got \d"):
        GPT(config)


IDS = torch.zeros(2, 4, dtype=torch.int64)
LATER = torch.tensor([[11] + [0] * 8])  # nine ids, the first outside the vocabulary


@pytest.mark.parametrize(
    ("ids", "mask", "error", "message"),
    [
        (IDS[0], None, ValueError, "ids must have shape (B, T), got (4,)"),
        (IDS.repeat(1, 3), None, ValueError, "at most max_len = 8 positions, got 12"),
        (IDS.double(), None, TypeError, "ids must be int64 or int32"),
        (IDS + 11, None, IndexError, "ids must lie in [0, 11), got 11"),
        (IDS - 1, None, IndexError, "ids must lie in [0, 11), got -1"),
        (IDS, IDS[:, 1:] == 0, ValueError, "shape of ids, (2, 4), got (2, 3)"),
        (IDS, IDS.double(), TypeError, "mask must be boolean"),
    ],
)
def test_model_refuses(ids, mask, error, message):
    with pytest.raises(error, match=re.escape(message)):
        tiny_gpt()(ids, mask=mask)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (IDS[:, :0], ValueError, "at least one token a prompt, got (2, 0)"),
        (IDS[0], ValueError, "ids must have shape (B, T)"),
        (IDS + 11, IndexError, "ids must lie in [0, 11), got 11"),
        # beyond what the model will read
        (LATER, IndexError, "ids must lie in [0, 11), got 11"),
    ],
)
def test_generate_refuses(ids, error, message):
    with pytest.raises(error, match=re.escape(message)):
        generate(tiny_gpt(), ids, 3)


@pytest.mark.parametrize("n", [0, 3])
@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_generate_refuses_a_temperature(temperature, n):
    with pytest.raises(ValueError, match="temperature must be finite and at least 0"):
        generate(tiny_gpt(), IDS, n, temperature)


def test_generate_refuses_to_take_words_away():
    with pytest.raises(ValueError, match="max_new_tokens must be at least 0, got -1"):
        generate(tiny_gpt(), IDS, -1)


@pytest.mark.parametrize("ids", [IDS[0], IDS[:, :1]])
def test_shift_refuses(ids):
    with pytest.raises(ValueError, match="at least two positions, got"):
        shift(ids)


def test_rotary_base_reaches_the_rotation():
    """With one pair a head the base is without effect; with two it is not."""
    ids = torch.randint(SIZE["vocab_size"], (1, 6))
    logits = []
    for base in (10_000.0, 100.0):
        torch.manual_seed(0)
        model = GPT(GPTConfig(**SIZE, positions="rotary", rotary_base=base)).eval()
        turned = model.stack.blocks[0].attention.rotary
        pairs = turned.cos.shape[1]
        slowest = torch.tensor(base ** (-(pairs - 1) / pairs))
        torch.testing.assert_close(turned.sin[1, -1], slowest.sin())
        logits.append(model(ids))
    assert not torch.allclose(*logits)
