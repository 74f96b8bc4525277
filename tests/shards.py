"""What one rank trains for test_train_fsdp.py. Started by torchrun with four processes: a helper, not a test.

torchrun --standalone --nproc-per-node 4 tests/shards.py FOLDER

Four ranks train FOLDER/start.pt for three steps together, and take a snapshot after the second; then two pairs do: one
from the start, the other from that snapshot. FOLDER/NAME.pt gets rank 0's losses and its last snapshot.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tiny"), str(ROOT)]
import train  # noqa: E402
import train_fsdp  # noqa: E402

from qwen3_next import Qwen3NextConfig, Qwen3NextForCausalLM  # noqa: E402

STEPS = 3


def rows(step: int, rank: int) -> torch.Tensor:
    """A rank's ids in a step, so few that most experts get none."""
    return torch.randint(0, 97, (1, 7), generator=torch.Generator().manual_seed(100 * step + rank))


def build(start: dict) -> tuple[Qwen3NextForCausalLM, list[torch.optim.Optimizer]]:
    """The model to start from, in float64, dealt out, and its optimizers."""
    model = Qwen3NextForCausalLM(Qwen3NextConfig(**start["fields"])).double()
    model.load_state_dict(start["model"])
    train_fsdp.shard(model, init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, train.make_optimizers(model, 1e-2, muon=False)


def compute(folder: Path, name: str, snapshot: str | None = None):
    """Trains, from a snapshot if one is named, and writes what became of the model."""
    model, optimizers = build(torch.load(folder / "start.pt"))
    first = 0
    if snapshot:
        state = torch.load(folder / snapshot)
        train_fsdp.restore(model, optimizers, state)
        first = state["step"]
    losses = []
    for step in range(first, STEPS):
        ids = rows(step, dist.get_rank())
        out = train_fsdp.step(model, optimizers, ids, ids, mtp=True)
        losses.append(train_fsdp.prediction_loss(out, model.config).item())
        state = train_fsdp.snapshot(model, optimizers, step=step + 1, losses=losses)
        if dist.get_rank() == 0:
            torch.save(state, folder / f"{name}-{step + 1}.pt")
    dist.barrier()


def main():
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    compute(folder, "four")
    rank = int(os.environ["RANK"])
    pair = rank // 2
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{folder}/pair{pair}", rank=rank % 2, world_size=2)
    compute(folder, ("two", "resumed")[pair], (None, "four-2.pt")[pair])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
