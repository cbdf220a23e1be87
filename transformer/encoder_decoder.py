"""One stack reads, the other writes and looks back: the Transformer of 2017.

Chapter 14 of Transformers, Matrix by Matrix.
Made from notebooks/14_encoder_decoder.ipynb by tools/export.py: edit the notebook.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from transformer.block import Block, BlockConfig, Stack, make_cache, make_norm
from transformer.dropout import Dropout
from transformer.embeddings import TokenEmbedding, check_ids
from transformer.gpt import Loadable, check_batch
from transformer.masks import padding_mask
from transformer.multi_head import Cache, LayerCache, MultiHeadAttention, Pair
from transformer.norm import LayerNorm, RMSNorm
from transformer.output_head import OutputHead
from transformer.positions import Rotary, make_positions

__all__ = [
    "Decoder",
    "DecoderBlock",
    "Transformer",
    "TransformerConfig",
    "beam_search",
    "smoothed_cross_entropy",
    "teacher_forcing",
    "translate",
]


class DecoderBlock(Block):
    """A block with one more part: attend, look at the memory, think.

    The middle part asks with x ``(B, T, D)`` and is answered by memory ``(B, S, D)``
    (Vaswani et al. 2017, section 3.1). ``mask`` and ``causal`` as in Block, for x;
    ``memory_mask`` boolean, broadcastable to ``(B, H, T, S)``. With a ``cache`` the
    memory's keys and values are made once. Raises ValueError for parallel blocks, a
    missing memory or a wrong width.
    """

    norm_2: LayerNorm | RMSNorm  # there is always one: no parallel decoder

    def __init__(self, config: BlockConfig, rotary: Rotary | None = None) -> None:
        if config.order == "parallel":
            raise ValueError(
                "order must be 'post' or 'pre' in a decoder, got 'parallel'"
            )
        super().__init__(config, rotary)
        c = config
        self.cross_attention = MultiHeadAttention(
            c.d_model, c.n_heads, c.n_kv_heads or c.n_heads, c.bias, c.dropout
        )
        self.norm_cross = make_norm(c)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        if memory is None:
            raise ValueError("memory must be given to a decoder block, got None")
        answers: Tensor | Pair = memory  # (B, S, D)
        if cache is not None:
            cache.memory = cache.memory or self.cross_attention.keys_values(memory)
            answers = cache.memory  # (B, H_kv, S, K), keys and values

        def attend(x: Tensor) -> Tensor:
            return self.dropout(self.attention(x, None, mask, causal, cache))

        def look(x: Tensor) -> Tensor:
            return self.dropout(self.cross_attention(x, answers, mask=memory_mask))

        def think(x: Tensor) -> Tensor:
            return self.dropout(self.feed_forward(x))

        norms = (self.norm_1, self.norm_cross, self.norm_2)
        for norm, part in zip(norms, (attend, look, think), strict=True):
            if self.order == "post":
                x = norm(x + part(x))
            else:
                x = x + part(norm(x))
        return x  # (B, T, D)


class Decoder(Stack):
    """A stack of decoder blocks: x ``(B, T, D)``, memory ``(B, S, D)`` -> as x."""

    kind = DecoderBlock

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        for i, block in enumerate(self.blocks):
            kept = None if cache is None else cache.layers[i]
            x = block(x, mask, causal, kept, memory, memory_mask)  # (B, T, D)
        return self.norm(x)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(BlockConfig):
    """An encoder-decoder's choices; the defaults are those of Vaswani et al. 2017.

    Beside the choices of a block: ``vocab_size`` V, one for both languages;
    ``max_len``, the most positions on either side; ``n_decoder_layers``, n_layers where
    it is 0; ``positions`` "sinusoidal", "learned" or "none"; ``tied`` shares one table
    between both embeddings and the head (section 3.4); ``scale_embeddings`` by sqrt(D);
    ``head_bias`` adds a number to each word's logit. Raises ValueError, naming the
    field.
    """

    vocab_size: int
    max_len: int
    n_decoder_layers: int = 0
    dropout: float = 0.1
    activation: str = "relu"
    order: str = "post"
    positions: str = "sinusoidal"
    tied: bool = True
    scale_embeddings: bool = True
    head_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in {"vocab_size": 1, "max_len": 1, "n_decoder_layers": 0}.items():
            if getattr(self, name) < low:
                raise ValueError(
                    f"{name} must be at least {low}, got {getattr(self, name)}"
                )
        known = ("sinusoidal", "learned", "none")
        if self.positions not in known:
            raise ValueError(
                f"positions must be one of {known}, got {self.positions!r}"
            )


class Transformer(Loadable):
    """The encoder-decoder of Vaswani et al. 2017, section 3.

    source_ids ``(B, S)``, target_ids ``(B, T)`` -> logits ``(B, T, V)``. Row t has seen
    the whole source and the target ids up to t, and scores the id at t + 1.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = c = config
        self.embedding = TokenEmbedding(c.vocab_size, c.d_model, c.scale_embeddings)
        self.source_positions = make_positions(c.positions, c.max_len, c.d_model)
        self.target_positions = make_positions(c.positions, c.max_len, c.d_model)
        self.dropout = Dropout(c.dropout)
        self.encoder = Stack(c)
        self.decoder = Decoder(replace(c, n_layers=c.n_decoder_layers or c.n_layers))
        table = self.embedding.weight if c.tied else None
        self.head = OutputHead(c.d_model, c.vocab_size, table, c.head_bias)
        self.tied = ("embedding.weight", "head.weight") if c.tied else None
        self._init_weights()

    def _init_weights(self) -> None:
        """Keep sizes: Xavier's matrices, embeddings that sqrt(D) brings to size one."""
        for name, weight in self.named_parameters():
            if name.startswith(("encoder", "decoder")) and weight.ndim == 2:
                nn.init.xavier_uniform_(weight)
            elif name in ("embedding.weight", "head.weight"):
                nn.init.normal_(weight, std=self.config.d_model**-0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def encode(self, source_ids: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Read the source once: ids ``(B, S)`` -> memory ``(B, S, D)``.

        source_mask ``(B, S)`` boolean, True = real token. Raises ValueError
        for a wrong shape or more than ``max_len`` positions, TypeError for a wrong
        type, IndexError for an id outside the vocabulary.
        """
        check_batch("source_ids", source_ids, self.config.max_len, source_mask)
        keep = None if source_mask is None else padding_mask(source_mask)
        x = self.source_positions(self.embedding(source_ids))  # (B, S, D)
        return self.encoder(self.dropout(x), mask=keep)  # (B, S, D)

    def decode(
        self,
        target_ids: Tensor,
        memory: Tensor,
        source_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Score each next word: ids ``(B, T)``, memory ``(B, S, D)`` -> ``(B, T, V)``.

        source_mask as in ``encode``. Filling at the end of a target needs no mask:
        causality hides it from every word before it. With a ``cache`` the ids continue
        the target that it holds. Raises what ``encode`` raises.
        """
        check_batch("target_ids", target_ids, self.config.max_len, None)
        keep = None if source_mask is None else padding_mask(source_mask)
        places: int | Tensor = 0
        past = None  # the mask of a cached step
        if cache is not None:
            places, past = cache.step(target_ids.shape[1])  # (B, T), (B, 1, T, S)
        x = self.target_positions(self.embedding(target_ids), places)  # (B, T, D)
        x = self.decoder(
            self.dropout(x), past, cache is None, cache, memory=memory, memory_mask=keep
        )  # (B, T, D)
        return self.head(x)  # (B, T, V)

    def new_cache(self, batch: int, room: int = 0) -> Cache:
        """An empty cache for ``batch`` targets of up to ``room`` ids, max_len where 0.

        It serves one memory: the first step keeps its keys and values. Raises
        ValueError for more room than ``max_len``.
        """
        c = replace(self.config, n_layers=len(self.decoder.blocks))
        return make_cache(c, batch, room, c.max_len, self.embedding.weight)

    def forward(
        self,
        source_ids: Tensor,
        target_ids: Tensor,
        source_mask: Tensor | None = None,
    ) -> Tensor:
        memory = self.encode(source_ids, source_mask)  # (B, S, D)
        return self.decode(target_ids, memory, source_mask)  # (B, T, V)


def teacher_forcing(
    rows: Sequence[Sequence[int]], start: int, stop: int, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    """What the decoder reads and what it should say: inputs and targets ``(B, T)``.

    rows are the right ids of each target. The inputs are ``start`` and the ids, the
    targets the ids and ``stop``, so that each row is asked for the next id (Williams
    and Zipser 1989). Short rows are filled up, inputs with ``stop``, targets with
    ``ignore``. Raises ValueError when there are no rows.
    """
    if not rows:
        raise ValueError("rows must hold at least one target, got none")
    longest = 1 + max(map(len, rows))
    inputs = torch.full((len(rows), longest), stop)  # (B, T)
    targets = torch.full((len(rows), longest), ignore)  # (B, T)
    for i, row in enumerate(rows):
        inputs[i, : len(row) + 1] = torch.tensor([start, *row])
        targets[i, : len(row) + 1] = torch.tensor([*row, stop])
    return inputs, targets


def smoothed_cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float = 0.1, ignore: int = -100
) -> Tensor:
    """Cross-entropy against a target that keeps 1 - smoothing for the right word.

    The rest is spread evenly over all V words, the right one included (Szegedy et al.
    2016, section 7). logits ``(..., V)``, targets ``(...)`` -> the mean over positions
    whose target isn't ``ignore``, in nats; NaN if there is none. Raises ValueError
    unless ``smoothing`` lies in [0, 1).
    """
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"smoothing must lie in [0, 1), got {smoothing}")
    log_probs = logits.log_softmax(dim=-1)  # (..., V)
    filling = targets == ignore  # (...)
    chosen = targets.masked_fill(filling, 0)[..., None]  # (..., 1)
    right = log_probs.gather(-1, chosen)[..., 0]  # (...)
    loss = -(1 - smoothing) * right - smoothing * log_probs.mean(dim=-1)  # (...)
    return loss.masked_fill(filling, 0.0).sum() / (~filling).sum()


def _check_search(beams: int, max_new_tokens: int, length_penalty: float) -> None:
    """Raise ValueError for a value below the least that makes sense."""
    for name, value, low in (
        ("beams", beams, 1),
        ("max_new_tokens", max_new_tokens, 0),
        ("length_penalty", length_penalty, 0),
    ):
        if not value >= low:  # also refuses NaN
            raise ValueError(f"{name} must be at least {low}, got {value}")


def beam_search(
    next_logits: Callable[[Tensor, Tensor], Tensor],
    prompts: Tensor,
    stop: int | None,
    max_new_tokens: int,
    beams: int = 1,
    length_penalty: float = 0.6,
) -> list[list[int]]:
    """Find a continuation of each prompt that is worth much, by a search of few.

    prompts ``(B, T)`` -> B lists of new ids, without ``stop``. Keeps the ``beams`` best
    beginnings of each; one beam is greedy. A continuation of n ids, stop counted, is
    worth log p / ((5 + n) / 6) ** length_penalty (Wu et al. 2016, section 7).
    ``next_logits(ids, origin)`` scores the next id of all N = B * beams beginnings,
    ``(N, T)`` -> ``(N, V)``; ``origin`` ``(N,)`` says which row of the call before each
    goes on from. Raises ValueError for a count or penalty below its least value.
    """
    _check_search(beams, max_new_tokens, length_penalty)
    batch, device = len(prompts), prompts.device
    ids = prompts.repeat_interleave(beams, dim=0)  # (B * beams, T)
    origin = torch.arange(batch * beams, device=device)  # (B * beams,)
    first = torch.arange(batch, device=device)[:, None] * beams  # (B, 1)
    score = torch.full((batch, beams), -torch.inf, device=device)  # log p
    score[:, 0] = 0.0  # all beams begin alike: one is enough
    length = torch.zeros_like(score)
    done = torch.zeros_like(score, dtype=torch.bool)
    for _ in range(max_new_tokens):
        logits = next_logits(ids, origin)  # (B * beams, V)
        width = logits.shape[-1]
        step = logits.log_softmax(dim=-1).view(batch, beams, width)
        if stop is not None:
            only_stop = step.new_full((width,), -torch.inf)
            only_stop[stop] = 0.0  # a finished one goes on with stop, at no cost
            step = torch.where(done[..., None], only_stop, step)
        total = score[..., None] + step  # (B, beams, V)
        length = length + ~done
        worth = total / ((5 + length[..., None]) / 6) ** length_penalty
        best = worth.flatten(1).topk(beams).indices  # (B, beams) of beams * V
        beam, word = best // width, best % width
        score = total.flatten(1).gather(1, best)
        length, done = length.gather(1, beam), done.gather(1, beam) | (word == stop)
        origin = (first + beam).flatten()  # (B * beams,)
        ids = torch.cat((ids[origin], word.view(-1, 1)), dim=1)  # (B * beams, T + 1)
        if done.all():
            break
    new = ids.view(batch, beams, -1)[:, 0, prompts.shape[1] :]  # the first is the best
    return [row[: row.index(stop)] if stop in row else row for row in new.tolist()]


@torch.no_grad()
def translate(
    model: Transformer,
    source_ids: Tensor,
    start: int,
    stop: int,
    source_mask: Tensor | None = None,
    max_new_tokens: int = 64,
    beams: int = 1,
    length_penalty: float = 0.6,
) -> list[list[int]]:
    """Write the most probable target of each source, word by word.

    source_ids ``(B, S)`` -> B lists of ids, without ``start`` and ``stop``, found by
    ``beam_search``. A target ends at ``stop``, after ``max_new_tokens`` or at the
    model's ``max_len``. Raises what ``beam_search`` and ``encode`` raise.
    """
    _check_search(beams, max_new_tokens, length_penalty)
    check_ids(source_ids.cpu(), model.config.vocab_size)
    check_ids(torch.tensor([start, stop]), model.config.vocab_size)
    most = min(max_new_tokens, model.config.max_len)
    was_training = model.training
    model.eval()
    try:
        memory = model.encode(source_ids, source_mask)  # (B, S, D)
        memory = memory.repeat_interleave(beams, dim=0)  # (B * beams, S, D)
        if source_mask is not None:
            source_mask = source_mask.repeat_interleave(beams, dim=0)
        cache = None
        if isinstance(model, Transformer) and most:
            cache = model.new_cache(len(memory), most)

        def next_logits(ids: Tensor, origin: Tensor) -> Tensor:
            if cache is None:  # a model of another kind reads everything again
                return model.decode(ids, memory, source_mask)[:, -1]  # (B * beams, V)
            if beams > 1:
                cache.reorder(origin)
            return model.decode(ids[:, -1:], memory, source_mask, cache)[:, -1]

        starts = source_ids.new_full((len(source_ids), 1), start)  # (B, 1)
        return beam_search(next_logits, starts, stop, most, beams, length_penalty)
    finally:
        model.train(was_training)
