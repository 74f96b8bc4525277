"""What is wrong with a checkpoint or a call, found before it is used: fields that can't be right together, tensors that
do not fit, links that lead away, options that would not be obeyed.

Without this file what is right is read all the same; what is wrong fails later, and says less about why.
"""

import json
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qwen3_next_checkpoints import expect

FILES = ("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json")
FILES += ("mtp.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")  # an index names more
NO_CHAT_OPTIONS = ("conversation", "tokenizer_kwargs", "return_assistant_tokens_mask", "processor_kwargs")
NO_CHAT_OPTIONS += ("sanitize_control_tokens",)
NOT_OBEYED = {"min_length", "no_repeat_ngram_size", "length_penalty", "typical_p", "penalty_alpha", "epsilon_cutoff"}
NOT_OBEYED |= {"eta_cutoff", "forced_eos_token_id", "sequence_bias", "guidance_scale", "encoder_no_repeat_ngram_size"}


def some(names: Iterable[str]) -> str:
    """The first ten names and a count, for messages."""
    names = sorted(names)
    return f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''} ({len(names)} in all)"


def check_links(folder: Path):
    """Raises ValueError for the first of a checkpoint's files that is none, see `check_link`."""
    for name in FILES:
        check_link(folder / name)


def check_link(path: Path):
    """Raises ValueError for a file of a checkpoint that is a folder, or a link to nowhere or to somewhere else."""
    if not path.is_file():
        expect(not os.path.lexists(path), f"{path}: not a file, or a link to nowhere")
        return
    home = path.parent.resolve()
    target = path.resolve()
    blobs = [up / "blobs" for up in home.parents[1:3] if home.parent.name == "snapshots"]  # where the hub's links lead
    inside = target.parent == home or any(map(target.is_relative_to, blobs))
    expect(inside, f"{path}: leads out of the folder, to {target}")


def check_kind(folder: Path):
    """Raises ValueError, saying what it is, for a folder of another kind: an adapter, GGUF, a part of a checkpoint,
    weights that another program has quantised or converted, a model of another family.
    """
    names = {path.name for path in folder.iterdir()}
    weights = [name for name in names if name.endswith(".safetensors") and not name.startswith("adapter_")]
    if "adapter_config.json" in names and not weights:
        otherwise(folder, "an adapter, such as LoRA's", "merge it into its base model with PEFT's merge_and_unload")
    if any(name.endswith(".gguf") for name in names) and not weights:
        otherwise(folder, "a GGUF file", "llama.cpp runs it; here safetensors are read")
    shards = [name for name in weights if re.fullmatch(r".+-\d{5}-of-\d{5}\.safetensors", name)]
    if shards and not names & {"model.safetensors", "model.safetensors.index.json"}:
        whole = f"{len(shards)} of {int(shards[0][-17:-12])} shards"
        otherwise(folder, f"{whole}, without model.safetensors.index.json", "download the whole repository")
    try:
        content = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):  # whoever reads it next says what is wrong
        return
    content = content if isinstance(content, dict) else {}
    if isinstance(content.get("quantization"), dict):
        otherwise(folder, "weights quantised by MLX (config.json has quantization)", "mlx-lm runs them")
    method = quantisation_of(content)
    if method != "fp8":
        expected = "bfloat16 or FP8 is read; llama.cpp, mlx-lm and vLLM run smaller numbers"
        otherwise(folder / "config.json", f"quantization_config's quant_method is {method!r:.99}", expected)
    kind = content.get("model_type", "qwen3_next")
    known = str(kind).startswith(("qwen3_next", "qwen3_5"))
    expect(known, f"{folder / 'config.json'}: model_type is {kind!r:.99}; qwen3_next and qwen3_5 are read")


def quantisation_of(config: dict) -> Any:
    """The method by which a config says that the weights were quantised; "fp8", which is read, if it does not say."""
    quantised = config.get("quantization_config") or {}
    return quantised.get("quant_method", "fp8") if isinstance(quantised, dict) else quantised


def otherwise(place: Path, found: str, instead: str):
    """Raises ValueError: what was found in a place, and what to do."""
    expect(False, f"{place}: {found}; {instead}")


def check_tokenizer_files(folder: Path):
    """Raises ValueError for a tokenizer in the form of before tokenizer.json."""
    names = {path.name for path in folder.iterdir()}
    old = "tokenizer.json" not in names and {"vocab.json", "merges.txt"} <= names
    how = "transformers' AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes it"
    expect(not old, f"{folder}: has vocab.json and merges.txt, but no tokenizer.json; {how}")


