"""Claim: outputs, configs, models and tokenizers answer to what users of transformers try first, and as it does there.

The expectations are transformers' own, for the same files and the same weights.
"""

import copy
import json
import pickle
import threading

import pytest
import torch
import transformers
from conftest import BASE, random_model, tokens
from torch import nn
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer

import qwen3_next as q
from qwen3_next import Qwen3NextConfig, Qwen3NextForCausalLM, Qwen3NextTokenizer

FIELDS = {"mtp_num_hidden_layers": 1, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model that both read, in float32."""
    path = tmp_path_factory.mktemp("model")
    random_model(torch.float32).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pair(folder):
    theirs = transformers.Qwen3NextForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Qwen3NextForCausalLM.from_pretrained(folder), theirs.eval()


@pytest.fixture
def ours(tiny):
    return Qwen3NextTokenizer.from_pretrained(tiny)


@pytest.fixture(scope="module")
def theirs(tiny):
    return PreTrainedTokenizerFast.from_pretrained(tiny)


# ==== Outputs =========================================================================================================


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("more", [{}, {"output_hidden_states": True, "output_router_logits": True}])
@torch.no_grad()
def test_outputs_have_their_items(pair, labels, more):
    """Catches an item in another place: out[0] that is the loss here and the logits there, or one too many."""
    ids = tokens(2, 9)
    given = {"labels": ids, "use_cache": True} if labels else {}
    a, b = (model(ids, return_dict=True, **given, **more) for model in pair)
    new = {"cache": "past_key_values"}  # as later versions of transformers call it
    assert list(a.keys()) == [new.get(name, name) for name in b.keys()]  # noqa: SIM118
    assert a.past_key_values is a["past_key_values"] is a["cache"] is a.cache
    assert len(a) == len(a.to_tuple()) == len(list(a)) == len(list(a.items()))
    for name in ("logits", "loss"):
        assert (name in a) == (name in b)
        assert (a.get(name) is None) == (b.get(name) is None)
    for place, name in enumerate(b.keys()):
        if name not in ("cache", "past_key_values", "hidden_states", "router_logits"):
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-3)
            assert a[place] is a[name] is getattr(a, name)
    assert a[:1][0] is a[0] and a[-1] is a.to_tuple()[-1]
    with pytest.raises(KeyError):
        a["attentions"]
    with pytest.raises(IndexError):
        a[len(a)]
    assert "segments" not in a
    assert a.segments is None


@torch.no_grad()
def test_outputs_of_other_models_have_their_items():
    """Catches a backbone whose first item is not its last state, and answers' starts and ends after the raw pair."""
    config = Qwen3NextConfig(**BASE)
    ids = tokens(1, 5)
    out = q.Qwen3NextModel(config).eval()(ids)
    assert list(out) == ["last_hidden_state", "past_key_values"]
    assert out[0].shape == (1, 5, BASE["hidden_size"])
    out = q.Qwen3NextForQuestionAnswering(config).eval()(ids)
    assert list(out) == ["start_logits", "end_logits"]
    out = q.Qwen3NextForSequenceClassification(config).eval()(ids, labels=torch.tensor([1]))
    assert list(out) == ["loss", "logits"]
    assert dict(**out) == dict(out.items()) == dict(zip(out.keys(), out.values()))
    assert pickle.loads(pickle.dumps(out))["loss"] == out.loss


def test_what_a_pass_can_not_return(pair):
    """Catches weights of attention that are asked for and silently not there, and a tuple that is none."""
    ids = tokens(1, 4)
    for model in (pair[0], pair[0].model, q.Qwen3NextForTokenClassification(Qwen3NextConfig(**BASE))):
        assert model(ids, output_attentions=False, return_dict=True).to_tuple()
        with pytest.raises(ValueError, match="output_attentions is True"):
            model(ids, output_attentions=True)
        with pytest.raises(ValueError, match=r"return_dict is False: out.to_tuple\(\)"):
            model(ids, return_dict=False)


def test_their_cache_is_refused(pair):
    """Catches transformers' empty cache, which is falsy, taken for none: it would stay empty."""
    ids = tokens(1, 4)
    for call in (pair[0], pair[0].model, pair[0].generate):
        with pytest.raises(ValueError, match="past_key_values is a DynamicCache"):
            call(ids, past_key_values=transformers.DynamicCache())


# ==== Config ==========================================================================================================


def test_config(tmp_path):
    """Catches a config that prints as an address, is unequal to itself read again, or saves what is not read."""
    config = Qwen3NextConfig(**BASE, **FIELDS)
    assert config.model_type == "qwen3_next" == config.to_dict()["model_type"]
    assert json.loads(config.to_json_string()) == config.to_dict()
    assert str(config).startswith("Qwen3NextConfig {") and '"hidden_size": 48' in repr(config)
    config.save_pretrained(tmp_path / "new")
    assert Qwen3NextConfig.from_pretrained(tmp_path / "new") == config
    assert transformers.AutoConfig.from_pretrained(tmp_path / "new").hidden_size == 48
    assert Qwen3NextConfig(**{**BASE, "hidden_size": 64}) != config
    assert (config.get("hidden_size"), config.get("none"), config.get("none", 3)) == (48, None, 3)
    assert copy.deepcopy(config) == config


def test_their_config_is_accepted(pair, folder):
    """Catches a config of transformers' class that fails for want of a method, or makes another model."""
    theirs = transformers.Qwen3NextConfig.from_pretrained(folder)
    model = Qwen3NextForCausalLM(theirs)
    assert isinstance(model.config, Qwen3NextConfig)
    assert model.config is model.model.config
    model.load_state_dict(pair[0].state_dict())
    ids = tokens(1, 6)
    torch.testing.assert_close(model.eval()(ids).logits, pair[0](ids).logits, rtol=0, atol=1e-4)
    theirs.num_labels = 5
    for kind in (q.Qwen3NextForSequenceClassification, q.Qwen3NextForTokenClassification):
        assert kind(theirs)(ids).logits.shape[-1] == 5


# ==== Model ===========================================================================================================


def test_counts_and_embeddings(pair):
    """Catches tied weights that count twice, and an accessor that finds another layer."""
    ours, theirs = pair
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.num_parameters(exclude_embeddings=True) == theirs.num_parameters(exclude_embeddings=True)
    tied = Qwen3NextForCausalLM(Qwen3NextConfig(**BASE, tie_word_embeddings=True))
    assert ours.num_parameters() - tied.num_parameters() == BASE["vocab_size"] * BASE["hidden_size"]
    assert tied.get_memory_footprint() == 4 * tied.num_parameters()
    tied.lm_head.weight.requires_grad_(False)
    assert tied.num_parameters(only_trainable=True) == tied.num_parameters(exclude_embeddings=True)
    assert ours.get_input_embeddings() is ours.model.embed_tokens
    assert ours.get_output_embeddings() is ours.lm_head
    head = q.Qwen3NextForQuestionAnswering(Qwen3NextConfig(**BASE))
    assert head.get_input_embeddings() is head.transformer.embed_tokens
    assert head.get_output_embeddings() is None
    assert ours.can_generate() and not head.can_generate()


def test_generation_config_is_theirs(pair):
    """Catches a setting that is assigned as an attribute, as there, and read by nobody."""
    model = copy.deepcopy(pair[0])
    model.generation_config.max_new_tokens = 3
    assert model.generate(tokens(1, 4)).shape == (1, 7)
    assert model.generation_config.top_k is None
    with pytest.raises(AttributeError, match="generation_config has no topk"):
        _ = model.generation_config.topk
    model.generation_config = transformers.GenerationConfig(max_new_tokens=2)
    assert model.generate(tokens(1, 4)).shape == (1, 6)
    with pytest.raises(ValueError, match="generation_config is a int"):
        model.generation_config = 5


def gradients(model: nn.Module, ids: torch.Tensor, **options) -> dict:
    model.zero_grad()
    model(ids, labels=ids, output_router_logits=True, **options).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def saved_bytes(model: nn.Module, ids: torch.Tensor) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(x.data_ptr(), x), lambda x: x):
        model(ids, labels=ids)
    return sum(x.nbytes for x in kept.values()) - sum(p.nbytes for p in model.parameters() if p.data_ptr() in kept)


