"""Trains the model in this folder from nothing: corpus, tokenizer, weights.

    python tiny/train.py                     train, write checkpoints to tiny/run/, resume from there if interrupted
    python tiny/train.py --out DIR           put the finished model elsewhere than in tiny/

The text comes from corpus.py and a seed; the forward pass and the loss are qwen3_next.py's own. AdamW with weight decay
on the zero-centred norm weights too, as the released model's recipe has it, warm-up and a cosine schedule. The loss is
cross-entropy over all tokens plus the load-balancing loss; in the last --mtp-steps, that of the MTP layer, which alone
is then trained. CPU, or CUDA when there is one.
"""

import argparse
import itertools
import json
import math
import os
import random
import sys
import time
from pathlib import Path

import tokenizers
import torch
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import corpus  # noqa: E402

from qwen3_next import Qwen3NextConfig, Qwen3NextForCausalLM, Qwen3NextTokenizer  # noqa: E402

CONFIG = {
    "vocab_size": 2048,
    "hidden_size": 192,
    "num_hidden_layers": 8,
    # Three to one as in the big model, but each attention layer before its three: the first one then sees the tokens
    # themselves, and not what three untrained layers make of them.
    "layer_types": (["full_attention"] + ["linear_attention"] * 3) * 2,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.25,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 48,
    "linear_conv_kernel_dim": 4,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "router_aux_loss_coef": 0.01,
    "mtp_num_hidden_layers": 1,
}
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# How Qwen's tokenizer cuts text before BPE: contractions, words with their leading space, digits, punctuation.
PRETOKENISE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def render(document: str | list[dict], tokenizer: Qwen3NextTokenizer) -> str:
    """A document as training text: a story as it is, a conversation through the chat template, then the end token."""
    if not isinstance(document, str):
        document = tokenizer.apply_chat_template(document, add_generation_prompt=False).removesuffix("\n")
    return document + SPECIAL_TOKENS[0]


def train_tokenizer(folder: Path, seed: int, documents: int = 20_000):
    """Byte-level BPE over the corpus; writes tokenizer.json and tokenizer_config.json."""
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": CONFIG["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    pre = tokenizers.pre_tokenizers
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.normalizer = tokenizers.normalizers.NFC()
    split = pre.Split(tokenizers.Regex(PRETOKENISE), behavior="isolated")
    backend.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"] - len(SPECIAL_TOKENS),
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    texts = itertools.islice(corpus.documents(seed), documents)
    flat = ([text] if isinstance(text, str) else [message["content"] for message in text] for text in texts)
    backend.train_from_iterator(itertools.chain.from_iterable(flat), trainer)
    backend.add_special_tokens(SPECIAL_TOKENS)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


# Before any text, random words over and over, which can only be predicted by looking back: steps, rows a step, longest
# period in words. The words are the names, animals and things of the stories, since what is learned about finding one
# word in memory hardly carries over to another; and the period differs from row to row: were it the same, counting
# positions would do, and nothing would be learned about finding a word by what it is.
ECHO_STEPS, ECHO_ROWS, ECHO_PERIOD = 550, 32, 16
NARROW = {"names": 8, "animals": 16, "things": 20}  # see corpus.narrow


