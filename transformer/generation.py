"""Choosing the next word, and writing on without reading everything again.

Chapter 18 of Transformers, Matrix by Matrix.
Made from notebooks/18_generation.ipynb by tools/export.py: edit the notebook.
"""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from transformer.embeddings import check_ids
from transformer.encoder_decoder import beam_search
from transformer.gpt import GPT
from transformer.multi_head import places_of
from transformer.output_head import check_temperature, sample

__all__ = [
    "Reader",
    "Sampling",
    "generate",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "penalize_repetition",
    "search",
    "stream",
]


def _check(name: str, value: float, right: bool, wanted: str) -> None:
    """Raise ValueError unless ``right``."""
    if not right:
        raise ValueError(f"{name} must {wanted}, got {value}")


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k most probable words (Fan et al. 2018).

    logits ``(..., V)`` -> the same with -inf for all others. Words that are as probable
    as the k-th stay as well. Raises ValueError for k below 1.
    """
    _check("k", k, k >= 1, "be at least 1")
    least = logits.topk(min(k, logits.shape[-1])).values[..., -1:]  # (..., 1)
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest words that hold the share p (Holtzman et al. 2020, section 3.1).

    logits ``(..., V)`` -> the same with -inf for all others. The word that crosses p
    stays; of equally probable words the lower id goes first. Raises ValueError unless p
    lies in (0, 1].
    """
    _check("p", p, 0 < p <= 1, "lie in (0, 1]")
    if p == 1:
        return logits  # rounding could cut the tail
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)  # (..., V)
    probs = ordered.softmax(-1, torch.promote_types(logits.dtype, torch.float32))
    before = probs.cumsum(dim=-1) - probs  # (..., V): the share of the likelier words
    drop = torch.empty_like(order, dtype=torch.bool)
    drop.scatter_(-1, order, before >= p)  # (..., V), in the vocabulary's order again
    return logits.masked_fill(drop, -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep words at least p times as probable as the first (Nguyen et al. 2025).

    logits ``(..., V)`` -> the same with -inf for all others: p_i >= p * p_max, said in
    logits. Raises ValueError unless p lies in [0, 1].
    """
    _check("p", p, 0 <= p <= 1, "lie in [0, 1]")
    if p == 0:
        return logits
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    least = wide.amax(dim=-1, keepdim=True) + math.log(p)  # (..., 1)
    return logits.masked_fill(wide < least, -torch.inf)


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make words less probable that the text has (after Keskar et al. 2019, 4.1).

    logits ``(..., V)``, seen ``(..., V)`` boolean, True = occurs in the text. A logit
    above zero is divided by ``penalty``, one below is multiplied, so that both fall
    where ``penalty`` is above 1; the paper divides both. Raises ValueError unless it is
    finite and positive.
    """
    _check("penalty", penalty, 0 < penalty < math.inf, "be finite and above 0")
    lower = torch.where(logits > 0, logits / penalty, logits * penalty)  # (..., V)
    return torch.where(seen, lower, logits)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next word is chosen; the defaults draw from the model's own shares.

    ``temperature`` 0 takes the most probable; ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and
    ``repetition_penalty`` 1 are off. Raises ValueError, naming the field.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        _check("top_k", self.top_k, self.top_k >= 0, "be at least 0")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "lie in (0, 1]")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "lie in [0, 1]")
        penalty = self.repetition_penalty
        right = 0 < penalty < math.inf
        _check("repetition_penalty", penalty, right, "be finite and above 0")

    @property
    def greedy(self) -> bool:
        """Whether the most probable word is taken, and nothing drawn."""
        return self.temperature < 1e-6  # a quotient could overflow

    def __call__(self, logits: Tensor, seen: Tensor | None = None) -> Tensor:
        """The logits to draw from: ``(..., V)`` -> ``(..., V)``, -inf = never.

        ``seen`` as in penalize_repetition. The order is that of Hugging Face: penalty,
        temperature, top-k, top-p, min-p. The most probable word always stays.
        """
        if seen is not None:
            logits = penalize_repetition(logits, seen, self.repetition_penalty)
        if self.greedy:
            return keep_top_k(logits, 1)
        logits = logits / self.temperature
        if self.top_k:
            logits = keep_top_k(logits, self.top_k)
        return keep_min_p(keep_top_p(logits, self.top_p), self.min_p)

    def draw(
        self,
        logits: Tensor,
        seen: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Choose an id from each row: ``(..., V)`` -> ``(...)``."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return sample(self(wide, seen), 0.0 if self.greedy else 1.0, generator)


class Reader:
    """Reads a batch of texts, then a word more of each at a time; scores the next.

    ids ``(B, T)``; mask ``(B, T)`` boolean, True = real token, for texts padded on
    either side. ``more`` is how many ids will follow. Each word is read once, and its
    keys and values are kept, until a text grows longer than the model's ``max_len``:
    then the last ``max_len`` ids of all texts are read again for each word, since all
    of them change places. ``step`` may be the model compiled; it reads one id a row and
    always finds a cache of ``max_len`` places, so that one graph serves all steps.
    Raises ValueError for a wrong shape or a text without a token, TypeError for a wrong
    type, IndexError for an id outside the vocabulary.
    """

    def __init__(
        self,
        model: GPT,
        ids: Tensor,
        more: int,
        mask: Tensor | None = None,
        step: Callable[..., Tensor] | None = None,
    ) -> None:
        if ids.ndim != 2 or ids.shape[1] == 0:
            raise ValueError(
                "ids must have shape (B, T) with at least one token a prompt, "
                f"got {tuple(ids.shape)}"
            )
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be boolean, got {mask.dtype}")
        if mask.shape != ids.shape:
            raise ValueError(
                f"mask must have the shape of ids, {tuple(ids.shape)}, "
                f"got {tuple(mask.shape)}"
            )
        self.length = mask.sum(dim=1)  # (B,)
        lengths = (
            self.length.tolist()
        )  # here, and for check_ids, the device is waited for
        if 0 in lengths:
            raise ValueError(
                f"mask must leave a token in each row, row {lengths.index(0)} has none"
            )
        self.shortest, self.longest = min(lengths), max(lengths)
        ids = ids.masked_fill(~mask, 0)
        check_ids(ids.cpu(), model.config.vocab_size)
        # Each text from column 0 on, with columns for what will follow: (B, T + more)
        self.text = ids.new_zeros(len(ids), ids.shape[1] + more, dtype=torch.long)
        self.text.scatter_(1, places_of(mask), ids.long())
        self.model, self.step = model, model if step is None else step
        self.cache = None
        max_len = model.config.max_len
        if self.longest < max_len:
            room = min(max_len, self.longest + more) if step is None else max_len
            self.cache = model.new_cache(len(ids), room)

    def read_window(self) -> Tensor:
        """Score what follows the last ``max_len`` ids of each text: ``(B, V)``."""
        width = min(self.longest, self.model.config.max_len)
        start = (self.length - width).clamp(min=0)  # (B,)
        places = start[:, None] + torch.arange(width, device=start.device)  # (B, W)
        ids, last = self.text.gather(1, places), self.length - start - 1  # (B, W), (B,)
        mask = places < self.length[:, None] if self.shortest < width else None
        rows = self.model.read(ids, mask, self.cache)  # (B, W, D)
        row = torch.arange(len(rows), device=last.device)  # (B,)
        return self.model.head(rows[row, last])  # (B, D) -> (B, V)

    @torch.no_grad()
    def read(self, ids: Tensor | None = None) -> Tensor:
        """Read an id more of each text, ``(B,)``, the texts themselves at first.

        Returns the logits of the next id, ``(B, V)``.
        """
        if ids is None:
            return self.read_window()
        self.text.scatter_(1, self.length[:, None], ids[:, None])
        self.length = self.length + 1  # (B,)
        self.shortest, self.longest = self.shortest + 1, self.longest + 1
        if self.cache is not None and self.longest <= self.cache.room:
            return self.step(ids[:, None], cache=self.cache)[:, -1]  # (B, V)
        self.cache = None
        return self.read_window()

    def reorder(self, rows: Tensor) -> None:
        """Let row i go on from what row ``rows[i]`` has read."""
        self.text, self.length = self.text[rows], self.length[rows]
        if self.cache is not None:
            self.cache.reorder(rows)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Run in eval mode, then let every part go back to its mode before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def stream(
    model: GPT,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: int | Collection[int] = (),
    mask: Tensor | None = None,
    step: Callable[..., Tensor] | None = None,
) -> Iterator[Tensor]:
    """Write on, and hand out the new ids ``(B,)`` of all texts as they are drawn.

    ids ``(B, T)`` integers; mask ``(B, T)`` boolean, True = real token, for prompts
    padded on either side. How a word is chosen says Sampling; ``generator`` draws for
    the whole batch, on the model's device. A text that has drawn ``stop``, an id or one
    of several, repeats it; when all have, the stream ends (to see that, each word waits
    for the device). ``step`` as in Reader. The
    model sees the last ``max_len`` ids of a text. It is in eval mode only while it
    reads, and in its own whenever the stream waits. Raises, at once, ValueError for a
    number out of its range and what Reader raises.
    """
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    _check("max_new_tokens", max_new_tokens, max_new_tokens >= 0, "be at least 0")
    ends = torch.tensor([stop] if isinstance(stop, int) else list(stop)).long()  # (N,)
    check_ids(ends, model.config.vocab_size)
    reader = Reader(model, ids, max_new_tokens, mask, step)
    return _write(reader, max_new_tokens, sampling, generator, ends.to(ids.device))


@torch.no_grad()
def _write(
    reader: Reader,
    max_new_tokens: int,
    sampling: Sampling,
    generator: torch.Generator | None,
    ends: Tensor,
) -> Iterator[Tensor]:
    """The loop of ``stream``: read, choose, hand out."""
    drawn = seen = None
    stopped = torch.zeros_like(reader.length, dtype=torch.bool)  # (B,)
    if sampling.repetition_penalty != 1:
        real = torch.arange(reader.text.shape[1], device=ends.device)  # (T + N,)
        count = reader.text.new_zeros(len(reader.text), reader.model.config.vocab_size)
        real = (real < reader.length[:, None]).long()  # (B, T + N)
        seen = count.scatter_add(1, reader.text, real) > 0  # (B, V)
    for _ in range(max_new_tokens):
        with _evaluating(reader.model):
            logits = reader.read(drawn)  # (B, V)
        new = sampling.draw(logits, seen, generator)  # (B,)
        drawn = new if drawn is None else torch.where(stopped, drawn, new)
        if seen is not None:
            seen.scatter_(1, drawn[:, None], True)
        yield drawn
        if len(ends):
            stopped = torch.isin(drawn, ends)  # (B,)
            if stopped.all():
                return


def generate(
    model: GPT,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: int | Collection[int] = (),
    mask: Tensor | None = None,
    step: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Append up to ``max_new_tokens`` ids to each prompt.

    ids ``(B, T)`` -> ``(B, T + N)``: what was given, filling included, and the N new
    columns. N is less than ``max_new_tokens`` where all texts have stopped; one that
    stops before the others is filled up with its stop. The arguments are those of
    ``stream``, and so are the errors.
    """
    new = stream(
        model,
        ids,
        max_new_tokens,
        temperature,
        generator,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
        mask=mask,
        step=step,
    )
    return torch.cat((ids, *(drawn[:, None] for drawn in new)), dim=1)  # (B, T + N)


@torch.no_grad()
def search(
    model: GPT,
    ids: Tensor,
    max_new_tokens: int,
    beams: int = 4,
    length_penalty: float = 0.6,
    stop: int | None = None,
    mask: Tensor | None = None,
) -> list[list[int]]:
    """Find a probable continuation of each prompt: ``beam_search``, with a cache.

    ids ``(B, T)``, mask as in ``stream`` -> B lists of new ids, without ``stop``. One
    beam is greedy. Raises what Reader and ``beam_search`` raise.
    """
    if stop is not None:
        check_ids(torch.tensor([stop]), model.config.vocab_size)
    reader = Reader(model, ids, max(max_new_tokens, 0), mask)
    every = torch.arange(len(ids), device=ids.device)  # (B,)
    begun = False

    def next_logits(ids: Tensor, origin: Tensor) -> Tensor:
        nonlocal begun
        if begun:
            reader.reorder(origin)
            return reader.read(ids[:, -1])  # (B * beams, V)
        begun = True
        logits = reader.read()  # (B, V): each prompt is read once
        rows = every.repeat_interleave(beams)  # (B * beams,)
        reader.reorder(rows)
        return logits[rows]  # (B * beams, V)

    with _evaluating(model):
        return beam_search(
            next_logits, ids, stop, max_new_tokens, beams, length_penalty
        )
