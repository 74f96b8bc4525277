"""Claim: docs/transformers.md says what happens here to what transformers' users try first. Every row is tried."""

import re

import pytest
import torch
import transformers
from conftest import ROOT, tokens

import qwen3_next
from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer

DOCUMENT = (ROOT / "docs" / "transformers.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (`.+?`) \| (\w+) \| (.*)\|$", DOCUMENT, re.MULTILINE)


def get_weather(city: str):
    """The weather.

    Args:
        city: where
    """


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return Qwen3NextForCausalLM.from_pretrained(checkpoint, "float32")


@pytest.fixture
def names(checkpoint, loaded, tmp_path) -> dict:
    """What the table's code uses."""
    loaded.generation_config = {"eos_token_id": None}
    tokenizer = Qwen3NextTokenizer.from_pretrained(checkpoint)
    return {
        "AutoModelForCausalLM": Qwen3NextForCausalLM,
        "folder": str(checkpoint),
        "new": str(tmp_path / "new"),
        "model": loaded,
        "tokenizer": tokenizer,
        "ids": tokens(1, 4),
        "messages": [{"role": "user", "content": "Hi"}],
        "get_weather": get_weather,
        "torch": torch,
        "transformers": transformers,
    }


def test_the_table_is_read():
    """Catches rows that are written in another form, and so tried by nobody."""
    lines = [line for line in DOCUMENT.splitlines() if line.startswith("| `")]
    assert len(lines) == len(ROWS) > 50
    assert {here for _, here, _ in ROWS} == {"yes", "no", "differs"}


@pytest.mark.parametrize(("code", "here", "note"), ROWS, ids=[row[0][:40] for row in ROWS])
def test_rows(names, code, here, note):
    """Catches a row that says yes and fails, says no and is obeyed, or names something that does not work instead."""
    code = code.strip("`")
    if here == "no":
        with pytest.raises((TypeError, ValueError, AttributeError)) as error:
            exec(code, names)
        assert len(str(error.value).splitlines()) == 1
    else:
        exec(code, names)
    for instead in re.findall(r"`([^`]+\))`", note):
        exec(instead, names)


def test_the_cache_on_disk(names, tmp_path, monkeypatch):
    """Catches an example that does not run as it is written."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    names |= {"more": tokens(1, 2), "Cache": qwen3_next.Cache}
    names["model"].generation_config = {"max_new_tokens": 3, "eos_token_id": None}
    exec(code, names)
    whole = torch.cat([names["ids"], names["more"]], dim=1)
    assert torch.equal(names["text"], names["model"].generate(whole))
