"""One training step: the loss, every gradient, one update, and the memory they take.

Chapter 16 of Transformers, Matrix by Matrix.
Made from notebooks/16_training_step.ipynb by tools/export.py: edit the notebook.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transformer.gpt import GPTConfig

__all__ = [
    "IGNORE",
    "check_pair",
    "decay_groups",
    "evaluate",
    "make_optimizer",
    "summed_loss",
    "train_step",
    "training_bytes",
]


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Sort the trainable parameters: matrices decay, vectors do not.

    Vectors are the biases and the gains of norms. Returns two groups as
    ``torch.optim`` takes them; a shared parameter stands in them once, a frozen one
    not at all. Raises ValueError when ``weight_decay`` is negative or nothing is
    trainable.
    """
    if not 0 <= weight_decay < math.inf:  # also refuses NaN
        raise ValueError(
            f"weight_decay must be finite and at least 0, got {weight_decay}"
        )
    trained = [p for p in model.parameters() if p.requires_grad]  # each once
    if not trained:
        raise ValueError("model must have a parameter that is trained, got none")
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module,
    rate: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    fused: bool = True,
) -> torch.optim.AdamW:
    """AdamW over ``decay_groups(model, weight_decay)``.

    ``rate`` is the learning rate; ``betas`` are the shares of the old means that each
    step keeps (Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm
    2). The defaults of ``betas`` and ``weight_decay`` are GPT-3's (Brown et al. 2020,
    appendix B); each step takes the share rate times decay off a matrix. ``fused``
    updates all weights in one kernel, for devices that have one: the same numbers to
    rounding, sooner. Move the model to its device first. Raises ValueError for
    a rate or a decay below 0, betas outside [0, 1), or a model without trainable
    parameters.
    """
    if not 0 <= rate < math.inf:
        raise ValueError(f"rate must be finite and at least 0, got {rate}")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")
    groups = decay_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=fused)


IGNORE = -100  # a target that asks for nothing: filling


def summed_loss(
    model: nn.Module, inputs: Tensor, targets: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Sum of -log p(target), in nats, over the targets that aren't ``IGNORE``.

    inputs ``(B, T)``, targets ``(B, T)`` -> a scalar, float32 or wider. With ``dtype``
    (bfloat16) the matrix products run in it; without, in the weights' own type. Raises
    ValueError for another ``dtype`` or when the targets don't fit the model's logits
    ``(B, T, V)``.
    """
    if dtype not in (None, torch.bfloat16):  # float16 would need a scaled loss
        raise ValueError(f"dtype must be None or torch.bfloat16, got {dtype}")
    with torch.autocast(inputs.device.type, dtype, enabled=dtype is not None):
        logits = model(inputs)  # (B, T, V)
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets must have shape {tuple(logits.shape[:-1])}, one for each row of "
            f"logits, got {tuple(targets.shape)}"
        )
    wide = torch.promote_types(logits.dtype, torch.float32)
    rows = logits.reshape(-1, logits.shape[-1]).to(wide)  # (N, V)
    return F.cross_entropy(
        rows, targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )


def check_pair(batch: object) -> tuple[Tensor, Tensor]:
    """Return a batch as (inputs, targets); TypeError unless it is a pair of tensors."""
    pair = tuple(batch) if isinstance(batch, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        raise TypeError(
            "batches must hold pairs of tensors (inputs, targets), "
            f"got a {type(batch).__name__} among them"
        )
    return pair


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[tuple[Tensor, Tensor]],
    clip: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Update once, from the mean loss over all targets of all micro-batches.

    ``batches``: pairs (inputs ``(B, T)``, targets ``(B, T)``), targets -100 where
    nothing is asked. Each micro-batch weighs as many targets as it has, so that the
    gradient equals one large batch's. ``clip`` bounds the gradient's length over all
    parameters (Pascanu et al. 2013, algorithm 1); 0 or inf leaves it. ``dtype``:
    bfloat16 for the matrix products. Returns the loss, nats a target, and the
    gradient's length before clipping, as tensors: reading them waits for the device.
    A gradient that isn't finite is not stopped: look at its length. The gradients stay
    until the next call; the model's mode is left alone. Raises ValueError when there is
    no batch or ``clip`` is negative, TypeError when a batch is no pair of tensors, and
    what ``summed_loss`` raises. A step without any target is a ValueError on the CPU;
    on a GPU, where looking would wait, its gradient is 0.
    """
    if not clip >= 0:  # also refuses NaN
        raise ValueError(f"clip must be at least 0, got {clip}")
    if len(batches) == 0:
        raise ValueError("batches must hold at least one pair (inputs, targets)")
    pairs = [check_pair(batch) for batch in batches]
    total = torch.stack([(targets != IGNORE).sum() for _, targets in pairs]).sum()
    if total.device.type == "cpu" and not total:  # a GPU would have to be waited for
        raise ValueError(f"batches must ask for something: every target is {IGNORE}")

    model.zero_grad()
    loss = torch.zeros((), dtype=torch.float32, device=total.device)
    for inputs, targets in pairs:
        part = summed_loss(model, inputs, targets, dtype) / total.clamp(min=1)
        torch.autograd.backward(part)  # adds to the gradients of the parts before
        loss = loss + part.detach()
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
    if 0 < clip < math.inf:
        nn.utils.clip_grads_with_norm_(weights, clip, norm)
    optimizer.step()
    return loss, norm


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    dtype: torch.dtype | None = None,
) -> float:
    """Mean loss over all targets of all batches, in nats a target, without dropout.

    ``batches`` and ``dtype`` as in ``train_step``. The model is put into eval mode and
    back. Raises ValueError when no target is asked for, TypeError when a batch is no
    pair of tensors.
    """
    losses, counts = [], []
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            inputs, targets = check_pair(batch)
            losses.append(summed_loss(model, inputs, targets, dtype))
            counts.append((targets != IGNORE).sum())
    finally:
        model.train(was_training)
    count = int(torch.stack(counts).sum()) if counts else 0
    if count == 0:
        raise ValueError("batches must ask for at least one target, got none")
    return float(torch.stack(losses).sum()) / count


