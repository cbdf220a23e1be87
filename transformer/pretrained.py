"""A model that someone else trained, read into our classes: every tensor of theirs
finds its place by name and shape.

Chapter 19 of Transformers, Matrix by Matrix.
Made from notebooks/19_pretrained.ipynb by tools/export.py: edit the notebook.
"""

import json
import os
import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from transformer.bert import BERT, BERTConfig, MaskedLM
from transformer.block import BlockConfig, Stack, make_cache
from transformer.embeddings import TokenEmbedding, check_ids
from transformer.encoder_decoder import Decoder, Transformer, TransformerConfig
from transformer.gpt import GPT, GPTConfig, Loadable, check_batch
from transformer.multi_head import Cache
from transformer.output_head import OutputHead
from transformer.positions import (
    LearnedPositions,
    Rotary,
    SinusoidalPositions,
    sinusoidal,
)
from transformer.vision import ViT, ViTConfig

__all__ = [
    "ACTIVATION_NAMES",
    "FAMILIES",
    "LLAMA",
    "PALM",
    "Family",
    "Rule",
    "Weights",
    "Whisper",
    "WhisperConfig",
    "as_theirs",
    "from_pretrained",
    "our_choices",
    "read_rules",
    "save_pretrained",
    "sines_first",
    "spell_out",
    "to_ours",
    "to_theirs",
    "transcribe",
]


@dataclass(frozen=True)
class Rule:
    """One line of a table: a tensor of theirs, and the tensors of ours cut from it.

    In names ``{i}`` is the layer, ``*`` weight or bias. ``kind`` says what differs:
    "" nothing; "transposed", theirs is (in, out); "axes", theirs becomes ours by the
    einops pattern ``detail``; "times", their tensor ``detail`` multiplies its rows;
    "if", theirs exists only where the flag ``detail`` is true, and ours is zero
    elsewhere; "or", theirs may be absent, and ours is then ``detail``.
    """

    ours: tuple[str, ...]
    theirs: str
    kind: str = ""
    detail: str = ""


def read_rules(text: str, ours: str = "", theirs: str = "") -> tuple[Rule, ...]:
    """Read a table, one rule a line: our name, their name, what differs.

    Names that end in a dot stand before those of the lines that follow; a dot alone is
    none. ``ours`` and ``theirs`` stand before all. "a|b" are two tensors of ours.
    """
    rules, before = [], ("", "")
    for line in filter(str.strip, text.splitlines()):
        our, their, *words = line.split()
        if our.endswith("."):
            before = (our.removeprefix("."), their.removeprefix("."))
            continue
        our, their = ours + before[0] + our, theirs + before[1] + their
        several = re.findall(r"\w+(?=\|)|(?<=\|)\w+", our) or [""]
        names = tuple(re.sub(r"\w+(\|\w+)+", name, our) for name in several)
        kind = "axes" if "->" in words else "".join(words[:1])
        detail = " ".join(words if kind == "axes" else words[1:])
        if kind == "times":
            detail = theirs + before[1] + detail
        rules.append(Rule(names, their, kind, detail))
    return tuple(rules)


def spell_out(rules: Collection[Rule], names: Collection[str]) -> list[Rule]:
    """Write rules out for each layer, weight and bias that is among our ``names``."""
    numbers = [int(n) for name in names for n in re.findall(r"\.(\d+)\.", name)]
    found = []
    for rule in rules:
        for i in range(1 + max(numbers, default=0) if "{i}" in rule.ours[0] else 1):
            for part in ("weight", "bias") if "*" in rule.ours[0] else ("",):

                def fill(name: str, i: int = i, part: str = part) -> str:
                    return name.replace("{i}", str(i)).replace("*", part)

                ours = tuple(map(fill, rule.ours))
                new = Rule(ours, fill(rule.theirs), rule.kind, fill(rule.detail))
                found += [new] if ours[0] in names else []
    return found


def to_ours(
    rule: Rule, tensor: Tensor, rows: list[int], factors: Tensor | None = None
) -> dict[str, Tensor]:
    """Make our tensors, of so many ``rows`` each, from theirs."""
    if rule.kind == "transposed":
        tensor = tensor.t()  # (in, out) -> (out, in); a bias has one axis and stays
    if rule.kind == "axes":
        tensor = rearrange(tensor, rule.detail)
    if factors is not None:
        tensor = torch.einsum("i..., i -> i...", tensor, factors)
    return dict(zip(rule.ours, torch.split(tensor, rows), strict=True))


