"""Runs a port over all golden vectors of version 2, and says which levels it reaches.

    python verify/conform.py --cmd "./port --model {model} --like {trace} --trace {out}"
    python verify/conform.py --cmd "..." --level op prefill decode --dtype bfloat16 --json FILE --junit FILE

For each file of verify/golden/v2/ the command is run once. {model} is the checkpoint's folder, {trace} the file, whose
manifest says what to feed (SPEC.md, section 7), and {out} where the port writes its own values. A port leaves out what
it does not have; a level is complete when nothing of it is missing and all agrees. The command is run without a shell.
If a port has code for some of the models alone, --models names them.

Exit code: 0 every level asked for is complete, 1 some value differs or the port failed, 2 nothing to compare, 3 what is
there agrees, but some is missing. Needs NumPy and safetensors; reference_recurrent.py, if it lies next to verify/,
lets the comparison go on after a tie of experts.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
from verify.compare import check_same_run, compare, restrict  # noqa: E402
from verify.floors import EPSILON, STATE_DTYPES  # noqa: E402
from verify.levels import LEVELS, Level, count_levels  # noqa: E402
from verify.reference import load_reference  # noqa: E402
from verify.report import CODES, level_as_json, strict, verdict_of, write_json  # noqa: E402
from verify.stages import CannotCompare, NothingShared, Trace, read_trace, split_batches  # noqa: E402

GOLDEN = HERE / "golden" / "v2"
SCHEMA = "qwen3-next-conformance/1"


@dataclass
class Result:
    """One level of one file. first: the first row that differs; error: why there is nothing to compare, or ""."""

    case: str
    level: Level
    first: object = None
    error: str = ""
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        if self.error:
            return "failed"
        return verdict_of(self.first, [self.level])

    @property
    def words(self) -> str:
        """What is wrong or missing, in one line."""
        if self.error:
            return self.error
        if self.first is not None:
            causes = f"; likely: {self.first.causes[0]}" if self.first.causes else ""
            figures = f"relative error {self.first.relative:.3g}, allowed {self.first.allowed:.3g}"
            return f"{self.case}: {self.first.name}: {figures}{causes}"
        missing = [*self.level.missing, *self.level.left_out]
        return f"{self.case}: {'/'.join(missing[0])} and {len(missing) - 1} more are missing" if missing else ""


@dataclass
class Port:
    """How to run a port, and what to ask of it. golden: where the vectors are, and their models."""

    command: str
    dtype: str | None = None
    state_dtype: str | None = None
    keys: list[str] = field(default_factory=lambda: ["*"])
    timeout: float = 600.0
    models: list[str] = field(default_factory=lambda: model_names())
    golden: Path = GOLDEN

    def run(self, model: Path, trace: Path, out: Path):
        """Runs the command. Raises CannotCompare if it fails or writes nothing."""
        places = {"model": model, "trace": trace, "out": out}
        try:
            command = [part.format(**places) for part in shlex.split(self.command)]
        except (KeyError, IndexError, ValueError) as error:
            raise CannotCompare(f"--cmd has {error} in braces, expected {{model}}, {{trace}} and {{out}}") from None
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=self.timeout)
        except OSError as error:
            raise CannotCompare(f"the command does not start: {error}") from None
        except subprocess.TimeoutExpired:
            raise CannotCompare(f"the command took more than {self.timeout:g} seconds") from None
        if done.returncode or not out.is_file():
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            how = f"exit code {done.returncode}" if done.returncode else f"no file {out.name} was written"
            raise CannotCompare(f"{how}{': ' + lines[-1] if lines else ''}")


def model_names() -> list[str]:
    """The golden models."""
    return sorted(path.name for path in (GOLDEN / "models").iterdir())


def model_of(case: str, models: list[str] | None = None, golden: Path = GOLDEN) -> Path:
    """The checkpoint of a case: its name's first part. Operations have none, and get the first of `models`."""
    models = models or model_names()
    return golden / "models" / next((name for name in model_names() if case.startswith(name + "-")), models[0])


