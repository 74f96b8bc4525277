"""What changes the logits before a token is chosen from them: penalties for what was said, and forbidden tokens.

As transformers' processors do, a `Penalties` takes the ids so far and the logits of what follows them, `after_drafts`
also those of several positions at once.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3_next_checkpoints import expect


@dataclass
class Penalties:
    """Its options are those of `generate`, which has looked at the numbers. Raises ValueError, naming the option, for a
    value that can't be right.
    """

    prompt: Tensor  # (B, T) int64, what the answer follows
    mask: Tensor | None  # (B, T), 0 at padding
    eos: list[int]  # the end tokens
    repetition_penalty: float = 1.0  # divides positive logits of what was said, in prompt or answer; multiplies others
    presence_penalty: float = 0.0  # taken from the logits of what the answer holds already
    min_new_tokens: int = 0  # no end before
    suppress_tokens: list | None = None  # ids that are never chosen
    bad_words_ids: list | None = None  # sequences of ids that are never completed
    logits_processor: list | None = None  # functions of ids and logits, as transformers', called in turn at the end

    def __post_init__(self):
        expect(self.repetition_penalty > 1e-9, f"repetition_penalty is {self.repetition_penalty}, expected above 1e-9")
        never = self.suppress_tokens or []
        right = isinstance(never, list) and all(map(is_token, never))
        expect(right, f"suppress_tokens is {never!r:.99}, expected a list of tokens' numbers")
        words = self.bad_words_ids or []
        right = isinstance(words, list) and all(isinstance(w, list) and w and all(map(is_token, w)) for w in words)
        expect(right, f"bad_words_ids is {words!r:.99}, expected lists of tokens' numbers")
        self.suppress_tokens, self.bad_words_ids = never, words
        self.logits_processor = list(self.logits_processor or [])
        right = all(map(callable, self.logits_processor))
        expect(right, f"logits_processor is {self.logits_processor!r:.99}, expected functions of ids and logits")
        real = torch.ones_like(self.prompt) if self.mask is None else self.mask.int()
        expect(real.shape == self.prompt.shape, f"attention_mask has shape {tuple(real.shape)}, unlike input_ids")
        order = real.argsort(dim=1, stable=True)  # padding first: the answer follows the prompt's last token
        self.ids = self.prompt.gather(1, order)  # (B, T or more), all so far
        self.seen: Tensor | None = None  # (B, vocab) bool, the prompt's tokens, once the vocabulary is known

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """New logits (B, vocab), float32 or float64, of what follows ids (B, T or more), prompt and answer."""
        start = self.prompt.shape[1]
        if self.seen is None:  # counted, since a pad may be a token that also occurs
            real = torch.ones_like(self.prompt) if self.mask is None else self.mask.long()
            self.seen = torch.zeros_like(logits, dtype=torch.long).scatter_add(1, self.prompt.long(), real) > 0
        said = torch.zeros_like(self.seen).scatter(1, ids[:, start:], True)
        penalised = torch.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
        logits = torch.where(self.seen | said, penalised, logits) - self.presence_penalty * said.to(logits)
        early = self.eos if ids.shape[1] - start < self.min_new_tokens else []
        for *before, last in [[token] for token in (*self.suppress_tokens, *early)] + self.bad_words_ids:
            tail = ids[:, max(ids.shape[1] - len(before), 0) :].tolist()
            rows = [row for row, found in enumerate(tail) if found == before]
            if last < logits.shape[1]:
                logits[rows, last] = -math.inf
        for change in self.logits_processor:
            logits = change(ids, logits)
        return logits

    def add(self, tokens: Tensor):
        """Goes on after these tokens (B, m) of the answer."""
        self.ids = torch.cat([self.ids, tokens], dim=1)

    def after_drafts(self, drafts: Tensor, logits: Tensor) -> Tensor:
        """The same for logits (B, m, vocab), the last of which are of what follows all so far and all drafts (B, n),
        those before it of what follows one draft less each.
        """
        first = drafts.shape[1] + 1 - logits.shape[1]
        rows = enumerate(logits.unbind(1), first)
        return torch.stack([self(torch.cat([self.ids, drafts[:, :n]], dim=1), row) for n, row in rows], dim=1)


def is_token(number: object) -> bool:
    """Whether this can be a token's number."""
    return isinstance(number, int) and 0 <= number < 2**31
