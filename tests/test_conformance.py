"""Claim: nobody passes the conformance suite while wrong, or fails it while right."""

import json
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import save_file

import qwen3_next as q
from reference_recurrent import Config

sys.path.insert(0, str(ROOT))
from verify import (  # noqa: E402
    cases,
    causes,
    compare,
    conform,
    engines,
    floors,
    golden_v2,
    levels,
    mutations_v2,
    noise_sums,
    ops,
    rotary,
    scenarios,
    stages,
)
from verify.random_models import BASE  # noqa: E402
from verify.reference import load_reference  # noqa: E402


def golden_trace(name: str) -> stages.Trace:
    """A stored case."""
    return stages.read_trace(golden_v2.GOLDEN / f"{name}.safetensors")


def port(name: str, dtype: str, module=q) -> stages.Trace:
    """What qwen3_next.py computes of a case."""
    ref = golden_trace(name)
    model = module.Qwen3NextForCausalLM.from_pretrained(golden_v2.folder_of(cases.CASES[name].model), dtype)
    given = {step: {key: ref.steps[step][key] for key in fed.get("inputs", [])} for step, fed in ref.tokens.items()}
    steps, _ = scenarios.run(model, ref.tokens, given=given)
    return stages.Trace(steps, ref.tokens, {"dtype": dtype})


def judged(name: str, mine: stages.Trace, dtype: str, **options) -> tuple:
    """The comparison of a case with a port's trace, and its levels."""
    ref = golden_trace(name)
    split = [stages.split_batches(one, ref.tokens, "right") for one in (ref, mine)]
    reference = load_reference(golden_v2.folder_of(cases.CASES[name].model))
    done = compare.compare(*split, dtype=dtype, reference=reference, **options)
    return done, levels.count_levels(*split, [(row.step, row.key) for row in done.rows], ref.tokens)


@pytest.mark.parametrize("name", cases.CASES)
def test_this_projects_model_reaches_every_level(name):
    """Catches golden vectors that a sound implementation in float32 does not agree with, and a level nobody can reach:
    long prompts, positions from 5,000 on, reused slots, packed rows, drafts after a rollback.
    """
    done, found = judged(name, port(name, "float32"), "float32")
    assert done.first is None, (done.first.name, done.first.relative, done.first.allowed)
    assert all(level.complete for level in found), found


@pytest.mark.parametrize("name", ops.FILES)
def test_this_projects_operations_agree(name):
    """Catches vectors of an operation that a sound implementation does not agree with, and an operation of the model
    that is not the reference's: the delta rule under strong decay, the test of drafts, ties.
    """
    ref = golden_trace(f"ops/{name}")
    model = q.Qwen3NextForCausalLM.from_pretrained(golden_v2.folder_of("ddda"), "float32")
    given = {step: {key: ref.steps[step][key] for key in fed["inputs"]} for step, fed in ref.tokens.items()}
    steps, _ = scenarios.run(model, ref.tokens, given=given)
    mine = stages.Trace(steps, ref.tokens, {})
    done = compare.compare(ref, mine, dtype="float32")
    assert done.first is None, (done.first.name, done.first.relative)
    assert all(
        level.complete for level in levels.count_levels(ref, mine, [(r.step, r.key) for r in done.rows], ref.tokens)
    )


def test_the_second_version_has_every_level():
    """Catches a level that no stored case shows."""
    found = set()
    for name in cases.CASES:
        ref = golden_trace(name)
        split = stages.split_batches(ref, ref.tokens, "right")
        found |= {level.name for level in levels.count_levels(split, split, [], ref.tokens)}
    assert found | {"op"} == set(levels.LEVELS)


def test_the_second_version_is_as_stored():
    """Catches vectors that are not what the reference computes, gradients that are not its loss's slopes, a model
    that is not the one that the vectors belong to, and files that grow past what a clone should cost.
    """
    assert golden_v2.check() == []
    size = sum(path.stat().st_size for path in golden_v2.GOLDEN.rglob("*") if path.is_file())
    assert size < 8_000_000


