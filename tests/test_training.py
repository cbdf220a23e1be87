"""One training step: against big batches, a hand-written AdamW and counted memory.

The gradients by hand are in the notebook; here is what the package keeps of it.
"""

import math
import re
from dataclasses import replace

import pytest
import torch
from small import SIZE, tiny_gpt
from torch import nn

from transformer.gpt import GPT, GPTConfig, shift
from transformer.norm import LayerNorm
from transformer.training import (
    IGNORE,
    decay_groups,
    evaluate,
    make_optimizer,
    summed_loss,
    train_step,
    training_bytes,
)

pytestmark = pytest.mark.usefixtures("exact")


def batch(n=6, uneven=True):
    """Texts of several lengths: inputs (B, T) and targets with filling."""
    inputs, targets = shift(torch.randint(11, (n, 9)))
    targets = targets.clone()
    if uneven:
        for row, length in enumerate((8, 1, 5, 0, 8, 3)[:n]):
            targets[row, length:] = IGNORE
    return inputs, targets


def cut(pair, sizes):
    """One batch as micro-batches."""
    return list(zip(pair[0].split(sizes), pair[1].split(sizes), strict=True))


def frozen(model):
    """An optimizer that moves nothing, so that a step only leaves its gradients."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def mean_loss(model, inputs, targets):
    """PyTorch's mean over the targets that are asked for."""
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


