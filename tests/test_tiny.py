"""Claim: tiny/ is a trained Qwen3-Next with every part of the big one, and its corpus and training run anywhere."""

import copy
import itertools
import json
import random
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer

sys.path.insert(0, str(ROOT / "tiny"))
import corpus  # noqa: E402
import train  # noqa: E402


@pytest.fixture(scope="module")
def model(tiny):
    return Qwen3NextForCausalLM.from_pretrained(tiny)


def test_it_has_everything_the_big_one_has(model, tiny):
    """Catches a small model on which half of the code is never used."""
    c = model.config
    assert 4e6 <= sum(p.numel() for p in model.parameters()) <= 8e6
    assert (tiny / "model.safetensors").stat().st_size <= 16e6
    assert model.dtype == torch.bfloat16
    assert c.num_hidden_layers >= 8
    assert c.layer_types.count("linear_attention") == 3 * c.layer_types.count("full_attention")
    assert c.linear_num_value_heads > c.linear_num_key_heads
    assert c.num_attention_heads > c.num_key_value_heads
    assert c.partial_rotary_factor < 1
    assert c.num_experts >= 16
    assert c.shared_expert_intermediate_size > 0


@pytest.fixture
def narrow(monkeypatch):
    """The part of the corpus' word lists that the model was trained on, for the time of a test."""
    for name in ("GIRLS", "BOYS", "SHE_ANIMALS", "HE_ANIMALS", "ANIMALS", "THING_ROWS", "LISTED"):
        monkeypatch.setattr(corpus, name, copy.copy(getattr(corpus, name)))
    corpus.narrow(**train.NARROW)


@torch.no_grad()
def test_it_is_trained(model, tiny, narrow):
    """Catches weights that are not the trained ones: text the model never saw costs under 0.5 nats a token."""
    tokenizer = Qwen3NextTokenizer.from_pretrained(tiny)
    assert train.held_out_loss(model.float(), tokenizer, 256, batches=2) < 0.5


def test_the_corpus_is_a_function_of_its_seed():
    """Catches text that depends on the clock, the hash seed or an earlier document."""
    first = list(itertools.islice(corpus.documents(3), 20))
    assert first == list(itertools.islice(corpus.documents(3), 20))
    assert first[7] == corpus.document(random.Random("3:7"))
    assert first != list(itertools.islice(corpus.documents(4), 20))
    command = [sys.executable, str(ROOT / "tiny" / "corpus.py"), "--seed", "3", "--documents", "20"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [next(iter(json.loads(line).values())) for line in lines] == first


def test_requests_are_met():
    """Catches a story without the character or the object that was asked for."""
    for hero, thing in itertools.product(("fox", "hedgehog", "owl"), ("lantern", "kite", "drum")):
        told = corpus.story(random.Random(f"{hero} {thing}"), hero=hero, thing=thing)
        assert hero in told.text
        assert thing in told.text


def test_every_plot_reads_clean():
    """Catches a template mark left in, doubled spaces, and "a" before a vowel."""
    for text in (corpus.story(random.Random(i)).text for i in range(400)):
        assert not set(text) & set("{}[]|_")
        assert "  " not in text
        assert not [pair for pair in zip(text.split(), text.split()[1:]) if pair[0] == "a" and pair[1][0] in "aeio"]
        assert 60 <= len(text.split()) <= 200


def test_training_resumes_where_it_stopped(tmp_path, monkeypatch, narrow):
    """Catches a checkpoint that forgets the optimiser, the schedule or its place in the corpus."""
    monkeypatch.setattr(train, "ECHO_STEPS", 2)
    small = ["--batch", "2", "--length", "64", "--steps", "6", "--device", "cpu"]

    def train_in(name, *extra):
        train.main([*small, "--run", str(tmp_path / name), "--out", str(tmp_path / f"{name}_out"), *extra])

    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name / file).write_bytes((ROOT / "tiny" / file).read_bytes())
    train_in("whole")
    for stop in ("1", "4"):  # once among the random tokens, once in the text
        train_in("pieces", "--stop-after", stop)
        assert not (tmp_path / "pieces_out").exists()
    train_in("pieces")
    files = [(tmp_path / f"{name}_out" / "model.safetensors").read_bytes() for name in ("whole", "pieces")]
    assert files[0] == files[1]
    assert (tmp_path / "whole_out" / "loss.png").read_bytes().startswith(b"\x89PNG")


@torch.no_grad()
def test_its_drafts_are_right_more_often_than_not(tiny):
    """Catches weights whose multi-token-prediction layer was not trained, or does not fit the model."""
    tokenizer = Qwen3NextTokenizer.from_pretrained(tiny)
    model, stats = Qwen3NextForCausalLM.from_pretrained(tiny, dtype="float64"), {}
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Tell me a story about a fox and a lantern."}])
    ids = tokenizer([text], return_tensors="pt").input_ids
    fixed = {"max_new_tokens": 80, "do_sample": False}
    expected = model.generate(ids, **fixed)
    assert torch.equal(model.generate(ids, num_draft_tokens=2, stats=stats, **fixed), expected)
    first, second = stats["acceptance_by_position"]
    assert first > 0.7
    assert second > 0.3
