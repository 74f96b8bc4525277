"""Feeds a qwen3_next model what `trace.Runner` does not: slots of a batch, packed rows, and single layers.

A step with "slots" is a batch whose rows sit in numbered slots. A row without a "before" begins a new sequence in its
slot, whatever was there. A slot that a step does not name is left out of the batch, and may come back later.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import torch

from verify.stages import Array, is_batch
from verify.trace import Runner, copied, recording


def join(caches: list):
    """Caches of one sequence each as the cache of a batch: sequences begin at slot 0, whatever their lengths."""
    lengths = torch.cat([cache.seq_len for cache in caches])
    columns = int(lengths.max())
    real = torch.arange(columns, device=lengths.device) < lengths[:, None]
    layers = [join_layers(parts) for parts in zip(*(cache.layers for cache in caches))]
    return replace(caches[0], layers=layers, seq_len=lengths, columns=columns, mask=real)


def join_layers(parts: tuple):
    """One layer's memories of several sequences as one: zeros where a sequence has nothing yet, or is shorter."""
    found = {}
    for name in [name for name, x in vars(parts[0]).items() if isinstance(x, torch.Tensor) or x is None]:
        tensors = [getattr(part, name) for part in parts]
        known = [x for x in tensors if x is not None]
        if not known:
            continue
        shape = [max(sizes) for sizes in zip(*(x.shape for x in known))]
        rows = []
        for x in tensors:
            row = known[0].new_zeros(shape)
            if x is not None:
                row[tuple(slice(size) for size in x.shape)] = x
            rows.append(row)
        found[name] = torch.cat(rows)
    return replace(parts[0], **found)


def split(cache) -> list:
    """The cache of a batch as one for each sequence."""
    return [take(cache, b) for b in range(len(cache.seq_len))]


def take(cache, b: int):
    """The memory of one sequence of a batch."""
    layers = []
    for layer in cache.layers:
        own = {name: x[b : b + 1].clone() for name, x in vars(layer).items() if isinstance(x, torch.Tensor)}
        layers.append(replace(layer, **own))
    length = cache.seq_len[b : b + 1]
    return replace(cache, layers=layers, seq_len=length.clone(), columns=int(length), mask=None)


def verify_drafts(module, p, q, drafts, uniforms, uniform_next) -> dict:
    """The model's test of drafts, with random numbers that are given in place of its own."""

    def draw(rule, p, generator):
        beyond = (p / p.sum(-1, keepdim=True)).cumsum(-1) > uniform_next[:, None]
        return beyond.int().argmax(-1)

    drawn = patch.object(torch, "rand", lambda *shape, **options: uniforms)
    with drawn, patch.object(module.Sampling, "draw", draw):
        accepted, token = module.Sampling(do_sample=True).verify(p, q, drafts.long(), None)
    return {"accepted": accepted, "token": token}