def echo_batch(step: int, tokenizer: Qwen3NextTokenizer) -> torch.Tensor:
    """A batch of repeated random words, (rows, 2 * longest period) token ids, a function of the step."""
    source, rows = random.Random(step), []
    words = [*corpus.LISTED, *corpus.ANIMALS, *corpus.THING_ROWS]
    for _ in range(ECHO_ROWS):
        chosen = source.sample(words, source.randint(ECHO_PERIOD // 2, ECHO_PERIOD))
        ids = [token for word in chosen for token in tokenizer.encode(" " + word)]
        rows.append((ids * 4)[: 2 * ECHO_PERIOD])
    return torch.tensor(rows)


def lists_share(progress: float) -> float:
    """The share of lists among the documents: four tenths at first, few in the end."""
    return max(0.1, 0.4 - 1.2 * progress)


def rows(tokenizer: Qwen3NextTokenizer, seed: int, length: int, total: int, row: int = 0, number: int = 0):
    """Rows of `length` token ids, each from the start of a document; with each row, the next document's number.

    `total` rows make up the training, `row` is the first one wanted, `number` its first document.
    """
    for i in itertools.count(row):
        ids: list[int] = []
        while len(ids) < length:
            document = corpus.document(random.Random(f"{seed}:{number}"), lists_share(i / total))
            ids += tokenizer.encode(render(document, tokenizer))
            number += 1
        yield ids[:length], number


def learning_rate(step: int, steps: int, peak: float, warmup: int = 50) -> float:
    """Linear warm-up, then half a cosine down to a twentieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))))


@torch.no_grad()
def quiet_start(model: Qwen3NextForCausalLM):
    """Two changes to how a new model's Gated DeltaNet layers start; README.md beside this tells what they are part of.

    The convolution starts as PyTorch's own does, as in the original code: with 0.02 the values are so small that the
    gated norm's epsilon swallows them. And the layers' outputs start at a tenth: the gated norm makes them unit noise
    whatever the memory holds, which hides from the attention layers which token is which.
    """
    for layer in model.model.layers:
        if hasattr(layer, "linear_attn"):
            layer.linear_attn.conv1d.reset_parameters()
            layer.linear_attn.out_proj.weight *= 0.1


def make_optimizer(model: Qwen3NextForCausalLM) -> torch.optim.AdamW:
    """AdamW: decay on all but the decays' parameters, the convolution, and the gated norm, which rests at 1."""
    kept = ("A_log", "dt_bias", "conv1d.weight", "linear_attn.norm.weight")
    decayed = [p for name, p in model.named_parameters() if not name.endswith(kept)]
    others = [p for name, p in model.named_parameters() if name.endswith(kept)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


def save_checkpoint(path: Path, **state):
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


@torch.no_grad()
def held_out_loss(model: Qwen3NextForCausalLM, tokenizer: Qwen3NextTokenizer, length: int, batches: int = 8) -> float:
    """Mean cross-entropy in nats per token over documents of a seed that training never uses."""
    source = rows(tokenizer, -1, length, 1, row=1)
    losses = []
    for _ in range(batches):
        ids = torch.tensor([next(source)[0] for _ in range(8)], device=model.device)
        losses.append(model(ids, labels=ids, output_router_logits=False).loss.item())
    return sum(losses) / len(losses)


def plot(history: list[tuple[int, float, float]], path: Path):
    """The loss curve as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps, tokens, losses = zip(*history, strict=True)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([n / 1e6 for n in tokens], losses, linewidth=0.8)
    axes.set(xlabel="tokens trained on (millions)", ylabel="cross-entropy (nats per token)", title="Training loss")
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2400, help="of --batch rows each (default: %(default)s)")
    parser.add_argument(
        "--mtp-steps", type=int, default=1000, help="more, for the MTP layer alone (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--length", type=int, default=256, help="tokens a row")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--stop-after", type=int, metavar="N", help="stop at step N; the same command goes on from there"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--run", type=Path, default=HERE / "run", help="folder of the checkpoint to resume from")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the finished model")
    args = parser.parse_args(arguments)

    corpus.narrow(**NARROW)
    args.run.mkdir(parents=True, exist_ok=True)
    if not (args.run / "tokenizer.json").is_file():
        train_tokenizer(args.run, args.seed)
    tokenizer = Qwen3NextTokenizer.from_pretrained(args.run)
    end, im_end = (tokenizer.backend.token_to_id(token) for token in ("<|endoftext|>", "<|im_end|>"))

    torch.manual_seed(args.seed)
    config = Qwen3NextConfig(**CONFIG, bos_token_id=end, eos_token_id=im_end)
    model = Qwen3NextForCausalLM(config).to(args.device)
    quiet_start(model)
    optimizer = make_optimizer(model)
    first, document, spent, history = 0, 0, 0.0, []
    checkpoint = args.run / "checkpoint.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=args.device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, document, spent, history = (state[key] for key in ("step", "document", "spent", "history"))

    end_step = args.steps + args.mtp_steps
    total, begun = ((max(n - ECHO_STEPS, 0)) * args.batch for n in (args.steps, first))
    source = rows(tokenizer, args.seed, args.length, max(total, 1), begun, document)
    last = min(end_step, args.stop_after or end_step)
    bar = tqdm(range(first, last), initial=first, total=end_step, unit="step", dynamic_ncols=True)
    model.train()
    for step in bar:
        started = time.perf_counter()
        if step < ECHO_STEPS:
            ids = echo_batch(step, tokenizer)
        else:
            batch, documents = zip(*itertools.islice(source, args.batch), strict=True)
            ids, document = torch.tensor(batch), documents[-1]
        ids = ids.to(args.device)
        if mtp := step >= args.steps:
            model.requires_grad_(False)
            model.mtp.requires_grad_(True)
        out = model(ids, labels=ids, output_router_logits=not mtp, output_mtp_logits=mtp)
        (out.mtp_loss if mtp else out.loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            place = (step - args.steps, args.mtp_steps) if mtp else (step, args.steps)
            group["lr"] = learning_rate(*place, args.rate)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = (out.mtp_loss if mtp else out.loss - config.router_aux_loss_coef * out.aux_loss).item()
        history.append((step, ids.numel() + (history[-1][1] if history else 0), loss))
        spent += time.perf_counter() - started
        bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=f"{ids.numel() / (time.perf_counter() - started):.0f}")
        if (step + 1) % 100 == 0 or step + 1 == last:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_checkpoint(checkpoint, **state, document=document, spent=spent, history=history)
            recent = [row[2] for row in history[-100:]]
            tqdm.write(f"step {step + 1}: loss {sum(recent) / len(recent):.4f}, {spent / 60:.1f} minutes")
    if last < end_step:
        return

    model.eval()
    print(f"held-out loss {held_out_loss(model, tokenizer, args.length):.4f} nats per token, {spent / 60:.1f} minutes")
    model.generation_config = {
        "bos_token_id": end,
        "eos_token_id": [im_end, end],
        "pad_token_id": end,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
    }
    model.to(torch.bfloat16).save_pretrained(args.out)
    if args.out != args.run:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (args.out / name).write_bytes((args.run / name).read_bytes())
    plot(history[: args.steps], args.out / "loss.png")


if __name__ == "__main__":
    main()
