"""Write the package from the notebooks: ``#| export`` cells become modules.

    python tools/export.py            write transformer/
    python tools/export.py --check    write nothing; fail on a difference

The directives stand in the first lines of a code cell:

    #| default_exp attention          from here on: transformer/attention.py
    #| export                         this cell is part of it

A notebook may make several modules: a cell goes to the nearest ``default_exp`` above
it. A module's docstring is the ``> `` lines of the last text above its ``default_exp``
that has any: for the first module, those under the title. Imports of all exported cells
are gathered at the top. ``__all__`` holds the public functions, classes and CONSTANTS.
The same notebooks give the same bytes.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BOOK = "Transformers, Matrix by Matrix"
DIRECTIVE = re.compile(r"#\s*\|\s*(?P<name>[a-z_-]+)(?:[ :]+(?P<value>\S.*?))?\s*$")
CONSTANT = re.compile(r"[A-Z][A-Z0-9_]+$")
MARK = "by tools/export.py"  # a file of the package with this note is ours to remove

# What `from transformer import ...` gives, and the module that has it. A line whose
# module does not exist yet waits for its chapter.
PUBLIC = {
    "tokens": ["Tokenizer"],
    "gpt": ["GPT", "GPTConfig"],
    "bert": ["BERT", "BERTConfig"],
    "encoder_decoder": ["Transformer", "TransformerConfig"],
    "vision": ["ViT", "ViTConfig"],
    "generation": ["generate"],
    "pretrained": ["from_pretrained", "save_pretrained"],
}


class ExportError(Exception):
    """A notebook that cannot become a module; the message says where and why."""


@dataclass
class Module:
    """What a notebook says about one of its modules."""

    path: Path  # the notebook's
    name: str
    doc: str
    cells: list[tuple[int, str]] = field(default_factory=list)  # (number, source)


def split_directives(source: str) -> tuple[dict[str, str], str]:
    """Split the leading ``#| name value`` lines of a cell from its code."""
    lines = source.splitlines()
    found = {}
    while lines and (m := DIRECTIVE.match(lines[0])):
        found[m["name"]] = m["value"] or ""
        lines.pop(0)
    return found, "\n".join(lines).strip("\n")


def read(path: Path) -> list[Module]:
    """Read the modules of a notebook: names, docstrings, exported cells."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError) as error:
        raise ExportError(f"{path.name}: not a notebook ({error})") from error
    modules: list[Module] = []
    doc = ""
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        where = f"{path.name}, cell {number}"
        if cell["cell_type"] == "markdown":
            title = re.match(r"# (.+)", source)
            said = [x[2:].strip() for x in source.splitlines() if x.startswith("> ")]
            doc = " ".join(said) or doc or (title[1].strip() + "." if title else "")
        elif cell["cell_type"] == "code":
            found, code = split_directives(source)
            if "default_exp" in found:
                name = found["default_exp"]
                if not name.isidentifier() or name in {m.name for m in modules}:
                    raise ExportError(
                        f"{where}: `#| default_exp` wants the name of a new module,"
                        f" got {name!r}"
                    )
                modules.append(Module(path, name, doc))
            if "export" in found and code:
                if not modules:
                    raise ExportError(
                        f"{where}: `#| export` but no `#| default_exp name` above it"
                    )
                modules[-1].cells.append((number, code))
    return modules


def take_imports(code: str, tree: ast.Module) -> tuple[list[str], str]:
    """Cut the top-level imports out of a cell; return them and what is left."""
    lines = code.splitlines()
    imports = []
    for node in reversed(tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            here = slice(node.lineno - 1, node.end_lineno)
            imports.insert(0, "\n".join(lines[here]))
            del lines[here]
    return imports, "\n".join(lines).strip("\n")


def defined(node: ast.stmt) -> list[str]:
    """Return the public names that a top-level statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name] if not node.name.startswith("_") else []
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value:
        targets = [node.target]
    named = [t.id for t in targets if isinstance(t, ast.Name)]
    return [name for name in named if CONSTANT.match(name)]


def ruff(text: str, *arguments: str) -> str:
    """Pass a module's text through one ruff command."""
    command = [sys.executable, "-m", "ruff", *arguments, "-q"]
    done = subprocess.run(
        [*command, "--stdin-filename", "transformer/module.py", "-"],
        input=text,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        cwd=ROOT,
    )
    if done.returncode:
        raise ExportError(f"ruff {arguments[0]} failed: {done.stderr or done.stdout}")
    return done.stdout


def tidy(text: str) -> str:
    """Sort and merge the imports, sort ``__all__``, then format."""
    text = ruff(text, "check", "--select", "I,RUF022", "--fix", "--exit-zero")
    return ruff(text, "format")


def quoted(text: str) -> str:
    """Return a text that may stand between triple quotes."""
    return text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')


