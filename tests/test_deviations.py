"""What book/deviations.md claims: where our code differs, and by how much.

Each test is named on that page, and the page names only tests that exist.
"""

import ast
import math
import re

import bookfiles as book
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, Dinov2Config, GPT2Config, LlamaConfig

from transformer.attention import attention
from transformer.bert import BERT, BERTConfig, mask_words
from transformer.block import Block, BlockConfig
from transformer.dropout import Dropout
from transformer.encoder_decoder import (
    Transformer,
    TransformerConfig,
    smoothed_cross_entropy,
)
from transformer.feed_forward import FeedForward
from transformer.gpt import GPT, GPTConfig
from transformer.multi_head import MultiHeadAttention
from transformer.norm import LayerNorm
from transformer.positions import LearnedPositions, Rotary, sinusoidal
from transformer.pretrained import from_pretrained
from transformer.vision import ViT, ViTConfig, patches

pytestmark = pytest.mark.usefixtures("exact")
EXACT = {"atol": 1e-10, "rtol": 0.0}
SIZE = {"d_model": 8, "n_heads": 2, "n_layers": 2}


# --------------------------------------------------------------------- the page itself


def test_the_page_names_tests_that_exist():
    text = (book.ROOT / "book/deviations.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    there, ours = set(), set()
    for file in (book.ROOT / "tests").glob("test_*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        tests = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
        there |= {name for name in tests if name.startswith("test_")}
        if file.name == "test_deviations.py":
            ours = tests & there
    assert named - there == set()
    assert ours - named == {"test_the_page_names_tests_that_exist"}


# ------------------------------------------------------------------------- attention


def test_a_bias_on_keys_changes_nothing():
    """It adds the same number to every score of a row, which softmax takes away."""
    layer, x = MultiHeadAttention(8, 2), torch.randn(2, 5, 8)
    before = layer(x, causal=True)
    nn.init.normal_(layer.key.bias, std=3.0)
    torch.testing.assert_close(layer(x, causal=True), before, **EXACT)
    nn.init.normal_(layer.query.bias, std=3.0)
    assert not torch.allclose(layer(x, causal=True), before)


def test_biases_of_attention_are_few():
    with_bias, without = (MultiHeadAttention(8, 2, bias=b) for b in (True, False))
    count = [sum(p.numel() for p in m.parameters()) for m in (with_bias, without)]
    assert count[0] - count[1] == 4 * 8


def test_a_large_number_is_not_minus_infinity():
    """BERT adds -10,000, GPT-2 puts -1e10: alike while a key is left, not with none."""
    query, key, value = torch.randn(3, 1, 4, 8).unbind()
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    scores = query @ key.transpose(1, 2) / math.sqrt(8)  # (B, T, S)
    got = attention(query, key, value, mask)
    bert = (scores + ~mask * -1e4).softmax(-1) @ value
    gpt2 = torch.where(mask, scores, -1e10).softmax(-1) @ value
    for theirs in (bert, gpt2):
        torch.testing.assert_close(got[:, :3], theirs[:, :3], **EXACT)
    assert not got[:, 3].any()
    unmasked = scores.softmax(-1) @ value
    torch.testing.assert_close(bert[:, 3], unmasked[:, 3], **EXACT)
    torch.testing.assert_close(gpt2[:, 3], value.mean(dim=1), **EXACT)


def test_a_text_of_filling_alone():
    """No NaN, in ours or in the reference, and the other text doesn't notice."""
    torch.set_default_dtype(torch.float32)
    config = BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        attn_implementation="eager",
    )
    theirs = BertModel(config, add_pooling_layer=False).eval()
    ids = torch.randint(11, (2, 5))
    real = torch.tensor([[True] * 3 + [False] * 2, [False] * 5])
    ours = BERT(BERTConfig(**SIZE, vocab_size=11)).eval()
    alone = ours(ids[:1], real[:1])
    both = ours(ids, real)
    assert both.isfinite().all()
    torch.testing.assert_close(both[:1], alone)
    assert theirs(ids, attention_mask=real.long()).last_hidden_state.isfinite().all()


def test_turning_pairs_or_halves():
    """Rotary on neighbours is rotary on halves once the matrices' rows are moved."""
    layer, rotary = MultiHeadAttention(8, 2), Rotary(6, 4)
    halves = torch.tensor([0, 2, 1, 3])  # entry i of a pair, then its partner
    x = torch.randn(2, 6, 8)
    angle = torch.arange(6)[:, None] / 10_000 ** (torch.arange(0, 4, 2) / 4)

    def turn_pairs(y):  # neighbours 2i and 2i + 1 form a pair, as numbers of a plane
        plane = torch.view_as_complex(y.unflatten(-1, (2, 2)).contiguous())
        return torch.view_as_real(plane * torch.polar(torch.ones(6, 2), angle)).flatten(
            -2
        )

    query, key = layer.split(layer.query(x)), layer.split(layer.key(x))
    theirs = turn_pairs(query) @ turn_pairs(key).transpose(-1, -2)
    for part in (layer.query, layer.key):
        rows = part.weight.unflatten(0, (2, 4))[:, halves].flatten(0, 1)
        part.weight.data = rows
        part.bias.data = part.bias.unflatten(0, (2, 4))[:, halves].flatten()
    query, key = layer.split(layer.query(x)), layer.split(layer.key(x))
    ours = rotary(query) @ rotary(key).transpose(-1, -2)
    torch.testing.assert_close(ours, theirs, **EXACT)


# -------------------------------------------------------------------------- positions


def test_order_of_sines():
    """All sines before all cosines is the table with its columns moved: one matrix."""
    table = sinusoidal(20, 8)
    theirs = torch.cat((table[:, 0::2], table[:, 1::2]), dim=1)
    torch.testing.assert_close(table @ table.T, theirs @ theirs.T, **EXACT)
    moved = torch.cat((torch.arange(0, 8, 2), torch.arange(1, 8, 2)))
    layer = nn.Linear(8, 5)
    want = layer(table)
    layer.weight.data = layer.weight[:, moved]
    torch.testing.assert_close(layer(theirs), want, **EXACT)


def test_the_slowest_sine():
    """The paper's last wave is a little shorter than 10,000 times the first."""
    slow = 1 / sinusoidal(2, 512)[1, -2].asin().item()
    assert 9_000 < slow < 10_000


# ------------------------------------------------------------------------------ norms


def test_eps_matters_for_small_rows_only():
    """Rows of size one shrink by eps / 2; rows near zero are what eps is for."""
    x = torch.randn(50, 8)
    x = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0)
    gap = [(LayerNorm(8, eps)(x) - x).abs().max().item() for eps in (1e-12, 1e-6, 1e-5)]
    assert gap[0] < 1e-11 and gap[1] < 2e-6 and gap[2] < 2e-5
    small = 1e-3 * x
    assert (LayerNorm(8, 1e-5)(small) - x).abs().max() > 0.5
    assert (LayerNorm(8, 1e-12)(small) - x).abs().max() < 1e-5


