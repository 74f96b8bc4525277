"""Claim: the MTP layer computes what transformers' blocks and the NumPy reference do, and trains on the right ones."""

import pytest
import torch
import torch.nn.functional as F
from conftest import VARIANTS, random_model, tokens
from safetensors.torch import load_file
from transformers import Qwen3NextConfig as TheirConfig
from transformers.models.qwen3_next import modeling_qwen3_next as theirs

from qwen3_next import Qwen3NextForCausalLM
from reference_recurrent import Reference

MTP = {"mtp_num_hidden_layers": 1}
NAMES = ["base", "all_dense", "all_linear", "any_order", "tied", "attention_bias", "mlp_only_layers", "yarn"]


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return random_model(torch.float64, **VARIANTS[request.param], **MTP)


class Oracle(torch.nn.Module):
    """The same module assembled from transformers' decoder layer and norms."""

    def __init__(self, ours: Qwen3NextForCausalLM):
        super().__init__()
        fields = {**ours.config.to_dict(), "num_hidden_layers": 1, "layer_types": ["full_attention"]}
        fields |= {"mlp_only_layers": [], "decoder_sparse_step": 1, "attn_implementation": "eager"}
        config = TheirConfig(**fields)
        D, eps = config.hidden_size, config.rms_norm_eps
        self.fc = torch.nn.Linear(2 * D, D, bias=False)
        norms = (theirs.Qwen3NextRMSNorm(D, eps) for _ in range(3))
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden, self.norm = norms
        self.layers = torch.nn.ModuleList([theirs.Qwen3NextDecoderLayer(config, 0)])
        self.rotary = theirs.Qwen3NextRotaryEmbedding(config)
        state = ours.mtp.state_dict()
        if config.num_experts:  # theirs are fused
            fused = {name: [] for name in ("gate_proj", "up_proj", "down_proj")}
            for e in range(config.num_experts):
                for name, parts in fused.items():
                    parts.append(state.pop(f"layers.0.mlp.experts.{e}.{name}.weight"))
            gate, up, down = (torch.stack(parts) for parts in fused.values())
            state["layers.0.mlp.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
            state["layers.0.mlp.experts.down_proj"] = down
        missing, unexpected = self.load_state_dict(state, strict=False)
        assert not unexpected
        assert not missing
        self.double()

    def forward(self, hidden, embeds):
        x = self.fc(torch.cat([self.pre_fc_norm_embedding(embeds), self.pre_fc_norm_hidden(hidden)], dim=-1))
        T = x.shape[1]
        mask = torch.full((1, 1, T, T), -torch.inf, dtype=x.dtype).triu(1)
        position_ids = torch.arange(T)[None]
        x = self.layers[0](
            x, position_embeddings=self.rotary(x, position_ids), attention_mask=mask, position_ids=position_ids
        )
        return self.norm(x[0] if isinstance(x, tuple) else x)


@torch.no_grad()
def test_against_transformers_blocks(model):
    """Catches hidden and embedding swapped, pre-norm hidden states, a missing norm, and an own embedding or lm_head."""
    ids = tokens(2, 60)
    out = model(ids, output_mtp_logits=True)
    assert out.mtp_logits.shape == (2, 59, model.config.vocab_size)
    expected = model.lm_head(Oracle(model)(out.last_hidden_state[:, :-1], model.model.embed_tokens(ids[:, 1:])))
    # their rotary embedding and norms drop to float32
    assert (out.mtp_logits - expected).abs().max() / expected.std() < 1e-3
    assert expected.std() > 0.5


@torch.no_grad()
def test_against_the_reference(model, tmp_path):
    """Catches any wrong term: float64 on both sides, two right programs differ by about 1e-13."""
    model.save_pretrained(tmp_path)
    ids = tokens(1, 60)
    expected = torch.from_numpy(Reference.from_pretrained(tmp_path).mtp_logits(ids[0].tolist()))
    found = model(ids, output_mtp_logits=True).mtp_logits[0]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() / expected.std() < 1e-9


@torch.no_grad()
def test_padding_on_either_side(model):
    """Catches a pad's hidden state or embedding in the MTP layer's attention."""
    rows, width = [(0, 9), (4, 20), (7, 17), (23, 1)], 24
    ids, mask = tokens(4, width), torch.zeros(4, width, dtype=torch.long)
    for row, (start, length) in enumerate(rows):
        mask[row, start : start + length] = 1
    logits = model(ids, attention_mask=mask, output_mtp_logits=True).mtp_logits
    for row, (start, length) in enumerate(rows[:3]):
        alone = model(ids[row : row + 1, start : start + length], output_mtp_logits=True).mtp_logits[0]
        found = logits[row, start : start + length - 1]
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-10)


