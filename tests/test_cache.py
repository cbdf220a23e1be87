"""The cache: whatever is read with it, in whatever pieces, reads as it does without.

Every family, every step, batches of texts of different lengths padded on either side.
"""

import pytest
import torch
from small import padded
from torch import nn

from transformer.encoder_decoder import (
    Transformer,
    TransformerConfig,
    beam_search,
    translate,
)
from transformer.gpt import GPT, GPTConfig
from transformer.multi_head import Cache, MultiHeadAttention, attention_maps, places_of
from transformer.pretrained import LLAMA, PALM, Whisper, WhisperConfig

pytestmark = pytest.mark.usefixtures("exact")
SIZE = {"vocab_size": 11, "max_len": 12, "d_model": 16, "n_heads": 4, "n_layers": 2}
FAMILIES = {
    "2017": {
        "order": "post", "activation": "relu", "positions": "sinusoidal",
        "scale_embeddings": True,
    },
    "GPT-2": {},
    "Llama": dict(LLAMA) | {"n_kv_heads": 2},
    "PaLM": dict(PALM) | {"n_kv_heads": 1},
    "rotary": {"positions": "rotary"},
    "no positions": {"positions": "none"},
}  # fmt: skip
every_family = pytest.mark.parametrize("family", FAMILIES)
TEXTS = [[1, 2, 3, 4, 5, 6], [7, 8], [9], [10, 1, 9, 2]]


def far_from_zero(model):
    """Give the model weights that make every part matter."""
    torch.manual_seed(0)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.4)
    return model.eval()


def gpt(family):
    return far_from_zero(GPT(GPTConfig(**(SIZE | FAMILIES[family]))))


@every_family
@pytest.mark.parametrize("pieces", [[1] * 12, [12], [5, 1, 1, 3, 2], [1, 11]])
def test_every_step_equals_one_pass(family, pieces):
    model, ids = gpt(family), torch.randint(11, (3, 12))
    whole, cache = model(ids), model.new_cache(3)
    read = [model(piece, cache=cache) for piece in ids.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(read, dim=1), whole, atol=1e-10, rtol=0)
    assert cache.length.tolist() == [12] * 3


@every_family
def test_every_step_equals_one_pass_in_float32(family):
    model, ids = gpt(family).float(), torch.randint(11, (3, 12))
    whole, cache = model(ids), model.new_cache(3)
    for t in range(12):
        step = model(ids[:, t : t + 1], cache=cache)[:, 0]
        torch.testing.assert_close(step, whole[:, t], atol=1e-5, rtol=1e-5)


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_equal_each_text_alone(family, side):
    """Prefill a padded batch, go on word by word: each row as if it were alone."""
    model = gpt(family)
    ids, mask = padded(TEXTS, side)
    cache = model.new_cache(len(TEXTS))
    first = model(ids, mask, cache)
    torch.testing.assert_close(first[mask], model(ids, mask)[mask], atol=1e-10, rtol=0)
    more = torch.randint(11, (len(TEXTS), 5))
    for t in range(5):
        step = model(more[:, t : t + 1], cache=cache)[:, 0]
        for row, text in enumerate(TEXTS):
            alone = torch.tensor([text + more[row, : t + 1].tolist()])
            expected = model(alone)[0]
            torch.testing.assert_close(step[row], expected[-1], atol=1e-10, rtol=0)
            if t == 0:
                torch.testing.assert_close(
                    first[row][mask[row]], expected[:-1], atol=1e-10, rtol=0
                )


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_without_a_cache(family, side):
    model, (ids, mask) = gpt(family), padded(TEXTS, side)
    logits = model(ids, mask)
    for row, text in enumerate(TEXTS):
        alone = model(torch.tensor([text]))[0]
        torch.testing.assert_close(logits[row][mask[row]], alone, atol=1e-10, rtol=0)


