"""Executes the notebooks from their sources. The .py files are what is edited; the .ipynb files carry the outputs.

    python notebooks/build.py [NAME ...]       execute these (default: all), and write NAME.ipynb
    python notebooks/build.py --check          execute, write nothing, and fail if a stored notebook is not its source's

Solutions to exercises, code blocks inside <details>, are executed too, after the notebook, but not kept in it.
A notebook may have 500 kB; one that takes more than 180 seconds is reported, and does not fail: machines differ.
"""

import argparse
import base64
import copy
import io
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).resolve().parent
SECONDS, BYTES = 180, 500_000


def sources() -> list[Path]:
    """The notebooks' sources: files in percent format."""
    return [
        path for path in sorted(HERE.glob("*.py")) if path.read_text(encoding="utf-8").startswith("# ---\n# jupyter:")
    ]


def solutions(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The code blocks inside <details>, as cells."""
    folded = [part for cell in notebook.cells for part in re.findall(r"<details>.*?</details>", cell.source, re.DOTALL)]
    blocks = [block for part in folded for block in re.findall(r"```python\n(.*?)```", part, re.DOTALL)]
    return [nbformat.v4.new_code_cell(block) for block in blocks]


def smaller(png: str) -> str:
    """A picture, base64, with a palette of 256 colours: a third of the bytes, and no difference to be seen."""
    from PIL import Image

    file = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256).save(file, "PNG", optimize=True)
    return min(png, base64.b64encode(file.getvalue()).decode() + "\n", key=len)


def execute(path: Path) -> nbformat.NotebookNode:
    """The executed notebook. Raises nbclient's CellExecutionError for a cell, or a solution, that fails."""
    from nbclient import NotebookClient

    notebook = jupytext.read(path)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{path.stem}-{number}"  # the same each time
    run, kept = copy.deepcopy(notebook), len(notebook.cells)
    run.cells += solutions(notebook)
    NotebookClient(
        run, timeout=900, startup_timeout=300, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}
    ).execute()
    run.cells = run.cells[:kept]
    for cell in run.cells:
        cell.metadata.pop("execution", None)  # times
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                output.data["image/png"] = smaller(png)
    run.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return run


def differences(path: Path) -> str:
    """In one line, how the stored notebook differs from its source; empty if it does not."""
    stored = path.with_suffix(".ipynb")
    if not stored.is_file():
        return f"{stored.name}: missing"
    if stored.stat().st_size > BYTES:
        return f"{stored.name}: {stored.stat().st_size:,} bytes, expected at most {BYTES:,}"
    cells, theirs = jupytext.read(path).cells, nbformat.read(stored, as_version=4).cells
    for number, (cell, other) in enumerate(zip(cells, theirs)):
        if (cell.cell_type, cell.source) != (other.cell_type, other.source):
            return f"{stored.name}: cell {number} is not that of {path.name}"
        if cell.cell_type == "code" and other.execution_count is None and cell.source.strip():
            return f"{stored.name}: cell {number} was not executed"
    return "" if len(cells) == len(theirs) else f"{stored.name}: {len(theirs)} cells, expected {len(cells)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="such as 2_delta_rule (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where source and notebook differ")
    args = parser.parse_args()
    known = {path.stem: path for path in sources()}
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f"no notebook {unknown[0]!r}, expected some of {', '.join(known)}")
    from nbclient.exceptions import CellExecutionError

    wrong = 0
    for name in args.names or known:
        path, started = known[name], time.perf_counter()
        problem = differences(path) if args.check else ""
        try:
            notebook = execute(path)
        except CellExecutionError as error:
            problem = f"{path.name}: {error}"
        else:
            taken = time.perf_counter() - started
            if not args.check:
                nbformat.write(notebook, path.with_suffix(".ipynb"))
                problem = differences(path)
            late = f", expected at most {SECONDS} on an idle machine" if taken > SECONDS else ""
            print(f"{name}: {taken:.0f} s{late}", flush=True)
        if problem:
            wrong += 1
            print(problem, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
