"""Claim: on a GPU, everything is where it should be, and the CPU waits for it no more often than docs/scale.md says.

No GPU is used: the device is the one of fake_cuda.py, which computes on the CPU and counts.
"""

import re
from collections import Counter

import pytest
import torch
from conftest import BASE, ROOT, random_model, tokens
from fake_cuda import CAN_BE_FAKED, FakeCuda
from ranks import results

import parallel
from qwen3_next import Experts, Qwen3NextConfig, Qwen3NextForCausalLM, Qwen3NextForSequenceClassification
from qwen3_next_checkpoints import grouped

on_fake_cuda = pytest.mark.skipif(not CAN_BE_FAKED, reason="fake_cuda.py knows PyTorch's files on Linux and macOS")
SOURCE = (ROOT / "qwen3_next.py").read_text(encoding="utf-8").splitlines()
# Widths whose rows have multiples of 16 bytes, which grouped_mm asks for
EVEN = {"hidden_size": 48, "moe_intermediate_size": 24, "mtp_num_hidden_layers": 1}


def named(counts: Counter) -> dict[str, int]:
    """Counts by the text of the line."""
    return {SOURCE[int(place.partition(":")[2]) - 1].strip(): n for place, n in counts.items()}


@on_fake_cuda
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_feature(dtype):
    """Catches a tensor that is made on the CPU, a mask or an index say, and meets one on the GPU."""
    expected = results(random_model(dtype, **EVEN))
    model = random_model(dtype, **EVEN)
    with FakeCuda():
        model.to("cuda")
        grouped.stack(model, Experts)
        found = results(model)
    assert (model.model.layers[0].mlp.experts.grouped is None) == (dtype == torch.float64)
    for key, x in expected.items():
        close = {"rtol": 0, "atol": 1e-9 if dtype == torch.float64 else 1e-3}
        torch.testing.assert_close(found[key], x, **close) if x.is_floating_point() else None
        assert x.is_floating_point() or torch.equal(found[key], x), key


@on_fake_cuda
@torch.no_grad()
def test_heads_and_losses():
    """Catches labels, or the place of the last token, on another device than the logits."""
    ids = tokens(2, 20)
    mask = torch.ones_like(ids)
    mask[0, 15:] = 0
    model = random_model()
    classifier = Qwen3NextForSequenceClassification(model.config).double()
    losses = [
        model(ids, mask, labels=ids, output_router_logits=True).loss,
        classifier(ids, mask, labels=ids[:, 0] % 2).loss,
    ]
    with FakeCuda():
        places = {"labels": ids.to("cuda"), "output_router_logits": True}
        found = [model.to("cuda")(ids.to("cuda"), mask.to("cuda"), **places).loss.cpu()]
        found.append(
            classifier.to("cuda")(ids.to("cuda"), mask.to("cuda"), labels=(ids[:, 0] % 2).to("cuda")).loss.cpu()
        )
    torch.testing.assert_close(found, losses)


@on_fake_cuda
@pytest.mark.parametrize(
    ("free", "rest", "experts"), [(2**40, "cuda", "cuda"), (2 * 10**6, "cuda", "cpu"), (1, "cpu", "cpu")]
)
def test_auto_placement(checkpoint, free, rest, experts):
    """Catches weights that go to a GPU that has no room for them, and an x that does not follow them."""
    ids = tokens(1, 12)
    expected = Qwen3NextForCausalLM.from_pretrained(checkpoint, "float32").generate(ids, max_new_tokens=5)
    with FakeCuda(free):
        model = Qwen3NextForCausalLM.from_pretrained(checkpoint, "float32", "auto")
        sizes = sum(p.nbytes for name, p in model.named_parameters() if ".experts." not in name)
        assert free != 2 * 10**6 or sizes < 0.9 * free < sum(p.nbytes for p in model.parameters())
        places = {".experts." in name: p.device.type for name, p in model.named_parameters()}
        assert places == {False: rest, True: experts}
        assert (model.model.layers[0].mlp.experts.grouped is not None) == (experts == "cuda")
        found = model.generate(ids.to(model.device), max_new_tokens=5).cpu()
    assert torch.equal(found, expected)


def per_token(model: Qwen3NextForCausalLM, **options) -> tuple[dict[str, int], int]:
    """The waits by line, and the kernels, of one more greedy token."""
    counts = []
    for new in (3, 4):
        with FakeCuda() as cuda:
            ids = tokens(1, 9).to("cuda")
            cuda.waits.clear()
            cuda.kernels.clear()
            model.generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=[96], **options)
        counts.append((cuda.waits, cuda.kernels.total()))
    (waits, kernels), (more, total) = counts
    more.subtract(waits)
    return named(+more), total - kernels


