"""Claim: the notebooks are their sources', executed, and fit to be read anywhere (notebooks/build.py executes them)."""

import ast
import itertools
import re
import subprocess
import sys

import pytest
from conftest import ROOT

nbformat = pytest.importorskip("nbformat")

sys.path.insert(0, str(ROOT / "notebooks"))
import start  # noqa: E402

import build  # noqa: E402
import course  # noqa: E402
import curiosity  # noqa: E402

NOTEBOOKS = build.sources()
PICTURES = sorted((ROOT / "notebooks" / "pictures").glob("*.py"))
LINES = 20  # of code in a cell
SCREENS = 100  # lines of a source: two screens


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


def test_text_is_renewed_without_execution(tmp_path):
    """Catches outputs lost where only text changed, and outputs kept that are no longer those of the code."""
    source, stored = tmp_path / NOTEBOOKS[0].name, tmp_path / f"{NOTEBOOKS[0].stem}.ipynb"
    before = NOTEBOOKS[0].with_suffix(".ipynb").read_bytes()
    stored.write_bytes(before)
    text = NOTEBOOKS[0].read_text(encoding="utf-8")
    source.write_text(text.replace("# ## Exercises", "# A new line.\n#\n# ## Exercises"), encoding="utf-8")
    assert "is not that of" in build.differences(source)
    build.renew_text(source)
    assert build.differences(source) == ""
    source.write_text(text, encoding="utf-8")
    build.renew_text(source)
    assert stored.read_bytes() == before
    source.write_text(text.replace("import torch", "import torch  # changed", 1), encoding="utf-8")
    with pytest.raises(ValueError, match="code has changed"):
        build.renew_text(source)
    assert stored.read_bytes() == before


def test_a_slow_cell_does_not_end_the_build(monkeypatch, capsys):
    """Catches a cell over the time limit that ends the whole build, so that later notebooks are not executed."""
    exceptions = pytest.importorskip("nbclient.exceptions")
    tried = []

    def execute(path):
        tried.append(path.stem)
        raise exceptions.CellTimeoutError("took too long")

    monkeypatch.setattr(build, "execute", execute)
    names = [path.stem for path in NOTEBOOKS[:2]]
    monkeypatch.setattr(sys, "argv", ["build.py", "--check", *names])
    assert build.main() == 1
    assert tried == names
    assert capsys.readouterr().err.count("took too long") == 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_fit_to_be_read(path):
    """Catches errors and warnings among the outputs, paths of one machine, and exercises without a folded solution."""
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    texts = [str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) for output in outputs]
    assert not [text for text in texts if re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/", text)]
    text = "".join(cell.source for cell in notebook.cells)
    assert text.count("<summary>Solution") >= 3
    assert text.count("<details>") == text.count("</details>") >= 3
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures and all(output.metadata["image/png"]["alt"] for output in pictures)


ITEM = re.compile(r"\s*(\d+[.)]|[-+*]) ")  # what makes a line of markdown an item of a list


def lists_by_accident(text: str) -> list[str]:
    """Lines of a paragraph that begin like an item of a list, and would be shown as one."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    pairs = itertools.pairwise(prose.splitlines())
    return [line for before, line in pairs if ITEM.match(line) and re.match(r"\S", before) and not ITEM.match(before)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_paragraphs_stay_paragraphs(path):
    """Catches a line that was wrapped before "1." or a plus sign, which Jupyter shows as a list."""
    assert lists_by_accident("The length is\n1. A read") == ["1. A read"]
    assert not lists_by_accident("Two things:\n\n1. one\n   of them\n2. two\n\n```\na\n- b\n```")
    for cell in build.read(path).cells:
        assert cell.cell_type == "code" or not lists_by_accident(cell.source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_cells_are_short(path):
    """Catches a cell that a reader can't take in at once; blank lines and comments do not count."""
    for cell in curiosity.code_cells(path):
        lines = [line for line in cell.splitlines() if line.strip() and not line.strip().startswith("#")]
        assert len(lines) <= LINES, f"{path.name}: a cell of {len(lines)} lines, which begins {lines[0]!r}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_picture_comes_early(path):
    """Catches a notebook that begins with screens of text and code."""
    lines = path.read_text(encoding="utf-8").partition("# %% [markdown]")[2].splitlines()
    first = next(n for n, line in enumerate(lines) if re.match(r"\s*(pictures\.\w|figures\.(drawing|show))", line))
    assert first <= SCREENS, f"{path.name}: the first picture after {first} lines"


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """The calls of figures.NAME in a piece of code."""
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == f"figures.{name}"
    ]


