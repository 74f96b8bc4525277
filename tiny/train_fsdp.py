"""The training of train.py over several GPUs, CPUs or machines, each of which holds a part of every tensor (FSDP2).

    torchrun --nproc-per-node 4 tiny/train_fsdp.py --out DIR [train.py's options]

A layer's weights are gathered when it computes, and dropped after it; its gradients are averaged, and each process
keeps its part of them, of the weights and of AdamW's means. So a model can be trained that no single device holds. The
loss, the text and the schedule are train.py's, the optimizer AdamW alone: Muon needs whole matrices. The checkpoint in
DIR/run has whole tensors, and is resumed by any number of processes that divides --batch.
"""

import functools
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import train  # noqa: E402

from qwen3_next import Experts, Qwen3NextConfig, Qwen3NextForCausalLM, Qwen3NextTokenizer  # noqa: E402
from qwen3_next_checkpoints import saving  # noqa: E402


def give_all_a_gradient(experts: Experts, inputs: tuple, out: Tensor) -> Tensor:
    """A hook: experts that no token of this process has chosen get a gradient of zeros. Without one they would be left
    out of what it sends, and the processes would wait for data of different lengths.
    """
    chosen = set(inputs[2].flatten().tolist())
    idle = [p for e, expert in enumerate(experts) if e not in chosen for p in expert.parameters()]
    return out + 0 * sum(p[0, 0] for p in idle) if idle else out


def shard(model: Qwen3NextForCausalLM, mesh: DeviceMesh):
    """Deals out a model that all ranks have: a unit for each layer, MTP's included, and one for all else."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.register_forward_hook(give_all_a_gradient)
    for layer in [*model.model.layers, *(model.mtp.layers if model.mtp else [])]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(state: Any) -> Any:
    """The same with all tensors gathered. All ranks have to call it."""
    return tree_map_only(DTensor, lambda x: x.full_tensor(), state)


def part(x: Tensor, p: nn.Parameter) -> Tensor:
    """A rank's part of a tensor of a parameter's shape, cut as the parameter is; others as they are."""
    return distribute_tensor(x.to(p.device), p.device_mesh, p.placements) if x.shape == p.shape else x


def snapshot(model: nn.Module, optimizers: list[torch.optim.Optimizer], **others: Any) -> dict:
    """What a run is resumed from, in whole tensors. All ranks have to call it."""
    return {"model": whole(model.state_dict()), "optimizers": [whole(o.state_dict()) for o in optimizers], **others}


def restore(model: nn.Module, optimizers: list[torch.optim.Optimizer], state: dict):
    """Takes up a snapshot, whatever the number of ranks that made it."""
    named = model.state_dict()
    model.load_state_dict({name: part(x, named[name]) for name, x in state["model"].items()}, assign=False)
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        means = {i: {key: part(x, parameters[i]) for key, x in of.items()} for i, of in saved["state"].items()}
        optimizer.load_state_dict({**saved, "state": means})


def step(model: nn.Module, optimizers: list[torch.optim.Optimizer], ids: Tensor, labels: Tensor, mtp: bool) -> Any:
    """One step on a rank's rows. Returns what the model did."""
    out = model(ids, labels=labels, output_router_logits=True, output_mtp_logits=mtp)
    for optimizer in optimizers:
        optimizer.zero_grad()
    out.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return out


def prediction_loss(out: Any, config: Qwen3NextConfig) -> Tensor:
    """The next token's loss alone, averaged over the ranks."""
    loss = out.loss.detach() - config.router_aux_loss_coef * out.aux_loss
    if out.mtp_loss is not None:
        loss = loss - config.mtp_loss_scaling_factor * out.mtp_loss
    loss = loss.detach() / dist.get_world_size()
    dist.all_reduce(loss)
    return loss


def new_model(args: Any, tokenizer: Qwen3NextTokenizer) -> Qwen3NextForCausalLM:
    """The model that a training starts from: each rank draws the same one."""
    torch.manual_seed(args.seed)
    end, im_end = (tokenizer.backend.token_to_id(token) for token in ("<|endoftext|>", "<|im_end|>"))
    config = Qwen3NextConfig(**train.SIZES[args.size][0], bos_token_id=end, eos_token_id=im_end)
    model = Qwen3NextForCausalLM(config)
    if "quiet" not in args.without:
        train.quiet_start(model)
    model.generation_config = {"bos_token_id": end, "eos_token_id": [im_end, end], "pad_token_id": end}
    return model


def run(args: Any):
    """One rank's part of the training; rank 0 reports and saves."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    tokenizer = Qwen3NextTokenizer.from_pretrained(args.run)
    model = new_model(args, tokenizer).to(args.device)
    shard(model, init_device_mesh(torch.device(args.device).type, (ranks,)))
    optimizers = train.make_optimizers(model, args.rate, muon=False)
    first = 0
    checkpoint = args.run / "checkpoint.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location="cpu")
        restore(model, optimizers, state)
        first = state["step"]
    source = train.Rows(tokenizer, args.seed, args.length, args.steps, without=frozenset(args.without))
    last = min(args.steps, args.stop_after or args.steps)
    for n in tqdm(range(first, last), initial=first, total=args.steps, unit="step", disable=rank > 0):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = train.learning_rate(n, args.steps, args.rate)
        ids, labels = source.batch(n, rank, args.batch // ranks, args.device)
        out = step(model, optimizers, ids, labels, mtp=n >= args.mtp_from * args.steps)
        if (n + 1) % 10 == 0 or n + 1 == last:
            loss = prediction_loss(out, model.config)
            if rank == 0:
                tqdm.write(f"step {n + 1}: loss {loss:.4f}")
        if (n + 1) % 100 == 0 or n + 1 == last:
            state = snapshot(model, optimizers, step=n + 1)
            if rank == 0:
                train.write_whole(checkpoint, functools.partial(torch.save, state))
    if last == args.steps and rank == 0:
        state = torch.load(checkpoint, map_location="cpu")
        finished = new_model(args, tokenizer)
        finished.load_state_dict(state["model"])
        files = {name: (args.run / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
        saving.save(finished.to(torch.bfloat16), args.out, "5GB", files)


def main():
    if "LOCAL_RANK" not in os.environ:
        sys.exit("train_fsdp.py: start it by torchrun: torchrun --nproc-per-node 2 tiny/train_fsdp.py --out DIR")
    arguments = sys.argv[1:]
    for option, why in (("--processes", "torchrun's --nproc-per-node says how many"), ("--curve", "train.py has it")):
        if option in arguments:
            sys.exit(f"train_fsdp.py: {option}: {why}")
    if "--without" in arguments:
        arguments.insert(arguments.index("--without") + 1, "muon")
    else:
        arguments += ["--without", "muon"]
    args = train.parse_arguments([*arguments, "--processes", os.environ["WORLD_SIZE"]])
    if args.device == "cuda":
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(args.device)
    dist.init_process_group("nccl" if "cuda" in args.device else "gloo")
    if dist.get_rank() == 0 and not (args.run / "tokenizer.json").is_file():
        train.train_tokenizer(args.run, args.seed)
    dist.barrier()
    run(args)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