def on_gpu(stacked: bool, **fields) -> Qwen3NextForCausalLM:
    """A random model there, in float32."""
    model = random_model(torch.float32, **{**EVEN, **fields})
    with FakeCuda():
        model.to("cuda")
        if stacked:
            grouped.stack(model, Experts)
    return model


@on_fake_cuda
def test_waits_of_a_token():
    """Catches a copy between the devices, or a look at a value, in each pass: the GPU idles until the CPU goes on."""
    rest = {
        "while ids.shape[1] < T + limit and not done.all():": 1,
        "if done.all():": 1,
        "self.mask = None if going is None or going.all() else going[:, None]": 1,
    }
    assert per_token(on_gpu(stacked=True))[0] == rest
    loop = {"outputs = [self[e](row) for e in experts[0].tolist()]": 5}  # once a layer
    assert per_token(on_gpu(stacked=False))[0] == {**rest, **loop}


@on_fake_cuda
def test_kernels_of_a_token():
    """Catches figures in docs/scale.md that the code has moved away from, by a tenth or more."""
    fields = {"num_experts": 16, "num_experts_per_tok": 10}
    document = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for stacked, name in ((False, "each expert by itself"), (True, "all in two products")):
        four, eight = (per_token(on_gpu(stacked, num_hidden_layers=n, **fields))[1] for n in (4, 8))
        of_80b = four + 11 * (eight - four)
        written = int(re.search(rf"{name} \| ([\d,]+) \|", document)[1].replace(",", ""))
        assert abs(of_80b - written) < 0.1 * written, of_80b


@on_fake_cuda
def test_mixed_devices_are_noticed():
    """Catches a device that lets pass what a GPU would refuse: the tests above would prove nothing."""
    with FakeCuda(10**9, 10**9) as cuda:
        x, y = torch.ones(3, device="cuda"), torch.ones(3, device="cuda:1")
        for other, name in ((torch.ones(3), "the CPU"), (y, "cuda:1"), (y[0], "cuda:1")):
            with pytest.raises(AssertionError, match=f"tensors on cuda:0 and on {name}"):
                x + other
        one = torch.tensor([1])
        for place, index in ((x, one.to("cuda:1")), (torch.ones(3), one.to("cuda")), (x, one.to("cuda:1") > 0)):
            with pytest.raises(AssertionError, match="tensors on cuda"):
                place[index]
        cuda.waits.clear()
        assert (x + y.to("cuda") + y.to(x)).device == x.device
        assert not cuda.waits
        assert torch.equal(x[one].cpu(), torch.ones(1))
        assert cuda.waits.total() == 2
        assert (x + torch.tensor(1.0)).sum().item() == 6
        assert cuda.waits.total() == 3


# ==== Grouped experts =================================================================================================


