"""What holds for every family: one set of parts, and the manners of a good module."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from transformer.bert import BERT, BERTConfig, MaskedLM, TextClassifier, TokenClassifier
from transformer.block import Block, Stack
from transformer.dropout import Dropout
from transformer.embeddings import TokenEmbedding
from transformer.encoder_decoder import (
    Decoder,
    DecoderBlock,
    Transformer,
    TransformerConfig,
)
from transformer.feed_forward import FeedForward
from transformer.gpt import GPT, GPTConfig, Loadable
from transformer.multi_head import MultiHeadAttention
from transformer.norm import LayerNorm
from transformer.output_head import OutputHead
from transformer.positions import LearnedPositions, SinusoidalPositions
from transformer.pretrained import Whisper, WhisperConfig
from transformer.vision import Denoiser, DenoiserConfig, ViT, ViTConfig

SIZE = {"d_model": 8, "n_heads": 2, "n_layers": 2, "dropout": 0.1}
TEXT = {**SIZE, "vocab_size": 11, "max_len": 6}
IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])  # (B, S)
REAL = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])  # (B, S)
SHORT = torch.tensor([[9, 8, 7], [6, 5, 4]])  # (B, T)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)  # (B, C, h, w)


def bert() -> BERT:
    return BERT(BERTConfig(**TEXT))


# A model of each family and a batch for it.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "GPT": (lambda: GPT(GPTConfig(**TEXT)), (IDS, REAL)),
    "BERT": (bert, (IDS, REAL)),
    "MaskedLM": (lambda: MaskedLM(bert()), (IDS, REAL)),
    "TextClassifier": (lambda: TextClassifier(bert(), 3), (IDS, REAL)),
    "TokenClassifier": (lambda: TokenClassifier(bert(), 3), (IDS, REAL)),
    "Transformer": (
        lambda: Transformer(TransformerConfig(**TEXT)),
        (IDS, SHORT, REAL),
    ),
    "ViT": (
        lambda: ViT(ViTConfig(**SIZE, image_size=8, patch_size=4, n_classes=3)),
        (IMAGES,),
    ),
    "Denoiser": (
        lambda: Denoiser(DenoiserConfig(**TEXT, image_size=8, patch_size=4)),
        (IMAGES, torch.tensor([0.0, 0.5]), IDS, REAL),
    ),
    "Whisper": (
        lambda: Whisper(WhisperConfig(**TEXT, n_mels=3, max_source=4)),
        (IMAGES[:, :, 0], SHORT),  # three bands, eight frames
    ),
}
OUTPUTS = {
    "GPT": (2, 5, 11),
    "BERT": (2, 5, 8),
    "MaskedLM": (2, 5, 11),
    "TextClassifier": (2, 3),
    "TokenClassifier": (2, 5, 3),
    "Transformer": (2, 3, 11),
    "ViT": (2, 3),
    "Denoiser": (2, 3, 8, 8),
    "Whisper": (2, 3, 11),
}
FOUR = ("GPT", "BERT", "Transformer", "ViT")  # one of each architecture

each_family = pytest.mark.parametrize("name", FAMILIES)
each_architecture = pytest.mark.parametrize("name", FOUR)


def make(name: str) -> nn.Module:
    """Build the family's model, the same weights each time, no dropout."""
    torch.manual_seed(0)
    return FAMILIES[name][0]().eval()


# ---------------------------------------------------------------------- the same parts

PARTS = {Stack, Block, MultiHeadAttention, FeedForward, LayerNorm, Dropout}
ENDS = {TokenEmbedding, LearnedPositions, SinusoidalPositions, OutputHead}
PLAIN = {nn.Linear, nn.ModuleList, nn.Identity}


def classes(model: nn.Module) -> set[type]:
    """Return the classes of what the model is made of, itself left out."""
    return {type(module) for module in model.modules()} - {type(model)}


