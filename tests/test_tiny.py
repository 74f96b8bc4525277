"""Claim: tiny/ is a trained Qwen3-Next with every part of the big one, which looks back as its card says."""

import contextlib
import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer

sys.path.insert(0, str(ROOT / "tiny"))
import card  # noqa: E402
import corpus  # noqa: E402
import train  # noqa: E402


@pytest.fixture(scope="module", params=["tiny", "tiny/micro"])
def folder(request):
    return ROOT / request.param


@pytest.fixture(scope="module")
def measured(tiny):
    return card.Card(tiny, 0)


def test_it_has_everything_the_big_one_has(folder):
    """Catches a small model on which half of the code is never used, and one that has outgrown its limit."""
    model = Qwen3NextForCausalLM.from_pretrained(folder)
    c, small = model.config, folder.name == "micro"
    assert (folder / "model.safetensors").stat().st_size <= (1e6 if small else 16e6)
    assert sum(p.numel() for p in model.parameters()) <= (5e5 if small else 8e6)
    assert model.dtype == torch.bfloat16
    assert c.num_hidden_layers >= (4 if small else 8)
    assert c.layer_types.count("linear_attention") == 3 * c.layer_types.count("full_attention")
    assert c.linear_num_value_heads > c.linear_num_key_heads
    assert c.num_attention_heads > c.num_key_value_heads
    assert c.partial_rotary_factor < 1
    assert c.num_experts > c.num_experts_per_tok > 1
    assert c.shared_expert_intermediate_size > 0
    assert model.mtp is not None


def test_they_share_a_tokenizer(tiny):
    """Catches the two models being trained on different vocabularies."""
    assert (tiny / "tokenizer.json").read_bytes() == (tiny / "micro" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("settings", "right"), [({"entries": 4}, 0.95), ({"entries": 16}, 0.95), ({"moves": 6}, 0.75)])
def test_it_looks_back(measured, settings, right):
    """Catches weights that are not the trained ones: numbers and whereabouts of pairs that training never had."""
    assert measured.questions(12, **settings) >= right


def test_it_is_close_to_the_floor(tiny):
    """Catches a model of the wrong corpus: what it loses on held-out text beyond what nobody can know."""
    model = Qwen3NextForCausalLM.from_pretrained(tiny, dtype="float32")
    tokenizer = Qwen3NextTokenizer.from_pretrained(tiny)
    source, whole, loss, floor, tokens = corpus.Corpus("held out"), corpus.Corpus(None), 0.0, 0.0, 0
    for number in range(120):  # many, as a new word costs bits by the handful; the floor is that of the whole corpus
        rows = whole.floor(source.document(f"close:{number}"), tokenizer.encode)
        ids = torch.tensor([[token for token, *_ in rows]])
        with torch.no_grad():
            loss += model(ids, labels=ids, output_router_logits=False).loss.item() * (len(rows) - 1)
        floor, tokens = floor + sum(surprise for _, _, surprise, _ in rows[1:]), tokens + len(rows) - 1
    row = re.search(r"^\| all \|(?:[^|]*\|){3} ([\d.]+) \|", (tiny / "README.md").read_text(encoding="utf-8"), re.M)
    documented = float(row[1]) * math.log(2)  # nats
    assert abs((loss - floor) / tokens - documented) < 0.04


def test_a_round_teaches_to_copy_whole_words(tiny):
    """Catches a training in which to look back is to repeat one token: what counts must go on within a word."""
    tokenizer, shares = Qwen3NextTokenizer.from_pretrained(tiny), []
    for without in (frozenset(), frozenset({"words"})):
        source, counted, inside = train.Rows(tokenizer, 0, 512, 5600, without=without), 0, 0
        stage = train.curriculum(1.6, 512, without)
        for number in range(60):
            ids, labels = source.row(f"copies:{number}", stage)
            texts = [tokenizer.decode([token]) for token in ids]
            for before, text, token, label in zip(texts, texts[1:], ids[1:], labels[1:], strict=False):
                assert label in (token, -100)
                counted += label >= 0
                inside += label >= 0 and before[-1:].isalpha() and text[:1].isalpha()
        shares.append(inside / counted)
    assert shares[0] > 1.5 * shares[1]


def test_the_corpus_itself_comes_without_the_curriculums_words():
    """Catches phases whose text is not the one that the floor and the card are about."""
    for progress in (0.85, 0.99, 1.3, 1.49, 1.8):
        assert not [name for name in train.curriculum(progress, 512).settings if "new words" in name]


