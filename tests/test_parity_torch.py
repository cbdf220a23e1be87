"""Encoder, decoder and whole model against PyTorch's own, with copied weights.

Outputs and gradients, post-norm and pre-norm, with masks of both sides.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from transformer.block import BlockConfig, Stack
from transformer.encoder_decoder import Decoder, Transformer, TransformerConfig


class Shape(NamedTuple):
    """What an example is made of; S and T differ so that a swap is seen."""

    batch: int
    source: int
    target: int
    d_model: int
    n_heads: int
    d_ff: int
    n_layers: int


SHAPES = [
    Shape(3, 6, 4, 16, 4, 32, 2),
    Shape(2, 3, 7, 24, 3, 40, 1),
    Shape(2, 5, 5, 8, 1, 8, 3),
]
NEAR = {torch.float32: 1e-5, torch.float64: 1e-10}

each_shape = pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda s: "x".join(map(str, s))
)
each_order = pytest.mark.parametrize("order", ["post", "pre"])
each_bend = pytest.mark.parametrize("activation", ["relu", "gelu"])


@pytest.fixture(params=NEAR, ids=lambda dtype: str(dtype)[6:])
def dtype(request) -> Iterator[torch.dtype]:
    """Everything is made in this type, tables of sines included."""
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def config(shape: Shape, order: str, activation: str) -> BlockConfig:
    return BlockConfig(
        d_model=shape.d_model,
        n_heads=shape.n_heads,
        n_layers=shape.n_layers,
        d_ff=shape.d_ff,
        order=order,
        activation=activation,
    )


def rough(module: nn.Module) -> nn.Module:
    """Large random weights, biases and gains: zeros and ones would hide mistakes."""
    torch.manual_seed(0)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.4)
    return module


def theirs_of(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names and matrices as PyTorch has them: query, key and value in one."""
    joined: dict[str, list[Tensor]] = {}
    for name, tensor in ours.items():
        decodes = name.replace("norm_2", "norm_cross") in ours  # has a third norm
        for mine, other in {
            "blocks.": "layers.",
            "cross_attention.": "multihead_attn.",
            "attention.": "self_attn.",
            "output.": "out_proj.",
            "feed_forward.up.": "linear1.",
            "feed_forward.down.": "linear2.",
            "norm_1.": "norm1.",
            "norm_2.": "norm3." if decodes else "norm2.",
            "norm_cross.": "norm2.",
            "query.": "in_proj_",
            "key.": "in_proj_",
            "value.": "in_proj_",
        }.items():
            name = name.replace(mine, other)
        joined.setdefault(name, []).append(tensor)
    return {name: torch.cat(parts) for name, parts in joined.items()}


def layer_options(shape: Shape, order: str, activation: str) -> dict[str, object]:
    return {
        "d_model": shape.d_model,
        "nhead": shape.n_heads,
        "dim_feedforward": shape.d_ff,
        "dropout": 0.0,
        "activation": activation,
        "batch_first": True,
        "norm_first": order == "pre",
    }


def last_norm(shape: Shape, order: str) -> nn.LayerNorm | None:
    return nn.LayerNorm(shape.d_model) if order == "pre" else None


def torch_encoder(shape: Shape, order: str, activation: str) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(**layer_options(shape, order, activation))
    norm = last_norm(shape, order)
    return nn.TransformerEncoder(
        layer, shape.n_layers, norm, enable_nested_tensor=False
    )


def torch_decoder(shape: Shape, order: str, activation: str) -> nn.TransformerDecoder:
    layer = nn.TransformerDecoderLayer(**layer_options(shape, order, activation))
    return nn.TransformerDecoder(layer, shape.n_layers, last_norm(shape, order))


def padded(shape: Shape) -> Tensor:
    """A mask ``(B, S)``, True = real token: the sources have different lengths."""
    lengths = torch.arange(shape.source, shape.source - shape.batch, -1).clamp(min=1)
    return torch.arange(shape.source) < lengths[:, None]


