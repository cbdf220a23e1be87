"""Run notebooks from top to bottom and store their outputs, without noise.

    python tools/execute.py                       every notebook, in place
    python tools/execute.py 04_attention          one notebook
    python tools/execute.py --gpu                 the big settings, into _build/gpu/

A second run of the same code gives the same bytes: no timings, no stray metadata. What
each page costs (seconds, memory) goes to notebooks/cost.json or cost-gpu.json.
A notebook that fails is left as it was.
"""

import argparse
import base64
import datetime
import io
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image, ImageChops

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
SHADES = 14  # of 255: the tests allow a pixel 16
KEEP = {"tags", "mystnb"}  # the only cell metadata; the tests hold notebooks to it
Cost = dict[str, Any]


def environment(gpu: bool) -> None:
    """Set what the kernels inherit."""
    os.environ["PROFILE"] = "gpu" if gpu else "cpu"
    os.environ["PYTHONHASHSEED"] = "0"
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    if gpu:
        os.environ.pop("BOOK_EXECUTE", None)  # the stored hand-overs are the CPU's
    else:
        os.environ["BOOK_EXECUTE"] = "1"
        # One thread gives the same sums everywhere, and no thread waits for another.
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def device(gpu: bool) -> str:
    """Name the machine in words."""
    if gpu:
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "GPU"
    cores = psutil.cpu_count(logical=True) or 1
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (m := re.search(r"model name\s*: (.+)", info.read_text())):
        name = re.sub(r"\((R|TM)\)|CPU|Processor| @.*", "", m[1])
    return f"{' '.join(name.split())}, 1 thread of {cores} cores"


def peak_mb(pid: int) -> float:
    """Return the most memory that a process has held, in MB."""
    status = Path(f"/proc/{pid}/status")
    if status.exists() and (m := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(m[1]) / 1024
    return psutil.Process(pid).memory_info().rss / 2**20


def palette(png: str) -> str:
    """Store a picture with 256 colours, half the bytes, unless a shade would suffer."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        whole = image.convert("RGB")
    cover = Image.Quantize.MAXCOVERAGE  # rare shades count as much as common ones
    small = whole.quantize(256, cover, kmeans=2, dither=Image.Dither.NONE)
    worst = ImageChops.difference(whole, small.convert("RGB")).getextrema()
    if max(high for _, high in worst) > SHADES:
        return png
    file = io.BytesIO()
    small.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Keep what the book shows, drop what only makes noise in a diff."""
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in KEEP}
        if cell.cell_type != "code":
            cell.pop("attachments", None)
            continue
        outputs: list[nbformat.NotebookNode] = []
        for out in cell.outputs:
            if "image/png" in out.get("data", {}):
                out.data["image/png"] = palette(out.data["image/png"])
            last = outputs[-1] if outputs else None
            if out.output_type == "stream" and last and last.get("name") == out.name:
                last.text += out.text  # one print may arrive in two pieces
            else:
                outputs.append(out)
        cell.outputs = outputs
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.write_text(text, encoding="utf-8", newline="\n")
    new.replace(path)


def run(path: Path, target: Path, timeout: int) -> Cost:
    """Run one notebook and write it; return what it cost."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--log-level=40"],  # errors only: no word about transport
        resources={"metadata": {"path": str(path.parent)}},
    )
    peak = busy = 0.0

    def measure(**_: Any) -> None:
        nonlocal peak, busy
        pid = client.km.provisioner.pid
        peak, busy = max(peak, peak_mb(pid)), sum(psutil.Process(pid).cpu_times()[:4])

    client.on_cell_executed = measure
    start = time.perf_counter()
    client.execute()
    seconds = time.perf_counter() - start
    if os.environ.get("PROFILE") != "gpu":
        seconds = min(seconds, busy)  # one thread's, whatever else the machine does
    normalise(notebook)
    write(target, nbformat.writes(notebook, version=4) + "\n")
    return {"seconds": round(seconds, 1), "memory_mb": round(peak, -1)}


def record(path: Path, name: str, cost: Cost, machine: str) -> None:
    """Keep a page's cost; a figure that moved by less than a quarter stays."""
    costs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    old = costs.get(name, {})
    moved = old.get("device") != machine or any(
        abs(cost[key] - old.get(key, 0)) > max(0.25 * old.get(key, 0), 1)
        for key in ("seconds", "memory_mb")
    )
    if moved:
        costs[name] = {
            "seconds": cost["seconds"],
            "memory_mb": int(cost["memory_mb"]),
            "device": machine,
            "date": datetime.date.today().isoformat(),
        }
        write(path, json.dumps(dict(sorted(costs.items())), indent=2) + "\n")


def find(names: list[str]) -> list[Path]:
    """Return the notebooks that are meant: a path, a name or a number each."""
    every = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    if not names:
        return every
    found = []
    for name in names:
        stem = Path(name).stem
        number = stem.zfill(2) + "_"
        matches = [p for p in every if p.stem == stem or p.stem.startswith(number)]
        if not matches:
            raise SystemExit(f"execute: no notebook {name!r} in {NOTEBOOKS}")
        found += matches
    return found


def export() -> None:
    """Bring the package in step: the next chapter imports what this one exports."""
    command = [sys.executable, str(ROOT / "tools/export.py")]
    subprocess.run(command, check=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", help="paths, names or chapter numbers")
    parser.add_argument("--gpu", action="store_true", help="set PROFILE=gpu")
    parser.add_argument("--to", type=Path, help="write to this folder, not in place")
    parser.add_argument("--timeout", type=int, default=1200, help="seconds a cell")
    arguments = parser.parse_args()
    gpu = arguments.gpu or os.environ.get("PROFILE") == "gpu"
    target = arguments.to or (ROOT / "_build/gpu" if gpu else NOTEBOOKS)
    environment(gpu)
    if target != NOTEBOOKS:
        os.environ.pop("BOOK_EXECUTE", None)
    export()
    machine = device(gpu)
    failed = []
    for path in find(arguments.notebooks):
        print(f"{path.stem} ... ", end="", flush=True)
        try:
            cost = run(path, target / path.name, arguments.timeout)
        except CellExecutionError as error:
            failed.append(path.stem)
            print(f"failed, left as it was\n{error}")
            continue
        print(f"{cost['seconds']:.1f} s, {cost['memory_mb']:.0f} MB")
        if target == NOTEBOOKS or gpu:
            name = "cost-gpu.json" if gpu else "cost.json"
            record(NOTEBOOKS / name, path.stem, cost, machine)
    if failed:
        print("failed:", ", ".join(failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
