"""The encoder-decoder: against PyTorch's, its loss, its search, and its doors.

All sizes and masks against torch.nn are in test_parity_torch.py.
"""

import io
import json
import math
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from transformer.block import BlockConfig
from transformer.encoder_decoder import (
    Decoder,
    DecoderBlock,
    Transformer,
    TransformerConfig,
    smoothed_cross_entropy,
    teacher_forcing,
    translate,
)
from transformer.multi_head import attention_maps

pytestmark = pytest.mark.usefixtures("exact")

SIZE = {"vocab_size": 7, "max_len": 8, "d_model": 8, "n_heads": 2, "n_layers": 2}
START, STOP = 5, 6


def small(**changes):
    """Build a model none of whose parts is next to nothing."""
    model = Transformer(TransformerConfig(**(SIZE | changes))).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.5)
    return model


def batch():
    """Sources (3, 8), targets (3, 6) and which source positions are real."""
    real = torch.arange(8) < torch.tensor([[8], [5], [3]])
    return torch.randint(7, (3, 8)), torch.randint(7, (3, 6)), real


# ---------------------------------------------------------------------- the model


def copy_layer(ours, theirs):
    """Give a layer of PyTorch's the weights of our block."""
    twins = {"linear1": ours.feed_forward.up, "linear2": ours.feed_forward.down}
    twins["norm1"] = ours.norm_1
    attentions = {"self_attn": ours.attention}
    if isinstance(ours, DecoderBlock):
        twins |= {"norm2": ours.norm_cross, "norm3": ours.norm_2}
        attentions = {
            "self_attn": ours.attention,
            "multihead_attn": ours.cross_attention,
        }
    else:
        twins["norm2"] = ours.norm_2
        attentions = {"self_attn": ours.attention}
    for name, mine in attentions.items():
        their = getattr(theirs, name)
        parts = (mine.query, mine.key, mine.value)
        their.in_proj_weight.data = torch.cat([p.weight.detach() for p in parts])
        their.in_proj_bias.data = torch.cat([p.bias.detach() for p in parts])
        twins[f"{name}.out_proj"] = mine.output
    for name, mine in twins.items():
        theirs.get_submodule(name).load_state_dict(mine.state_dict())


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("n_decoder_layers", [0, 1])
def test_logits_equal_pytorchs_transformer(order, n_decoder_layers):
    model = small(order=order, n_decoder_layers=n_decoder_layers)
    theirs = nn.Transformer(
        8, 2, 2, n_decoder_layers or 2, 32, dropout=0.0, batch_first=True,
        norm_first=order == "pre",
    )  # fmt: skip
    for mine, yours in (
        (model.encoder, theirs.encoder),
        (model.decoder, theirs.decoder),
    ):
        for block, layer in zip(mine.blocks, yours.layers, strict=True):
            copy_layer(block, layer)
        if order == "pre":
            yours.norm.load_state_dict(mine.norm.state_dict())
        else:
            yours.norm = None
    source, target, real = batch()
    table = model.embedding.weight
    rows = theirs(
        table[source] * 8**0.5 + model.source_positions.table[:8],
        table[target] * 8**0.5 + model.target_positions.table[:6],
        tgt_mask=torch.ones(6, 6, dtype=torch.bool).triu(1),  # True = hidden
        src_key_padding_mask=~real,
        memory_key_padding_mask=~real,
    )
    logits = model(source, target, real)
    torch.testing.assert_close(logits, rows @ table.T, atol=1e-10, rtol=0)


@pytest.mark.parametrize("order", ["post", "pre"])
def test_a_target_row_equals_its_prefix(order):
    model = small(order=order)
    source, target, real = batch()
    whole, memory = model(source, target, real), model.encode(source, real)
    for t in range(1, 7):
        last = model.decode(target[:, :t], memory, real)[:, -1]
        torch.testing.assert_close(last, whole[:, t - 1], atol=1e-12, rtol=0)


