"""The options of transformers' `generate`, in terms of this project's: a GenerationConfig, several answers, scores."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qwen3_next_checkpoints import expect, settings_of

# What is translated here, and the values of transformers' other options that ask for nothing
OURS = {
    "inputs",
    "cache",
    "generation_config",
    "max_length",
    "min_length",
    "num_return_sequences",
    "return_dict_in_generate",
}
OURS |= {"output_scores", "logits_processor", "stopping_criteria"}
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p")
NOTHING: dict[str, tuple] = {"use_cache": (None, True), "num_beams": (None, 1), "num_beam_groups": (None, 1)}
NOTHING |= {"bos_token_id": ..., "decoder_start_token_id": ..., "renormalize_logits": (None, False)}
NOTHING |= dict.fromkeys(("output_logits", "output_hidden_states", "output_attentions", "synced_gpus"), (None, False))
NOTHING |= dict.fromkeys(("typical_p", "length_penalty", "encoder_repetition_penalty", "guidance_scale"), (None, 1.0))
NOTHING |= dict.fromkeys(("no_repeat_ngram_size", "epsilon_cutoff", "eta_cutoff", "diversity_penalty"), (None, 0, 0.0))
NOTHING |= dict.fromkeys(("forced_eos_token_id", "sequence_bias", "penalty_alpha", "assistant_model"), (None,))


class Generated(dict):
    """What return_dict_in_generate asks for: by key, as attributes, or by place, without what is None."""

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        return [value for value in self.values() if value is not None][key]

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)


def extend(plain: Callable, read_options: Callable) -> Callable:
    """`generate` that takes transformers' options, too: `plain` is the one that does not.

    generation_config, a GenerationConfig or dict, for what the call does not say itself; max_length and min_length,
    with the prompt; num_return_sequences answers to each prompt, which is read once if nothing is padded;
    logits_processor and stopping_criteria, functions of ids and logits or scores, one or several;
    return_dict_in_generate, and with it output_scores. Raises ValueError for a value of another option of transformers'
    that asks for something, and as `plain`.
    """

    @functools.wraps(plain)
    def generate(self: Any, *arguments: Any, **options: Any) -> Any:
        if len(arguments) > 1 and hasattr(arguments[1], "to_dict"):  # transformers' second argument
            options["generation_config"] = arguments[1]
            arguments = arguments[:1]
        if not options.keys() & (OURS | NOTHING.keys()):
            return plain(self, *arguments, **options)
        options |= inspect.signature(plain).bind_partial(self, *arguments).arguments
        options.pop("self")
        if "inputs" in options:
            expect("input_ids" not in options, "inputs and input_ids are the same: pass one of them")
            options["input_ids"] = options.pop("inputs")
        if "cache" in options:  # the new name
            options["past_key_values"] = options.pop("cache")
        return translated(self, plain, read_options, options)

    return generate


def translated(model: Any, plain: Callable, read_options: Callable, options: dict) -> Any:
    """Calls `plain` with what these options mean. Raises ValueError for one that asks for what is not done."""
    config = options.pop("generation_config", None)
    if config is not None:
        options = merged(config, options)
    for name, values in NOTHING.items():
        value = options.pop(name, None)
        right = values is ... or any(value is each or value == each for each in values)
        expect(right, f"{name} is {value!r:.99}, which generate does not do")
    ids = options.get("input_ids")
    length = ids.shape[-1] if isinstance(ids, Tensor) else 0  # `plain` refuses what is no tensor
    limit, least = options.pop("max_length", None), options.pop("min_length", None)
    if limit is not None and options.get("max_new_tokens") is None:
        options["max_new_tokens"] = max(limit - length, 0)
    if least and options.get("min_new_tokens") is None:
        options["min_new_tokens"] = max(least - length, 0)
    for name in ("logits_processor", "stopping_criteria"):
        given = options.get(name)
        if given is not None and not isinstance(given, (list, tuple)):
            options[name] = [given]
    whole, keep_scores = options.pop("return_dict_in_generate", None), options.pop("output_scores", None)
    several = options.pop("num_return_sequences", None) or 1
    chosen = {name: options[name] for name in SAMPLING if name in options}
    rule = read_options(model.generation_config, chosen, length)[0]
    expect(several == 1 or rule.do_sample, f"num_return_sequences is {several}: without sampling all would be the same")
    scores: list[Tensor] = []
    if whole and keep_scores:
        expect(not options.get("num_draft_tokens"), "output_scores goes without num_draft_tokens")
        processors = options.get("logits_processor") or []
        options["logits_processor"] = [*processors, functools.partial(note, scores, rule)]
    if several > 1:
        options = repeated(model, plain, options, several)
    if whole and options.get("past_key_values") is None and isinstance(ids, Tensor):
        options["past_key_values"] = model.make_cache(len(options["input_ids"]))
    sequences = plain(model, **options)
    if not whole:
        return sequences
    cache = options.get("past_key_values")
    return Generated(sequences=sequences, scores=tuple(scores) if keep_scores else None, past_key_values=cache)


def merged(config: Any, options: dict) -> dict:
    """The options of a call, and for what it does not say those of a GenerationConfig of transformers, or of a dict."""
    private = ("_from_model_config", "cache_implementation", "cache_config", "disable_compile")
    content = {name: value for name, value in settings_of(config).items() if name not in private}
    return {**content, **options}


def repeated(model: Any, plain: Callable, options: dict, several: int) -> dict:
    """Options in which each prompt is there several times. What all have in common is read now, once."""
    ids, mask, cache = options["input_ids"], options.get("attention_mask"), options.get("past_key_values")
    expect(cache is None, "num_return_sequences goes without past_key_values")
    rows = torch.arange(len(ids), device=ids.device).repeat_interleave(several)
    options = {**options, "input_ids": ids[rows]}
    if mask is not None:
        options["attention_mask"] = mask[rows]
    if ids.shape[1] > 1 and (mask is None or bool((mask > 0).all())):
        cache = model.make_cache(len(ids))
        plain(model, ids[:, :-1], max_new_tokens=0, past_key_values=cache)
        options["past_key_values"] = cache.select(rows)
    return options


def note(scores: list[Tensor], rule: Any, ids: Tensor, logits: Tensor) -> Tensor:
    """Keeps what a token is chosen by: logits, when sampling over the temperature and -inf where the chance is 0."""
    kept = logits
    if rule.do_sample:
        kept = (logits / rule.temperature).masked_fill(rule.probabilities(logits) == 0, -math.inf)
    scores.append(kept.clone())
    return logits
