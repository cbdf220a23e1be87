"""How far each update moves, and over how many tokens its gradient is averaged.

Chapter 17 of Transformers, Matrix by Matrix.
Made from notebooks/17_learning_rate.ipynb by tools/export.py: edit the notebook.
"""

import math
from dataclasses import dataclass

import torch

__all__ = [
    "SHAPES",
    "Schedule",
    "batch_ramp",
    "noise_scale",
    "set_rate",
    "vaswani_peak",
]

SHAPES = ("constant", "linear", "cosine", "inverse_sqrt")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of every update of a run (Loshchilov and Hutter 2017, 3).

    ``peak`` is the largest rate, ``steps`` the updates of the run. The rate rises to
    the peak over the first ``warmup`` updates, then follows ``shape``, one of SHAPES.
    "linear" and "cosine" fall to ``floor * peak``: the last update runs at it, unless
    the warm-up fills the run, and so does each one after it. A floor of 0 they reach
    right after the last update, so that none is lost. "constant" and "inverse_sqrt"
    (Vaswani et al. 2017, 5.3) use neither ``steps`` nor ``floor``. A warm-up longer
    than the run is allowed: the run ends while the rate still rises. Raises ValueError
    for a choice outside its range.
    """

    peak: float
    steps: int
    warmup: int = 0
    shape: str = "cosine"
    floor: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.peak < math.inf:
            raise ValueError(f"peak must be positive and finite, got {self.peak}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, got {self.warmup}")
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {SHAPES}, got {self.shape!r}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must be between 0 and 1, got {self.floor}")

    def __call__(self, step: int) -> float:
        """Return the rate of update number ``step``, from 0 on: never 0 within the run.

        Raises ValueError for a negative ``step``.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        n, w = step + 1, max(self.warmup, 1)  # the first update is number one
        if n <= w:
            return self.peak * (n / w)
        if self.shape == "constant":
            return self.peak
        if self.shape == "inverse_sqrt":
            return self.peak * math.sqrt(w / n)
        end = self.steps + (self.floor == 0)  # the update that runs at the floor
        done = min((n - w) / max(end - w, 1), 1.0)  # 0 at the peak, 1 at the floor
        left = 1 - done
        if self.shape == "cosine":
            left = (1 + math.cos(math.pi * done)) / 2
        return self.peak * (self.floor + (1 - self.floor) * left)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group of an optimizer the learning rate ``rate``.

    A rate that is kept as a tensor, as for a compiled optimizer, is filled in place.
    Raises ValueError for a rate that is negative or not finite.
    """
    if not 0 <= rate < math.inf:
        raise ValueError(f"rate must be at least 0 and finite, got {rate}")
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def vaswani_peak(d_model: int, warmup: int) -> float:
    """Return the peak rate of the 2017 model (Vaswani et al. 2017, equation 3).

    With it, ``shape="inverse_sqrt"`` is their formula: at update n, counted from 1,
    ``d_model**-0.5 * min(n**-0.5, n * warmup**-1.5)``. Raises ValueError when either
    number is below 1.
    """
    if d_model < 1 or warmup < 1:
        raise ValueError(
            f"d_model and warmup must be at least 1, got {d_model} and {warmup}"
        )
    return (d_model * warmup) ** -0.5


def batch_ramp(tokens: float, start: float, end: float, over: float) -> float:
    """Return the batch, in tokens, after a run has read ``tokens`` tokens.

    It grows linearly from ``start`` to ``end`` over the first ``over`` tokens, and
    stays there (Brown et al. 2020, appendix B). Raises ValueError unless ``tokens`` is
    at least 0, and start, end and over are positive.
    """
    if not tokens >= 0:  # also refuses NaN
        raise ValueError(f"tokens must be at least 0, got {tokens}")
    for name, value in {"start": start, "end": end, "over": over}.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    return start + (end - start) * min(tokens / over, 1.0)


def noise_scale(small: int, big: int, small_norm2: float, big_norm2: float) -> float:
    """Estimate the simple noise scale (McCandlish et al. 2018, appendix A.1).

    ``small`` and ``big`` are two batch sizes; ``small_norm2`` and ``big_norm2`` the
    squared lengths of the gradient at them, each a mean over several batches. The
    result, noise over signal, is a batch size in the same unit. It is infinite where
    the noise hides the gradient, that is when the estimate of the signal, the true
    gradient's squared length, isn't positive; and 0 where the larger batch has the
    longer gradient. Raises ValueError unless ``0 < small < big`` and both lengths are
    finite and at least 0.
    """
    if not 0 < small < big:
        raise ValueError(f"small and big must be 0 < small < big, got {small}, {big}")
    for name, norm2 in {"small_norm2": small_norm2, "big_norm2": big_norm2}.items():
        if not 0 <= norm2 < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {norm2}")
    true = (big * big_norm2 - small * small_norm2) / (big - small)  # |G|^2
    noise = (small_norm2 - big_norm2) / (1 / small - 1 / big)  # tr(Sigma)
    return max(noise, 0.0) / true if true > 0 else math.inf
