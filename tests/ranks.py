"""What one rank computes for test_parallel.py. Started by torchrun with four processes: a helper, not a test.

`results` is also what test_cuda.py and benchmarks/on_gpu.py compare.

torchrun --standalone --nproc-per-node 4 tests/ranks.py FOLDER

FOLDER holds models, each a folder. Four ranks compute them together, then, as two pairs, half of them each. Of each
model and number of ranks FOLDER/NAME-RANKS.pt gets rank 0's results.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import parallel  # noqa: E402


@torch.no_grad()
def results(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Logits of every kind of pass, and tokens of every way to generate, on the CPU."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.config.vocab_size, (2, 41), generator=generator).to(model.device)
    left = torch.ones_like(ids)
    left[1, :13] = 0
    packed = torch.cat([torch.arange(15), torch.arange(20), torch.arange(6)]).to(model.device)[None].expand(2, -1)
    cache = model.make_cache(2)
    masks = (left[:, :30], left[:, :31], left[:, :34], left)
    ends = (0, 30, 31, 34, 41)
    pieces = [
        model(ids[:, start:end], mask, past_key_values=cache).logits for start, end, mask in zip(ends, ends[1:], masks)
    ]
    prompt = ids[:1, :9]
    more = {"max_new_tokens": 12, "eos_token_id": None}
    found = {
        "forward": model(ids).logits,
        "padded": model(ids, left).logits * left[..., None],
        "packed": model(ids, position_ids=packed).logits,
        "cached": torch.cat(pieces, dim=1) * left[..., None],
        "MTP": model(ids, left, output_mtp_logits=True).mtp_logits * left[:, :-1, None],
        "greedy": model.generate(prompt, do_sample=False, **more),
        "drafts": model.generate(prompt, do_sample=False, num_draft_tokens=2, **more),
        "sampled": model.generate(prompt, temperature=1.0, seed=5, **more),
        "sampled drafts": model.generate(prompt, temperature=1.0, seed=5, num_draft_tokens=2, **more),
        "batch": model.generate(ids, left, do_sample=False, **more),
    }
    return {key: x.cpu() for key, x in found.items()}


def compute(folder: Path, names: list[str]):
    """Loads the models of those names, and writes what comes out."""
    for name in names:
        model = parallel.ParallelForCausalLM.from_pretrained(folder / name, "float64", "cpu")
        found = results(model)
        sizes = [None] * dist.get_world_size()
        dist.all_gather_object(sizes, sum(p.nbytes for p in model.parameters()))
        same = [None] * dist.get_world_size()
        dist.all_gather_object(same, found)
        assert all(torch.equal(x, other[key]) for other in same for key, x in found.items()), f"{name}: ranks differ"
        if dist.get_rank() == 0:
            torch.save({**found, "bytes": sizes}, folder / f"{name}-{dist.get_world_size()}.pt")


def main():
    folder = Path(sys.argv[1])
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    parallel.meet()
    compute(folder, names)
    rank = int(os.environ["RANK"])
    pair = rank // 2
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{folder}/pair{pair}", rank=rank % 2, world_size=2)
    compute(folder, names[pair::2])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