def test_every_source_word_reaches_every_target_row():
    model = small()
    source, target, _ = batch()
    logits = model(source, target)
    for s in range(8):
        other = source.clone()
        other[:, s] = (other[:, s] + 1) % 7
        assert ((model(other, target) - logits).abs().amax(dim=-1) > 1e-9).all()


def test_source_filling_changes_nothing():
    model = small()
    source, target, real = batch()
    logits = model(source, target, real)
    for row, length in enumerate(real.sum(dim=1).tolist()):
        alone = model(source[row : row + 1, :length], target[row : row + 1])
        torch.testing.assert_close(logits[row], alone[0], atol=1e-12, rtol=0)


def test_the_decoder_does_not_look_at_the_memorys_filling():
    model = small()
    source, target, real = batch()
    memory = model.encode(source, real)
    noise = torch.where(real[..., None], memory, torch.randn_like(memory))
    torch.testing.assert_close(
        model.decode(target, noise, real), model.decode(target, memory, real)
    )


def test_the_target_asks_and_the_source_answers():
    """Maps of the cross-attention have target rows and source columns."""
    source, target, real = batch()
    maps = attention_maps(small(), source, target, real)
    assert [m.shape[-2:] for m in maps] == [(8, 8)] * 2 + [(6, 6), (6, 8)] * 2
    for cross in maps[3::2]:
        assert not cross[~real[:, None, None].expand_as(cross)].any()


def test_tied_tables_are_one_parameter():
    model, untied = small(), small(tied=False)
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.data_ptr() == model.embedding.weight.data_ptr()
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, untied)]
    assert sizes[1] - sizes[0] == 7 * 8


@pytest.mark.parametrize(
    ("order", "n_decoder_layers", "head_bias"),
    [("post", 0, False), ("pre", 0, True), ("post", 3, False)],
)
def test_number_of_parameters(order, n_decoder_layers, head_bias):
    model = small(order=order, n_decoder_layers=n_decoder_layers, head_bias=head_bias)
    attention, feed_forward, norm = 4 * (64 + 8), 2 * 8 * 32 + 32 + 8, 16
    expected = 7 * 8 + 2 * (attention + feed_forward + 2 * norm)
    expected += (n_decoder_layers or 2) * (2 * attention + feed_forward + 3 * norm)
    expected += (2 * norm if order == "pre" else 0) + (7 if head_bias else 0)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_weights_start_at_a_size_that_keeps_sizes():
    config = TransformerConfig(**(SIZE | {"vocab_size": 500, "d_model": 128}))
    model = Transformer(config)
    rows = model.embedding(torch.arange(500)[None])
    assert rows.std().item() == pytest.approx(1.0, rel=0.02)
    for block in (*model.encoder.blocks, *model.decoder.blocks):
        weight = block.attention.query.weight
        assert weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
        assert not block.feed_forward.up.bias.any()


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "none"])
def test_positions_tell_order(positions):
    model = small(positions=positions, n_layers=1)
    target = torch.tensor([[1, 2]])
    a, b = (model(torch.tensor([ids]), target) for ids in ([1, 2, 3], [3, 2, 1]))
    assert torch.allclose(a, b) == (positions == "none")


def test_dropout_wakes_only_in_training():
    model = small(dropout=0.5)
    source, target, real = batch()
    assert torch.equal(model(source, target, real), model(source, target, real))
    model.train()
    assert not torch.allclose(model(source, target), model(source, target))


def test_saved_weights_give_the_same_logits():
    model, file = small(), io.BytesIO()
    source, target, real = batch()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = Transformer(model.config).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(source, target, real), model(source, target, real))
    assert other.head.weight is other.embedding.weight


