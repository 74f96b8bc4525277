"""Trains small matched models on multi-query associative recall, and writes what they learned to ../data/recall.json.

    python notebooks/experiments/recall.py                 every run that the file does not have yet
    python notebooks/experiments/recall.py --only LLLL     of these kinds only

A text is n pairs of a key and a value, keys distinct, then up to 64 of the keys again, in another order; the model is
to name each one's value where the key stands again (Zoology, arXiv 2312.04927). Three kinds of model, alike but for
their layers: LLLF as in Qwen3-Next (L: Gated DeltaNet, F: gated attention), LLLL, FFFF. Each is trained from five seeds
with the learning rate that did best for its kind in shorter runs ("tune"), then tested with 4 to 256 pairs. "start"
runs, of three seeds, show what the decay's initialisation does: dt_bias = 1, as transformers starts it, against the
original code's.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from multiprocessing import Pool
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "tiny")]
import results  # noqa: E402
from train import make_optimizers, quiet_start  # noqa: E402

from qwen3_next import Qwen3NextConfig, Qwen3NextForCausalLM  # noqa: E402

RESULT = HERE.parent / "data" / "recall.json"
KEYS, VALUES, QUERIES = 320, 64, 64
PAIRS = [4, 8, 16, 32, 64, 128, 256]
TOKENS = 1024  # a step: small, because what takes long is not the data but the steps to leave a plateau
LAYERS = {"L": "linear_attention", "F": "full_attention"}
KINDS = ("LLLF", "LLLL", "FFFF")
RATES = (1e-3, 2e-3, 5e-3, 1e-2)
STEPS, TUNE, START = 2400, 1200, 500
SEEDS = range(5)


def make_model(kind: str, seed: int, dt_bias: str = "original") -> Qwen3NextForCausalLM:
    """A new model: `kind` a letter for each layer; dt_bias "original" or "ones"."""
    torch.manual_seed(seed)
    config = Qwen3NextConfig(
        vocab_size=KEYS + VALUES,
        hidden_size=128,
        num_hidden_layers=len(kind),
        layer_types=[LAYERS[letter] for letter in kind],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rope_theta=10000.0,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=32,
        num_experts=0,
        intermediate_size=128,
    )
    model = Qwen3NextForCausalLM(config)
    quiet_start(model)
    if dt_bias == "ones":
        for name, p in model.named_parameters():
            if name.endswith("dt_bias"):
                nn.init.ones_(p)
    return model


def batch(n: int, rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts with n pairs: ids (rows, 2n + queries), and the values asked for (rows, queries)."""
    keys = torch.rand(rows, KEYS, generator=generator).argsort(dim=1)[:, :n]
    values = torch.randint(KEYS, KEYS + VALUES, (rows, n), generator=generator)
    asked = torch.rand(rows, n, generator=generator).argsort(dim=1)[:, :QUERIES]
    pairs = torch.stack([keys, values], dim=2).flatten(1)
    return torch.cat([pairs, keys.gather(1, asked)], dim=1), values.gather(1, asked)


def answers(model: Qwen3NextForCausalLM, ids: torch.Tensor, queries: int) -> torch.Tensor:
    """Logits of the values where keys are asked for, (rows, queries, VALUES)."""
    hidden = model.model(ids).last_hidden_state[:, -queries:]
    return F.linear(hidden, model.lm_head.weight[KEYS:])


@torch.no_grad()
def accuracy(model: Qwen3NextForCausalLM, n: int, queries: int = 1024) -> float:
    """The share of values named right among n pairs, in texts that depend on n alone."""
    generator, asked = torch.Generator().manual_seed(n), min(n, QUERIES)
    ids, targets = batch(n, queries // asked, generator)
    return (answers(model, ids, asked).argmax(-1) + KEYS == targets).float().mean().item()


def train(
    model: Qwen3NextForCausalLM, seed: int, rate: float, steps: int, most: int = 256, every: int = 100, show=None
) -> list[dict]:
    """Trains on texts of 4 to `most` pairs, few first; the accuracies every so many steps."""
    chance, generator, history = random.Random(seed), torch.Generator().manual_seed(seed), []
    optimizers = make_optimizers(model, rate)
    for step in range(steps):
        done = step / steps
        # The largest number of pairs grows to `most` in the first half; sizes are log-uniform below it
        n = round(math.exp(chance.uniform(math.log(2), math.log(min(most, 8 * 2 ** (done * 2 * math.log2(most / 8)))))))
        asked = min(n, QUERIES)
        ids, targets = batch(n, max(TOKENS // (2 * n + asked), 1), generator)
        loss = F.cross_entropy(answers(model, ids, asked).flatten(0, 1), (targets - KEYS).flatten())
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * min((step + 1) / 50, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            optimizer.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            entry = {"step": step + 1, "accuracy": {n: accuracy(model, n, 256) for n in PAIRS if n <= most}}
            history.append(entry)
            if show:
                show(entry)
    return history


def run(job: dict) -> dict:
    """One run, by its settings: what was learned."""
    torch.set_num_threads(1)
    started, model = time.perf_counter(), make_model(job["kind"], job["seed"], job["dt_bias"])

    def show(entry: dict):
        at = " ".join(f"{n}:{share:.0%}" for n, share in entry["accuracy"].items())
        print(f"{job['what']} {job['kind']} {job['seed']} {job['rate']:g} {entry['step']}: {at}", flush=True)

    history = train(model, job["seed"], job["rate"], job["steps"], job["most"], job["every"], show)
    final = {n: accuracy(model, n) for n in PAIRS if n <= job["most"]}
    minutes = (time.perf_counter() - started) / 60
    return job | {"history": history, "accuracy": final, "minutes": round(minutes, 1)}


def same(job: dict, done: dict) -> bool:
    return all(done.get(key) == value for key, value in job.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    runs = results.load(RESULT)

    def do(jobs: list[dict]):
        todo = [job for job in jobs if not any(same(job, done) for done in runs)]
        with Pool(args.processes, maxtasksperchild=1) as pool:
            for done in pool.imap_unordered(run, todo):
                runs.append(json.loads(json.dumps(done)))
                results.save(RESULT, runs)

    base = {"what": "tune", "seed": 100, "dt_bias": "original", "steps": TUNE, "most": 64, "every": 200}
    do([base | {"kind": kind, "rate": rate} for kind in args.only for rate in RATES])
    best = {}
    for kind in args.only:
        tuned = [done for done in runs if done["what"] == "tune" and done["kind"] == kind]
        best[kind] = max(tuned, key=lambda done: sum(done["accuracy"].values()))["rate"]
    base = {"what": "recall", "dt_bias": "original", "steps": STEPS, "most": 256, "every": 250}
    do([base | {"kind": kind, "seed": seed, "rate": best[kind]} for seed in SEEDS for kind in args.only])
    if "LLLL" in args.only:
        base = {"what": "start", "kind": "LLLL", "rate": best["LLLL"], "steps": START, "most": 8, "every": 100}
        do([base | {"seed": seed, "dt_bias": start} for seed in SEEDS[:3] for start in ("original", "ones")])


if __name__ == "__main__":
    main()