@every_family
def test_padding_amid_a_conversation(family):
    """A second padded piece joins rows of different lengths."""
    model = gpt(family)
    cache = model.new_cache(4)
    model(*padded(TEXTS, "left"), cache)
    answers = [[1], [2, 3], [4, 5, 6], [7]]
    ids, mask = padded(answers, "left")
    logits = model(ids, mask, cache)
    for row, (text, answer) in enumerate(zip(TEXTS, answers, strict=True)):
        alone = model(torch.tensor([text + answer]))[0, len(text) :]
        torch.testing.assert_close(logits[row][mask[row]], alone, atol=1e-10, rtol=0)


@every_family
def test_room_may_be_smaller_than_max_len(family):
    model, ids = gpt(family), torch.randint(11, (2, 5))
    cache = model.new_cache(2, room=5)
    torch.testing.assert_close(model(ids, cache=cache), model(ids), atol=1e-10, rtol=0)
    assert cache.layers[0].key.shape[2] == 5
    with pytest.raises(IndexError):
        model(ids[:, :1], cache=cache)


def test_the_filling_is_never_seen():
    """Whatever the filling's ids are, what follows stays the same."""
    model, (ids, mask) = gpt("GPT-2"), padded(TEXTS, "left")
    seen = []
    for filling in (0, 5):
        cache = model.new_cache(len(TEXTS))
        model(ids.masked_fill(~mask, filling), mask, cache)
        seen.append(model(torch.tensor([[3]] * 4), cache=cache))
    assert torch.equal(*seen)


def test_reordered_rows_go_on_from_each_other():
    model, ids = gpt("Llama"), torch.tensor([[1, 2, 3], [4, 5, 6]])
    cache = model.new_cache(2)
    model(ids, cache=cache)
    cache.reorder(torch.tensor([1, 1]))
    step = model(torch.tensor([[7], [8]]), cache=cache)[:, 0]
    for row, word in enumerate((7, 8)):
        alone = model(torch.tensor([[4, 5, 6, word]]))[0, -1]
        torch.testing.assert_close(step[row], alone, atol=1e-10, rtol=0)


def test_reordered_lengths_go_with_their_rows():
    model, (ids, mask) = gpt("GPT-2"), padded(TEXTS, "right")
    cache = model.new_cache(4)
    model(ids, mask, cache)
    cache.reorder(torch.tensor([3, 2, 1, 0]))
    assert cache.length.tolist() == [4, 1, 2, 6]


def test_maps_are_the_same_with_a_cache():
    """To look writes the same keys to the same places once more."""
    model, ids = gpt("GPT-2"), torch.randint(11, (1, 6))
    whole = attention_maps(model, ids)
    cache = model.new_cache(1, room=6)
    model(ids[:, :5], cache=cache)
    last = attention_maps(model, ids[:, 5:], cache=cache)
    for at_once, step in zip(whole, last, strict=True):
        torch.testing.assert_close(step[0, :, 0], at_once[0, :, 5], atol=1e-10, rtol=0)


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("depth", [0, 3])
def test_translator_steps_equal_one_pass(order, depth):
    config = TransformerConfig(**SIZE, order=order, n_decoder_layers=depth, d_ff=8)
    model = far_from_zero(Transformer(config))
    source, real = padded(TEXTS, "right")
    target = torch.randint(11, (4, 7))
    whole = model(source, target, real)
    memory, cache = model.encode(source, real), model.new_cache(4, room=7)
    steps = [model.decode(target[:, t : t + 1], memory, real, cache) for t in range(7)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-10, rtol=0)


def test_the_memorys_keys_are_made_once():
    model = far_from_zero(Transformer(TransformerConfig(**SIZE)))
    memory, cache = model.encode(torch.tensor([[1, 2, 3]])), model.new_cache(1)
    layer, calls = model.decoder.blocks[0].cross_attention, []
    layer.key.register_forward_hook(lambda *_: calls.append(1))
    for t in range(4):
        model.decode(torch.tensor([[t]]), memory, cache=cache)
    assert len(calls) == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beams", [1, 3])
