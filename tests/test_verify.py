"""Claim: the verification kit names the first value that is wrong, and is silent where nothing is."""

import json
import math
import os
import re
import shutil
import subprocess
import sys

import break_lines
import numpy as np
import pytest
import torch
from conftest import ROOT, random_model, tokens
from safetensors.numpy import save_file

import qwen3_next as q
from reference_recurrent import Reference

sys.path.insert(0, str(ROOT))
from verify import causes, compare, golden, measures, mutations, scenarios, stages, trace  # noqa: E402
from verify.reference import run_reference  # noqa: E402


@pytest.fixture(scope="module", params=[*golden.MODELS, "tiny"])
def checkpoint(request, tmp_path_factory):
    """A folder: one of the awkward random models, or tiny/."""
    return golden.checkpoint(request.param, tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("scenario", scenarios.PASSES)
def test_both_implementations_have_the_same_values(checkpoint, scenario):
    """Catches a value recorded from the wrong tensor, in either: every key of every step, float64."""
    reference = Reference.from_pretrained(checkpoint)
    model = q.Qwen3NextForCausalLM.from_pretrained(checkpoint, "float64")
    fed = scenarios.steps_of(scenario, scenarios.random_tokens(model.config.vocab_size, 3), model.mtp is not None)
    ours, _ = scenarios.run(model, fed)
    theirs = run_reference(reference, fed)
    assert ours.keys() == theirs.keys()
    split = [stages.split_batches(stages.Trace(steps, fed, {}), fed, "right").steps for steps in (ours, theirs)]
    for step in split[0]:
        assert split[0][step].keys() == split[1][step].keys(), step
        for key, x in split[0][step].items():
            assert x.shape == split[1][step][key].shape, key
            assert np.abs(x - split[1][step][key]).max() < 1e-9 * max(1, np.abs(x).max()), f"{step}/{key}"


def test_every_stage_is_described(checkpoint):
    """Catches a key that the table of stages does not have, or with other axes, and a stage that is never recorded."""
    model = q.Qwen3NextForCausalLM.from_pretrained(checkpoint)
    ids = scenarios.random_tokens(model.config.vocab_size, 0, 70)
    steps, _, lines = trace.trace_generation(model, ids, ["*", "*.chunk.*"], 0, 0)
    found = steps[""]
    for key, x in found.items():
        axes, equation = stages.STAGES[stages.stage_of(key)]
        assert len(axes.split()) == x.ndim, key
        assert equation
        assert key == "mtp.logits" or re.fullmatch(r"qwen3_next\.py:\d+", lines[key]), key
    assert list(found) != sorted(found)
    never = stages.STAGES.keys() - {stages.stage_of(key) for key in found}
    assert all(stage.startswith("mlp." if model.mtp else ("mlp.", "mtp.")) for stage in never), never


@pytest.fixture(scope="module")
def bench(tiny):
    return mutations.Bench(tiny)


def test_the_lines_of_the_known_bugs_are_there():
    """Catches a change of qwen3_next.py after which a line is gone that mutations and breaks replace."""
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
    assert re.fullmatch(expected, row.name) or re.fullmatch(expected, mutations.plain_key(row.name))


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
    module.LAST = model.model.layers[6].linear_attn.out_proj.weight
    steps, _ = scenarios.run(model, ref.tokens)
    mine = stages.split_batches(stages.Trace(steps, ref.tokens, {}), ref.tokens, "right")
    done = compare.compare(ref, mine, dtype="bfloat16", isolated=True, reference=bench.reference)
    assert done.first.name == "prefill/model.layers.6.linear_attn.g"


def changed(bench, change):
    """compare()'s result when one array of a sound trace is changed: step, key -> new values."""
    ref = bench.refs["decode"]
    mine = {step: {key: change(step, key, x) for key, x in found.items()} for step, found in ref.steps.items()}
    mine = {step: {key: x for key, x in found.items() if x is not None} for step, found in mine.items()}
    return compare.compare(ref, stages.Trace(mine, ref.tokens, {}), dtype="float32")


def test_layouts_are_recognised(bench):
    """Catches a legal layout called wrong, and an illegal one called legal."""

    def flat(step, key, x):
        return x.reshape(len(x), -1) if key.endswith("norm.out") else x

    def transposed(step, key, x):
        return x.swapaxes(-1, -2) if key.endswith("linear_attn.state") else x

    order = [0, 2, 1, 3]

    def tiled(step, key, x, only=None):
        axes = stages.axes_of(stages.stage_of(key))
        if "value_head" not in axes or (only and not key.endswith(only)):
            return x
        return x.take(order, axes.index("value_head"))

    assert changed(bench, flat).first is None
    assert changed(bench, transposed).first is None
    assert changed(bench, tiled).first is None, "all that has value heads is in another order"
    done = changed(bench, lambda *a: tiled(*a, only="k_l2norm"))
    assert done.first.name == "prefill/model.layers.0.linear_attn.k_l2norm"
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
        patch.setattr(
            measures.Noise, "allowed", lambda self, key: 1e-2
        )  # coarse, so that the closest pair is within it
        tie = changed(bench, swap(close))
        assert [row.verdict for row in tie.rows if row.name == f"prefill/{key}"] == ["tie"]
        wrong = changed(bench, swap(far))
        assert wrong.first.name == f"prefill/{key}"


def test_a_wrong_choice_is_found_in_isolation(bench):
    """Catches a reference that goes on with mine's experts, and then reports them as what it would have chosen."""
    ref, key = bench.refs["decode"], "model.layers.3.mlp.topk_ids"
    mine = {step: dict(found) for step, found in ref.steps.items()}
    token = int(mine["prefill"]["model.layers.3.mlp.margin"].argmax())
    mine["prefill"][key] = mine["prefill"][key].copy()
    mine["prefill"][key][token, 0] = mine["prefill"]["model.layers.3.mlp.router_probs"][token].argmin()
    mine = stages.Trace(mine, ref.tokens, {})
    done = compare.compare(ref, mine, dtype="float32", isolated=True, reference=bench.reference)
    assert done.first.name == f"prefill/{key}"
    assert done.first.worst == f"token {token}"


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


def run(*command, **options):
    return subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, **options)


