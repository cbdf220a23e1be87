"""The block and the stack against PyTorch, Hugging Face and plain formulas."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, PhiConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from transformer.block import Block, BlockConfig, Stack, make_norm
from transformer.masks import causal_mask
from transformer.norm import LayerNorm, RMSNorm

EXACT = {"atol": 1e-10, "rtol": 0}
SHAPE = {"d_model": 16, "n_heads": 4, "n_layers": 2}


pytestmark = pytest.mark.usefixtures("exact")


def rough(module):
    """No weight at zero or one, which could hide a mistake."""
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3)
    return module.eval().requires_grad_(False)


def joined(block):
    parts = (block.attention.query, block.attention.key, block.attention.value)
    return torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])


def pytorch_twin(block, order):
    theirs = nn.TransformerEncoderLayer(
        16, 4, 64, dropout=0, batch_first=True, norm_first=order == "pre"
    )
    weight, bias = joined(block)
    state = {"self_attn.in_proj_weight": weight, "self_attn.in_proj_bias": bias}
    for name, layer in {
        "self_attn.out_proj": block.attention.output,
        "linear1": block.feed_forward.up,
        "linear2": block.feed_forward.down,
        "norm1": block.norm_1,
        "norm2": block.norm_2,
    }.items():
        state |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
    theirs.load_state_dict(state)
    return theirs.eval()


# ---------------------------------------------------------------- one block


@pytest.mark.parametrize("order", ["post", "pre"])
def test_equals_pytorch(order):
    block = rough(Block(BlockConfig(**SHAPE, activation="relu", order=order)))
    theirs, x = pytorch_twin(block, order), torch.randn(3, 7, 16)
    torch.testing.assert_close(block(x), theirs(x), **EXACT)
    hidden = ~causal_mask(7, 7)
    want = theirs(x, src_mask=hidden)
    torch.testing.assert_close(block(x, causal=True), want, **EXACT)

    real = torch.ones(3, 7, dtype=torch.bool)
    real[1, 4:] = False
    want = theirs(x, src_key_padding_mask=~real)
    got = block(x, mask=real[:, None, None])
    torch.testing.assert_close(got[real], want[real], **EXACT)

    want = theirs(x, src_mask=hidden, src_key_padding_mask=~real)
    got = block(x, mask=real[:, None, None], causal=True)
    torch.testing.assert_close(got[real], want[real], **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_gpt2(dtype):
    block = rough(Block(BlockConfig(**SHAPE)))
    config = GPT2Config(n_embd=16, n_head=4, attn_implementation="sdpa")
    theirs = GPT2Block(config, layer_idx=0)
    weight, bias = joined(block)
    state = {"attn.c_attn.weight": weight.T, "attn.c_attn.bias": bias}
    for name, layer in {
        "attn.c_proj": block.attention.output,
        "mlp.c_fc": block.feed_forward.up,
        "mlp.c_proj": block.feed_forward.down,
    }.items():
        state |= {f"{name}.weight": layer.weight.T, f"{name}.bias": layer.bias}
    for name, layer in {"ln_1": block.norm_1, "ln_2": block.norm_2}.items():
        state |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
    theirs.load_state_dict(state)
    block, theirs = block.to(dtype), theirs.to(dtype).eval()
    x = torch.randn(3, 7, 16, dtype=dtype)
    want = theirs(x)
    want = want[0] if isinstance(want, tuple) else want
    near = EXACT if dtype is torch.float64 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(block(x, causal=True), want, **near)


def test_parallel_equals_phi():
    """Phi's block is parallel with one norm; turned by nothing, it has no rotary."""
    block = rough(Block(BlockConfig(**SHAPE, order="parallel")))
    config = PhiConfig(
        hidden_size=16,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_act="gelu_new",
        attn_implementation="sdpa",
    )
    theirs = PhiDecoderLayer(config, layer_idx=0).eval()
    state = {}
    for name, layer in {
        "self_attn.q_proj": block.attention.query,
        "self_attn.k_proj": block.attention.key,
        "self_attn.v_proj": block.attention.value,
        "self_attn.dense": block.attention.output,
        "mlp.fc1": block.feed_forward.up,
        "mlp.fc2": block.feed_forward.down,
        "input_layernorm": block.norm_1,
    }.items():
        state |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
    theirs.load_state_dict(state)
    x = torch.randn(3, 7, 16)
    width = theirs.self_attn.rotary_ndims
    still = (torch.ones(1, 7, width), torch.zeros(1, 7, width))
    want = theirs(x, attention_mask=None, position_embeddings=still)
    want = want[0] if isinstance(want, tuple) else want
    torch.testing.assert_close(block(x, causal=True), want, **EXACT)