def check_cache(cache: Any, kind: type):
    """Raises ValueError for a cache of another kind, such as transformers' DynamicCache."""
    right = cache is None or isinstance(cache, kind)
    expect(right, f"past_key_values is a {type(cache).__name__}, expected model.make_cache's")


def check_ids(ids: Any, rows: int):
    """Raises ValueError for token ids that are not (batch, tokens), or not below `rows`, the vocabulary's size."""
    expect(hasattr(ids, "ndim"), f"input_ids is a {type(ids).__name__}, expected a tensor")
    right = ids.ndim == 2 and ids.numel() > 0
    expect(right, f"input_ids has shape {tuple(ids.shape)}, expected (batch, tokens), none empty")
    low, high = ids.min(), ids.max()
    expect(low >= 0 and high < rows, f"input_ids from {low} to {high}, expected 0 to vocab_size - 1 = {rows - 1}")


def check_outputs(output_attentions: Any, return_dict: Any):
    """Raises ValueError for what a forward pass can't return."""
    what = "the weights are never stored; verify/trace.py records queries and keys"
    expect(not output_attentions, f"output_attentions is {output_attentions!r:.99}: {what}")
    expect(return_dict in (None, True), f"return_dict is {return_dict!r:.99}: out.to_tuple() gives the tuple")


def check_texts(options: dict[str, Any]):
    """Raises ValueError for a prompt or a system message with bytes that are not UTF-8, which Python hides in it."""
    for name in ("prompt", "system"):
        text = options.get(name) or ""
        expect(not re.search("[\ud800-\udfff]", text), f"--{name}: not UTF-8 text")


def check_settings(settings: dict):
    """Warns, by name, of what a generation_config.json asks for and generate does not do."""
    usual = (None, False, 0, 1, 1.0)  # values that ask for nothing
    names = [name for name in settings if name in NOT_OBEYED | {"num_beams"} and settings[name] not in usual]
    if names:
        warnings.warn(f"generation_config.json: {', '.join(sorted(names))} not obeyed", stacklevel=5)


def check_weights(index: Path):
    """Raises FileNotFoundError for a folder with neither model.safetensors, which was looked for, nor its index."""
    if not index.is_file():
        others = some(file.name for kind in ("bin", "pt", "pth", "gguf") for file in index.parent.glob(f"*.{kind}"))
        what = f"neither model.safetensors nor its index; files that are not read: {others}"
        raise FileNotFoundError(f"{index.parent}: {what}")


def check_index(index: Path, content: dict):
    """Raises ValueError for a model.safetensors.index.json without a map from tensors to files, FileNotFoundError if it
    names a file that is not next to it.
    """
    shard_of = content.get("weight_map")
    right = isinstance(shard_of, dict) and shard_of and all(isinstance(name, str) for name in shard_of.values())
    expect(right, f"{index}: no weight_map from tensor names to files")
    for name in sorted(set(shard_of.values())):
        path = index.parent / name
        plain = name != "" and path.name == name
        if plain:
            check_link(path)
        if not plain or not path.is_file():
            raise FileNotFoundError(f"{index}: names {name!r}, which is not in the folder")


def check_shards(index: Path, content: dict, shards: dict[str, dict]):
    """Raises ValueError for a tensor that is in another file than its index says, or in none. shards: their tensors."""
    shard_of = content["weight_map"]
    for name, tensors in shards.items():
        stray = [key for key in tensors if shard_of.get(key) != name]
        expect(not stray, f"{index.parent / name}: holds what {index.name} does not place there: {some(stray)}")
    missing = shard_of.keys() - {key for tensors in shards.values() for key in tensors}
    expect(not missing, f"{index}: not in the files it names: {some(missing)}")


def check_names(source: Path, twice: set[str]):
    """Raises ValueError for tensors that another one took the name of, when the prefix was replaced."""
    expect(not twice, f"{source}: there twice, with and without their prefix: {some(twice)}")


def check_tensors(want: dict[str, tuple], found: dict[str, tuple], source: Path):
    """Raises ValueError listing which of a model's tensors, by name and shape, a checkpoint lacks or has otherwise."""
    wrong = [f"{name} {found[name]} instead of {size}" for name, size in want.items() if found.get(name, size) != size]
    problems = {"missing": want.keys() - found, "unexpected": found.keys() - want, "misshapen": wrong}
    listed = "; ".join(f"{kind}: {some(names)}" for kind, names in problems.items() if names)
    expect(not listed, f"{source}: the tensors do not fit config.json; {listed}")


