"""Trains small mixtures of experts with and without a balancing loss, and writes what they did to ../data/balance.json.

    python notebooks/experiments/balance.py                every run that the file does not have yet
    python notebooks/experiments/balance.py --seeds 0      of these seeds only

Four layers of width 64, 16 experts a layer, 2 of them per token, trained on tiny/'s corpus; one core, a minute or two a
run. "none" has no balancing loss; "pooled" has this project's, over the tokens of all layers together, times 0.05;
"layer" the same loss of each layer alone, averaged over the layers, times 0.05. Five seeds each: a seed decides the
weights and the text, so the three kinds start alike and read the same. Every 20 steps the file has the loss on held-out
text, without balancing, and the load there: of each layer and expert the share of choices times the number of experts.
"""

import argparse
import functools
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "tiny")]
import corpus  # noqa: E402
import results  # noqa: E402
from train import MICRO, learning_rate, quiet_start  # noqa: E402

from qwen3_next import Qwen3NextConfig, Qwen3NextForCausalLM, Qwen3NextTokenizer, load_balancing_loss  # noqa: E402

RESULT = HERE.parent / "data" / "balance.json"
CONFIG = MICRO | {  # micro's layers are written out, so that the stored runs are of this model whatever micro becomes
    "layer_types": ["full_attention"] + ["linear_attention"] * 3,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "mtp_num_hidden_layers": 0,
}
KINDS, SEEDS = ("none", "pooled", "layer"), range(5)
COEFFICIENT, RATE = 0.05, 3e-3
STEPS, EVERY, ROWS, LENGTH, HELD_OUT = 240, 20, 8, 128, 32  # a step has ROWS rows of LENGTH tokens


class Text:
    """Endless text as rows of token ids, made when asked for."""

    def __init__(self, seed: object, split: str = "train"):
        self.source, self.seed, self.ids, self.documents = corpus.Corpus(split), seed, [], 0
        self.encode = functools.cache(Qwen3NextTokenizer.from_pretrained(HERE.parents[1] / "tiny").encode)

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Rows first to last - 1: (last - first, LENGTH)."""
        while len(self.ids) < last * LENGTH:
            for unit in self.source.document(f"balance:{self.seed}:{self.documents}"):
                self.ids += self.encode(unit.marks) + self.encode(unit.word)
            self.documents += 1
        return torch.tensor(self.ids[first * LENGTH : last * LENGTH]).view(-1, LENGTH)


def make_model(seed: int) -> Qwen3NextForCausalLM:
    torch.manual_seed(seed)
    model = Qwen3NextForCausalLM(Qwen3NextConfig(**CONFIG))
    quiet_start(model)
    return model


def language_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token, nats."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def balancing_loss(kind: str, router_logits: tuple[torch.Tensor, ...], k: int) -> torch.Tensor | float:
    if kind == "none":
        return 0.0
    if kind == "pooled":
        return load_balancing_loss(router_logits, k)
    return sum(load_balancing_loss([logits], k) for logits in router_logits) / len(router_logits)


@torch.no_grad()
def measure(model: Qwen3NextForCausalLM, ids: torch.Tensor) -> dict:
    """The loss, and of each layer and expert the share of choices times the number of experts."""
    out, k, E = model(ids, output_router_logits=True), model.config.num_experts_per_tok, model.config.num_experts
    counts = [logits.topk(k).indices.flatten().bincount(minlength=E) for logits in out.router_logits]
    load = [[round(x, 2) for x in (E * c / c.sum()).tolist()] for c in counts]
    return {"loss": round(language_loss(out.logits, ids).item(), 4), "load": load}


def train(kind: str, seed: int, text: Text, held_out: torch.Tensor, stop: int = STEPS, show=None) -> list[dict]:
    """The first `stop` steps of a run of STEPS; what was measured every EVERY steps, and before the first."""
    model = make_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    history = [{"step": 0} | measure(model, held_out)]
    for step in range(stop):
        ids = text.rows(ROWS * step, ROWS * (step + 1))
        out = model(ids, output_router_logits=True)
        loss = language_loss(out.logits, ids)
        loss = loss + COEFFICIENT * balancing_loss(kind, out.router_logits, model.config.num_experts_per_tok)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, RATE, warmup=20)
        optimizer.step()
        if (step + 1) % EVERY == 0:
            history.append({"step": step + 1} | measure(model, held_out))
            if show:
                show(history[-1])
    return history


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = results.load(RESULT)
    held_out = Text("held out", "held out").rows(0, HELD_OUT)
    for seed in args.seeds:
        text = Text(seed)
        for kind in KINDS:
            if any((done["kind"], done["seed"]) == (kind, seed) for done in runs):
                continue

            def show(entry: dict, kind=kind, seed=seed):
                most = " ".join(f"{max(layer):.1f}" for layer in entry["load"])
                print(f"{kind} {seed} {entry['step']}: loss {entry['loss']:.3f}, most loaded {most}", flush=True)

            history = train(kind, seed, text, held_out, show=show)
            runs.append({"kind": kind, "seed": seed, "history": history})
            results.save(RESULT, runs)


if __name__ == "__main__":
    main()