def test_every_picture_is_shown_with_its_words():
    """Catches a picture that figures.show does not show, and one without a text for those who can't see it."""
    for path in PICTURES:
        for call in calls(ast.parse(path.read_text(encoding="utf-8")), "show"):
            words = call.args[0].value if isinstance(call.args[0], ast.Constant) else ast.unparse(call.args[0])
            assert len(words) > 40 or words == "alt", f"{path.name}: {words!r} does not say what is to be seen"
    for path in NOTEBOOKS:
        source = path.read_text(encoding="utf-8")
        assert "pyplot" not in source, f"{path.name}: pictures belong into notebooks/pictures/"
        assert not re.search(r"!\[\s*\]\(", source), f"{path.name}: an image without words"
        assert all(
            len(call.args) == 2 for cell in curiosity.code_cells(path) for call in calls(ast.parse(cell), "drawing")
        )
        for module in re.findall(r"^from pictures import (\w+) as pictures$", source, re.MULTILINE):
            tree = ast.parse((ROOT / "notebooks" / "pictures" / f"{module}.py").read_text(encoding="utf-8"))
            functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
            for name in set(re.findall(r"\bpictures\.([a-z]\w*)\(", source)):
                assert calls(functions[name], "show"), f"{module}.{name} shows no picture"


def test_hard_to_read_pictures_are_noticed():
    """Catches small text, long legends and heat maps of one colour that pass."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    import figures

    figures.setup()
    axes = figures.axes()
    axes.imshow([[0.0, 1.0]], vmin=0, vmax=1)
    axes.plot([0, 1], [0, 1], label="a line")
    axes.legend()
    assert figures.faults(axes.figure) == []
    axes.text(0, 0, "tiny", fontsize=7)
    axes.imshow([[0.50, 0.51]], vmin=0, vmax=2)
    for n in range(figures.ENTRIES):
        axes.plot([0, 1], [n, 0], label=str(n))
    axes.legend()
    assert [fault.split()[0] for fault in figures.faults(axes.figure)] == ["text", "a", "a"]
    matplotlib.pyplot.close("all")


def test_drawings_can_be_read():
    """Catches text below 9 points at the width at which the README shows it, and text beyond the edge."""
    for path in (ROOT / "notebooks" / "gallery").glob("*.svg"):
        svg = path.read_text(encoding="utf-8")
        width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
        texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" font-size="(\d+)"[^>]*>([^<]*)', svg)
        for x, y, size, text in texts:
            points = int(size) * min(1, 840 / width) * 72 / 96
            assert points >= 9, f"{path.name}: {text!r} has {points:.1f} points"
            assert 0 <= float(x) <= width and float(y) + 0.3 * int(size) <= height, f"{path.name}: {text!r} is cut off"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_there_is_a_function_to_fill_in(path):
    """Catches an exercise whose answer stands there already, or whose solution is not put to the test."""
    source, cells = path.read_text(encoding="utf-8"), curiosity.code_cells(path)
    (name,) = re.findall(r"^course\.try_it\(test_(\w+), \1\)$", source, re.MULTILINE)
    (cell,) = [cell for cell in cells if f"def test_{name}(" in cell]
    (function,) = [node for node in ast.parse(cell).body if getattr(node, "name", "") == name]
    assert ast.get_docstring(function) and ast.unparse(function.body[-1]) == "..." and len(function.body) == 2
    solved = [block.source for block in build.solutions(build.jupytext.read(path)) if f"def {name}(" in block.source]
    assert len(solved) == 1 and solved[0].rstrip().endswith(f"test_{name}({name})")


def test_findings_are_hard_only_as_written(monkeypatch, capsys):
    """Catches a finding that stops a curious reader, and one that the build lets pass."""
    monkeypatch.delenv(course.AS_WRITTEN, raising=False)
    course.finding("more than half", True)
    assert capsys.readouterr().out == ""
    course.finding("more than half", False)
    assert "more than half" in capsys.readouterr().out
    monkeypatch.setenv(course.AS_WRITTEN, "1")
    with pytest.raises(AssertionError, match="more than half"):
        course.finding("more than half", False)


def test_attempts_turn_green(capsys):
    """Catches an exercise that is red when it is right, green when it is empty, or that stops the notebook."""

    def test_double(attempt):
        assert attempt(3) == 6, f"expected 6, found {attempt(3)}"

    course.try_it(test_double, lambda x: None)
    course.try_it(test_double, lambda x: x / 0)
    course.try_it(test_double, lambda x: 2 * x)
    red, broken, green = capsys.readouterr().out.splitlines()
    assert red == "red: test_double fails (expected 6, found None)"
    assert broken.startswith("red: ") and green == "green: test_double passes"


def test_the_changes_fit_the_notebooks():
    """Catches a change for a curious reader that no cell has, or that Python can't read; and notebooks without any."""
    titles = {curiosity.title(path): path for path in NOTEBOOKS}
    assert curiosity.CHANGES.keys() == titles.keys()
    for title, changes in curiosity.CHANGES.items():
        assert len(changes) >= 2
        cells = curiosity.code_cells(titles[title])
        for old, new in changes:
            number = curiosity.place_of(old, cells)  # raises unless it is there once
            ast.parse(cells[number].replace(old, new))
            assert new != old and len(curiosity.needed(cells, number)) > 1