def test_command_lines(tmp_path, tiny):
    """Catches a trace that the command line writes and the kit can't read, other exit codes, and half-written files."""
    mine, ref = tmp_path / "mine.safetensors", tmp_path / "ref.safetensors"
    made = run("verify/trace.py", "--model", tiny, "--prompt", "Hello!", "--dtype", "float32", "--out", mine)
    assert made.returncode == 0, made.stderr
    made = run("verify/reference.py", "--model", tiny, "--like", mine, "--trace", ref)
    assert made.returncode == 0, made.stderr
    same = run("verify/compare.py", ref, mine)
    assert (same.returncode, same.stderr) == (0, "")
    assert re.search(r"agree: (\d+) of \1 reference keys \(prefill \d+ of \d+, mtp \d+ of \d+\)\n$", same.stdout)
    manifest = stages.read_trace(mine).manifest
    assert manifest["dtype"] == "float32"
    assert manifest["config_sha256"] == stages.config_hash(json.loads((tiny / "config.json").read_bytes()))

    arrays, _ = stages.read_arrays(ref)
    wrong = {key: x * 1.5 if key.endswith("layers.2.linear_attn.g") else x for key, x in arrays.items()}
    np.savez(tmp_path / "wrong.npz", **wrong)  # no manifest, another format
    found = run("verify/compare.py", ref, tmp_path / "wrong.npz")
    assert found.returncode == 1
    assert "first: model.layers.2.linear_attn.g " in found.stdout
    found = run("verify/compare.py", ref, tmp_path / "wrong.npz", "--json")
    assert strict_json(found.stdout)["first"] == "model.layers.2.linear_attn.g"

    np.savez(tmp_path / "other.npz", x=np.ones(3))
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for command in (
        (ref, tmp_path / "other.npz"),
        (ref, tmp_path / "broken.safetensors"),
        (ref, tmp_path / "none.npz"),
        (ref, mine, "--isolated"),
        (ref, mine, "--isolated", "--model", tmp_path),
        (ref, mine, "--alias", tmp_path / "none.json"),
    ):
        failed = run("verify/compare.py", *command)
        assert (failed.returncode, len(failed.stderr.splitlines())) == (2, 1), failed.stderr