@pytest.mark.parametrize("kind", ["autocast", "bfloat16"])
def test_runs_in_bfloat16(kind):
    model = small().float()
    source, target, real = batch()
    expected = model(source, target, real)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        model.to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
        logits = model(source, target, real)
        written = translate(model, source, START, STOP, real, 4, beams=2)
    near = 0.15 * expected.abs().max().item()
    torch.testing.assert_close(logits.float(), expected, atol=near, rtol=0)
    assert len(written) == 3


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    model = small()
    source, target, real = batch()
    fast = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(fast(source, target), model(source, target))
    torch.testing.assert_close(fast(source, target, real), model(source, target, real))


def test_the_books_translator_translates():
    """Rounded weights, all six pairs, and the six that it was not trained on."""
    path = Path(__file__).parents[1] / "data/tiny/swap.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    model = Transformer(TransformerConfig(**stored["config"]))
    weights = {name: torch.tensor(table) for name, table in stored["weights"].items()}
    model.load_state_dict(weights)
    for weight in weights.values():
        torch.testing.assert_close(weight, (10 * weight).round() / 10)
    vocab = stored["tokens"]
    seen = [(s.split(), t.split()) for s, t in stored["pairs"]]
    assert len(seen) == 6
    for source, target in seen + [(t, s) for s, t in seen]:
        ids = torch.tensor([[vocab.index(word) for word in source]])
        stop = vocab.index("<stop>")
        (row,) = translate(model, ids, vocab.index("<start>"), stop)
        assert [vocab[i] for i in row] == target


# --------------------------------------------------------- the targets and the loss


def test_each_row_is_asked_for_the_next_id():
    inputs, targets = teacher_forcing([[3, 1, 4], [2], []], START, STOP)
    assert inputs.tolist() == [[5, 3, 1, 4], [5, 2, 6, 6], [5, 6, 6, 6]]
    assert targets.tolist() == [[3, 1, 4, 6], [2, 6, -100, -100], [6] + [-100] * 3]
    for i, row in enumerate(([3, 1, 4], [2], [])):
        assert torch.equal(inputs[i, 1 : len(row) + 1], targets[i, : len(row)])
    _, targets = teacher_forcing([[3], [2, 1]], START, STOP, ignore=0)
    assert targets.tolist() == [[3, 6, 0], [2, 1, 6]]


