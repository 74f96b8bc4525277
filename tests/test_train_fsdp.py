"""Claim: tiny/train_fsdp.py trains, with several processes, what one process would, and goes on with any number."""

import json
import sys

import pytest
import torch
from conftest import BASE, ROOT, random_model
from shards import STEPS, rows, train, train_fsdp
from test_parallel import torchrun

from qwen3_next import Qwen3NextForCausalLM

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torchrun and gloo")
FIELDS = {**BASE, "mtp_num_hidden_layers": 1, "num_hidden_layers": 4, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What several ranks made of a model."""
    folder = tmp_path_factory.mktemp("fsdp")
    torch.save({"fields": FIELDS, "model": random_model(**FIELDS).state_dict()}, folder / "start.pt")
    result = torchrun("tests/shards.py", folder, ranks=4)
    assert result.returncode == 0, result.stderr
    return folder


def alone(ranks: list[int]) -> tuple[list[float], dict]:
    """The losses, and the model after the steps, of one process that has the rows of ranks[i] ranks in step i."""
    model = random_model(**FIELDS).train()
    optimizers = train.make_optimizers(model, 1e-2, muon=False)
    losses = []
    for step, n in enumerate(ranks):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        losses.append(0.0)
        for rank in range(n):
            ids = rows(step, rank)
            out = model(ids, labels=ids, output_router_logits=True, output_mtp_logits=True)
            (out.loss / n).backward()
            more = model.config.router_aux_loss_coef * out.aux_loss
            more = more + model.config.mtp_loss_scaling_factor * out.mtp_loss
            losses[-1] += (out.loss - more).item() / n
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
    return losses, model.state_dict()


@pytest.mark.parametrize(("name", "ranks"), [("four", [4, 4, 4]), ("two", [2, 2, 2]), ("resumed", [4, 4, 2])])
def test_several_processes_train_what_one_does(found, name, ranks):
    """Catches gradients that are summed and not averaged, an expert without tokens, a norm of a part's gradients taken
    for that of all, means of AdamW that are lost between two runs, and a layer that is dealt out twice."""
    losses, expected = alone(ranks)
    state = torch.load(found / f"{name}-{STEPS}.pt")
    assert state["losses"] == pytest.approx(losses[STEPS - len(state["losses"]) :], rel=0, abs=1e-9)
    assert state["model"].keys() == expected.keys()
    for key, x in expected.items():
        assert (state["model"][key] - x).abs().max() < 1e-9, key


def test_the_command(tmp_path):
    """Catches an option of train.py that is not obeyed, and a folder that can't be loaded."""
    sizes = ["--size", "micro", "--steps", "3", "--batch", "4", "--length", "64"]
    options = [*sizes, "--device", "cpu", "--out", tmp_path]
    run = tmp_path / "run"
    run.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (run / name).write_bytes((ROOT / "tiny" / name).read_bytes())
    result = torchrun("tiny/train_fsdp.py", *options, "--stop-after", "2", ranks=2)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "model.safetensors").exists()
    result = torchrun("tiny/train_fsdp.py", *options, ranks=1)
    assert result.returncode == 0, result.stderr
    assert "step 3: loss" in result.stderr + result.stdout
    model = Qwen3NextForCausalLM.from_pretrained(tmp_path)
    assert torch.isfinite(model(torch.zeros(1, 9, dtype=torch.long)).logits).all()
    assert json.loads((run / "settings.json").read_text())["without"] == ["muon"]


@pytest.mark.parametrize(("option", "message"), [([], "start it by torchrun"), (["--curve", "1"], "--curve")])
def test_what_is_refused(monkeypatch, option, message):
    """Catches a wait for processes that nobody started, and an option that is passed over."""
    monkeypatch.setattr(sys, "argv", ["train_fsdp.py", *option])
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in {"LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items() if option else ():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        train_fsdp.main()
    assert end.value.code.startswith("train_fsdp.py: ")
    assert message in end.value.code
    assert len(end.value.code.splitlines()) == 1