def test_the_shipped_models_hold_the_hard_cases():
    """Catches a model in which l2 norm's eps, long positions or an expert that nobody takes can't show."""
    ref = golden_trace("ddda-decode").steps
    weak = load_reference(golden_v2.folder_of("ddda")).trace([5, 17, 3, 40])["model.layers.0.linear_attn.conv_out"]
    squared = np.square(weak[:, 48:64]).sum(-1)  # the second key head's k
    assert ((squared > 1e-7) & (squared < 1e-4)).all(), squared
    lengths = np.linalg.norm(ref["prefill"]["model.layers.0.linear_attn.k_l2norm"], axis=-1)  # 1, but for eps
    assert lengths[:, :4].min() > 0.99 > 0.9 > lengths[:, 4:].min()
    chosen = np.concatenate([x.ravel() for found in ref.values() for key, x in found.items() if key.endswith("_ids")])
    assert cases.UNUSED not in chosen
    assert set(range(9)) - {cases.UNUSED} - {cases.TWINS[1]} <= set(chosen.tolist())
    assert max(len(fed["before"]) for fed in golden_trace("addd-decode").tokens.values()) > 5000
    mixed = load_reference(golden_v2.folder_of("mixed"))
    assert mixed.config.is_moe == [False, True, False, False]
    assert any(name.startswith("mtp.layers.0.mlp.experts.") for name in mixed.tensors)
    plain = 1000.0 ** (-np.arange(16) / 16)
    stretch = plain / mixed.config.inv_freq  # 1 for pairs that YaRN leaves alone, 8 for those it slows down
    assert ((stretch > 1.01) & (stretch < 7.99)).sum() >= 4
    assert mixed.config.rope_scale > 1.2


OPTIONS = {
    "attention_factor": ["attention_factor"],
    "not truncated": ["truncate", "beta_fast", "beta_slow"],
    "two scales": ["mscale", "mscale_all_dim"],
}


@pytest.mark.parametrize("step", OPTIONS)
def test_each_of_yarns_options_shows(step):
    """Catches vectors of YaRN with which a port agrees that ignores an option, or its factor on cos and sin."""
    trace = golden_trace("ops/yarn")
    fed = trace.tokens[step]
    x, right = trace.steps[step]["x"], trace.steps[step]["out"]
    scaling = fed["parameters"]["rope_scaling"]
    for option in OPTIONS[step]:
        fewer = {name: value for name, value in scaling.items() if name != option}
        wrong = ops.rope(x, **{**fed["parameters"], "rope_scaling": fewer})["out"]
        assert stages_error(right, wrong) > 10 * fed["tolerance"]["float32"], option
    angle, scale = rotary.frequencies(fed["parameters"])
    assert abs(scale - 1) > 0.1
    positions = np.array(fed["parameters"]["positions"], np.float32)[:, None, None]
    R = 2 * len(angle)
    single = rotary.rotate(x[..., :R], positions * angle.astype(np.float32))
    assert stages_error(right[..., :R], scale * single) < fed["tolerance"]["float32"] / 2


def test_the_edges_of_acceptance_are_as_the_rule_says():
    """Catches vectors that a port fails which follows the rule in exact fractions."""
    trace = golden_trace("ops/acceptance")
    assert len(trace.tokens) > 10
    for step, given in trace.steps.items():
        p, q = ([[Fraction(float(n)) for n in place] for place in given[name][0]] for name in "pq")
        accepted = 0
        rest = p[-1]
        for place, (x, u) in enumerate(zip(given["drafts"][0], given["uniforms"][0])):
            right = p[place][x] > 0 if q[place][x] == 0 else Fraction(float(u)) < p[place][x] / q[place][x]
            if not right:
                above = [max(a - b, 0) for a, b in zip(p[place], q[place])]
                rest = above if any(above) else p[place]
                break
            accepted += 1
        cumulative = [sum(rest[: n + 1]) / sum(rest) for n in range(len(rest))]
        token = next(n for n, total in enumerate(cumulative) if total > Fraction(float(given["uniform_next"][0])))
        assert (accepted, token) == (given["accepted"][0], given["token"][0]), step