def to_theirs(rule: Rule, tensors: Mapping[str, Tensor], config: Any) -> Tensor:
    """Make their tensor from ours."""
    tensor = torch.cat([tensors[name] for name in rule.ours])
    if rule.kind == "transposed":
        tensor = tensor.t()
    if rule.kind == "axes":
        theirs, ours = rule.detail.split(" -> ")
        sides = {side: config.patch_size for side in "pq" if side in ours}
        tensor = rearrange(tensor, f"{ours} -> {theirs}", **sides)
    return tensor.contiguous()


@dataclass(frozen=True, kw_only=True)
class Family:
    """What one architecture of config.json is in this book.

    ``kind`` is our class, ``rules`` its names. ``fields`` is a table as well: our
    choice, their names for it, theirs where config.json is silent; "-" stands for a
    choice that we have not, which must be as the table says. ``choices`` are ours in
    the whole family; ``free`` need no word in config.json. ``prefix`` may be missing
    from their names. ``ignored`` matches tensors that play no part, ``copies`` are
    tensors that may come twice, ``flags`` are what rules ask for.
    """

    kind: type[Any]
    config: type[BlockConfig]
    model_type: str
    rules: tuple[Rule, ...]
    fields: str
    prefix: str
    choices: Mapping[str, Any] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    ignored: str = "(?!)"  # matches nothing
    copies: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, bool] = field(default_factory=dict)

    def lines(self) -> list[tuple[str, list[str], Any]]:
        """The lines of ``fields``: our choice, their names, what silence means."""
        lines = [line.split() for line in self.fields.splitlines() if line]
        return [
            (ours, theirs.split("|"), json.loads(silent[0]) if silent else None)
            for ours, theirs, *silent in lines
        ]

    def model(self, choices: Mapping[str, Any]) -> Loadable:
        """Build the class in the shape of ``choices``."""
        config: Any = self.config(**choices)
        return self.kind(BERT(config) if self.kind is MaskedLM else config)


FAMILIES: dict[str, Family] = {}

FAMILIES["GPT2LMHeadModel"] = Family(
    kind=GPT,
    config=GPTConfig,
    model_type="gpt2",
    rules=read_rules("""
.                               transformer.
    embedding.weight            wte.weight
    positions.weight            wpe.weight
    stack.norm.*                ln_f.*
stack.blocks.{i}.               transformer.h.{i}.
    norm_1.*                    ln_1.*
    attention.query|key|value.* attn.c_attn.*                   transposed
    attention.output.*          attn.c_proj.*                   transposed
    norm_2.*                    ln_2.*
    feed_forward.up.*           mlp.c_fc.*                      transposed
    feed_forward.down.*         mlp.c_proj.*                    transposed
.                               .
    head.weight                 lm_head.weight
"""),
    fields="""
vocab_size                      vocab_size
max_len                         n_positions
d_model                         n_embd
n_heads                         n_head
n_layers                        n_layer
d_ff                            n_inner                         0
dropout                         resid_pdrop|embd_pdrop|attn_pdrop  0.1
activation                      activation_function
norm_eps                        layer_norm_epsilon
tied                            tie_word_embeddings             true
-                               scale_attn_weights              true
-                               scale_attn_by_inverse_layer_idx false
-                               add_cross_attention             false
""",
    prefix="transformer.",
    free=("rotary_base",),
    ignored=r"h\.\d+\.attn\.(masked_)?bias",
    copies={"lm_head.weight": "wte.weight"},
)

LLAMA = {"norm": "rms", "activation": "swiglu", "positions": "rotary", "bias": False}

FAMILIES["LlamaForCausalLM"] = Family(
    kind=GPT,
    config=GPTConfig,
    model_type="llama",
    rules=read_rules("""
.                               .
    embedding.weight            model.embed_tokens.weight
    stack.norm.*                model.norm.*
    head.weight                 lm_head.weight
stack.blocks.{i}.               model.layers.{i}.
    norm_1.*                    input_layernorm.*
    attention.query.*           self_attn.q_proj.*
    attention.key.*             self_attn.k_proj.*
    attention.value.*           self_attn.v_proj.*
    attention.output.*          self_attn.o_proj.*
    norm_2.*                    post_attention_layernorm.*
    feed_forward.gate.*         mlp.gate_proj.*
    feed_forward.up.*           mlp.up_proj.*
    feed_forward.down.*         mlp.down_proj.*
"""),
    fields="""
vocab_size                      vocab_size
max_len                         max_position_embeddings
d_model                         hidden_size
n_heads                         num_attention_heads
n_kv_heads                      num_key_value_heads             0
n_layers                        num_hidden_layers
d_ff                            intermediate_size
dropout                         attention_dropout               0.0
norm_eps                        rms_norm_eps
rotary_base                     rope_theta                      10000.0
tied                            tie_word_embeddings             false
-                               hidden_act                      "silu"
-                               attention_bias                  false
-                               mlp_bias                        false
""",
    prefix="model.",
    choices=LLAMA,
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    copies={"lm_head.weight": "embed_tokens.weight"},
)

