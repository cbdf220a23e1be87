"""BERT and its heads against Hugging Face's, and the questions it is trained on."""

import math
import re

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from transformer.bert import (
    BERT,
    BERTConfig,
    MaskedLM,
    TextClassifier,
    TokenClassifier,
    mask_words,
    mean_pool,
)

pytestmark = pytest.mark.usefixtures("exact")

EXACT = {"atol": 1e-10, "rtol": 0}
SIZE = {"vocab_size": 19, "max_len": 10, "d_model": 16, "n_heads": 4, "n_layers": 2}
NAMES = {
    "embeddings.word_embeddings": "embedding",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "segments",
    "embeddings.LayerNorm": "norm",
    "encoder.layer": "stack.blocks",
    "attention.self": "attention",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "norm_1",
    "intermediate.dense": "feed_forward.up",
    "output.LayerNorm": "norm_2",
    "output.dense": "feed_forward.down",
    "cls.predictions.transform.dense": "dense",
    "cls.predictions.transform.LayerNorm": "norm",
    "cls.predictions.decoder": "head",
    "cls.predictions.bias": "head.bias",
}


def rough(model):
    """No weight at zero or one, which could hide a mistake."""
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.4)
    return model.eval().requires_grad_(False)


def tiny(**changes):
    return rough(BERT(BERTConfig(**(SIZE | changes))))


def translated(name):
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def batch():
    """Ids, a padding mask and segments, each (3, 8)."""
    ids = torch.randint(19, (3, 8))
    mask = torch.arange(8) < torch.tensor([[8], [5], [2]])
    segments = (torch.arange(8) >= torch.tensor([[3], [4], [1]])).long()
    return ids, mask, segments


# ---------------------------------------------------------------------- the models


@pytest.fixture
def twins(exact):
    """Hugging Face's masked language model, and ours with its weights."""
    theirs = BertForMaskedLM(
        BertConfig(
            vocab_size=19, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=10,
        )
    )  # fmt: skip
    ours = MaskedLM(BERT(BERTConfig(**SIZE))).eval().requires_grad_(False)
    rough(theirs)
    ours.load_state_dict({translated(k): v for k, v in theirs.state_dict().items()})
    return theirs, ours


def test_hidden_states_equal_hugging_face(twins):
    theirs, ours = twins
    ids, mask, segments = batch()
    other = {"attention_mask": mask.long(), "token_type_ids": segments}
    want = theirs.bert(ids, **other).last_hidden_state
    got = ours.bert(ids, mask, segments)
    torch.testing.assert_close(got[mask], want[mask], **EXACT)
    want = theirs.bert(ids).last_hidden_state  # neither mask nor segments
    torch.testing.assert_close(ours.bert(ids), want, **EXACT)


def test_masked_words_equal_hugging_face(twins):
    theirs, ours = twins
    ids, mask, segments = batch()
    other = {"attention_mask": mask.long(), "token_type_ids": segments}
    want = theirs(ids, **other).logits
    got = ours(ids, mask, segments)
    torch.testing.assert_close(got[mask], want[mask], **EXACT)
    some = ours.score(ours.bert(ids, mask, segments)[mask])
    torch.testing.assert_close(some, want[mask], **EXACT)


def test_filling_changes_nothing():
    model = tiny()
    ids, mask, segments = batch()
    got = model(ids, mask, segments)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = model(
            ids[row : row + 1, :length], None, segments[row : row + 1, :length]
        )
        torch.testing.assert_close(got[row, :length], alone[0], **EXACT)


def test_every_row_sees_every_word():
    model = tiny()
    ids = torch.randint(1, 19, (1, 6))
    other = ids.clone()
    other[0, -1] = 0
    assert ((model(ids) - model(other)).abs().amax(dim=-1) > 1e-6).all()


def test_segments_are_zero_where_absent():
    model = tiny()
    ids, mask, segments = batch()
    torch.testing.assert_close(
        model(ids, mask), model(ids, mask, torch.zeros_like(ids)), **EXACT
    )
    assert (model(ids, mask, segments) - model(ids, mask)).abs().max() > 1e-3