def strict_json(text: str):
    """JSON as other languages read it: without NaN and Infinity."""

    def refuse(name: str):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_not_there_is_not_right(tmp_path, tiny):
    """Catches a file with one key, without a step or under other names that passes for a port that agrees."""
    common = ("verify/scenarios.py", "--model", tiny, "--scenario", "speculation", "--out")
    assert run(*common, tmp_path / "mine", "--dtype", "float32").returncode == 0
    assert run(*common, tmp_path / "ref", "--reference").returncode == 0
    mine, ref = (tmp_path / name / "speculation.safetensors" for name in ("mine", "ref"))
    arrays, _ = stages.read_arrays(mine)
    same = run("verify/compare.py", ref, mine, "--json")
    whole = strict_json(same.stdout)
    assert (same.returncode, whole["verdict"], whole["missing steps"]) == (0, "complete", [])
    levels = {level["level"]: level["reference"] for level in whole["levels"]}
    assert list(levels) == ["prefill", "mtp", "rollback"] or list(levels) == ["prefill", "decode", "mtp", "rollback"]
    assert sum(levels.values()) == whole["counts"]["reference"] == whole["counts"]["compared"]

    def compared(name: str, kept: dict, *options) -> tuple[int, str]:
        np.savez(tmp_path / name, **kept)
        found = run("verify/compare.py", ref, tmp_path / name, *options)
        return found.returncode, found.stdout + found.stderr

    one = {"prefill/lm_head.out": arrays["prefill/lm_head.out"]}
    code, text = compared("one.npz", one)
    assert code == 3
    assert f"it is only 1 of {whole['counts']['reference']} reference keys" in text
    assert "steps missing: " in text and "rollback" in text
    assert compared("one.npz", one, "--level", "prefill", "--keys", "lm_head.out")[0] == 0
    code, text = compared("no step.npz", {key: x for key, x in arrays.items() if not key.startswith("next/")})
    assert (code, "steps missing: next\n" in text) == (3, True)
    assert compared("no step.npz", {k: x for k, x in arrays.items() if k[:5] != "next/"}, "--level", "prefill")[0] == 0
    renamed = {key.replace(".linear_attn.g", ".linear_attn.decay"): x for key, x in arrays.items()}
    code, text = compared("renamed.npz", renamed)
    assert code == 3
    assert "not compared: model.layers.0.linear_attn.decay" in text
    assert "keys missing: prefill/model.layers.0.linear_attn.g" in text
    assert compared("renamed.npz", renamed, "--level", "op") == (
        2,
        "compare.py: nothing to compare: the two share no key of op *\n",
    )
    wrong = one | {"next/lm_head.out": 2 * arrays["next/lm_head.out"]}
    assert compared("wrong.npz", wrong)[0] == 1
    assert compared("wrong.npz", wrong, "--level", "prefill", "--keys", "lm_head.out")[0] == 0

    # a reference that was asked for the keys of a poor file knows how many it has left out
    made = run(
        "verify/reference.py",
        "--model",
        tiny,
        "--like",
        tmp_path / "mine" / "speculation.safetensors",
        "--trace",
        tmp_path / "like.safetensors",
    )
    assert made.returncode == 0, made.stderr
    assert run("verify/compare.py", tmp_path / "like.safetensors", mine).returncode == 0
    stages.write_trace(
        tmp_path / "poor.safetensors",
        {"prefill": {"lm_head.out": one["prefill/lm_head.out"]}},
        stages.read_trace(mine).tokens,
        producer="test",
        dtype="float32",
        folder=tiny,
    )
    run(
        "verify/reference.py",
        "--model",
        tiny,
        "--like",
        tmp_path / "poor.safetensors",
        "--trace",
        tmp_path / "like.safetensors",
    )
    poor = run("verify/compare.py", tmp_path / "like.safetensors", tmp_path / "poor.safetensors")
    assert poor.returncode == 3
    assert f"only 1 of {whole['counts']['reference']} reference keys" in poor.stdout