def test_cells_that_depend_on_a_change_are_found():
    """Catches a cell that is left out though it depends on the change, or is needed for one that does."""
    cells = [
        "a = 1",
        "b = 2",
        "c = a + 1",
        "d = b",
        "found = []",
        "found.append(c)",
        "print(found)",
        "a = 5",
        "print(a)",
    ]
    assert curiosity.needed(cells, 0) == [0, 2, 4, 5, 6]
    assert curiosity.needed(cells, 1) == [1, 3]
    assert curiosity.needed(["a = 1", "del a", "a = 2", "print(a)"], 2) == [0, 2, 3]
    assert curiosity.names_of("x[0].y = z")[1] == {"x"}


def first_cell(path) -> str:
    """The first code cell of a source's notebook."""
    return next(cell.source for cell in build.read(path).cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_address_makes_badges(path, monkeypatch):
    """Catches a notebook that Colab opens but can't run, a badge that opens another one, and a second place to edit."""
    monkeypatch.setattr(start, "REPOSITORY", "")
    assert first_cell(path) == build.FIRST and "colab" not in build.read(path).cells[0].source
    monkeypatch.setattr(start, "REPOSITORY", "https://github.com/someone/something")
    title = build.read(path).cells[0].source.splitlines()
    assert title[0].startswith("# ")
    link = f"https://colab.research.google.com/github/someone/something/blob/main/notebooks/{path.stem}.ipynb"
    assert title[2].endswith(f"]({link})")
    line = first_cell(path)
    assert "\n" not in line and "https://github.com/someone/something all" in line and line.endswith(build.FIRST)
    assert build.differences(path) != "", "the stored notebook has another address than start.py"


def test_the_first_cell_fetches_the_rest(tmp_path, monkeypatch):
    """Catches a first cell that works only where the repository is already: in an empty folder, everything is found."""
    if not (ROOT / ".git").is_dir():
        pytest.skip("this folder is no clone")
    monkeypatch.setattr(start, "REPOSITORY", f"file://{ROOT}")
    then = "import figures, corpus, qwen3_next; print(root / 'tiny', (root / 'notebooks' / 'data').is_dir())"
    for _ in range(2):  # the second time, nothing is fetched
        run = [sys.executable, "-c", f"{first_cell(NOTEBOOKS[0])}; {then}"]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.stdout == f"{tmp_path / 'all' / 'tiny'} True\n", done.stderr
        assert "already exists" not in done.stderr
