"""The feed-forward network: two matrices and a bend, at every position alone.

Chapter 8 of Transformers, Matrix by Matrix.
Made from notebooks/08_feed_forward.ipynb by tools/export.py: edit the notebook.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "FeedForward", "GatedFeedForward"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


class FeedForward(nn.Module):
    """up, bend, down: ``(..., D)`` -> ``(..., F)`` -> ``(..., D)``.

    With "relu" it is the 2017 network (Vaswani et al. 2017, section 3.3), with
    "gelu_tanh" GPT-2's. Raises ValueError for an activation that isn't known.
    """

    def __init__(
        self, d_model: int, d_ff: int, activation: str = "relu", bias: bool = True
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}"
            )
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.up(x))  # (..., F)
        return self.down(hidden)  # (..., D)


class GatedFeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, section 2).

    ``(..., D)`` -> ``(..., F)`` -> ``(..., D)``, three matrices and no biases.
    """

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.gate(x)) * self.up(x)  # (..., F)
        return self.down(hidden)  # (..., D)