def test_command_line_of_the_reference(tmp_path, tiny):
    """Catches the wrong tokens, keys or layers in the reference's trace, a traceback, and a file after an error."""
    mine, ref, none = (tmp_path / f"{name}.safetensors" for name in ("mine", "ref", "none"))
    ids = [5, 17, 3]
    common = ("verify/reference.py", "--model", tiny)
    made = run(*common, "--tokens", "5,17,3", "--trace", mine)
    assert made.returncode == 0, made.stderr
    written, expected = stages.read_trace(mine), Reference.from_pretrained(tiny).trace(ids)
    assert written.tokens == {"": {"tokens": ids, "before": []}}
    assert written.steps[""].keys() == expected.keys()
    assert np.array_equal(written.steps[""]["lm_head.out"], expected["lm_head.out"])
    part = run(*common, "--like", mine, "--layers", "2:4", "--trace", ref)
    assert part.returncode == 0, part.stderr
    found = stages.read_trace(ref).steps[""]
    assert {key.split(".")[2] for key in found} == {"2", "3"}
    assert all(np.array_equal(x, written.steps[""][key]) for key, x in found.items())
    assert run("verify/compare.py", ref, mine).returncode == 0

    key = "model.layers.1.linear_attn.state"
    np.savez(tmp_path / "bare.npz", **{key: np.ones(3)})  # a port's, which does not say its tokens
    made = run(*common, "--like", tmp_path / "bare.npz", "--tokens", "5,17,3", "--trace", ref)
    assert made.returncode == 0, made.stderr
    assert stages.read_trace(ref).steps[""].keys() == {key}
    for arguments, named in (
        (("--like", tmp_path / "bare.npz"), "--tokens"),
        (("--like", tmp_path / "nothing.npz"), "nothing.npz"),
        (("--like", mine, "--layers", "2:99"), "2:99"),
        (("--tokens", "5", "--layers", "2:4"), "model.layers.1.out"),
        (("--tokens", "5,99999"), "vocab_size"),
        (("--tokens", "5", "--model", tmp_path), "config.json"),
        (("--tokens", "5", "--trace", tmp_path / "no" / "where.safetensors"), "where"),
    ):
        failed = run(*common, "--trace", none, *arguments)
        assert (failed.returncode, failed.stdout, len(failed.stderr.splitlines())) == (1, "", 1), failed.stderr
        assert named in failed.stderr
    for arguments, named in (
        ((), "--tokens"),
        (("--tokens", "five"), "five"),
        (("--tokens", "5", "--layers", "3:2"), "3:2"),
    ):
        failed = run(*common, "--trace", none, *arguments)
        assert failed.returncode == 2
        assert named in failed.stderr
    assert not none.exists()


def test_command_line_of_the_recorder(tmp_path, tiny):
    """Catches options that are parsed and dropped, lines that compute something else, a traceback, half a file."""
    mine, none = tmp_path / "mine.safetensors", tmp_path / "none.safetensors"
    common = ("verify/trace.py", "--model", tiny, "--prompt", "Once upon a time")
    keys = ("*.g", "*.chunk.A", "mtp.logits")
    made = run(*common, "--raw", "--dtype", "float64", "--keys", *keys, "--out", mine)
    assert (made.returncode, made.stdout) == (0, f"{mine}: 13 tensors\n"), made.stderr
    found = stages.read_trace(mine)
    tokenizer = q.Qwen3NextTokenizer.from_pretrained(tiny)
    ids = tokenizer.encode("Once upon a time")
    assert found.tokens == {"": {"tokens": ids, "before": []}}
    layers = [i for i in range(8) if i not in (3, 7)]
    expected = {f"model.layers.{i}.linear_attn.{name}" for i in layers for name in ("g", "chunk.A")} | {"mtp.logits"}
    assert found.steps[""].keys() == expected
    model = q.Qwen3NextForCausalLM.from_pretrained(tiny, "float64")
    with torch.no_grad():
        logits = model(torch.tensor([ids]), output_mtp_logits=True).mtp_logits[0]
    assert np.allclose(found.steps[""]["mtp.logits"], logits.numpy(), atol=1e-12)
    file, _, line = found.manifest["stages"]["linear_attn.g"]["line"].partition(":")
    source = (ROOT / file).read_text(encoding="utf-8").splitlines()
    assert re.search(r"\bg\b", source[int(line) - 1])
    made = run(*common, "--keys", "lm_head.out", "--out", mine)
    whole = tokenizer.encode(tokenizer.apply_chat_template([{"role": "user", "content": "Once upon a time"}]))
    assert stages.read_trace(mine).tokens[""]["tokens"] == whole
    assert stages.read_trace(mine).manifest["dtype"] == "bfloat16"
    for arguments, named in (
        (("--out", tmp_path / "no" / "where.safetensors"), "where"),
        (("--keys", "nothing.*"), "nothing.*"),
        (("--prompt", "", "--raw"), "empty"),
        (("--dtype", "int8"), "int8"),
        (("--model", tmp_path / "nowhere"), "nowhere"),
    ):
        failed = run(*common, "--out", none, *arguments)
        assert (failed.returncode, failed.stdout, len(failed.stderr.splitlines())) == (1, "", 1), failed.stderr
        assert named in failed.stderr
    for arguments in (("--draft-tokens", 2), ("--max-new-tokens", -1)):
        assert run(*common, "--out", none, *arguments).returncode == 2
    assert not none.exists()