@torch.no_grad()
def test_positions():
    """Catches positions that reach the model only: uneven ones, with padding on the left."""
    model, ids = random_model(**MTP), tokens(1, 12)
    positions = torch.arange(12)[None] * 3 + torch.arange(12)[None] ** 2
    expected = model(ids, position_ids=positions, output_mtp_logits=True).mtp_logits
    mask = torch.tensor([[0] * 3 + [1] * 12])
    padded, shifted = F.pad(ids, (3, 0)), F.pad(positions, (3, 0))
    found = model(padded, mask, shifted, output_mtp_logits=True).mtp_logits[:, 3:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    hidden, embeds = model.model(ids, position_ids=positions).last_hidden_state, model.model.embed_tokens(ids)
    plain = model.lm_head(model.look_ahead(hidden[:, :-1], embeds[:, 1:]))
    assert not torch.allclose(plain, expected)
    found = model.lm_head(model.look_ahead(hidden[:, :-1], embeds[:, 1:], positions=positions[:, :-1]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_training_loss():
    """Catches targets shifted by one, -100 or padding that counts, the wrong weight, and gradients that stop short."""
    model = random_model(torch.float64, **MTP)
    ids, labels = tokens(2, 12), tokens(2, 12, seed=1)
    labels[0, 5] = -100
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    mask[1, 10:] = 0
    out = model(ids, attention_mask=mask, labels=labels, output_mtp_logits=True)
    plain = model(ids, attention_mask=mask, labels=labels)
    rows = [(0, i) for i in range(10) if i + 2 != 5] + [(1, i) for i in range(4, 8)]
    losses = [F.cross_entropy(out.mtp_logits[b, i], labels[b, i + 2]) for b, i in rows]
    assert out.mtp_loss.item() == pytest.approx(sum(losses).item() / len(rows), rel=1e-12)
    assert out.loss.item() == pytest.approx((plain.loss + 0.1 * out.mtp_loss).item(), rel=1e-12)
    assert plain.mtp_loss is None
    out.mtp_loss.backward()
    ungraded = {name for name, p in model.named_parameters() if p.grad is None}
    assert all(".experts." in name for name in ungraded), ungraded  # but for experts that no token chose
    assert model(ids[:, :2], labels=labels[:, :2], output_mtp_logits=True).mtp_loss.item() == 0


@pytest.mark.parametrize("shard_size", ["5GB", "60KB"])
def test_round_trip(tmp_path, shard_size):
    """Catches mtp.* tensors that are dropped in loading or saving, as transformers and mlx-lm drop them."""
    model = random_model(torch.float32, **MTP)
    del model.config.mtp_num_hidden_layers  # the released config.json does not say
    model.save_pretrained(tmp_path / "a", max_shard_size=shard_size)
    again = Qwen3NextForCausalLM.from_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "b")
    saved = load_file(tmp_path / "b" / "model.safetensors")
    assert saved.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(saved[name], p) for name, p in model.named_parameters())
    assert "mtp.layers.0.mlp.experts.7.down_proj.weight" in saved
    their_model = theirs.Qwen3NextForCausalLM.from_pretrained(tmp_path / "b")
    their_model.save_pretrained(tmp_path / "c")  # drops mtp.*, keeps the config's keys
    assert Qwen3NextForCausalLM.from_pretrained(tmp_path / "c").mtp is None


def test_errors(tmp_path):
    """Catches an attribute error where there is no MTP layer, and an answer where none is right."""
    model, plain, ids = random_model(**MTP), random_model(), tokens(1, 5)
    with pytest.raises(ValueError, match=r"no mtp\.\* tensors"):
        plain(ids, output_mtp_logits=True)
    with pytest.raises(ValueError, match=r"no mtp\.\* tensors"):
        plain.generate(ids, num_draft_tokens=1)
    with pytest.raises(ValueError, match="whole sequences"):
        model(ids, past_key_values=model.make_cache(1), output_mtp_logits=True)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        model(ids[:, :1], output_mtp_logits=True)
    with pytest.raises(ValueError, match="one sequence, not 2"):
        model.generate(tokens(2, 5), num_draft_tokens=1)
    with pytest.raises(ValueError, match="num_draft_tokens is -1"):
        model.generate(ids, num_draft_tokens=-1)
    plain.save_pretrained(tmp_path)
    with pytest.raises(KeyError, match=r"mtp\."):
        Reference.from_pretrained(tmp_path).mtp_logits([1, 2])
    with pytest.raises(ValueError, match="at least 2"):
        Reference.from_pretrained(tmp_path).mtp_logits([5])
    with pytest.raises(ValueError, match="mtp_num_hidden_layers is 2"):
        random_model(mtp_num_hidden_layers=2)
