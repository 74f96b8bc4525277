"""Claim: the classification and question-answering heads give transformers' logits and losses."""

import warnings

import pytest
import torch
from conftest import BASE, random_model, randomise, tokens
from transformers import Qwen3NextForQuestionAnswering as TheirAnswering
from transformers import Qwen3NextForSequenceClassification as TheirSequence
from transformers import Qwen3NextForTokenClassification as TheirToken

import qwen3_next as q

PAD = 0
LABELS = {"id2label": {str(i): f"label {i}" for i in range(5)}, "pad_token_id": PAD, "classifier_dropout": 0.0}
PAIRS = {
    "sequence": (q.Qwen3NextForSequenceClassification, TheirSequence),
    "token": (q.Qwen3NextForTokenClassification, TheirToken),
    "answer": (q.Qwen3NextForQuestionAnswering, TheirAnswering),
}


def both(name, tmp_path, **fields):
    """The same random weights in both; saved by us, read by them."""
    ours, theirs = PAIRS[name]
    model = ours(q.Qwen3NextConfig(**{**BASE, **LABELS, **fields}))
    randomise(model).eval().save_pretrained(tmp_path)
    return model, theirs.from_pretrained(tmp_path, dtype=torch.float32).eval()


def padded():
    """Four sequences, padding on either side."""
    ids, mask = tokens(4, 20) % 96 + 1, torch.zeros(4, 20, dtype=torch.long)
    for row, (start, stop) in enumerate([(0, 20), (6, 20), (0, 11), (3, 18)]):
        mask[row, start:stop] = 1
    return ids * mask, mask


def close(a, b):
    assert a.shape == b.shape
    assert (a - b).abs().max() / b.std() < 1e-3  # float32 on both sides, in another order


@pytest.mark.parametrize("problem", [None, "regression", "multi_label_classification", "many labels", "one label"])
def test_sequence_classification(tmp_path, problem):
    """Catches pooling at a pad, and a loss chosen wrongly from the labels' type and number."""
    fields = {"id2label": {"0": "score"}} if problem == "one label" else {"problem_type": problem}
    fields = {} if problem in (None, "many labels") else fields  # then the labels' type decides
    ours, theirs = both("sequence", tmp_path, **fields)
    ids, mask = padded()
    generator = torch.Generator().manual_seed(0)
    labels = {
        None: torch.tensor([1, 4, 0, 2]),
        "one label": torch.randn(4, generator=generator),
        "regression": torch.randn(4, 5, generator=generator),
        "many labels": (torch.rand(4, 5, generator=generator) > 0.5).float(),
        "multi_label_classification": (torch.rand(4, 5, generator=generator) > 0.5).float(),
    }[problem]
    a, b = ours(ids[:2], mask[:2], labels=labels[:2]), theirs(ids[:2], mask[:2], labels=labels[:2])
    close(a.logits, b.logits)
    assert a.loss.item() == pytest.approx(b.loss.item(), rel=1e-4)
    a, b = ours(ids, labels=labels), theirs(ids, labels=labels)  # without a mask, pads are told by their token
    close(a.logits, b.logits)
    assert a.loss.item() == pytest.approx(b.loss.item(), rel=1e-4)
    alone = torch.cat([ours(ids[row : row + 1, mask[row] > 0]).logits for row in range(4)])
    hidden_pads = torch.where(mask > 0, ids, tokens(4, 20, seed=1) % 96 + 1)  # the mask alone tells them
    for padding in (mask, mask.bool(), mask.to(torch.bfloat16)):
        torch.testing.assert_close(ours(hidden_pads, padding).logits, alone, rtol=1e-4, atol=1e-4)


def test_labels_and_padding_token_are_given_as_in_transformers(tmp_path):
    """Catches a head of the wrong size, and pads that are pooled, where the config was changed after it was built."""
    random_model(torch.float32).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="weights are new"):
        model = q.Qwen3NextForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert model.score.weight.shape == (5, BASE["hidden_size"])
    config = q.Qwen3NextConfig(**BASE)
    config.num_labels = 7
    model = q.Qwen3NextForSequenceClassification(config)
    assert model.num_labels == 7
    ids, mask = padded()
    with pytest.raises(ValueError, match="pad_token_id"):
        model(ids)
    model.config.pad_token_id = PAD
    torch.testing.assert_close(model(ids).logits[2], model(ids[2:3, :11]).logits[0])


