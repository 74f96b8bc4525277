"""Claim: a keyword is obeyed or refused by name, and where a file and its config differ, the file decides."""

import json
import math
import shutil
import threading
import warnings

import pytest
import torch
import transformers
from conftest import random_model, tokens
from safetensors.torch import load_file, save_file

import qwen3_next
from qwen3_next import Qwen3NextConfig, Qwen3NextForCausalLM, Qwen3NextModel, Qwen3NextTokenizer
from qwen3_next_checkpoints import hub
from qwen3_next_checkpoints.penalties import Penalties
from reference_recurrent import Reference

OURS, THEIRS = Qwen3NextForCausalLM, transformers.Qwen3NextForCausalLM


@pytest.fixture
def folder(tmp_path, checkpoint):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))


def theirs(folder, ids):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return THEIRS.from_pretrained(folder, dtype=torch.float32)(ids).logits


@pytest.mark.parametrize("name", ["load_in_4bit", "attn_implementation", "config", "delta_rul", "subfolder"])
def test_a_keyword_that_nothing_reads(checkpoint, name):
    """Catches an option that is taken, does nothing, and lands in the config.json of the next save."""
    for load in (OURS.from_pretrained, Qwen3NextConfig.from_pretrained, Qwen3NextTokenizer.from_pretrained):
        with pytest.raises(TypeError, match=rf"from_pretrained\(\) got an unexpected keyword argument '{name}'"):
            load(checkpoint, **{name: "x"})


def test_keywords_of_transformers(checkpoint, tmp_path, monkeypatch):
    """Catches names of transformers' that are refused although they ask for nothing else, or are not obeyed."""
    usual = {"trust_remote_code": True, "low_cpu_mem_usage": True, "use_safetensors": True}
    model = OURS.from_pretrained(checkpoint, torch_dtype=torch.float64, device_map={"": "cpu"}, token="secret", **usual)
    assert model.dtype == torch.float64
    assert OURS.from_pretrained(checkpoint, torch_dtype="auto").dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / "config.json").read_text()
    assert "secret" not in text and "trust_remote_code" not in text
    with pytest.raises(ValueError, match="device .* can't be used"):
        OURS.from_pretrained(checkpoint, device_map={"model": 0, "lm_head": "cpu"})
    asked = []
    monkeypatch.setattr(hub, "download", lambda name, **options: asked.append((name, options)) or checkpoint)
    options = {"revision": "main", "token": "secret", "cache_dir": "somewhere", "local_files_only": True}
    for load in (OURS.from_pretrained, Qwen3NextConfig.from_pretrained, Qwen3NextTokenizer.from_pretrained):
        load("owner/name", **options)
    assert asked == [("owner/name", options)] * 3


def test_keywords_of_the_chat_template(tiny):
    """Catches a batch that renders as one empty turn, and options of transformers' that become template variables."""
    tokenizer = Qwen3NextTokenizer.from_pretrained(tiny)
    messages = [{"role": "user", "content": "Hello!"}]
    text = tokenizer.apply_chat_template(messages)
    ids = tokenizer.encode(text)
    assert tokenizer.apply_chat_template(messages, tokenize=True) == ids
    assert tokenizer.apply_chat_template(messages, tokenize=True, return_tensors="pt").tolist() == [ids]
    encoding = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert encoding == {"input_ids": ids, "attention_mask": [1] * len(ids)}
    other = "{{ shout }}: {{ messages[0].content }}"
    assert tokenizer.apply_chat_template(messages, chat_template=other, shout="hey", padding=False) == "hey: Hello!"
    for name in ("conversation", "tokenizer_kwargs", "return_assistant_tokens_mask", "sanitize_control_tokens"):
        with pytest.raises(ValueError, match=f"apply_chat_template does not have transformers' {name}"):
            tokenizer.apply_chat_template(messages, **{name: 1})
    for wrong in ("Hello!", messages[0], None, [], [messages, "Hello!"], [messages, messages[0]]):
        with pytest.raises(ValueError, match="expected one conversation"):
            tokenizer.apply_chat_template(wrong)
    with pytest.raises(ValueError, match="need tokenize=True"):
        tokenizer.apply_chat_template(messages, return_tensors="pt")