def test_llama_style_block_by_formula():
    """RMS norms, gated network, shared keys, no biases: from the raw matrices."""
    config = BlockConfig(
        **SHAPE, n_kv_heads=2, d_ff=24, activation="swiglu", norm="rms", bias=False
    )
    block, x = rough(Block(config)), torch.randn(2, 5, 16)
    w = block.state_dict()
    assert not any("bias" in name for name in w)

    def rms(x, name):
        return (
            x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]
        )

    normed = rms(x, "norm_1")
    query, key, value = (
        normed @ w[f"attention.{name}.weight"].T for name in ("query", "key", "value")
    )
    heads = []
    for h in range(4):
        q, own = query[..., 4 * h : 4 * h + 4], slice(4 * (h // 2), 4 * (h // 2) + 4)
        scores = q @ key[..., own].transpose(1, 2) / 2  # (B, T, S)
        heads.append(scores.softmax(-1) @ value[..., own])
    x1 = x + torch.cat(heads, dim=-1) @ w["attention.output.weight"].T
    normed = rms(x1, "norm_2")
    gate, up = (normed @ w[f"feed_forward.{n}.weight"].T for n in ("gate", "up"))
    want = x1 + (gate * gate.sigmoid() * up) @ w["feed_forward.down.weight"].T
    torch.testing.assert_close(block(x), want, **EXACT)


@pytest.mark.parametrize("order", ["post", "pre", "parallel"])
def test_each_part_is_dropped_out(order):
    """With everything after the parts dropped, only the stream is left."""
    block = Block(BlockConfig(**SHAPE, dropout=0.5, order=order))
    x = torch.randn(2, 5, 16)
    calm = block.eval()(x)
    torch.testing.assert_close(block(x), calm)
    block.train()
    block.attention.dropout = 0.0  # leave the dropout inside attention out of it
    block.dropout.p = 1.0 - 1e-12
    want = {"post": F.layer_norm(F.layer_norm(x, (16,)), (16,))}.get(order, x)
    torch.testing.assert_close(block(x), want)


# ---------------------------------------------------------------- the stack


@pytest.mark.parametrize("order", ["post", "pre", "parallel"])
def test_stack_is_its_blocks_in_order(order):
    stack = rough(Stack(BlockConfig(**SHAPE | {"n_layers": 3}, order=order)))
    x = torch.randn(2, 5, 16)
    first, second, third = stack.blocks
    want = third(second(first(x, causal=True), causal=True), causal=True)
    if order != "post":
        want = F.layer_norm(want, (16,), stack.norm.weight, stack.norm.bias)
    else:
        assert not list(stack.norm.parameters())
    torch.testing.assert_close(stack(x, causal=True), want, **EXACT)
    pointers = [p.data_ptr() for b in stack.blocks for p in b.parameters()]
    assert len(set(pointers)) == len(pointers), "blocks share weights"


def test_stack_hands_the_mask_to_every_block():
    stack, x = rough(Stack(BlockConfig(**SHAPE))), torch.randn(2, 5, 16)
    mask = torch.eye(5, dtype=torch.bool)  # every row alone
    alone = torch.cat([stack(x[:, t : t + 1]) for t in range(5)], dim=1)
    torch.testing.assert_close(stack(x, mask=mask), alone, **EXACT)


@pytest.mark.parametrize("order", ["pre", "parallel"])
def test_the_stream_is_a_sum(order):
    """Without the last norm, output = input + what each part added."""
    stack, x = rough(Stack(BlockConfig(**SHAPE, order=order))), torch.randn(2, 5, 16)
    said = []
    for module in stack.modules():
        if type(module).__name__ in ("MultiHeadAttention", "FeedForward"):
            module.register_forward_hook(lambda _m, _x, out: said.append(out))
    seen = []
    stack.norm.register_forward_hook(lambda _m, inputs, _out: seen.append(inputs[0]))
    stack(x)
    assert len(said) == 4
    torch.testing.assert_close(seen[0], x + sum(said), **EXACT)


def test_parameters_by_formula():
    """A block has 12 D^2 + 13 D parameters; a parallel one 2 D fewer."""
    count = {
        order: sum(
            p.numel() for p in Block(BlockConfig(**SHAPE, order=order)).parameters()
        )
        for order in ("post", "pre", "parallel")
    }
    assert count["post"] == count["pre"] == 12 * 16**2 + 13 * 16
    assert count["parallel"] == count["pre"] - 2 * 16


@pytest.mark.slow
def test_compiles_in_one_graph():
    stack, x = rough(Stack(BlockConfig(**SHAPE))), torch.randn(2, 5, 16)
    compiled = torch.compile(stack, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, causal=True), stack(x, causal=True))


# ------------------------------------------------------------- configuration


def sizes(config):
    block = Block(config)
    return block.feed_forward.up.out_features, block.attention.n_kv_heads


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_what_is_not_given_follows_from_the_rest(activation):
    config = BlockConfig(**SHAPE, activation=activation)
    assert sizes(config) == (64, 4)
    assert sizes(replace(config, d_model=32, n_heads=8)) == (128, 8)
    given = replace(config, d_ff=10, n_kv_heads=2)
    assert sizes(given) == sizes(replace(given, d_model=32, n_heads=8)) == (10, 2)
    with pytest.raises(AttributeError):
        config.d_model = 3


def test_norms():
    assert isinstance(make_norm(BlockConfig(**SHAPE)), LayerNorm)
    assert isinstance(make_norm(BlockConfig(**SHAPE, norm="rms")), RMSNorm)
    assert make_norm(BlockConfig(**SHAPE, bias=False)).bias is None
    assert make_norm(BlockConfig(**SHAPE)).bias is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 3}, "d_model must be divisible by n_heads, got 16 and 3"),
        ({"n_kv_heads": 3}, "n_heads must be divisible by n_kv_heads, got 4 and 3"),
        ({"n_heads": 0}, "n_heads must be at least 1, got 0"),
        ({"n_kv_heads": -1}, "n_kv_heads must be at least 0, got -1"),
        ({"d_model": 0}, "d_model must be at least 1, got 0"),
        ({"d_ff": -4}, "d_ff must be at least 0, got -4"),
        ({"n_layers": 0}, "n_layers must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"order": "sandwich"}, r"order must be one of \('post', 'pre', 'parallel'\)"),
        ({"norm": "batch"}, r"norm must be one of \('layer', 'rms'\), got 'batch'"),
        ({"activation": "tanh"}, "activation must be one of .*'swiglu'.*, got 'tanh'"),
    ],
)
def test_bad_choices_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        BlockConfig(**SHAPE | change)


@pytest.mark.parametrize("order", ["post", "pre", "parallel"])
@pytest.mark.parametrize("shape", [(2, 5, 8), (5, 16)], ids=str)
def test_rows_of_the_wrong_width_are_named(order, shape):
    block = Block(BlockConfig(**SHAPE, order=order))
    message = rf"x must have shape \(B, T, 16\), got \({', '.join(map(str, shape))}\)"
    with pytest.raises(ValueError, match=message):
        block(torch.randn(shape))


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_the_number_under_the_root_is_the_configurations(norm):
    """Rows so small that eps decides."""
    made = make_norm(BlockConfig(**SHAPE, norm=norm, norm_eps=0.25))
    x = 1e-3 * torch.randn(3, 16)
    centred = x - x.mean(-1, keepdim=True) if norm == "layer" else x
    want = centred / (centred.square().mean(-1, keepdim=True) + 0.25).sqrt()
    torch.testing.assert_close(made(x), want, **EXACT)