def hidden(length: int) -> Tensor:
    """PyTorch's causal mask: True = may not attend."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)


def expect_equal(
    got: Tensor, want: Tensor, ours: nn.Module, theirs: nn.Module, inputs: list[Tensor]
) -> None:
    """Same output, and the same gradient for every weight and every input."""
    near = NEAR[got.dtype]
    torch.testing.assert_close(got, want, atol=near, rtol=near)
    seed = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    wanted = [*theirs.parameters(), *inputs]
    other = torch.autograd.grad((want * seed.to(want)).sum(), wanted)
    names = [name for name, _ in ours.named_parameters()]
    mine = torch.autograd.grad(
        (got * seed.to(got)).sum(), [*ours.parameters(), *inputs]
    )
    renamed = theirs_of(dict(zip(names, mine, strict=False)))
    for (name, _), gradient in zip(theirs.named_parameters(), other, strict=False):
        size = gradient.abs().max().item()
        # a gradient sums over many positions: its rounding grows with its size
        torch.testing.assert_close(
            renamed.pop(name), gradient, atol=10 * near * max(1.0, size), rtol=0.0
        )
    assert not renamed
    pairs = zip(mine[len(names) :], other[-len(inputs) :], strict=True)
    for gradient, expected in pairs:
        size = expected.abs().max().item()
        torch.testing.assert_close(
            gradient, expected, atol=10 * near * max(1.0, size), rtol=0.0
        )


@each_bend
@each_order
@each_shape
def test_stack_equals_encoder(shape, order, activation, dtype):
    ours = rough(Stack(config(shape, order, activation)))
    theirs = torch_encoder(shape, order, activation)
    theirs.load_state_dict(theirs_of(ours.state_dict()))
    x = torch.randn(shape.batch, shape.source, shape.d_model)
    x.requires_grad_()
    real = padded(shape)
    got = ours(x, mask=real[:, None, None])
    want = theirs(x, src_key_padding_mask=~real)
    expect_equal(got, want, ours, theirs, [x])
    torch.testing.assert_close(ours(x), theirs(x), atol=NEAR[dtype], rtol=NEAR[dtype])


@each_bend
@each_order
@each_shape
def test_decoder_equals_decoder(shape, order, activation, dtype):
    ours = rough(Decoder(config(shape, order, activation)))
    theirs = torch_decoder(shape, order, activation)
    theirs.load_state_dict(theirs_of(ours.state_dict()))
    x = torch.randn(shape.batch, shape.target, shape.d_model)
    memory = torch.randn(shape.batch, shape.source, shape.d_model)
    x.requires_grad_(), memory.requires_grad_()
    real = padded(shape)
    got = ours(x, causal=True, memory=memory, memory_mask=real[:, None, None])
    want = theirs(
        x,
        memory,
        tgt_mask=hidden(shape.target),
        memory_key_padding_mask=~real,
    )
    expect_equal(got, want, ours, theirs, [x, memory])
    near = {"atol": NEAR[dtype], "rtol": NEAR[dtype]}
    torch.testing.assert_close(ours(x, memory=memory), theirs(x, memory), **near)


def sinusoids(length: int, width: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5, entry by entry."""
    bend = (math.sin, math.cos)
    rows = [
        [bend[j % 2](t / 10_000 ** (2 * (j // 2) / width)) for j in range(width)]
        for t in range(length)
    ]
    return torch.tensor(rows, dtype=torch.float64)


@each_bend
@each_order
@each_shape
def test_transformer_equals_transformer(shape, order, activation, dtype):
    """Ids to logits: only nn.Transformer stands between embeddings and head.

    It is given encoder and decoder, since the ones that it makes end with a norm even
    when each layer has normed already.
    """
    s, vocab_size = shape, 13
    ours = Transformer(
        TransformerConfig(
            vocab_size=vocab_size,
            max_len=9,
            d_model=s.d_model,
            n_heads=s.n_heads,
            n_layers=s.n_layers,
            d_ff=s.d_ff,
            dropout=0.0,
            order=order,
            activation=activation,
        )
    )
    rough(ours)
    theirs = nn.Transformer(
        d_model=s.d_model,
        nhead=s.n_heads,
        batch_first=True,
        custom_encoder=torch_encoder(s, order, activation),
        custom_decoder=torch_decoder(s, order, activation),
    )
    weights = ours.state_dict()
    middle = {k: v for k, v in weights.items() if k.startswith(("encoder", "decoder"))}
    theirs.load_state_dict(theirs_of(middle))

    source_ids = torch.randint(vocab_size, (s.batch, s.source))
    target_ids = torch.randint(vocab_size, (s.batch, s.target))
    real = padded(s)
    table = weights["embedding.weight"]

    def rows(ids):
        place = sinusoids(ids.shape[1], s.d_model)
        return table[ids] * math.sqrt(s.d_model) + place.to(dtype)

    mixed = theirs(
        rows(source_ids),
        rows(target_ids),
        tgt_mask=hidden(s.target),
        src_key_padding_mask=~real,
        memory_key_padding_mask=~real,
    )
    near = {"atol": NEAR[dtype], "rtol": NEAR[dtype]}
    got = ours(source_ids, target_ids, source_mask=real)
    torch.testing.assert_close(got, mixed @ table.T, **near)
    torch.testing.assert_close(
        ours.decode(target_ids, ours.encode(source_ids, real), real), got
    )


def test_pytorch_norms_once_more():
    """nn.Transformer's own post-norm stacks end with a norm that the paper has not."""
    assert nn.Transformer(8, 2, 1, 1, 8, batch_first=True).encoder.norm is not None
    assert not list(Stack(config(SHAPES[0], "post", "relu")).norm.parameters())


def test_a_source_of_filling_alone(dtype):
    """Where nobody may be attended to, both add the output's bias and no NaN."""
    shape = Shape(2, 4, 3, 8, 2, 16, 1)
    ours = rough(Decoder(config(shape, "post", "relu")))
    theirs = torch_decoder(shape, "post", "relu")
    theirs.load_state_dict(theirs_of(ours.state_dict()))
    x, memory = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    real = torch.tensor([[True, True, False, False], [False] * 4])
    got = ours(x, causal=True, memory=memory, memory_mask=real[:, None, None])
    want = theirs(x, memory, tgt_mask=hidden(3), memory_key_padding_mask=~real)
    torch.testing.assert_close(got, want, atol=NEAR[dtype], rtol=NEAR[dtype])
