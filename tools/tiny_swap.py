"""Train chapter 14's translator by hand and write data/tiny/swap.json.

An encoder-decoder of the 2017 kind with four columns and one layer a side learns to say
who does it to whom the other way round, on the running example's six sentences. Its
weights are rounded to one decimal, so that a reader can follow them on paper. A small
term of the loss asks the first head of the cross-attention to look at the word that is
to be written; left alone, so small a model finds ways that are hard to read.

Many random starts are trained side by side. Of those whose rounded model translates
all six sentences, and the six others that the vocabulary allows, we keep the one whose
looks are clearest.

    python tools/tiny_swap.py [starts]
"""

import json
import os
import re
import sys
from dataclasses import asdict
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from tiny import SENTENCES, WORDS, one_line
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from transformer.encoder_decoder import Transformer, TransformerConfig, translate
from transformer.multi_head import attention_maps
from transformer.output_head import cross_entropy

VOCAB = [*WORDS, "<start>", "<stop>"]
START, STOP = len(WORDS), len(WORDS) + 1
CONFIG = TransformerConfig(
    vocab_size=len(VOCAB),
    max_len=8,
    d_model=4,
    n_heads=2,
    n_layers=1,
    d_ff=8,
    dropout=0.0,
)
STEPS = 1500
ASKS, ANSWERS = torch.tensor([1, 2, 4]), torch.tensor([4, 2, 1])  # row asks for column
NUDGE = 0.03  # how much a clear look weighs in the loss


def swap(sentence: str) -> str:
    """Exchange subject and object: the second word and the fifth."""
    words = sentence.split()
    words[1], words[4] = words[4], words[1]
    return " ".join(words)


def to_ids(sentences: list[str]) -> Tensor:
    """Sentences of one length as a batch. (B, S)"""
    return torch.tensor([[VOCAB.index(w) for w in s.split()] for s in sentences])


ALL = [
    f"the {who} {does} the {whom} ."
    for does in ("bites", "sees")
    for who, whom in permutations(("cat", "dog", "man"), 2)
]
SOURCE = to_ids(SENTENCES)  # (6, 6)
INPUTS = to_ids([f"<start> {swap(s)}" for s in SENTENCES])  # (6, 7)
TARGETS = to_ids([f"{swap(s)} <stop>" for s in SENTENCES])  # (6, 7)


def start(seed: int) -> Transformer:
    """A new model."""
    torch.manual_seed(seed)
    model = Transformer(CONFIG)
    for weight in model.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=0.5)
    return model


def rounded(weight: Tensor) -> Tensor:
    """To one decimal; gradients pass as if nothing had happened."""
    return weight + ((weight * 10).round() / 10 + 0.0 - weight).detach()  # no -0.0


def train(starts: int) -> list[Transformer]:
    """Train that many at once; the second half of the steps feels the rounding."""
    models = [start(seed) for seed in range(starts)]
    stacked, buffers = stack_module_state(models)
    params = {k: v.detach().requires_grad_() for k, v in stacked.items()}
    maps: list[Tensor] = []

    def record(layer: Any, inputs: Any, options: Any, _: Any) -> None:
        maps.append(layer.weights(*inputs, **options))  # (B, H, T, S)

    cross = models[0].decoder.blocks[0].cross_attention
    cross.register_forward_hook(record, with_kwargs=True)

    def loss(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        logits = functional_call(models[0], (params, buffers), (SOURCE, INPUTS))
        looks = maps.pop()[:, 0, ASKS, ANSWERS]  # (B, 3)
        return cross_entropy(logits, TARGETS) - NUDGE * looks.log().mean()

    optimizer = torch.optim.Adam(params.values(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, STEPS)
    with sdpa_kernel(SDPBackend.MATH):
        for step in range(STEPS):
            late = step > STEPS // 2
            used = {k: rounded(v) if late else v for k, v in params.items()}
            size = sum(
                (2e-3 if "encoder" in name else 3e-4) * p.square().sum()
                for name, p in used.items()
            )
            (vmap(loss)(used, buffers).sum() + size).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    for i, model in enumerate(models):
        own = {k: rounded(v[i].detach()) for k, v in params.items()}
        model.load_state_dict(own, strict=False)
    return [model.eval() for model in models]


@torch.no_grad()
def score(model: Transformer) -> tuple[int, int, float]:
    """Sentences translated: of the six, of all twelve; and its least clear look."""
    sentences = SENTENCES + ALL
    written = translate(model, to_ids(sentences), START, STOP, max_new_tokens=7)
    wanted = to_ids([swap(s) for s in sentences]).tolist()
    right = [w == t for w, t in zip(written, wanted, strict=True)]
    cross = attention_maps(model, SOURCE, INPUTS)[-1]  # (6, H, 7, 6)
    return sum(right[:6]), sum(right[6:]), cross[:, 0, ASKS, ANSWERS].min().item()


def main(starts: int) -> None:
    """Train, choose, write."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # the same sums on every machine
    scored = [(*score(model), i, model) for i, model in enumerate(train(starts))]
    six, twelve, look, number, model = max(scored, key=lambda entry: entry[:3])
    print(f"start {number}: {six} of 6, {twelve} of 12, least look {look:.2f}")
    target = Path(__file__).parents[1] / "data/tiny/swap.json"
    new = target.with_suffix(".new")
    content = {
        "tokens": VOCAB,
        "pairs": [[sentence, swap(sentence)] for sentence in SENTENCES],
        "config": asdict(CONFIG),
        "weights": {k: v.tolist() for k, v in model.state_dict().items()},
    }
    text = json.dumps(content, indent=1)
    new.write_text(re.sub(r"\[\s+(-?[\d.,\s-]+?)\s+\]", one_line, text) + "\n")
    os.replace(new, target)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 128)
