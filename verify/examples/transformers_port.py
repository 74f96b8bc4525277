"""transformers' Qwen3-Next as a port under test, in float32, with its own cache:

    python verify/conform.py --keys lm_head.out "model.layers.?.out" "*_state" "*.state" "*.grad" out "*_out" "mlp.*" \
        accepted token --cmd "python verify/examples/transformers_port.py --model {model} --like {trace} --trace {out}"

Module outputs come from hooks, the states from the cache, single operations from the modelling file's functions.
Batches are padded on the left, as transformers asks for. What it does not have is not written: MTP, taking tokens back,
leaving a sequence out of a batch, and, in releases that refuse them on a CPU, packed rows. MODEL may be a checkpoint
that its default way to compute experts does not take: the plain one is asked for.
"""

import argparse
import copy
import inspect
import json
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import transformers
from transformers.generation import utils as generation
from transformers.models.qwen3_next import modeling_qwen3_next as theirs

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from verify.real_bugs import hooked, padded  # noqa: E402
from verify.stages import is_batch, read_trace, rename, write_trace  # noqa: E402

ALIASES = json.loads((Path(__file__).resolve().parents[1] / "aliases" / "transformers.json").read_bytes())
RELEASE = int(transformers.__version__.partition(".")[0])


def states(cache) -> dict:
    """The Gated DeltaNet layers' states and windows in transformers' cache, wherever this release has them."""
    found = {}
    if hasattr(cache, "recurrent_states"):  # before 5
        layers = list(zip(cache.recurrent_states, cache.conv_states))
    else:
        layers = [(getattr(one, "recurrent_states", None), getattr(one, "conv_states", None)) for one in cache.layers]
    for i, (state, window) in enumerate(layers):
        if isinstance(state, (dict, list, tuple)):  # a layer may have several
            state = state[0]
            window = window[0]
        if isinstance(state, torch.Tensor):
            found[f"model.layers.{i}.linear_attn.state"] = state.detach().double().numpy()
            found[f"model.layers.{i}.linear_attn.conv_state"] = window[..., 1:].detach().double().numpy()
    return found


def run(model, rows: list[list[int]], cache=None, mask=None, **given) -> tuple[dict, object, object]:
    """A pass over rows, padded on the left: values by transformers' names, the cache and the mask after it."""
    width = max(map(len, rows))
    ids = torch.tensor([padded(row, width, "left") for row in rows])
    real = torch.tensor([padded([1] * len(row), width, "left") for row in rows])
    mask = real if mask is None else torch.cat([mask, real], 1)
    if len(rows) > 1:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        given = {"attention_mask": mask, "position_ids": positions[:, -width:]}
    trace: dict = {}
    hooks = hooked(model, trace, tuple(ids.shape))
    with torch.no_grad():
        out = model(ids, past_key_values=cache, use_cache=True, **given)
    for hook in hooks:
        hook.remove()
    for x in trace.values():  # the padding comes last in a trace
        if x.shape[:2] == ids.shape:
            for b, row in enumerate(rows):
                x[b] = np.roll(x[b], len(row) - width, axis=0)
    return {**trace, **states(out.past_key_values)}, out.past_key_values, mask


def named(trace: dict, batch: bool) -> dict:
    """A pass's values under our keys. batch: whether they keep their leading axis."""
    found = {}
    for name, x in trace.items():
        for key, _ in rename(name, ALIASES):
            found[key] = x if batch else x[0]
    return found


def single_layers(model, fed: dict, given: dict) -> dict:
    """Some layers alone: the whole model runs, but the first of them is handed its input."""
    first, end = fed["layers"]
    before = f"model.layers.{first - 1}.out"

    def replace(module, args, kwargs):
        return (torch.tensor(given[before], dtype=torch.float32)[None], *args[1:]), kwargs

    if first:
        hook = model.model.layers[first].register_forward_pre_hook(replace, with_kwargs=True)
    found = named(run(model, [fed["tokens"]])[0], False)
    if first:
        hook.remove()
    names = tuple(f"model.layers.{i}." for i in range(first, end))
    return {key: x for key, x in found.items() if key.startswith(names)}


def packed_row(model, fed: dict) -> dict:
    """Several sequences in a row, announced in all the ways that transformers knows."""
    ends = [*fed["starts"][1:], len(fed["tokens"])]
    lengths = [end - start for start, end in zip(fed["starts"], ends)]
    borders = torch.tensor([*fed["starts"], ends[-1]], dtype=torch.int32)
    given = {
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "seq_idx": torch.cat([torch.full((length,), n, dtype=torch.int32) for n, length in enumerate(lengths)])[None],
        **{f"cu_seq_lens_{part}": borders for part in "qk"},
        **{f"max_length_{part}": max(lengths) for part in "qk"},
    }
    return named(run(model, [fed["tokens"]], **given)[0], False)


def gradients(model, ids: list[int]) -> dict:
    """Of all parameters, under the checkpoint's names, and of the embeddings."""
    row = torch.tensor([ids])
    embeds = model.model.embed_tokens(row)
    embeds.retain_grad()
    model(inputs_embeds=embeds, labels=row, output_router_logits=False).loss.backward()
    found = {"model.embed_tokens.out.grad": embeds.grad[0]}
    for name, p in model.named_parameters():
        if p.grad is None:
            continue
        prefix, _, part = name.rpartition(".experts.")
        if not prefix or part[0].isdigit():
            found[f"{name}.grad"] = p.grad
        else:  # all experts in one tensor, gate and up, too
            for e, grad in enumerate(p.grad):
                parts = dict(zip(("gate_proj", "up_proj"), grad.chunk(2))) if part == "gate_up_proj" else {part: grad}
                found |= {f"{prefix}.experts.{e}.{one}.weight.grad": x for one, x in parts.items()}
    return {key: x.numpy() for key, x in found.items()}