def check_sizes(config: Any, tensors: dict[str, Any], source: Path):
    """Raises ValueError for layers and experts that so few tensors can't be, or for a width that no tensor has: what is
    made from the config alone would be as large.
    """
    moe = sum(map(config.is_moe, range(config.num_hidden_layers))) + config.mtp_num_hidden_layers
    few = config.num_hidden_layers + 3 * config.num_experts * moe
    found = len(tensors)
    expect(few <= found, f"{source}: {found} tensors, but config.json's layers and experts need {few}")
    largest = max((n for tensor in tensors.values() for n in tensor.shape), default=0)
    for key in ("vocab_size", "hidden_size", "head_dim"):
        size = getattr(config, key)
        what = f"{key} is {size}, but the largest tensor has {largest} rows or columns"
        expect(size <= largest, f"{source / 'config.json'}: {what}")


def check_fields(config: type, fields: dict):
    """Raises ValueError for the first field that has not the type or bounds of `config`'s annotations and defaults, or
    that rope_scaling and rope_parameters, which mean the same, say differently; and for weights quantised but to FP8.
    """
    method = quantisation_of(fields)
    expect(method == "fp8", f"quantization_config's quant_method is {method!r:.99}, expected 'fp8'")
    scaling = fields.get("rope_scaling") or {}
    nested = fields.get("rope_parameters") or {}
    right = type(scaling) is type(nested) is dict and (scaling == nested or {} in (scaling, nested))
    expect(right, f"config: rope_scaling and rope_parameters are {scaling} and {nested}, expected equal objects")
    nested = {**scaling, **nested}
    for key in ("rope_theta", "partial_rotary_factor"):
        value = nested.get(key)
        found = fields.get(key)
        right = value is None or found in (None, value)
        expect(right, f"config: {key} is {found!r:.99}, but rope_parameters has {value!r:.99}")
    for key, value in {**fields, **nested, "rope_scaling": nested}.items():
        kind = config.__annotations__.get(key)
        if kind is None:
            expect(not hasattr(config, key), f"config: {key} can't be a key")
        elif value is not None:
            kinds = (int, float) if kind is float else kind
            right = isinstance(value, kinds) and isinstance(value, bool) == (kind is bool)  # True is an int, too
            if right and kind in (int, float):  # refuses NaN, and sizes that would exhaust the memory
                right = 0 <= value < (1e4 if key == "num_hidden_layers" else 1e8 if kind is int else 1e18)
            expect(right, f"config: {key} is {value!r:.99}, expected {kind.__name__} in bounds")


def check_labels(number: Any):
    """Raises ValueError for a number of labels that no classifier can have."""
    right = isinstance(number, int) and 0 < number < 1e6
    expect(right, f"config: num_labels is {number!r:.99}, expected a number above 0")


def check_vocabulary(source: Any, tokens: int, rows: int):
    """Raises ValueError for a tokenizer with tokens that the embedding lacks."""
    expect(tokens <= rows, f"{source}: tokenizer.json has {tokens} tokens, the embedding {rows}")


def check_tokenizer(backend: Any, new: dict[int, dict], special: dict[str, Any], template: Any):
    """Raises ValueError for what is wrong in tokenizer_config.json: a chat template that is no text, special tokens
    that the tokenizer lacks, and new ones, by number, that it has given other numbers.
    """
    expect(template is None or isinstance(template, str), f"chat_template is {template!r:.99}, expected a text")
    for number, entry in new.items():
        found = backend.token_to_id(entry["content"])
        expect(found == number, f"{entry['content']!r} is token {number}, but would become {found}")
    for name, token in special.items():
        right = isinstance(token, str) and token.isprintable() and backend.token_to_id(token) is not None
        expect(right, f"{name} {token!r:.99} is not in tokenizer.json")


def check_padding(side: Any, padding: Any, options: dict):
    """Raises ValueError for a side that is none, and for a way to pad that is not known or lacks its length."""
    expect(side in ("left", "right"), f"padding_side is {side!r:.99}, expected 'left' or 'right'")
    known = padding is None or isinstance(padding, bool) or padding in ("longest", "max_length")
    expect(known, f"padding is {padding!r:.99}, expected True, False, 'longest' or 'max_length'")
    length = options.get("max_length", 0 if padding != "max_length" else None)
    right = length is None or (isinstance(length, int) and length >= 0)
    expect(right, f"max_length is {length!r:.99}, expected a number of tokens")
    expect(padding != "max_length" or length is not None, "padding='max_length' needs max_length")