class Feeder(Runner):
    """`trace.Runner`, which also takes steps with "slots", "starts" (packed) or "layers"."""

    slots: list | None = None  # the caches of a batch's sequences, once a step has asked for slots

    def step(self, fed: dict, given: dict[str, Array] | None = None) -> dict:
        """Runs one step. given: values to begin with, of a step with "layers". Returns its values by key."""
        with torch.no_grad():
            if "op" in fed:
                return self.operate(fed["op"], fed["parameters"], given or {})
            if "layers" in fed:
                return self.read_layers(fed, given or {})
            if "starts" in fed:
                return self.read_packed(fed["tokens"], fed["starts"])
            if "slots" in fed:
                return self.read_slots(fed["tokens"], fed["before"], fed["slots"])
        if is_batch(fed["tokens"]):
            self.slots = None
        return super().step(fed)

    def operate(self, name: str, parameters: dict, given: dict[str, Array]) -> dict:
        """One operation by the model's own functions; the random numbers of "verify" are those that are given."""
        module = sys.modules[type(self.model).__module__]
        x = {key: torch.tensor(value) for key, value in given.items()}
        x = {key: value.to(self.model.dtype) if value.is_floating_point() else value for key, value in x.items()}
        if name in ("norm", "gated_norm"):
            kind = module.RMSNorm if name == "norm" else module.GatedRMSNorm
            norm = kind(x["w"].shape[0], parameters["eps"])
            norm.weight.copy_(x.pop("w"))
            return {"out": norm(*x.values())}
        if name == "l2_norm":
            return {"out": module.l2_normalise(x["x"])}
        if name == "rope":
            fields = {**self.model.config.to_dict(), **parameters}
            positions = fields.pop("positions")
            inv_freq, amplitude = module.rope_frequencies(module.Qwen3NextConfig(**fields))
            angle = torch.tensor(positions)[:, None, None] * inv_freq.float()
            return {"out": module.apply_rope(x["x"], angle.cos() * amplitude, angle.sin() * amplitude)}
        if name == "conv":
            channels, _, taps = x["weight"].shape
            conv = module.CausalConv(channels, channels, taps, groups=channels, bias=False)
            conv.weight.copy_(x["weight"])
            out, window = conv(x["x"][None], x["window"].T[None])
            return {"out": torch.nn.functional.silu(out)[0], "window_out": window[0].T}
        if name == "router":
            p = x["logits"].softmax(-1)
            weights, ids = p.topk(parameters["k"], dim=-1)
            weights = weights / weights.sum(-1, keepdim=True) if parameters["normalise"] else weights
            return {"mlp.router_probs": p, "mlp.topk_ids": ids, "mlp.topk_weights": weights}
        if name == "delta_rule":
            q, k, v, g, beta, state = (x[key][None] for key in ("q", "k", "v", "g", "beta", "state"))
            out, state = module.chunk_gated_delta_rule(q, k, v, g=g, beta=beta, state=state)
            return {"out": out[0], "state_out": state[0]}
        return verify_drafts(module, **x)

    def read_slots(self, rows: list[list[int]], before: list[list[int]], slots: list[int]) -> dict:
        """One pass over the new tokens of the sequences in some slots."""
        if self.slots is None:
            self.slots = split(self.cache)
        for slot, past in zip(slots, before):
            if not past:
                self.slots[slot] = self.model.make_cache(1)
        self.cache = join([self.slots[slot] for slot in slots])
        longest = max(map(len, rows))
        device = self.model.device
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        _, trace = self.forward(ids, mask)
        for slot, cache in zip(slots, split(self.cache)):
            self.slots[slot] = cache
        return trace

    def read_packed(self, tokens: list[int], starts: list[int]) -> dict:
        """One pass over several sequences in one row, and MTP's over the same."""
        ends = [*starts[1:], len(tokens)]
        numbers = [n + 1 for n, (start, end) in enumerate(zip(starts, ends)) for _ in range(start, end)]
        ids = torch.tensor([tokens], device=self.model.device)
        mask = torch.tensor([numbers], device=self.model.device)
        with recording(self.model, self.keys, missing_ok=True) as trace:
            self.model(ids, mask, output_mtp_logits=self.model.mtp is not None)
        self.lines |= trace.lines
        return dict(trace)

    def read_layers(self, fed: dict, given: dict[str, Array]) -> dict:
        """Layers A to B - 1 alone, from the embeddings or from the output of layer A - 1."""
        first, end = fed["layers"]
        before = f"model.layers.{first - 1}.out"
        with recording(self.model, self.keys, missing_ok=True) as trace:
            if first:
                x = torch.tensor(given[before], dtype=self.model.dtype, device=self.model.device)[None]
            else:
                x = self.model.model.embed_tokens(torch.tensor([fed["tokens"]], device=self.model.device))
            layers = SimpleNamespace(layers=self.model.model.layers[first:end], norm=torch.nn.Identity())
            self.model.model.run(x, layers, None, None, None)
        self.lines |= trace.lines
        return {before: copied(x), **trace} if first else dict(trace)