@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_gradient_checkpointing(kwargs):
    """Catches gradients that change, dropout that is drawn anew, and a switch that saves nothing or can't be undone."""
    model = random_model(mtp_num_hidden_layers=1, attention_dropout=0.3).train()
    ids = tokens(2, 70)
    torch.manual_seed(0)
    plain, kept = gradients(model, ids, output_mtp_logits=True), saved_bytes(model, ids)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    model.enable_input_require_grads()
    assert model.is_gradient_checkpointing
    model.gradient_checkpointing_enable(kwargs)  # twice is once
    torch.manual_seed(0)
    again = gradients(model, ids, output_mtp_logits=True)
    assert plain.keys() == again.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(again[name], grad, rtol=0, atol=1e-12, msg=name)
    assert saved_bytes(model, ids) < 0.3 * kept
    with pytest.raises(ValueError, match="gradient checkpointing computes a layer twice"):
        model(ids, use_cache=True)
    model.eval()
    with torch.no_grad():
        assert model.generate(ids[:1, :5], max_new_tokens=2).shape == (1, 7)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    assert not any("forward" in vars(module) for module in model.modules())
    with pytest.raises(ValueError, match="offload"):
        model.activation_checkpointing_enable(offload=True)


# ==== Tokenizer =======================================================================================================


