"""Claim: docs/equations.md shows, for each equation, the lines of both implementations that compute it now."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import equations  # noqa: E402

SOURCES = equations.read_sources()


def test_the_page_is_up_to_date():
    """Catches a page whose lines have moved or changed: `python docs/equations.py` writes it anew."""
    stored = equations.PAGE.read_text(encoding="utf-8")
    assert stored == equations.page(SOURCES), "docs/equations.md is out of date: run python docs/equations.py"


@pytest.mark.parametrize(
    "file, line, instead",
    [
        ("qwen3_next.py", "        S = alpha[..., None, None] * S", "        pass"),
        ("qwen3_next.py", "        delta = beta_t[..., None] * (v_t - recalled)", "        gap = beta_t * v_t"),
        ("qwen3_next.py", "def apply_rope(", "def turn("),
        ("reference_recurrent.py", "        recall = np.einsum", "        held = np.einsum"),
        ("reference_recurrent.py", "    return np.argsort(-p", "    chosen = np.argsort(-p"),
    ],
)
def test_a_line_that_vanishes_is_missed(file, line, instead):
    """Catches a page that goes on showing an equation without its line."""
    text = SOURCES[file]
    assert text.count(line) == 1
    with pytest.raises(LookupError, match=f"{file}.* docs/equations.py"):
        equations.page(SOURCES | {file: text.replace(line, instead)})


def test_a_line_that_changes_is_seen():
    """Catches a page that is compared with itself: another line above, and another code, make another page."""
    text = SOURCES["qwen3_next.py"]
    stored = equations.PAGE.read_text(encoding="utf-8")
    changed = text.replace("S = alpha[..., None, None] * S", "S = alpha[..., None, None] * S * 1")
    assert changed != text
    for other in (changed, "\n" + text):
        assert equations.page(SOURCES | {"qwen3_next.py": other}) != stored


def test_two_lines_that_fit_are_refused():
    """Catches a page that shows one of two lines, perhaps the wrong one."""
    source = "def f(x):\n    y = x + 1\n    y = x * 2\n    return y\n"
    with pytest.raises(LookupError, match="2 statements fit 'f: y'"):
        equations.find(source, "a.py", "f: y")
    with pytest.raises(LookupError, match="0 statements fit 'f: z'"):
        equations.find(source, "a.py", "f: z")
    assert equations.find(source, "a.py", "f: return") == (4, "return y")


def test_the_readme_leads_there():
    """Catches a page that nobody finds: it is linked before the README's first heading."""
    assert "(docs/equations.md)" in (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")[0]
