"""Add to a row instead of replacing it, then bring every row back to the same size.

Chapter 7 of Transformers, Matrix by Matrix.
Made from notebooks/07_norm.ipynb by tools/export.py: edit the notebook.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LayerNorm", "RMSNorm"]


class LayerNorm(nn.Module):
    """Subtract the mean, divide by the deviation, scale, shift (Ba et al. 2016, 3).

    x ``(..., D)`` -> ``(..., D)``, each row by itself. The variance is divided by D,
    and ``eps`` stands under the root. ``bias=False`` leaves out the shift. Raises
    ValueError when ``d_model`` is below 1 or ``eps`` is negative.
    """

    def __init__(self, d_model: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        _check(d_model, eps)
        self.weight = nn.Parameter(torch.ones(d_model))  # (D,)
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None  # (D,)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def _check(d_model: int, eps: float) -> None:
    """Raise unless a row has entries and the root has no negative beneath it."""
    if d_model < 1:
        raise ValueError(f"d_model must be at least 1, got {d_model}")
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")


class RMSNorm(nn.Module):
    """Divide by the root mean square, scale (Zhang and Sennrich 2019, section 4).

    x ``(..., D)`` -> ``(..., D)``. No mean is subtracted and nothing is added. Raises
    ValueError when ``d_model`` is below 1 or ``eps`` is negative.
    """

    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__()
        _check(d_model, eps)
        self.weight = nn.Parameter(torch.ones(d_model))  # (D,)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
