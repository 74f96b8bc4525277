"""Claim: lm-evaluation-harness runs its tasks on this model. Skipped where lm_eval, and its many packages, are not."""

import sys

import pytest
import torch
from conftest import ROOT, random_model

from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer

pytest.importorskip("lm_eval", reason="needs lm_eval: pip install -e '.[eval]'")
sys.path.insert(0, str(ROOT))
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402

from benchmarks import lm_eval_adapter  # noqa: E402


def asked(*arguments) -> list:
    return [Instance(request_type="loglikelihood", doc={}, arguments=arguments, idx=0)]


def test_probabilities_are_the_models(tiny):
    """Catches a token that is scored by what follows it, and a context that counts."""
    tokenizer, model = Qwen3NextTokenizer.from_pretrained(tiny), random_model(torch.float64, vocab_size=2048)
    adapter = lm_eval_adapter.Adapter(model, tokenizer)
    before, after = "Once upon a time", " there was a fox"
    ids = torch.tensor([tokenizer.encode(before + after)])
    with torch.no_grad():
        p = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    known = len(tokenizer.encode(before))
    ((found, likeliest),) = adapter.loglikelihood(asked(before, after))
    assert found == pytest.approx(p[known - 1 :].sum().item(), abs=1e-4)
    assert not likeliest
    greedy = tokenizer.decode(model.generate(ids, max_new_tokens=1, eos_token_id=None)[0, -1:])
    assert adapter.loglikelihood(asked(before + after, greedy))[0][1]
    padded = torch.cat([torch.tensor([[tokenizer.pad_token_id]]), ids], dim=1)
    with torch.no_grad():
        p = model(padded).logits.log_softmax(-1)[0, :-1].gather(1, padded[0, 1:, None])
    assert adapter.loglikelihood_rolling(asked(before + after)) == [pytest.approx(p.sum().item(), abs=1e-4)]


def test_phone_books(tiny):
    """Catches a task that is not run, and answers that are cut in another place."""
    tokenizer, model = Qwen3NextTokenizer.from_pretrained(tiny), Qwen3NextForCausalLM.from_pretrained(tiny)
    task = lm_eval_adapter.phone_books(tokenizer, entries=2)
    adapter = lm_eval_adapter.Adapter(model, tokenizer)
    found = simple_evaluate(adapter, tasks=[task], limit=5, bootstrap_iters=0)["results"]["phone_books_2"]
    assert found["exact_match,none"] >= 0.6  # by chance, one number in ten thousand