PALM = {
    "order": "parallel",
    "activation": "swiglu",
    "n_kv_heads": 1,
    "positions": "rotary",
    "bias": False,
}

_BERT_NAMES = """
.                               embeddings.
    embedding.weight            word_embeddings.weight
    positions.weight            position_embeddings.weight
    segments.weight             token_type_embeddings.weight
    norm.*                      LayerNorm.*
stack.blocks.{i}.               encoder.layer.{i}.
    attention.query.*           attention.self.query.*
    attention.key.*             attention.self.key.*
    attention.value.*           attention.self.value.*
    attention.output.*          attention.output.dense.*
    norm_1.*                    attention.output.LayerNorm.*
    feed_forward.up.*           intermediate.dense.*
    feed_forward.down.*         output.dense.*
    norm_2.*                    output.LayerNorm.*
"""
_HIDDEN_FIELDS = """
d_model                         hidden_size
n_heads                         num_attention_heads
n_layers                        num_hidden_layers
d_ff                            intermediate_size
dropout                         hidden_dropout_prob|attention_probs_dropout_prob  0.0
activation                      hidden_act
norm_eps                        layer_norm_eps                  1e-12
"""
FAMILIES["BertModel"] = Family(
    kind=BERT,
    config=BERTConfig,
    model_type="bert",
    rules=read_rules(_BERT_NAMES),
    fields=f"""{_HIDDEN_FIELDS}
vocab_size                      vocab_size
max_len                         max_position_embeddings
n_segments                      type_vocab_size                 2
-                               position_embedding_type         "absolute"
-                               is_decoder                      false
-                               add_cross_attention             false
-                               tie_word_embeddings             true
""",
    prefix="bert.",
    ignored=r"pooler\.|embeddings\.position_ids|cls\.seq_relationship\.",
)
FAMILIES["BertForMaskedLM"] = replace(
    FAMILIES["BertModel"],
    kind=MaskedLM,
    rules=read_rules(_BERT_NAMES, "bert.", "bert.")
    + read_rules("""
.                               cls.predictions.
    dense.*                     transform.dense.*
    norm.*                      transform.LayerNorm.*
    head.bias                   bias
"""),
    copies={
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)

_IMAGE_NAMES = """
.                               embeddings.
    summary                     cls_token                       1 1 D -> D
    positions.weight            position_embeddings             1 T D -> T D
.                               embeddings.patch_embeddings.
    patch.weight                projection.weight               D C p q -> D (C p q)
    patch.bias                  projection.bias
.                               .
    stack.norm.*                layernorm.*
stack.blocks.{i}.attention.     encoder.layer.{i}.attention.
    query.weight                attention.query.weight
    key.weight                  attention.key.weight
    value.weight                attention.value.weight
    query.bias                  attention.query.bias            if qkv_bias
    key.bias                    attention.key.bias              if qkv_bias
    value.bias                  attention.value.bias            if qkv_bias
"""
_VIT_NAMES = f"""{_IMAGE_NAMES}
stack.blocks.{{i}}.             encoder.layer.{{i}}.
    norm_1.*                    layernorm_before.*
    attention.output.*          attention.output.dense.*
    norm_2.*                    layernorm_after.*
    feed_forward.up.*           intermediate.dense.*
    feed_forward.down.*         output.dense.*
"""
FAMILIES["ViTModel"] = Family(
    kind=ViT,
    config=ViTConfig,
    model_type="vit",
    rules=read_rules(_VIT_NAMES),
    fields=f"""{_HIDDEN_FIELDS}
image_size                      image_size
patch_size                      patch_size
n_channels                      num_channels                    3
""",
    prefix="vit.",
    choices={"n_classes": 0},
    ignored=r"pooler\.",
    flags={"qkv_bias": True},
)
FAMILIES["ViTForImageClassification"] = replace(
    FAMILIES["ViTModel"],
    rules=read_rules(_VIT_NAMES, theirs="vit.") + read_rules("head.* classifier.*"),
    fields=FAMILIES["ViTModel"].fields + "n_classes num_labels",
    choices={},
)
FAMILIES["Dinov2Model"] = replace(
    FAMILIES["ViTModel"],
    model_type="dinov2",
    rules=read_rules(f"""{_IMAGE_NAMES}
stack.blocks.{{i}}.             encoder.layer.{{i}}.
    norm_1.*                    norm1.*
    attention.output.*          attention.output.dense.*  times layer_scale1.lambda1
    norm_2.*                    norm2.*
    feed_forward.up.*           mlp.fc1.*
    feed_forward.down.*         mlp.fc2.*                 times layer_scale2.lambda1
"""),
    fields=FAMILIES["ViTModel"].fields + "- use_swiglu_ffn false",
    prefix="dinov2.",
    ignored=r"embeddings\.mask_token",
)


def sines_first(max_len: int, d_model: int) -> Tensor:
    """Chapter 3's table with all sines before all cosines, as Marian orders it."""
    pairs = sinusoidal(max_len, d_model)  # (T, D)
    return torch.cat((pairs[:, 0::2], pairs[:, 1::2]), dim=1)  # (T, D)


_BLOCK_NAMES = """
encoder.blocks.{i}.             model.encoder.layers.{i}.
    attention.query.*           self_attn.q_proj.*
    attention.key.weight        self_attn.k_proj.weight
    attention.key.bias          self_attn.k_proj.bias           if key_bias
    attention.value.*           self_attn.v_proj.*
    attention.output.*          self_attn.out_proj.*
    norm_1.*                    self_attn_layer_norm.*
    feed_forward.up.*           fc1.*
    feed_forward.down.*         fc2.*
    norm_2.*                    final_layer_norm.*
"""
_TWO_STACKS = f"""{_BLOCK_NAMES}{_BLOCK_NAMES.replace("encoder", "decoder")}
    cross_attention.query.*     encoder_attn.q_proj.*
    cross_attention.key.weight  encoder_attn.k_proj.weight
    cross_attention.key.bias    encoder_attn.k_proj.bias        if key_bias
    cross_attention.value.*     encoder_attn.v_proj.*
    cross_attention.output.*    encoder_attn.out_proj.*
    norm_cross.*                encoder_attn_layer_norm.*
"""
_TWO_STACK_FIELDS = """
d_model                         d_model
n_heads                         encoder_attention_heads|decoder_attention_heads
n_layers                        encoder_layers
n_decoder_layers                decoder_layers
d_ff                            encoder_ffn_dim|decoder_ffn_dim
dropout                         dropout|attention_dropout       0.0
activation                      activation_function
-                               tie_word_embeddings             true
"""
FAMILIES["MarianMTModel"] = Family(
    kind=Transformer,
    config=TransformerConfig,
    model_type="marian",
    rules=read_rules(f"""{_TWO_STACKS}
.                               .
    embedding.weight            model.shared.weight
    head.bias                   final_logits_bias               1 V -> V
.                               model.
    source_positions.weight     encoder.embed_positions.weight  or sines_first
    target_positions.weight     decoder.embed_positions.weight  or sines_first
"""),
    fields=f"""{_TWO_STACK_FIELDS}
vocab_size                      vocab_size|decoder_vocab_size
max_len                         max_position_embeddings
scale_embeddings                scale_embedding                 false
-                               share_encoder_decoder_embeddings  true
""",
    prefix="model.",
    choices={"positions": "learned", "head_bias": True},
    free=("positions", "head_bias"),
    copies={
        "lm_head.weight": "shared.weight",
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    },
    flags={"key_bias": True},
)


@dataclass(frozen=True, kw_only=True)
class WhisperConfig(BlockConfig):
    """A speech recogniser's choices; the defaults are Whisper's (Radford et al. 2023).

    Beside the choices of a block: ``vocab_size`` V; ``max_len``, the most ids written;
    ``n_mels``, the bands of frequency; ``max_source``, the most rows of memory, each
    made of two frames; ``n_decoder_layers``, n_layers where it is 0. Raises ValueError
    for a size below one.
    """

    vocab_size: int
    max_len: int = 448
    n_mels: int = 80
    max_source: int = 1500
    n_decoder_layers: int = 0
    activation: str = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        least = dict.fromkeys(("vocab_size", "max_len", "n_mels", "max_source"), 1)
        for name, low in (least | {"n_decoder_layers": 0}).items():
            if getattr(self, name) < low:
                raise ValueError(
                    f"{name} must be at least {low}, got {getattr(self, name)}"
                )


class Whisper(Loadable):
    """Two convolutions, an encoder, a decoder (Radford et al. 2023, section 2.2).

    features ``(B, n_mels, frames)``, ids ``(B, T)`` -> logits ``(B, T, V)``. Only the
    convolutions are new: the rest is chapter 14's, with the norm first.
    """

    tied = ("embedding.weight", "head.weight")

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = c = config
        self.conv_1 = nn.Conv1d(c.n_mels, c.d_model, 3, padding=1)
        self.conv_2 = nn.Conv1d(c.d_model, c.d_model, 3, stride=2, padding=1)
        self.source_positions = LearnedPositions(c.max_source, c.d_model)
        self.encoder = Stack(c)
        self.embedding = TokenEmbedding(c.vocab_size, c.d_model)
        self.target_positions = LearnedPositions(c.max_len, c.d_model)
        self.decoder = Decoder(replace(c, n_layers=c.n_decoder_layers or c.n_layers))
        self.head = OutputHead(c.d_model, c.vocab_size, self.embedding.weight)

    def encode(self, features: Tensor) -> Tensor:
        """Hear: ``(B, n_mels, frames)`` -> memory ``(B, S, D)``, S = frames / 2.

        Raises ValueError for another number of bands or too many frames.
        """
        if features.ndim != 3 or features.shape[1] != self.config.n_mels:
            raise ValueError(
                f"features must have shape (B, {self.config.n_mels}, frames), "
                f"got {tuple(features.shape)}"
            )
        x = F.gelu(self.conv_1(features))  # (B, D, frames)
        x = F.gelu(self.conv_2(x)).transpose(1, 2)  # (B, S, D)
        return self.encoder(self.source_positions(x))  # (B, S, D)

    def decode(self, ids: Tensor, memory: Tensor, cache: Cache | None = None) -> Tensor:
        """Score each next id: ids ``(B, T)``, memory ``(B, S, D)`` -> ``(B, T, V)``.

        With a ``cache`` the ids continue the text that it holds.
        """
        check_batch("ids", ids, self.config.max_len, None)
        places: int | Tensor = 0
        past = None  # the mask of a cached step
        if cache is not None:
            places, past = cache.step(ids.shape[1])  # (B, T), (B, 1, T, S)
        x = self.target_positions(self.embedding(ids), places)  # (B, T, D)
        x = self.decoder(x, past, cache is None, cache, memory=memory)  # (B, T, D)
        return self.head(x)  # (B, T, V)

    def new_cache(self, batch: int, room: int = 0) -> Cache:
        """An empty cache for ``batch`` texts of up to ``room`` ids, max_len where 0."""
        c = replace(self.config, n_layers=len(self.decoder.blocks))
        return make_cache(c, batch, room, c.max_len, self.embedding.weight)

    def forward(self, features: Tensor, ids: Tensor) -> Tensor:
        return self.decode(ids, self.encode(features))  # (B, T, V)


@torch.no_grad()
def transcribe(
    model: Whisper,
    features: Tensor,
    prompt: list[int],
    stop: int,
    max_new_tokens: int = 100,
) -> list[int]:
    """Write down what one recording says, the most probable id at each step.

    features ``(1, n_mels, frames)``; ``prompt``, the ids that name language and task ->
    the new ids, without ``stop``. Raises ValueError for more than one recording or an
    empty prompt, IndexError for an id outside the vocabulary.
    """
    if len(features) != 1 or not prompt:
        raise ValueError(
            "features must hold one recording and prompt at least one id, "
            f"got {tuple(features.shape)} and {prompt}"
        )
    ids = torch.tensor([prompt], device=features.device)  # (1, T)
    check_ids(ids.cpu(), model.config.vocab_size)
    was_training = model.training
    model.eval()
    try:
        memory = model.encode(features)  # (1, S, D)
        cache, new = model.new_cache(1), ids
        for _ in range(min(max_new_tokens, model.config.max_len - len(prompt))):
            best = model.decode(new, memory, cache)[:, -1].argmax(dim=-1)  # (1,)
            if best.item() == stop:
                break
            new = best[:, None]  # (1, 1)
            ids = torch.cat((ids, new), dim=1)  # (1, T + 1)
    finally:
        model.train(was_training)
    return ids[0, len(prompt) :].tolist()


FAMILIES["WhisperForConditionalGeneration"] = Family(
    kind=Whisper,
    config=WhisperConfig,
    model_type="whisper",
    rules=read_rules(f"""{_TWO_STACKS}
.                               model.encoder.
    conv_1.*                    conv1.*
    conv_2.*                    conv2.*
    source_positions.weight     embed_positions.weight
    encoder.norm.*              layer_norm.*
.                               model.decoder.
    embedding.weight            embed_tokens.weight
    target_positions.weight     embed_positions.weight
    decoder.norm.*              layer_norm.*
"""),
    fields=f"""{_TWO_STACK_FIELDS}
vocab_size                      vocab_size
max_len                         max_target_positions
n_mels                          num_mel_bins                    80
max_source                      max_source_positions
-                               scale_embedding                 false
""",
    prefix="model.",
    copies={"proj_out.weight": "decoder.embed_tokens.weight"},
    flags={"key_bias": False},
)

ACTIVATION_NAMES = {  # theirs -> ours
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with its nested or derived fields as plain numbers."""
    flat = {name: value for name, value in given.items() if value is not None}
    rope = flat.get("rope_parameters") or flat.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"config.json: rotary scaling is not supported, got {rope}")
    if "rope_theta" in rope:
        flat["rope_theta"] = rope["rope_theta"]
    for name in ("image_size", "patch_size"):
        if isinstance(sides := flat.get(name), list):
            if len(set(sides)) != 1:
                raise ValueError(f"config.json: {name} must be square, got {sides}")
            flat[name] = sides[0]
    labels = flat.get("id2label", {0: "no", 1: "yes"})  # two where it is silent
    flat.setdefault("num_labels", len(labels))
    width = flat.get("hidden_size", 0)
    if "mlp_ratio" in flat:
        flat["intermediate_size"] = int(flat["mlp_ratio"] * width)
    heads = flat.get("num_attention_heads", 0)
    if "head_dim" in flat and flat["head_dim"] * heads != width:
        raise ValueError(
            f"config.json: head_dim must be hidden_size / num_attention_heads = "
            f"{width} / {heads}, got {flat['head_dim']}"
        )
    return flat


def our_choices(family: Family, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our configuration, from those of config.json.

    Raises ValueError for a missing field, or for a value that our class can't have.
    """
    given, choices = _plain(given), dict(family.choices)
    for ours, (first, *twins), silent in family.lines():
        value = given.get(first, silent)
        if value is None:
            raise ValueError(f"config.json: the field {first} is missing")
        wanted = dict.fromkeys([] if ours == "dropout" else twins, value)
        wanted |= {first: silent} if ours == "-" else {}
        for name, only in wanted.items():
            if (found := given.get(name, only)) != only:
                raise ValueError(f"config.json: {name} must be {only!r}, got {found!r}")
        if ours == "activation":
            if value not in ACTIVATION_NAMES:
                known = ", ".join(ACTIVATION_NAMES)
                raise ValueError(
                    f"config.json: {first} must be one of {known}, got {value!r}"
                )
            value = ACTIVATION_NAMES[value]
        if ours != "-":
            choices[ours] = value
    return choices


def _find_folder(name: str | Path) -> Path:
    """The folder of that name, or the copy of the hub's model of that name.

    Raises FileNotFoundError when there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    lost = f"there is no folder {str(name)!r}"
    if Path(name).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
        raise FileNotFoundError(lost)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"{lost}, and to look on the hub needs: pip install huggingface_hub"
        ) from error
    wanted = ["config.json", "*.safetensors", "model.safetensors.index.json"]
    try:
        return Path(snapshot_download(str(name), allow_patterns=wanted))
    except (OSError, ValueError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise FileNotFoundError(
            f"{lost}, and the hub did not give it: {why}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; FileNotFoundError or ValueError if there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object, got a {type(found).__name__}")
    return found


class Weights:
    """The tensors in a folder's safetensors files, by name, read one at a time.

    Raises FileNotFoundError for a missing file, ValueError for one cut short and for a
    folder that has its weights only as a pickle: opening one can run any code.
    """

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self.home: dict[str, Any] = {}  # name -> open file
        for path in self.find(folder):
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing")
            try:
                file = files.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                raise ValueError(
                    f"{path} is not a whole safetensors file: {error}"
                ) from error
            self.home |= dict.fromkeys(file.keys(), file)

    @staticmethod
    def find(folder: Path) -> list[Path]:
        """The one file, or all those that an index names."""
        one, index = (folder / f"model.safetensors{end}" for end in ("", ".index.json"))
        if index.is_file() and not one.is_file():
            names = _read_json(index).get("weight_map")
            if not isinstance(names, dict):
                raise ValueError(f"{index} must hold a weight_map, got {names!r}")
            return [folder / Path(name).name for name in sorted(set(names.values()))]
        pickles = [
            path for end in ("bin", "pt", "pth") for path in folder.glob(f"*.{end}")
        ]
        if pickles and not one.is_file():
            raise ValueError(
                f"{folder} holds its weights only as a pickle, {pickles[0].name}, and "
                "opening one can run any code: convert it to safetensors"
            )
        return [one]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the tensor; ValueError unless it holds floats."""
        header = self.home[name].get_slice(name)
        if header.get_dtype() not in ("F64", "F32", "F16", "BF16"):
            raise ValueError(f"{name} must hold floats, got {header.get_dtype()}")
        return tuple(header.get_shape())

    def __getitem__(self, name: str) -> Tensor:
        return self.home[name].get_tensor(name)


def as_theirs(model: Loadable, rules: Collection[Rule]) -> dict[str, Tensor]:
    """The tensors of a model, under their names and in their shapes."""
    ours = {name: weight.detach() for name, weight in model.named_parameters()}
    if isinstance(model, Transformer):  # Marian has these where we may do without
        for side in ("source_positions", "target_positions"):
            if isinstance(part := getattr(model, side), SinusoidalPositions):
                ours[f"{side}.weight"] = part.table
        ours.setdefault("head.bias", torch.zeros_like(model.head.weight[:, 0]))
    theirs = {}
    for rule in spell_out(rules, ours):
        theirs[rule.theirs] = made = to_theirs(rule, ours, model.config)
        if rule.kind == "times":  # folded into ours: theirs now multiplies by one
            theirs[rule.detail] = made.new_ones(len(made))
    return theirs


def _short(name: str, family: Family) -> str:
    """Their name without the prefix; BERT's first files call a norm's weight gamma."""
    name = name.removeprefix(family.prefix)
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


def _some(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(sorted(names)[:5]) + more


def _check_fit(
    family: Family,
    wanted: Mapping[str, Tensor],
    found: Mapping[str, str],
    weights: Weights,
) -> None:
    """Raise ValueError, with the names, unless the file holds what is ``wanted``.

    ``found`` gives the file's name for each name without prefix.
    """
    optional = {rule.theirs for rule in family.rules if rule.kind == "or"}
    needed = {_short(name, family): name for name in wanted}
    problems = []
    if missing := {needed[name] for name in set(needed) - set(found)} - optional:
        problems.append(f"missing {_some(missing)}")
    left = {found[name] for name in set(found) - set(needed) - set(family.copies)}
    left = {name for name in left if not re.match(family.ignored, _short(name, family))}
    left |= set(weights.home) - set(found.values())  # with and without the prefix
    if left:
        problems.append(f"unexpected {_some(left)}")
    for name in sorted(set(found) & set(needed)):
        shape = tuple(wanted[needed[name]].shape)
        if (got := weights.shape(found[name])) != shape:
            problems.append(f"{found[name]} must have shape {shape}, got {got}")
    for copy in sorted(set(found) & set(family.copies) - set(needed)):
        original = found.get(family.copies[copy], found[copy])
        if not torch.equal(weights[found[copy]], weights[original]):
            problems.append(f"{found[copy]} must equal {original}, they are tied")
    if problems:
        raise ValueError(
            f"the weights do not fit {family.kind.__name__}: {'; '.join(problems[:5])}"
        )


def _architecture_of(given: Mapping[str, Any]) -> str:
    """The name in FAMILIES that config.json means; ValueError if there is none."""
    named, kind = given.get("architectures") or [], given.get("model_type")
    of_kind = [name for name, f in FAMILIES.items() if f.model_type == kind]
    name = named[0] if named else "".join(of_kind[:1])
    if name not in of_kind:
        raise ValueError(
            f"config.json: architecture {name or None!r} of model_type {kind!r} is not "
            f"known, only {', '.join(FAMILIES)}"
        )
    return name


def from_pretrained(folder: str | Path, dtype: torch.dtype = torch.float32) -> Loadable:
    """Read a model as Hugging Face's library writes it: config.json and safetensors.

    ``folder`` is a folder or, with huggingface_hub installed, a name on the hub. The
    class follows from config.json: GPT for GPT-2 and Llama, BERT or MaskedLM,
    Transformer for Marian, ViT for ViT and DINOv2, Whisper. The model is in eval mode,
    its weights are copies in ``dtype``. Raises FileNotFoundError for a missing file,
    ValueError for a broken one, for a choice that isn't known, and for tensors that are
    missing, left over or of another shape; nothing is loaded then.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, got {dtype}")
    path = _find_folder(folder)
    given = _read_json(path / "config.json")
    family = FAMILIES[_architecture_of(given)]
    flags = {name: given.get(name, value) for name, value in family.flags.items()}
    choices = our_choices(family, given)
    try:
        with torch.device("meta"):  # shapes without numbers: those are in the file
            model = family.model(choices)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.json: {error}") from error
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    rules = spell_out(family.rules, shapes)
    due = [rule for rule in rules if rule.kind != "if" or flags[rule.detail]]
    state = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
    with ExitStack() as files:
        weights = Weights(path, files)
        found = {_short(name, family): name for name in weights.home}
        _check_fit(family, as_theirs(model, due), found, weights)
        for rule in due:
            if (name := found.get(_short(rule.theirs, family))) is None:
                state[rule.ours[0]].copy_(sines_first(*shapes[rule.ours[0]]))
                continue
            factors = None
            if rule.kind == "times":
                factors = weights[found[_short(rule.detail, family)]]
            rows = [len(state[our]) for our in rule.ours]
            for our, part in to_ours(rule, weights[name], rows, factors).items():
                state[our].copy_(part)
    return _assign(model, state, dtype)


def _assign(model: Any, state: dict[str, Tensor], dtype: torch.dtype) -> Loadable:
    """Give a model that has only shapes its numbers; rotary's are computed here."""
    if model.tied:
        table, copy = model.tied
        state[copy] = state[table]
    model.load_state_dict(state, assign=True)
    for part in model.modules():
        if isinstance(part, Rotary):
            c = model.config
            made = Rotary(c.max_len, c.d_model // c.n_heads, c.rotary_base)
            part.cos, part.sin = made.cos.to(dtype), made.sin.to(dtype)
    return model.eval()


def _filled(config: BlockConfig) -> dict[str, Any]:
    """Our choices, with the numbers that a 0 stands for."""
    c = asdict(config)
    usual = {"d_ff": 4 * c["d_model"], "n_kv_heads": c["n_heads"]}
    usual["n_decoder_layers"] = c["n_layers"]
    return {name: value or usual.get(name, value) for name, value in c.items()}


def _misfits(family: Family, config: BlockConfig) -> list[str]:
    """The choices that the family's config.json has no words for."""
    found, said = _filled(config), {ours for ours, _, _ in family.lines()}
    usual = {f.name: f.default for f in fields(config) if f.name not in said}
    usual |= dict(family.choices)
    if not usual.get("n_kv_heads", 1):
        usual["n_kv_heads"] = found["n_heads"]
    wrong = {
        name: value
        for name, value in usual.items()
        if found[name] != value and name not in family.free
    }
    if "activation" in said and found["activation"] == "swiglu":
        wrong["activation"] = "one without a gate"
    if family.model_type == "dinov2" and found["d_ff"] % found["d_model"]:
        wrong["d_ff"] = "a multiple of d_model"
    return [
        f"{name} must be {value}, got {found[name]}" for name, value in wrong.items()
    ]


def _their_fields(family: Family, config: BlockConfig) -> dict[str, Any]:
    """The fields of config.json, from those of our configuration."""
    found = _filled(config)
    if found["activation"] != "swiglu":
        theirs = {ours: theirs for theirs, ours in reversed(ACTIVATION_NAMES.items())}
        found["activation"] = theirs[found["activation"]]
    said = {
        name: silent if ours == "-" else found[ours]
        for ours, names, silent in family.lines()
        for name in names
    }
    if "rope_theta" in said:  # where transformers 5 looks for it
        theta = said["rope_theta"]
        said["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    if family.model_type == "dinov2":
        said["mlp_ratio"] = said["intermediate_size"] // said["hidden_size"]
        said["use_mask_token"] = False
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return special | said  # the library's own defaults may lie outside the table


def save_pretrained(
    model: Any, folder: str | Path, architecture: str | None = None, **extra: Any
) -> None:
    """Write config.json and model.safetensors for Hugging Face's library, and for us.

    ``architecture`` is a name in FAMILIES, else the first that fits the model.
    ``extra`` are more fields for config.json, such as ``eos_token_id=2``. Each file is
    written to a temporary name and renamed. Raises ValueError when no architecture has
    the model's choices.
    """
    kinds = [name for name, f in FAMILIES.items() if type(model) is f.kind]
    if architecture is not None and architecture not in kinds:
        raise ValueError(
            f"architecture must be one of {kinds} for a {type(model).__name__}, "
            f"got {architecture!r}"
        )
    tried = {
        name: _misfits(FAMILIES[name], model.config)
        for name in ([architecture] if architecture else kinds)
    }
    name = next((name for name, wrong in tried.items() if not wrong), None)
    if name is None:
        why = "; ".join(f"{name}: {', '.join(wrong)}" for name, wrong in tried.items())
        raise ValueError(
            f"the model fits no architecture. {why or type(model).__name__}"
        )
    family = FAMILIES[name]
    rules = [r for r in family.rules if r.kind != "if" or family.flags[r.detail]]
    tensors = {name: tensor.cpu() for name, tensor in as_theirs(model, rules).items()}
    about = {"architectures": [name], "model_type": family.model_type}
    about["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    about |= _their_fields(family, model.config) | extra
    text = json.dumps(about, indent=2, sort_keys=True) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "model.safetensors", folder / "config.json"]
    drafts = [file.with_name(f".{file.name}.{os.getpid()}.new") for file in files]
    try:
        save_file(tensors, drafts[0], {"format": "pt"})
        drafts[1].write_text(text, encoding="utf-8")
        for draft, file in zip(drafts, files, strict=True):
            draft.replace(file)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)