def test_text_classifier_reads_the_first_row():
    model = rough(TextClassifier(tiny(), 3))
    ids, mask, segments = batch()
    first = model.bert(ids, mask, segments)[:, 0]
    want = first @ model.classify.weight.T + model.classify.bias
    torch.testing.assert_close(model(ids, mask, segments), want, **EXACT)


def test_token_classifier_reads_every_row():
    model = rough(TokenClassifier(tiny(), 3))
    ids, mask, segments = batch()
    hidden = model.bert(ids, mask, segments)
    want = hidden @ model.classify.weight.T + model.classify.bias
    torch.testing.assert_close(model(ids, mask, segments), want, **EXACT)


def test_classifiers_drop_out_in_training_alone():
    ids = torch.randint(19, (2, 8))
    for kind in (TextClassifier, TokenClassifier):
        model = kind(BERT(BERTConfig(**SIZE, dropout=0.5)), 3)
        model.bert.eval()  # what is left is the head's own
        assert not torch.equal(model(ids), model(ids))
        model.eval()
        assert torch.equal(model(ids), model(ids))


def test_the_head_shares_the_table():
    model = MaskedLM(tiny())
    assert model.head.weight is model.bert.embedding.weight
    names = [name for name, _ in model.named_parameters()]
    assert "head.weight" not in names and "head.bias" in names
    state = {name: table.clone() for name, table in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert model.head.weight is model.bert.embedding.weight
    state["head.weight"] += 1
    with pytest.raises(ValueError, match=r"tied, but bert\.embedding\.weight and head"):
        model.load_state_dict(state)


def test_linear_layers_start_as_loud_at_any_width():
    model = MaskedLM(BERT(BERTConfig(**(SIZE | {"d_model": 192}))))
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            want = 0.02 * math.sqrt(768 / layer.in_features)
            assert layer.weight.std().item() == pytest.approx(want, rel=0.03), name
            assert not layer.bias.any(), name


def test_defaults_are_berts():
    config = BERTConfig(vocab_size=30522, d_model=768, n_heads=12, n_layers=12)
    assert (config.max_len, config.n_segments, config.dropout) == (512, 2, 0.1)
    assert (config.activation, config.order) == ("gelu", "post")
    assert (config.norm, config.norm_eps) == ("layer", 1e-12)
    with torch.device("meta"):
        model = BERT(config)
    # bert-base-uncased has 109,482,240, of which the pooler 768 * 769
    assert sum(p.numel() for p in model.parameters()) == 109_482_240 - 768 * 769


# ---------------------------------------------------------------------- the doors


@pytest.mark.parametrize("name", ["vocab_size", "max_len", "n_segments"])
def test_config_refuses(name):
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0"):
        BERTConfig(**(SIZE | {name: 0}))


def test_config_refuses_what_a_block_refuses():
    with pytest.raises(ValueError, match="d_model must be divisible by n_heads"):
        BERTConfig(**(SIZE | {"n_heads": 3}))


@pytest.mark.parametrize("model", [tiny, lambda: MaskedLM(tiny())])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((8,),), ValueError, "ids must have shape (B, T), got (8,)"),
        (((1, 11),), ValueError, "ids must hold at most max_len = 10"),
        (((2, 8), (2, 7)), ValueError, "mask must have the shape of ids, (2, 8)"),
        (((2, 8), None, (2, 7)), ValueError,
         "segments must have the shape of ids, (2, 8), got (2, 7)"),
    ],
)  # fmt: skip
def test_wrong_shapes(model, arguments, error, message):
    ids, mask, segments = (*arguments, None, None)[:3]
    given = [torch.zeros(ids, dtype=torch.long)]
    given.append(None if mask is None else torch.ones(mask, dtype=torch.bool))
    given.append(None if segments is None else torch.zeros(segments, dtype=torch.long))
    with pytest.raises(error, match=re.escape(message)):
        model()(*given)


