"""Claim: the verification kit names the first value that is wrong, and is silent where nothing is."""

import json
import math
import os
import subprocess
import sys

import break_lines
import numpy as np
import pytest
import torch
from conftest import ROOT, random_model, tokens

import qwen3_next as q
import reference_recurrent as reference

sys.path.insert(0, str(ROOT))
from verify import compare, golden, mutations, scenarios, trace  # noqa: E402


@pytest.fixture(scope="module", params=[*golden.MODELS, "tiny"])
def checkpoint(request, tmp_path_factory):
    """A folder: one of the awkward random models, or tiny/."""
    return golden.checkpoint(request.param, tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("scenario", scenarios.PASSES)
def test_both_implementations_have_the_same_values(checkpoint, scenario):
    """Catches a tap on the wrong tensor, in either: every key of every step, float64."""
    arbiter = reference.Reference.from_pretrained(checkpoint)
    model = q.Qwen3NextForCausalLM.from_pretrained(checkpoint, "float64")
    told = scenarios.steps_of(scenario, scenarios.random_tokens(model.config.vocab_size, 3), model.mtp is not None)
    ours, _ = scenarios.run(model, told)
    theirs = scenarios.run_reference(arbiter, told)
    assert ours.keys() == theirs.keys()
    split = [compare.split_batches(compare.Trace(steps, told, {}), told, "right").steps for steps in (ours, theirs)]
    for step in split[0]:
        assert split[0][step].keys() == split[1][step].keys(), step
        for key, x in split[0][step].items():
            assert x.shape == split[1][step][key].shape, key
            assert np.abs(x - split[1][step][key]).max() < 1e-9 * max(1, np.abs(x).max()), f"{step}/{key}"


def test_every_stage_is_described(checkpoint):
    """Catches a key that the table of stages does not have, or with other axes."""
    model = q.Qwen3NextForCausalLM.from_pretrained(checkpoint)
    found = q.Trace("*", "*.chunk.*")
    model(
        torch.tensor([scenarios.random_tokens(model.config.vocab_size, 0, 70)]),
        trace=found,
        output_mtp_logits=bool(model.mtp),
    )
    for key, x in found.items():
        axes, equation = compare.STAGES[compare.stage_of(key)]
        assert len(axes.split()) == x.ndim, key
        assert equation
    assert list(found) != sorted(found)


def test_values_are_copies_and_globs_choose():
    """Catches views that a later step changes, and keys nobody asked for."""
    model, ids = random_model(torch.float32), tokens(1, 20)
    cache, first = model.make_cache(1), q.Trace("*.linear_attn.state", "*.k_rope")
    model(ids, past_key_values=cache, trace=first)
    before = {key: x.clone() for key, x in first.items()}
    model(ids, past_key_values=cache, trace={})
    assert all(torch.equal(x, before[key]) for key, x in first.items())
    assert {key.rpartition(".")[2] for key in first} == {"state", "k_rope"}
    with pytest.raises(ValueError, match="expected an empty dict"):
        model(ids, trace=first)
    assert q.tracer is None


def test_tracing_changes_nothing():
    """Catches a tap that alters what it records, and hooks left behind."""
    model, ids = random_model(torch.float64, mtp_num_hidden_layers=1), tokens(2, 70)
    plain = model(ids, output_mtp_logits=True)
    traced = model(ids, output_mtp_logits=True, trace={})
    assert torch.equal(plain.logits, traced.logits)
    assert torch.equal(plain.mtp_logits, traced.mtp_logits)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_chunked_intermediates():
    """Catches chunk.* values that are not the ones of the equations: M, u and w give the deltas and the next state."""
    model, ids = random_model(torch.float64), tokens(1, 150)
    found = q.Trace("model.layers.0.*")
    model(ids, trace=found)
    assert not any("chunk" in key for key in found)
    chunks = q.Trace("model.layers.0.linear_attn.*", "model.layers.0.linear_attn.chunk.*")
    model(ids, trace=chunks)
    at = {key.removeprefix("model.layers.0.linear_attn."): x for key, x in chunks.items()}
    A, M = at["chunk.A"], at["chunk.M"]
    H, N, C, _ = A.shape
    padded = torch.cat([at["beta"], at["beta"].new_zeros(N * C - 150, H)]).T.reshape(H, N, C)
    assert torch.allclose((torch.eye(C) + A) @ M, torch.diag_embed(padded), atol=1e-12)
    k = torch.cat([at["k_l2norm"], at["k_l2norm"].new_zeros(N * C - 150, H, at["k_l2norm"].shape[-1])])
    k = k.permute(1, 0, 2).reshape(H, N, C, -1)
    g = torch.cat([at["g"], at["g"].new_zeros(N * C - 150, H)]).T.reshape(H, N, C)
    G = g.cumsum(-1)
    delta = at["chunk.u"][:, 0] - at["chunk.w"][:, 0] @ at["chunk.0.state"]
    state = (k[:, 0] * (G[:, 0, -1:] - G[:, 0]).exp()[..., None]).transpose(1, 2) @ delta
    assert torch.allclose(state, at["chunk.1.state"], atol=1e-12)


@pytest.fixture(scope="module")
def bench(tiny):
    return mutations.Bench(tiny)


def test_the_lines_of_the_known_bugs_are_there():
    """Catches a change of qwen3_next.py that leaves one of the lines behind that mutations and breaks replace."""
    source = (ROOT / "qwen3_next.py").read_text(encoding="utf-8")
    blind = json.loads((ROOT / "verify" / "mutations_blind.json").read_bytes())
    lines = [old for old, *_ in mutations.MUTATIONS.values()] + [one["old"] for one in blind]
    lines += [line for _, line, *_ in break_lines.BREAKS]
    assert [line for line in lines if source.count(line) != 1] == []


NAMES = [*mutations.MUTATIONS][:: 1 if os.environ.get("VERIFY_ALL") else 5]


@pytest.mark.parametrize("name", NAMES)
def test_bugs_are_located(bench, tmp_path, name):
    """Catches a comparison that names a later key, or none. All of them: VERIFY_ALL=1, or verify/mutations.py."""
    old, new, expected, _ = mutations.MUTATIONS[name]
    source = (ROOT / "qwen3_next.py").read_text(encoding="utf-8")
    assert source.count(old) == 1
    module = mutations.load(source.replace(old, new), 1, tmp_path)
    row = bench.first(module, "float32")
    assert mutations.re.fullmatch(expected, row.name) or mutations.re.fullmatch(expected, mutations.plain_key(row.name))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("isolated", [False, True])
def test_no_false_alarm(tiny, dtype, isolated):
    """Catches a threshold below the noise: other tokens than those it was measured on."""
    assert mutations.Bench(tiny, 77).first(q, dtype, isolated) is None


def test_a_bug_in_bfloat16_is_found_in_isolation(bench, tmp_path):
    """Catches isolated mode that inherits errors: the error at one stage, deep in the stack, in bfloat16."""
    old = "g = -upcast(self.A_log).exp() * F.softplus(upcast(a) + upcast(self.dt_bias))"
    new = old + " * (1.02 if self.out_proj.weight is LAST else 1)"
    source = (ROOT / "qwen3_next.py").read_text(encoding="utf-8").replace(old, new) + "\nLAST = None\n"
    module = mutations.load(source, 2, tmp_path)
    ref = bench.refs["decode"]
    model = module.Qwen3NextForCausalLM.from_pretrained(bench.model, "bfloat16")
    module.LAST = model.model.layers[7].linear_attn.out_proj.weight
    steps, _ = scenarios.run(model, ref.tokens, module=module)
    mine = compare.split_batches(compare.Trace(steps, ref.tokens, {}), ref.tokens, "right")
    done = compare.compare(ref, mine, dtype="bfloat16", isolated=True, reference=bench.reference)
    assert done.first.name == "prefill/model.layers.7.linear_attn.g"


def changed(bench, change):
    """compare()'s result when one array of a sound trace is changed: step, key -> new values."""
    ref = bench.refs["decode"]
    mine = {step: {key: change(step, key, x) for key, x in found.items()} for step, found in ref.steps.items()}
    mine = {step: {key: x for key, x in found.items() if x is not None} for step, found in mine.items()}
    return compare.compare(ref, compare.Trace(mine, ref.tokens, {}), dtype="float32")


def test_layouts_are_recognised(bench):
    """Catches a legal layout called wrong, and an illegal one called legal."""

    def flat(step, key, x):
        return x.reshape(len(x), -1) if key.endswith("norm.out") else x

    def transposed(step, key, x):
        return x.swapaxes(-1, -2) if key.endswith("linear_attn.state") else x

    order = [0, 2, 1, 3]

    def tiled(step, key, x, only=None):
        axes = compare.STAGES[compare.stage_of(key)][0].split()
        if "value_head" not in axes or (only and not key.endswith(only)):
            return x
        return x.take(order, axes.index("value_head"))

    assert changed(bench, flat).first is None
    assert changed(bench, transposed).first is None
    assert changed(bench, tiled).first is None, "all that has value heads is in another order"
    done = changed(bench, lambda *a: tiled(*a, only="k_l2norm"))
    assert done.first.name == "prefill/model.layers.1.linear_attn.k_l2norm"
    assert "tiled" in done.first.causes[0]


def test_a_choice_within_noise_is_a_tie(bench):
    """Catches a router that is called wrong for what rounding decides, and a wrong one that passes for a tie."""
    reference_steps, key = bench.refs["decode"].steps["prefill"], "model.layers.3.mlp.topk_ids"
    margin, p = reference_steps["model.layers.3.mlp.margin"], reference_steps["model.layers.3.mlp.router_probs"]
    close, far = int(margin.argmin()), int(margin.argmax())

    def swap(token):
        def change(step, name, x):
            if step == "prefill" and name == "model.layers.3.mlp.router_probs" and token == close:
                x = x.copy()  # rounding has brought the two together
                order = np.argsort(-p[token])
                x[token, order[3]], x[token, order[4]] = x[token, order[4]], x[token, order[3]]
            if step == "prefill" and name == key:
                x = x.copy()
                next_best = np.argsort(-p[token])[4]
                x[token, np.flatnonzero(x[token] == np.argsort(-p[token])[3])] = next_best
            return x

        return change

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare.Noise, "allowed", lambda self, key: 1e-2)  # coarse, so that the closest pair is within it
        tie = changed(bench, swap(close))
        assert [row.verdict for row in tie.rows if row.name == f"prefill/{key}"] == ["tie"]
        wrong = changed(bench, swap(far))
        assert wrong.first.name == f"prefill/{key}"


