"""Runs the tasks of lm-evaluation-harness (`pip install -e ".[eval]"`) on a checkpoint, by this project's model.

    python benchmarks/lm_eval_adapter.py                                       phone books, which need no download
    python benchmarks/lm_eval_adapter.py --model DIR_OR_REPO --tasks arc_easy,gsm8k --limit 100

The harness's own tasks download their questions. `Adapter` is all that it needs of a model, also in your own programs.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer

NAMES = ("Tom", "Anna", "Ben", "Nora", "Sam", "Lily", "Max", "Clara")  # those that tiny/ has learnt


class Adapter(LM):
    """The three questions that the harness asks of a model."""

    def __init__(self, model: Qwen3NextForCausalLM, tokenizer: Qwen3NextTokenizer):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    @torch.no_grad()
    def score(self, before: list[int], ids: list[int]) -> tuple[float, bool]:
        """The log probability of ids after `before`, which is not empty, and whether each was the likeliest."""
        row = torch.tensor([before + ids], device=self.model.device)
        logits = self.model(row, logits_to_keep=len(ids) + 1).logits[0, :-1].float()
        chosen = logits.log_softmax(-1).gather(1, row[0, len(before) :, None])
        return chosen.sum().item(), bool((logits.argmax(-1) == row[0, len(before) :]).all())

    def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
        """Of (context, continuation) each. They are encoded together: a token may reach over the border."""
        results = []
        for context, continuation in (request.args for request in requests):
            whole = self.tokenizer.encode(context + continuation)
            known = min(max(len(self.tokenizer.encode(context)), 1), len(whole) - 1)
            results.append(self.score(whole[:known], whole[known:]))
        return results

    def loglikelihood_rolling(self, requests: list) -> list[float]:
        """Of whole texts, after a padding token, as other adapters have it."""
        texts = (request.args[0] for request in requests)
        return [self.score([self.tokenizer.pad_token_id], self.tokenizer.encode(text))[0] for text in texts]

    def generate_until(self, requests: list) -> list[str]:
        """The text that follows (context, options), up to the first of the strings that end it."""
        results = []
        for context, options in (request.args for request in requests):
            ids = torch.tensor([self.tokenizer.encode(context)], device=self.model.device)
            stops = options.get("until") or []
            stops = [stops] if isinstance(stops, str) else stops
            choice = {name: options[name] for name in ("do_sample", "temperature", "top_p") if name in options}
            choice |= {"max_new_tokens": options.get("max_gen_toks", 256), "stop_strings": stops}
            out = self.model.generate(ids, tokenizer=self.tokenizer, **{"do_sample": False, **choice})
            text = self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            results.append(min((text.split(stop)[0] for stop in stops if stop), key=len, default=text))
        return results


class Questions(list):
    """As much of a data set as the harness uses."""

    features = {"prompt": "text", "answer": "text"}


def phone_books(tokenizer: Qwen3NextTokenizer, entries: int = 4, books: int = 50) -> ConfigurableTask:
    """A task: in a phone book of so many entries, find a number. The books are drawn anew, always the same ones."""

    def draw(seed: int) -> dict:
        number = random.Random(seed)
        book = {name: f"{number.randrange(10**4):04}" for name in number.sample(NAMES, entries)}
        name = number.choice(list(book))
        lines = "\n".join(f"- {name}: {digits}" for name, digits in book.items())
        question = f"Phone book:\n{lines}\n\nWhat is the number of {name}?"
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}])
        return {"prompt": prompt, "answer": f"- {name}: {book[name]}"}

    config: dict[str, Any] = {"task": f"phone_books_{entries}", "output_type": "generate_until", "test_split": "test"}
    config["custom_dataset"] = lambda **_: {"test": Questions(map(draw, range(books)))}
    config |= {"doc_to_text": "{{prompt}}", "doc_to_target": "{{answer}}"}
    config["generation_kwargs"] = {"until": ["\n", "<|im_end|>"], "max_gen_toks": 24}
    config["metric_list"] = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    return ConfigurableTask(config=config)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=Path(__file__).resolve().parent.parent / "tiny", metavar="DIR_OR_REPO")
    parser.add_argument("--tasks", help="names of the harness's tasks, with commas between them")
    parser.add_argument("--limit", type=int, help="questions of each task")
    args = parser.parse_args()
    tokenizer = Qwen3NextTokenizer.from_pretrained(args.model)
    model = Qwen3NextForCausalLM.from_pretrained(args.model, device_map="auto")
    tasks = args.tasks.split(",") if args.tasks else [phone_books(tokenizer, entries) for entries in (2, 4, 8)]
    found = simple_evaluate(Adapter(model, tokenizer), tasks=tasks, limit=args.limit, bootstrap_iters=0)
    print(json.dumps(found["results"], indent=2, default=str))


if __name__ == "__main__":
    main()