def test_special_tokens(ours, theirs):
    """Catches a token whose text is not its id's, and one that is assigned and not obeyed."""
    for name in ("eos_token", "pad_token", "eos_token_id", "pad_token_id", "bos_token", "bos_token_id", "unk_token"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.model_max_length == theirs.model_max_length == 4096
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    assert set(theirs.all_special_ids) <= set(ours.all_special_ids)
    assert ours.decode(ours.all_special_ids, skip_special_tokens=True) == ""
    ours.pad_token = ours.eos_token
    assert ours.pad_token_id == ours.eos_token_id == ours("a b", padding="max_length", max_length=9).input_ids[-1]
    with pytest.raises(ValueError, match=r"eos_token '<none>' is not in tokenizer.json"):
        ours.eos_token = "<none>"
    assert ours.eos_token == theirs.eos_token


def test_tokens_and_ids(ours, theirs):
    """Catches tokens in another spelling than the vocabulary's."""
    text = "Once upon a time, caf\u00e9"
    assert ours.tokenize(text) == theirs.tokenize(text)
    for token in ("<|im_end|>", ["<|im_end|>", "a"], "no such token"):
        assert ours.convert_tokens_to_ids(token) == theirs.convert_tokens_to_ids(token)
    for ids in (5, [5, 6, 7]):
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)


CALLS = [
    {},
    {"padding": True},
    {"padding": "longest", "padding_side": "left"},
    {"padding": "max_length", "max_length": 40},
    {"padding": True, "truncation": True, "max_length": 4},
    {"padding": True, "truncation": True, "max_length": 4, "return_offsets_mapping": True},
    {"add_special_tokens": False, "return_attention_mask": False},
    {"return_offsets_mapping": True, "return_special_tokens_mask": True, "padding": True},
]


@pytest.mark.parametrize("options", CALLS)
@pytest.mark.parametrize("tensors", [None, "pt"])
def test_calls(ours, theirs, options, tensors):
    """Catches an option that is taken and not obeyed."""
    texts = ["one", "a somewhat longer text, \U0001f98a", "<|im_start|>user\nHi<|im_end|>"]
    if tensors and not options.get("padding"):
        texts = texts[:1]
    a, b = (tokenizer(texts, return_tensors=tensors, **options) for tokenizer in (ours, theirs))
    b.pop("token_type_ids", None)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]) if tensors else a[name] == [*map(list, b[name])]
    assert ours.encode(texts[-1], add_special_tokens=False) == theirs.encode(texts[-1], add_special_tokens=False)


def test_padding_sides(ours, theirs, tiny):
    """Catches padding on the left, where transformers' users, and their labels, expect it on the right."""
    texts = ["one", "a somewhat longer text"]
    assert ours.padding_side == theirs.padding_side == "right"
    assert ours(texts, padding=True).input_ids == theirs(texts, padding=True).input_ids
    ours.padding_side = "left"
    assert ours(texts, padding=True).attention_mask[0][0] == 0
    with pytest.raises(ValueError, match="padding_side is 'middle'"):
        ours.padding_side = "middle"
    fields = json.loads((tiny / "tokenizer_config.json").read_bytes())
    said = Qwen3NextTokenizer(ours.backend, {**fields, "padding_side": "left"}, None)
    assert said(texts, padding=True).attention_mask[0][0] == 0
    assert said(texts, padding=True, padding_side="right").attention_mask[0][0] == 1


