"""The schedules, against the formulas, PyTorch's and Hugging Face's schedulers."""

import dataclasses
import itertools
import math

import pytest
import torch
import transformers.optimization as hf
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    SequentialLR,
)

from transformer.schedule import (
    SHAPES,
    Schedule,
    batch_ramp,
    noise_scale,
    set_rate,
    vaswani_peak,
)

STEPS = 60
WARMUPS = [0, 1, 7, 59, 60]


def rates(schedule, steps=None):
    """The rate of every update of the run."""
    return [schedule(step) for step in range(steps or schedule.steps)]


def scheduled(make, steps, **options):
    """The rates that a scheduler of another library sets, peak 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def equal(found, wanted, tolerance=1e-12):
    """All rates, relative to the wanted ones."""
    assert found == pytest.approx(wanted, rel=tolerance, abs=tolerance)


# ------------------------------------------------------- against other people's code


@pytest.mark.parametrize("warmup", [1, 7, 30])
@pytest.mark.parametrize(
    ("shape", "make"),
    [
        ("linear", hf.get_linear_schedule_with_warmup),
        ("cosine", hf.get_cosine_schedule_with_warmup),
        ("inverse_sqrt", hf.get_inverse_sqrt_schedule),
        ("constant", hf.get_constant_schedule_with_warmup),
    ],
)
def test_hugging_face_without_its_first_step(shape, make, warmup):
    lengths = {"num_training_steps": STEPS + 1} if shape in ("linear", "cosine") else {}
    first, *rest = scheduled(make, STEPS + 1, num_warmup_steps=warmup, **lengths)
    assert first == 0
    ours = Schedule(peak=1, steps=STEPS, warmup=warmup, shape=shape, floor=0)
    equal(rates(ours), rest)


@pytest.mark.parametrize("floor", [0.1, 0.5, 1.0])
def test_hugging_face_cosine_with_a_floor(floor):
    make = hf.get_cosine_with_min_lr_schedule_with_warmup
    lengths = {"num_warmup_steps": 7, "num_training_steps": STEPS}
    _, *rest = scheduled(make, STEPS, min_lr_rate=floor, **lengths)
    equal(rates(Schedule(peak=1, steps=STEPS, warmup=7, floor=floor))[:-1], rest)


@pytest.mark.parametrize("floor", [0.1, 0.4])
@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_torch_schedulers_one_after_the_other(shape, floor):
    warmup = 9

    def make(optimizer):
        left = STEPS - warmup
        up = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
        if shape == "cosine":
            down = CosineAnnealingLR(optimizer, T_max=left, eta_min=floor)
        else:
            down = LinearLR(
                optimizer, start_factor=1.0, end_factor=floor, total_iters=left
            )
        return SequentialLR(optimizer, [up, down], milestones=[warmup - 1])

    ours = Schedule(peak=1, steps=STEPS, warmup=warmup, shape=shape, floor=floor)
    equal(rates(ours), scheduled(make, STEPS))


@pytest.mark.parametrize(("d_model", "warmup"), [(512, 4000), (1024, 400), (64, 1)])
def test_the_formula_of_2017(d_model, warmup):
    schedule = Schedule(
        peak=vaswani_peak(d_model, warmup),
        steps=10,
        warmup=warmup,
        shape="inverse_sqrt",
    )
    for n in (1, 2, warmup - 1, warmup, warmup + 1, 3 * warmup, 100_000):
        if n > 0:
            paper = d_model**-0.5 * min(n**-0.5, n * warmup**-1.5)
            assert schedule(n - 1) == pytest.approx(paper, rel=1e-12)


# ------------------------------------------------------------------ what it promises


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
def test_rises_to_the_peak_and_never_again(shape, warmup, floor):
    schedule = Schedule(peak=3e-4, steps=STEPS, warmup=warmup, shape=shape, floor=floor)
    found, top = rates(schedule, STEPS + 20), max(warmup, 1) - 1
    assert found[0] == pytest.approx(3e-4 / max(warmup, 1), rel=1e-12)
    assert found[top] == max(found) == 3e-4
    assert all(a < b for a, b in itertools.pairwise(found[: top + 1]))
    assert all(a >= b for a, b in itertools.pairwise(found[top:]))


@pytest.mark.parametrize("shape", SHAPES)
def test_continuous_after_the_warm_up(shape):
    schedule = Schedule(peak=1, steps=100_000, warmup=1000, shape=shape)
    assert schedule(999) == 1
    assert 1 - 1e-3 < schedule(1000) <= 1


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_last_update_runs_at_the_floor(shape, warmup):
    schedule = Schedule(peak=2.0, steps=STEPS, warmup=warmup, shape=shape, floor=0.25)
    assert schedule(STEPS - 1) == schedule(STEPS) == schedule(10 * STEPS) == 0.5
    assert schedule(STEPS - 2) > 0.5


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", WARMUPS)
def test_a_floor_of_zero_loses_no_update(shape, warmup):
    schedule = Schedule(peak=1, steps=STEPS, warmup=warmup, shape=shape, floor=0)
    assert min(rates(schedule)) > 0
    assert schedule(STEPS) == schedule(STEPS + 5) == 0


@pytest.mark.parametrize("shape", ["constant", "inverse_sqrt"])
def test_two_shapes_know_no_end(shape):
    short, long = (
        Schedule(peak=1, steps=steps, warmup=5, shape=shape, floor=floor)
        for steps, floor in ((10, 0.9), (1000, 0.0))
    )
    assert rates(short, 200) == rates(long, 200)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_may_end_in_its_warm_up(shape):
    schedule = Schedule(peak=1, steps=3, warmup=10, shape=shape)
    equal(rates(schedule), [0.1, 0.2, 0.3])
    assert schedule(9) == 1  # a run that goes on gets on up to the peak


@pytest.mark.parametrize("shape", SHAPES)
def test_one_update_runs_at_the_peak(shape):
    assert rates(Schedule(peak=0.5, steps=1, shape=shape)) == [0.5]


def test_gpt3_in_millions_of_tokens():
    schedule = Schedule(peak=0.6e-4, steps=260_000, warmup=375)
    assert schedule(374) == 0.6e-4
    assert schedule(259_999) == schedule(299_999) == pytest.approx(0.6e-5, rel=1e-12)
    middle = (375 + 260_000) // 2  # half way down: the mean of peak and floor
    assert schedule(middle) == pytest.approx(0.55 * 0.6e-4, rel=1e-4)


def test_frozen_and_by_keyword():
    schedule = Schedule(peak=1, steps=2)
    assert (schedule.warmup, schedule.shape, schedule.floor) == (0, "cosine", 0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.peak = 2
    with pytest.raises(TypeError):
        Schedule(1.0, 2)
    assert dataclasses.replace(schedule, steps=5).steps == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"peak": 0.0}, "peak must be positive and finite, got 0.0"),
        ({"peak": -1e-3}, "peak must be positive"),
        ({"peak": math.inf}, "peak must be positive and finite, got inf"),
        ({"peak": math.nan}, "peak must be positive and finite, got nan"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"shape": "cosin"}, r"shape must be one of .*'cosine'.*, got 'cosin'"),
        ({"floor": -0.1}, "floor must be between 0 and 1, got -0.1"),
        ({"floor": 10}, "floor must be between 0 and 1, got 10"),
        ({"floor": math.nan}, "floor must be between 0 and 1, got nan"),
    ],
)
def test_bad_choices(wrong, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**{"peak": 1.0, "steps": 10} | wrong)


def test_bad_step():
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        Schedule(peak=1.0, steps=10)(-1)


# ------------------------------------------------------------------------- set_rate


def two_groups(rate):
    """An optimizer with two parameter groups."""
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    return torch.optim.AdamW([{"params": [w]} for w in weights], lr=rate)


def test_set_rate_reaches_every_group():
    optimizer = two_groups(1.0)
    set_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_set_rate_fills_a_tensor_in_place():
    optimizer = two_groups(torch.tensor(1.0))
    kept = [group["lr"] for group in optimizer.param_groups]
    set_rate(optimizer, 0.25)
    for group, tensor in zip(optimizer.param_groups, kept, strict=True):
        assert group["lr"] is tensor and tensor.item() == 0.25


def test_set_rate_drives_the_update():
    def make(optimizer):
        return LambdaLR(optimizer, lambda step: (step + 1) / 4)

    wanted = scheduled(make, 4)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=9.0)
    schedule = Schedule(peak=1, steps=4, warmup=4)
    for step in range(4):
        set_rate(optimizer, schedule(step))
        weight.grad = torch.ones(1)
        optimizer.step()
    assert weight.item() == pytest.approx(-sum(wanted))


@pytest.mark.parametrize("rate", [-1e-3, math.nan, math.inf])
def test_set_rate_refuses(rate):
    optimizer = two_groups(1.0)
    with pytest.raises(ValueError, match="rate must be at least 0 and finite"):
        set_rate(optimizer, rate)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 1.0]


@pytest.mark.parametrize("wrong", [(0, 4000), (512, 0)])
def test_vaswani_peak_refuses(wrong):
    with pytest.raises(ValueError, match="d_model and warmup must be at least 1"):
        vaswani_peak(*wrong)


# ------------------------------------------------------------------------ batch_ramp


def test_batch_ramp_at_its_ends_and_between():
    gpt3 = {"start": 32e3, "end": 3.2e6, "over": 12e9}
    assert batch_ramp(0, **gpt3) == 32e3
    assert batch_ramp(6e9, **gpt3) == pytest.approx(1.616e6)
    assert batch_ramp(12e9, **gpt3) == batch_ramp(300e9, **gpt3) == 3.2e6


def test_batch_ramp_counts_gpt3s_updates():
    # over the ramp dn = dx / b(x), whose integral has a logarithm
    tokens, updates = 0.0, 0
    while tokens < 300e9:
        tokens += batch_ramp(tokens, 32e3, 3.2e6, 12e9)
        updates += 1
    formula = 12e9 / (3.2e6 - 32e3) * math.log(3.2e6 / 32e3) + 288e9 / 3.2e6
    assert updates == pytest.approx(formula, rel=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokens": -1}, "tokens must be at least 0, got -1"),
        ({"start": 0}, "start must be positive, got 0"),
        ({"end": -5}, "end must be positive, got -5"),
        ({"over": 0}, "over must be positive, got 0"),
        ({"over": math.nan}, "over must be positive, got nan"),
    ],
)
def test_batch_ramp_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        batch_ramp(**{"tokens": 1, "start": 1, "end": 2, "over": 3} | wrong)


# ----------------------------------------------------------------------- noise_scale


def test_noise_scale_of_exact_lengths():
    # |G|^2 = 4, tr(Sigma) = 100: a batch of b has the squared length 4 + 100 / b
    assert noise_scale(5, 50, 4 + 20, 4 + 2) == pytest.approx(25)


def test_noise_scale_recovers_a_known_noise():
    # 200 weights, signal of length 2, noise of deviation 0.7 in each weight
    generator = torch.Generator().manual_seed(0)
    signal = torch.full((200,), 2 / math.sqrt(200), dtype=torch.float64)

    def norm2(batch, draws=400):
        noise = torch.randn(draws, batch, 200, generator=generator, dtype=torch.float64)
        gradients = signal + 0.7 * noise.mean(dim=1)  # (draws, 200)
        return gradients.square().sum(dim=1).mean().item()

    true = 200 * 0.7**2 / 4
    assert noise_scale(2, 64, norm2(2), norm2(64)) == pytest.approx(true, rel=0.1)


def test_noise_that_hides_the_gradient():
    assert noise_scale(1, 10, 50.0, 5.0) == math.inf  # all of it noise
    assert noise_scale(1, 10, 50.0, 4.0) == math.inf
    assert noise_scale(1, 10, 3.0, 3.0) == 0  # none of it


@pytest.mark.parametrize(("small", "big"), [(0, 4), (4, 4), (8, 4)])
def test_noise_scale_refuses(small, big):
    with pytest.raises(ValueError, match="small and big must be 0 < small < big"):
        noise_scale(small, big, 1.0, 1.0)