def test_a_search_with_a_cache_finds_what_it_finds_without(beams, seed):
    torch.manual_seed(seed)
    config = SIZE | {"tied": False, "order": "pre", "positions": "learned"}
    model = Transformer(TransformerConfig(**config)).eval()
    for matrix in (p for p in model.parameters() if p.ndim == 2):
        nn.init.normal_(matrix, std=0.6)
    source, real = padded(TEXTS, "right")
    memory = model.encode(source, real).repeat_interleave(beams, dim=0)
    mask = real.repeat_interleave(beams, dim=0)
    with torch.no_grad():
        expected = beam_search(
            lambda ids, _: model.decode(ids, memory, mask)[:, -1],
            torch.zeros(4, 1, dtype=torch.long), 10, 8, beams,
        )  # fmt: skip
    assert translate(model, source, 0, 10, real, 8, beams) == expected
    assert len(set(map(tuple, expected))) > 1


def test_whisper_steps_equal_one_pass():
    config = WhisperConfig(**SIZE, n_mels=3, max_source=4, n_decoder_layers=1)
    model = far_from_zero(Whisper(config))
    features, ids = torch.randn(2, 3, 8), torch.randint(11, (2, 6))
    memory, cache = model.encode(features), model.new_cache(2)
    steps = [model.decode(ids[:, t : t + 1], memory, cache) for t in range(6)]
    whole = model(features, ids)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-10, rtol=0)


def test_places():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [1, 0, 1, 0]], dtype=torch.bool)
    expected = [[2, 3, 0, 1], [0, 1, 2, 3], [0, 2, 1, 3]]
    assert places_of(mask).tolist() == expected


def test_who_sees_whom():
    cache = Cache(1, 2, 1, 4, 2, torch.zeros(1))
    mask = torch.tensor([[False, True], [True, True]])
    places, seen = cache.step(2, mask)
    assert places.tolist() == [[1, 0], [0, 1]]
    assert seen[:, 0].long().tolist() == [
        [[1, 1, 0, 0], [1, 0, 0, 0]],
        [[1, 0, 0, 0], [1, 1, 0, 0]],
    ]
    places, seen = cache.step(1)
    assert places.tolist() == [[1], [2]]
    assert seen[:, 0, 0].long().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]


def test_bfloat16_inside_autocast():
    model, ids = gpt("Llama").float(), torch.randint(11, (2, 6))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = model.new_cache(2)
        model(ids[:, :5], cache=cache)
        step = model(ids[:, 5:], cache=cache)[:, 0]
        whole = model(ids)[:, 5]
    torch.testing.assert_close(step, whole, atol=0.3, rtol=0.1)
    assert cache.layers[0].key.dtype == torch.float32


@pytest.mark.parametrize("family", ["GPT-2", "Llama"])
def test_a_step_compiles_once_for_every_place(family):
    """No graph break, and one graph serves all steps: the shapes stay the same."""
    model, ids = gpt(family), torch.randint(11, (2, 8))
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    step = torch.compile(model, fullgraph=True, dynamic=False, backend=count)
    with torch.no_grad():
        cache, whole = model.new_cache(2), model(ids)
        model(ids[:, :3], cache=cache)
        for t in range(3, 8):
            logits = step(ids[:, t : t + 1], cache=cache)[:, 0]
            torch.testing.assert_close(logits, whole[:, t], atol=1e-10, rtol=0)
    assert len(graphs) == 1


@pytest.mark.parametrize("room", [-1, 13])
def test_no_room_past_the_positions(room):
    with pytest.raises(ValueError, match=f"room must be 1 to max_len = 12, got {room}"):
        gpt("GPT-2").new_cache(1, room)


def test_a_cache_without_rows():
    with pytest.raises(
        ValueError, match=r"at least one layer, row.*\(2, 0, 4, 12, 4\)"
    ):
        gpt("GPT-2").new_cache(0)


def test_keys_made_before_answer_as_the_memory():
    layer = MultiHeadAttention(8, 2)
    x, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    made = layer(x, layer.keys_values(memory))
    torch.testing.assert_close(made, layer(x, memory), atol=1e-12, rtol=0)
