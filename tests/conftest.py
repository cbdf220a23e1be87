"""What the tests share: the order in which they run, and exact numbers.

Torch is kept to one thread.
"""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported

# Minutes long: they start first, the longest before all, so that two workers end
# together.
LONG = (
    "14_encoder_decoder.ipynb",
    "15_vision.ipynb",
    "13_bert.ipynb",
    "17_learning_rate.ipynb",
    "12_gpt.ipynb",
    "18_generation.ipynb",
    "test_kill.py",
    "19_pretrained.ipynb",
    "24_program.ipynb",
    "test_gpt_training.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONG)))


@pytest.fixture
def exact() -> Iterator[None]:
    """Seeded float64, so that a comparison can be tight."""
    import torch  # here, since most checks of the book's files do without it

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
