"""What changes the logits before a token is chosen from them: penalties for what was said, and forbidden tokens.

As transformers' processors do, a `Penalties` takes the ids so far and the logits of what follows them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def expect(right: bool, otherwise: str):
    """Raises ValueError with the message unless `right`."""
    if not right:
        raise ValueError(otherwise)


@dataclass
class Penalties:
    """Its options are those of `generate`. Raises ValueError, naming the option, for a value that can't be right."""

    prompt: Tensor  # (B, T) int64, what the answer follows
    mask: Tensor | None  # (B, T), 0 at padding
    eos: list[int]  # the end tokens
    repetition_penalty: float = 1.0  # divides positive logits of what was said, in prompt or answer; multiplies others
    presence_penalty: float = 0.0  # taken from the logits of what the answer holds already
    min_new_tokens: int = 0  # no end before
    suppress_tokens: list | None = None  # ids that are never chosen
    bad_words_ids: list | None = None  # sequences of ids that are never completed

    def __post_init__(self):
        limits = {"repetition_penalty": 1e9, "presence_penalty": 1e9, "min_new_tokens": 10**9}
        for name, high in limits.items():
            value = getattr(self, name)
            right = isinstance(value, (int, type(high))) and not isinstance(value, bool) and 0 <= value <= high
            expect(right, f"{name} is {value!r:.99}, expected a number ({type(high).__name__}) from 0 to {high:.0f}")
        expect(self.repetition_penalty > 1e-9, f"repetition_penalty is {self.repetition_penalty}, expected above 1e-9")
        never = self.suppress_tokens or []
        right = isinstance(never, list) and all(map(is_token, never))
        expect(right, f"suppress_tokens is {never!r:.99}, expected a list of tokens' numbers")
        words = self.bad_words_ids or []
        right = isinstance(words, list) and all(isinstance(w, list) and w and all(map(is_token, w)) for w in words)
        expect(right, f"bad_words_ids is {words!r:.99}, expected lists of tokens' numbers")
        self.suppress_tokens, self.bad_words_ids = never, words

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """New logits (B, vocab), float32 or float64, of what follows ids (B, T or more), prompt and answer."""
        start = self.prompt.shape[1]
        real = torch.ones_like(self.prompt) if self.mask is None else self.mask.long()
        counts = torch.zeros_like(logits, dtype=torch.long)  # counted, since a pad may be a token that also occurs
        seen = counts.scatter_add(1, self.prompt.long(), real) > 0
        said = torch.zeros_like(seen).scatter(1, ids[:, start:], True)
        penalised = torch.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
        logits = torch.where(seen | said, penalised, logits) - self.presence_penalty * said.to(logits)
        early = self.eos if ids.shape[1] - start < self.min_new_tokens else []
        for *before, last in [[token] for token in (*self.suppress_tokens, *early)] + self.bad_words_ids:
            tail = ids[:, max(ids.shape[1] - len(before), 0) :].tolist()
            rows = [row for row, found in enumerate(tail) if found == before]
            if last < logits.shape[1]:
                logits[rows, last] = -math.inf
        return logits


def is_token(number: object) -> bool:
    """Whether this can be a token's number."""
    return isinstance(number, int) and 0 <= number < 2**31