@each_architecture
def test_one_set_of_parts(name):
    """The very same classes; a decoder that looks elsewhere adds two made of them."""
    extra = {Decoder, DecoderBlock} if name == "Transformer" else set()
    assert classes(make(name)) - ENDS - PLAIN == PARTS | extra
    assert isinstance(make(name), Loadable)


@pytest.mark.parametrize("name", ["Denoiser", "Whisper"])
def test_what_draws_and_what_listens_have_no_other_parts(name):
    """A decoder alone, and both stacks behind two convolutions."""
    stacks = {Stack, Block} if name == "Whisper" else set()
    parts = PARTS - {Stack, Block} | {Decoder, DecoderBlock} | stacks
    assert classes(make(name)) - ENDS - PLAIN - {nn.Conv1d} == parts


def test_a_looking_decoder_is_those_parts_again():
    assert issubclass(DecoderBlock, Block)
    assert issubclass(Decoder, Stack)
    blocks = [m for m in make("Transformer").modules() if type(m) is DecoderBlock]
    assert {type(part) for block in blocks for part in block.children()} == {
        MultiHeadAttention,
        FeedForward,
        LayerNorm,
        Dropout,
    }
    own = set(dict(blocks[0].named_children())) - set(
        dict(make("GPT").stack.blocks[0].named_children())
    )
    assert own == {"cross_attention", "norm_cross"}


def test_only_the_mask_parts_gpt_from_an_encoder():
    """One stack of weights: causal it is a GPT's, two-way a BERT's."""
    gpt = make("GPT")
    two_way = Stack(gpt.config).eval()
    two_way.load_state_dict(gpt.stack.state_dict())
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(two_way(x, causal=True), gpt.stack(x, causal=True))
    assert not torch.allclose(two_way(x)[:, :-1], gpt.stack(x, causal=True)[:, :-1])


# ------------------------------------------------------------------ who sees what


def changed(name: str, *batches: tuple[Tensor, ...]) -> Tensor:
    """Return where the outputs of two batches differ."""
    model = make(name)
    with torch.no_grad():
        first, second = (model(*batch) for batch in batches)
    return ~torch.isclose(first, second, atol=1e-6, rtol=0).all(dim=-1)


@pytest.mark.parametrize("name", ["BERT", "MaskedLM", "TokenClassifier", "GPT"])
def test_filling_changes_nothing(name):
    """What stands where the mask is False can't be told from a real token's row."""
    other = torch.where(REAL, IDS, 9)
    assert not changed(name, (IDS, REAL), (other, REAL))[REAL].any()
    if name != "GPT":  # causality hides what follows anyway
        assert changed(name, (IDS,), (other,))[1, :3].all()


def test_filling_of_a_source_changes_nothing():
    other = torch.where(REAL, IDS, 9)
    assert not changed("Transformer", (IDS, SHORT, REAL), (other, SHORT, REAL)).any()
    assert changed("Transformer", (IDS, SHORT), (other, SHORT))[1].all()


def test_a_batch_of_unequal_texts_is_each_alone():
    """Padding is only a way to batch: a short text alone gives the same rows."""
    model, encoder = make("Transformer"), make("BERT")
    alone = encoder(IDS[1:, :3])
    torch.testing.assert_close(encoder(IDS, REAL)[1:, :3], alone)
    alone = model(IDS[1:, :3], SHORT[1:])
    torch.testing.assert_close(model(IDS, SHORT, REAL)[1:], alone)


@pytest.mark.parametrize(("name", "sees"), [("GPT", False), ("BERT", True)])
def test_who_sees_the_last_word(name, sees):
    other = IDS.clone()
    other[:, -1] = 9
    seen = changed(name, (IDS,), (other,))
    assert seen[:, -1].all()
    assert bool(seen[:, :-1].all()) == bool(seen[:, :-1].any()) == sees


def test_the_target_is_read_forwards_and_the_source_both_ways():
    later, source = SHORT.clone(), IDS.clone()
    later[:, 2], source[:, -1] = 1, 9
    seen = changed("Transformer", (IDS, SHORT), (IDS, later))
    assert seen.tolist() == [[False, False, True]] * 2
    assert changed("Transformer", (IDS, SHORT), (source, SHORT)).all()