def judge(case: str, ref: Trace, out: Path, port: Port, wanted: list[str]) -> list[Result]:
    """The levels of one file, compared. Raises CannotCompare."""
    mine = read_trace(out)
    check_same_run(ref, mine)
    tokens = ref.tokens
    mine = split_batches(mine, tokens, "right")
    ref = split_batches(ref, tokens, "right")
    try:
        reference = None if case.startswith("ops/") else load_reference(model_of(case, golden=port.golden))
    except CannotCompare:
        reference = None
    dtype = port.dtype or mine.manifest.get("dtype", "float32")
    state_dtype = port.state_dtype or mine.manifest.get("state_dtype", "float32")
    try:
        done = compare(ref, mine, dtype=dtype, reference=reference, state_dtype=state_dtype)
    except NothingShared:
        done = None
    rows = done.rows if done else []
    found = []
    for level in count_levels(ref, mine, [(row.step, row.key) for row in rows], tokens, port.keys):
        if level.name in wanted:
            own = copy.copy(done)
            if own:
                restrict(own, tokens, [level.name], port.keys)
            found.append(Result(case, level, own.first if own else None))
    return found


def conform(port: Port, wanted: list[str]) -> list[Result]:
    """The results of all files that have something of the levels asked for."""
    results = []
    paths = sorted((port.golden / "ops").glob("*.safetensors")) + sorted(port.golden.glob("*.safetensors"))
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            case = path.relative_to(port.golden).with_suffix("").as_posix()
            if model_of(case, port.models).name not in port.models:
                continue
            ref = read_trace(path)
            split = split_batches(ref, ref.tokens, "right")
            nothing = Trace({}, {}, {})
            levels = [one for one in count_levels(split, nothing, [], ref.tokens, port.keys) if one.name in wanted]
            if not levels:
                continue
            out = Path(folder) / f"{path.stem}.safetensors"
            out.unlink(missing_ok=True)
            began = time.perf_counter()
            try:
                port.run(model_of(case, port.models, port.golden), path, out)
                found = judge(case, ref, out, port, wanted)
            except CannotCompare as error:
                found = [Result(case, level, error=f"{case}: {error}") for level in levels]
            for result in found:
                result.seconds = time.perf_counter() - began
            results += found
    return results


# ---- What comes out -------------------------------------------------------------------------------------------------


def by_level(results: list[Result]) -> dict[str, list[Result]]:
    """Level -> results, in the order of the levels."""
    return {name: [one for one in results if one.level.name == name] for name in LEVELS} if results else {}


def verdict_of_level(results: list[Result]) -> str:
    """The worst of some results' verdicts; what is not there at all is incomplete."""
    verdicts = [result.verdict.replace("nothing to compare", "incomplete") for result in results]
    return next((one for one in ("differs", "failed", "incomplete") if one in verdicts), "complete")


def reached(results: list[Result]) -> str | None:
    """The last level before which, and including which, all that were asked for are complete."""
    last = None
    for name, found in by_level(results).items():
        if not found:
            continue
        if verdict_of_level(found) != "complete":
            break
        last = name
    return last


def print_table(results: list[Result]):
    """A line for each level, and the first thing that is wrong with it."""
    print(f"{'level':10} {'files':>5} {'values':>12}  verdict")
    for name, found in by_level(results).items():
        if not found:
            continue
        compared = sum(result.level.compared for result in found)
        of = sum(result.level.of for result in found)
        verdict = verdict_of_level(found)
        worst = next((one.words for one in found if one.verdict == verdict), "")
        if not worst and verdict == "incomplete":
            worst = next(one.words for one in found if one.words)
        print(f"{name:10} {len(found):5} {f'{compared} of {of}':>12}  {verdict}{': ' + worst if worst else ''}")
    print(f"reached: {reached(results) or 'no level'}")


