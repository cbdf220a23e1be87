"""ViT against Hugging Face's, the image decoder against PyTorch's layers; the doors."""

import math
import re

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from transformer.positions import sinusoidal
from transformer.vision import (
    Denoiser,
    DenoiserConfig,
    ViT,
    ViTConfig,
    check_images,
    draw,
    from_patches,
    patches,
    resize_positions,
    spoil,
)

pytestmark = pytest.mark.usefixtures("exact")

SIZE = {"image_size": 12, "patch_size": 4, "d_model": 16, "n_heads": 4, "n_layers": 2}


def tiny_vit(**changes):
    """Build one with ``changes`` to SIZE; its weights are far from zero."""
    model = ViT(ViTConfig(**(SIZE | changes))).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    return model


# ------------------------------------------------------------------------- patches


def test_patches_by_hand():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert patches(image, 2)[0].tolist() == expected


def test_patches_are_read_like_a_page_channel_by_channel():
    images = torch.rand(2, 3, 6, 4)
    rows = patches(images, 2)
    assert rows.shape == (2, 6, 12)
    for n, (top, left) in enumerate((i, j) for i in (0, 2, 4) for j in (0, 2)):
        square = images[:, :, top : top + 2, left : left + 2]
        assert torch.equal(rows[:, n], square.flatten(1))


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_patches_times_a_matrix_are_a_convolution(size):
    images, weight = torch.rand(2, 3, 6, 12), torch.rand(5, 3 * size**2)
    slid = F.conv2d(images, weight.view(5, 3, size, size), stride=size)
    torch.testing.assert_close(
        patches(images, size) @ weight.T,
        slid.flatten(2).transpose(1, 2),
        atol=1e-10,
        rtol=0,
    )


@pytest.mark.parametrize(
    ("shape", "size"),
    [((1, 3, 6, 5), 2), ((1, 3, 5, 6), 2), ((3, 6, 6), 2), ((1, 1, 4, 4), 0)],
)
def test_patches_refuse(shape, size):
    message = f"h and w divisible by {size}, got {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        patches(torch.zeros(shape), size)


# ----------------------------------------------------------------------- the model

NAMES = {
    "vit.embeddings.patch_embeddings.projection": "patch",
    "vit.embeddings.position_embeddings": "positions.weight",
    "vit.embeddings.cls_token": "summary",
    "vit.layernorm": "stack.norm",
    "vit.layers": "stack.blocks",
    "layernorm_before": "norm_1",
    "layernorm_after": "norm_2",
    "attention.q_proj": "attention.query",
    "attention.k_proj": "attention.key",
    "attention.v_proj": "attention.value",
    "attention.o_proj": "attention.output",
    "mlp.fc1": "feed_forward.up",
    "mlp.fc2": "feed_forward.down",
    "classifier": "head",
}


