"""Trains four small models, each with a memory rule of its own, and writes what they recall to ../data/rules.json.

    python notebooks/experiments/rules.py                  every run that the file does not have yet
    python notebooks/experiments/rules.py --seeds 0        of these seeds only

The rules are those that watch.py's page lets its reader choose: linear attention, decay only, the delta rule, the gated
delta rule. A model is a memory S of 16 x 16 numbers and what a rule needs: a key of length 1 for each of 64 names, a
value for each of 16 things, decay and write strength as a linear function of both, and a linear readout. All of it is
learned; only the rule differs. A text is a list of pairs, a name and a thing. In the end the model is asked for the
thing that came last with each name. Every model learns from all three kinds of text:

    once       n names, each comes once
    replaced   n names, each comes four times, each time with another thing: the last one counts
    new text   three texts of n names with a mark in between; asked are the names of the last one

Each rule gets the learning rate that did best for it in shorter runs ("tune"), then five seeds ("recall"), and is
tested with n = 2 to 32. A run takes less than a minute of one core.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]
import results  # noqa: E402

from qwen3_next import RMSNorm, chunk_gated_delta_rule, l2_normalise  # noqa: E402

RESULT = HERE.parent / "data" / "rules.json"
NAMES, THINGS, WIDTH = 64, 16, 16
TASKS = ("once", "replaced", "new text")
SIZES = (2, 4, 8, 16, 32)  # of a text: how many names
RULES = {  # rule -> does it decay, does it ask what a key holds before it writes
    "linear attention": (False, False),
    "decay only": (True, False),
    "delta rule": (False, True),
    "gated delta rule": (True, True),
}
RATES = (1e-2, 3e-2, 1e-1)
STEPS, TUNE, ROWS = 600, 300, 32
SEEDS = range(5)


class Memory(nn.Module):
    """A memory that is written by one of the rules, and asked when all is written."""

    def __init__(self, rule: str, seed: int):
        super().__init__()
        torch.manual_seed(seed)  # the same weights under each rule
        self.decays, self.asks = RULES[rule]
        self.keys = nn.Embedding(NAMES + 1, WIDTH)  # the last one is the mark's
        self.values = nn.Embedding(THINGS + 1, WIDTH)
        self.gates = nn.Linear(2 * WIDTH, 2)
        self.norm = RMSNorm(WIDTH, 1e-6)
        self.readout = nn.Linear(WIDTH, THINGS)
        nn.init.constant_(self.gates.bias[:1], -4.0)  # alpha starts near 0.98, beta near 0.5

    def forward(self, names: Tensor, things: Tensor, asked: Tensor) -> Tensor:
        """names and things (B, T), asked (B, questions), which are names -> logits (B, questions, THINGS)."""
        k, v = l2_normalise(self.keys(names)), self.values(things)
        a, b = self.gates(torch.cat([k, v], dim=-1)).unbind(-1)  # (B, T) each
        g = -F.softplus(a) if self.decays else torch.zeros_like(a)  # log of the decay
        if self.asks:
            heads = (x.unsqueeze(2) for x in (k, v, g, torch.sigmoid(b)))  # one head
            k, v, g, beta = heads
            state = chunk_gated_delta_rule(k, k, v, g=g, beta=beta, chunk_size=32)[1][:, 0]  # (B, K, V)
        else:  # every value is added, and fades with every token after it
            left = (g.sum(1, keepdim=True) - g.cumsum(1)).exp()
            state = k.transpose(1, 2) @ (left[..., None] * v)
        return self.readout(self.norm(l2_normalise(self.keys(asked)) @ state))


def pairs(n: int, times: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n names, each of them `times` times, in any order, and a thing with each: (ROWS, n * times)."""
    names = torch.rand(ROWS, NAMES, generator=generator).argsort(dim=1)[:, :n].repeat(1, times)
    order = torch.rand(ROWS, n * times, generator=generator).argsort(dim=1)
    return names.gather(1, order), torch.randint(THINGS, (ROWS, n * times), generator=generator)


def batch(task: str, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ROWS texts of a kind: names and things (ROWS, T), the names asked for and the right answers (ROWS, n)."""
    if task == "new text":
        mark = torch.full((ROWS, 1), NAMES), torch.full((ROWS, 1), THINGS)
        last = pairs(n, 1, generator)
        parts = [pairs(n, 1, generator), mark, pairs(n, 1, generator), mark, last]
        names, things = (torch.cat(column, dim=1) for column in zip(*parts))
        return names, things, *last
    names, things = pairs(n, 4 if task == "replaced" else 1, generator)
    places = torch.arange(names.shape[1])
    same = names[:, :, None] == names[:, None, :]
    is_last = ~(same & (places > places[:, None])).any(2)  # no later token has the same name
    return names, things, names[is_last].view(ROWS, n), things[is_last].view(ROWS, n)


@torch.no_grad()
def accuracy(model: Memory, task: str, n: int, batches: int = 8) -> float:
    """The share of right answers, in texts that depend on task and n alone."""
    generator = torch.Generator().manual_seed(n)
    right = []
    for _ in range(batches):
        names, things, asked, targets = batch(task, n, generator)
        right.append((model(names, things, asked).argmax(-1) == targets).float().mean())
    return round(torch.stack(right).mean().item(), 4)


def train(rule: str, seed: int, rate: float, steps: int) -> Memory:
    """Trains on texts of all kinds, of 2 to 32 names, log-uniform."""
    model = Memory(rule, seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(steps):
        n = round(2 ** (1 + 4 * torch.rand((), generator=generator).item()))
        names, things, asked, targets = batch(TASKS[step % len(TASKS)], n, generator)
        loss = F.cross_entropy(model(names, things, asked).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
    return model


def run(job: dict) -> dict:
    """One run, by its settings: what was learned."""
    started = time.process_time()
    model = train(job["rule"], job["seed"], job["rate"], job["steps"])
    found = {task: {str(n): accuracy(model, task, n) for n in SIZES} for task in TASKS}
    seconds = round(time.process_time() - started)
    print(f"{job['what']} {job['rule']} {job['seed']} {job['rate']:g} ({seconds} s): {json.dumps(found)}", flush=True)
    return job | {"accuracy": found, "seconds": seconds}


def total(done: dict) -> float:
    """The sum of a run's accuracies, over all kinds and sizes of text."""
    return sum(share for sizes in done["accuracy"].values() for share in sizes.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = results.load(RESULT)

    def do(job: dict):
        if not any(job.items() <= done.items() for done in runs):
            runs.append(run(job))
            results.save(RESULT, runs)

    for rate in RATES:
        for rule in RULES:
            do({"what": "tune", "rule": rule, "seed": 100, "rate": rate, "steps": TUNE})
    for seed in args.seeds:
        for rule in RULES:
            tuned = [done for done in runs if done["what"] == "tune" and done["rule"] == rule]
            do({"what": "recall", "rule": rule, "seed": seed, "rate": max(tuned, key=total)["rate"], "steps": STEPS})


if __name__ == "__main__":
    main()