@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_a_traced_generation(tmp_path, tiny, drafts):
    """Catches decoding steps that are not those of `generate`, drafts that are not MTP's, or a manifest that says other
    tokens than were fed: the reference recomputes all steps from it.
    """
    mine, ref = tmp_path / "mine.safetensors", tmp_path / "ref.safetensors"
    options = ("--model", tiny, "--prompt", "Hello!", "--max-new-tokens", 9, "--draft-tokens", drafts)
    made = run("verify/trace.py", *options, "--dtype", "float32", "--out", mine)
    assert made.returncode == 0, made.stderr
    found = stages.read_trace(mine)
    prompt = found.tokens["prefill"]["tokens"]
    fed = [step for step in found.tokens.values() if "drafts" not in step]
    for i, step in enumerate(fed[1:], 1):
        before = fed[i - 1]["before"] + fed[i - 1]["tokens"]
        assert step["before"] == before[: len(step["before"])]
    known = fed[-1]["before"] + fed[-1]["tokens"]
    model = q.Qwen3NextForCausalLM.from_pretrained(tiny, "float32")
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=9, do_sample=False, eos_token_id=None)
    assert known == expected[0].tolist()
    kinds = {step.partition(" ")[0] for step in found.tokens}
    assert kinds - {"rollback", "decode"} == ({"prefill", "draft", "verify"} if drafts else {"prefill"})
    rolled_back = [step for step in found.tokens.values() if not step["tokens"]]
    assert rolled_back or drafts < 3, "with this prompt all drafts are accepted, and nothing is taken back"
    made = run("verify/reference.py", "--model", tiny, "--like", mine, "--trace", ref)
    assert made.returncode == 0, made.stderr
    theirs = stages.read_trace(ref)
    assert theirs.steps.keys() == found.steps.keys()
    assert all(theirs.steps[step].keys() == found.steps[step].keys() for step in found.steps)
    same = run("verify/compare.py", ref, mine)
    assert same.returncode == 0, same.stdout


def test_command_line_of_the_scenarios(tmp_path, tiny):
    """Catches drafts that the reference can't recompute from a file, globs and folders that end in a traceback."""
    common = ("verify/scenarios.py", "--model", tiny, "--out", tmp_path)
    run(*common, "--scenario", "speculation", "--dtype", "float32")
    drafts = tmp_path / "speculation.safetensors"
    made = run("verify/reference.py", "--model", tiny, "--like", drafts, "--trace", tmp_path / "drafts.safetensors")
    assert made.returncode == 0, made.stderr
    assert "mtp.logits" in stages.read_trace(tmp_path / "drafts.safetensors").steps["draft 2"]
    run(*common, "--scenario", "padded", "--keys", "*.linear_attn.state")
    states = stages.read_trace(tmp_path / "padded.safetensors").steps
    assert {key.rpartition(".")[2] for found in states.values() for key in found} == {"state"}
    for arguments in (("--keys", "nothing"), ("--model", tmp_path), ("--reference", "--model", tmp_path)):
        failed = run(*common, *arguments)
        assert (failed.returncode, len(failed.stderr.splitlines())) == (1, 1), failed.stderr


