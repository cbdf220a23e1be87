"""Token embeddings: a table with one row a token.

Chapter 2 of Transformers, Matrix by Matrix.
Made from notebooks/02_embeddings.ipynb by tools/export.py: edit the notebook.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["TokenEmbedding", "check_ids"]


def check_ids(ids: Tensor, vocab_size: int) -> None:
    """Raise unless ``ids`` are integers in ``[0, vocab_size)``.

    TypeError for another dtype, IndexError for a value outside. Values are looked at
    only on the CPU and outside a compiled graph: elsewhere that would stall the device.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"ids must be int64 or int32, got {ids.dtype}")
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or ids.numel() == 0:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise IndexError(f"ids must lie in [0, {vocab_size}), got {bad}")


class TokenEmbedding(nn.Module):
    """Look up one row of a table for each token id.

    ids ``(B, T)`` integers -> ``(B, T, D)``. With ``scale`` the rows are multiplied by
    sqrt(d_model), as in the 2017 model (Vaswani et al. 2017, section 3.4). Entries
    start with a standard deviation of 0.02, as in GPT-2. Raises what ``check_ids``
    raises.
    """

    def __init__(self, vocab_size: int, d_model: int, scale: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))  # (V, D)
        self.factor = math.sqrt(d_model) if scale else 1.0
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        check_ids(ids, self.weight.shape[0])
        return F.embedding(ids, self.weight) * self.factor  # (B, T) -> (B, T, D)
