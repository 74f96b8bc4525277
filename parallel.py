"""Qwen3-Next over several GPUs, CPUs or machines: a model that fits on none of them alone generates text.

    torchrun --nproc-per-node 4 parallel.py --model DIR_OR_REPO --prompt "..."    with all of qwen3_next.py's options
    torchrun --nproc-per-node 4 parallel.py --chat --model DIR_OR_REPO            a conversation, with chat.py's options

Several machines: the same on each, with torchrun's --nnodes, --rdzv-backend c10d and --rdzv-endpoint HOST:PORT.

Each process is a rank, with a device of its own: a GPU, and NCCL between them, or the CPU, and gloo. It holds a part of
every layer, and chooses the same tokens as all others. The parts are those of tensor parallelism (Megatron-LM, arXiv
1909.08053, section 3): the first matrices of a mixer or an MLP are cut by rows, so that a rank has some of the heads or
a part of the inner width; the last one by columns, so that the ranks' results are to be added up: two sums a layer.

    q_proj, k_proj, v_proj, in_proj_qkvz, in_proj_ba, conv1d, A_log, dt_bias    by heads; o_proj, out_proj by columns
    gate_proj, up_proj of a dense MLP or a shared expert                        by rows; down_proj by columns
    experts    dealt out whole, expert e to rank e % ranks: FP8's blocks of 128 x 128 would not stay whole otherwise
    lm_head    by rows; the ranks' logits are gathered, once a pass
    all else   on every rank: embedding, norms, routers, MTP's fc

Key heads that are fewer than the ranks are copied. A rank's caches hold its own heads. For inference alone.
"""

import argparse
import io
import os
import re
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

if __name__ == "__main__":  # Ctrl-C ends a process at once, also one that waits for another in a sum
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
import torch.distributed as dist
from torch import Tensor, nn

import chat
import qwen3_next
from qwen3_next import FP8, Experts, GatedDeltaNet, Qwen3NextConfig, Qwen3NextForCausalLM, expect
from qwen3_next_checkpoints import formats, grouped

BY_ROWS = ("q_proj.weight", "q_proj.bias", "A_log", "dt_bias", "gate_proj.weight", "up_proj.weight")
BY_COLUMNS = ("o_proj.weight", "out_proj.weight", "down_proj.weight")


# ==== Who holds what ==================================================================================================