@pytest.mark.parametrize(
    ("name", "step", "key"),
    [
        ("ddda-decode", "decode 1", "model.layers.1.linear_attn.state"),
        ("mixed-decode", "prefill", "model.layers.0.linear_attn.state"),
        ("ops/delta_rule", "strong decay", "state_out"),
    ],
)
def test_a_transposed_state_is_named(tmp_path, name, step, key):
    """Catches a state (V, K), which has the right shape where K = V, that compare.py takes for a wrong one or accepts
    without a word, and check.js only calls an error of 1.4.
    """
    ref = golden_trace(name)
    mine = {place: dict(found) for place, found in ref.steps.items()}
    mine[step][key] = mine[step][key].swapaxes(-1, -2)
    done = compare.compare(ref, stages.Trace(mine, ref.tokens, {}), dtype="float32")
    assert done.first is None
    found = {(row.step, row.key): row.note for row in done.rows if row.verdict == "layout"}
    assert found == {(step, key): "the state is transposed, (V, K); it is (K, V)"}
    if shutil.which("node"):
        arrays = {f"{place}/{at}": np.ascontiguousarray(x) for place, found in mine.items() for at, x in found.items()}
        save_file(
            {at: x.astype(np.float32) if x.dtype == np.float64 else x for at, x in arrays.items()},
            tmp_path / "mine.safetensors",
        )
        checked = run(
            "node", "verify/check.js", golden_v2.GOLDEN / f"{name}.safetensors", tmp_path / "mine.safetensors"
        )
        assert checked.returncode == 1, checked.stderr
        assert f"first: {step}/{key}: relative error" in checked.stdout
        assert checked.stdout.rstrip().endswith("the state is transposed, (V, K); it is (K, V)")


def test_a_port_of_some_models(tmp_path):
    """Catches cases of other models that are run, and counted as failed, for a port that names those it has."""
    asked = ("--models", "pair", "mixed", "--level", "prefill", "--keys", "lm_head.out")
    idle = f"{sys.executable} -c pass {{trace}} {{out}}"
    done = run(sys.executable, "verify/conform.py", "--cmd", idle, *asked, "--json", tmp_path / "result.json")
    assert done.returncode == 1, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert {case["case"] for case in result["cases"]} == {"pair-decode", "pair-rollback", "mixed-decode"}
    done = run(sys.executable, "verify/conform.py", "--cmd", idle, "--models", "tiny")
    assert done.returncode == 2
    assert "invalid choice: 'tiny'" in done.stderr


@pytest.mark.parametrize("batch_axis", [False, True])
@pytest.mark.parametrize("name", ["ddda-decode", "ddda-layer"])
def test_a_tie_of_equal_experts_changes_nothing(name, batch_axis):
    """Catches what follows a tie left out, where the two experts are the same and nothing can differ; in any layout."""
    ref = golden_trace(name)
    first, second = cases.TWINS

    def other(key: str, x: np.ndarray) -> np.ndarray:
        alone = ~(x == second).any(-1, keepdims=True)  # where just one of the two is chosen
        return np.where(alone & (x == first), second, x) if key.endswith("topk_ids") else x

    mine = {step: {key: other(key, x) for key, x in found.items()} for step, found in ref.steps.items()}
    changed = [key for step in mine for key in mine[step] if not np.array_equal(mine[step][key], ref.steps[step][key])]
    assert changed
    if batch_axis:
        mine = {step: {key: x[None] for key, x in found.items()} for step, found in mine.items()}
    split = [stages.split_batches(one, ref.tokens, "right") for one in (ref, stages.Trace(mine, ref.tokens, {}))]
    done = compare.compare(*split, dtype="float32")
    assert done.first is None
    choices = {row.verdict for row in done.rows if row.key.endswith("topk_ids")}
    others = {row.verdict for row in done.rows if not row.key.endswith("topk_ids")}
    assert choices <= {"ok", "tie"}
    assert "tie" in choices
    assert others == {"layout" if batch_axis else "ok"}
    assert all(level.complete for level in levels.count_levels(*split, [(row.step, row.key) for row in done.rows], {}))


NAMES = [*mutations_v2.MUTATIONS][:: 1 if os.environ.get("VERIFY_ALL") else 4]


@pytest.mark.parametrize("name", NAMES)
def test_bugs_of_the_second_version_are_located(tmp_path, name):
    """Catches a bug that passes, is named at a later key, or gets another bug's cause. All of them: VERIFY_ALL=1."""
    key, located, right, causes = mutations_v2.judged(name, mutations_v2.mutated(name, 0, tmp_path))
    assert located, key
    assert right, causes


def test_the_lines_of_the_second_versions_bugs_are_there():
    """Catches a change of qwen3_next.py after which a line is gone that mutations_v2.py replaces."""
    source = (ROOT / "qwen3_next.py").read_text(encoding="utf-8")
    assert [name for name, (old, *_) in mutations_v2.MUTATIONS.items() if source.count(old) != 1] == []