# ------------------------------------------------------------------------ the step


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("sizes", [[6], [3, 3], [1, 5], [1, 1, 1, 1, 1, 1]])
def test_micro_batches_add_up_to_the_big_batch(sizes, uneven):
    """Fourth text: all filling, so that alone it is a micro-batch without targets."""
    model, pair = tiny_gpt(), batch(uneven=uneven)
    whole = mean_loss(model, *pair)
    whole.backward()
    expected = gradient(model)
    loss, norm = train_step(model, frozen(model), cut(pair, sizes), clip=0)
    torch.testing.assert_close(loss, whole.detach(), atol=1e-10, rtol=0)
    torch.testing.assert_close(gradient(model), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(norm, expected.norm(), atol=1e-10, rtol=0)
    assert not loss.requires_grad
    assert not norm.requires_grad


@pytest.mark.parametrize("clip", [0.3, 1e6, 0, math.inf])
def test_clipping_shortens_and_keeps_the_direction(clip):
    model, pair = tiny_gpt(), batch()
    mean_loss(model, *pair).backward()
    free = gradient(model)
    _, norm = train_step(model, frozen(model), [pair], clip=clip)
    torch.testing.assert_close(norm, free.norm())  # before clipping
    assert free.norm() > 0.3
    expected = free * (0.3 / free.norm() if clip == 0.3 else 1.0)
    torch.testing.assert_close(gradient(model), expected, atol=1e-6, rtol=0)


def test_the_default_clips_at_one():
    model = tiny_gpt()
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    _, norm = train_step(model, frozen(model), [batch()])
    assert norm > 1.1
    assert gradient(model).norm().item() == pytest.approx(1.0, abs=1e-5)


def test_only_what_the_optimizer_moves_counts():
    """A frozen table neither gets a gradient nor lengthens the others'."""
    model = tiny_gpt(tied=False)
    model.embedding.weight.requires_grad_(False)
    before = model.embedding.weight.clone()
    _, norm = train_step(model, make_optimizer(model, 0.1), [batch()])
    assert model.embedding.weight.grad is None
    assert torch.equal(model.embedding.weight, before)
    assert norm > 0


def test_each_step_starts_from_no_gradient():
    model, pair = tiny_gpt(), batch()
    first = train_step(model, frozen(model), [pair])
    again = train_step(model, frozen(model), [pair])
    assert first == again


def test_the_mode_is_left_alone():
    """Dropout makes each step's loss another one in training, the same in eval."""
    model, pair = tiny_gpt(dropout=0.5), batch()
    for training in (False, True):
        model.train(training)
        losses = {train_step(model, frozen(model), [pair])[0].item() for _ in range(3)}
        assert model.training == training
        assert len(losses) == (3 if training else 1)


def test_bfloat16_products_leave_float32_weights():
    model, pair = tiny_gpt().float(), batch()
    seen = []
    model.head.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    exact, _ = train_step(model, frozen(model), [pair])
    exact_gradient = gradient(model)
    near, norm = train_step(model, frozen(model), [pair], dtype=torch.bfloat16)
    assert seen == [torch.float32, torch.bfloat16]
    assert {near.dtype, norm.dtype, gradient(model).dtype} == {torch.float32}
    assert near.item() == pytest.approx(exact.item(), rel=0.05)
    angle = torch.cosine_similarity(gradient(model), exact_gradient, dim=0)
    assert angle > 0.99


def test_the_loss_of_bfloat16_logits_is_summed_in_float32():
    """Ten thousand targets at ln 2 each: bfloat16 would stop adding long before."""
    zeros = nn.Linear(1, 2, dtype=torch.bfloat16)
    nn.init.zeros_(zeros.weight)
    nn.init.zeros_(zeros.bias)
    inputs = torch.zeros(100, 100, 1, dtype=torch.bfloat16)
    loss = summed_loss(zeros, inputs, torch.zeros(100, 100, dtype=torch.int64))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(10_000 * math.log(2), rel=1e-5)


def test_training_learns_a_text_by_heart():
    model = GPT(GPTConfig(**SIZE))
    optimizer = make_optimizer(model, 0.01)
    pair = batch(3, uneven=False)
    first, *_, last = (train_step(model, optimizer, [pair])[0] for _ in range(120))
    assert first.item() == pytest.approx(math.log(11), abs=0.05)
    assert last < 0.1


# -------------------------------------------------------------------- the optimizer


def adamw_by_hand(model, gradients, rate, weight_decay, betas, eps=1e-8):
    """Loshchilov and Hutter 2019, algorithm 2; returns the weights after all steps."""
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    m = {name: torch.zeros_like(w) for name, w in weights.items()}
    v = {name: torch.zeros_like(w) for name, w in weights.items()}
    for step, grads in enumerate(gradients, start=1):
        for name, w in weights.items():
            g = grads[name]
            if w.ndim >= 2:
                w -= rate * weight_decay * w
            m[name] = betas[0] * m[name] + (1 - betas[0]) * g
            v[name] = betas[1] * v[name] + (1 - betas[1]) * g * g
            fair_m = m[name] / (1 - betas[0] ** step)
            fair_v = v[name] / (1 - betas[1] ** step)
            w -= rate * fair_m / (fair_v.sqrt() + eps)
    return weights


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3, "betas": (0.8, 0.99)}])
def test_optimizer_equals_adamw_by_hand(options, fused):
    model = tiny_gpt()
    names = [name for name, _ in model.named_parameters()]
    gradients = [
        {name: torch.randn_like(p) for name, p in model.named_parameters()}
        for _ in range(5)
    ]
    given = {"weight_decay": 0.1, "betas": (0.9, 0.95)} | options
    expected = adamw_by_hand(model, gradients, 0.01, **given)
    optimizer = make_optimizer(model, 0.01, **options, fused=fused)
    assert optimizer.defaults["fused"] is fused
    for grads in gradients:
        for name in names:
            model.get_parameter(name).grad = grads[name].clone()
        optimizer.step()
    for name in names:
        torch.testing.assert_close(
            model.get_parameter(name).detach(), expected[name], atol=1e-10, rtol=0
        )


def test_decay_shrinks_matrices_and_nothing_else():
    """With zero gradients only the decay is left."""
    model = tiny_gpt()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, 0.1, weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    kinds = set()
    for name, p in model.named_parameters():
        matrix = p.ndim == 2
        kinds.add(matrix)
        expected = before[name] * (1 - 0.1 * 0.5 if matrix else 1.0)
        torch.testing.assert_close(p.detach(), expected, atol=1e-12, rtol=0)
        assert matrix == ("norm" not in name and not name.endswith("bias"))
    assert kinds == {True, False}