def check_messages(messages: Any, tools: Any, options: dict, template: str | None):
    """Raises ValueError for anything but conversations, for an option of transformers' that is not obeyed, and for what
    transformers would bring into the template's form: tools that are functions, thoughts under another name.
    """
    several = isinstance(messages, (list, tuple)) and len(messages) > 0 and isinstance(messages[0], (list, tuple))
    for one in messages if several else [messages]:
        right = isinstance(one, (list, tuple)) and len(one) > 0 and all(isinstance(message, dict) for message in one)
        expect(right, f"messages is {one!r:.99}, expected one conversation, a list of {{'role': .., 'content': ..}}")
        empty = sorted({name for message in one for name, value in message.items() if value is None})
        what = "is None, which a template may write as a word: leave it out"
        expect(not empty, f"a message's {', '.join(map(str, empty))} {what}")
        read = str(options.get("chat_template") or template)
        for name in ("reasoning", "thinking"):
            used = any(message.get(name) and not message.get("reasoning_content") for message in one)
            lost = used and not re.search(rf"\b{name}\b", read) and "reasoning_content" in read
            expect(not lost, f"a message has {name!r}, which this chat template calls 'reasoning_content'")
    for name in NO_CHAT_OPTIONS:
        expect(not options.get(name), f"apply_chat_template does not have transformers' {name}")
    for tool in tools if isinstance(tools, (list, tuple)) else ():
        name = getattr(tool, "__name__", "")
        how = f"pass transformers.utils.get_json_schema({name}), its JSON schema"
        expect(not callable(tool), f"tools: {name} is a Python function; {how}")


def check_config(config: Any):
    """Raises ValueError for the first field that can't be right, or that a layer needs and does not find."""

    def check(name: str, right: bool, expected: str):
        expect(right, f"config: {name} is {getattr(config, name)!r:.99}, expected {expected}")

    def need(names: str):
        for name in names.split():
            check(name, (getattr(config, name) or 0) > 0, "a number above 0")

    need("vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim rms_norm_eps")
    need("rope_theta partial_rotary_factor max_position_embeddings full_attention_interval decoder_sparse_step")
    layers = range(config.num_hidden_layers)
    kinds = {"linear_attention", "full_attention"}
    named = len(config.layer_types) == len(layers) and all(kind in kinds for kind in map(str, config.layer_types))
    check("layer_types", named, f"{' or '.join(sorted(kinds))} for each of num_hidden_layers ({len(layers)})")
    if "linear_attention" in config.layer_types:
        need(" ".join(key for key in type(config).__annotations__ if key.startswith("linear_")))
        shared = config.linear_num_value_heads % config.linear_num_key_heads == 0
        check("linear_num_value_heads", shared, f"a multiple of linear_num_key_heads ({config.linear_num_key_heads})")
    shared = config.num_attention_heads % config.num_key_value_heads == 0
    check("num_attention_heads", shared, f"a multiple of num_key_value_heads ({config.num_key_value_heads})")
    check("num_experts", config.num_experts is not None, "a number (0: dense layers only)")
    check("mtp_num_hidden_layers", config.mtp_num_hidden_layers in (0, 1), "0 or 1")
    check("mlp_only_layers", all(i in layers for i in config.mlp_only_layers), f"layers from 0 to {len(layers) - 1}")
    moe = [config.is_moe(i) for i in layers] + [config.num_experts > 0] * config.mtp_num_hidden_layers
    if any(moe):
        need("num_experts_per_tok moe_intermediate_size shared_expert_intermediate_size")
        check(
            "num_experts_per_tok",
            config.num_experts_per_tok <= config.num_experts,
            f"at most num_experts ({config.num_experts})",
        )
    if not all(moe):
        need("intermediate_size")
    turned = int(config.head_dim * config.partial_rotary_factor)
    even = turned in range(2, config.head_dim + 1, 2)
    check("partial_rotary_factor", even, f"an even share of head_dim, not {turned}")
    if config.rope_scaling:
        names = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor")
        numbers = [config.rope_scaling[name] for name in names if config.rope_scaling.get(name) is not None]
        right = all(isinstance(n, (int, float)) and 0 < n < 1e8 for n in numbers)
        check("rope_scaling", right and config.rope_scaling.get("factor", 0) >= 1, "numbers above 0, factor at least 1")
        check("rope_theta", config.rope_theta > 1, "more than 1 for YaRN")