def test_causes_do_not_mislead():
    """Catches hints that are given for any error: the weights' layout for a norm, the cache for a lone token's softmax;
    and an overflow that is not called one.
    """
    rng = np.random.default_rng(0)
    r = rng.standard_normal((5, 8))

    def told(stage: str, m: np.ndarray, context=None) -> str:
        empty: dict = {}
        seen, found = causes.explain(stage, r, m, 1e-6, empty.__getitem__, {}, context or causes.Context())
        return " ".join([*seen, *found])

    noise = r + 0.1 * rng.standard_normal(r.shape)
    assert "layout (rows" not in told("model.norm.out", noise)
    assert "layout (rows" not in told("mlp.out", noise)
    assert "layout (rows" in told("self_attn.k_proj.out", noise)
    second = np.concatenate([r[:1], noise[1:]])
    assert "cache" not in told("self_attn.attn_out", second)
    assert "scale" in told("self_attn.attn_out", second)
    assert "cache" in told("self_attn.attn_out", second, causes.Context(start=7))
    infinite = r.copy()
    infinite[3, 2] = np.inf
    assert "overflow: 1 of 40 entries are not finite, the first at [3, 2]" in told("layer.out", infinite)
    assert "e^(G_i) e^(-G_j)" in told("linear_attn.delta_out", infinite)
    assert "e^(G_i) e^(-G_j)" not in told("linear_attn.delta_out", noise)


# ---- Rounding that is legal -----------------------------------------------------------------------------------------

NOISE = ROOT / "verify" / "noise.json"
WIDE = {"hidden_size": 2048, "head_dim": 256, "linear_value_head_dim": 128, "num_attention_heads": 16}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8"])
@pytest.mark.parametrize("width", [64, 2048])
def test_plain_sums_pass(dtype, width):
    """Catches a limit below what sums of one term after the other lose at the released model's width, in either mode;
    and one so wide that it hides a norm without its eps, or a 1 + w that is rounded to bfloat16.
    """
    rng = np.random.default_rng(7)  # other numbers than those it was measured on
    errors = {
        "model.norm.out": noise_sums.norm_error(width, dtype, True, rng),
        "lm_head.out": noise_sums.product_error(width, dtype, True, rng),
    }
    for mode in ("isolated", "chained"):
        noise = floors.Noise(NOISE, dtype, mode, {**WIDE, "hidden_size": width})
        for key, error in errors.items():
            assert error < noise.allowed(key) / 2, (key, mode)
            assert mode == "chained" or noise.allowed(key) < (1e-5 if dtype == "float32" else 0.05), (key, mode)


def test_a_narrow_limit_was_too_narrow():
    """Catches widths that change nothing: the limit for small models is below what a wide sound norm needs."""
    sequential = noise_sums.norm_error(2048, "float32", True, np.random.default_rng(7))
    narrow = floors.Noise(NOISE, "float32", "isolated", {**WIDE, "hidden_size": 32})
    assert sequential > narrow.allowed("model.layers.0.input_layernorm.out") / 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_state_in_half_precision_has_to_be_announced(dtype):
    """Catches a state kept in half precision that passes unannounced in float32, or fails although it is announced."""
    error = noise_sums.state_error(dtype, np.random.default_rng(7))
    for mode in ("isolated", "chained"):
        key = "model.layers.0.linear_attn.state"
        assert error > floors.Noise(NOISE, "float32", mode).allowed(key)
        assert error < floors.Noise(NOISE, "float32", mode, state_dtype=dtype).allowed(key)
    with pytest.raises(stages.CannotCompare, match="state_dtype is 'int8'"):
        floors.Noise(NOISE, "float32", "chained", state_dtype="int8")


@pytest.mark.parametrize("position", [5_000, 262_143])
def test_angles_in_float32_pass(position):
    """Catches a limit below float32's error in position times frequency, and one that hides positions in bfloat16."""
    inv_freq = 1e7 ** (-np.arange(0, 64, 2) / 64)
    x = np.random.default_rng(0).standard_normal((1, 8, 64))
    angle = position * inv_freq
    right = rotary.rotate(x, angle)
    noise = floors.Noise(NOISE, "float32", "isolated")
    noise.position = position
    allowed = noise.allowed("model.layers.3.self_attn.q_rope")
    single = np.float32(position) * inv_freq.astype(np.float32)
    assert stages_error(right, rotary.rotate(x, single.astype(np.float64))) < allowed
    coarse = noise_sums.rounded(np.array([position - 1.0]), "bfloat16") * inv_freq
    assert stages_error(right, rotary.rotate(x, coarse)) > 4 * allowed