@dataclass
class Share:
    """What one of several ranks holds of a model. Raises ValueError if they can't divide its heads or experts."""

    config: Qwen3NextConfig
    rank: int
    ranks: int

    def __post_init__(self):
        config = self.config
        heads = {"full_attention": (config.num_attention_heads, config.num_key_value_heads)}
        heads["linear_attention"] = (config.linear_num_value_heads, config.linear_num_key_heads)
        mtp = ["full_attention"] * config.mtp_num_hidden_layers
        for kind in dict.fromkeys([*config.layer_types, *mtp]):
            n, key_heads = heads[kind]
            equal = n % self.ranks == 0 and (key_heads % self.ranks == 0 or self.ranks % key_heads == 0)
            found = f"{n} heads on {key_heads} key heads"
            expect(equal, f"{self.ranks} processes can't share the heads of a {kind} layer equally: {found}")
        experts = config.num_experts
        expect(experts == 0 or experts >= self.ranks, f"{self.ranks} processes, but only {experts} experts")

    def holds(self, name: str) -> bool:
        """Whether this rank has any of the tensor: all but other ranks' experts."""
        expert = re.search(r"\.experts\.(\d+)\.", name)
        return expert is None or int(expert[1]) % self.ranks == self.rank

    def rows(self, x: Tensor, dim: int = 0) -> Tensor:
        """This rank's of as many equal parts as there are ranks."""
        return x.tensor_split(self.ranks, dim)[self.rank]

    def key_heads(self, x: Tensor, heads: int) -> Tensor:
        """This rank's of x's rows (heads * n, ...), as (its heads, n, ...). If ranks share a head, each has a copy."""
        first = self.rank * heads // self.ranks
        return x.unflatten(0, (heads, -1))[first : first + max(heads // self.ranks, 1)]

    def part(self, name: str, x: Tensor) -> Tensor:
        """The part of the tensor of that name that this rank holds: a view if it lies in one piece."""
        config = self.config
        K, V = config.linear_key_head_dim, config.linear_value_head_dim
        keys = config.linear_num_key_heads
        if ".experts." in name:
            return x
        if name.endswith(BY_ROWS):
            return self.rows(x)
        if name.endswith(BY_COLUMNS):
            return self.rows(x, 1)
        if name.endswith("o_proj.bias"):  # is to be added once
            return x if self.rank == 0 else torch.zeros_like(x)
        if name.endswith(("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias")):
            return self.key_heads(x, config.num_key_value_heads).flatten(0, 1)
        if name.endswith(("in_proj_qkvz.weight", "in_proj_ba.weight")):  # rows: see GatedDeltaNet.unpack
            copied = 2 * K if "qkvz" in name else 0  # q and k; of v and z, or b and a, each rank has its own
            groups = self.key_heads(x, keys)
            copies = max(self.ranks // keys, 1)
            pairs = groups[:, copied:].unflatten(1, (2, copies, -1))[:, :, self.rank % copies].flatten(1, 2)
            return torch.cat([groups[:, :copied], pairs], dim=1).flatten(0, 1)
        if name.endswith("conv1d.weight"):
            q, k, v = x.split([keys * K, keys * K, config.linear_num_value_heads * V])
            return torch.cat([*(self.key_heads(y, keys).flatten(0, 1) for y in (q, k)), self.rows(v)])
        if name == "lm_head.weight":  # as many rows on each rank, so that logits can be gathered
            each = -(-len(x) // self.ranks)
            mine = x[self.rank * each : (self.rank + 1) * each]
            return torch.cat([mine, x.new_zeros(each - len(mine), x.shape[1])]) if len(mine) < each else mine
        return x


class DealtExperts(Experts):
    """The experts of one rank: its number i is the model's number i * ranks + rank."""

    def __init__(self, experts: Experts, share: Share):
        nn.ModuleList.__init__(self, list(experts)[share.rank :: share.ranks])
        self.share = share

    def forward(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """As `Experts.forward`, but of each token's sum only the terms of this rank's experts."""
        mine = experts % self.share.ranks == self.share.rank
        if self.grouped and self.grouped.fits(x):
            return self.grouped(x, weights, torch.where(mine, experts // self.share.ranks, len(self)))
        tokens, choice = mine.nonzero(as_tuple=True)
        if len(tokens) == 0:
            return torch.zeros_like(x)
        if len(x) == 1:
            return super().forward(x, weights[:, choice], experts[:, choice] // self.share.ranks)
        numbers = experts[tokens, choice] // self.share.ranks
        terms = super().forward(x[tokens], weights[tokens, choice][:, None], numbers[:, None])
        return torch.zeros_like(x).index_add_(0, tokens, terms)


def divide(model: Qwen3NextForCausalLM, share: Share):
    """Makes a model whose parameters are a rank's parts compute with them, and with the other ranks."""

    def add_up(_, inputs: tuple, out: Any) -> Any:
        y, *others = out if isinstance(out, tuple) else (out,)
        y = y.contiguous()
        dist.all_reduce(y)
        return (y, *others) if others else y

    def gather(_, inputs: tuple, logits: Tensor) -> Tensor:
        parts = [torch.empty_like(logits) for _ in range(share.ranks)]
        dist.all_gather(parts, logits.contiguous())
        return torch.cat(parts, dim=-1)[..., : share.config.vocab_size]

    model.lm_head.register_forward_hook(gather)
    for layer in [*model.model.layers, *(model.mtp.layers if model.mtp else [])]:
        layer.mixer.register_forward_hook(add_up)
        layer.mlp.register_forward_hook(add_up)
        if hasattr(layer.mlp, "experts"):
            layer.mlp.experts = DealtExperts(layer.mlp.experts, share)
        if isinstance(layer.mixer, GatedDeltaNet):
            mixer = layer.mixer
            mixer.key_heads = max(mixer.key_heads // share.ranks, 1)
            mixer.value_heads //= share.ranks
            mixer.widths = [2 * mixer.key_heads * mixer.K, mixer.value_heads * mixer.V]


class ParallelForCausalLM(Qwen3NextForCausalLM):
    """A rank's part of a model. Every rank calls it with the same inputs, and gets the same outputs."""

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike,
        dtype: str | torch.dtype = "auto",
        device_map: str = "auto",
        delta_rule: str = "chunk",
        in_memory: bool = True,
        compile: bool = False,
        **fields: Any,
    ) -> "ParallelForCausalLM":
        """As `qwen3_next.from_pretrained`, on the rank's own device. The files are mapped, a rank's part is copied."""
        expect(dist.is_initialized(), "no other processes: torchrun starts them, and parallel.meet() finds them")
        expect(delta_rule in ("chunk", "recurrent"), f"delta_rule is {delta_rule!r}, expected 'chunk' or 'recurrent'")
        expect(not compile, "compile: one process alone compiles its mixers, expected no --compile")
        device = own_device(str(device_map))
        folder = qwen3_next.find_checkpoint(path_or_repo, fields, qwen3_next.FIELDS)
        config, tensors, dtype = qwen3_next.read_weights(folder, dtype, fields)
        share = Share(config, dist.get_rank(), dist.get_world_size())
        model, tensors = qwen3_next.build(cls, config, tensors, folder, delta_rule)
        experts = {name: x for name, x in tensors.items() if ".experts." in name and share.holds(name)}
        places = dict.fromkeys(experts, device)
        formats.place(model, experts, qwen3_next.linear, places, True, dtype)  # those in 8 bits
        names = [name for name, p in model.named_parameters(remove_duplicate=False) if p.is_meta and share.holds(name)]
        for name in qwen3_next.progress(names, "loading", "tensor"):
            whole = tensors.get(name, tensors["model.embed_tokens.weight"])  # a tied lm_head has no tensor of its own
            if whole.dtype == FP8:
                whole = formats.dequantise(whole, tensors[f"{name}_scale_inv"], dtype)
            mine = share.part(name, whole).to(device, dtype, copy=True)
            module, _, key = name.rpartition(".")
            setattr(model.get_submodule(module), key, nn.Parameter(mine, requires_grad=False))
        divide(model, share)
        if device.type == "cuda":
            grouped.stack(model, Experts)
        return model.eval()

    def save_pretrained(self, path: str | os.PathLike, max_shard_size: int | str = "5GB"):
        """Raises ValueError: no rank has all of the weights."""
        raise ValueError(f"{path}: a rank holds a part of the model, which can't be saved; load it by qwen3_next.py")


# ==== Several processes ===============================================================================================


def own_device(name: str) -> torch.device:
    """This rank's device, by a kind of device or "auto". Raises ValueError if there are too few GPUs."""
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    expect(kind in ("cpu", "cuda"), f"--device {name}: expected cpu, cuda or auto: each process has one of its own")
    if kind == "cpu":
        return torch.device("cpu")
    local, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    expect(local < found, f"--device {name}: process {local + 1} of this machine needs a GPU of its own, found {found}")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def meet() -> dist.Store:
    """Has the processes that torchrun started find each other. Returns the store that they share."""
    expect("LOCAL_RANK" in os.environ, "start it by torchrun: torchrun --nproc-per-node 2 parallel.py --prompt ...")
    store, rank, ranks = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)
    return store


class SharedInput(io.RawIOBase):
    """Standard input, read by rank 0 for all: each rank gets the same bytes."""

    def __init__(self, group: dist.ProcessGroup):
        self.group = group

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = [os.read(0, len(buffer)) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(found, group=self.group)
        buffer[: len(found[0])] = found[0]
        return len(found[0])


def run(args: argparse.Namespace):
    """Generates, or holds a conversation: all ranks do the same."""
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=30))  # a download, or a person, may take long
    sys.stdin = io.TextIOWrapper(io.BufferedReader(SharedInput(patient)), encoding="utf-8")
    args.in_memory = True  # a rank's part always is
    seed = [torch.seed()]
    dist.broadcast_object_list(seed, group=patient)
    torch.manual_seed(seed[0])  # without --seed, too, all draw the same tokens
    if os.environ["LOCAL_RANK"] == "0":  # downloads it for all of its machine
        qwen3_next.find_checkpoint(args.model, {})
    dist.barrier(group=patient)
    (chat.converse if args.chat else qwen3_next.run)(args, ParallelForCausalLM)
    dist.barrier(group=patient)
    dist.destroy_process_group()


def run_or_say_why_not(args: argparse.Namespace, store: dist.Store, errors: Any):
    """As `run`; of several ranks that fail, the first one alone says why: what the others lack is mostly that one."""
    try:
        run(args)
    except BaseException:
        sys.stderr = io.StringIO()
        if store.add("failed", 1) == 1:
            sys.stderr = errors
        raise


def main(arguments: list[str] | None = None) -> int:
    """The command line of one rank. If one fails, torchrun ends the others, and prints a report of its own."""
    arguments = sys.argv[1:] if arguments is None else arguments
    errors = sys.stderr
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = sys.stderr = io.StringIO()
    met: list[dist.Store] = []
    code = qwen3_next.exit_code("parallel.py", lambda: met.append(meet()))
    if not met:
        return code
    chatting = "--chat" in arguments
    parse = chat.parse_arguments if chatting else qwen3_next.parse_arguments
    args = parse([argument for argument in arguments if argument != "--chat"])
    args.chat = chatting
    code = qwen3_next.exit_code("parallel.py", run_or_say_why_not, args, met[0], errors)
    sys.stdout.flush()
    if code:
        os._exit(code)  # the usual end would wait for the ranks that wait for this one
    return 0


if __name__ == "__main__":
    sys.exit(main())
