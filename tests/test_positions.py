"""Positions: tables that are added, and rotations, spelled out with plain sums."""

import cmath
import math

import pytest
import torch
from torch import nn

from transformer.positions import (
    LearnedPositions,
    NoPositions,
    Rotary,
    SinusoidalPositions,
    angles,
    check_span,
    make_positions,
    sinusoidal,
)

DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str
)
LAYERS = [SinusoidalPositions(8, 4), LearnedPositions(8, 4), Rotary(8, 4)]
LAYER = pytest.mark.parametrize("layer", LAYERS, ids=lambda x: type(x).__name__)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def default_dtype():
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


def close(got, want, tolerance=1e-10):
    torch.testing.assert_close(got, want, atol=tolerance, rtol=0)


def clock(t, i, width, base):
    """Cosine and sine of pair i at place t as one complex number."""
    return cmath.exp(1j * t / base ** (2 * i / width))


# -------------------------------------------------------------------------- the table


@pytest.mark.parametrize(("width", "base"), [(2, 1e4), (4, 1e4), (10, 1e4), (8, 50.0)])
def test_table_entry_by_entry(width, base):
    table = sinusoidal(40, width, base)
    assert table.shape == (40, width)
    for t in range(40):
        for i in range(width // 2):
            hand = clock(t, i, width, base)
            assert table[t, 2 * i].item() == pytest.approx(hand.imag, abs=1e-12)
            assert table[t, 2 * i + 1].item() == pytest.approx(hand.real, abs=1e-12)


def test_the_base_is_ten_thousand():
    want = [[t, t / 100.0] for t in range(3)]
    close(angles(3, 2), torch.tensor(want, dtype=torch.float64))
    assert torch.equal(sinusoidal(9, 6), sinusoidal(9, 6, 10_000.0))


def test_far_places_keep_their_digits():
    """In float32 an angle of 100,000 radians would be off by thousandths."""
    far = 100_003
    for table in (sinusoidal(far + 1, 6), SinusoidalPositions(far + 1, 6).table):
        want = [f(far / 1e4 ** (i / 3)) for i in range(3) for f in (math.sin, math.cos)]
        close(table[far].double(), torch.tensor(want, dtype=torch.float64), 1e-7)
    rotary = Rotary(far + 1, 6)
    want = torch.tensor([math.cos(far / 1e4 ** (i / 3)) for i in range(3)])
    close(rotary.cos[far], want, 1e-7)


def test_dot_products_know_the_distance_only():
    table = sinusoidal(30, 8)
    for t in range(20):
        for k in range(10):
            want = sum(math.cos(k / 1e4 ** (i / 4)) for i in range(4))
            assert (table[t] @ table[t + k]).item() == pytest.approx(want, abs=1e-12)


# --------------------------------------------------------------------- what is added


@DTYPES
def test_sines_are_added_to_every_sentence(dtype, tolerance, default_dtype):
    default_dtype(dtype)
    x = torch.randn(2, 5, 6)
    hands = [[clock(t, i, 6, 1e4) for i in range(3)] for t in range(5)]
    rows = [[part for hand in row for part in (hand.imag, hand.real)] for row in hands]
    got = SinusoidalPositions(9, 6)(x)
    assert got.dtype == dtype
    close(got, x + torch.tensor(rows), tolerance)


@DTYPES
def test_learned_rows_are_added(dtype, tolerance, default_dtype):
    default_dtype(dtype)
    layer, x = LearnedPositions(9, 6), torch.randn(2, 5, 6)
    got = layer(x)
    for b in range(2):
        for t in range(5):
            close(got[b, t], x[b, t] + layer.weight[t], tolerance)


def test_only_the_rows_in_use_are_trained():
    layer = LearnedPositions(9, 6)
    layer(torch.randn(2, 3, 6), start=2).sum().backward()
    want = torch.zeros(9, 6)
    want[2:5] = 2.0  # once for each sentence
    assert torch.equal(layer.weight.grad, want)


def test_learned_rows_start_small():
    weight = LearnedPositions(400, 50).weight
    assert isinstance(weight, nn.Parameter)
    assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert weight.mean().item() == pytest.approx(0.0, abs=0.001)


@LAYER
def test_start_goes_on_where_the_text_stopped(layer):
    x = torch.randn(2, 1, 8, 4)
    whole = layer(x)
    pieces = [layer(x[..., :5, :]), layer(x[..., 5:6, :], 5), layer(x[..., 6:, :], 6)]
    close(torch.cat(pieces, dim=-2), whole, 1e-6)
    assert (layer(x[..., 1:2, :]) - whole[..., 1:2, :]).abs().max() > 1e-3


def test_formulas_are_not_saved():
    assert not SinusoidalPositions(8, 4).state_dict()
    assert not Rotary(8, 4).state_dict()
    assert list(LearnedPositions(8, 4).state_dict()) == ["weight"]


# ---------------------------------------------------------------------------- rotary


@DTYPES
@pytest.mark.parametrize("base", [10_000.0, 50.0])
def test_rotary_is_a_complex_product(base, dtype, tolerance, default_dtype):
    default_dtype(dtype)
    x = torch.randn(2, 3, 7, 8)
    turned = Rotary(9, 8, base)(x)
    assert turned.dtype == dtype
    want = torch.empty_like(x)
    for t in range(7):
        for i in range(4):
            pair = torch.complex(x[..., t, i], x[..., t, i + 4])
            pair = pair * clock(t, i, 8, base)
            want[..., t, i], want[..., t, i + 4] = pair.real, pair.imag
    close(turned, want, tolerance)


def test_rotary_base_is_ten_thousand():
    assert torch.equal(Rotary(9, 6).sin, Rotary(9, 6, 10_000.0).sin)
    close(Rotary(9, 4).cos[8, 1].item(), math.cos(0.08), 1e-7)


def test_rotary_keeps_lengths_and_place_zero(default_dtype):
    default_dtype(torch.float64)
    x = torch.randn(2, 3, 7, 8)
    turned = Rotary(7, 8)(x)
    close(turned.norm(dim=-1), x.norm(dim=-1))
    close(turned[..., 0, :], x[..., 0, :])


def test_rotary_scores_know_the_distance_only(default_dtype):
    default_dtype(torch.float64)
    rotary, (query, key) = Rotary(40, 8), torch.randn(2, 1, 8)
    scores = rotary(query.expand(40, 8)) @ rotary(key.expand(40, 8)).T
    for distance in range(-39, 40):
        along = scores.diagonal(distance)
        close(along, along[:1].expand_as(along))
    assert abs(scores[3, 0] - scores[0, 3]) > 1e-3  # before is not after


def test_rotary_gives_back_the_type_it_got():
    """Queries and keys must meet values of the same type in the fused kernel."""
    x = torch.randn(2, 5, 8)
    low = Rotary(9, 8)(x.bfloat16())
    assert low.dtype == torch.bfloat16
    close(low.float(), Rotary(9, 8)(x), 0.05)


# ---------------------------------------------------------------------------- errors


def test_odd_widths():
    with pytest.raises(ValueError, match=r"d_model must be even .* got 5"):
        sinusoidal(8, 5)
    with pytest.raises(ValueError, match=r"d_model must be even .* got 5"):
        SinusoidalPositions(8, 5)
    with pytest.raises(ValueError, match=r"head_dim must be even .* got 3"):
        Rotary(8, 3)


@LAYER
def test_too_long(layer):
    layer(torch.zeros(1, 8, 4))  # as long as the table
    layer(torch.zeros(1, 3, 4), start=5)
    want = r"positions 0 to 7 \(max_len = 8\), got start = {} and {} rows"
    for start, rows in ((0, 9), (6, 3), (-1, 3)):
        with pytest.raises(ValueError, match=want.format(start, rows)):
            layer(torch.zeros(1, rows, 4), start=start)


@LAYER
@pytest.mark.parametrize("shape", [(1, 5, 1), (1, 5, 6), (4,)])
def test_wrong_shape(layer, shape):
    given = ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=rf"shape \(\.\.\., T, 4\), got \({given}"):
        layer(torch.zeros(shape))


def test_span_says_where_x_ends():
    assert check_span(torch.zeros(2, 3, 5, 4), 2, max_len=7, width=4) == 7


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("learned", LearnedPositions),
        ("sinusoidal", SinusoidalPositions),
        ("rotary", NoPositions),
        ("none", NoPositions),
    ],
)
def test_a_kind_of_positions_by_name(kind, layer):
    made = make_positions(kind, 8, 4)
    assert type(made) is layer
    assert made(torch.zeros(1, 8, 4)).shape == (1, 8, 4)


def test_an_unknown_kind_of_positions():
    with pytest.raises(ValueError, match=r"positions must be .* got 'sine'"):
        make_positions("sine", 8, 4)
