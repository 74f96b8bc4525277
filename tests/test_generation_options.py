"""Claim: transformers' options of `generate` give what they give there, or are refused by name."""

import time

import pytest
import torch
import transformers
from conftest import random_model, tokens
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from qwen3_next import Qwen3NextForCausalLM

NO_END = {"eos_token_id": None}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same random weights here and in transformers, in float32; no end token, and nothing sampled by default."""
    path = tmp_path_factory.mktemp("model")
    random_model(torch.float32).save_pretrained(path)
    theirs = transformers.Qwen3NextForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    theirs.generation_config = GenerationConfig(pad_token_id=0)
    return Qwen3NextForCausalLM.from_pretrained(path), theirs


OPTIONS = [
    {"max_length": 11},
    {"max_length": 11, "max_new_tokens": 3},
    {"generation_config": GenerationConfig(max_new_tokens=5, repetition_penalty=1.7, pad_token_id=0)},
    {"generation_config": GenerationConfig(max_new_tokens=5, pad_token_id=0), "max_new_tokens": 4},
    {"max_new_tokens": 6, "num_beams": 1, "use_cache": True, "do_sample": False},
    {"max_new_tokens": 6, "logits_processor": LogitsProcessorList([lambda ids, scores: scores.roll(1, -1)])},
    {"max_new_tokens": 6, "logits_processor": [lambda ids, scores: scores.roll(1, -1)], "repetition_penalty": 1.5},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_greedy_texts(pair, options):
    """Catches an option that is taken and not obeyed."""
    ids = tokens(2, 6)
    mask = torch.ones_like(ids)
    a, b = (model.generate(ids, attention_mask=mask, **options) for model in pair)
    assert torch.equal(a, b)
    if "generation_config" in options:
        assert torch.equal(pair[0].generate(inputs=ids, **options), b)
        assert torch.equal(pair[0].generate(ids, options["generation_config"], **{**options}), b)


def test_ends_and_pads(pair):
    """Catches an end before the shortest length, and rows that are padded with another token than the one given."""
    ids = tokens(2, 6)
    mask = torch.ones_like(ids)
    free = pair[0].generate(ids, max_new_tokens=12, **NO_END)[:, 6:]
    end = free[0, 3].item()
    for options in ({}, {"min_length": 12}, {"min_new_tokens": 7}, {"pad_token_id": 5}):
        options = {"max_new_tokens": 12, "eos_token_id": end, "pad_token_id": 9, **options}
        a, b = (model.generate(ids, attention_mask=mask, **options) for model in pair)
        assert torch.equal(a, b), options
    given = pair[0].generate(ids, GenerationConfig(max_new_tokens=12, eos_token_id=end, pad_token_id=8))
    assert (given[0, 10:] == 8).all()


def test_criteria(pair):
    """Catches a criterion that is never asked, is asked about the new tokens alone, or stops every sequence."""
    ids = tokens(2, 6)
    mask = torch.ones_like(ids)
    free = pair[0].generate(ids, max_new_tokens=12, **NO_END)
    last = free[0, 9].item()

    def said(ids, scores, **options):
        return torch.isin(ids[:, -1], torch.tensor([last])) & (ids.shape[1] > 8)

    for criteria in (StoppingCriteriaList([said]), [said]):
        options = {"max_new_tokens": 12, "stopping_criteria": criteria, "pad_token_id": 0}
        a = pair[0].generate(ids, attention_mask=mask, **options)
        assert torch.equal(a[0, :10], free[0, :10])
        assert (a[0, 10:] == 0).all()
        row = free[1].tolist()
        end = next((i + 1 for i in range(8, 18) if row[i] == last), 18)
        assert a[1].tolist()[:end] == row[:end]
    assert torch.equal(pair[0].generate(ids, max_new_tokens=12, stopping_criteria=said, pad_token_id=0), a)
    lengths = []
    pair[0].generate(ids, max_new_tokens=4, stopping_criteria=[lambda ids, _: lengths.append(ids.shape[1]) or False])
    assert lengths == [7, 8, 9, 10]
    started = time.perf_counter()
    limit = transformers.MaxTimeCriteria(max_time=0.2)
    out = pair[0].generate(ids, max_new_tokens=100_000, stopping_criteria=[limit], **NO_END)
    assert time.perf_counter() - started < 60
    assert out.shape[1] < 100_006


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "temperature": 0.7, "top_k": 9}, {"repetition_penalty": 2.0}]
)
def test_scores(pair, options):
    """Catches scores of another step or before the filters, and too few of them."""
    ids = tokens(2, 6)
    options = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_scores": True, **options}
    torch.manual_seed(0)
    a = pair[0].generate(ids, seed=1, **options)
    assert a.sequences.shape == (2, 11) and len(a.scores) == 5
    assert a[0] is a.sequences is a["sequences"]
    config = GenerationConfig(pad_token_id=0, **options)
    given = {**options, "max_new_tokens": 1, "generation_config": config, "attention_mask": None}
    for step, scores in enumerate(a.scores):  # theirs, of the same text
        so_far = a.sequences[:, : 6 + step]
        b = pair[1].generate(so_far, **{**given, "attention_mask": torch.ones_like(so_far)})
        if "repetition_penalty" in options or step == 0 or "do_sample" not in options:
            assert torch.equal(scores == -torch.inf, b.scores[0] == -torch.inf)
        torch.testing.assert_close(scores.softmax(-1), b.scores[0].softmax(-1), rtol=1e-3, atol=1e-4)
        finite = scores > -torch.inf
        torch.testing.assert_close(scores[finite], b.scores[0][finite], rtol=1e-3, atol=1e-2)
    assert a.past_key_values.columns == 10
    plain = pair[0].generate(ids, max_new_tokens=5, return_dict_in_generate=True)
    assert "scores" in plain and plain.scores is None


def test_several_answers():
    """Catches answers that are all the same, in another order, to another prompt, or from a prompt read many times."""
    model = random_model()
    ids = tokens(2, 9)
    options = {"max_new_tokens": 6, "temperature": 0.9, "seed": 4, **NO_END}
    several = model.generate(ids, num_return_sequences=3, **options)
    expected = model.generate(ids.repeat_interleave(3, dim=0), **options)
    assert torch.equal(several, expected)
    assert len({tuple(row.tolist()) for row in several}) > 4
    read = []
    hook = model.model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[4].shape[:2].numel()))
    model.generate(ids, num_return_sequences=3, **{**options, "max_new_tokens": 1})
    hook.remove()
    assert read == [2 * 8, 6]  # all but the last token once, then that for each answer
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    padded = model.generate(ids, mask, num_return_sequences=2, **options)
    again = model.generate(ids.repeat_interleave(2, dim=0), mask.repeat_interleave(2, dim=0), **options)
    assert torch.equal(padded, again)
    assert model.generate(ids[:, :1], num_return_sequences=2, **options).shape == (4, 7)
    with pytest.raises(ValueError, match="num_return_sequences is 2: without sampling all would be the same"):
        model.generate(ids, num_return_sequences=2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 4}, "num_beams is 4"),
        ({"use_cache": False}, "use_cache is False"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size is 3"),
        ({"output_logits": True}, "output_logits is True"),
        ({"generation_config": GenerationConfig(num_beams=2)}, "num_beams is 2"),
        ({"generation_config": 5}, "generation_config is a int"),
        ({"logits_processor": [5]}, "logits_processor"),
        ({"assistant_model": "x"}, "assistant_model"),
        ({"inputs": tokens(1, 3)}, "inputs and input_ids are the same"),
        ({"num_return_sequences": 2, "do_sample": True, "past_key_values": "cache"}, "without past_key_values"),
        (
            {"return_dict_in_generate": True, "output_scores": True, "num_draft_tokens": 1},
            "output_scores goes without num_draft_tokens",
        ),
    ],
)
def test_what_is_not_done_is_refused(options, named):
    """Catches an option that would be overlooked: beams that are none, scores that do not come."""
    model = random_model(mtp_num_hidden_layers=1)
    if options.get("past_key_values"):
        options = {**options, "past_key_values": model.make_cache(1)}
    with pytest.raises(ValueError, match=named):
        model.generate(tokens(1, 3), **options)


@pytest.mark.parametrize("name", ["inputs_embeds", "prompt_lookup_num_tokens", "foo"])
def test_other_keywords_are_named(name):
    """Catches a keyword that nothing reads."""
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        random_model().generate(tokens(1, 3), max_new_tokens=1, **{name: 3})