def stacked_pair(dtype: torch.dtype) -> tuple[Qwen3NextForCausalLM, Qwen3NextForCausalLM]:
    """A model, and the same one with its experts stacked, on the CPU."""
    plain, stacked = random_model(dtype, **EVEN), random_model(dtype, **EVEN)
    grouped.stack(stacked, Experts)
    return plain, stacked


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="this PyTorch has no grouped_mm")
class TestGrouped:
    @pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
    @torch.no_grad()
    def test_the_sum_is_the_same(self, dtype, limit):
        """Catches rows given to another expert, weights in another order, and an expert without rows."""
        plain, stacked = (model.model.layers[0].mlp.experts for model in stacked_pair(dtype))
        for count in (1, 2, 50):
            x = torch.randn(count, 48, dtype=dtype)
            chosen = torch.stack([torch.randperm(6)[:3] for _ in range(count)])  # never experts 6 and 7
            weights = torch.rand(count, 3, dtype=dtype)
            expected = plain(x, weights, chosen)
            assert (stacked(x, weights, chosen) - expected).abs().max() < limit * expected.std()

    @torch.no_grad()
    def test_others_experts_add_nothing(self):
        """Catches what grouped_mm leaves unwritten after the last expert's rows, which may be anything."""
        plain, stacked = (model.model.layers[0].mlp.experts for model in stacked_pair(torch.float32))
        x = torch.randn(30, 48)
        chosen = torch.stack([torch.randperm(8)[:3] for _ in range(30)])
        weights = torch.rand(30, 3)
        masked = torch.where(chosen % 2 == 0, chosen, 8)
        expected = plain(x, weights * (chosen % 2 == 0), chosen)
        torch.testing.assert_close(stacked.grouped(x, weights, masked), expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("count", [1, 30])
    @torch.no_grad()
    def test_dealt_out_to_ranks(self, count):
        """Catches an expert that two ranks compute, or none."""
        plain, stacked = stacked_pair(torch.float32)
        layers = [model.model.layers[0].mlp for model in (plain, stacked)]
        x = torch.randn(count, 48)
        chosen = torch.stack([torch.randperm(8)[:3] for _ in range(count)])
        weights = torch.rand(count, 3)
        total = 0
        for rank in range(3):
            share = parallel.Share(
                Qwen3NextConfig(**{**BASE, "num_key_value_heads": 3, "linear_num_key_heads": 3}), rank, 3
            )
            layers[1].experts = parallel.DealtExperts(plain.model.layers[0].mlp.experts, share)
            one_by_one = layers[1].experts(x, weights, chosen)
            grouped.stack(layers[1], Experts)
            assert layers[1].experts.grouped
            torch.testing.assert_close(layers[1].experts(x, weights, chosen), one_by_one, rtol=0, atol=1e-4)
            total = total + one_by_one
        torch.testing.assert_close(total, layers[0].experts(x, weights, chosen), rtol=0, atol=1e-4)

    def test_names_and_values_stay(self, tmp_path):
        """Catches a state_dict with other names or values, and a saved folder with stacks in it."""
        plain, stacked = stacked_pair(torch.float32)
        one, other = plain.state_dict(), stacked.state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        stacked.save_pretrained(tmp_path / "saved")
        again = Qwen3NextForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
        assert all(torch.equal(one[name], again[name]) for name in one)

    def test_gradients_take_the_loop(self):
        """Catches a training whose experts learn nothing."""
        plain, stacked = stacked_pair(torch.float32)
        for model in (plain, stacked):
            model(tokens(1, 30), labels=tokens(1, 30)).loss.backward()
        for (name, p), q in zip(plain.named_parameters(), stacked.parameters()):
            torch.testing.assert_close(p.grad, q.grad, msg=name)

    @pytest.mark.parametrize("change", ["adapter", "parameter", "cast", "data", "in place"])
    @torch.no_grad()
    def test_changes_are_obeyed(self, change):
        """Catches weights that are computed with although the model has others by now."""
        models = stacked_pair(torch.float32)
        for model in models:
            expert = model.model.layers[0].mlp.experts[3]
            if change == "adapter":
                expert.up_proj = torch.nn.Sequential(expert.up_proj, torch.nn.Dropout(1.0).train())
            elif change == "parameter":
                expert.up_proj.weight = torch.nn.Parameter(2 * expert.up_proj.weight)
            elif change == "cast":
                model.double()
            elif change == "data":  # as in some tools that merge adapters
                for p in model.model.layers[0].mlp.experts.parameters():
                    p.data = 2 * p.data
            else:
                expert.up_proj.weight.mul_(2)
        plain, stacked = models
        torch.testing.assert_close(stacked(tokens(1, 40)).logits, plain(tokens(1, 40)).logits, rtol=0, atol=1e-4)
        assert (stacked.model.layers[0].mlp.experts.grouped is not None) == (change == "in place")

    def test_what_grouped_mm_refuses_is_left_as_it_is(self):
        """Catches an error in place of the loop: float64, and rows of 20 bytes."""
        for model in (random_model(), random_model(torch.float32, moe_intermediate_size=5)):
            grouped.stack(model, Experts)
            model.generate(tokens(1, 5), max_new_tokens=2)

    @torch.no_grad()
    def test_export(self):
        """Catches a look at a value in a pass without a cache, which a graph that is exported can't have."""

        class Logits(torch.nn.Module):
            def __init__(self, model: torch.nn.Module):
                super().__init__()
                self.model = model

            def forward(self, ids: torch.Tensor) -> torch.Tensor:
                return self.model(ids, use_cache=False).logits

        model = Logits(stacked_pair(torch.bfloat16)[1])
        graph = torch.export.export(model, (tokens(1, 24),)).module()
        other = tokens(1, 24, seed=1)
        torch.testing.assert_close(graph(other), model(other), rtol=0, atol=0.2)

    @torch.no_grad()
    def test_compile(self):
        """Catches a step that is compiled in pieces: each break goes back to Python."""
        model = stacked_pair(torch.bfloat16)[1]
        ids = tokens(1, 24)
        step = torch.compile(
            lambda ids, cache: model(ids, past_key_values=cache).logits, fullgraph=True, backend="eager"
        )
        cache, expected = model.make_cache(1), model.make_cache(1)
        for piece in ids[:, :21].split([20, 1], dim=1):
            logits = model(piece, past_key_values=expected).logits
            torch.testing.assert_close(step(piece, cache), logits, rtol=0, atol=0.2)