def module_text(module: Module) -> str:
    """Return the text of one module."""
    imports: list[str] = []
    bodies: list[str] = []
    home: dict[str, int] = {}
    for number, code in module.cells:
        where = f"{module.path.name}, cell {number}"
        try:
            tree = ast.parse(code)
        except SyntaxError as error:
            raise ExportError(f"{where}: line {error.lineno}: {error.msg}") from error
        for name in [name for node in tree.body for name in defined(node)]:
            if name in home:
                raise ExportError(
                    f"{where}: exports {name!r}, which cell {home[name]} exports too"
                )
            home[name] = number
        found, body = take_imports(code, tree)
        imports += found
        bodies += [body] if body else []
    number_of = module.path.stem.split("_")[0].lstrip("0")
    note = (
        f"Chapter {number_of} of {BOOK}.\n"
        f"Made from notebooks/{module.path.name} {MARK}: edit the notebook."
    )
    doc = textwrap.fill(quoted(module.doc), 85)
    parts = [f'"""{doc}\n\n{note}\n"""']
    parts += ["\n".join(dict.fromkeys(imports)), f"__all__ = {sorted(home)!r}"]
    return tidy("\n\n".join(parts + bodies) + "\n")


def version() -> str:
    """Return the version that pyproject.toml gives."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    if not (m := re.search(r'^version = "([^"]+)"', text, re.MULTILINE)):
        raise ExportError("pyproject.toml: no line `version = ...`")
    return m[1]


def init_text(modules: dict[str, str]) -> str:
    """Return the text of ``transformer/__init__.py`` for the modules that exist."""
    public = {name: names for name, names in PUBLIC.items() if name in modules}
    for module, names in public.items():
        has = {n for node in ast.parse(modules[module]).body for n in defined(node)}
        if missing := [name for name in names if name not in has]:
            raise ExportError(
                f"transformer/{module}.py should export {', '.join(missing)}"
                " (PUBLIC in tools/export.py), and does not"
            )
    home = {name: module for module, names in public.items() for name in names}
    if len(home) != sum(map(len, public.values())):
        raise ExportError("PUBLIC in tools/export.py names something twice")
    lines = [f"from transformer.{m} import {', '.join(n)}" for m, n in public.items()]
    imports = "\n".join(f"    {line}" for line in lines) or "    pass"
    return tidy(f'''"""The package of the book "{BOOK}".

Each module is one chapter's code. The names below are what most users want; the parts
(attention, norms, positions, blocks) are importable from their modules.

Made {MARK}.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
{imports}

__version__ = "{version()}"

__all__ = {sorted(home)!r}

_HOME = {dict(sorted(home.items()))!r}


def __getattr__(name: str) -> Any:
    # A name's module loads when first asked for: small parts stay cheap.
    if name not in _HOME:
        raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")
    return getattr(import_module(f"transformer.{{_HOME[name]}}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
''')


DOOR = f'''"""The commands ``python -m transformer`` and ``transformer``.

Made {MARK}.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the program of chapter 24, or say in a line what it lacks."""
    try:
        from transformer.program import app
    except ModuleNotFoundError as error:
        lack = f"the program needs {{error.name}}, which is not installed"
        sys.exit(f'{{lack}}: pip install ".[train]"')
    except KeyboardInterrupt:  # while torch was being imported
        sys.exit(130)
    app(prog_name="transformer")


if __name__ == "__main__":
    main()
'''


def wanted(root: Path) -> dict[Path, str]:
    """Return every file of the package with the text that it should have."""
    made: dict[str, str] = {}
    source: dict[str, str] = {}
    for path in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        for module in read(path):
            if module.name in made:
                raise ExportError(
                    f"{path.name}: makes transformer/{module.name}.py, which"
                    f" {source[module.name]} makes too"
                )
            made[module.name] = module_text(module)
            source[module.name] = path.name
    package = root / "transformer"
    files = {package / f"{name}.py": text for name, text in made.items()}
    if "program" in made:
        files[package / "__main__.py"] = DOOR
    by_hand = {
        path.stem: path.read_text(encoding="utf-8")
        for path in package.glob("*.py")
        if path not in files and path.stem != "__init__" and not is_ours(path)
    }
    files[package / "__init__.py"] = init_text({**by_hand, **made})
    files[package / "py.typed"] = ""
    return files


def is_ours(path: Path) -> bool:
    """Tell whether this program wrote the file."""
    return MARK in path.read_text(encoding="utf-8")[:2000]


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.write_text(text, encoding="utf-8", newline="\n")
    new.replace(path)


def export(root: Path, check: bool) -> int:
    """Bring the package in step; with ``check``, only count what is out of step."""
    files = wanted(root)
    wrong = 0
    for path, text in files.items():
        if not path.exists() or path.read_bytes() != text.encode():
            wrong += 1
            name, there = path.relative_to(root), path.exists()
            if check:
                print(f"differs from its notebook: {name}")
            else:
                write(path, text)
                print(f"wrote {name}" + ", which differed from its notebook" * there)
    for path in sorted((root / "transformer").glob("*.py")):
        if path in files:
            continue
        if is_ours(path) and not check:
            path.unlink()
            print(f"removed {path.relative_to(root)}: no notebook makes it any more")
        else:
            wrong += 1
            print(f"no notebook makes {path.relative_to(root)}")
    return wrong


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    parser.add_argument("--root", type=Path, default=ROOT, help="another copy")
    arguments = parser.parse_args()
    try:
        wrong = export(arguments.root.resolve(), arguments.check)
    except ExportError as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    if arguments.check and wrong:
        print("run `make export`, or edit the notebook instead of the package")
    return int(arguments.check and wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