def test_layers_need_only_their_shards(tmp_path):
    """Catches a reference that opens files which the layers asked for do not need."""
    model = random_model(torch.float32)
    model.save_pretrained(tmp_path, max_shard_size=20_000)
    ids = tokens(1, 9)[0].tolist()
    whole = Reference.from_pretrained(tmp_path).trace(ids)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_bytes())["weight_map"]
    needed = {file for name, file in index.items() if name.startswith(("model.layers.0.", "model.embed_tokens"))}
    for file in set(index.values()) - needed:
        (tmp_path / file).unlink()
    part = Reference.from_pretrained(tmp_path).trace(ids, layers=range(1))
    assert part
    for key, x in part.items():
        assert np.array_equal(x, whole[key])
    assert all(key.startswith(("model.layers.0.", "model.embed_tokens")) for key in part)


def test_aliases(bench):
    """Catches alias files that name keys which do not exist."""
    for path in (ROOT / "verify" / "aliases").glob("*.json"):
        for entry in json.loads(path.read_bytes()):
            for key in entry["key"] if isinstance(entry["key"], list) else [entry["key"]]:
                stage = stages.stage_of(
                    re.sub(r"\\1", "model.layers.0", key).replace("layers.model.layers.0", "layers.0")
                )
                known = not key or "\\2" in key or stage in stages.STAGES or stage.endswith((".down_proj.out", ".out"))
                assert known, f"{path.name}: {key}"
    aliases = json.loads((ROOT / "verify" / "aliases" / "llama_cpp.json").read_bytes())
    found = [key for key, _ in stages.rename("gate-7", aliases)]
    assert found == ["model.layers.7.linear_attn.g", "model.layers.7.self_attn.gate"]