def pair(n_classes, **changes):
    """Hugging Face's ViT with random weights, and ours with the same."""
    choices = SIZE | changes
    theirs = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=choices["d_model"],
            num_hidden_layers=choices["n_layers"],
            num_attention_heads=choices["n_heads"],
            intermediate_size=4 * choices["d_model"],
            image_size=choices["image_size"],
            patch_size=choices["patch_size"],
            num_channels=choices.get("n_channels", 3),
            layer_norm_eps=1e-6,
            num_labels=n_classes or 2,
        )
    ).eval()
    for weight in theirs.parameters():
        nn.init.normal_(weight, std=0.3)
    ours = ViT(ViTConfig(**choices, n_classes=n_classes)).eval()
    new = {}
    for name, value in theirs.state_dict().items():
        for their, our in NAMES.items():
            name = name.replace(their, our)
        if n_classes or not name.startswith("head"):
            new[name] = value.reshape(ours.state_dict()[name].shape)
    ours.load_state_dict(new)
    return theirs, ours


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_channels": 1, "image_size": 8, "patch_size": 2}, {"patch_size": 12}],
    ids=str,
)
@torch.no_grad()
def test_equals_hugging_face(changes):
    theirs, ours = pair(5, **changes)
    images = torch.randn(3, ours.config.n_channels, *2 * [ours.config.image_size])
    torch.testing.assert_close(
        ours(images), theirs(images).logits, atol=1e-10, rtol=1e-10
    )
    theirs, ours = pair(0, **changes)
    hidden = theirs.vit(images).last_hidden_state
    assert ours.head is None
    torch.testing.assert_close(ours(images), hidden, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(
        ours.float()(images.float()), hidden.float(), atol=1e-5, rtol=1e-5
    )


def test_without_positions_order_is_lost_and_with_them_it_is_not():
    model = tiny_vit(n_classes=3)
    images = torch.randn(2, 3, 12, 12)
    across = images.unflatten(3, (3, 4)).flip(3).flatten(3)  # the columns of patches
    with torch.no_grad():
        assert (model(images) - model(across)).abs().max() > 1e-3
        model.positions.weight.zero_()
        torch.testing.assert_close(model(images), model(across), atol=1e-10, rtol=0)


def test_every_parameter_learns():
    model = ViT(ViTConfig(**SIZE, n_classes=3))
    model(torch.randn(2, 3, 12, 12)).square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        if not name.endswith("key.bias"):  # the softmax doesn't see it
            assert weight.grad.abs().max() > 0, name


def test_start():
    torch.manual_seed(0)
    model = ViT(ViTConfig(**(SIZE | {"d_model": 128}), n_classes=3))
    assert model.positions.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.summary.std().item() == pytest.approx(0.02, rel=0.3)
    layer = model.stack.blocks[1].feed_forward.up  # Glorot and Bengio 2010
    assert layer.weight.std().item() == pytest.approx((2 / (5 * 128)) ** 0.5, rel=0.1)
    assert not layer.bias.any() and not model.head.bias.any()


@pytest.mark.parametrize(
    "shape", [(2, 3, 12, 8), (2, 1, 12, 12), (3, 12, 12), (2, 3, 16, 16)]
)
def test_images_of_another_shape_are_refused(shape):
    message = f"images must have shape (B, 3, 12, 12), got {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_vit()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 5}, "image_size must be divisible by patch_size, got 12 and 5"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"n_channels": 0}, "n_channels must be at least 1, got 0"),
        ({"n_classes": -1}, "n_classes must be at least 0, got -1"),
        ({"n_heads": 3}, "d_model must be divisible by n_heads, got 16 and 3"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ViTConfig(**(SIZE | changes))


def test_size_of_the_papers_base_model():
    """ViT-B/16, 224 pixels, a thousand classes: 86,567,656 parameters."""
    config = ViTConfig(
        image_size=224, patch_size=16, d_model=768, n_heads=12, n_layers=12,
        n_classes=1000,
    )  # fmt: skip
    assert config.n_patches == 196
    with torch.device("meta"):
        model = ViT(config)
    assert sum(p.numel() for p in model.parameters()) == 86_567_656


# =============================================================== drawing from words

DRAW = {
    "image_size": 6,
    "patch_size": 2,
    "n_channels": 2,
    "vocab_size": 7,
    "max_len": 5,
    "d_model": 8,
    "n_heads": 2,
    "n_layers": 2,
}
IDS = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 1, 2]])
MASK = torch.tensor([[True, True, True, False, False], [True] * 5])
PROGRESS = torch.tensor([0.25, 0.7])


def denoiser(**changes):
    """A small one whose weights are far from zero."""
    model = Denoiser(DenoiserConfig(**(DRAW | changes))).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.5)
    return model


