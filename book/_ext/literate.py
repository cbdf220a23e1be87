"""The book's Sphinx extension: what the notebooks' directives look like on a page.

- ``#| export`` cells wear a badge that names their module and links to the API page;
  ``#| alt:`` describes a cell's pictures, and folds the code of a long drawing; a cell
  with ``#| hide``, or with directives only, is not shown.
- ``:::{cost}`` prints what the page costs to run, from notebooks/cost.json.
- A line ``<!-- modules -->`` becomes one API section a module, in the chapters' order;
  what a section lists links back to the cell that defines it.
- A chapter's number is the one that its file's name begins with, unwritten chapters or
  not: Sphinx by itself counts pages.
- Buttons for the repository, Colab and Binder appear once ``repository: url`` is set.
- MathJax is copied from an installed package: pages ask no other host for anything.
"""

import ast
import json
import re
import shutil
import struct
import sys
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # document this copy, whatever is installed
sys.path.insert(0, str(ROOT / "tools"))
from export import defined, split_directives  # noqa: E402

FORMATTER = re.compile(r" *# fmt: \w+$", re.MULTILINE)  # said to ruff, not to readers
CELL = "cell-"  # + transformer.attention.attention: the label of the defining cell
WIDE = 520  # pixels
DRAWING = 11  # lines; the code of a longer matplotlib drawing is folded
KINDS = {"class", "exception", "function", "data"}  # what a cell defines
LAUNCH = {
    "notebook_interface": "jupyterlab",
    "colab_url": "https://colab.research.google.com",
    "binderhub_url": "https://mybinder.org",
}


# ---- cells -----------------------------------------------------------------------


def definitions(code: str) -> dict[str, bool]:
    """Return the public names that a cell defines; True = a CONSTANT."""
    body = ast.parse(code).body
    return {
        name: isinstance(node, ast.Assign | ast.AnnAssign)
        for node in body
        for name in defined(node)
    }


def link(kind: str, target: str, text: str, docname: str) -> addnodes.pending_xref:
    """Return a link into the API page; an unknown target is a warning."""
    return addnodes.pending_xref(
        "",
        nodes.literal(text, text, classes=["xref"]),
        refdomain="py",
        reftype=kind,
        reftarget=target,
        refdoc=docname,
        refexplicit=True,
        refwarn=True,
    )


def badge(module: str, names: list[str], docname: str) -> nodes.paragraph:
    """Return the line above an exported cell."""
    line = nodes.paragraph(classes=["export-badge"])
    line += nodes.inline("", "exported to ")
    line += link("mod", f"transformer.{module}", f"transformer.{module}", docname)
    for number, name in enumerate(names):
        line += nodes.Text(", " if number else ": ")
        line += link("obj", f"transformer.{module}.{name}", name, docname)
    return line


def is_wide(path: Path) -> bool:
    """Tell whether a PNG would be too small to read on a phone."""
    if path.suffix != ".png" or not path.exists():
        return False
    with path.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return width > WIDE and width > 1.7 * height


def is_drawing(code: str) -> bool:
    """Tell whether a cell is long and mostly about how a picture looks."""
    draws = "plt.subplots(" in code or "plt.figure(" in code
    return draws and len(code.splitlines()) > DRAWING


def on_doctree_read(app: Sphinx, doctree: nodes.document) -> None:
    """Carry out the directives of a page's code cells."""
    module = None
    docname = app.env.docname
    standard = app.env.get_domain("std")
    for cell in list(doctree.findall(nodes.container)):
        if cell.get("nb_element") != "cell_code":
            continue
        block = next(iter(cell.findall(nodes.literal_block)), None)
        if block is None:
            continue
        found, code = split_directives(block.astext())
        module = found.get("default_exp", module)
        for image in cell.findall(nodes.image):
            if "alt" in found:
                image["alt"] = found["alt"]
            if is_wide(Path(app.srcdir) / image["uri"].lstrip("/")):
                image["classes"].append("wide")
        if "hide" in found or not code:
            cell.parent.remove(cell)
            continue
        code = FORMATTER.sub("", code)
        block.rawsource = code
        block[:] = [nodes.Text(code)]
        if "alt" in found and is_drawing(code):
            cell["hide_mode"] = "input"
            cell["prompt_show"] = "Show the code of this picture"
            cell["prompt_hide"] = "Hide the code of this picture"
        if "export" in found and module:
            names = list(definitions(code))
            cell["classes"].append("cell-exported")
            cell.insert(0, badge(module, names, docname))
            for name in names:
                label = f"{CELL}transformer.{module}.{name}"
                cell["ids"].append(nodes.make_id(label))
                standard.note_hyperlink_target(
                    label.lower(), docname, nodes.make_id(label), name
                )


# ---- the cost of a page ----------------------------------------------------------


