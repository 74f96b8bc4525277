"""What users of transformers look for on a model, its config, its outputs, a tokenizer: a base class each.

qwen3_next.py's classes inherit them where this file lies next to it. None of them changes what a model computes. What
transformers has and is not here is listed in docs/transformers.md, with what to use instead.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from qwen3_next_checkpoints import expect, settings_of

# ==== Config ==========================================================================================================


class ModelType(str):
    """A text that no dict of plain texts holds, for its hash is another. By model_type, PEFT looks up what it should do
    about transformers' experts, which are fused there; here each is a module of its own, and nothing has to be done.
    """

    def __hash__(self) -> int:
        return hash((ModelType, str(self)))


class Config:
    """A config that prints itself, can be compared, and is saved as config.json."""

    model_type = ModelType("qwen3_next")

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.to_dict() == other.to_dict()

    __hash__ = None  # it can be changed

    def __contains__(self, name: str) -> bool:
        return hasattr(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or the default where there is none."""
        return getattr(self, name, default)

    def to_json_string(self, without: tuple[str, ...] = ()) -> str:
        """The content of config.json, some fields left out."""
        content = {name: x for name, x in self.to_dict().items() if name not in without}
        return json.dumps(content, indent=2, sort_keys=True, default=str) + "\n"

    def save_pretrained(self, path: str | os.PathLike):
        """Writes config.json into a folder, which is made if need be.

        It leaves out the dtype, which a config read from another folder has from there: the weights decide.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        text = self.to_json_string(without=("dtype", "torch_dtype"))
        (folder / "config.json").write_text(text, encoding="utf-8")


# ==== Outputs =========================================================================================================


class Output:
    """A dataclass whose fields are also items, by name or by place, without those that are None.

    Order and choice are transformers': a model with a head does not list the hidden state that the head has read, nor
    question answering the pair of logits that it has taken apart. All fields can be read as attributes. It is no
    Mapping: accelerate makes those anew from their items, and would lose the other fields.
    """

    first = ("last_hidden_state", "loss", "aux_loss", "start_logits", "end_logits", "logits", "past_key_values")
    first += ("hidden_states", "router_logits")
    never = ("segments",)

    def keys(self) -> list[str]:
        """Names of the items."""
        hidden = set(self.never)
        if self.logits is not None:
            hidden.add("last_hidden_state")
        if self.start_logits is not None:
            hidden.add("logits")
        names = dict.fromkeys((*self.first, *(field.name for field in fields(self))))
        return [name for name in names if name not in hidden and getattr(self, name) is not None]

    def values(self) -> tuple:
        """The items."""
        return self.to_tuple()

    def items(self) -> list[tuple[str, Any]]:
        """Names and items."""
        return list(zip(self.keys(), self.to_tuple()))

    def get(self, name: str, default: Any = None) -> Any:
        """The item of that name, or the default."""
        return dict(self.items()).get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            name = "past_key_values" if key == "cache" else key
            if name not in self:
                raise KeyError(key)
            return getattr(self, name)
        return self.to_tuple()[key]

    @property
    def cache(self) -> Any:
        """past_key_values, as later versions of transformers call it."""
        return self.past_key_values

    def to_tuple(self) -> tuple:
        """What there is, in the order of `keys`."""
        return tuple(getattr(self, name) for name in self.keys())


# ==== Model ===========================================================================================================


SETTINGS = {"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty"}
SETTINGS |= {"max_new_tokens", "min_new_tokens", "max_length", "suppress_tokens", "bad_words_ids", "num_draft_tokens"}
SETTINGS |= {"bos_token_id", "eos_token_id", "pad_token_id"}


class Settings(dict):
    """generation_config.json's content, by key or as attributes; None for one of `generate`'s that is not set."""

    def __getattr__(self, name: str) -> Any:
        if name in self or name in SETTINGS:
            return self.get(name)
        raise AttributeError(f"generation_config has no {name}")

    def __setattr__(self, name: str, value: Any):
        self[name] = value


class Model:
    """The methods of transformers' models that other libraries call, and that people try first."""

    base_model_prefix = "model"
    main_input_name = "input_ids"
    is_gradient_checkpointing = False

    @property
    def generation_config(self) -> Settings:
        """What generate does by default; a GenerationConfig of transformers may be assigned."""
        return self.__dict__["generation_config"]

    @generation_config.setter
    def generation_config(self, given: Any):
        self.__dict__["generation_config"] = Settings(settings_of(given or {}))

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the model's weights are; one that is used twice counts once."""
        apart = self.get_input_embeddings().weight if exclude_embeddings else None
        counted = [p for p in self.parameters() if p is not apart and (p.requires_grad or not only_trainable)]
        return sum(p.numel() for p in counted)

    def get_memory_footprint(self) -> int:
        """Bytes of the weights, those in memory-mapped files included."""
        return sum(p.nbytes for p in self.parameters())

    def get_input_embeddings(self) -> nn.Embedding:
        """The module that turns token ids into vectors."""
        return next(module for name, module in self.named_modules() if name.endswith("embed_tokens"))

    def get_output_embeddings(self) -> nn.Module | None:
        """The module that turns vectors into logits of tokens; None for a model that has no such head."""
        return getattr(self, "lm_head", None)

    def can_generate(self) -> bool:
        return hasattr(self, "generate")

    def enable_input_require_grads(self):
        """Lets gradients reach the embeddings' output though the embeddings are frozen."""
        self.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict | None = None, every_n_layers: int = 1, offload: bool = False
    ):
        """In training, keeps only each layer's input, and computes the rest again in the backward pass.

        gradient_checkpointing_kwargs: torch.utils.checkpoint's; use_reentrant is False unless they say otherwise.
        Raises ValueError for transformers' offload; in a forward pass, for a cache, which would be written twice.
        """
        expect(not offload, "offload is True: here checkpointing recomputes, and moves nothing to the CPU")
        self.gradient_checkpointing_disable()
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        for i, layer in enumerate(self._layers()):
            if i % every_n_layers == 0:
                layer.forward = partial(recomputed, layer, layer.forward, options)
        self.is_gradient_checkpointing = True

    def gradient_checkpointing_disable(self):
        """Keeps all that the backward pass needs, as before."""
        for layer in self._layers():
            if getattr(layer.forward, "func", None) is recomputed:
                before = layer.forward.args[1]
                del layer.forward
                if layer.forward != before:  # another library's, such as accelerate's
                    layer.forward = before
        self.is_gradient_checkpointing = False

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None, **options: Any):
        """`gradient_checkpointing_enable`, as transformers calls it of late."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **options)

    def _layers(self) -> list[nn.Module]:
        """The decoder layers, MTP's included."""
        stacks = [getattr(module, "layers", None) for module in self.modules()]
        return [layer for stack in stacks if isinstance(stack, nn.ModuleList) for layer in stack]

    @property
    def prepare_inputs_for_generation(self) -> Any:
        """PEFT keeps it, and puts one of its own in its place: for prompts that it learns, and would not see used."""
        return lambda input_ids, **options: {"input_ids": input_ids, **options}

    @prepare_inputs_for_generation.setter
    def prepare_inputs_for_generation(self, function: Any):
        ours = getattr(function, "__module__", None) == __name__
        expect(ours, "generate does not call prepare_inputs_for_generation: a learned prompt would have no effect")


