"""Read both ways: an encoder turns words into vectors that know their neighbours.

Chapter 13 of Transformers, Matrix by Matrix.
Made from notebooks/13_bert.ipynb by tools/export.py: edit the notebook.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transformer.block import BlockConfig, Stack, make_norm
from transformer.dropout import Dropout
from transformer.embeddings import TokenEmbedding
from transformer.gpt import Loadable, check_batch
from transformer.masks import padding_mask
from transformer.output_head import OutputHead
from transformer.positions import LearnedPositions

__all__ = [
    "BERT",
    "BERTConfig",
    "MaskedLM",
    "TextClassifier",
    "TokenClassifier",
    "mask_words",
    "mean_pool",
    "small_linear",
]


def mask_words(
    ids: Tensor,
    mask_id: int,
    vocab_size: int,
    keep: Tensor,
    share: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Hide some words and say which: inputs and targets, each ``(B, S)``.

    Of the positions that ``keep`` ``(B, S)`` does not protect, ``share`` become
    targets; of these 80 % turn into ``mask_id``, 10 % into a random id below
    ``vocab_size``, 10 % stay. All other targets are -100 (Devlin et al. 2019, section
    3.1). Raises ValueError unless ``share`` lies in (0, 1] and ``keep`` is boolean of
    the shape of ids.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    if keep.shape != ids.shape or keep.dtype != torch.bool:
        raise ValueError(
            f"keep must be boolean of shape {tuple(ids.shape)}, "
            f"got {keep.dtype} {tuple(keep.shape)}"
        )
    chosen, kind = torch.rand(2, *ids.shape, generator=generator).to(ids.device)
    target = (chosen < share) & ~keep  # (B, S)
    drawn = torch.randint(vocab_size, ids.shape, generator=generator).to(ids)
    inputs = ids.masked_fill(target & (kind < 0.8), mask_id)
    inputs = torch.where(target & (kind >= 0.9), drawn, inputs)
    return inputs, ids.masked_fill(~target, -100)


@dataclass(frozen=True, kw_only=True)
class BERTConfig(BlockConfig):
    """An encoder-only model's choices; the defaults are BERT's (Devlin et al. 2019).

    Beside the choices of a block: ``vocab_size`` V; ``max_len``, the most positions
    read at once; ``n_segments``, how many sentences stand in one input. Raises
    ValueError for a choice that can't be built.
    """

    vocab_size: int
    max_len: int = 512
    n_segments: int = 2
    dropout: float = 0.1
    activation: str = "gelu"
    order: str = "post"
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocab_size", "max_len", "n_segments"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )


def small_linear(module: nn.Module) -> None:
    """Start a linear layer as BERT does, at any width; no bias.

    The deviation is 0.02 at BERT's 768 inputs and goes with one over the root of the
    inputs, so that a narrow layer answers as loudly as a wide one.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02 * (768 / module.in_features) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class BERT(Loadable):
    """An encoder-only Transformer (Devlin et al. 2019, section 3).

    ids ``(B, S)`` -> hidden states ``(B, S, D)``. Every row has seen every real token.
    """

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = c = config
        self.embedding = TokenEmbedding(c.vocab_size, c.d_model)
        self.positions = LearnedPositions(c.max_len, c.d_model)
        self.segments = TokenEmbedding(c.n_segments, c.d_model)
        self.norm = make_norm(c)
        self.dropout = Dropout(c.dropout)
        self.stack = Stack(c)
        self.apply(small_linear)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Read a batch of texts.

        ids ``(B, S)`` integers; mask ``(B, S)`` boolean, True = real token; segments
        ``(B, S)`` integers, 0 where absent -> hidden states ``(B, S, D)``. Raises
        ValueError for a wrong shape or more than ``max_len`` positions, TypeError for a
        wrong type, IndexError for an id outside its table.
        """
        check_batch("ids", ids, self.config.max_len, mask)
        segments = torch.zeros_like(ids) if segments is None else segments
        if segments.shape != ids.shape:
            raise ValueError(
                f"segments must have the shape of ids, {tuple(ids.shape)}, "
                f"got {tuple(segments.shape)}"
            )
        keep = None if mask is None else padding_mask(mask)  # (B, 1, 1, S)
        x = self.positions(self.embedding(ids) + self.segments(segments))  # (B, S, D)
        return self.stack(self.dropout(self.norm(x)), mask=keep)  # (B, S, D)


class MaskedLM(Loadable):
    """BERT with a head that guesses hidden words (Devlin et al. 2019, section 3.1).

    ids ``(B, S)`` -> logits ``(B, S, V)``. The head's table is the embedding's.
    """

    tied = ("bert.embedding.weight", "head.weight")

    def __init__(self, bert: BERT) -> None:
        super().__init__()
        self.config = c = bert.config
        self.bert = bert
        self.dense = nn.Linear(c.d_model, c.d_model)
        self.norm = make_norm(c)
        self.head = OutputHead(c.d_model, c.vocab_size, bert.embedding.weight, True)
        small_linear(self.dense)

    def score(self, x: Tensor) -> Tensor:
        """Hidden states ``(..., D)`` -> logits ``(..., V)``: the head alone."""
        return self.head(self.norm(F.gelu(self.dense(x))))  # (..., V)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Score every word at every position; arguments as in ``BERT.forward``."""
        return self.score(self.bert(ids, mask, segments))  # (B, S, V)


class TextClassifier(nn.Module):
    """One label a text, read off the first row: ids ``(B, S)`` -> ``(B, n_classes)``.

    Put [CLS] first (Devlin et al. 2019, section 3). Arguments as in ``BERT.forward``.
    """

    def __init__(self, bert: BERT, n_classes: int) -> None:
        super().__init__()
        self.bert = bert
        self.dropout = Dropout(bert.config.dropout)
        self.classify = nn.Linear(bert.config.d_model, n_classes)
        small_linear(self.classify)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        x = self.bert(ids, mask, segments)[:, 0]  # (B, D)
        return self.classify(self.dropout(x))  # (B, n_classes)


class TokenClassifier(nn.Module):
    """One label a token: ids ``(B, S)`` -> logits ``(B, S, n_classes)``.

    Named entities are read so (Devlin et al. 2019, section 5.3). Arguments as in
    ``BERT.forward``.
    """

    def __init__(self, bert: BERT, n_classes: int) -> None:
        super().__init__()
        self.bert = bert
        self.dropout = Dropout(bert.config.dropout)
        self.classify = nn.Linear(bert.config.d_model, n_classes)
        small_linear(self.classify)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        x = self.bert(ids, mask, segments)  # (B, S, D)
        return self.classify(self.dropout(x))  # (B, S, n_classes)


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over real tokens (Reimers and Gurevych 2019, section 3).

    hidden ``(B, S, D)``, mask ``(B, S)`` boolean, True = real token -> ``(B, D)``. A
    text without any token gets zeros. Raises ValueError for a mask of another shape,
    TypeError for one that isn't boolean.
    """
    if mask.shape != hidden.shape[:2]:
        raise ValueError(
            f"mask must have shape (B, S) = {tuple(hidden.shape[:2])}, "
            f"got {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, True = real token, got {mask.dtype}")
    total = hidden.masked_fill(~mask[..., None], 0.0).sum(dim=1)  # (B, D)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)  # (B, D)
