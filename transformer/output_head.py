"""The output head: from a vector to a probability for every word.

Chapter 11 of Transformers, Matrix by Matrix.
Made from notebooks/11_output_head.ipynb by tools/export.py: edit the notebook.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ["OutputHead", "chunked_cross_entropy", "cross_entropy", "sample"]


class OutputHead(nn.Module):
    """One logit for each word: ``(..., D)`` -> ``(..., V)``, x times the table's rows.

    Given ``tied`` (an embedding's weight ``(V, D)``) it shares that very parameter, so
    that a word is written with the vector it is read with (Press and Wolf 2017).
    Raises ValueError when ``tied`` has another shape.
    """

    def __init__(
        self, d_model: int, vocab_size: int, tied: nn.Parameter | None = None
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

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T  # (..., D) @ (D, V) -> (..., V)


def cross_entropy(logits: Tensor, targets: Tensor, ignore: int = -100) -> Tensor:
    """Mean of -log p(target), in nats, over positions whose target isn't ``ignore``.

    logits ``(..., V)``, targets ``(...)`` integers -> a scalar. Set the targets of
    filling to ``ignore``.
    """
    return F.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), ignore_index=ignore
    )


def sample(
    logits: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Draw one id from each row of logits: ``(..., V)`` -> ``(...)``.

    ``temperature`` divides the logits; 0 takes the most probable word. Raises
    ValueError for a negative temperature.
    """
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if temperature == 0:
        return logits.argmax(dim=-1)  # (...)
    probs = (logits / temperature).softmax(dim=-1)  # (..., V)
    drawn = torch.multinomial(probs.flatten(0, -2), 1, generator=generator)  # (N, 1)
    return drawn.view(logits.shape[:-1])  # (...)


def chunked_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, chunk: int = 1024
) -> Tensor:
    """``cross_entropy(x @ weight.T, targets)`` without ever storing all logits.

    x ``(..., D)``, weight ``(V, D)``, targets ``(...)`` -> a scalar. ``chunk`` rows of
    logits exist at a time; the backward pass computes them again.
    """
    rows, targets = x.flatten(0, -2), targets.flatten()  # (N, D), (N,)

    def loss_of(part: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(part @ weight.T, target, reduction="sum")

    total = rows.new_zeros(())
    for start in range(0, len(rows), chunk):
        stop = start + chunk
        part, target = rows[start:stop], targets[start:stop]  # (chunk, D), (chunk,)
        total = total + checkpoint(loss_of, part, target, use_reentrant=False)
    return total / len(targets)