def recomputed(layer: nn.Module, forward: Callable, options: dict, x: Any, step: Any, cache: Any) -> Any:
    """A layer's forward, by torch.utils.checkpoint where a gradient is wanted of a layer in training."""
    if not (layer.training and torch.is_grad_enabled()):
        return forward(x, step, cache)
    expect(cache is None, "gradient checkpointing computes a layer twice: past_key_values and use_cache go without it")
    return checkpoint(forward, x, step, cache, **options)


# ==== Tokenizer =======================================================================================================


def special_token(name: str) -> property:
    """The attribute of one special token, such as eos_token: its text, or None. What is assigned is obeyed."""

    def read(self: Any) -> str | None:
        return self.special_tokens.get(name)

    def write(self: Any, token: str):
        number = self.backend.token_to_id(str(token))
        expect(number is not None, f"{name} {token!r:.99} is not in tokenizer.json")
        self.special_tokens[name] = str(token)
        if name in ("eos_token", "pad_token"):
            setattr(self, f"{name}_id", number)

    return property(read, write)


class Tokenizer:
    """The attributes and methods of transformers' tokenizers beyond encoding, decoding and the chat template."""

    is_fast = True
    truncation_side = "right"
    bos_token, eos_token = special_token("bos_token"), special_token("eos_token")
    pad_token, unk_token = special_token("pad_token"), special_token("unk_token")
    bos_token_id = property(lambda self: self.convert_tokens_to_ids(self.bos_token))
    unk_token_id = property(lambda self: self.convert_tokens_to_ids(self.unk_token))
    vocab_size = property(lambda self: self.backend.get_vocab_size(with_added_tokens=False))
    special_tokens_map = property(lambda self: dict(self.special_tokens))
    all_special_tokens = property(lambda self: self.convert_ids_to_tokens(self.all_special_ids))
    model_max_length = property(lambda self: int(self.fields.get("model_max_length") or 1e30))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids that `skip_special_tokens` skips."""
        return [number for number, token in self.backend.get_added_tokens_decoder().items() if token.special]

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        return self.backend.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """The tokens that are looked for in a text before it is split, and their ids."""
        return {token.content: number for number, token in self.backend.get_added_tokens_decoder().items()}

    def convert_tokens_to_ids(self, tokens: str | list[str] | None) -> int | None | list:
        """The id of a token, or of each of several; None, or the unknown token's, for what is not a token."""
        if isinstance(tokens, (list, tuple)):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        number = None if tokens is None else self.backend.token_to_id(tokens)
        unknown = self.special_tokens.get("unk_token")
        return self.backend.token_to_id(unknown) if number is None and tokens is not None and unknown else number

    def convert_ids_to_tokens(self, ids: int | list[int]) -> str | list[str]:
        """The token of an id, or of each of several, in the vocabulary's own spelling."""
        if isinstance(ids, int):
            return self.backend.id_to_token(ids)
        return [self.backend.id_to_token(int(number)) for number in ids]

    def tokenize(self, text: str) -> list[str]:
        """The text's tokens, in the vocabulary's own spelling, without those that are added around a text."""
        return self.backend.encode(text, add_special_tokens=False).tokens

    @property
    def padding_side(self) -> str:
        """Where a batch is padded, unless a call says otherwise: as tokenizer_config.json says, else on the right."""
        return self.fields.get("padding_side") or "right"

    @padding_side.setter
    def padding_side(self, side: str):
        expect(side in ("left", "right"), f"padding_side is {side!r:.99}, expected 'left' or 'right'")
        self.fields["padding_side"] = side

    def encode_all(
        self,
        texts: list[str],
        fields: dict[str, str],
        add_special_tokens: bool = True,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_attention_mask: bool | None = None,
        return_offsets_mapping: bool = False,
        return_special_tokens_mask: bool = False,
        return_token_type_ids: bool | None = None,
        return_length: bool = False,
        verbose: bool = True,
    ) -> list:
        """What a call of the tokenizer takes beyond tensors and padding: rows of the tokenizers library, one a text.

        Truncation keeps max_length tokens, by default model_max_length, from the side that truncation_side does not
        name, those that the tokenizer puts around a text included. `fields`, what to return and where a row has it, is
        changed. Raises ValueError for values that are not known.
        """
        expect(truncation in (True, False, None, "longest_first"), f"truncation is {truncation!r:.99}, expected a bool")
        expect(not return_token_type_ids, "return_token_type_ids: Qwen's models have no token types")
        expect(not return_length, "return_length: attention_mask.sum(-1) is the number of tokens")
        if return_attention_mask is False:
            del fields["attention_mask"]
        if return_offsets_mapping:
            fields["offset_mapping"] = "offsets"
        if return_special_tokens_mask:
            fields["special_tokens_mask"] = "special_tokens_mask"
        rows = self.backend.encode_batch(texts, add_special_tokens=add_special_tokens and not truncation)
        length = self.model_max_length if max_length is None else max_length
        return self._truncated(rows, length, add_special_tokens) if truncation else rows

    def _truncated(self, rows: list, length: int, add_special_tokens: bool) -> list:
        """Rows without special tokens, cut to a length that counts those which are then put around them."""
        around = self.backend.num_special_tokens_to_add(False) if add_special_tokens else 0
        expect(length >= around, f"max_length is {length}, but {around} tokens are put around a text")
        for row in rows:
            if len(row.ids) > length - around:
                row.truncate(length - around, direction=self.truncation_side)
        return [self.backend.post_process(row, None, add_special_tokens) for row in rows]

    def chat(
        self,
        messages: list,
        tools: Any,
        tokenize: bool,
        add_generation_prompt: bool | None,
        return_tensors: str | None = None,
        return_dict: bool = False,
        continue_final_message: bool | str = False,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        **variables: Any,
    ) -> Any:
        """What `apply_chat_template` takes beyond one text: the last four options are those of a call, with `tokenize`.

        Several conversations give a list. continue_final_message, True or the name of a message's field, ends the text
        inside the last message, for the model to go on with it.
        """
        asked = {"return_tensors": return_tensors, "return_dict": return_dict, "padding": padding}
        asked = [name for name, value in {**asked, "truncation": truncation}.items() if value]
        expect(tokenize or not asked, f"{' and '.join(asked)} need tokenize=True")
        variables |= {"tools": tools, "add_generation_prompt": add_generation_prompt}
        several = isinstance(messages[0], (list, tuple))
        texts = []
        for one in messages if several else [messages]:
            if continue_final_message:
                field = "content" if continue_final_message is True else continue_final_message
                texts.append(self._without_end(one, field, variables))
            else:
                texts.append(self.apply_chat_template(one, **variables))
        text = texts if several else texts[0]
        if not tokenize:
            return text
        lengths = {"truncation": truncation, "max_length": max_length}
        encoding = self(text, return_tensors, padding, add_special_tokens=False, **lengths)
        return encoding if return_dict else encoding.input_ids

    def _without_end(self, messages: list, field: str, variables: dict) -> str:
        """The conversation as the template writes it, up to the end of a field of the last message."""
        expect(not variables["add_generation_prompt"], "continue_final_message goes without add_generation_prompt")
        last = messages[-1].get(field)
        expect(isinstance(last, str), f"continue_final_message: the last message's {field} is {last!r:.99}, not a text")
        mark = "CONTINUED HERE "
        marked = [*messages[:-1], {**messages[-1], field: last + mark}]
        text = self.apply_chat_template(marked, **{**variables, "add_generation_prompt": False})
        found = text.rfind(mark.strip())
        right = found >= 0 and last.strip() in text
        expect(right, f"continue_final_message: the chat template does not write all of the last message's {field}")
        kept = text[:found]
        return kept if text[found:].startswith(mark) else kept.rstrip()  # the template may strip what it writes

    def pad(
        self,
        encoded: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        **options: Any,
    ) -> Any:
        """Encodings of one text each, or one of several, brought to one length: the collators of transformers call it.

        input_ids get pad_token_id, attention_mask, which is made where it lacks, and all else 0, on `padding_side`.
        Raises ValueError for other options than padding_side, return_attention_mask and verbose.
        """
        side = options.pop("padding_side", None) or self.padding_side
        masked = options.pop("return_attention_mask", True) is not False
        options.pop("verbose", None)
        expect(not options, f"pad does not have transformers' {', '.join(sorted(options))}")
        expect(return_tensors in (None, "pt"), f"return_tensors is {return_tensors!r}, expected 'pt' or None")
        if isinstance(encoded, (list, tuple)):
            encoded = {key: [row[key] for row in encoded] for key in encoded[0]}
        rows = {key: [list(map(int, row)) for row in value] for key, value in encoded.items()}
        ids = rows["input_ids"]
        if masked and "attention_mask" not in rows:
            rows["attention_mask"] = [[1] * len(row) for row in ids]
        length = max(map(len, ids), default=0)
        if padding == "max_length":
            expect(max_length is not None, "padding='max_length' needs max_length")
            length = max(length, max_length)
        if pad_to_multiple_of:
            length += -length % pad_to_multiple_of
        if padding not in (False, "do_not_pad"):
            for key, value in rows.items():
                fill = self.pad_token_id if key == "input_ids" else 0
                rows[key] = [with_pads(row, [fill] * (length - len(row)), side) for row in value]
        return {key: torch.tensor(value) for key, value in rows.items()} if return_tensors else rows

    def save_pretrained(self, path: str | os.PathLike) -> tuple[str, ...]:
        """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja into a folder, which is made if need be.
        Returns their paths.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in self.fields.items() if name != "chat_template"}
        kept |= {"padding_side": self.padding_side, **self.special_tokens}
        texts = {"tokenizer.json": self.backend.to_str(pretty=True)}
        texts["tokenizer_config.json"] = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
        if self.chat_template is not None:
            texts["chat_template.jinja"] = self.chat_template
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", newline="")
        return tuple(str(folder / name) for name in texts)


def with_pads(row: list, pads: list, side: str) -> list:
    """A row with pads on one side."""
    return [*pads, *row] if side == "left" else [*row, *pads]
