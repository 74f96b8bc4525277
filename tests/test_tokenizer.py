"""Claim: text, chat template and token ids are those that transformers gives for the same files."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer

MESSAGES = [
    {"role": "system", "content": "You tell stories."},
    {"role": "user", "content": "Tell me a story about a fox."},
    {"role": "assistant", "content": "Once upon a time ..."},
    {"role": "user", "content": 'Caf\u00e9 \U0001f98a "quoted"\n\nAnd 123 more?'},
]


@pytest.fixture(scope="module")
def ours(tiny):
    return Qwen3NextTokenizer.from_pretrained(tiny)


@pytest.fixture(scope="module")
def theirs(tiny):
    return PreTrainedTokenizerFast.from_pretrained(tiny)


def test_ids_and_text(ours, theirs):
    """Catches a normaliser, a special token or a byte that is lost."""
    for text in [message["content"] for message in MESSAGES] + ["<|im_start|>user\nHi<|im_end|>", "", "  two  spaces "]:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text
        for skip in (False, True):
            assert ours.decode(ours.encode(text), skip) == theirs.decode(theirs.encode(text), skip_special_tokens=skip)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches(ours, theirs, side):
    """Catches pads on the wrong side or with the wrong id."""
    texts = ["one", "a somewhat longer text", ""]
    a = ours(texts, return_tensors="pt", padding=True, padding_side=side)
    b = theirs(texts, return_tensors="pt", padding=True, padding_side=side)
    assert torch.equal(a.input_ids, b.input_ids)
    assert torch.equal(a["attention_mask"], b["attention_mask"])
    assert ours(texts).input_ids == theirs(texts)["input_ids"]
    assert ours("one").input_ids == theirs("one")["input_ids"]


@pytest.mark.parametrize("prompt", [False, True])
def test_chat_template(ours, theirs, prompt):
    """Catches a template rendered with other white space, or a missing generation prompt."""
    a = ours.apply_chat_template(MESSAGES, add_generation_prompt=prompt)
    assert a == theirs.apply_chat_template(MESSAGES, add_generation_prompt=prompt, tokenize=False)
    assert ours.apply_chat_template(MESSAGES, add_generation_prompt=prompt, tokenize=True) == ours.encode(a)


def test_template_features(ours, tmp_path, tiny):
    """Catches a chat_template.jinja that is overlooked, and features that published templates use."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(
        "{%- for m in messages %}{% if m.role == 'skip' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}"
        "{{ tools | tojson }}{{ eos_token }}{{ enable_thinking }}"
        "{% if messages[0].role == 'bad' %}{{ raise_exception('no bad roles') }}{% endif %}"
    )
    tokenizer = Qwen3NextTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "a"}, {"role": "skip", "content": "b"}]
    text = tokenizer.apply_chat_template(messages, tools=[{"name": "\u00e9"}], enable_thinking=False)
    assert text == 'a[{"name": "\u00e9"}]<|im_end|>False'
    with pytest.raises(ValueError, match="no bad roles"):
        tokenizer.apply_chat_template([{"role": "bad", "content": "a"}])


FEATURES = [
    "{% for m in messages %}{% generation %}{% set x = m.content %}{{ x }}{% endgeneration %}{{ x }}\n{% endfor %}",
    "{% for m in messages %}\n  {%- generation -%}\n a {{ m.role }}\n  {%- endgeneration %}\n{% endfor %}",
    "{{ messages | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}",
    "{{ messages | tojson(indent=2, sort_keys=true) }}{{ {'b': 1, 'a': '\u00e9<'} | tojson }}",
]


@pytest.mark.parametrize("template", FEATURES)
def test_templates_are_read_as_by_transformers(ours, theirs, template):
    """Catches a template for training, whose generation tags mark the answers, and options of tojson."""
    expected = theirs.apply_chat_template(MESSAGES, chat_template=template, tokenize=False)
    assert ours.apply_chat_template(MESSAGES, chat_template=template) == expected


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
    ],
)
def test_templates_stay_in_the_sandbox(ours, attack):
    """Catches a checkpoint whose template runs code or changes what it is given."""
    tokenizer = Qwen3NextTokenizer(ours.backend, {}, attack)
    with pytest.raises(ValueError, match="chat template"):
        tokenizer.apply_chat_template(MESSAGES)


@pytest.mark.parametrize("by", ["('{}' | attr('format'))", "'{}'.format", "('{}' | attr('format_map'))"])
def test_format_stays_in_the_sandbox(ours, by):
    """Catches Jinja 3.1.5 and older, whose sandbox str.format leaves: the text would hold this file's globals."""
    attack = "{{ " + by.replace("{}", "{0.__globals__}") + "(raise_exception) }}"
    try:
        text = Qwen3NextTokenizer(ours.backend, {}, attack).apply_chat_template(MESSAGES)
    except ValueError as error:
        text = str(error)
    assert "__name__" not in text
    assert len(text) < 100


def test_the_published_usage_example(tiny):
    """Catches any difference from the model card's example beyond its import line."""
    AutoModelForCausalLM, AutoTokenizer, model_name = Qwen3NextForCausalLM, Qwen3NextTokenizer, tiny

    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype="auto", device_map="auto")
    messages = [{"role": "user", "content": "Tell me a story about a fox and a lantern."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    model_inputs = tokenizer([text], return_tensors="pt").to(model.device)
    generated_ids = model.generate(**model_inputs, max_new_tokens=60)
    output_ids = generated_ids[0][len(model_inputs.input_ids[0]) :].tolist()
    content = tokenizer.decode(output_ids, skip_special_tokens=True)
    assert len(content.split()) > 30


def test_bad_folders_are_refused(tmp_path, tiny):
    """Catches a message that does not say which file is at fault."""
    with pytest.raises(FileNotFoundError, match="tokenizer.json"):
        Qwen3NextTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="tokenizer.json: not a tokenizer"):
        Qwen3NextTokenizer.from_pretrained(tmp_path)