def test_teacher_forcing_refuses_nothing():
    with pytest.raises(ValueError, match="rows must hold at least one target, got"):
        teacher_forcing([], START, STOP)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_loss_equals_pytorchs(smoothing):
    logits = torch.randn(3, 5, 7, requires_grad=True)
    targets = torch.randint(7, (3, 5))
    targets[1, 2:] = -100
    loss = smoothed_cross_entropy(logits, targets, smoothing)
    (mine,) = torch.autograd.grad(loss, logits)
    theirs = nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing
    )
    (expected,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(loss, theirs, atol=1e-12, rtol=0)
    torch.testing.assert_close(mine, expected, atol=1e-12, rtol=0)


def test_smoothed_loss_leaves_out_what_it_is_told_to():
    logits, targets = torch.randn(4, 7), torch.tensor([3, 0, 2, 0])
    kept = smoothed_cross_entropy(logits[[0, 2]], targets[[0, 2]])
    logits[1] = torch.inf  # what stands in filling must not matter
    torch.testing.assert_close(smoothed_cross_entropy(logits, targets, ignore=0), kept)


def test_smoothed_loss_is_least_at_the_smoothed_target():
    target = torch.full((7,), 0.1 / 7)
    target[2] += 0.9
    best = smoothed_cross_entropy(target.log(), torch.tensor(2))
    assert best.item() == pytest.approx(-(target * target.log()).sum().item())
    for _ in range(20):
        other = target.log() + 0.3 * torch.randn(7)
        assert smoothed_cross_entropy(other, torch.tensor(2)) > best


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_smoothed_loss_refuses(smoothing):
    with pytest.raises(ValueError, match=r"smoothing must lie in \[0, 1\), got"):
        smoothed_cross_entropy(torch.zeros(1, 7), torch.tensor([0]), smoothing)


# ------------------------------------------------------------------------- writing


def test_one_beam_is_greedy():
    model = small()
    source, _, real = batch()
    memory = model.encode(source, real)
    ids = torch.full((3, 1), START)
    for _ in range(5):
        best = model.decode(ids, memory, real)[:, -1].argmax(dim=-1, keepdim=True)
        ids = torch.cat((ids, best), dim=1)
    expected = [row[1:] for row in ids.tolist()]
    expected = [row[: row.index(STOP)] if STOP in row else row for row in expected]
    assert translate(model, source, START, STOP, real, max_new_tokens=5) == expected


V, LIMIT = 4, 4


def every_target(stop):
    """All targets of up to LIMIT ids: ended by stop, or cut off there."""
    for n in range(1, LIMIT + 1):
        for row in product(range(V), repeat=n):
            if stop not in row[:-1] and (row[-1] == stop or n == LIMIT):
                yield row


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_a_wide_search_finds_the_best_of_all(penalty):
    """Against every target there is, scored one by one."""
    model, stop = small(vocab_size=V, n_layers=1), 3
    found_long, rows = 0, list(every_target(stop))
    for _ in range(4):
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.7)
        source = torch.randint(V, (1, 5))
        padded = torch.tensor([[0, *row, *[stop] * (LIMIT - len(row))] for row in rows])
        with torch.no_grad():
            memory = model.encode(source).expand(len(rows), -1, -1)
            steps = model.decode(padded, memory).log_softmax(dim=-1)
        worth = [
            sum(step[t, word].item() for t, word in enumerate(row))
            / ((5 + len(row)) / 6) ** penalty
            for step, row in zip(steps, rows, strict=True)
        ]
        best = [w for w in rows[worth.index(max(worth))] if w != stop]
        found = translate(
            model, source, 0, stop, max_new_tokens=LIMIT, beams=V**LIMIT,
            length_penalty=penalty,
        )  # fmt: skip
        assert found == [best]
        found_long += len(best)
    assert found_long  # not all of them empty


def test_more_beams_find_a_target_that_is_worth_more():
    model = small()
    source, _, real = batch()

    def worth(beams):
        rows = translate(model, source, START, STOP, real, 6, beams, 0.0)
        total = 0.0
        for i, row in enumerate(rows):
            ids = torch.tensor([[START, *row, STOP][: 6 + 1]])
            steps = model(source[i : i + 1], ids[:, :-1], real[i : i + 1])
            total += steps.log_softmax(-1).gather(-1, ids[:, 1:, None]).sum().item()
        return total

    assert worth(50) > worth(1)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_is_translated_as_its_sentences_are(beams):
    model = small()
    source, _, real = batch()
    together = translate(model, source, START, STOP, real, 6, beams)
    for row, length in enumerate(real.sum(dim=1).tolist()):
        alone = translate(
            model, source[row : row + 1, :length], START, STOP, None, 6, beams
        )
        assert alone == together[row : row + 1]


def test_writing_ends_at_the_longest_target():
    model = small(max_len=4)
    with torch.no_grad():
        model.embedding.weight[STOP] = -1e3 * model.embedding.weight.mean(dim=0)
    for tokens, expected in ((64, 4), (3, 3), (0, 0)):
        (row,) = translate(model, torch.tensor([[1, 2]]), START, STOP, None, tokens)
        assert len(row) <= expected
    assert translate(model, torch.tensor([[1, 2]]), START, STOP, None, 0) == [[]]


def test_writing_is_without_dropout_and_leaves_the_mode_alone():
    model, seen = small(dropout=0.5), []
    source, _, real = batch()
    expected = translate(model, source, START, STOP, real)
    model.head.register_forward_hook(lambda head, *_: seen.append(head.training))
    model.train()
    assert translate(model, source, START, STOP, real) == expected
    assert model.training and seen and not any(seen)
    with pytest.raises(ValueError, match="source_ids"):
        translate(model, source[0], START, STOP)
    assert model.training


