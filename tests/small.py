"""A GPT that is small, none of whose parts is next to nothing, and padded batches."""

import torch
from torch import nn

from transformer.gpt import GPT, GPTConfig

SIZE = {"vocab_size": 11, "max_len": 8, "d_model": 8, "n_heads": 2, "n_layers": 2}


def tiny_gpt(**changes):
    """Build one with ``changes`` to SIZE; its weights are far from zero."""
    model = GPT(GPTConfig(**(SIZE | changes))).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.5)
    return model


def padded(texts, side, filling=0):
    """Texts as one batch filled up: ids and mask."""
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), filling)
    mask = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        start = 0 if side == "right" else longest - len(text)
        ids[row, start : start + len(text)] = torch.tensor(text)
        mask[row, start : start + len(text)] = True
    return ids, mask