def operate(name: str, parameters: dict, x: dict) -> dict:
    """One operation, by the functions of transformers' own file; {} for what this release has no function for."""
    x = {key: torch.tensor(value) for key, value in x.items()}
    x = {key: value.float() if value.is_floating_point() else value for key, value in x.items()}
    if name in ("norm", "gated_norm"):
        kind = theirs.Qwen3NextRMSNorm if name == "norm" else theirs.Qwen3NextRMSNormGated
        norm = kind(len(x["w"]), eps=parameters["eps"])
        norm.weight.data = x.pop("w")
        return {"out": norm(*x.values())}
    if name == "l2_norm":
        return {"out": theirs.l2norm(x["x"])}
    if name == "rope":
        fields = copy.deepcopy(parameters)  # its config writes into rope_scaling
        positions = torch.tensor([fields.pop("positions")])
        rotary = theirs.Qwen3NextRotaryEmbedding(transformers.Qwen3NextConfig(**fields))
        turned, _ = theirs.apply_rotary_pos_emb(x["x"][None], x["x"][None], *rotary(x["x"], positions), unsqueeze_dim=2)
        return {"out": turned[0]}
    if name == "conv":
        update = getattr(theirs, "torch_causal_conv1d_update", None) or theirs.causal_conv1d_update
        window = torch.cat([torch.zeros(1, x["window"].shape[1]), x["window"]]).T[None].contiguous()  # one more
        out = update(x["x"].T[None], window, x["weight"][:, 0], None, "silu")
        return {"out": out[0].T, "window_out": window[0, :, 1:].T}
    if name == "router" and RELEASE >= 5:
        E = x["logits"].shape[1]
        k, normalise = parameters["k"], parameters["normalise"]
        config = transformers.Qwen3NextConfig(
            hidden_size=E, num_experts=E, num_experts_per_tok=k, norm_topk_prob=normalise
        )
        router = theirs.Qwen3NextTopKRouter(config)
        router.weight.data = torch.eye(E)
        _, weights, ids = router(x["logits"])
        return {"mlp.topk_ids": ids, "mlp.topk_weights": weights}
    if name == "delta_rule":
        q, k, v, g, beta, state = (x[key][None] for key in ("q", "k", "v", "g", "beta", "state"))
        q = q * q.shape[-1] ** 0.5  # it scales q itself
        out, state = theirs.torch_chunk_gated_delta_rule(
            q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True
        )
        return {"out": out[0], "state_out": state[0]}
    if name == "verify":
        rows = [verify(*(value[b] for value in x.values())) for b in range(len(x["drafts"]))]
        return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
    return {}


def verify(p, q, drafts, uniforms, uniform_next) -> dict:
    """The test of drafts that assisted generation makes, with random numbers that are given."""

    def draw(p, num_samples):
        beyond = (p / p.sum(-1, keepdim=True)).cumsum(-1) > uniform_next
        return beyond.int().argmax(-1, keepdim=True)

    given = {"candidate_logits": q.log()[None], "candidate_length": len(drafts), "new_logits": p.log()[None]}
    if "is_done_candidate" in inspect.signature(generation._speculative_sampling).parameters:
        given["is_done_candidate"] = False
    ids = torch.cat([torch.zeros(1, dtype=torch.long), drafts.long()])[None]
    given_uniforms = patch.object(torch, "rand_like", lambda ratio: uniforms.reshape(ratio.shape))
    with given_uniforms, patch.object(torch, "multinomial", draw):
        tokens, accepted = generation._speculative_sampling(ids, **given)
    return {"accepted": int(accepted), "token": int(tokens[0, -1])}


def read_steps(model, like) -> dict:
    """The values of all steps that transformers can be fed."""
    steps: dict = {}
    cache = mask = None
    for step, fed in like.tokens.items():
        given = {key: like.steps[step][key] for key in fed.get("inputs", [])}
        if "op" in fed:
            steps[step] = {key: x.detach().numpy() for key, x in operate(fed["op"], fed["parameters"], given).items()}
        elif "layers" in fed:
            steps[step] = single_layers(model, fed, given)
        elif "gradients" in fed:
            steps[step] = gradients(model, fed["tokens"])
        elif "starts" in fed:
            try:
                steps[step] = packed_row(model, fed)
            except (TypeError, ValueError) as error:
                print(f"{step}: {error}", file=sys.stderr)
        elif "drafts" in fed:
            continue
        else:
            batch = is_batch(fed["tokens"])
            begins = not any(fed["before"])
            rows = fed["tokens"] if batch else [fed["tokens"]]
            anew = not begins and cache is not None and batch and not all(fed["before"])
            if not fed["tokens"] or anew or (cache is not None and not begins and len(rows) != len(mask)):
                break  # the cache takes no tokens back, and has all the sequences or none: it can't follow from here on
            trace, cache, mask = run(model, rows, *((None, None) if begins else (cache, mask)))
            steps[step] = named(trace, batch)
    return steps


parser = argparse.ArgumentParser()
for option in ("--model", "--like", "--trace"):
    parser.add_argument(option, type=Path, required=True)
args = parser.parse_args()
more = {"experts_implementation": "eager"} if RELEASE >= 5 else {}
port = transformers.Qwen3NextForCausalLM.from_pretrained(args.model, dtype=torch.float32, **more).eval()
trace = read_trace(args.like)
about = {"producer": f"transformers {transformers.__version__}", "dtype": "float32", "folder": args.model}
if any("op" in fed for fed in trace.tokens.values()):
    about["folder"] = None
write_trace(args.trace, read_steps(port, trace), trace.tokens, **about)
