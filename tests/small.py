"""A GPT that is small, and none of whose parts is next to nothing."""

from torch import nn

from transformer.gpt import GPT, GPTConfig

SIZE = {"vocab_size": 11, "max_len": 8, "d_model": 8, "n_heads": 2, "n_layers": 2}


def tiny_gpt(**changes):
    """Build one with ``changes`` to SIZE; its weights are far from zero."""
    model = GPT(GPTConfig(**(SIZE | changes))).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.5)
    return model