def test_keywords_of_generate():
    """Catches an error that names a class the caller has never heard of."""
    with pytest.raises(TypeError, match=r"generate\(\) got an unexpected keyword argument 'num_beans'"):
        random_model().generate(tokens(1, 3), num_beans=4)


def test_a_head_that_is_not_the_embedding(folder):
    """Catches tie_word_embeddings believed over the file: 5.6 standard deviations off."""
    change(folder, tie_word_embeddings=True)
    ids = tokens(1, 7)
    expected = theirs(folder, ids)
    torch.testing.assert_close(OURS.from_pretrained(folder, dtype="float32")(ids).logits, expected, rtol=0, atol=1e-3)
    arbiter = torch.from_numpy(Reference.from_pretrained(folder).logits(ids[0].numpy()))
    torch.testing.assert_close(arbiter.float(), expected[0], rtol=0, atol=1e-3)


def test_an_index_from_another_time(folder, tmp_path):
    """Catches old shards that are read although a newer model.safetensors lies there."""
    tensors = load_file(folder / "model.safetensors")
    old = {name: tensor * 0 for name, tensor in tensors.items()}
    save_file(old, folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(old, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    ids = tokens(1, 7)
    expected = theirs(folder, ids)
    torch.testing.assert_close(OURS.from_pretrained(folder, dtype="float32")(ids).logits, expected, rtol=0, atol=1e-3)
    arbiter = torch.from_numpy(Reference.from_pretrained(folder).logits(ids[0].numpy()))
    torch.testing.assert_close(arbiter.float(), expected[0], rtol=0, atol=1e-3)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("dialect", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_yarn_asked_for_at_loading(folder, dialect, key):
    """Catches a folder of the other dialect that contradicts, and a base or width that gets lost on the way."""
    if dialect == "rope_parameters":
        fields = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
        change(folder, rope_scaling=None, rope_theta=None, partial_rotary_factor=None, rope_parameters=fields)
    else:
        change(folder, rope_theta=500.0, partial_rotary_factor=0.5)
    config = Qwen3NextConfig.from_pretrained(folder, **{key: YARN})
    assert (config.rope_scaling, config.rope_theta, config.partial_rotary_factor) == (YARN, 500.0, 0.5)
    config = Qwen3NextConfig.from_pretrained(folder, **{key: {**YARN, "rope_theta": 700.0}})
    assert (config.rope_scaling, config.rope_theta, config.partial_rotary_factor) == (YARN, 700.0, 0.5)


@pytest.mark.parametrize(
    "fields", [{"mscale": 0.7, "mscale_all_dim": 1.9}, {"mscale": 1.0}, {"rope_theta": 3.0, "beta_fast": 1.5}]
)
def test_yarns_fields(folder, fields):
    """Catches YaRN's two factors left out (1.139 instead of 0.963), and a ramp whose ends have changed places."""
    rope = {**YARN, "rope_theta": 10000.0, "partial_rotary_factor": 1.0, **fields}
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    change(folder, rope_scaling=scaling, rope_theta=rope["rope_theta"], partial_rotary_factor=1.0)
    ids = tokens(1, 60)
    ours = OURS.from_pretrained(folder, dtype="float32")
    change(folder, rope_scaling=None, rope_parameters=rope)
    torch.testing.assert_close(ours(ids).logits, theirs(folder, ids), rtol=0, atol=2e-3)
    frequencies, amplitude = ours.model.rope
    arbiter = Reference.from_pretrained(folder).config
    assert math.isclose(amplitude, arbiter.rope_scale, rel_tol=1e-12)
    torch.testing.assert_close(frequencies, torch.from_numpy(arbiter.inv_freq), rtol=1e-12, atol=0)


def test_a_token_that_only_the_config_has(tiny, tmp_path):
    """Catches a special token that is split, because it is only in added_tokens_decoder."""
    folder = shutil.copytree(tiny, tmp_path / "tiny", ignore=shutil.ignore_patterns("*.safetensors", "micro"))
    path = folder / "tokenizer_config.json"
    size = len(Qwen3NextTokenizer.from_pretrained(folder))
    entry = {"content": "<tool>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    fields = json.loads(path.read_bytes())
    path.write_text(json.dumps({**fields, "added_tokens_decoder": {str(size): {**entry, "single_word": False}}}))
    tokenizer = Qwen3NextTokenizer.from_pretrained(folder)
    assert tokenizer.encode("a<tool>b")[1] == size
    assert tokenizer.decode([size], skip_special_tokens=True) == ""
    path.write_text(json.dumps({**fields, "added_tokens_decoder": {"9999": entry}}))
    with pytest.raises(ValueError, match="is token 9999, but would become"):
        Qwen3NextTokenizer.from_pretrained(folder)


def test_autocast():
    """Catches two dtypes in one product, where autocast lowers only one of them."""
    model, ids = random_model(torch.float32), tokens(2, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert abs(loss.item() - model(ids, labels=ids).loss.item()) < 0.1


def test_the_backbone_obeys_the_config():
    """Catches output_router_logits of the config, which only the causal model looked at."""
    config = random_model(output_router_logits=True).config
    assert len(Qwen3NextModel(config)(tokens(1, 5)).router_logits) == config.num_hidden_layers
    assert Qwen3NextModel(config)(tokens(1, 5), output_router_logits=False).router_logits is None


def test_one_tokenizer_in_two_threads(tiny):
    """Catches padding kept as a setting of the tokenizer, which two threads change under each other."""
    tokenizer = Qwen3NextTokenizer.from_pretrained(tiny)
    texts = ["Once upon a time", "Hello", "a b c d e f g h"]
    wrong = []

    def work(side):
        expected = tokenizer(texts, padding=True, padding_side=side)
        plain = tokenizer(texts)
        for _ in range(200):
            wrong.extend([side] * (tokenizer(texts, padding=True, padding_side=side) != expected))
            wrong.extend(["plain"] * (tokenizer(texts) != plain))

    threads = [threading.Thread(target=work, args=(side,)) for side in ("left", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_a_chat_template(folder, capsys):
    """Catches a prompt that is continued raw without a word, where a user expects a chat."""
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_bytes())
    assert qwen3_next.main(["--model", str(folder), "--prompt", "Hi", "--max-new-tokens", "1", "--device", "cpu"]) == 0
    assert "no chat template" not in capsys.readouterr().err
    path.write_text(json.dumps({key: value for key, value in fields.items() if key != "chat_template"}))
    arguments = ["--model", str(folder), "--prompt", "Hi", "--max-new-tokens", "1", "--device", "cpu"]
    assert qwen3_next.main(arguments) == 0
    assert "no chat template: the text is continued as with --raw" in capsys.readouterr().err
    assert qwen3_next.main([*arguments, "--raw"]) == 0
    assert "no chat template" not in capsys.readouterr().err


def test_all_of_the_generation_config(capsys):
    """Catches a length, a token never to be said or an end token that is read by nobody, and ignored keys unnamed."""
    model, ids = random_model(), tokens(1, 5)
    options = {"eos_token_id": None}
    plain = model.generate(ids, max_new_tokens=6, **options)[0, 5:].tolist()
    model.generation_config = {"max_new_tokens": None, "max_length": 9}
    assert model.generate(ids, **options)[0, 5:].tolist() == plain[:4]
    model.generation_config = {"max_new_tokens": 6, "suppress_tokens": [plain[1], 10**6]}
    assert plain[1] not in model.generate(ids, **options)[0, 5:].tolist()
    model.generation_config = {"max_new_tokens": 6, "eos_token_id": [96]}
    model.config.eos_token_id = plain[2]
    assert model.generate(ids)[0, 5:].tolist() == plain[: plain.index(plain[2]) + 1]
    model.generation_config = {"max_new_tokens": 1, "num_beams": 1, "typical_p": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(ids)
    model.generation_config |= {"num_beams": 4, "typical_p": 0.5}
    with pytest.warns(UserWarning, match=r"generation_config.json: num_beams, typical_p not obeyed"):
        model.generate(ids)


def test_a_stop_string_alone(tiny):
    """Catches one stop string taken as a list of its letters."""
    model, tokenizer = OURS.from_pretrained(tiny, dtype="float32"), Qwen3NextTokenizer.from_pretrained(tiny)
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    options = {"tokenizer": tokenizer, "max_new_tokens": 40, "do_sample": False}
    texts = [tokenizer.decode(model.generate(ids, stop_strings=stop, **options)[0]) for stop in ("named", ["named"])]
    assert texts[0] == texts[1]
    assert "named" in texts[0]


def test_the_tokenizers_end_token_ends(folder):
    """Catches a chat that goes on with the user's next turn, because only the tokenizer names its end."""
    tokenizer = Qwen3NextTokenizer.from_pretrained(folder)
    (folder / "generation_config.json").unlink()
    parser = qwen3_next.argparse.ArgumentParser()
    qwen3_next.add_options(parser)
    _, model = qwen3_next.load(parser.parse_args(["--model", str(folder), "--device", "cpu"]))
    assert tokenizer.eos_token_id in qwen3_next.end_tokens(model, ...)[0]


@pytest.mark.parametrize(("batch", "drafts"), [(1, 0), (1, 3), (3, 0)])
def test_what_may_not_follow(batch, drafts, monkeypatch):
    """Catches a ban that drafts escape, an end that comes too early, and a bad word's last token banned everywhere."""
    model = random_model(mtp_num_hidden_layers=1)
    ids = tokens(batch, 6)
    options = {"max_new_tokens": 12, "num_draft_tokens": drafts}
    plain = model.generate(ids, eos_token_id=None, **options)
    row = plain[0, 6:].tolist()
    rules = {"bad_words_ids": [row[3:5]], "min_new_tokens": 9, "suppress_tokens": [row[2]], "eos_token_id": row[0]}
    then = model.generate(ids, **{**options, "num_draft_tokens": 0}, **rules)[0, 6:].tolist()
    rules["bad_words_ids"] += [then[3:5], [then[6]], then[5:8]]
    config = transformers.GenerationConfig(max_new_tokens=12, pad_token_id=0, **rules)
    processors = model_processors(config, ids)
    expected = ids
    for _ in range(12):
        scores = processors(expected, model(expected).logits[:, -1])
        expected = torch.cat([expected, scores.argmax(-1, keepdim=True)], dim=1)

    def right_ones(decoder, n):  # drafts that are all to be accepted
        at = decoder.penalties.ids.shape[1]
        right = expected[:, at : at + n]
        return right, torch.nn.functional.one_hot(right, 97).double()

    monkeypatch.setattr(qwen3_next.Decoder, "draft", right_ones)
    stats = {}
    found = model.generate(ids, stats=stats, **options, **rules)
    assert stats["accepted"] == stats["drafted"] or found.shape[1] < expected.shape[1]
    for ours, theirs in zip(found.tolist(), expected.tolist()):
        end = ours.index(row[0], 6) + 1 if row[0] in ours[6:] else len(ours)
        assert ours[:end] == theirs[:end]
    assert found[0, 6:].tolist() != row


def model_processors(config, ids):
    """transformers' own, for the rules of a generation config."""
    processors = transformers.LogitsProcessorList()
    processors.append(transformers.NoBadWordsLogitsProcessor(config.bad_words_ids, eos_token_id=config.eos_token_id))
    least = transformers.MinNewTokensLengthLogitsProcessor(ids.shape[1], config.min_new_tokens, config.eos_token_id)
    processors.append(least)
    processors.append(transformers.SuppressTokensLogitsProcessor(config.suppress_tokens))
    return processors


def test_the_presence_penalty():
    """Catches a penalty for what the prompt holds, or one that grows with each time a token is said."""
    model, ids = random_model(), tokens(1, 6)
    answer = model.generate(ids, max_new_tokens=8, eos_token_id=None, presence_penalty=1e6)[0, 6:].tolist()
    assert len(set(answer)) == 8
    logits = torch.zeros(1, 97)
    said = torch.tensor([[7, 8, 9, 9]])
    changed = Penalties(said[:, :2], None, [], presence_penalty=1.5)(said, logits)
    assert changed[0, 9] == -1.5 and changed.sum() == -1.5