def stages_error(r: np.ndarray, m: np.ndarray) -> float:
    return float(np.sqrt(np.mean((m - r) ** 2) / np.mean(r**2)))


# ---- Layouts that are legal -----------------------------------------------------------------------------------------


def batch_of_one(key, x):
    return x[None]


def reversed_axes(key, x):
    return x.transpose() if x.ndim < 4 else x


def heads_first(key, x):
    return x.swapaxes(0, 1) if x.ndim == 3 else x


def flat(key, x):
    return x.reshape(len(x), -1)


def last_logits(key, x):
    return x[-1] if key in ("lm_head.out", "mtp.logits") else x


def small_ids(key, x):
    return x.astype(np.uint8) if key.endswith("topk_ids") else x


def unsigned_ids(key, x):
    return x.astype(np.uint32) if key.endswith("topk_ids") else x


VARIANTS = [batch_of_one, reversed_axes, heads_first, flat, last_logits, small_ids, unsigned_ids]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["ddda-decode", "addd-decode", "pair-rollback"])
def test_layouts_are_the_ports_choice(tmp_path, name, variant):
    """Catches a layout that is called wrong, and one in which a wrong value is not found, or is called a shape."""
    ref = golden_trace(name)
    mine = {step: {key: variant(key, x) for key, x in found.items()} for step, found in ref.steps.items()}
    path = tmp_path / "mine.safetensors"
    folder = golden_v2.folder_of(cases.CASES[name].model)
    stages.write_trace(path, mine, ref.tokens, producer="test", dtype="float32", folder=folder)
    trace = stages.read_trace(path)
    done = compare.compare(ref, trace, dtype="float32")
    assert done.first is None, (done.first.name, done.first.note)
    assert all(level.complete for level in levels.count_levels(ref, trace, [(r.step, r.key) for r in done.rows], {}))
    step = next(iter(ref.steps))
    for key in [key for key in ref.steps[step] if key.endswith("linear_attn.state")]:
        right = trace.steps[step][key]
        trace.steps[step][key] = right * 1.01
        done = compare.compare(ref, trace, dtype="float32")
        assert (done.first.name, done.first.verdict) == (f"{step}/{key}", "differs")
        trace.steps[step][key] = right


def test_mtps_positions_may_begin_at_1():
    """Catches an alarm for what RoPE can't see, and a shift that is not the same for queries and keys."""
    name = "pair-decode"
    ref = golden_trace(name)
    config = ref.manifest["config"]
    ropes = [f"mtp.layers.0.self_attn.{part}_rope" for part in "qk"]
    prefill = ref.steps["prefill"]
    moved = {key: rotary.further(prefill[key], config, 1) for key in ropes}
    assert stages_error(prefill[ropes[0]], moved[ropes[0]]) > 0.1
    done = compare.compare(
        ref, stages.Trace({**ref.steps, "prefill": prefill | moved}, ref.tokens, {}), dtype="float32"
    )
    assert done.first is None
    assert {row.note for row in done.rows if row.key in ropes} == {"MTP's positions are counted from 1"}
    moved = {key: rotary.further(prefill[key], config, 2) for key in ropes}
    done = compare.compare(
        ref, stages.Trace({**ref.steps, "prefill": prefill | moved}, ref.tokens, {}), dtype="float32"
    )
    assert done.first.key == ropes[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_isolated_mode_takes_thinned_and_rounded_traces(dtype):
    """Catches isolated mode that allows a copy no error at all, where mine has rounded it, or where the reference's
    file lacks what it is a copy of.
    """
    name = "pair-decode"
    ref = golden_trace(name)  # without the projections, and much else
    reference = load_reference(golden_v2.folder_of("pair"))
    whole = golden_v2.run_reference(reference, ref.tokens)
    rounded = {
        step: {
            key: x if x.dtype.kind == "i" else noise_sums.rounded(x, dtype).astype(float) for key, x in found.items()
        }
        for step, found in whole.items()
    }
    thin = {step: {key: x for key, x in found.items() if "proj" not in key} for step, found in rounded.items()}
    for mine in (rounded, thin):
        trace = stages.Trace(mine, ref.tokens, {})
        done = compare.compare(ref, trace, dtype=dtype, isolated=True, reference=reference)
        assert done.first is None, (done.first.name, done.first.relative, done.first.allowed)
        wrong = {step: dict(found) for step, found in mine.items()}
        key = "model.layers.0.linear_attn.g"
        wrong["prefill"][key] = wrong["prefill"][key] * 1.05
        done = compare.compare(
            ref, stages.Trace(wrong, ref.tokens, {}), dtype=dtype, isolated=True, reference=reference
        )
        assert done.first.name == f"prefill/{key}"


# ---- The drivers ----------------------------------------------------------------------------------------------------


def run(*command):
    return subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)


