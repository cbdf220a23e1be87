"""Choosing words and writing with a cache: against Hugging Face, and by enumeration."""

import itertools
import math

import pytest
import torch
import transformers as hf
from small import SIZE, padded, tiny_gpt
from torch import nn
from transformers.generation import logits_process as theirs

from transformer.encoder_decoder import beam_search
from transformer.generation import (
    Reader,
    Sampling,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    search,
    stream,
)
from transformer.gpt import GPT, GPTConfig
from transformer.gpt import generate as plain_generate
from transformer.pretrained import LLAMA, PALM, from_pretrained

V, MAX_LEN = SIZE["vocab_size"], SIZE["max_len"]
FAMILIES = {
    "2017": {"order": "post", "positions": "sinusoidal", "scale_embeddings": True},
    "GPT-2": {},
    "Llama": dict(LLAMA) | {"n_kv_heads": 1},
    "PaLM": dict(PALM) | {"n_kv_heads": 1},
}
TEXTS = [[1, 2, 3, 4, 5, 6], [7, 8], [9], [10, 1, 9, 2]]
every_family = pytest.mark.parametrize("family", FAMILIES)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------ the knobs

ROWS = torch.tensor(
    [
        [2.0, -1.0, 0.0, 0.5, -3.0, 1.5],
        [1.0, 1.0, 0.0, 0.0, 0.0, -2.0],  # ties
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [9.0, -9.0, -torch.inf, 1.0, -torch.inf, 2.0],
    ]
)
RANDOM = torch.randn(50, 30, generator=seeded()) * 3
NO_IDS = torch.zeros(50, 1, dtype=torch.long)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6, 100])
@pytest.mark.parametrize("logits", [ROWS, RANDOM])
def test_top_k_equals_hugging_face(logits, k):
    assert torch.equal(keep_top_k(logits, k), theirs.TopKLogitsWarper(k)(None, logits))


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.3, 0.5, 0.77, 0.9, 0.999, 1.0])
def test_top_p_equals_hugging_face(p):
    assert torch.equal(keep_top_p(RANDOM, p), theirs.TopPLogitsWarper(p)(None, RANDOM))


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.35, 0.5, 0.77, 0.9, 0.999, 1.0])
def test_top_p_keeps_as_many_of_equals_as_hugging_face(p):
    """Which of equal words stay is ours to say; how many isn't."""
    ours, their = keep_top_p(ROWS, p), theirs.TopPLogitsWarper(p)(None, ROWS)
    assert torch.equal(ours.sort().values, their.sort().values)


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.05, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("logits", [ROWS, RANDOM])
def test_min_p_equals_hugging_face(logits, p):
    assert torch.equal(keep_min_p(logits, p), theirs.MinPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 4.0])
def test_repetition_penalty_equals_hugging_face(penalty):
    ids = torch.tensor([[0, 1, 1], [5, 5, 5], [2, 3, 4], [2, 1, 0]])
    seen = torch.zeros(ROWS.shape, dtype=torch.bool).scatter_(1, ids, True)
    their = theirs.RepetitionPenaltyLogitsProcessor(penalty)(ids, ROWS)
    ours = penalize_repetition(ROWS, seen, penalty)
    torch.testing.assert_close(ours, their, atol=1e-6, rtol=0)


def test_the_penalty_lowers_what_was_seen_and_nothing_else():
    logits, seen = torch.tensor([2.0, -2.0, 2.0, -2.0]), torch.tensor([1, 1, 0, 0])
    lower = penalize_repetition(logits, seen.bool(), 2.0)
    assert lower.tolist() == [1.0, -4.0, 2.0, -2.0]


def test_the_word_that_crosses_stays():
    """Shares 0.4, 0.3, 0.2, 0.1: the smallest set that reaches p."""
    logits = torch.tensor([0.2, 0.4, 0.1, 0.3]).log()
    kept = {0.2: [1], 0.5: [1, 3], 0.65: [1, 3], 0.75: [0, 1, 3], 0.95: [0, 1, 2, 3]}
    for p, words in kept.items():
        assert keep_top_p(logits, p).isfinite().nonzero().flatten().tolist() == words


