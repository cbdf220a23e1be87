"""The list of mutants is whole, and the program that runs them can tell."""

import subprocess
import sys

import bookfiles as book
import pytest

sys.path.insert(0, str(book.ROOT / "tests" / "mutants"))
import run as mutants

ENTRIES = mutants.load(book.ROOT)
REQUIRED = {
    "drop-scale",
    "flip-mask",
    "softmax-wrong-axis",
    "biased-variance",
    "swap-sine-cosine",
    "skip-shift",
    "untie-weights",
    "dropout-no-rescale",
    "dropout-in-eval",
    "no-residual",
    "bpe-tie-break",
    "gelu-variant",
    "padding-ignored",
    "rope-sign",
    "kv-head-grouping",
    "bert-padding-dropped",
    "cross-attention-wrong-side",
    "target-not-shifted",
    "smoothing-off-by-one-class",
    "patches-by-columns",
    "accumulation-not-divided",
    "cache-position-off-by-one",
    "top-p-without-the-crossing-word",
    "length-penalty-sign",
    "decay-on-norms",
    "resume-without-random-state",
}


def test_required_mutants_are_there():
    ids = [entry.id for entry in ENTRIES]
    assert len(set(ids)) == len(ids)
    assert not REQUIRED - set(ids)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_mutant_fits_the_package(entry):
    compile(mutants.mutated(entry, book.ROOT), entry.module, "exec")
    files = [w for w in entry.killed_by.split() if w.startswith("tests/")]
    assert files
    assert all((book.ROOT / file.split("::")[0]).exists() for file in files)


TOY = """
[[mutant]]
id = "killed"
module = "transformer/toy.py"
find = "a + b"
replace = "a - b"
killed_by = "tests/test_toy.py::test_add"

[[mutant]]
id = "survives"
module = "transformer/toy.py"
find = "a * b"
replace = "a / b"
killed_by = "tests/test_toy.py -k add"

[[mutant]]
id = "gone"
module = "transformer/toy.py"
find = "a ** b"
replace = "b"
killed_by = "tests/test_toy.py::test_add"

[[mutant]]
id = "no-parse"
module = "transformer/toy.py"
find = "return a * b"
replace = "return ("
killed_by = "tests/test_toy.py::test_add"

[[mutant]]
id = "unsound"
module = "transformer/toy.py"
find = "a * b"
replace = "a - b"
killed_by = "tests/test_toy.py::test_wrong"
"""


@pytest.mark.slow
def test_runner(tmp_path):
    """Only a test that passes on the sound and fails on the broken package counts."""
    (tmp_path / "transformer").mkdir()
    (tmp_path / "tests" / "mutants").mkdir(parents=True)
    (tmp_path / "transformer/__init__.py").write_text("")
    code = "def add(a, b):\n    return a + b\n\n\ndef mul(a, b):\n    return a * b\n"
    (tmp_path / "transformer/toy.py").write_text(code)
    test = "from transformer.toy import add, mul\n\n\n"
    test += "def test_add():\n    assert add(2, 1) == 3\n\n\n"
    test += "def test_wrong():\n    assert mul(2, 1) == 3\n"
    (tmp_path / "tests/test_toy.py").write_text(test)
    (tmp_path / "tests/mutants/mutants.toml").write_text(TOY)
    command = [sys.executable, mutants.__file__, "--root", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    told = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert done.returncode == 1, done.stdout + done.stderr
    assert "killed" in told["killed"].split(maxsplit=1)[1]
    assert "SURVIVED" in told["survives"]
    assert "stands 0 times" in told["gone"]
    assert "NO VERDICT" in told["no-parse"]
    assert "sound package" in told["unsound"]
    assert done.stdout.splitlines()[-1] == "1 passed, 4 failed"
    one = subprocess.run([*command, "killed"], capture_output=True, text=True)
    assert one.returncode == 0
    assert one.stdout.splitlines()[-1] == "1 passed, 0 failed"