def test_token_classification(tmp_path):
    """Catches a missing bias, -100 that counts, and dropout in evaluation."""
    ours, theirs = both("token", tmp_path)
    ids, mask = padded()
    labels = (ids % 5).masked_fill(mask == 0, -100)
    a, b = ours(ids[:2], mask[:2], labels=labels[:2]), theirs(ids[:2], mask[:2], labels=labels[:2])
    close(a.logits[mask[:2] > 0], b.logits[mask[:2] > 0])
    assert a.loss.item() == pytest.approx(b.loss.item(), rel=1e-4)
    model = q.Qwen3NextForTokenClassification(q.Qwen3NextConfig(**BASE)).train()
    assert (model.dropout.p, model.num_labels) == (0.1, 2)
    assert not torch.equal(model(ids).logits, model(ids).logits)


def test_question_answering(tmp_path):
    """Catches start and end swapped, and positions beyond the input that count."""
    ours, theirs = both("answer", tmp_path)
    targets = {"start_positions": torch.tensor([7, 99]), "end_positions": torch.tensor([12, 19])}
    ids = tokens(2, 20)
    a, b = ours(ids, **targets), theirs(ids, **targets)
    close(a.start_logits, b.start_logits)
    close(a.end_logits, b.end_logits)
    assert a.loss.item() == pytest.approx(b.loss.item(), rel=1e-4)
    assert any(name.startswith("transformer.layers.") for name, _ in ours.named_parameters())


@pytest.mark.parametrize("name", PAIRS)
def test_a_causal_checkpoint_lends_its_backbone(tmp_path, name):
    """Catches a backbone left random, which transformers' question answering does without a word."""
    causal = random_model(torch.float32, mtp_num_hidden_layers=1)
    causal.save_pretrained(tmp_path / "causal")
    with pytest.warns(UserWarning, match=r"no (score|qa_outputs): its weights are new") as caught:
        model = PAIRS[name][0].from_pretrained(tmp_path / "causal")
    assert len(caught) == 1
    parameters = dict(model.named_parameters())
    for key, p in causal.model.named_parameters():
        assert torch.equal(parameters[model.backbone + key], p)
    head = parameters[model.head + ".weight"]
    assert 0.01 < head.std() < 0.03
    model.save_pretrained(tmp_path / "head")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = PAIRS[name][0].from_pretrained(tmp_path / "head")
        backbone = q.Qwen3NextModel.from_pretrained(tmp_path / "head")
    assert torch.equal(dict(again.named_parameters())[model.head + ".weight"], head)
    ids = tokens(1, 9)
    with torch.no_grad():
        expected = causal.model(ids).last_hidden_state
        torch.testing.assert_close(backbone(ids).last_hidden_state, expected, rtol=0, atol=1e-4)  # other alignment
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
        q.Qwen3NextForCausalLM.from_pretrained(tmp_path / "head")


def test_the_backbone_alone(tmp_path):
    """Catches Qwen3NextModel that can't load what it saved, or what a causal model saved."""
    causal = random_model(torch.float32)
    causal.save_pretrained(tmp_path / "causal")
    model = q.Qwen3NextModel.from_pretrained(tmp_path / "causal")
    model.save_pretrained(tmp_path / "backbone")
    again = q.Qwen3NextModel.from_pretrained(tmp_path / "backbone")
    for expected, a, b in zip(causal.model.parameters(), model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, expected)
        assert torch.equal(b, expected)


def test_outputs():
    """Catches hidden states without the embeddings or the norm, and embeddings that are not taken for ids."""
    model, ids = random_model(), tokens(2, 9)
    layers, experts = BASE["num_hidden_layers"], BASE["num_experts"]
    with torch.no_grad():
        out = model(ids, output_hidden_states=True, output_router_logits=True)
        again = model(inputs_embeds=model.model.embed_tokens(ids), position_ids=torch.arange(9)[None] + 40)
    assert len(out.hidden_states) == layers + 1
    assert torch.equal(out.hidden_states[0], model.model.embed_tokens(ids))
    torch.testing.assert_close(model.lm_head(out.hidden_states[-1]), out.logits, rtol=0, atol=1e-12)
    assert [x.shape for x in out.router_logits] == [(18, experts)] * layers
    torch.testing.assert_close(again.logits, out.logits, rtol=0, atol=1e-11)  # rotary positions are relative
