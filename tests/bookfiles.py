"""The book's files, and the rules a notebook keeps: each returns a list of faults."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import yaml
from nbval.plugin import comment_markers, find_metadata_tags

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from execute import KEEP  # noqa: E402

Cell = dict
Notebook = dict

SKELETON = [
    "By hand",
    "In symbols",
    "In code",
    "Check",
    "See it",
    "Break it",
    "At scale",
    "Exercises",
    "What you built",
]
NO_SCALE = {"05_masks"}  # a mask has no size of its own
SIZE_LIMIT = 600_000  # bytes: about a dozen figures
LINE_LIMIT = 88
# The only tags a cell may wear: nbval knows more, and others hide what a cell does.
TAGS = {"nbval-ignore-output", "raises-exception", "training"}

DIRECTIVE = re.compile(r"#\s*\|\s*([a-z_-]+)[ :]*(.*)")
HEADING = re.compile(r"^(#{1,6}) +(.+?) *$", re.MULTILINE)
FENCED = re.compile(r"^(`{3,}|~{3,}).*?^\1\s*$", re.MULTILINE | re.DOTALL)

# What only this machine, this minute or a GPU run would print.
FOREIGN = {
    "absolute path": re.compile(r"(?<![\w.])/(home|root|tmp|usr|var|work|Users)/\w"),
    "Windows path": re.compile(r"\b[A-Z]:\\\w"),
    "address in memory": re.compile(r"\b0x[0-9a-fA-F]{6,}\b"),
    "kernel's temporary file": re.compile(r"ipykernel_\d+"),
    "accelerator": re.compile(r"\b(cuda(:\d+)?|mps|NVIDIA|PROFILE=gpu)\b"),
}
TIMES = {
    "date": re.compile(r"\b20\d\d-\d\d-\d\d\b"),
    "clock": re.compile(r"\b\d\d:\d\d:\d\d\b"),
    "time taken": re.compile(r"\b\d+(\.\d+)? ?(ns|µs|us|ms|s|seconds)\b|\bit/s\b"),
}


# ------------------------------------------------------------------------ reading


def notebooks() -> list[Path]:
    """Return the book's notebooks, in order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path: Path) -> Notebook:
    """Read a notebook as plain JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: Cell) -> str:
    """Return a cell's text."""
    return "".join(cell["source"])


def code_cells(notebook: Notebook) -> list[Cell]:
    """Return the code cells."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def directives(cell: Cell) -> dict[str, str]:
    """Return the ``#| name value`` lines that a code cell begins with."""
    found = {}
    for line in source(cell).splitlines():
        if not (match := DIRECTIVE.fullmatch(line.strip())):
            break
        found[match[1]] = match[2]
    return found


def tags(cell: Cell) -> list[str]:
    """Return a cell's tags."""
    return cell["metadata"].get("tags", [])


def ignores_output(cell: Cell) -> bool:
    """Say whether nbval leaves this cell's output uncompared."""
    return ("check", False) in find_metadata_tags(cell["metadata"])


def output_texts(cell: Cell) -> Iterator[str]:
    """Yield every text among a code cell's outputs."""
    for output in cell["outputs"]:
        if "text" in output:
            yield "".join(output["text"])
        for kind, data in output.get("data", {}).items():
            if kind.startswith("text/"):
                yield "".join(data)


def contents(root: Path = ROOT) -> list[str]:
    """Return the pages of ``_toc.yml`` in order, without suffix."""

    def walk(node: object) -> Iterator[str]:
        if isinstance(node, list):
            for item in node:
                yield from walk(item)
        elif isinstance(node, dict):
            yield from (node[key] for key in ("root", "file") if key in node)
            for key in ("parts", "subtrees", "chapters", "sections", "entries"):
                yield from walk(node.get(key))

    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    return [re.sub(r"\.(md|ipynb)$", "", name) for name in walk(toc)]


# -------------------------------------------------------------------------- rules