def pictures(seed=1):
    return torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------- patches


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 8, 2)])
def test_patches_come_back(shape):
    images = torch.arange(math.prod(shape)).view(shape)
    assert torch.equal(from_patches(patches(images, 2), 2, shape[-1] // 2), images)


@pytest.mark.parametrize("shape", [(2, 6), (1, 5, 4), (1, 6, 3)])
def test_patches_that_fill_no_rectangle(shape):
    with pytest.raises(ValueError, match=r"rows must have shape \(B, N, C\*2\*2\)"):
        from_patches(torch.zeros(shape), 2, 2)


def test_no_patch_across():
    with pytest.raises(ValueError, match="divisible by 0"):
        from_patches(torch.zeros(1, 4, 4), 2, 0)


def test_spoil_is_a_straight_line():
    images, noise = torch.randn(2, 3, 1, 4, 4).unbind()
    progress = torch.tensor([0.0, 0.25, 1.0])
    mixed = spoil(images, noise, progress)
    torch.testing.assert_close(mixed[0], noise[0])
    torch.testing.assert_close(mixed[1], 0.75 * noise[1] + 0.25 * images[1])
    torch.testing.assert_close(mixed[2], images[2])


# ------------------------------------------------------------------------- the model


def copy_layer(theirs, ours):
    """Our decoder block's weights into PyTorch's decoder layer."""
    for attention, block in (
        (theirs.self_attn, ours.attention),
        (theirs.multihead_attn, ours.cross_attention),
    ):
        parts = (block.query, block.key, block.value)
        attention.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        attention.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
        attention.out_proj.load_state_dict(block.output.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward.up.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.down.state_dict())
    for name, norm in zip(
        ("norm1", "norm2", "norm3"),
        (ours.norm_1, ours.norm_cross, ours.norm_2),
        strict=True,
    ):
        getattr(theirs, name).load_state_dict(norm.state_dict())


def reference(model, images, progress, ids, mask):
    """The same guess by nn.TransformerDecoder, and by a convolution for the patches."""
    c = model.config
    layer = nn.TransformerDecoderLayer(
        c.d_model, c.n_heads, 4 * c.d_model, 0.0, "gelu", c.norm_eps, True, True
    )
    norm = nn.LayerNorm(c.d_model, c.norm_eps)
    norm.load_state_dict(model.decoder.norm.state_dict())
    decoder = nn.TransformerDecoder(layer, c.n_layers, norm).eval()
    with torch.no_grad():
        for theirs, ours in zip(decoder.layers, model.decoder.blocks, strict=True):
            copy_layer(theirs, ours)
    p = c.patch_size
    kernel = model.patch.weight.view(c.d_model, c.n_channels, p, p)
    x = nn.functional.conv2d(images, kernel, model.patch.bias, stride=p)
    x = x.flatten(2).mT + model.positions.weight
    table = sinusoidal(1001, c.d_model)
    for b, share in enumerate(progress.tolist()):
        place = table[round(1000 * share)].to(x.dtype)
        x[b] += model.progress.weight @ place + model.progress.bias
    letters = model.embedding.weight[ids] + model.text_positions.weight
    x = decoder(x, letters, memory_key_padding_mask=~mask)
    x = model.head(x)
    out = torch.zeros_like(images)
    across = c.image_size // p
    for n in range(c.n_patches):
        i, j = p * (n // across), p * (n % across)
        out[:, :, i : i + p, j : j + p] = x[:, n].view(-1, c.n_channels, p, p)
    return out


@torch.no_grad()
def test_denoiser_equals_pytorch():
    model, images = denoiser(), pictures().double()
    ours = model(images, PROGRESS.double(), IDS, MASK)
    theirs = reference(model, images, PROGRESS.double(), IDS, MASK)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


@torch.no_grad()
def test_letters_behind_the_mask_change_nothing():
    model, images = denoiser(), pictures().double()
    other = IDS.masked_fill(~MASK, 6)
    guess = model(images, PROGRESS, IDS, MASK)
    torch.testing.assert_close(model(images, PROGRESS, other, MASK), guess)
    assert not torch.allclose(model(images, PROGRESS, other), guess)


@torch.no_grad()
def test_a_hidden_word_is_no_word():
    model, images = denoiser(), pictures().double()
    hidden = torch.zeros_like(MASK)
    guess = model(images, PROGRESS, IDS, hidden)
    assert guess.isfinite().all()
    torch.testing.assert_close(model(images, PROGRESS, IDS.flip(0), hidden), guess)


@torch.no_grad()
def test_later_patches_are_seen():
    model, images = denoiser(), pictures()
    changed = images.clone()
    changed[..., -1, -1] += 1
    before, after = (model(x, PROGRESS, IDS, MASK) for x in (images, changed))
    assert not torch.allclose(before[..., 0, 0], after[..., 0, 0])


def test_gradients_reach_every_parameter():
    model = denoiser()
    model(pictures(), PROGRESS, IDS, MASK).square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.any(), name


# -------------------------------------------------------------------------- the walk


class Line(nn.Module):
    """A guess that depends on where it is asked from."""

    def forward(self, images, progress, ids, mask=None):
        return images * (1 - progress)[:, None, None, None] + 1


def test_draw_by_hand():
    x = torch.full((1, 1, 1, 1), 2.0)
    # from 2: guess 3, a third of the way: 7/3; guess 7/3 * 2/3 + 1 = 23/9, half: 22/9;
    # guess 22/9 / 3 + 1 = 49/27, all of it
    drawn = draw(Line(), IDS[:1], x, steps=3)
    torch.testing.assert_close(drawn, torch.full_like(x, 49 / 27))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_perfect_guess_is_reached(steps):
    goal, noise = torch.randn(2, 3, 1, 4, 4).unbind()

    class Oracle(nn.Module):
        def forward(self, images, progress, ids, mask=None):
            return goal

    torch.testing.assert_close(draw(Oracle(), IDS, noise, None, steps), goal)


def test_draw_leaves_the_mode_and_takes_no_gradient():
    model = denoiser(dropout=0.5).train()
    first, second = (draw(model, IDS, pictures(), MASK, steps=2) for _ in range(2))
    assert torch.equal(first, second), "dropout must be off while drawing"
    assert model.training and not first.requires_grad


# --------------------------------------------------------------------- the positions


def test_positions_keep_their_grid():
    table = torch.randn(1 + 16, 6)
    torch.testing.assert_close(resize_positions(table, 4), table, atol=1e-10, rtol=0)


def test_positions_resized_equal_hugging_face():
    from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

    theirs = Dinov2Embeddings(
        transformers.Dinov2Config(hidden_size=8, image_size=16, patch_size=4)
    )
    nn.init.normal_(theirs.position_embeddings)
    x = torch.zeros(1, 1 + 9, 8)
    expected = theirs.interpolate_pos_encoding(x, 12, 12)[0]
    ours = resize_positions(theirs.position_embeddings[0], 3)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1 + 5, 4), (1, 17, 4)])
