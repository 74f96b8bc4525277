"""Claim: experts computed in grouped products, as on a GPU, give what they give one by one, and follow every change."""

import pytest
import torch
from conftest import BASE, random_model, tokens

import parallel
from qwen3_next import Experts, Qwen3NextConfig, Qwen3NextForCausalLM
from qwen3_next_checkpoints import grouped

EVEN = {"hidden_size": 48, "moe_intermediate_size": 24, "mtp_num_hidden_layers": 1}


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

    @pytest.mark.parametrize("change", ["adapter", "parameter", "cast", "in place"])
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