def test_tokens_around_a_text(ours):
    """Catches truncation that cuts off the end token that the tokenizer adds, and a flag that keeps it."""
    from tokenizers.processors import TemplateProcessing

    pieces = [("<|im_start|>", 2046), ("<|im_end|>", 2047)]
    ours.backend.post_processor = TemplateProcessing(single="<|im_start|> $A <|im_end|>", special_tokens=pieces)
    theirs = PreTrainedTokenizerFast(tokenizer_object=ours.backend)
    text = "a somewhat longer text"
    for options in ({}, {"add_special_tokens": False}, {"truncation": True, "max_length": 4}):
        expected = theirs(text, **options).input_ids
        theirs.backend_tokenizer.no_truncation()
        assert ours(text, **options).input_ids == expected
        assert ours.encode(text, **options) == expected
    with pytest.raises(ValueError, match="2 tokens are put around"):
        ours(text, truncation=True, max_length=1)
    chat = ours.apply_chat_template([{"role": "user", "content": "a"}])
    ids = ours.apply_chat_template([{"role": "user", "content": "a"}], tokenize=True, return_dict=True).input_ids
    assert ours.decode(ids) == chat


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"padding": "do_not_pad"}, "padding is 'do_not_pad'"),
        ({"padding": "max_length"}, "padding='max_length' needs max_length"),
        ({"truncation": "only_second", "max_length": 3}, "truncation is 'only_second'"),
        ({"truncation": True, "max_length": "a"}, "max_length is 'a'"),
        ({"return_token_type_ids": True}, "return_token_type_ids"),
        ({"is_split_into_words": True}, "is_split_into_words"),
        ({"return_tensors": "np"}, "return_tensors is 'np'"),
    ],
)
def test_calls_that_can_not_be_obeyed(ours, options, named):
    """Catches an option that is silently something else."""
    with pytest.raises(ValueError, match=named):
        ours(["a b"], **options)


def test_collators_can_pad(ours, theirs):
    """Catches a collator of transformers that needs a tokenizer of its own kind, and labels that count padding."""
    rows = [ours("one"), ours("a somewhat longer text")]
    for options in ({}, {"pad_to_multiple_of": 8}, {"padding": "max_length", "max_length": 20}):
        a, b = (kind.pad([dict(row) for row in rows], return_tensors="pt", **options) for kind in (ours, theirs))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    collate = transformers.DataCollatorForLanguageModeling(ours, mlm=False)
    batch = collate([{"input_ids": row.input_ids} for row in rows])
    assert (batch["labels"][0, 1:] == -100).all() and (batch["labels"][1] >= 0).all()
    with pytest.raises(ValueError, match="pad does not have transformers' stride"):
        ours.pad(rows, stride=3)


def test_a_saved_tokenizer(ours, theirs, tmp_path):
    """Catches a folder that lacks a token, a setting or the template, and one that only we can read."""
    ours.padding_side = "left"
    ours.pad_token = ours.eos_token
    files = ours.save_pretrained(tmp_path / "new")
    assert all(path.startswith(str(tmp_path)) for path in files)
    again = Qwen3NextTokenizer.from_pretrained(tmp_path / "new")
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    text = "Once upon a time, caf\u00e9 <|im_end|>"
    messages = [{"role": "user", "content": text}]
    for tokenizer in (again, read):
        assert tokenizer.encode(text) == theirs.encode(text)
        assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", ours.eos_token)
        expected = theirs.apply_chat_template(messages, tokenize=False)
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False) == expected


# ==== Chat template ===================================================================================================

TALK = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Once upon a time "}]


