"""Claim: the file can be read from top to bottom, runs on its own, and keeps to the house's rules."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
from conftest import ROOT

tomllib = pytest.importorskip("tomllib") if sys.version_info >= (3, 11) else pytest.importorskip("tomli")
SOURCE = (ROOT / "qwen3_next.py").read_text(encoding="utf-8")
PACKAGE = "qwen3_next_checkpoints"
SIBLINGS = ("caches", "checks", "compat", "compiling", "dispatch", "formats", "generation", "grouped", "hub", "large")
SIBLINGS += ("penalties", "qwen3_5", "saving", "stats")
FLOORS = {PACKAGE: 0, "verify": 2, "tiny": 2, "benchmarks": 3, "tests": 3, "notebooks": 3, "docs": 3}  # the ground is 1


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
    for path in [ROOT / "qwen3_next.py", *(ROOT / PACKAGE).glob("*.py")]:
        imported = {name.split(".")[0] for name in imports(path)}
        assert imported - set(sys.stdlib_module_names) - {PACKAGE} <= declared, path


def imports(path: Path) -> set[str]:
    """The modules that a file imports, inside functions too; `sibling("hub")` imports qwen3_next_checkpoints.hub."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "sibling":
            found.add(f"{PACKAGE}.{node.args[0].value}")
    return found


def our_imports() -> dict[str, set[str]]:
    """Each module of the repository, and those of the repository that it imports."""
    paths = [*ROOT.glob("*.py"), *(path for place in FLOORS for path in sorted((ROOT / place).rglob("*.py")))]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    short = {name.rpartition(".")[2]: name for name in names if name.startswith(("tests.", "tiny.", "notebooks."))}
    graph = {}
    for name, path in names.items():
        found = imports(path)
        graph[name] = {other for other in names if other in found} | {short[one] for one in found if one in short}
        graph[name] -= {name}
    return graph


def floor(name: str) -> int:
    return FLOORS.get(name.partition(".")[0], 1 if name in ("qwen3_next", "reference_recurrent") else 2)


def test_imports_run_downwards():
    """Catches a file that reaches up to what is built on it, a lazy import inside a function included."""
    graph = our_imports()
    assert graph["qwen3_next"] == {f"{PACKAGE}.{name}" for name in SIBLINGS}
    assert graph["reference_recurrent"] == graph["verify.stages"] == set()
    for name, others in graph.items():
        upwards = [other for other in others if floor(other) > floor(name)]
        assert not upwards, f"{name} imports {upwards}"
        assert not name.startswith(PACKAGE) or not others, f"{name} imports {others}: it should be handed what it needs"


def test_no_import_runs_in_a_circle():
    """Catches two files that can't be read, or copied, one without the other."""
    graph = our_imports()
    done = set()

    def visit(name: str, path: tuple):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


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


def tokens_and_lines() -> tuple[int, int]:
    """Of the file without comments, docstrings and layout: its tokens, and the lines that they begin on."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    docstrings = {
        node.body[0].lineno
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
    }
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(SOURCE).readline) if token.type not in layout]
    code = [token for token in tokens if token.type != tokenize.STRING or token.start[0] not in docstrings]
    return len(code), len({token.start[0] for token in code})


LINES, MODEL_LINES = 2049, 1101


def test_the_file_can_be_read_to_the_end():
    """Catches a file that grows past its reader, and lines that are made denser to avoid it."""
    lines = SOURCE.splitlines()
    banners = {line.strip("# ="): number for number, line in enumerate(lines) if line.startswith("# ==== ")}
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= 120
    assert banners["Loading and saving"] - banners["Config"] <= MODEL_LINES
    tokens, code_lines = tokens_and_lines()
    assert tokens <= 13 * code_lines, f"{tokens / code_lines:.2f} tokens a line"


def test_one_idea_a_line():
    """Catches walruses, and assignments of several values to as many names, beyond the few that belong together."""
    nodes = list(ast.walk(ast.parse(SOURCE)))
    assert not [node.lineno for node in nodes if isinstance(node, ast.NamedExpr)]
    pairs = [
        node.lineno
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)
    ]
    assert len(pairs) <= 25, pairs


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
        str(ROOT / d) for d in ("tests", "tiny", "benchmarks", "verify", "docs", PACKAGE)
    ]
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run([sys.executable, "-m", "ruff", *command, *files], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


DOCUMENTS = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "notebooks/README.md", "verify/README.md", "verify/SPEC.md"]
DOCUMENTS += sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    """Catches a README that points to a file or a test that does not exist."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / Path(name).parent / target).exists(), target
    for file, test in re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", text):
        assert (ROOT / file).exists(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), test