def test_what_follows_a_tie_is_compared(bench):
    """Catches later values that are left out after a tie, where the reference could go on with the other choice.

    A draft's own pass is the exception: it is not run again, so after a tie in it the rest of that draft is left out.
    """
    for _, ref, mine in bench.traces(q, "bfloat16"):
        done = compare.compare(ref, mine, dtype="bfloat16", reference=bench.reference)
        assert done.first is None
        assert any(row.verdict == "tie" for row in done.rows)
        assert not any("compared up to" in row.note for row in done.rows)
        shared = {(step, key) for step in ref.steps for key in ref.steps[step].keys() & mine.steps[step].keys()}
        left_out = shared - {(row.step, row.key) for row in done.rows}
        assert all(key.endswith("margin") or step.startswith("draft ") for step, key in left_out)


def test_command_lines(tmp_path, tiny):
    """Catches a trace that the command line writes and the kit can't read, other exit codes, and half-written files."""

    def run(*command):
        return subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)

    mine, ref = tmp_path / "mine.safetensors", tmp_path / "ref.safetensors"
    made = run("qwen3_next.py", "--prompt", "Hello!", "--dtype", "float32", "--trace", mine, "--max-new-tokens", 2)
    assert made.returncode == 0, made.stderr
    made = run("reference_recurrent.py", "--model", tiny, "--like", mine, "--trace", ref)
    assert made.returncode == 0, made.stderr
    same = run("verify/compare.py", ref, mine)
    assert (same.returncode, same.stderr) == (0, "")
    assert "agree: " in same.stdout
    manifest = compare.read_trace(mine).manifest
    assert manifest["dtype"] == "float32"
    assert manifest["config_sha256"] == trace.config_hash(json.loads((tiny / "config.json").read_bytes()))
    line = manifest["stages"]["linear_attn.g"]["line"]
    source = (ROOT / "qwen3_next.py").read_text(encoding="utf-8").splitlines()
    assert "tap(" in source[int(line.partition(":")[2]) - 1]

    arrays, _ = compare.read_arrays(ref)
    wrong = {key: x * 1.5 if key.endswith("layers.2.linear_attn.g") else x for key, x in arrays.items()}
    np.savez(tmp_path / "wrong.npz", **wrong)  # no manifest, another format
    found = run("verify/compare.py", ref, tmp_path / "wrong.npz")
    assert found.returncode == 1
    assert "first: model.layers.2.linear_attn.g " in found.stdout
    found = run("verify/compare.py", ref, tmp_path / "wrong.npz", "--json")
    assert json.loads(found.stdout)["first"] == "model.layers.2.linear_attn.g"

    np.savez(tmp_path / "other.npz", x=np.ones(3))
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for command in (
        (ref, tmp_path / "other.npz"),
        (ref, tmp_path / "broken.safetensors"),
        (ref, tmp_path / "none.npz"),
        (ref, mine, "--isolated"),
        (ref, mine, "--alias", tmp_path / "none.json"),
    ):
        failed = run("verify/compare.py", *command)
        assert (failed.returncode, len(failed.stderr.splitlines())) == (2, 1), failed.stderr
    none = run("qwen3_next.py", "--prompt", "Hello!", "--trace", tmp_path / "no" / "where.safetensors")
    assert (none.returncode, len(none.stderr.splitlines())) == (1, 1)
    none = run("qwen3_next.py", "--prompt", "Hello!", "--trace", mine, "--trace-keys", "nothing.*")
    assert (none.returncode, len(none.stderr.splitlines())) == (1, 1)
    none = run("qwen3_next.py", "--score", ROOT / "README.md", "--trace", tmp_path / "none")
    assert (none.returncode, len(none.stderr.splitlines())) == (1, 1)
    (tmp_path / "alone.py").write_bytes((ROOT / "qwen3_next.py").read_bytes())
    none = run(tmp_path / "alone.py", "--model", tiny, "--prompt", "Hello!", "--trace", tmp_path / "none")
    assert (none.returncode, len(none.stderr.splitlines())) == (1, 1)
    assert not (tmp_path / "none").exists()
    none = run(
        "reference_recurrent.py", "--model", tiny, "--like", mine, "--layers", "2:99", "--trace", tmp_path / "none"
    )
    assert (none.returncode, len(none.stderr.splitlines())) == (1, 1)
    run("verify/scenarios.py", "--out", tmp_path, "--scenario", "speculation", "--dtype", "float32")
    drafts = tmp_path / "speculation.safetensors"
    made = run("reference_recurrent.py", "--model", tiny, "--like", drafts, "--trace", tmp_path / "drafts.safetensors")
    assert made.returncode == 0, made.stderr
    assert "mtp.logits" in compare.read_trace(tmp_path / "drafts.safetensors").steps["draft 2"]
    part = run("reference_recurrent.py", "--model", tiny, "--like", mine, "--layers", "2:4", "--trace", ref)
    assert part.returncode == 0, part.stderr
    keys = set(compare.read_trace(ref).steps[""])
    assert {key.split(".")[2] for key in keys} == {"2", "3"}
    assert run("verify/compare.py", ref, mine).returncode == 0