def run_faults(notebook: Notebook) -> list[str]:
    """Every code cell was run once, in order, and left neither error nor warning."""
    faults = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        if not source(cell).strip():
            faults.append(f"code cell {number} is empty")
        if cell["execution_count"] != number:
            count = cell["execution_count"]
            faults.append(f"code cell {number} has execution count {count}")
        for output in cell["outputs"]:
            if output.get("name") == "stderr":
                faults.append(f"code cell {number} wrote to stderr")
            wanted = "raises-exception" in tags(cell)
            if output["output_type"] == "error" and not wanted:
                faults.append(f"code cell {number} raised {output['ename']}")
    return faults


def figure_faults(notebook: Notebook) -> list[str]:
    """Every figure has a text for those who cannot see it: ``#| alt: ...``."""
    faults = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
        drawn = any(kind.startswith("image/") for kind in kinds)
        alt = directives(cell).get("alt", "").strip()
        if drawn and len(alt.split()) < 3:
            faults.append(f"code cell {number} draws a figure without `#| alt: ...`")
    return faults


def output_faults(notebook: Notebook) -> list[str]:
    """No output tells of a machine, a clock or a GPU; see FOREIGN and TIMES."""
    faults = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        rules = FOREIGN if ignores_output(cell) else FOREIGN | TIMES
        for text in output_texts(cell):
            for name, rule in rules.items():
                if match := rule.search(text):
                    faults.append(f"code cell {number} prints a {name}: {match[0]!r}")
    return faults


def ignore_faults(notebook: Notebook) -> list[str]:
    """A cell whose output is not compared asserts a property; no cell is skipped."""
    faults = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        if ignores_output(cell) and not asserts(cell):
            faults.append(f"code cell {number} ignores its output and asserts nothing")
    return faults


def tag_faults(notebook: Notebook) -> list[str]:
    """Tags are TAGS and no comment speaks to nbval: no cell is skipped or hidden."""
    faults = []
    for number, cell in enumerate(notebook["cells"], start=1):
        if other := set(tags(cell)) - TAGS:
            faults.append(f"cell {number} has the tags {sorted(other)}")
        lines = [line.strip() for line in source(cell).splitlines()]
        said = {line.lstrip("#").strip() for line in lines if line.startswith("#")}
        if found := said & set(comment_markers):
            faults.append(f"cell {number} has the comment {sorted(found)}")
    return faults


# An assert statement, or a call that is one: kit.check, torch.testing.assert_close.
ASSERT = re.compile(r"^\s*(assert\b|kit\.check\(|\w+\.testing\.assert_)", re.MULTILINE)


def asserts(cell: Cell) -> bool:
    """Say whether a code cell asserts anything that could fail."""
    found = ASSERT.search(source(cell)) is not None
    return found and not vacuous(source(cell))


def vacuous(code: str) -> list[str]:
    """Return the asserts of literals alone, such as ``assert True``."""
    free = ast.Name | ast.Call | ast.Await  # what a run could change
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Assert)
        and (
            isinstance(node.test, ast.Tuple)  # assert (x, "message")
            or not any(isinstance(part, free) for part in ast.walk(node.test))
        )
    ]


def metadata_faults(notebook: Notebook) -> list[str]:
    """The metadata name the plain kernel and nothing of this machine or minute."""
    metadata = notebook["metadata"]
    faults = []
    if metadata.get("kernelspec", {}).get("name") != "python3":
        faults.append(f"kernelspec is {metadata.get('kernelspec')}, want python3")
    if extra := set(metadata) - {"kernelspec", "language_info", "jupytext"}:
        faults.append(f"the notebook's metadata has {sorted(extra)}")
    for number, cell in enumerate(notebook["cells"], start=1):
        if extra := set(cell["metadata"]) - KEEP:
            faults.append(f"cell {number}: the metadata has {sorted(extra)}")
        if "id" not in cell:
            faults.append(f"cell {number} has no id")
    ids = [cell.get("id") for cell in notebook["cells"]]
    if len(set(ids)) < len(ids):
        faults.append("two cells have the same id")
    return faults


