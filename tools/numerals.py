"""Find numerals typed into prose: a number about the model belongs in a cell's output.

What is allowed:

- code, mathematics, links, labels, directive options, comments (see NOT_PROSE);
- but in mathematics no dimension is given its number: not ``$T = 5$`` (DIMENSION);
- and no formula or code span is a bare number: not ``$64$``, ``$\\approx 1.7$`` or
  `` `12` `` (LONE);
- numbers that count nothing of the model (see ALLOWED): years ("in 2017", "the 2017
  paper"), numbers of sections and figures, list markers, names with a digit (GPT-2,
  2-D, UTF-8), versions of software, the minutes of an exercise, and 0 and 1;
- any number in a sentence with a citation, since it is another's fact;
- any number on a line with the comment ``<!-- fact -->``.

Numbers above ten count also when written as words.

    python tools/numerals.py [file ...]    # default: every notebook and page of book/
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MULTI = re.MULTILINE | re.DOTALL | re.VERBOSE

MATH = re.compile(r"\$\$.+?\$\$ | \$[^$\n]+(\n[^$\n]+)?\$ ", MULTI)
NOT_PROSE = re.compile(
    r"""
      \A---\n.*?^---$                       # front matter
    | ^\s*(?P<fence>`{3,}|~{3,}).*?^\s*(?P=fence)`*~*\s*$       # code fence
    | ^\s*(?P<math>:{3,})\{(math|code-block|code-cell)\}.*?^\s*(?P=math)\s*$
    | ^\s*:{3,}\{(figure|grid|image)\}.*$   # colon fence without a title
    | ^\s*:{3,}(\{[\w:-]+\})?               # colon fence; its title is prose
    | ^\s*:[\w-]+:.*$                       # directive option
    | ^\s*\([\w:.-]+\)=\s*$                 # label
    | <!--.*?-->                            # comment
    | \$\$.+?\$\$ | \$[^$\n]+(\n[^$\n]+)?\$ # mathematics
    | \\begin\{(?P<env>\w+\*?)\}.*?\\end\{(?P=env)\}
    | (\{[\w:-]+\})?(?P<ticks>`+)[^`]+(?P=ticks)                # code span, role
    | \]\([^)\s]*\) | \[\^[^\]]+\]          # link's address, footnote
    | <[^>\s][^>]*>                         # HTML tag, <address>
    | \bhttps?://\S+                        # address
    | [\w.-]+(/[\w.-]+)*\.(css|csv|ipynb|json|md|png|py|svg|toml|txt|yml)\b  # file
    """,
    MULTI,
)
# A formula or a code span that is a number, with or without a relation before it.
LONE = re.compile(
    r"""
    (?P<mark>\$\$?|`+)\s*
    (?:(?:\\(?:approx|sim(?:eq)?|pm|times|[lg](?:eq?|t|l|g)?|neq?|to)|[=<>~≈≤≥≠±×])\s*)?
    (?P<number>[-+−–]?\d[\d.,_]*(?:\{,\}\d+|\\,\d+)*(?:e[-+]?\d+)?
      (?:\s*\\(?:times|cdot)\s*10\^\{?[-−]?\d+\}?)?)
    \s*\\?%?\s*(?P=mark)
    """,
    re.VERBOSE,
)
FREE = re.compile(r"[-+−–]?[01](\.0*)?")  # 0 and 1 count nothing
DIMENSION = re.compile(
    r"(?<![A-Za-z\\_{])([BTSDHKFVL]|[dn]_\{?\w+\}?)\s*=\s*\d+(?=[\d.,{}]*\s*([$,;.)]|\\[q\\]))"
)
NAMES = (
    "chapters?|sections?|§|parts?|figures?|tables?|equations?|exercises?|pages?|stages?"
    "|versions?|Python|PyTorch|Book|BY"
)
NUMBER = r"\d+(\.\d+)*"
# What a book on models counts: before these a number is no year.
COUNTED = (
    r"(\w+\s)?(batch|bit|block|byte|cell|character|column|dimension|entr|example|feature"
    "|head|id|input|layer|letter|line|merge|number|output|pair|parameter|piece|play"
    "|position|quer|row|sample|score|sentence|sequence|step|time|token|unit|value"
    "|vector|weight|word)(s|y|ies|es)?"
)
ALLOWED = re.compile(
    rf"""
      ^\s*(>\s*)*\d+[.)]\s                          # list marker
    | ^\#+\s+\d+(\.\d+)*[.:]?\s                     # heading's own number
    | \b(?i:{NAMES})\s{NUMBER}((\s?[-–,]\s?|\s(to|and|or)\s){NUMBER})*  # chapter 3
    | \b(?i:in|since|by|of|the)\s(1[6-9]|20)\d\ds?\b(?![.,]\d|\s+of\b|[\s-]+{COUNTED}\b)
    | \b(1[6-9]|20)\d\d(?=\s(?:model|paper)s?\b)          # years: these two lines
    | \b(?!v\d)[A-Za-z][\w.]*(-[A-Za-z]*)?\d[\w.]*         # GPT-2, float32, UTF-8
    | \b\d+-?(D|bit|d)\b|\b\d+\ bits\b              # 2-D, 16-bit, 32 bits
    | \b\d+([-–]\d+|\sto\s\d+)?[\s-]min(ute)?s?\b   # minutes of an exercise
    | (?<![\d.,])[-−–]?[01](?![\d]|[.,]\d)          # 0, 1 and -1
    """,
    re.MULTILINE | re.VERBOSE,
)
TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
TEENS = "eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen"
NUMERAL = re.compile(rf"\d[\d.,]*(?<=\d)|\b({TEENS}|({TENS})(-\w+)?)\b", re.IGNORECASE)
SENTENCE = re.compile(r"(?<=[.?!:])[ \n]+(?=\S)|\n\s*\n|\n(?=\s*([-*+|#]|\d+[.)])\s?)")


def blank(match: re.Match[str]) -> str:
    """Return spaces in place of a match; its lines stay lines."""
    return re.sub(r"[^\n]", " ", match[0])


def sentence_at(text: str, place: int) -> str:
    """Return the sentence of ``text`` that holds the character at ``place``."""
    ends = [0, *(m.end() for m in SENTENCE.finditer(text)), len(text)]
    start = max(end for end in ends if end <= place)
    return text[start : min(end for end in ends if end > place)]


def numerals(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, numeral and sentence for each numeral that the rule forbids."""
    lines = text.splitlines()
    prose = ALLOWED.sub(blank, NOT_PROSE.sub(blank, text))
    found = [(m.start(), m[0]) for m in NUMERAL.finditer(prose)]
    for span in NOT_PROSE.finditer(text):
        lone = LONE.fullmatch(span[0])
        if lone and not FREE.fullmatch(lone["number"]):
            found.append((span.start(), lone["number"]))
    for math in MATH.finditer(text):
        inside = DIMENSION.finditer(math[0])
        found += [(math.start() + m.start(), m[0]) for m in inside]
    for place, numeral in sorted(found):
        line = text.count("\n", 0, place)
        sentence = " ".join(sentence_at(text, place).split())
        if "{cite" not in sentence and "<!-- fact -->" not in lines[line]:
            yield line + 1, numeral, sentence


def texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each piece of prose in a file."""
    if path.suffix == ".md":
        yield "", path.read_text(encoding="utf-8")
        return
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells, start=1):
        if cell["cell_type"] == "markdown":
            yield f"cell {number}:", "".join(cell["source"])


def main(paths: list[Path]) -> int:
    """Print each forbidden numeral as ``file:cell:line: sentence``; return how many."""
    count = 0
    for path in paths:
        for place, text in texts(path):
            for line, numeral, sentence in numerals(text):
                name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
                print(f"{name}:{place}{line}: {numeral!r} in: {sentence}")
                count += 1
    if count:
        print(f"{count} numerals typed into prose: print them in a cell, see --help")
    return count


def pages() -> list[Path]:
    """Return the notebooks, and the files of book/ that the contents name."""
    toc = ROOT / "_toc.yml"
    named = re.findall(r"\bbook/[\w-]+", toc.read_text() if toc.exists() else "")
    return [*sorted(ROOT.glob("notebooks/*.ipynb")), *(ROOT / f"{n}.md" for n in named)]


if __name__ == "__main__":
    if "--help" in sys.argv:
        sys.exit(__doc__)
    given = [Path(name).resolve() for name in sys.argv[1:]]
    sys.exit(main(given or pages()) > 0)