def test_layers_need_only_their_shards(tmp_path):
    """Catches an arbiter that opens files which the layers asked for do not need."""
    model = random_model(torch.float32)
    model.save_pretrained(tmp_path, max_shard_size=20_000)
    ids = tokens(1, 9)[0].tolist()
    whole = reference.Reference.from_pretrained(tmp_path).trace(ids)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_bytes())["weight_map"]
    needed = {file for name, file in index.items() if name.startswith(("model.layers.0.", "model.embed_tokens"))}
    for file in set(index.values()) - needed:
        (tmp_path / file).unlink()
    part = reference.Reference.from_pretrained(tmp_path).trace(ids, layers=range(1))
    assert part
    for key, x in part.items():
        assert np.array_equal(x, whole[key])
    assert all(key.startswith(("model.layers.0.", "model.embed_tokens")) for key in part)


def test_aliases(bench):
    """Catches alias files that name keys which do not exist."""
    for path in (ROOT / "verify" / "aliases").glob("*.json"):
        for entry in json.loads(path.read_bytes()):
            for key in entry["key"] if isinstance(entry["key"], list) else [entry["key"]]:
                stage = compare.stage_of(
                    mutations.re.sub(r"\\1", "model.layers.0", key).replace("layers.model.layers.0", "layers.0")
                )
                known = not key or "\\2" in key or stage in compare.STAGES or stage.endswith((".down_proj.out", ".out"))
                assert known, f"{path.name}: {key}"
    aliases = json.loads((ROOT / "verify" / "aliases" / "llama_cpp.json").read_bytes())
    found = [key for key, _ in compare.rename("gate-7", aliases)]
    assert found == ["model.layers.7.linear_attn.g", "model.layers.7.self_attn.gate"]


