"""What nbval needs to know about this book: history, pictures, and what it let pass."""

import base64
import io
import json
from pathlib import Path

import numpy as np
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, find_comment_markers, find_metadata_tags
from PIL import Image

HERE = Path(__file__).parent
KEEP = HERE.parent / "_build" / "pictures"  # where a differing picture is laid down

# A picture holds when its pixels hold. Another processor may shade the edge of a line
# differently or move it by one pixel, so a pixel may take any shade found among its
# neighbours in the other picture, and LEVELS (of 255) more. Words and digits are too
# fine for this rule: bookkit.caption() puts a mark of them into the output's text.
LEVELS = 16
PIXELS = 3  # may break that rule


def execute_with_history(self, cell_input, allow_stdin=None):
    """Run a cell as Jupyter does: ``;`` hides a value, ``Out`` and the counts exist."""
    stdin = bool(allow_stdin)
    return self.kc.execute(
        cell_input, store_history=True, allow_stdin=stdin, stop_on_error=False
    )


RunningKernel.execute_cell_input = execute_with_history


# ---------------------------------------------------------------------- pictures


def decode(png: str) -> np.ndarray:
    """Return a base64 PNG as an array of whole numbers, (height, width, 4)."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        return np.asarray(image.convert("RGBA"), dtype=np.int16)


def envelope(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the darkest and the brightest shade of every 3 by 3 neighbourhood."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    low, high = image, image
    for down in range(3):
        for right in range(3):
            shifted = padded[down : down + height, right : right + width]
            low, high = np.minimum(low, shifted), np.maximum(high, shifted)
    return low, high


def outside(image: np.ndarray, other: np.ndarray) -> int:
    """Count the image's pixels that ``other`` has nothing like nearby."""
    low, high = envelope(other)
    wrong = (image < low - LEVELS) | (image > high + LEVELS)
    return int(wrong.any(axis=-1).sum())


def picture_difference(stored: str, new: str) -> str | None:
    """Say how two base64 PNGs differ, or return None when they show the same."""
    a, b = decode(stored), decode(new)
    if a.shape != b.shape:
        return f"stored {a.shape[1]} x {a.shape[0]}, new {b.shape[1]} x {b.shape[0]}"
    count = max(outside(a, b), outside(b, a))
    if count <= PIXELS:
        return None
    mean = np.abs(a - b).mean()
    return (
        f"{count} pixels differ ({PIXELS} may), "
        f"mean absolute difference {mean:.2f} of 255"
    )


def pictures(outputs: list) -> list[str]:
    """Return the PNGs of a cell's outputs in order."""
    data = [output.get("data", {}) for output in outputs]
    return [d["image/png"] for d in data if "image/png" in d]


def compare_outputs(self, test, ref, skip_compare=None):
    """Compare text as nbval does, then the pictures, which nbval leaves out."""
    if not compare_text(self, test, ref, skip_compare):
        return False
    stored, new = pictures(ref), pictures(test)
    if len(stored) != len(new):
        told = f"stored pictures: {len(stored)}, new pictures: {len(new)}"
        self.comparison_traceback.append(told)
        return False
    for number, pair in enumerate(zip(stored, new, strict=True)):
        told = picture_difference(*pair)
        if told is None:
            continue
        KEEP.mkdir(parents=True, exist_ok=True)
        name = f"{Path(self.parent.path).stem}-cell{self.cell_num}-{number}"
        for kind, png in zip(("stored", "new"), pair, strict=True):
            (KEEP / f"{name}-{kind}.png").write_bytes(base64.b64decode(png))
        where = f"_build/pictures/{name}-*.png"
        self.comparison_traceback.append(
            f"picture {number} is another picture: {told}. Look at {where}"
        )
        return False
    return True


compare_text = IPyNbCell.compare_outputs
IPyNbCell.compare_outputs = compare_outputs


# ----------------------------------------------------------- what was let pass


def ignored_cells(folder: Path = HERE) -> list[str]:
    """List the cells whose outputs are not compared, as ``notebook: cell n: line``."""
    found = []
    for path in sorted(folder.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        for number, cell in enumerate(code):
            text = "".join(cell["source"])
            said = [*find_metadata_tags(cell["metadata"]), *find_comment_markers(text)]
            if ("check", False) in said:
                lines = text.splitlines()
                plain = (x for x in lines if x.strip() and not x.startswith("#"))
                found.append(f"{path.name}: cell {number}: {next(plain, '')}")
    return found


def pytest_terminal_summary(terminalreporter, config):
    """Print the cells whose stored output was not compared."""
    if not (config.option.nbval or config.option.nbval_lax):
        return
    found = ignored_cells()
    terminalreporter.section("cells whose output is not compared (they assert instead)")
    terminalreporter.write_line("\n".join(found) if found else "none")