# -------------------------------------------------------------------------- beginnings


def test_sizes_at_the_start():
    """Deviations before training: what each family starts from."""
    torch.manual_seed(0)
    wide = {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 500}
    gpt = GPT(GPTConfig(**wide, max_len=100))
    for weight in (gpt.embedding.weight, gpt.positions.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    both = Transformer(TransformerConfig(**wide, max_len=100))
    rows = both.embedding(torch.arange(500)[None])
    assert rows.std().item() == pytest.approx(1.0, rel=0.05)
    up = both.encoder.blocks[0].feed_forward.up.weight
    assert up.abs().max().item() <= math.sqrt(6 / (64 + 256))
    bert = BERT(BERTConfig(**wide))
    widest = bert.embedding.weight.abs().max().item()
    assert widest > 2 * 0.02  # a truncated normal ends there
    vit = ViT(ViTConfig(d_model=64, n_heads=4, n_layers=2, image_size=8, patch_size=4))
    inputs = bert.stack.blocks[0].attention.query.weight
    assert inputs.std().item() == pytest.approx(0.02 * (768 / 64) ** 0.5, rel=0.05)
    assert vit.summary.std().item() == pytest.approx(0.02, rel=0.4)


def test_default_dropouts():
    told = {**SIZE, "vocab_size": 11, "max_len": 6}
    assert GPTConfig(**told).dropout == 0.0
    assert BERTConfig(**told).dropout == TransformerConfig(**told).dropout == 0.1
    assert ViTConfig(**SIZE, image_size=8, patch_size=4).dropout == 0.0


def test_where_dropout_is():
    """On each part's output and on attention's weights, not inside the feed-forward."""
    block = Block(BlockConfig(**SIZE, dropout=0.1))
    assert [n for n, m in block.named_modules() if isinstance(m, Dropout)] == [
        "dropout"
    ]
    assert block.attention.dropout == 0.1
    hidden = FeedForward(8, 32).train()
    x = torch.randn(2, 8)
    assert torch.equal(hidden(x), hidden(x))


# --------------------------------------------------------------------------- the loss


def test_smoothing_over_the_others():
    """Spreading over V - 1 words is ours with the share times V / (V - 1)."""
    vocab_size, share = 7, 0.1
    logits, targets = torch.randn(5, vocab_size), torch.randint(vocab_size, (5,))
    right = F.one_hot(targets, vocab_size).double()
    others = (1 - right) * share / (vocab_size - 1)
    theirs = -((right * (1 - share) + others) * logits.log_softmax(-1)).sum(-1).mean()
    ours = smoothed_cross_entropy(
        logits, targets, share * vocab_size / (vocab_size - 1)
    )
    torch.testing.assert_close(ours, theirs, **EXACT)
    plain = smoothed_cross_entropy(logits, targets, share)
    torch.testing.assert_close(
        plain, F.cross_entropy(logits, targets, label_smoothing=share), **EXACT
    )


# ------------------------------------------------------------------------------- BERT


def test_masks_are_drawn_anew():
    """Each position has its own coin, so the number of hidden words varies."""
    torch.manual_seed(0)
    ids, keep = torch.randint(5, 90, (64, 40)), torch.zeros(64, 40, dtype=torch.bool)
    inputs, targets = mask_words(ids, 3, 90, keep)
    again, _ = mask_words(ids, 3, 90, keep)
    assert not torch.equal(inputs, again)
    hidden = (targets != -100).sum(dim=1)
    assert hidden.unique().numel() > 3
    assert hidden.double().mean().item() == pytest.approx(0.15 * 40, rel=0.15)


def test_the_pooler_is_one_layer_more():
    """What it would say follows from our first row: nothing of the encoder is lost."""
    torch.set_default_dtype(torch.float32)
    theirs = BertModel(
        BertConfig(
            vocab_size=11,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    ).eval()
    said = theirs(torch.randint(11, (2, 5)))
    first = said.last_hidden_state[:, 0]
    torch.testing.assert_close(
        theirs.pooler.dense(first).tanh(), said.pooler_output, atol=1e-6, rtol=0
    )
    names = {
        name.split(".")[0]
        for name, _ in BERT(BERTConfig(**SIZE, vocab_size=11)).named_parameters()
    }
    assert "pooler" not in names


def test_filling_has_a_row_of_its_own():
    """The reference keeps id 0's row at zero; ours is a word like the others."""
    torch.manual_seed(0)
    model = BERT(BERTConfig(**SIZE, vocab_size=11))
    assert model.embedding.weight[0].abs().sum() > 0


# ------------------------------------------------------------------------------- ViT


def test_patches_are_a_convolution():
    images, conv = torch.randn(2, 3, 8, 8), nn.Conv2d(3, 5, 4, stride=4)
    want = conv(images).flatten(2).transpose(1, 2)  # (B, N, D)
    got = patches(images, 4) @ conv.weight.flatten(1).T + conv.bias
    torch.testing.assert_close(got, want, **EXACT)


def test_layer_scale_folds_into_the_matrix_before_it():
    """DINOv2's factor on a part's output equals a scaled last matrix and bias."""
    block, x = Block(BlockConfig(**SIZE)), torch.randn(2, 5, 8)
    scale = torch.randn(2, 8)
    want = x + scale[0] * block.attention(block.norm_1(x))
    want = want + scale[1] * block.feed_forward(block.norm_2(want))
    for factor, last in zip(
        scale, (block.attention.output, block.feed_forward.down), strict=True
    ):
        last.weight.data *= factor[:, None]
        last.bias.data *= factor
    torch.testing.assert_close(block(x), want, **EXACT)


def test_one_size_of_image():
    model = ViT(ViTConfig(**SIZE, image_size=8, patch_size=4))
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, 8, 8\)"):
        model(torch.randn(1, 3, 16, 16))


# ---------------------------------------------------------------------------- loading

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
REFUSED = {
    "GPT2LMHeadModel": (
        GPT2Config(n_embd=8, n_layer=1, n_head=2, scale_attn_by_inverse_layer_idx=True),
        "scale_attn_by_inverse_layer_idx must be False",
    ),
    "LlamaForCausalLM": (
        LlamaConfig(
            **SMALL,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        ),
        "rotary scaling is not supported",
    ),
    "Dinov2Model": (
        Dinov2Config(**SMALL, use_swiglu_ffn=True),
        "use_swiglu_ffn must be False",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_built_is_refused_by_name(name, tmp_path):
    config, message = REFUSED[name]
    config.architectures = [name]
    config.save_pretrained(tmp_path)
    save_file({"none": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


# ------------------------------------------------------------------------- and others


def test_heads_share_the_width():
    """PaLM's heads are narrower than D / H; ours are D / H wide, always."""
    layer = MultiHeadAttention(12, 3)
    assert layer.head_dim == 4
    assert layer.query.weight.shape == (12, 12)


def test_rows_beyond_the_table_are_refused():
    with pytest.raises(ValueError, match="max_len = 4"):
        LearnedPositions(4, 8)(torch.randn(1, 5, 8))
