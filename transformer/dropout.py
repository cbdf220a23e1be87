"""Silence entries at random while training, and none when it counts.

Chapter 9 of Transformers, Matrix by Matrix.
Made from notebooks/09_dropout.ipynb by tools/export.py: edit the notebook.
"""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Dropout", "check_dropout"]


def check_dropout(p: float) -> None:
    """Raise ValueError unless p, the chance to drop an entry, lies in [0, 1)."""
    if not 0.0 <= p < 1.0:  # also refuses NaN
        raise ValueError(f"dropout must lie in [0, 1), got {p}")


class Dropout(nn.Module):
    """Zero each entry with chance p and divide the rest by 1 - p, in training only.

    x of any shape -> the same shape. After ``eval()`` x itself comes back. p is the
    chance to *drop*; Srivastava et al. 2014, section 4, write p for the chance to stay
    and multiply by it in use. Raises ValueError unless p lies in [0, 1).
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        check_dropout(p)
        self.p = p

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)
