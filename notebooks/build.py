"""Executes the notebooks from their sources. The .py files are what is edited; the .ipynb files carry the outputs.

    python notebooks/build.py [NAME ...]       execute these (default: all), and write NAME.ipynb
    python notebooks/build.py --check          execute, write nothing, and fail if a stored notebook is not its source's
    python notebooks/build.py --text           execute nothing; write text, badges and first cells anew, keep outputs

Solutions to exercises, code blocks inside <details>, are executed too, after the notebook, but not kept in it.
A notebook may have 500 kB; one that takes more than 180 seconds is reported, and does not fail: machines differ.
"""

import argparse
import base64
import copy
import io
import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import start  # noqa: E402

import course  # noqa: E402

SECONDS, BYTES = 180, 500_000
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
FIRST = "from start import root"  # the first cell of every source
# On Colab the notebook comes alone: this fetches the repository, and links its notebooks/ to where this one is
FETCH = 'import os; os.path.exists("start.py") or os.system("git clone -q --depth 1 {} all && ln -s all/notebooks/* .")'
COLAB = "https://colab.research.google.com"
BADGE = "[![Open in Colab]({0}/assets/colab-badge.svg)]({0}/github/{1}/blob/main/notebooks/{2}.ipynb)"


def sources() -> list[Path]:
    """The notebooks' sources, files in percent format, in the order in which they are read."""

    def number(path: Path) -> tuple[int, str]:
        """2b_reading_a_state is (2, "b"); what has no number comes last."""
        found = re.match(r"(\d+)([a-z]?)_", path.stem)
        return (int(found[1]), found[2]) if found else (99, path.stem)

    found = [path for path in HERE.glob("*.py") if path.read_text(encoding="utf-8").startswith("# ---\n# jupyter:")]
    return sorted(found, key=number)


def read(path: Path) -> nbformat.NotebookNode:
    """A source's notebook. Once the repository has an address, it opens on Colab by a badge, and runs there."""
    notebook = jupytext.read(path)
    if start.REPOSITORY:
        owner_and_name = start.REPOSITORY.removeprefix("https://github.com/")
        title = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
        heading, _, rest = title.source.partition("\n")
        title.source = f"{heading}\n\n{BADGE.format(COLAB, owner_and_name, path.stem)}\n{rest}"
        first = next(cell for cell in notebook.cells if cell.source == FIRST)
        first.source = f"{FETCH.format(start.REPOSITORY)}; {FIRST}"
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{path.stem}-{number}"  # the same each time
    return notebook


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
    """The executed notebook. Raises nbclient's CellExecutionError for a cell, or a solution, that fails, and its
    CellTimeoutError for one that takes 15 minutes."""
    from nbclient import NotebookClient

    notebook = read(path)
    run, kept = copy.deepcopy(notebook), len(notebook.cells)
    run.cells += solutions(notebook)
    os.environ[course.AS_WRITTEN] = "1"  # findings about the notebook's own numbers are assertions now
    NotebookClient(
        run, timeout=900, startup_timeout=300, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}
    ).execute()
    run.cells = run.cells[:kept]
    for cell in run.cells:
        cell.metadata.pop("execution", None)  # times
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                output.data["image/png"] = smaller(png)
    run.metadata = KERNEL
    return run


def differences(path: Path) -> str:
    """In one line, how the stored notebook differs from its source; empty if it does not."""
    stored = path.with_suffix(".ipynb")
    if not stored.is_file():
        return f"{stored.name}: missing"
    if stored.stat().st_size > BYTES:
        return f"{stored.name}: {stored.stat().st_size:,} bytes, expected at most {BYTES:,}"
    cells, theirs = read(path).cells, nbformat.read(stored, as_version=4).cells
    for number, (cell, other) in enumerate(zip(cells, theirs)):
        if (cell.cell_type, cell.source) != (other.cell_type, other.source):
            return f"{stored.name}: cell {number} is not that of {path.name}"
        if cell.cell_type == "code" and other.execution_count is None and cell.source.strip():
            return f"{stored.name}: cell {number} was not executed"
    return "" if len(cells) == len(theirs) else f"{stored.name}: {len(theirs)} cells, expected {len(cells)}"


def renew_text(path: Path):
    """Writes a stored notebook's text and first cell anew, and keeps its outputs.

    Raises ValueError if other code has changed too: outputs would not be that code's.
    """
    stored = path.with_suffix(".ipynb")
    notebook = read(path)
    ours = [cell for cell in notebook.cells if cell.cell_type == "code"]
    theirs = [cell for cell in nbformat.read(stored, as_version=4).cells if cell.cell_type == "code"]
    if [cell.source for cell in ours[1:]] != [cell.source for cell in theirs[1:]]:
        raise ValueError(f"{path.name}: code has changed; expected changes of text alone. Execute it without --text")
    for cell, other in zip(ours, theirs):
        cell.outputs = other.outputs
        cell.execution_count = other.execution_count
        cell.metadata = other.metadata
    notebook.metadata = KERNEL
    nbformat.write(notebook, stored)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="such as 2_delta_rule (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where source and notebook differ")
    parser.add_argument("--text", action="store_true", help="write text, badges and first cells; execute nothing")
    args = parser.parse_args()
    known = {path.stem: path for path in sources()}
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f"no notebook {unknown[0]!r}, expected some of {', '.join(known)}")
    if args.text:
        for name in args.names or known:
            try:
                renew_text(known[name])
            except ValueError as problem:
                sys.exit(str(problem))
        return 0
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    wrong = 0
    for name in args.names or known:
        path, started = known[name], time.perf_counter()
        problem = differences(path) if args.check else ""
        try:
            notebook = execute(path)
        except (CellExecutionError, CellTimeoutError) as error:
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
