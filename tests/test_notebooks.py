"""Claim: the notebooks are their sources', executed, and fit to be read anywhere (notebooks/build.py executes them)."""

import re
import sys

import pytest
from conftest import ROOT

nbformat = pytest.importorskip("nbformat")

sys.path.insert(0, str(ROOT / "notebooks"))
import build  # noqa: E402

NOTEBOOKS = build.sources()


def test_there_are_notebooks():
    """Catches a search that finds nothing, so that all else passes."""
    assert len(NOTEBOOKS) >= 10


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_stored_notebook_is_its_source(path):
    """Catches an edit of one that the other lacks, cells that were not executed, and files that are too large."""
    assert build.differences(path) == ""


def test_differences_are_seen(tmp_path, monkeypatch):
    """Catches a comparison that passes whatever it is given."""
    for suffix in (".py", ".ipynb"):
        (tmp_path / "x").with_suffix(suffix).write_bytes(NOTEBOOKS[0].with_suffix(suffix).read_bytes())
    source, stored = tmp_path / "x.py", tmp_path / "x.ipynb"
    assert build.differences(source) == ""
    text = source.read_text(encoding="utf-8")
    source.write_text(text + "\n# %%\n1 + 1\n", encoding="utf-8")
    assert "cells, expected" in build.differences(source)
    source.write_text(text.replace("import torch", "import torch  # changed", 1), encoding="utf-8")
    assert "is not that of" in build.differences(source)
    source.write_text(text, encoding="utf-8")
    notebook = nbformat.read(stored, as_version=4)
    next(cell for cell in notebook.cells if cell.cell_type == "code").execution_count = None
    nbformat.write(notebook, stored)
    assert "was not executed" in build.differences(source)
    monkeypatch.setattr(build, "BYTES", 1000)
    assert "expected at most" in build.differences(source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_fit_to_be_read(path):
    """Catches errors and warnings among the outputs, paths of one machine, and exercises without a folded solution."""
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    texts = [str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) for output in outputs]
    assert not [text for text in texts if re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/", text)]
    text = "".join(cell.source for cell in notebook.cells)
    assert text.count("<summary>Solution") == 3
    assert text.count("<details>") == text.count("</details>") >= 3