def code_faults(notebook: Notebook) -> list[str]:
    """Code fits the page, asserts in earnest, exports imports in cells of their own."""
    faults = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        for line in source(cell).splitlines():
            if len(line) > LINE_LIMIT and not DIRECTIVE.match(line):
                faults.append(f"code cell {number} has a line of {len(line)}: {line}")
        for line in vacuous(source(cell)):
            faults.append(f"code cell {number} asserts nothing: {line}")
        if "export" not in directives(cell):
            continue
        body = ast.parse(source(cell)).body
        imports = sum(isinstance(n, ast.Import | ast.ImportFrom) for n in body)
        if 0 < imports < len(body):
            faults.append(f"code cell {number} exports imports and code together")
    return faults


def headings(notebook: Notebook) -> list[tuple[int, str]]:
    """Return level and text of every heading outside code fences."""
    texts = [source(c) for c in notebook["cells"] if c["cell_type"] == "markdown"]
    found = HEADING.findall(FENCED.sub("", "\n\n".join(texts)))
    return [(len(marks), text) for marks, text in found]


def heading_faults(notebook: Notebook) -> list[str]:
    """One title, at the top; no level is skipped."""
    found = headings(notebook)
    levels = [level for level, _ in found]
    faults = []
    if levels[:1] != [1] or levels.count(1) != 1:
        faults.append(f"want one `# Title`, first of all headings; have {found[:2]}")
    for (before, _), (level, text) in pairwise(found):
        if level > before + 1:
            faults.append(f"heading {text!r} jumps from level {before} to {level}")
    return faults


def skeleton_faults(notebook: Notebook, name: str) -> list[str]:
    """A chapter has the sections of SKELETON, in this order."""
    want = [s for s in SKELETON if s != "At scale" or name not in NO_SCALE]
    seconds = [text for level, text in headings(notebook) if level == 2]
    have = [text.split(":")[0].strip() for text in seconds]
    faults = [f"no section `## {section}`" for section in want if section not in have]
    order = [have.index(section) for section in want if section in have]
    if order != sorted(order):
        faults.append(f"sections out of order: {have}")
    return faults


EXERCISE = re.compile(r"^:{3,}\{exercise(-start)?\}", re.MULTILINE)
SOLUTION = re.compile(r"^:{3,}\{solution(-start)?\} *(\S+)", re.MULTILINE)
LABEL = re.compile(r"^:label: *(\S+)", re.MULTILINE)


def exercise_faults(notebook: Notebook) -> list[str]:
    """Three exercises or more: minutes, hint, check, and a solution that is checked."""
    faults = []
    cells = notebook["cells"]
    markdown = [c["cell_type"] == "markdown" for c in cells]
    starts = [
        n for n, c in enumerate(cells) if markdown[n] and EXERCISE.search(source(c))
    ]
    if len(starts) < 3:
        faults.append(f"{len(starts)} cells hold an `{{exercise}}`, want three or more")
    for start, end in pairwise([*starts, len(cells)]):
        block = list(zip(cells[start:end], markdown[start:end], strict=True))
        text = "\n".join(source(c) for c, is_text in block if is_text)
        label = LABEL.search(text)
        if label is None:
            faults.append(f"the exercise in cell {start + 1} has no `:label:`")
            continue
        name = label[1]
        solution = [
            n
            for n, (c, is_text) in enumerate(block)
            if is_text and any(m[2] == name for m in SOLUTION.finditer(source(c)))
        ]
        if not solution:
            faults.append(f"exercise {name}: no `:::{{solution}} {name}`")
            continue
        if not re.search(r"\bmin(ute)?s?\b", text):
            faults.append(f"exercise {name} says no minutes")
        if not re.search(r"\bhint\b", text, re.IGNORECASE):
            faults.append(f"exercise {name} has no hint")
        code = [(n, source(c)) for n, (c, is_text) in enumerate(block) if not is_text]
        if not any(ASSERT.search(s) for _, s in code):
            faults.append(f"exercise {name} has no check: no cell asserts")
        checked = re.compile(rf"{ASSERT.pattern}|\bcheck\w*\(", re.MULTILINE)
        after = (s for n, s in code if n > solution[0])
        if not any(checked.search(re.sub(r"def check\w*\(", "", s)) for s in after):
            faults.append(f"exercise {name}: no cell after its solution checks it")
    return faults
