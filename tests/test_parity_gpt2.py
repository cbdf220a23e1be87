"""Our GPT against Hugging Face's GPT-2 on random small models, no download."""

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from transformer.gpt import GPT, GPTConfig


def copy_gpt2(theirs: GPT2LMHeadModel, ours: GPT) -> None:
    """Copy weights; GPT-2 stores its matrices (in, out) and fuses query, key, value."""
    their = theirs.transformer
    new: dict[str, Tensor] = {
        "embedding.weight": their.wte.weight,
        "head.weight": theirs.lm_head.weight,
        "positions.weight": their.wpe.weight,
        "stack.norm.weight": their.ln_f.weight,
        "stack.norm.bias": their.ln_f.bias,
    }
    for i, block in enumerate(their.h):
        to = f"stack.blocks.{i}"
        weights = block.attn.c_attn.weight.T.chunk(3)  # (3D, D) -> three (D, D)
        biases = block.attn.c_attn.bias.chunk(3)
        names = ("query", "key", "value")
        for name, weight, bias in zip(names, weights, biases, strict=True):
            new[f"{to}.attention.{name}.weight"] = weight
            new[f"{to}.attention.{name}.bias"] = bias
        for name, layer in {
            "attention.output": block.attn.c_proj,
            "feed_forward.up": block.mlp.c_fc,
            "feed_forward.down": block.mlp.c_proj,
        }.items():
            new[f"{to}.{name}.weight"] = layer.weight.T
            new[f"{to}.{name}.bias"] = layer.bias
        for name, norm in {"norm_1": block.ln_1, "norm_2": block.ln_2}.items():
            new[f"{to}.{name}.weight"] = norm.weight
            new[f"{to}.{name}.bias"] = norm.bias
    ours.load_state_dict(new)


SHAPES = [(65, 16, 32, 4, 2), (101, 33, 48, 3, 3), (7, 8, 8, 1, 1)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_equal_hugging_face(
    shape: tuple[int, int, int, int, int], tied: bool
) -> None:
    vocab_size, max_len, d_model, n_heads, n_layers = shape
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            n_positions=max_len,
            n_embd=d_model,
            n_head=n_heads,
            n_layer=n_layers,
            tie_word_embeddings=tied,
        )
    ).eval()
    for weight in theirs.parameters():  # zero biases and unit gains would hide mistakes
        torch.nn.init.normal_(weight, std=0.2)
    ours = GPT(
        GPTConfig(
            vocab_size=vocab_size,
            max_len=max_len,
            d_model=d_model,
            n_heads=n_heads,
            n_layers=n_layers,
            tied=tied,
        )
    ).eval()
    copy_gpt2(theirs, ours)
    ids = torch.randint(vocab_size, (3, max_len))  # (B, T)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)

        real = torch.ones_like(ids, dtype=torch.bool)
        real[1, max_len // 2 :] = False  # padding on the right
        expected = theirs(ids, attention_mask=real.long()).logits
        got = ours(ids, mask=real)
        torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=1e-5)
    assert (ours.head.weight is ours.embedding.weight) == tied
