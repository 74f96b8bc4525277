"""Claim: the file can be read from top to bottom, runs on its own, and keeps to the house's rules."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

tomllib = pytest.importorskip("tomllib") if sys.version_info >= (3, 11) else pytest.importorskip("tomli")
SOURCE = (ROOT / "qwen3_next.py").read_text(encoding="utf-8")


def test_inline_metadata_equals_pyproject():
    """Catches `uv run qwen3_next.py` installing something else than pip does."""
    block = re.search(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$", SOURCE)  # the pattern of PEP 723
    lines = [line.removeprefix("#").removeprefix(" ") for line in block["content"].splitlines()]
    inline = tomllib.loads("\n".join(lines))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert inline["dependencies"] == project["dependencies"]
    assert inline["requires-python"] == project["requires-python"]


def test_all_imports_are_declared():
    """Catches a package that is used but not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=]", name)[0] for name in project["dependencies"]}
    imported = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) - {"qwen3_5", "verify"} <= declared  # both beside it


def test_the_model_part_stands_alone():
    """Catches a model class that needs something from loading, generation or the command line to compute."""
    head, banner, _ = SOURCE.partition("# ==== Loading and saving")
    assert banner
    scope: dict = {"__name__": "model_part"}
    sys.modules["model_part"] = type(sys)("model_part")  # dataclasses look their module up
    exec(compile(head, "model_part", "exec"), scope)
    import torch
    from conftest import BASE

    model = scope["Qwen3NextForCausalLM"](scope["Qwen3NextConfig"](**BASE))
    ids = torch.zeros(1, 70, dtype=torch.long)
    model(ids, labels=ids, output_router_logits=True).loss.backward()
    cache = model.make_cache(1).clone()
    model(ids, past_key_values=cache, attention_mask=torch.ones(1, 70))
    defined = {node.name for node in ast.parse(head).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    later = {node.name for node in ast.parse(SOURCE).body if isinstance(node, ast.ClassDef | ast.FunctionDef)} - defined
    used = {node.id for node in ast.walk(ast.parse(head)) if isinstance(node, ast.Name)}
    assert not used & later


def test_functions_fit_on_a_screen():
    """Catches a function that has grown past 60 lines."""
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1}"
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert not long


def test_public_functions_are_documented_and_typed():
    """Catches a public function without a docstring, or with an argument whose type is left to guess."""
    tree = ast.parse(SOURCE)
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
    bodies = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    for body in bodies:
        for node in body.body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            arguments = [a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]
            untyped = [a.arg for a in arguments if a.annotation is None]
            assert not untyped, f"{node.name}: {untyped}"


def test_ruff():
    """Catches lint, and formatting that differs from the house's."""
    files = [str(path) for path in ROOT.glob("*.py")] + [
        str(ROOT / d) for d in ("tests", "tiny", "benchmarks", "verify")
    ]
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run([sys.executable, "-m", "ruff", *command, *files], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["README.md", "verify/README.md"])
def test_links_lead_somewhere(name):
    """Catches a README that points to a file or a test that does not exist."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / Path(name).parent / target).exists(), target
    for file, test in re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", text):
        assert (ROOT / file).exists(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), test