def test_positions_that_are_no_square(shape):
    with pytest.raises(ValueError, match=r"table must have shape \(1 \+ N, D\)"):
        resize_positions(torch.zeros(shape), 2)


def test_positions_for_no_grid():
    with pytest.raises(ValueError, match="across be at least 1"):
        resize_positions(torch.zeros(5, 4), 0)


# ------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"max_len": 0}, "max_len must be at least 1, got 0"),
        ({"n_classes": 3}, "n_classes must be 0 to draw, got 3"),
        ({"patch_size": 4}, "image_size must be divisible by patch_size"),
    ],
)
def test_a_configuration_that_cannot_be_built(changes, message):
    with pytest.raises(ValueError, match=message):
        DenoiserConfig(**(DRAW | changes))


def test_parallel_blocks_are_refused():
    with pytest.raises(ValueError, match="order must be 'post' or 'pre'"):
        Denoiser(DenoiserConfig(**DRAW, order="parallel"))


def test_images_of_another_shape():
    with pytest.raises(ValueError, match=r"images must have shape \(B, 2, 6, 6\)"):
        denoiser()(torch.zeros(2, 1, 6, 6), PROGRESS, IDS)


def test_images_of_bytes():
    with pytest.raises(TypeError, match=r"floating point, got torch\.uint8"):
        check_images(torch.zeros(1, 2, 6, 6, dtype=torch.uint8), DenoiserConfig(**DRAW))


def test_progress_of_another_shape():
    with pytest.raises(ValueError, match=r"progress must have shape \(2,\)"):
        denoiser()(pictures(), torch.tensor(0.5), IDS)


@pytest.mark.parametrize("outside", [-0.1, 1.1])
def test_progress_outside(outside):
    with pytest.raises(IndexError):
        denoiser()(pictures(), torch.full((2,), outside), IDS)


def test_a_name_too_long():
    with pytest.raises(ValueError, match="at most max_len = 5 positions, got 6"):
        denoiser()(pictures(), PROGRESS, torch.zeros(2, 6, dtype=torch.long))


def test_no_steps():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        draw(denoiser(), IDS, pictures(), steps=0)
