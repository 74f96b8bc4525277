"""How the experiments keep their runs: one file of results, one run a line, so that what was stopped can go on."""

import json
import os
from pathlib import Path


def load(path: Path) -> list[dict]:
    """The runs so far."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def save(path: Path, runs: list[dict]):
    """Writes all runs; a file that is there stays whole until then."""
    text = "[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n"
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".tmp").write_text(text, encoding="utf-8")
    os.replace(path.with_suffix(".tmp"), path)