REFERENCE = f"{sys.executable} verify/reference.py --model {{model}} --like {{trace}} --trace {{out}}"


def test_conform_runs_a_port(tmp_path):
    """Catches a level that is called complete while files are missing, a port that fails without a word, other exit
    codes, and results that other programs can't read.
    """
    out, junit = tmp_path / "result.json", tmp_path / "result.xml"
    asked = ("--level", "op", "layer", "packed", "gradients")
    done = run(sys.executable, "verify/conform.py", "--cmd", REFERENCE, *asked, "--json", out, "--junit", junit)
    assert done.returncode == 3, done.stdout + done.stderr  # the reference has no gradients
    assert done.stdout.endswith("reached: packed\n")
    result = json.loads(out.read_text(), parse_constant=pytest.fail)
    verdicts = {level["level"]: level["verdict"] for level in result["levels"]}
    assert verdicts == {"op": "complete", "layer": "complete", "packed": "complete", "gradients": "incomplete"}
    assert (result["schema"], result["reached"]) == ("qwen3-next-conformance/1", "packed")
    gradients = next(case for case in result["cases"] if case["level"] == "gradients")
    assert len(gradients["missing"]) == gradients["reference"] > 20
    suites = {suite.get("name"): suite for suite in ElementTree.parse(junit).getroot()}
    assert {name: suite.get("failures") for name, suite in suites.items()} == {
        "op": "0",
        "layer": "0",
        "packed": "0",
        "gradients": "1",
    }
    silent = f"{sys.executable} -c 'import sys; sys.exit(\"no such model\")' {{trace}} {{out}}"
    done = run(sys.executable, "verify/conform.py", "--cmd", silent, "--level", "packed")
    assert done.returncode == 1
    assert "packed         1      0 of 58  failed: ddda-packed: exit code 1: no such model" in done.stdout
    idle = f"{sys.executable} -c pass {{trace}} {{out}}"
    done = run(sys.executable, "verify/conform.py", "--cmd", idle, "--level", "packed")
    assert (done.returncode, "no file ddda-packed.safetensors was written" in done.stdout) == (1, True)
    for command in ("port", "port {trace} {out} {what}", "no-such-program {trace} {out}"):
        done = run(sys.executable, "verify/conform.py", "--cmd", command, "--level", "packed")
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["ops/router", "ddda-packed", "addd-batch", "pair-rollback", "ddda-layer"])
def test_the_checker_without_python(tmp_path, name):
    """Catches a checker in JavaScript that disagrees with compare.py on what is right, wrong, missing or tied."""
    if not shutil.which("node"):
        pytest.skip("needs node")
    path = golden_v2.GOLDEN / f"{name}.safetensors"
    arrays, metadata = stages.read_arrays(path)
    inputs = [f"{step}/{key}" for step, fed in golden_trace(name).tokens.items() for key in fed.get("inputs", [])]

    def verdicts(changed: dict) -> tuple[int, int]:
        mine = tmp_path / "mine.safetensors"
        save_file(
            {key: np.ascontiguousarray(x) for key, x in changed.items()}, mine, {"manifest": '{"dtype": "float32"}'}
        )
        checked = run("node", ROOT / "verify" / "check.js", path, mine)
        compared = run(sys.executable, "verify/compare.py", path, mine)
        assert checked.stderr == compared.stderr == "", checked.stderr + compared.stderr
        return checked.returncode, compared.returncode

    floats = [key for key, x in arrays.items() if x.dtype.kind == "f" and key not in inputs]
    noisy = {key: x * np.float32(1 + 1e-7) if key in floats else x for key, x in arrays.items()}
    assert verdicts(noisy) == (0, 0)
    key = floats[len(floats) // 2]
    assert verdicts(arrays | {key: arrays[key] * np.float32(1.01)}) == (1, 1)
    assert verdicts({other: x for other, x in arrays.items() if other != key}) == (3, 3)
    if name == "addd-batch":  # what comes after the end of a sequence means nothing
        key = "batch/model.layers.0.out"
        padding = arrays[key].copy()
        padding[2, 5:] = 7
        assert verdicts(arrays | {key: padding}) == (0, 0)
    if name == "ops/router":
        key = "ties/mlp.topk_ids"
        other = np.where((arrays[key] == 2) & ~(arrays[key] == 5).any(-1, keepdims=True), 5, arrays[key])
        assert not np.array_equal(other, arrays[key])
        assert verdicts(arrays | {key: other}) == (0, 0)
        assert verdicts(arrays | {key: (arrays[key] + 1) % 8}) == (1, 1)


def test_a_port_in_double_precision_passes():
    """Catches limits of float64 for vectors that are stored in float32."""
    ref = golden_trace("pair-decode")
    mine = golden_v2.run_reference(load_reference(golden_v2.folder_of("pair")), ref.tokens)
    assert compare.compare(ref, stages.Trace(mine, ref.tokens, {}), dtype="float64").first is None


def test_the_specification_is_complete():
    """Catches a level, an operation, a field of the manifest or a kind of value that SPEC.md does not explain."""
    text = (ROOT / "verify" / "SPEC.md").read_text(encoding="utf-8")
    traces = [golden_trace(name) for name in [*cases.CASES, *(f"ops/{name}" for name in ops.FILES)]]
    fields = {field for trace in traces for fed in trace.tokens.values() for field in fed}
    assert {"drafts", "slots", "starts", "layers", "inputs", "gradients", "op", "parameters", "tolerance"} < fields
    assert [field for field in fields if f'"{field}"' not in text and f'"{field}s"' not in text] == []
    assert [level for level in levels.LEVELS if not re.search(rf"\b{level}\b", text)] == []
    assert [name for name in ops.FILES if not re.search(rf"\b{name}\b", text)] == []
    names = {key.rpartition(".")[2] for trace in traces for found in trace.steps.values() for key in found}
    stems = {
        key.split(".")[-2] for trace in traces for found in trace.steps.values() for key in found if key[-4:] == ".out"
    }
    assert [name for name in names | stems if not name.isdigit() and name not in text] == []


def test_one_value_with_fewer_digits_than_the_others_is_found():
    """Catches a decay kept in bfloat16 that passes for one that was only written in it, as all of a trace may be."""
    ref = golden_trace("pair-decode")
    reference = load_reference(golden_v2.folder_of("pair"))
    mine = golden_v2.run_reference(reference, ref.tokens)
    key = "model.layers.0.linear_attn.g"
    mine["prefill"][key] = noise_sums.rounded(mine["prefill"][key], "bfloat16").astype(float)
    done = compare.compare(
        ref, stages.Trace(mine, ref.tokens, {}), dtype="bfloat16", isolated=True, reference=reference
    )
    assert done.first is not None and done.first.name == f"prefill/{key}"


# ---- Released engines -----------------------------------------------------------------------------------------------

ENGINES = sorted(engines.RESULTS.glob(f"{engines.PREFIX}*.json"))


def test_the_engines_table_is_made_by_its_program():
    """Catches a table in verify/README.md that was written by hand, or is not of the results that are there."""
    text = engines.README.read_text(encoding="utf-8")
    assert text.count(engines.BEGIN) == text.count(engines.END) == 1
    made = text.split(engines.BEGIN)[1].split(engines.END)[0]
    assert made.strip() == engines.table().strip()
    assert {json.loads(path.read_bytes())["engine"] for path in ENGINES} == set(engines.ENGINES)


@pytest.mark.parametrize("path", ENGINES, ids=lambda path: path.stem)
def test_an_engines_result_is_of_todays_vectors(path):
    """Catches a result of vectors that were changed since, one that lacks a case or a level, and one that names
    folders of the machine it was made on.
    """
    text = path.read_text(encoding="utf-8")
    found = json.loads(text)
    engine = engines.ENGINES[found["engine"]]
    assert path == engines.file_of(found["engine"], found["version"], found["note"])
    assert (found["keys"], found["models"], found["dtype"]) == (engine.shown, engine.models, engine.dtype)
    assert found["wider"] == engine.wider
    assert not re.search(r"/(tmp|home|root|usr|opt)/", text)
    counted = {}
    for case in [*(f"ops/{name}" for name in ops.FILES), *cases.CASES]:
        if conform.model_of(case, engine.models).name in engine.models:
            ref = golden_trace(case)
            split = stages.split_batches(ref, ref.tokens, "right")
            for level in levels.count_levels(split, stages.Trace({}, {}, {}), [], ref.tokens, engine.shown):
                if level.name in engine.levels:
                    counted[case, level.name] = level.of
    assert {(case["case"], case["level"]): case["reference"] for case in found["cases"]} == counted


@pytest.mark.parametrize(
    ("verdict", "compared", "words"),
    [("complete", 5, "all 5"), ("incomplete", 3, "3 of 5"), ("incomplete", 0, "-"), ("differs", 3, "differs")]
    + [("failed", 3, "failed")],
)
def test_a_cell_of_the_engines_table(verdict, compared, words):
    """Catches a level that is called reached when a part of it is there, and an error that looks like a gap."""
    assert engines.cell({"verdict": verdict, "compared": compared, "reference": 5}) == words
    assert engines.cell(None) == "-"


def test_vectors_of_wider_models(tmp_path, monkeypatch):
    """Catches vectors for an engine's own sizes that are of another model, or lack what the stored ones have."""
    monkeypatch.chdir(ROOT)
    engine = engines.ENGINES["vLLM"]
    engines.widened(engine, tmp_path)
    config = json.loads((tmp_path / "models" / "mixed" / "config.json").read_bytes())
    assert config["linear_value_head_dim"] == engine.wider["linear_value_head_dim"] == 64
    port = conform.Port(REFERENCE, keys=engine.shown, models=engine.models, golden=tmp_path)
    results = conform.conform(port, engine.levels)
    assert conform.reached(results) == "decode", [result.words for result in results]
    wide, stored = (stages.read_trace(folder / "mixed-decode.safetensors") for folder in (tmp_path, golden_v2.GOLDEN))
    assert {step: set(found) for step, found in wide.steps.items()} == {
        step: set(found) for step, found in stored.steps.items()
    }
    assert wide.steps["decode 1"]["model.layers.0.linear_attn.state"].shape == (3, 64, 64)


def test_transformers_as_a_port():
    """Catches a driver of the installed transformers that no longer runs, or writes values under other names."""
    pytest.importorskip("transformers")
    driver = f"{sys.executable} verify/examples/transformers_port.py --model {{model}} --like {{trace}} --trace {{out}}"
    done = run(sys.executable, "verify/conform.py", "--cmd", driver, "--models", "pair", "--level", "gradients")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "reached: gradients"), done.stdout + done.stderr