def test_wrong_types_and_values():
    model, ids = tiny(), torch.zeros(2, 8, dtype=torch.long)
    with pytest.raises(TypeError, match="mask must be boolean, True = real token"):
        model(ids, torch.ones(2, 8))
    with pytest.raises(TypeError, match="ids must be int64 or int32, got"):
        model(ids.double())
    with pytest.raises(IndexError, match=re.escape("ids must lie in [0, 19), got 19")):
        model(ids + 19)
    with pytest.raises(IndexError, match=re.escape("ids must lie in [0, 2), got 2")):
        model(ids, None, ids + 2)


# ---------------------------------------------------------------- hiding words


def hide(share=0.15, seed=0):
    """A large batch: ids of 5 .. 99, the first two places protected."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 100, (500, 200), generator=draw)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[:, :2] = True
    return ids, keep, *mask_words(ids, 3, 100, keep, share, draw)


@pytest.mark.parametrize("share", [0.15, 0.5])
def test_the_share_of_hidden_words(share):
    _, keep, _, targets = hide(share)
    asked = targets != -100
    assert asked[~keep].double().mean().item() == pytest.approx(share, abs=0.005)


def test_eighty_ten_ten():
    ids, _, inputs, targets = hide(0.5)
    asked = targets != -100
    assert torch.equal(inputs[~asked], ids[~asked]), "a word that isn't asked changed"
    assert torch.equal(targets[asked], ids[asked])
    masked, same = inputs[asked] == 3, inputs[asked] == ids[asked]
    other = inputs[asked][~masked & ~same]
    shares = [masked, same, ~masked & ~same]
    got = [kind.double().mean().item() for kind in shares]
    assert got == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    # drawn from the whole vocabulary, the [MASK] and the word itself aside
    assert set(other.tolist()) == set(range(100)) - {3}


def test_protected_words_stay():
    ids, keep, inputs, targets = hide(1.0)
    assert torch.equal(inputs[keep], ids[keep]) and (targets[keep] == -100).all()
    assert torch.equal(targets[~keep], ids[~keep])


def test_hiding_repeats_and_leaves_its_input_alone():
    first, second = hide(seed=4), hide(seed=4)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    ids = torch.randint(5, 100, (4, 50))
    before = ids.clone()
    mask_words(ids, 3, 100, torch.zeros_like(ids, dtype=torch.bool), 0.9)
    assert torch.equal(ids, before)


@pytest.mark.parametrize("share", [0, -0.1, 1.5, math.nan])
def test_mask_words_refuses_a_share(share):
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\], got"):
        mask_words(ids, 0, 5, ids == 0, share)


@pytest.mark.parametrize(
    "keep", [torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.bool)]
)
def test_mask_words_refuses_keep(keep):
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"keep must be boolean of shape \(2, 3\)"):
        mask_words(ids, 0, 5, keep)


# ---------------------------------------------------------------- one vector a text


def test_mean_pool_counts_real_tokens_alone():
    hidden = torch.randn(3, 8, 4)
    _, mask, _ = batch()
    got = mean_pool(hidden, mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        want = hidden[row, :length].mean(dim=0)
        torch.testing.assert_close(got[row], want, **EXACT)
    hidden[~mask] = math.nan  # nobody looks at the filling
    torch.testing.assert_close(mean_pool(hidden, mask), got, **EXACT)


def test_mean_pool_of_nothing_is_zero():
    hidden = torch.randn(2, 5, 4)
    mask = torch.tensor([[True] * 5, [False] * 5])
    assert torch.equal(mean_pool(hidden, mask)[1], torch.zeros(4))


def test_mean_pool_refuses():
    hidden = torch.randn(2, 5, 4)
    with pytest.raises(
        ValueError, match=re.escape("mask must have shape (B, S) = (2, 5), got (2, 4)")
    ):
        mean_pool(hidden, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="mask must be boolean, True = real token"):
        mean_pool(hidden, torch.ones(2, 5))