def test_golden_vectors_are_as_stored():
    """Catches golden vectors that are not what the arbiter computes, and a model that its seed no longer makes."""
    checked = subprocess.run([sys.executable, "verify/golden.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout.strip()) == (0, "all as stored"), checked.stdout[-2000:]
    assert sum(path.stat().st_size for path in (ROOT / "verify" / "golden").rglob("*") if path.is_file()) < 4_000_000


def test_gradients_are_those_of_finite_differences():
    """Catches gradients of another loss: against the loss's own change along a random direction."""
    model = random_model(torch.float64)
    ids = tokens(1, 20)
    found = scenarios.run_gradients(model, ids[0].tolist())
    name, p = next((n, p) for n, p in model.named_parameters() if n.endswith("in_proj_ba.weight"))
    direction, eps = torch.randn_like(p), 1e-6
    losses = []
    with torch.no_grad():
        for sign in (1, -1):
            p += sign * eps * direction
            losses.append(model(ids, labels=ids, output_router_logits=False).loss.item())
            p -= sign * eps * direction
    slope = (losses[0] - losses[1]) / (2 * eps)
    assert math.isclose(slope, float((found[f"{name}.grad"] * direction.numpy()).sum()), rel_tol=1e-4)


def test_compare_stands_alone(tmp_path):
    """Catches an import that a porter who copies compare.py alone does not have."""
    (tmp_path / "compare.py").write_bytes((ROOT / "verify" / "compare.py").read_bytes())
    np.savez(tmp_path / "a.npz", **{"model.layers.0.input_layernorm.out": np.ones((3, 4))})
    code = "import sys, compare; assert not {'torch', 'qwen3_next', 'reference_recurrent'} & set(sys.modules); "
    code += "sys.exit(compare.main(['a.npz', 'a.npz']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
