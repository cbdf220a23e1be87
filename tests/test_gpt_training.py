"""The training of chapter 12: against Hugging Face's GPT-2, and the big setting.

The notebook's cells with the tag ``training`` are run here as they stand, so that the
loop of the page is the loop of the test.
"""

import math
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import bookfiles as book
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import transformer.gpt

pytestmark = pytest.mark.slow


def chapter():
    """What the chapter's training cells define, as a namespace."""
    sys.path.insert(0, str(book.ROOT / "notebooks"))
    import bookkit

    names = {**vars(transformer.gpt), "kit": bookkit}
    notebook = book.read(book.ROOT / "notebooks/12_gpt.ipynb")
    cells = [c for c in book.code_cells(notebook) if "training" in book.tags(c)]
    assert len(cells) == 5
    for cell in cells:
        exec(book.source(cell), names)
    return names


class TheirGPT2(nn.Module):
    """Hugging Face's GPT-2 of a setting's shape, with its own start: ids -> logits."""

    def __init__(self, setting, vocab_size):
        super().__init__()
        self.model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab_size, n_positions=setting.max_len,
                n_embd=setting.d_model, n_head=setting.n_heads,
                n_layer=setting.n_layers, embd_pdrop=setting.dropout,
                attn_pdrop=setting.dropout, resid_pdrop=setting.dropout,
                bos_token_id=0, eos_token_id=0,
            )
        )  # fmt: skip

    def forward(self, ids):
        return self.model(ids).logits


def final_loss(whose):
    """Train one of the two as the chapter does; return its validation loss."""
    torch.set_num_threads(1)
    names = chapter()
    setting = names["SMALL"]
    torch.manual_seed(0)
    if whose == "ours":
        model = setting.model()
    else:
        model = TheirGPT2(setting, names["tokenizer"].vocab_size)
    for _ in names["train"](model, setting):
        pass
    return names["evaluate"](model, setting)


def test_not_worse_than_hugging_face():
    """The same batches, steps, optimiser and schedule; a process for each."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        ours, theirs = pool.map(final_loss, ("ours", "theirs"))
    print(f"validation loss: ours {ours:.3f}, Hugging Face's GPT-2 {theirs:.3f}")
    assert ours <= 1.75
    assert ours <= theirs


def test_a_learned_table_gives_hugging_faces_losses():
    """From the same weights the two models are trained to the same losses."""
    names = chapter()
    setting = names["replace"](names["SMALL"], steps=5)
    torch.manual_seed(0)
    theirs = TheirGPT2(setting, names["tokenizer"].vocab_size)
    config = names["replace"](setting.model().config, positions="learned")
    ours = transformer.gpt.GPT(config)
    ours.load_state_dict(from_gpt2(theirs.model.state_dict()))
    a, b = ([x for _, x in names["train"](m, setting)] for m in (ours, theirs))
    assert a == pytest.approx(b, abs=1e-4)


def from_gpt2(state):
    """The chapter's function, from the cell that defines it."""
    names = {}
    notebook = book.read(book.ROOT / "notebooks/12_gpt.ipynb")
    for cell in book.code_cells(notebook):
        if "def from_gpt2(" in book.source(cell):
            exec(book.source(cell), names)
    return names["from_gpt2"](state)


def test_the_big_setting_runs():
    """Six layers, 384 wide, 256 positions: a few steps on the CPU, on small batches."""
    names = chapter()
    big = names["BIG"]
    assert (big.n_layers, big.d_model, big.max_len) == (6, 384, 256)
    torch.manual_seed(0)
    few = names["replace"](big, steps=3, batch=2)
    losses = [loss for _, loss in names["train"](few.model(), few)]
    assert len(losses) == 3
    assert losses[0] == pytest.approx(math.log(names["tokenizer"].vocab_size), abs=0.3)
    assert losses[-1] < losses[0]