def test_a_tied_table_is_in_the_groups_once():
    model = tiny_gpt()
    groups = decay_groups(model, 0.1)
    members = [id(p) for group in groups for p in group["params"]]
    assert len(members) == len(set(members)) == len(list(model.parameters()))
    assert members.count(id(model.head.weight)) == 1
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_what_is_frozen_is_in_no_group():
    model = tiny_gpt()
    for p in model.stack.blocks[0].parameters():
        p.requires_grad_(False)
    members = {id(p) for group in decay_groups(model, 0.1) for p in group["params"]}
    assert members == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_module_of_vectors_alone_can_be_trained():
    layer = LayerNorm(4)
    layer(torch.randn(2, 4)).square().sum().backward()
    make_optimizer(layer, 0.1).step()


# ------------------------------------------------------------------------ the judge


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_is_the_mean_over_targets_without_dropout(training):
    model, pair = tiny_gpt(dropout=0.5), batch()
    expected = mean_loss(model, *pair).item()
    model.train(training)
    for sizes in ([6], [1, 5], [2, 2, 2]):
        judged = evaluate(model, iter(cut(pair, sizes)))
        assert judged == pytest.approx(expected, abs=1e-10)
        assert model.training == training


def test_evaluate_keeps_nothing_and_restores_the_mode_after_an_error():
    model, (inputs, targets) = tiny_gpt(), batch()
    model.train()
    seen = []
    model.register_forward_hook(lambda *call: seen.append(call[-1].requires_grad))
    evaluate(model, [(inputs, targets)])
    assert seen == [False]
    with pytest.raises(IndexError):
        evaluate(model, [(inputs + 11, targets)])
    assert model.training


def test_evaluate_in_bfloat16_is_near():
    model, pair = tiny_gpt().float(), batch()
    near = evaluate(model, [pair], dtype=torch.bfloat16)
    assert near == pytest.approx(evaluate(model, [pair]), rel=0.05)


# ----------------------------------------------------------------------- the memory

BASE = GPTConfig(vocab_size=300, max_len=64, d_model=32, n_heads=4, n_layers=2)
CHOICES = {
    "GPT-2": {},
    "2017": {"order": "post", "activation": "relu", "positions": "sinusoidal"},
    "Llama": {
        "norm": "rms", "activation": "swiglu", "positions": "rotary",
        "n_kv_heads": 2, "bias": False, "d_ff": 88, "tied": False,
    },
    "PaLM": {"order": "parallel", "norm": "rms", "activation": "swiglu"},
    "parallel": {"order": "parallel", "positions": "none", "n_kv_heads": 1},
    "no biases": {"bias": False, "activation": "gelu", "scale_embeddings": True},
    "wide": {"d_model": 96, "n_layers": 1, "d_ff": 100, "activation": "silu"},
}  # fmt: skip


def measured_bytes(config, n_texts, length):
    """Count what a step keeps: parameters, gradients, state, tensors saved."""
    model = GPT(config)
    optimizer = make_optimizer(model, 1e-3)
    weights = list(model.parameters())
    own = {t.untyped_storage().data_ptr() for t in (*weights, *model.buffers())}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage  # held: no address is used twice
        return tensor

    pair = shift(torch.randint(config.vocab_size, (n_texts, length + 1)))
    pair = tuple(part.clone() for part in pair)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        train_step(model, optimizer, [pair])
    return {
        "weights": sum(p.nbytes for p in weights),
        "gradients": sum(p.grad.nbytes for p in weights),
        "optimizer": sum(
            t.nbytes for state in optimizer.state.values() for t in state.values()
        ),
        "activations": sum(storage.nbytes() for storage in saved.values()),
    }


@pytest.mark.parametrize(("n_texts", "length"), [(1, 64), (5, 16)])
@pytest.mark.parametrize("name", CHOICES)
def test_bytes_by_formula_are_the_bytes_counted(name, n_texts, length):
    torch.set_default_dtype(torch.float32)  # the fixture sets it back
    config = replace(BASE, **CHOICES[name])
    formula = training_bytes(config, n_texts, length)
    counted = measured_bytes(config, n_texts, length)
    assert formula["weights"] == counted["weights"]  # to the byte
    assert formula["gradients"] == counted["gradients"]
    for what in ("optimizer", "activations"):
        assert formula[what] == pytest.approx(counted[what], rel=0.02), what
    assert formula.keys() == counted.keys()


