"""Dropout: silence entries at random while training."""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Dropout", "check_dropout"]


def check_dropout(p: float) -> None:
    """Raise unless the probability of dropping lies in [0, 1)."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), got {p}")


class Dropout(nn.Module):
    """Zero each entry with probability p and divide the rest by 1 - p, in training.

    In evaluation it is the identity (Srivastava et al. 2014, inverted form).
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        check_dropout(p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)