def test_texts_of_a_batch_do_not_mix():
    for name in FOUR:
        batch = FAMILIES[name][1]
        torch.testing.assert_close(
            make(name)(*batch)[1:], make(name)(*(part[1:] for part in batch))
        )


# ------------------------------------------------------------------- good manners


@each_family
def test_shape(name):
    assert make(name)(*FAMILIES[name][1]).shape == OUTPUTS[name]


@pytest.mark.slow
@each_architecture
def test_compiles_in_one_graph(name):
    model, batch = make(name), FAMILIES[name][1]
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*batch), model(*batch))


@each_family
def test_half_precision(name):
    """Autocast's numbers are near the wide ones, and gradients are finite."""
    model, batch = make(name), FAMILIES[name][1]
    wide = model(*batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = model(*batch)
    torch.testing.assert_close(narrow.float(), wide, atol=0.1, rtol=0.1)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(*batch).float().square().mean()
    loss.backward()
    for label, weight in model.named_parameters():
        if "segments" not in label:
            assert weight.grad is not None, label
        assert weight.grad is None or weight.grad.isfinite().all(), label


@each_family
def test_weights_travel(name):
    """state_dict through a file that holds tensors only, into a new model."""
    model, file = make(name), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = FAMILIES[name][0]().eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    batch = FAMILIES[name][1]
    assert torch.equal(other(*batch), model(*batch))


def tie(model: nn.Module) -> tuple[nn.Parameter, nn.Parameter] | None:
    """Return the two parameters that should be one."""
    names = getattr(model, "tied", None)
    if names is None:
        return None
    table, head = (model.get_parameter(name) for name in names)
    return table, head


@each_family
def test_built_without_memory(name):
    """On the meta device all shapes are there; weights come later, ties hold."""
    model = make(name)
    with torch.device("meta"):
        bare = FAMILIES[name][0]().eval()
    assert all(p.is_meta for p in bare.parameters())
    shapes = {key: weight.shape for key, weight in bare.named_parameters()}
    assert shapes == {key: weight.shape for key, weight in model.named_parameters()}
    if any(b.is_meta for b in bare.buffers()):  # a table that no file holds
        bare = bare.to_empty(device="cpu")
        for (_, to), (_, tensor) in zip(
            bare.named_buffers(), model.named_buffers(), strict=True
        ):
            to.copy_(tensor)
        bare.load_state_dict(model.state_dict())
    else:
        bare.load_state_dict(model.state_dict(), assign=True)
    batch = FAMILIES[name][1]
    torch.testing.assert_close(bare(*batch), model(*batch))
    for each in (bare, copy.deepcopy(model)):
        if pair := tie(each):
            assert pair[0] is pair[1]


@pytest.mark.parametrize("name", ["GPT", "MaskedLM", "Transformer"])
def test_tied_in_training(name):
    """One table, one gradient, in both uses."""
    table, head = tie(make(name))
    assert table is head


@each_family
def test_dropout_only_in_training(name):
    model, batch = make(name), FAMILIES[name][1]
    assert torch.equal(model(*batch), model(*batch))
    model.train()
    assert not torch.equal(model(*batch), model(*batch))


# ----------------------------------------------------------------------- bad input

READERS = ["GPT", "BERT", "MaskedLM", "TextClassifier", "TokenClassifier"]
BAD_IDS = [
    ((IDS[0],), ValueError, r"ids must have shape \(B, T\), got \(5,\)"),
    ((IDS[None],), ValueError, r"ids must have shape \(B, T\), got \(1, 2, 5\)"),
    (
        (IDS.repeat(1, 2),),
        ValueError,
        "ids must hold at most max_len = 6 positions, got 10",
    ),
    ((IDS.float(),), TypeError, "ids must be int64 or int32, got torch.float32"),
    ((IDS + 6,), IndexError, r"ids must lie in \[0, 11\), got 14"),
    ((IDS - 1,), IndexError, r"ids must lie in \[0, 11\), got -1"),
    (
        (IDS, REAL[:, :3]),
        ValueError,
        r"mask must have the shape of ids, \(2, 5\), got \(2, 3\)",
    ),
    ((IDS, REAL[0]), ValueError, r"mask must have the shape of ids, \(2, 5\), got"),
    ((IDS, REAL.long()), TypeError, "mask must be boolean, True = real token, got"),
    ((IDS, REAL.float()), TypeError, "mask must be boolean, True = real token, got"),
]


@pytest.mark.parametrize(("batch", "error", "message"), BAD_IDS)
@pytest.mark.parametrize("name", READERS)
def test_bad_ids_are_told(name, batch, error, message):
    with pytest.raises(error, match=message):
        make(name)(*batch)


BAD_PAIRS = [
    ((IDS[0], SHORT), ValueError, r"source_ids must have shape \(B, T\), got \(5,\)"),
    ((IDS, SHORT[0]), ValueError, r"target_ids must have shape \(B, T\), got \(3,\)"),
    (
        (IDS.repeat(1, 2), SHORT),
        ValueError,
        "source_ids must hold at most max_len = 6 positions, got 10",
    ),
    (
        (IDS, SHORT.repeat(1, 3)),
        ValueError,
        "target_ids must hold at most max_len = 6 positions, got 9",
    ),
    ((IDS, SHORT[:1]), ValueError, "must have"),
    ((IDS.float(), SHORT), TypeError, "ids must be int64 or int32"),
    ((IDS, SHORT.float()), TypeError, "ids must be int64 or int32"),
    ((IDS, SHORT + 6), IndexError, r"ids must lie in \[0, 11\), got 15"),
    (
        (IDS, SHORT, REAL[:, :3]),
        ValueError,
        r"mask must have the shape of source_ids, \(2, 5\), got \(2, 3\)",
    ),
    ((IDS, SHORT, REAL.long()), TypeError, "mask must be boolean"),
]


@pytest.mark.parametrize(("batch", "error", "message"), BAD_PAIRS)
def test_bad_pairs_are_told(batch, error, message):
    with pytest.raises(error, match=message):
        make("Transformer")(*batch)


BAD_IMAGES = [
    ((IMAGES[0],), ValueError, r"images must have shape \(B, 3, 8, 8\), got \(3, 8"),
    ((IMAGES[:, :1],), ValueError, r"images must have shape \(B, 3, 8, 8\), got \(2"),
    ((IMAGES[..., :4],), ValueError, r"images must have shape .* got \(2, 3, 8, 4\)"),
    ((IMAGES.byte(),), TypeError, "images must be floating point, got torch.uint8"),
]


@pytest.mark.parametrize(("batch", "error", "message"), BAD_IMAGES)
def test_bad_images_are_told(batch, error, message):
    with pytest.raises(error, match=message):
        make("ViT")(*batch)


def test_bad_segments_are_told():
    model = make("BERT")
    message = r"segments must have the shape of ids, \(2, 5\), got \(2, 4\)"
    with pytest.raises(ValueError, match=message):
        model(IDS, REAL, torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(IndexError, match=r"ids must lie in \[0, 2\), got 2"):
        model(IDS, REAL, torch.full_like(IDS, 2))


def test_a_memory_that_does_not_fit_is_told():
    model = make("Transformer")
    memory = model.encode(IDS, REAL)
    with pytest.raises(ValueError, match=r"memory must have shape .*, got \(2, 5, 4\)"):
        model.decode(SHORT, memory[..., :4])
    with pytest.raises(ValueError, match="mask must broadcast to"):
        model.decode(SHORT, memory, REAL[:, :3])
    block = model.decoder.blocks[0]
    with pytest.raises(ValueError, match="memory must be given to a decoder block"):
        block(memory)