def test_training_resumes_where_it_stopped(tmp_path):
    """Catches a checkpoint that forgets an optimiser, the schedule or its place in the corpus."""
    small = ["--size", "micro", "--batch", "2", "--length", "64", "--steps", "6", "--device", "cpu", "--processes", "1"]

    def train_in(name, *extra):
        train.main([*small, "--run", str(tmp_path / name), "--out", str(tmp_path / f"{name}_out"), *extra])

    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name / file).write_bytes((ROOT / "tiny" / file).read_bytes())
    train_in("whole")
    for stop in ("1", "4"):  # once before MTP's loss joins, once after
        train_in("pieces", "--stop-after", stop)
        assert not (tmp_path / "pieces_out").exists()
    train_in("pieces")
    files = [(tmp_path / f"{name}_out" / "model.safetensors").read_bytes() for name in ("whole", "pieces")]
    assert files[0] == files[1]
    assert (tmp_path / "whole_out" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_with_other_options(tmp_path, capsys):
    """Catches a finished checkpoint, or a tokenizer, of another seed that is taken for this one's."""
    folders = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tokenizer.json").write_text("{}")
    for options, named in ((["--seed", "1"], "seed was 0, now 1"), (["--without", "mask"], "without was []")):
        with pytest.raises(ValueError, match="not a tokenizer|eos_token"):  # it would go on to train
            train.main(["--size", "micro", "--processes", "1", *folders])
        with pytest.raises(SystemExit) as end:
            train.main(["--size", "micro", "--processes", "1", *folders, *options])
        assert end.value.code == 2
        assert named in capsys.readouterr().err


def test_a_tokenizer_of_which_a_part_was_written(tmp_path, monkeypatch):
    """Catches a run that can't go on because it was killed between the two files: only the first of them is there."""
    replace = os.replace
    for number in range(1, 4):
        folder, calls = tmp_path / str(number), []

        def replace_or_die(*names, calls=calls, number=number):
            calls.append(names)
            if len(calls) == number:
                raise KeyboardInterrupt
            replace(*names)

        monkeypatch.setattr("os.replace", replace_or_die)
        with contextlib.suppress(KeyboardInterrupt):
            train.train_tokenizer(folder, 0, documents=20)
        assert (folder / "tokenizer.json").is_file() == (number == 3)  # what decides whether it is trained again
    assert Qwen3NextTokenizer.from_pretrained(folder).chat_template == train.CHAT_TEMPLATE


def test_matrices_in_a_stack_are_trained_as_one_by_one():
    """Catches a stacked Muon that mixes up matrices, turns tall ones, scales a step by another shape's size, or
    stops at a matrix without a gradient, as MTP's are before its loss joins.
    """
    shapes, trained = [(6, 10), (10, 6), (6, 10), (8, 8), (6, 10)], []
    for kind in (torch.optim.Muon, train.StackedMuon):
        gen = torch.Generator().manual_seed(0)
        matrices = [torch.randn(shape, generator=gen).requires_grad_() for shape in shapes]
        optimizer = kind(matrices, lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
        for _ in range(3):
            for matrix in matrices[:-1]:
                matrix.grad = torch.randn(matrix.shape, generator=gen)
            optimizer.step()
        trained.append(matrices)
    for one, other in zip(*trained):
        torch.testing.assert_close(other, one, rtol=0, atol=2e-3)  # of weights that moved by 0.1; bfloat16 inside


def test_two_processes_train_as_one(tmp_path):
    """Catches gradients that are not averaged, or processes that see the same rows."""
    common = ["--size", "micro", "--batch", "2", "--length", "64", "--device", "cpu"]
    # Every token counts, in rows of one length, so that each process has as many as the other
    common += ["--steps", "2", "--stop-after", "1", "--without", "mask", "short"]
    states = []
    for processes in ("1", "2"):
        run = tmp_path / processes
        run.mkdir()
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (run / file).write_bytes((ROOT / "tiny" / file).read_bytes())
        command = [sys.executable, str(ROOT / "tiny" / "train.py"), *common, "--processes", processes]
        subprocess.run([*command, "--run", str(run), "--out", str(run)], check=True, capture_output=True)
        states.append(torch.load(run / "checkpoint.pt")["optimizers"][1]["state"])
    # The first step's first moment is a tenth of the gradient; the load-balancing loss is not the mean over rows
    one, two = (torch.cat([entry["exp_avg"].flatten() for entry in state.values()]) for state in states)
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.999


@torch.no_grad()
def test_its_drafts_are_right_more_often_than_not(folder):
    """Catches weights whose multi-token-prediction layer was not trained, or does not fit the model."""
    tokenizer = Qwen3NextTokenizer.from_pretrained(folder)
    model, stats = Qwen3NextForCausalLM.from_pretrained(folder, dtype="float64"), {}
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Tell me a story about a fox and a lantern."}])
    ids = tokenizer([text], return_tensors="pt").input_ids
    fixed = {"max_new_tokens": 80, "do_sample": False}
    expected = model.generate(ids, **fixed)
    assert torch.equal(model.generate(ids, num_draft_tokens=2, stats=stats, **fixed), expected)
    first, second = stats["acceptance_by_position"]
    assert first > (0.4 if folder.name == "micro" else 0.7)
    assert second > 0.1


def test_the_card_is_of_these_weights(tiny, measured):
    """Catches a README whose samples are another model's: the first one is made again."""
    text = (tiny / "README.md").read_text(encoding="utf-8")
    assert measured.samples(1) in text
    assert not [name for name in ("excess", "questions", "books", "far", "load", "drafts", "speed", "samples")
                if f"<!-- {name} -->\n\n" not in text]  # fmt: skip


def test_the_corpus_command_writes_json_lines():
    """Catches a command line that writes other documents than the library does."""
    command = [sys.executable, str(ROOT / "tiny" / "corpus.py"), "--seed", "3", "--documents", "5"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == [
        text for _, text in zip(range(5), corpus.documents(3), strict=False)
    ]