@pytest.mark.parametrize("options", [{"return_dict": True}, {"return_dict": True, "padding": True}, {}])
def test_batches_of_conversations(ours, theirs, options):
    """Catches a batch that is refused, rendered as one, or padded on the wrong side."""
    batch = [TALK[:1], [{"role": "user", "content": "A longer first message."}]]
    options = {"tokenize": True, "add_generation_prompt": True, "return_dict": False, **options}
    if options.get("padding"):
        options |= {"return_tensors": "pt"}
    else:
        options |= {"truncation": True, "max_length": 8}
    a, b = (tokenizer.apply_chat_template(batch, **options) for tokenizer in (ours, theirs))
    assert str(a) == str(dict(b) if options["return_dict"] else b)
    texts = [ours.apply_chat_template(one) for one in batch]
    assert ours.apply_chat_template(batch) == texts
    assert texts == theirs.apply_chat_template(batch, tokenize=False, add_generation_prompt=True)


TRIMMING = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize("template", [None, TRIMMING])
@pytest.mark.parametrize("said", ["Once upon a time ", '{"name": "', "  spaces  "])
def test_going_on_with_the_last_message(ours, theirs, template, said):
    """Catches an answer that is closed where the model should go on, or cut one character too early."""
    messages = [*TALK[:1], {"role": "assistant", "content": said}]
    options = {"continue_final_message": True, "tokenize": False, "chat_template": template}
    text = ours.apply_chat_template(messages, **options)
    assert text == theirs.apply_chat_template(messages, **options)
    assert text.rstrip().endswith(said.strip())
    with pytest.raises(ValueError, match="continue_final_message goes without add_generation_prompt"):
        ours.apply_chat_template(messages, continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(ValueError, match="does not write all of the last message's content"):
        ours.apply_chat_template(messages, continue_final_message=True, chat_template="{{ messages[0].content }}")


def test_the_prompt_for_an_answer(ours):
    """Catches a finished conversation, as for training, that ends in the beginning of one more answer."""
    prompt = "<|im_start|>assistant\n"
    assert ours.apply_chat_template(TALK[:1]).endswith(prompt)
    assert not ours.apply_chat_template(TALK).endswith(prompt)
    assert ours.apply_chat_template(TALK, add_generation_prompt=True).endswith(prompt)


def test_messages_as_other_programs_write_them(ours, theirs):
    """Catches None that is written out as a word, and thoughts that get lost because they have another name."""
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ m.reasoning_content }};{% endfor %}"
    with pytest.raises(ValueError, match="a message's content, tool_calls is None"):
        ours.apply_chat_template([*TALK, {"role": "user", "content": None, "tool_calls": None}])
    said = [{**message, "reasoning_content": "x"} for message in TALK]
    expected = theirs.apply_chat_template(said, chat_template=template, tokenize=False)
    assert ours.apply_chat_template(said, chat_template=template) == expected
    for name in ("reasoning", "thinking"):
        with pytest.raises(ValueError, match=f"{name!r}, which this chat template calls 'reasoning_content'"):
            ours.apply_chat_template([*TALK, {"role": "user", "content": "Hi", name: "x"}], chat_template=template)


def get_weather(city: str):
    """The weather.

    Args:
        city: where
    """


def test_tools_that_are_functions(ours, theirs):
    """Catches a function that a template writes as its address: its schema is what the template takes."""
    template = "{{ tools | tojson }}"
    with pytest.raises(ValueError, match=r"get_weather is a Python function; pass transformers.utils.get_json_schema"):
        ours.apply_chat_template(TALK, tools=[get_weather], chat_template=template)
    schema = transformers.utils.get_json_schema(get_weather)
    expected = theirs.apply_chat_template(TALK, tools=[get_weather], chat_template=template, tokenize=False)
    assert ours.apply_chat_template(TALK, tools=[schema], chat_template=template) == expected


# ==== Streamers =======================================================================================================


def test_an_iterator_of_text(tiny):
    """Catches a thread that never ends, and pieces that are not the text."""
    tokenizer, model = Qwen3NextTokenizer.from_pretrained(tiny), Qwen3NextForCausalLM.from_pretrained(tiny)
    inputs = tokenizer(["Once upon a time"], return_tensors="pt")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=100)
    options = {"max_new_tokens": 8, "do_sample": False}
    thread = threading.Thread(target=model.generate, kwargs={**inputs, **options, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(model.generate(**inputs, **options)[0, 4:], skip_special_tokens=True)
