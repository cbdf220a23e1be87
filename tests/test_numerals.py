"""The rule of tools/numerals.py, by example, and the book's prose held to it."""

import json
import subprocess
import sys

import bookfiles as book
import pytest

sys.path.insert(0, str(book.ROOT / "tools"))
from numerals import numerals

GOOD = [
    "Five tokens make five rows, and four columns: ten numbers or fewer.",
    "The weight matrices hold $12 D^2$ numbers a layer, divided by $\\sqrt{64}$.",
    "$$\n\\operatorname{PE}_{t, 2i} = \\sin(t / 10000^{2i/D})\n$$",
    "\\begin{align}\na &= 144\n\\end{align}",
    "Chapter 12 and section 3.2 say more; see chapters 3 to 5, Figures 2 and 3.",
    "In 2017 the Transformer appears; the 1990s had other plans.",
    "The 2017 paper and a 2019 model; since 2020, by 2021, the letter of 1916.",
    "Each row sums to $1$, no weight is below $0$, and the mask holds `0` and `1.0`.",
    "```text\na `42` and $42$\n```\nand {ref}`42`, $\\ln 2$.",
    "1. first\n2. second\n   10) tenth",
    "## 4.2 Scores\n\n# 12 A GPT",
    "The call `softmax(x, dim=17)` and ```x = 42``` are code.",
    "```python\nx = 42\n```",
    ":::{code-block} python\nx = 42\n:::",
    ":::{figure} ../book/_static/map/04.svg\n:width: 720px\nThe map.\n:::",
    "(sec-42)=\n# Title",
    "See [the page](https://example.org/2/42) or https://example.org/42.",
    "GPT-2, GPT-3, float32, bfloat16, UTF-8, H100, 2-D, 16-bit, T5.",
    "Python 3.11, version 2.13, CC BY 4.0.",
    "The batch is 3.2 million\ntokens {cite:p}`brown2020language`. More.",
    "| GPT-3 | 96 layers {cite}`brown2020language` |",
    "About 15 minutes. Or 10 to 15 minutes. A 20-minute walk.",
    "The paper has 213 million parameters. <!-- fact -->",
    "Each row sums to 1, each entry lies between 0 and 1.",
    '<img src="map.svg" width="720">',
    "A shape $(B, H, T, K)$, and `d_model=4` in the code.",
    "---\ntitle: 42\n---\nText.",
    "A footnote[^12].",
    "$V = 2^8 + M$ tokens, and $H \\cdot 4\\,T^2 K = 4\\,T^2 D$.",
    "::::{grid} 1 1 3 3\n:gutter: 3\n::::",
]
BAD = [
    ("The model has 4 heads.", "4"),
    ("A loss of 1.88 is reached.", "1.88"),
    ("It takes 12 layers and\n2 heads.", "12"),
    ("The vocabulary holds 50,257 tokens.", "50,257"),
    ("- 96 heads", "96"),
    ("| layers | 12 |", "12"),
    ("Here $T = 5$ tokens.", "T = 5"),
    ("$$d_{model} = 768$$", "d_{model} = 768"),
    ("With $V = 50,257$ and more.", "V = 50"),
    ("$(T = 5, D = 4)$", "T = 5"),
    ("A 12-layer model.", "12"),
    ("Ninety-six layers, twelve heads.", "Ninety-six"),
    ("It takes 2000 steps.", "2000"),
    ("About 80 % of the mass.", "80"),
    (":::{note} The 84 characters\n:::", "84"),
    ("A fact {cite}`brown2020language`. But 96 is ours.", "96"),
    ("One line <!-- fact -->\nand 96 on the next.", "96"),
    ("1. first of 30", "30"),
    ("A value of 1.25 or 10 or 100.", "1.25"),
    ("It has $64$ columns.", "64"),
    ("A loss of $1.88$ is reached.", "1.88"),
    ("The loss is $\\approx 1.73$.", "1.73"),
    ("The loss is $< -2$.", "-2"),
    ("There are $50{,}257$ of them.", "50{,}257"),
    ("A rate of $3 \\times 10^{-4}$.", "3 \\times 10^{-4}"),
    ("$$\n42\n$$", "42"),
    ("About $80\\%$.", "80"),
    ("It has `12` heads.", "12"),
    ("A rate of ``1e-3``.", "1e-3"),
    ("GPT-3 reads 2048 positions.", "2048"),
    ("The corpus has 1800 characters.", "1800"),
    ("It has 2048 of them.", "2048"),
    ("After 2000, all is quiet.", "2000"),
    ("It learns in 2000 steps.", "2000"),
    ("A context of 2048 tokens.", "2048"),
    ("A guess right in 2000 of them.", "2000"),
    ("The 2048 learned positions.", "2048"),
    ("Of 2000.5 in all.", "2000.5"),
    ("steps 2000 and more", "2000"),
    ("loss v1.88", "1.88"),
]


@pytest.mark.parametrize("text", GOOD)
def test_allowed(text):
    assert list(numerals(text)) == []


@pytest.mark.parametrize(("text", "numeral"), BAD)
def test_found(text, numeral):
    assert next(numerals(text), (0, None, ""))[1] == numeral


def test_place():
    found = list(numerals("Good line.\n\nA line. Has\n96 layers. More."))
    assert found == [(4, "96", "Has 96 layers.")]


def run(*files):
    command = [sys.executable, book.ROOT / "tools" / "numerals.py", *files]
    return subprocess.run(command, capture_output=True, text=True)


def test_command(tmp_path):
    cells = [
        {"cell_type": "code", "source": ["x = 96"]},
        {"cell_type": "markdown", "source": ["Fine.\n", "It has 96 layers."]},
    ]
    file = tmp_path / "a.ipynb"
    file.write_text(json.dumps({"cells": cells}))
    done = run(file)
    assert done.returncode == 1
    assert "a.ipynb:cell 2:2: '96' in: It has 96 layers." in done.stdout


def test_book():
    """The book's prose holds no number about the model."""
    done = run()
    assert done.returncode == 0, done.stdout
