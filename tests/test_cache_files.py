"""Claim: a cache can be saved, read again and divided by sequences, and goes on as if it had never been away."""

import os

import pytest
import torch
from conftest import VARIANTS, random_model, tokens

from qwen3_next import Cache

LONG = {"max_position_embeddings": 8192}


@torch.no_grad()
def test_a_prefix_of_four_thousand_tokens(tmp_path):
    """Catches a state, a window, keys, values or a position that does not survive the disk, to the last bit."""
    model = random_model(torch.float32, num_hidden_layers=4, **LONG)
    ids, more = tokens(1, 4096), tokens(1, 5, seed=1)
    cache = model.make_cache(1)
    model(ids, past_key_values=cache, logits_to_keep=1)
    cache.save(tmp_path / "prefix.safetensors")
    restored, never_away = Cache.load(tmp_path / "prefix.safetensors", model), cache.clone()
    assert restored.get_seq_length() == 4096
    for piece in more.split([3, 1, 1], dim=1):
        expected = model(piece, past_key_values=cache).logits
        assert torch.equal(model(piece, past_key_values=restored).logits, expected)
    prompt = torch.cat([ids, more], dim=1)
    again = Cache.load(tmp_path / "prefix.safetensors", model)
    options = {"max_new_tokens": 5, "eos_token_id": None}
    text = model.generate(prompt, past_key_values=again, **options)
    assert torch.equal(text, model.generate(prompt, past_key_values=never_away, **options))
    slots = 2 * 4096 * 2 * 16 * 4  # keys and values, of 2 heads of 16 floats
    states = 3 * 6 * 12 * 20 * 4  # of three layers, as if the text were one token long
    size = os.path.getsize(tmp_path / "prefix.safetensors")
    assert slots + states < size < slots + states + 20_000


@pytest.mark.parametrize("variant", ["base", "all_linear", "all_attention", "kernel_2"])
@torch.no_grad()
def test_padded_batches(tmp_path, variant):
    """Catches a mask that is lost, and a kind of layer that is not saved."""
    model = random_model(**VARIANTS[variant])
    ids, mask = tokens(3, 12), torch.ones(3, 12, dtype=torch.long)
    mask[0, :5] = 0
    mask[2, 9:] = 0
    cache = model.make_cache(3)
    model(ids, attention_mask=mask, past_key_values=cache)
    cache.save(tmp_path / "cache")
    restored = Cache.load(tmp_path / "cache", model)
    more = tokens(3, 2, seed=1)
    assert torch.equal(model(more, past_key_values=restored).logits, model(more, past_key_values=cache).logits)


@torch.no_grad()
def test_selected_sequences(tmp_path):
    """Catches a row whose state and keys are those of two sequences, and a selection that shares memory."""
    model = random_model()
    ids, mask = tokens(3, 12), torch.ones(3, 12, dtype=torch.long)
    mask[0, :5] = 0
    cache = model.make_cache(3)
    model(ids, attention_mask=mask, past_key_values=cache)
    more = tokens(3, 2, seed=1)
    expected = model(more, past_key_values=cache.clone()).logits
    for rows in ([2, 0, 0], torch.tensor([1]), torch.tensor([True, False, True])):
        part = cache.select(rows)
        rows = torch.arange(3)[torch.as_tensor(rows)]
        found = model(more[rows], past_key_values=part).logits
        torch.testing.assert_close(found, expected[rows], rtol=0, atol=1e-12)
    torch.testing.assert_close(model(more, past_key_values=cache).logits, expected, rtol=0, atol=1e-12)


def test_drafts_go_on(tmp_path):
    """Catches an MTP layer that has forgotten the text: its drafts would be worse, and nobody would know why."""
    model = random_model(mtp_num_hidden_layers=1)
    ids = tokens(1, 20)
    cache = model.make_cache(1)
    options = {"num_draft_tokens": 2, "eos_token_id": None, "max_new_tokens": 8}
    text = model.generate(ids, past_key_values=cache, **options)
    cache.save(tmp_path / "cache")
    restored = Cache.load(tmp_path / "cache", model)
    a, b = {}, {}
    first = model.generate(text, past_key_values=cache, stats=a, **options)
    second = model.generate(text, past_key_values=restored, stats=b, **options)
    assert torch.equal(first, second)
    assert (a["drafted"], a["accepted"]) == (b["drafted"], b["accepted"])


def test_files_that_do_not_fit(tmp_path):
    """Catches the cache of another model, which would be continued without a word, and files that are none."""
    model = random_model()
    cache = model.make_cache(2)
    cache.save(tmp_path / "empty")
    assert Cache.load(tmp_path / "empty", model).columns == 0
    with torch.no_grad():
        model(tokens(2, 5), past_key_values=cache)
    path = tmp_path / "cache"
    cache.save(path)
    others = {
        "linear_value_head_dim": 24,
        "head_dim": 32,
        "num_hidden_layers": 4,
        "full_attention_interval": 2,
        "linear_conv_kernel_dim": 3,
        "num_key_value_heads": 3,
    }
    for field, value in others.items():
        with pytest.raises(ValueError, match=f"{path}: "):
            Cache.load(path, random_model(**{field: value}))
    with pytest.raises(ValueError, match="in torch.float64, the model's has .* in torch.float32"):
        Cache.load(path, model.float())
    with pytest.raises(FileNotFoundError, match="no such file"):
        Cache.load(tmp_path / "nothing", model)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="text: not a whole safetensors file"):
        Cache.load(tmp_path / "text", model)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="not a cache"):
        Cache.load(tmp_path / "model" / "model.safetensors", model)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Cache.load(path, model)
    cache.complete = False
    with pytest.raises(ValueError, match="interrupted"):
        cache.save(path)
    assert not list(tmp_path.glob("*.saving"))