def test_golden_vectors_are_as_stored():
    """Catches golden vectors that are not what the reference computes, and a model that its seed no longer makes."""
    checked = subprocess.run([sys.executable, "verify/golden.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout.strip()) == (0, "all as stored"), checked.stdout[-2000:]
    assert sum(path.stat().st_size for path in (ROOT / "verify" / "golden" / "v1").iterdir()) < 4_000_000


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


def test_a_key_that_is_missing_is_a_difference(tmp_path):
    """Catches a check of golden vectors that passes because there is nothing left to compare."""
    path = tmp_path / "mixed-padded.safetensors"
    shutil.copy(ROOT / "verify" / "golden" / "v1" / path.name, path)
    steps = {
        step: {k: x.astype(np.float32) for k, x in xs.items()} for step, xs in stages.read_trace(path).steps.items()
    }
    assert golden.differences(path, steps) == []
    assert not any(key.endswith("v_conv") for found in steps.values() for key in found), "version 1 never changes"
    removed = steps["padded"].pop("lm_head.out")
    assert golden.differences(path, steps) == [f"{path.name}: padded/lm_head.out is stored, but was not computed"]
    steps["padded"] |= {"lm_head.out": removed * 1.001, "new": removed}
    assert golden.differences(path, steps) == [
        f"{path.name}: padded/lm_head.out",
        f"{path.name}: padded/new was computed, but is not stored",
    ]


def test_the_folder_works_elsewhere(tmp_path):
    """Catches an import that a porter who copies the folder verify/ does not have."""
    others = shutil.ignore_patterns("golden", "__pycache__")
    shutil.copytree(ROOT / "verify", tmp_path / "verify", ignore=others)
    np.savez(tmp_path / "a.npz", **{"model.layers.0.input_layernorm.out": np.ones((3, 4))})
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "import sys; from verify import compare; "
    code += f"assert compare.__file__.startswith({str(tmp_path)!r}), compare.__file__; "
    code += "code = compare.main(['a.npz', 'a.npz']); "
    code += "assert not {'torch', 'qwen3_next', 'reference_recurrent'} & set(sys.modules); sys.exit(code)"
    for command in (["-c", code], ["verify/compare.py", "a.npz", "a.npz"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("agree: 1 of 1 reference keys (prefill 1 of 1)\n")


def test_causes_are_named(bench):
    """Catches a mistake that the kit computes wrongly: each of them, put into a sound trace, has to be found again."""
    config = bench.config
    for layer in (0, 1):
        prefix = f"model.layers.{layer}."
        ref = {key.removeprefix(prefix): x for key, x in bench.refs["decode"].steps["prefill"].items()}
        ref["layer.out"] = ref["out"]
        tried = 0
        for stage in stages.STAGES:
            if stage not in ref:
                continue
            for cause, x in causes.candidates(stage, ref.__getitem__, config, causes.Context()):
                assert x.shape == ref[stage].shape, cause
                if measures.relative_error(ref[stage], x) < 1e-3:
                    continue
                _, found = causes.explain(stage, ref[stage], x, 1e-6, ref.__getitem__, config, causes.Context())
                assert any(one.startswith(cause) for one in found), (stage, cause, found)
                tried += 1
        assert tried > 20


RIGHT = np.linspace(-3, 3, 40, dtype=np.float32).reshape(4, 10)
NEVER = {
    "infinite": (np.where(RIGHT > 2.9, np.inf, RIGHT), 1),
    "no number": (np.where(RIGHT > 2.9, np.nan, RIGHT), 1),
    "without rows": (RIGHT[:0], 1),
    "complex": (RIGHT.astype(np.complex64), 2),
}


@pytest.mark.parametrize("name", NEVER)
def test_what_never_agrees(tmp_path, name):
    """Catches a comparison of nothing, of infinities or of half of a complex number that is called agreement."""
    values, code = NEVER[name]
    np.savez(tmp_path / "ref.npz", **{"lm_head.out": values})
    np.savez(tmp_path / "mine.npz", **{"lm_head.out": values})
    found = run("verify/compare.py", tmp_path / "ref.npz", tmp_path / "mine.npz")
    assert found.returncode == code, found.stdout + found.stderr
    assert "Traceback" not in found.stderr


def test_archives_are_refused_by_what_they_declare(tmp_path, monkeypatch):
    """Catches a small file that fills the memory, and one of which the end is missing."""
    np.savez_compressed(tmp_path / "wide.npz", x=np.zeros(4_000_000, np.float32))
    assert (tmp_path / "wide.npz").stat().st_size < 100_000
    monkeypatch.setattr(stages, "LARGEST", 10_000_000)
    with pytest.raises(stages.CannotCompare, match="wide.npz: unpacks to 0.0 GB, expected at most 0.0 GB"):
        stages.read_arrays(tmp_path / "wide.npz")
    whole = (tmp_path / "wide.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-200])
    with pytest.raises(stages.CannotCompare, match="cut.npz: "):
        stages.read_arrays(tmp_path / "cut.npz")


ODD = [None, 7, "x", [], [1], {"a": 1}, True, 1e30, -1]


@pytest.mark.parametrize("field", ["steps", "stages", "config", "dtype", "order", "left_out", "producer"])
def test_mistyped_manifests(tmp_path, capsys, field):
    """Catches a traceback where a manifest's field has another type."""
    ref, mine = tmp_path / "ref.safetensors", tmp_path / "mine.safetensors"
    sound = {"producer": "test", "dtype": "float32", "steps": {}, "stages": {}, "order": ["lm_head.out"]}
    odd = [*ODD, {"": {"tokens": 3}}, {"": {"tokens": [[1], 2]}}, {"hidden_size": "wide"}, {"": ["lm_head.out"]}]
    for value in odd:
        for path, manifest in ((ref, sound), (mine, sound | {field: value})):
            save_file({"lm_head.out": RIGHT}, path, {"format": stages.FORMAT, "manifest": json.dumps(manifest)})
        for pair in ((ref, mine), (mine, ref)):
            assert compare.main([*map(str, pair)]) in (0, 2, 3), value
            assert len(capsys.readouterr().err.splitlines()) <= 1
