"""The output head: from a vector to a probability for every word.

Chapter 11 of Transformers, Matrix by Matrix.
Made from notebooks/11_output_head.ipynb by tools/export.py: edit the notebook.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = [
    "OutputHead",
    "check_temperature",
    "chunked_cross_entropy",
    "cross_entropy",
    "sample",
]


class OutputHead(nn.Module):
    """One logit for each word: ``(..., D)`` -> ``(..., V)``, x times the table's rows.

    Given ``tied`` (an embedding's weight ``(V, D)``) it shares that very parameter, so
    that a word is written with the vector it is read with (Press and Wolf 2017).
    ``bias`` adds a number to each word's logit. Raises ValueError when ``tied`` has
    another shape.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        tied: nn.Parameter | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if tied is not None and tied.shape != (vocab_size, d_model):
            raise ValueError(
                f"tied must have shape (V, D) = {(vocab_size, d_model)}, "
                f"got {tuple(tied.shape)}"
            )
        if tied is None:
            tied = nn.Parameter(torch.empty(vocab_size, d_model))
            nn.init.normal_(tied, std=0.02)
        self.weight = tied  # (V, D)
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None  # (V,)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)  # x W^T + b: (..., D) -> (..., V)


def cross_entropy(logits: Tensor, targets: Tensor, ignore: int = -100) -> Tensor:
    """Mean of -log p(target), in nats, over positions whose target isn't ``ignore``.

    logits ``(..., V)``, targets ``(...)`` integers -> a scalar. Set the targets of
    filling to ``ignore``.
    """
    rows = logits.reshape(-1, logits.shape[-1])  # (N, V)
    return F.cross_entropy(rows, targets.flatten(), ignore_index=ignore)


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless ``temperature`` is finite and at least 0."""
    if not 0 <= temperature < math.inf:  # also refuses NaN
        raise ValueError(
            f"temperature must be finite and at least 0, got {temperature}"
        )


def sample(
    logits: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Draw one id from each row of logits: ``(..., V)`` -> ``(...)``.

    ``temperature`` divides the logits; 0 takes the most probable word. Raises what
    ``check_temperature`` raises.
    """
    check_temperature(temperature)
    if temperature < 1e-6:  # the quotient could overflow
        return logits.argmax(dim=-1)  # (...)
    probs = (logits / temperature).softmax(dim=-1)  # (..., V)
    rows = probs.reshape(-1, probs.shape[-1])  # (N, V)
    drawn = torch.multinomial(rows, 1, generator=generator)  # (N, 1)
    return drawn.view(logits.shape[:-1])  # (...)


def chunked_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, chunk: int = 1024, ignore: int = -100
) -> Tensor:
    """``cross_entropy(x @ weight.T, targets, ignore)`` without storing all logits.

    x ``(..., D)``, weight ``(V, D)``, targets ``(...)`` -> a scalar, added up in
    float32 or wider. ``chunk`` rows of logits exist at a time; the backward pass
    computes them again.
    """
    rows, targets = x.reshape(-1, x.shape[-1]), targets.flatten()  # (N, D), (N,)
    wide = torch.promote_types(x.dtype, torch.float32)

    def loss_of(part: Tensor, target: Tensor) -> Tensor:
        logits = (part @ weight.T).to(wide)  # (chunk, V)
        return F.cross_entropy(logits, target, ignore_index=ignore, reduction="sum")

    total = torch.zeros((), dtype=wide, device=x.device)
    for start in range(0, len(rows), chunk):
        stop = start + chunk
        part, target = rows[start:stop], targets[start:stop]  # (chunk, D), (chunk,)
        total = total + checkpoint(loss_of, part, target, use_reentrant=False)
    return total / (targets != ignore).sum()