# ---- Angles ---------------------------------------------------------------------------------------------------------

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
ANGLES = {
    "plain": {},
    "YaRN": {"rope_scaling": YARN},
    "another dialect": {"rope_parameters": {**YARN, "rope_theta": 2e5, "partial_rotary_factor": 0.5}},
    "not truncated": {"rope_scaling": {**YARN, "truncate": False, "beta_fast": 20, "beta_slow": 2}},
    "a factor": {"rope_scaling": {**YARN, "attention_factor": 1.7}},
    "two scales": {"rope_scaling": {**YARN, "mscale": 0.8, "mscale_all_dim": 0.3}},
    "one scale": {"rope_scaling": {**YARN, "mscale": 0.8}},
    "low is high": {"rope_scaling": {**YARN, "beta_fast": 1, "beta_slow": 1, "truncate": False}},
}


@pytest.mark.parametrize("name", ANGLES)
def test_angles_are_the_references(name):
    """Catches two readings of a config's RoPE, that of causes and vectors and that of what decides."""
    fields = {**BASE, "head_dim": 64, "partial_rotary_factor": 0.25, "rope_theta": 1e6, **ANGLES[name]}
    if "rope_parameters" in fields:
        del fields["rope_theta"], fields["partial_rotary_factor"]
    config = Config(fields)
    found, scale = rotary.frequencies(fields)
    assert np.allclose(found, config.inv_freq, rtol=1e-12, atol=0)
    assert scale == pytest.approx(config.rope_scale, rel=1e-12)