def in_words(seconds: float) -> str:
    """Return a time that a person would say."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


class Cost(SphinxDirective):
    """``:::{cost}``: what it takes to run this page's notebook, or the one named."""

    has_content = False
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return one line, or none for a notebook that was not measured."""
        name = (self.arguments or [self.env.docname.rsplit("/")[-1]])[0]
        said = []
        for file in ("cost.json", "cost-gpu.json"):
            path = ROOT / "notebooks" / file
            if not path.exists():
                continue
            self.env.note_dependency(str(path))
            if cost := json.loads(path.read_text(encoding="utf-8")).get(name):
                said.append(
                    f"{in_words(cost['seconds'])} and {cost['memory_mb']:,} MB of"
                    f" memory on {cost['device']} ({cost['date']})"
                )
        if not said:
            return []
        line = nodes.paragraph(classes=["cost"])
        line += nodes.strong("", "Cost of this page: ")
        line += nodes.Text("; ".join(said) + ".")
        return [line]


# ---- the API page ----------------------------------------------------------------


@dataclass
class Chapter:
    """A notebook, as the API page wants to know it."""

    notebook: str
    title: str
    constants: list[str]


def chapters() -> dict[str, Chapter]:
    """Return each exported module with its chapter, in order."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells]
        title = next((s.splitlines()[0][2:] for s in sources if s.startswith("# ")), "")
        module = ""
        for source in sources:
            directives, code = split_directives(source)
            if "default_exp" in directives:
                module = directives["default_exp"]
                found[module] = Chapter(path.stem, title, [])
            if "export" in directives:
                names = definitions(code)
                found[module].constants += [n for n in names if names[n]]
    return found


SECTION = """## transformer.{module}

Chapter {number}: [{title}](../notebooks/{notebook}).

```{{eval-rst}}
.. automodule:: transformer.{module}
   :members:
   :undoc-members:
   :member-order: bysource
   :exclude-members: {constants}

{data}
```
"""


def on_source_read(app: Sphinx, docname: str, content: list[str]) -> None:
    """Write the API page's sections where the page asks for them."""
    if "<!-- modules -->" not in content[0]:
        return
    text = [
        SECTION.format(
            module=module,
            number=int(chapter.notebook.split("_")[0]),
            title=chapter.title,
            notebook=chapter.notebook,
            constants=", ".join(["__weakref__", *chapter.constants]),
            # automodule passes over a constant without a docstring
            data="\n".join(
                f".. autodata:: transformer.{module}.{name}\n   :no-value:\n"
                for name in chapter.constants
            ),
        )
        for module, chapter in chapters().items()
    ]
    content[0] = content[0].replace("<!-- modules -->", "\n".join(text))


def on_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Link what the API page lists back to the cell that defines it."""
    if what == "module":
        # The section names the chapter; how the file is made is no matter here.
        end = next((i for i, s in enumerate(lines) if s.startswith("Chapter ")), None)
        del lines[end:]
    elif what in KINDS and name.startswith("transformer."):
        if what == "data" and lines[:1] == (type(obj).__doc__ or "").splitlines()[:1]:
            lines.clear()  # a constant without words of its own shows its type's
        lines += ["", f":ref:`Built in its chapter <{CELL}{name}>`", ""]


# ---- numbers ---------------------------------------------------------------------


def on_numbered(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Give chapters, and what is counted in them, the number of their file."""
    for name in env.found_docs:
        if not (found := re.fullmatch(r"notebooks/(\d+)_\w+", name)):
            continue
        chapter = int(found[1])
        titled = [env.titles[name], *env.tocs[name].findall(nodes.reference)]
        for node in titled:
            if number := node.get("secnumber"):
                node["secnumber"] = [chapter, *number[1:]]
        for numbers in (
            env.toc_secnumbers.get(name, {}),
            *env.toc_fignumbers.get(name, {}).values(),
        ):
            for anchor, number in numbers.items():
                if number:
                    numbers[anchor] = (chapter, *number[1:])
    return []


# ---- the site --------------------------------------------------------------------


def on_config(app: Sphinx, config: Config) -> None:
    """Show the repository's buttons if there is a repository to show."""
    options = config.html_theme_options
    if options.get("repository_url"):
        options["use_repository_button"] = True
        options["launch_buttons"] = {**options.get("launch_buttons", {}), **LAUNCH}
    else:
        options["use_repository_button"] = False
        options.pop("launch_buttons", None)


def on_page_context(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Drop scripts that the book does not use, or that come twice."""
    seen, keep = set(), []
    for script in context.get("script_files", []):
        body = (getattr(script, "attributes", None) or {}).get("body") or ""
        name = str(getattr(script, "filename", script) or "")
        if "THEBE" in body or "sphinx-thebe" in name or (body and body in seen):
            continue
        seen.add(body)
        keep.append(script)
    context["script_files"] = keep


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Copy the two parts of MathJax that the pages need."""
    if error is not None or app.builder.format != "html":
        return
    package = "sphinx-mathjax-offline"
    source = Path(str(distribution(package).locate_file(package))) / "static/mathjax"
    target = Path(app.outdir) / "_static/mathjax"
    fonts = Path("output/chtml/fonts/woff-v2")
    (target / fonts).mkdir(parents=True, exist_ok=True)
    shutil.copy2(source / "tex-chtml-full.js", target)
    shutil.copytree(source / fonts, target / fonts, dirs_exist_ok=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything with Sphinx."""
    app.config.mathjax_path = "mathjax/tex-chtml-full.js"
    app.add_directive("cost", Cost)
    app.connect("config-inited", on_config, priority=100)
    app.connect("source-read", on_source_read)
    app.connect("autodoc-process-docstring", on_docstring)
    app.connect("doctree-read", on_doctree_read)
    app.connect("env-get-updated", on_numbered, priority=900)  # after Sphinx's own
    app.connect("html-page-context", on_page_context, priority=900)
    app.connect("build-finished", copy_mathjax)
    return {"version": "0.1", "parallel_read_safe": True, "parallel_write_safe": True}