def test_bytes_of_gpt3_weights():
    """174,604,259,328 parameters (Brown et al. 2020, counted in chapter 12)."""
    config = GPTConfig(
        vocab_size=50257, max_len=2048, d_model=12288, n_heads=96, n_layers=96
    )
    needed = training_bytes(config, 1, 2048)
    assert needed["weights"] == needed["gradients"] == 4 * 174_604_259_328
    assert needed["optimizer"] == 2 * needed["weights"]
    halved = training_bytes(config, 1, 2048, bytes_each=2)
    assert 2 * halved["weights"] == needed["weights"]


def test_activations_grow_with_texts_and_length():
    one, two, long = (
        training_bytes(BASE, *size)["activations"]
        for size in ((1, 32), (2, 32), (1, 64))
    )
    assert two == long == 2 * one


# ------------------------------------------------------------------------ the doors

PAIR = (torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64))
FILLING = (PAIR[0], torch.full((2, 4), IGNORE))


@pytest.mark.parametrize(
    ("batches", "options", "error", "message"),
    [
        ([], {}, ValueError, "batches must hold at least one pair (inputs, targets)"),
        ([FILLING], {}, ValueError, "every target is -100"),
        (PAIR, {}, TypeError, "pairs of tensors (inputs, targets), got a Tensor among"),
        ([PAIR[:1]], {}, TypeError, "pairs of tensors (inputs, targets), got a tuple"),
        ([PAIR], {"clip": -1.0}, ValueError, "clip must be at least 0, got -1.0"),
        ([PAIR], {"clip": math.nan}, ValueError, "clip must be at least 0, got nan"),
        (
            [PAIR],
            {"dtype": torch.float16},
            ValueError,
            "dtype must be None or torch.bfloat16, got torch.float16",
        ),
        (
            [(PAIR[0], PAIR[1][:, :3])],
            {},
            ValueError,
            "targets must have shape (2, 4), one for each row of logits, got (2, 3)",
        ),
        (
            [(PAIR[0], PAIR[1].T)],  # as many targets, in the wrong places
            {},
            ValueError,
            "targets must have shape (2, 4), one for each row of logits, got (4, 2)",
        ),
    ],
)
def test_train_step_refuses(batches, options, error, message):
    model = tiny_gpt()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = make_optimizer(model, 0.1)
    with pytest.raises(error, match=re.escape(message)):
        train_step(model, optimizer, batches, **options)
    assert all(
        torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "batches must ask for at least one target, got none"),
        ([FILLING], ValueError, "batches must ask for at least one target, got none"),
        (PAIR, TypeError, "batches must hold pairs of tensors (inputs, targets)"),
        ([(PAIR[0], PAIR[1][:1])], ValueError, "targets must have shape (2, 4)"),
    ],
)
def test_evaluate_refuses(batches, error, message):
    model = tiny_gpt().train()
    with pytest.raises(error, match=re.escape(message)):
        evaluate(model, batches)
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": -0.1}, "rate must be finite and at least 0, got -0.1"),
        ({"rate": math.nan}, "rate must be finite and at least 0, got nan"),
        ({"weight_decay": -1}, "weight_decay must be finite and at least 0, got -1"),
        ({"weight_decay": math.inf}, "weight_decay must be finite and at least 0"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers in [0, 1), got (0.9, 1.0)"),
        ({"betas": (0.9,)}, "betas must be two numbers in [0, 1), got (0.9,)"),
    ],
)
def test_make_optimizer_refuses(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_optimizer(tiny_gpt(), **({"rate": 0.1} | options))


def test_a_frozen_model_has_no_optimizer():
    with pytest.raises(ValueError, match="must have a parameter that is trained"):
        make_optimizer(tiny_gpt().requires_grad_(False), 0.1)


@pytest.mark.parametrize(("n_texts", "length"), [(0, 8), (1, 0), (1, 65)])
def test_training_bytes_refuses(n_texts, length):
    message = f"length lie in 1 to max_len = 64, got {n_texts} and {length}"
    with pytest.raises(ValueError, match=re.escape(message)):
        training_bytes(BASE, n_texts, length)