def training_bytes(
    config: GPTConfig, batch: int, length: int, bytes_each: int = 4
) -> dict[str, int]:
    """Bytes that a training step of a GPT keeps, by formula.

    "weights", "gradients", "optimizer" (AdamW's two means) and "activations": what the
    forward pass of ``batch`` texts of ``length`` tokens saves for the backward pass,
    the logits included, dropout's masks not. Attention is the fused kernel: it keeps
    one number a row and head in place of T x S weights. ``bytes_each`` is the size of
    every number: mixed types are not described. Raises ValueError when batch, length or
    bytes_each is below 1 or length above max_len.
    """
    c = config
    if bytes_each < 1:
        raise ValueError(f"bytes_each must be at least 1, got {bytes_each}")
    if batch < 1 or not 1 <= length <= c.max_len:
        raise ValueError(
            f"batch must be at least 1 and length lie in 1 to max_len = {c.max_len}, "
            f"got {batch} and {length}"
        )
    width, hidden = c.d_model, c.d_ff or 4 * c.d_model  # D, F
    narrow = width // c.n_heads * (c.n_kv_heads or c.n_heads)  # keys, values
    gated, n_norms = c.activation == "swiglu", 1 if c.order == "parallel" else 2
    last_norm = c.order != "post"

    # Weights. A bias has an entry for each column of its matrix.
    attention = 2 * width * (width + narrow) + c.bias * 2 * (width + narrow)
    think = 3 * width * hidden if gated else 2 * width * hidden
    think += c.bias * (not gated) * (hidden + width)
    norm = width * (2 if c.norm == "layer" and c.bias else 1)
    tables = c.vocab_size * width * (1 if c.tied else 2)
    tables += c.max_len * width * (c.positions == "learned")
    weights = tables + c.n_layers * (attention + think + n_norms * norm)
    weights += last_norm * norm

    # Activations, numbers a row: what each product and each norm needs again.
    kept_norm = 2 * width + 2 if c.norm == "layer" else 3 * width + 1
    kept_attention = 4 * width + c.n_heads + width * (c.positions == "rotary")
    kept_think = hidden * {"relu": 1, "swiglu": 4}.get(c.activation, 2)
    row = c.n_layers * (kept_attention + kept_think + n_norms * kept_norm)
    row += (kept_norm if last_norm else width) + c.vocab_size
    return {
        "weights": weights * bytes_each,
        "gradients": weights * bytes_each,
        "optimizer": 2 * weights * bytes_each,
        "activations": batch * length * (row * bytes_each + 16),  # 16: two ids
    }
