"""Makes this folder importable by the tests below it, and says in which order they run.

Torch is kept to one thread.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported

# Minutes long: they start first, so that two workers end together.
LONG = ("12_gpt.ipynb", "test_gpt_training.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)