def test_of_equal_words_the_lower_ids_stay():
    assert (
        keep_top_p(torch.zeros(8), 0.3).isfinite().tolist() == [True] * 3 + [False] * 5
    )
    assert keep_top_k(torch.zeros(8), 3).isfinite().all()  # all are third


KEEPERS = [
    *[(keep_top_k, k) for k in (1, 4, 99)],
    *[(keep_top_p, p) for p in (1e-6, 0.4, 0.95, 1.0)],
    *[(keep_min_p, p) for p in (0.0, 0.2, 1.0)],
]


@pytest.mark.parametrize(("keep", "value"), KEEPERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_whatever_is_kept_keeps_its_logit(keep, value, dtype):
    """The likeliest stays; type and shape too; low precision chooses as high."""
    logits = torch.randn(2, 3, 40, generator=seeded()).to(dtype)
    kept = keep(logits, value)
    assert kept.dtype == dtype and kept.shape == logits.shape
    there = kept.isfinite()
    assert torch.equal(kept[there], logits[there])
    assert there.gather(-1, logits.argmax(-1, keepdim=True)).all()
    assert torch.equal(there, keep(logits.double(), value).isfinite())


def test_all_knobs_in_the_order_of_hugging_face():
    ids = torch.randint(30, (50, 7), generator=seeded(1))
    seen = torch.zeros(50, 30, dtype=torch.bool).scatter_(1, ids, True)
    knobs = Sampling(
        temperature=1.7, top_k=12, top_p=0.8, min_p=0.1, repetition_penalty=1.4
    )
    warpers = [
        theirs.RepetitionPenaltyLogitsProcessor(1.4),
        theirs.TemperatureLogitsWarper(1.7),
        theirs.TopKLogitsWarper(12),
        theirs.TopPLogitsWarper(0.8),
        theirs.MinPLogitsWarper(0.1),
    ]
    expected = RANDOM
    for warp in warpers:
        expected = warp(ids, expected)
    torch.testing.assert_close(knobs(RANDOM, seen), expected, atol=1e-6, rtol=0)


def test_the_defaults_change_nothing():
    assert torch.equal(Sampling()(RANDOM), RANDOM)
    assert Sampling(temperature=0)(RANDOM).isfinite().sum() == len(RANDOM)


def test_draws_follow_the_shares_that_are_left():
    """Counts of a large sample within five deviations of what is expected."""
    shares = torch.tensor([0.35, 0.25, 0.15, 0.10, 0.08, 0.05, 0.02])
    n = 40_000
    knobs = Sampling(temperature=0.8, top_k=6, top_p=0.85, min_p=0.1)
    drawn = knobs.draw(shares.log().expand(n, -1), generator=seeded())
    cooled = shares ** (1 / 0.8)
    cooled = cooled / cooled.sum()
    assert cooled[:3].sum() < 0.85 < cooled[:4].sum()  # worked by hand: four are left
    left = cooled * (torch.arange(7) < 4)
    left = left / left.sum()
    counts = torch.bincount(drawn, minlength=7)
    deviation = (n * left * (1 - left)).sqrt()
    assert ((counts - n * left).abs() <= 5 * deviation).all()


def test_bfloat16_logits_are_drawn_in_float32():
    """A softmax over many words in bfloat16 would have too few different shares."""
    logits = torch.linspace(0, 1, 2000).to(torch.bfloat16)
    drawn = [
        Sampling().draw(x.expand(500, -1), generator=seeded())
        for x in (logits, logits.float())
    ]
    assert torch.equal(*drawn)


# ----------------------------------------------------------------------- the writing


@every_family
@pytest.mark.parametrize("length", [1, 3, MAX_LEN, MAX_LEN + 3])
def test_generate_equals_the_plain_loop(exact, family, length):
    """With the cache, to its end, and past it."""
    model, ids = tiny_gpt(**FAMILIES[family]), torch.randint(V, (3, length))
    for temperature in (0.0, 0.7, 1.5):
        expected = plain_generate(model, ids, 2 * MAX_LEN, temperature, seeded())
        written = generate(model, ids, 2 * MAX_LEN, temperature, seeded())
        assert torch.equal(written, expected)
    assert len(written.unique()) > 2  # a model that always says one word shows nothing


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_each_text_alone(exact, family, side):
    """They reach the limit at different steps; the filling's ids may be anything."""
    model = tiny_gpt(**FAMILIES[family])
    ids, mask = padded(TEXTS, side, filling=-100)
    for penalty in (1.0, 3.0):
        knobs = {"temperature": 0, "repetition_penalty": penalty}
        written = generate(model, ids, 2 * MAX_LEN, mask=mask, **knobs)
        assert torch.equal(written[:, : ids.shape[1]], ids)
        for row, text in zip(written, TEXTS, strict=True):
            alone = generate(model, torch.tensor([text]), 2 * MAX_LEN, **knobs)[0]
            assert row[ids.shape[1] :].tolist() == alone[len(text) :].tolist()


def test_a_batch_of_full_texts_among_short_ones(exact):
    model, texts = tiny_gpt(), [[1, 2] * 6, [3], [4, 5, 6] * 3]
    ids, mask = padded(texts, "left")
    written = generate(model, ids, 12, 0, mask=mask)[:, ids.shape[1] :]
    for row, text in zip(written, texts, strict=True):
        alone = plain_generate(model, torch.tensor([text]), 12, 0)[0, len(text) :]
        assert torch.equal(row, alone)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A tiny GPT-2 of theirs, and ours with its weights."""
    torch.manual_seed(0)
    config = hf.GPT2Config(
        vocab_size=V, n_positions=16, n_embd=8, n_layer=2, n_head=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = hf.GPT2LMHeadModel(config).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.5)
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    return model, from_pretrained(folder).eval()


KNOBS = [
    {"temperature": 0},
    {"temperature": 0, "repetition_penalty": 1.8},
    {"temperature": 1.3, "top_k": 4},
    {"temperature": 0.9, "top_p": 0.7, "repetition_penalty": 1.2},
    {"temperature": 2.0, "min_p": 0.3, "top_k": 9, "top_p": 0.95},
]


@pytest.mark.parametrize("knobs", KNOBS)
def test_writes_what_hugging_face_writes(gpt2, knobs):
    """Greedy and drawn, from one seed, prompts padded on the left as theirs must be."""
    model, ours = gpt2
    ids, mask = padded(TEXTS, "left")
    options = {"top_k": 0} | knobs
    if options.pop("temperature") > 0:
        options |= {"do_sample": True, "temperature": knobs["temperature"]}
    else:
        options |= {"do_sample": False, "top_k": None}
    torch.manual_seed(5)
    written = model.generate(
        ids, attention_mask=mask.long(), max_new_tokens=10, pad_token_id=0, **options
    )
    # theirs counts the filling, id 0, as a word of the text: give ours no filling
    if knobs.get("repetition_penalty", 1) != 1:
        ids, mask = torch.tensor([TEXTS[0], TEXTS[0][::-1]]), None
        torch.manual_seed(5)
        written = model.generate(ids, max_new_tokens=10, pad_token_id=0, **options)
    generator = seeded(5)
    assert torch.equal(
        generate(ours, ids, 10, generator=generator, mask=mask, **knobs), written
    )


class Table(nn.Module):
    """A head whose logits are the row of a table that x names."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows  # (max_len, V)

    def forward(self, x):
        return self.rows[x]


class Says(GPT):
    """Says what a table has for each place, whatever it reads."""

    def __init__(self, rows):
        super().__init__(GPTConfig(**SIZE))
        self.head = Table(rows)

    def read(self, ids, mask=None, cache=None):
        super().read(ids, mask, cache)
        places = torch.arange(ids.shape[1]) if cache is None else cache.layers[0].places
        return places.expand(ids.shape)


def says(*ids):
    """A model that says ``ids`` in turn."""
    rows = torch.full((MAX_LEN, V), -9.0)
    rows[torch.arange(len(ids)), torch.tensor(ids)] = 9.0
    return Says(rows)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("filling", range(V))
def test_the_filling_is_no_word_of_the_text(side, filling):
    """A penalty that counted it would forbid its id, or the 0 that stands for it."""
    model = Says(torch.arange(V, 0, -1.0).expand(MAX_LEN, V))
    ids, mask = padded([[1, 2, 3], [4]], side, filling)
    written = generate(model, ids, 5, 0, repetition_penalty=1e6, mask=mask)[:, 3:]
    assert written.tolist() == [[0, 4, 5, 6, 7], [0, 1, 2, 3, 5]]


def test_what_was_written_is_seen():
    """The likeliest word comes once, then the next, down to the least."""
    model = Says(torch.arange(1.0, V + 1).expand(MAX_LEN, V))
    written = generate(model, torch.tensor([[3]]), V - 1, 0, repetition_penalty=1e6)
    assert written[0].tolist() == [3, 10, 9, 8, 7, 6, 5, 4, 2, 1, 0]


def test_stop_ends_the_writing():
    model = says(1, 2, 3, 4, 5, 6)
    ids = torch.tensor([[9]])
    assert generate(model, ids, 5, 0)[0].tolist() == [9, 1, 2, 3, 4, 5]
    assert generate(model, ids, 5, 0, stop=3)[0].tolist() == [9, 1, 2, 3]
    assert generate(model, ids, 5, 0, stop=(4, 2))[0].tolist() == [9, 1, 2]
    assert generate(model, ids, 2, 0, stop=5)[0].tolist() == [9, 1, 2]


def test_a_stop_in_the_prompt_is_none():
    model = says(1, 2, 3, 4, 5, 6)
    written = generate(model, torch.tensor([[3, 3]]), 4, 0, stop=3)
    assert written[0].tolist() == [3, 3, 2, 3]


def test_a_text_that_has_stopped_repeats_its_stop():
    """The second is a word ahead, since its prompt is a word longer."""
    model = says(1, 2, 3, 4, 5, 6)
    ids, mask = padded([[9], [9, 9]], "left")
    written = generate(model, ids, 6, 0, mask=mask, stop=3)[:, 2:]
    assert written.tolist() == [[1, 2, 3], [2, 3, 3]]
    written = generate(model, ids, 6, 0, mask=mask, stop=(4, 3))[:, 2:]
    assert written.tolist() == [[1, 2, 3], [2, 3, 3]]


def test_the_others_draw_as_if_none_had_stopped():
    model = tiny_gpt()
    ids = torch.randint(V, (6, 3), generator=seeded())
    free = generate(model, ids, 8, generator=seeded())
    stopped = generate(model, ids, 8, generator=seeded(), stop=4)
    for one, other in zip(free[:, 3:].tolist(), stopped[:, 3:].tolist(), strict=True):
        n = one.index(4) + 1 if 4 in one else len(one)
        assert other[:n] == one[:n] and set(other[n:]) <= {4}


def test_the_stream_is_what_generate_gives():
    model, (ids, mask) = tiny_gpt(), padded(TEXTS, "right")
    knobs = {"temperature": 1.4, "top_p": 0.9, "stop": (2,), "mask": mask}
    pieces = list(stream(model, ids, 9, generator=seeded(), **knobs))
    assert all(piece.shape == (4,) for piece in pieces)
    written = generate(model, ids, 9, generator=seeded(), **knobs)
    assert torch.equal(torch.stack(pieces, dim=1), written[:, ids.shape[1] :])


def test_the_stream_is_lazy():
    model, calls = tiny_gpt(), []
    model.embedding.register_forward_hook(lambda *call: calls.append(call[1][0].shape))
    words = stream(model, torch.tensor([[1, 2, 3]]), 4, 0)
    assert not calls
    next(words)
    assert calls == [(1, 3)]
    list(words)
    assert calls == [(1, 3), (1, 1), (1, 1), (1, 1)]  # each word is read once


def test_only_the_last_row_is_scored():
    model, calls = tiny_gpt(), []
    model.head.register_forward_hook(lambda *call: calls.append(call[1][0].shape))
    ids, mask = padded(TEXTS, "right")
    generate(model, ids, 2, mask=mask)
    assert calls == [(4, 8), (4, 1, 8)]


def test_seeds_repeat():
    model, ids = tiny_gpt(), torch.tensor([[1, 2], [3, 4]])
    first, again, other = (
        generate(model, ids, 20, 1.5, seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_ever_the_callers(training):
    """Eval while it reads; between the words as it was, and gradients too."""
    model, ids = tiny_gpt(dropout=0.5).train(training), torch.tensor([[1, 2, 3]])
    expected = plain_generate(model, ids, 4, 0)
    assert torch.equal(generate(model, ids, 4, 0), expected)
    for _ in stream(model, ids, 4):
        assert model.training is training and torch.is_grad_enabled()
        break
    assert model.training is training
    search(model, ids, 3, 2)
    assert model.training is training


def test_the_mode_comes_back_after_an_error():
    model = tiny_gpt().train()
    model.head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(model, torch.tensor([[1]]), 3)
    assert model.training


def test_no_words_and_narrow_ids():
    model, ids = tiny_gpt(), torch.tensor([[1, 2, 3]], dtype=torch.int32)
    assert torch.equal(generate(model, ids, 0), ids)
    assert list(stream(model, ids, 0)) == []
    assert search(model, ids, 0) == [[]]
    assert torch.equal(generate(model, ids, 9, 0), generate(model, ids.long(), 9, 0))


def test_writes_in_bfloat16():
    model = tiny_gpt().bfloat16()
    written = generate(model, torch.tensor([[1, 2]]), 12, 0.9, seeded(), top_p=0.9)
    assert written.shape == (1, 14)


def test_a_step_is_compiled_once():
    """One graph for all steps of all calls, whatever the prompts' lengths."""
    model, graphs = tiny_gpt(), []

    def count(graph, _):
        graphs.append(graph)
        return graph

    step = torch.compile(model, fullgraph=True, dynamic=False, backend=count)
    for length in (1, 3, 5):
        ids = torch.randint(V, (2, length), generator=seeded(length))
        written = generate(model, ids, 2 * MAX_LEN, step=step, generator=seeded())
        assert torch.equal(
            written, generate(model, ids, 2 * MAX_LEN, generator=seeded())
        )
    assert len(graphs) == 1


@pytest.mark.slow
def test_inductor_writes_the_same(exact):
    model, ids = tiny_gpt(n_layers=1), torch.tensor([[1, 2], [3, 4]])
    step = torch.compile(model, fullgraph=True, dynamic=False)
    assert torch.equal(
        generate(model, ids, 6, 0, step=step), generate(model, ids, 6, 0)
    )


# ------------------------------------------------------------------------- the search


def worth(model, prompt, words, penalty):
    """What beam_search says a continuation is worth, from one pass without a cache."""
    ids = torch.tensor([prompt + words])
    scores = model(ids[:, :-1]).log_softmax(dim=-1)[0, len(prompt) - 1 :]
    total = sum(scores[i, word].item() for i, word in enumerate(words))
    return total / ((5 + len(words)) / 6) ** penalty


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("stop", range(3))
def test_a_wide_search_finds_the_best_of_all(exact, penalty, stop):
    model, most, prompts = tiny_gpt(vocab_size=3), 4, [[1, 2, 0], [0], [2, 2]]
    ids, mask = padded(prompts, "left")
    whole = [
        list(words)
        for n in range(1, most + 1)
        for words in itertools.product(range(3), repeat=n)
        if stop not in words[:-1] and (n == most or words[-1] == stop)
    ]
    with torch.no_grad():
        found = search(model, ids, most, 3**most, penalty, stop, mask)
        for prompt, words in zip(prompts, found, strict=True):
            best = max(whole, key=lambda w: worth(model, prompt, w, penalty))
            assert words == [word for word in best if word != stop]


@every_family
def test_the_search_equals_one_that_reads_all_again(exact, family):
    """Past max_len as well."""
    model, ids = tiny_gpt(**FAMILIES[family]), torch.randint(V, (3, 2))

    @torch.no_grad()
    def next_logits(ids, origin):
        return model(ids[:, -MAX_LEN:])[:, -1]

    for beams, stop in itertools.product((1, 3), (None, 4)):
        expected = beam_search(next_logits, ids, stop, 12, beams, 0.6)
        assert search(model, ids, 12, beams, 0.6, stop) == expected


def test_one_beam_is_greedy(exact):
    model, (ids, mask) = tiny_gpt(), padded(TEXTS, "left")
    written = generate(model, ids, 12, 0, mask=mask)[:, ids.shape[1] :]
    assert search(model, ids, 12, beams=1, mask=mask) == written.tolist()


def test_the_search_reads_each_prompt_once():
    model, calls = tiny_gpt(), []
    model.embedding.register_forward_hook(lambda *call: calls.append(call[1][0].shape))
    search(model, torch.tensor([[1, 2, 3], [4, 5, 6]]), 3, beams=5)
    assert calls == [(2, 3), (10, 1), (10, 1)]


# ------------------------------------------------------------------------- bad input

IDS = torch.tensor([[1, 2]])
BAD = [
    ({"ids": IDS[0]}, ValueError, r"ids must have shape \(B, T\).*got \(2,\)"),
    ({"ids": IDS[:, :0]}, ValueError, r"at least one token a prompt, got \(1, 0\)"),
    ({"ids": IDS * 9}, IndexError, r"ids must lie in \[0, 11\), got 18"),
    ({"ids": IDS * 1.0}, TypeError, "ids must be int64 or int32"),
    ({"max_new_tokens": -1}, ValueError, "max_new_tokens must be at least 0, got -1"),
    ({"temperature": -0.5}, ValueError, "temperature must be finite and at least 0"),
    ({"temperature": math.nan}, ValueError, "temperature must be finite"),
    ({"top_k": -1}, ValueError, "top_k must be at least 0, got -1"),
    ({"top_p": 0.0}, ValueError, r"top_p must lie in \(0, 1\], got 0.0"),
    ({"top_p": 1.1}, ValueError, r"top_p must lie in \(0, 1\], got 1.1"),
    ({"top_p": math.nan}, ValueError, "top_p must lie in"),
    ({"min_p": -0.1}, ValueError, r"min_p must lie in \[0, 1\], got -0.1"),
    ({"min_p": 2}, ValueError, r"min_p must lie in \[0, 1\], got 2"),
    ({"repetition_penalty": 0}, ValueError, "repetition_penalty must be finite and ab"),
    ({"repetition_penalty": math.inf}, ValueError, "repetition_penalty must be finite"),
    ({"stop": 11}, IndexError, r"ids must lie in \[0, 11\), got 11"),
    ({"mask": IDS > 1.5}, None, ""),
    ({"mask": IDS}, TypeError, "mask must be boolean, got torch.int64"),
    ({"mask": IDS[:, :1] > 0}, ValueError, r"the shape of ids, \(1, 2\), got \(1, 1\)"),
    ({"mask": IDS > 2}, ValueError, "a token in each row, row 0 has none"),
]


@pytest.mark.parametrize("write", [generate, stream])
@pytest.mark.parametrize(("change", "error", "words"), BAD)
def test_bad_input_is_refused_at_the_door(write, change, error, words):
    """By the stream at once, not at its first word."""
    arguments = {"ids": IDS, "max_new_tokens": 3} | change
    if error is None:
        write(tiny_gpt(), **arguments)
        return
    with pytest.raises(error, match=words):
        write(tiny_gpt(), **arguments)


@pytest.mark.parametrize(
    ("keep", "value", "words"),
    [
        (keep_top_k, 0, "k must be at least 1, got 0"),
        (keep_top_p, 0.0, r"p must lie in \(0, 1\], got 0.0"),
        (keep_min_p, 1.5, r"p must lie in \[0, 1\], got 1.5"),
    ],
)
def test_bad_knobs(keep, value, words):
    with pytest.raises(ValueError, match=words):
        keep(ROWS, value)
    with pytest.raises(ValueError, match="penalty must be finite and above 0, got 0"):
        penalize_repetition(ROWS, ROWS > 0, 0)


def test_bad_searches():
    model = tiny_gpt()
    with pytest.raises(ValueError, match="beams must be at least 1, got 0"):
        search(model, IDS, 3, beams=0)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 0, got -1"):
        search(model, IDS, -1)
    with pytest.raises(IndexError, match=r"ids must lie in \[0, 11\), got 11"):
        search(model, IDS, 3, stop=11)


def test_a_reader_hands_out_logits(exact):
    """The parts serve other loops: read, then read on, row by row."""
    model, (ids, mask) = tiny_gpt(), padded([[1, 2, 3], [4]], "left")
    reader = Reader(model, ids, 2, mask)
    reader.read()
    logits = reader.read(torch.tensor([5, 6]))
    for row, text in zip(logits, ([1, 2, 3, 5], [4, 6]), strict=True):
        expected = model(torch.tensor([text]))[0, -1]
        torch.testing.assert_close(row, expected, atol=1e-10, rtol=0)