def test_writing_keeps_nothing_for_a_gradient():
    model, kept = small(), []
    source, _, _ = batch()
    model.head.register_forward_hook(lambda *seen: kept.append(seen[-1].requires_grad))
    translate(model, source, START, STOP, max_new_tokens=2)
    assert not any(kept)


# ----------------------------------------------------------------------- the doors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 9}, "d_model must be divisible by n_heads, got 9 and 2"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"max_len": -1}, "max_len must be at least 1, got -1"),
        ({"n_decoder_layers": -1}, "n_decoder_layers must be at least 0, got -1"),
        ({"positions": "rotary"}, "positions must be one of"),
        ({"order": "sideways"}, "order must be one of"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TransformerConfig(**(SIZE | change))


def test_no_parallel_decoder():
    config = BlockConfig(d_model=8, n_heads=2, n_layers=1, order="parallel")
    with pytest.raises(ValueError, match="order must be 'post' or 'pre' in a decoder"):
        DecoderBlock(config)
    with pytest.raises(ValueError, match="order must be 'post' or 'pre' in a decoder"):
        Transformer(TransformerConfig(**SIZE, order="parallel"))


IDS = torch.zeros(2, 4, dtype=torch.int64)


def test_decoder_refuses():
    decoder = Decoder(BlockConfig(d_model=8, n_heads=2, n_layers=1))
    x = torch.zeros(2, 3, 8)
    with pytest.raises(ValueError, match="memory must be given to a decoder block"):
        decoder(x)
    for memory in (torch.zeros(2, 5, 6), torch.zeros(1, 5, 8)):
        with pytest.raises(ValueError, match="memory must have shape"):
            decoder(x, memory=memory)
    with pytest.raises(TypeError, match="mask must be boolean"):
        decoder(x, memory=x, memory_mask=torch.ones(2, 1, 1, 3))


@pytest.mark.parametrize(
    ("source", "target", "mask", "error", "message"),
    [
        (IDS[0], IDS, None, ValueError, "source_ids must have shape (B, T), got (4,)"),
        (IDS, IDS[0], None, ValueError, "target_ids must have shape (B, T), got (4,)"),
        (
            IDS.repeat(1, 3),
            IDS,
            None,
            ValueError,
            "source_ids must hold at most",
        ),
        (
            IDS,
            IDS.repeat(1, 3),
            None,
            ValueError,
            "target_ids must hold at most",
        ),
        (IDS, IDS.double(), None, TypeError, "ids must be int64 or int32"),
        (IDS + 7, IDS, None, IndexError, "ids must lie in [0, 7), got 7"),
        (IDS, IDS - 1, None, IndexError, "ids must lie in [0, 7), got -1"),
        (IDS, IDS, IDS[:, 1:] == 0, ValueError, "shape of source_ids, (2, 4)"),
        (IDS, IDS, IDS.double(), TypeError, "mask must be boolean"),
        (IDS, IDS[:1], None, ValueError, "memory must have shape"),
    ],
)
def test_model_refuses(source, target, mask, error, message):
    with pytest.raises(error, match=re.escape(message)):
        small()(source, target, mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beams": 0}, "beams must be at least 1, got 0"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1"),
        ({"length_penalty": -0.5}, "length_penalty must be at least 0, got -0.5"),
        (
            {"length_penalty": math.nan},
            "length_penalty must be at least 0, got nan",
        ),
    ],
)
def test_translate_refuses(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        translate(small(), IDS, **({"start": START, "stop": STOP} | change))


@pytest.mark.parametrize(
    ("ids", "start", "stop", "bad"),
    [(IDS + 7, START, STOP, 7), (IDS, 8, STOP, 8), (IDS, START, -1, -1)],
)
def test_translate_refuses_ids_outside_the_vocabulary(ids, start, stop, bad):
    with pytest.raises(IndexError, match=re.escape(f"lie in [0, 7), got {bad}")):
        translate(small(), ids, start, stop)