def as_json(results: list[Result], port: Port) -> dict:
    """All of it, in plain JSON."""
    levels = []
    for name, found in by_level(results).items():
        if found:
            compared = sum(result.level.compared for result in found)
            of = sum(result.level.of for result in found)
            verdict = verdict_of_level(found)
            levels.append({"level": name, "verdict": verdict, "compared": compared, "reference": of})
    cases = [
        {
            "case": one.case,
            "verdict": one.verdict,
            "first": one.first.name if one.first else None,
            "relative error": one.first.relative if one.first else None,
            "allowed": one.first.allowed if one.first else None,
            "causes": one.first.causes if one.first else [],
            "error": one.error or None,
            "seconds": one.seconds,
            **level_as_json(one.level),
        }
        for one in results
    ]
    about = {"schema": SCHEMA, "golden": "v2", "command": port.command, "dtype": port.dtype}
    about |= {"models": port.models, "keys": port.keys}
    return strict({**about, "reached": reached(results), "levels": levels, "cases": cases})


def as_junit(results: list[Result]) -> ElementTree.ElementTree:
    """A suite for each level, a test for each file."""
    root = ElementTree.Element("testsuites", name="verify/conform.py")
    for name, found in by_level(results).items():
        if not found:
            continue
        bad = [one for one in found if one.verdict != "complete"]
        errors = sum(one.verdict == "failed" for one in bad)
        counts = {"tests": str(len(found)), "failures": str(len(bad) - errors), "errors": str(errors)}
        suite = ElementTree.SubElement(root, "testsuite", name=name, **counts)
        for one in found:
            test = ElementTree.SubElement(suite, "testcase", classname=name, name=one.case, time=f"{one.seconds:.3f}")
            if one.verdict != "complete":
                kind = "error" if one.verdict == "failed" else "failure"
                ElementTree.SubElement(test, kind, type=one.verdict, message=one.words)
    return ElementTree.ElementTree(root)


def code_of(results: list[Result]) -> int:
    """The exit code."""
    verdict = verdict_of_level(results) if results else "nothing to compare"
    if verdict == "incomplete" and not any(result.level.compared for result in results):
        verdict = "nothing to compare"
    return 1 if verdict == "failed" else CODES[verdict]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cmd", required=True, metavar="COMMAND", help="with {model}, {trace} and {out}")
    add("--level", nargs="+", choices=LEVELS, metavar="L", default=list(LEVELS), help="these only (default: all)")
    add("--keys", nargs="+", default=["*"], metavar="GLOB", help="these values only, such as lm_head.out '*.state'")
    add("--models", nargs="+", choices=model_names(), metavar="M", default=model_names(), help="these only")
    add("--dtype", choices=EPSILON, help="what the port computes in (default: its manifest's, or float32)")
    add("--state-dtype", choices=STATE_DTYPES, help="what it keeps the delta rule's state in (default: float32)")
    add("--timeout", type=float, default=600.0, metavar="S", help="seconds for each file (default: 600)")
    add("--json", metavar="FILE", help="write the results as JSON (-: to standard output, instead of the table)")
    add("--junit", type=Path, metavar="FILE", help="write the results as JUnit XML")
    args = parser.parse_args(arguments)
    missing = [name for name in ("{trace}", "{out}") if name not in args.cmd]
    if missing:
        parser.error(f"--cmd lacks {' and '.join(missing)}")
    return args


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    args = parse_arguments(arguments)
    port = Port(args.cmd, args.dtype, args.state_dtype, args.keys, args.timeout, args.models)
    results = conform(port, args.level)
    try:
        if args.json:
            write_json(as_json(results, port), args.json)
        if args.junit:
            as_junit(results).write(args.junit, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        print(f"conform.py: {error}", file=sys.stderr)
        return 2
    if args.json != "-":
        print_table(results)
    return code_of(results)


if __name__ == "__main__":
    sys.exit(main())
