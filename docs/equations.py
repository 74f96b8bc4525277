r"""Writes equations.md: each equation of the model, and the lines of both implementations that compute it.

    python docs/equations.py            writes docs/equations.md
    python docs/equations.py --check    writes nothing; fails if the page is not what the sources say

Nothing in the sources marks these lines. They are found by what they already have: a function, and in it the statement
that sets a name, or returns, and mentions certain other names. Raises LookupError where there is not exactly one.
"""

import argparse
import ast
import functools
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PAGE = HERE / "equations.md"
MODEL, REFERENCE = "qwen3_next.py", "reference_recurrent.py"


class Component(NamedTuple):
    """A section of the page."""

    title: str
    about: str  # where the equation is from, and what to know about it
    equations: tuple[str, ...]  # LaTeX
    # What a line computes; then where it is, in MODEL and in REFERENCE: "function: name < other names of the line".
    # None: this file has no such line
    rows: tuple[tuple[str, str | None, str | None], ...]


INTRODUCTION = """# The equations, and the lines that compute them

Each part of Qwen3-Next as its paper writes it, and next to each other the lines that compute it in the model,
[`qwen3_next.py`](../qwen3_next.py), and in the [reference](../reference_recurrent.py), which shares no code with it.
The links lead to the lines. Symbols are those of the glossaries at the top of the two files. Vectors are columns. A
state has a row for each key dimension, so it is the transpose of the one in [GDN], the paper of Gated DeltaNet,
[arXiv 2412.06464](https://arxiv.org/abs/2412.06464). The reference reads one sequence, token by token, and neither
generates nor trains: a dash marks what it has no line for.

`python docs/equations.py` writes this page from the two files, and a test fails when it is not up to date.
"""

COMPONENTS = (
    Component(
        "RMSNorm",
        "[arXiv 1910.07467](https://arxiv.org/abs/1910.07467), Eq. 4. It is zero-centred: the scale is $1 + w$. So it "
        "is before both halves of each layer, at the end, on the queries and keys of attention, and in the MTP layer.",
        (r"y = \frac{x}{\sqrt{\frac{1}{D} \sum_i x_i^2 + \epsilon}} \odot (1 + w)",),
        (("scale", "RMSNorm.forward: scale", None), ("norm", "RMSNorm.forward: return", "rms_norm: return")),
    ),
    Component(
        "Partial rotary position embedding",
        "[arXiv 2104.09864](https://arxiv.org/abs/2104.09864), section 3.2. Only the first $R$ of the $d$ dimensions "
        "of a head are turned, and dimension $i$ is paired with $i + R/2$. Position $t$:",
        (
            r"\theta_i = \theta^{-2i/R} \qquad 0 \le i < R/2",
            r"\begin{pmatrix} x'_i \\ x'_{i+R/2} \end{pmatrix} = "
            r"\begin{pmatrix} \cos t\theta_i & -\sin t\theta_i \\ \sin t\theta_i & \cos t\theta_i \end{pmatrix} "
            r"\begin{pmatrix} x_i \\ x_{i+R/2} \end{pmatrix}",
        ),
        (
            ("R", "rope_frequencies: dim", "Config.__init__: width"),
            ("frequencies", "rope_frequencies: inv_freq", "rope_frequencies: inv_freq"),
            ("angle", "Step.__init__: angle", None),
            ("cosine", "Step.__init__: self.cos", "rope: cos"),
            ("which dimensions", "apply_rope: x1", "rope: first"),
            ("turn", "apply_rope: return", "rope: return"),
        ),
    ),
    Component(
        "YaRN",
        "[arXiv 2309.00071](https://arxiv.org/abs/2309.00071), sections 3.2 and 3.4, for contexts $s$ times as long as "
        "the original $L$. Where a pair turns often, its frequency is kept; where it turns seldom, it is divided by "
        "$s$; $\\rho$ rises from 0 to 1 in between: in the paper with the number of turns, in its published code, and "
        "here, with the index $i$. Cosines and sines are multiplied by $m$.",
        (
            r"\theta'_i = (1 - \rho_i)\,\theta_i + \rho_i \frac{\theta_i}{s} \qquad m = 1 + 0.1 \ln s",
            r"\rho_i = \mathrm{clip}\Big(\frac{i - i_{\mathrm{fast}}}{i_{\mathrm{slow}} - i_{\mathrm{fast}}}, 0, "
            r"1\Big) \qquad "
            r"i_n = \frac{R \ln (L / 2\pi n)}{2 \ln \theta}",
        ),
        (
            ("index of n turns", "rope_frequencies: low < original", "rope_frequencies.index_that_turns: return"),
            ("ramp", "rope_frequencies: slow", "rope_frequencies: ramp"),
            ("m", "rope_frequencies: above", "Config.__init__: above"),
            ("frequencies", "rope_frequencies: return < slow", "rope_frequencies: return < ramp"),
        ),
    ),
    Component(
        "Gated attention",
        "[arXiv 2505.06708](https://arxiv.org/abs/2505.06708), section 2.2; grouped queries, "
        "[arXiv 2305.13245](https://arxiv.org/abs/2305.13245). Query head $h$ reads key head $h'$. $R_t$ is the "
        "rotation above, and the rows of $W_q$ are the query and the gate of the first head, then of the second, and "
        "so on.",
        (
            r"[q_t^h, g_t^h] = W_q^h x_t \qquad k_t^{h'} = W_k^{h'} x_t \qquad v_t^{h'} = W_v^{h'} x_t \qquad "
            r"\hat q_t^h = R_t\,\mathrm{norm}(q_t^h) \qquad \hat k_t^{h'} = R_t\,\mathrm{norm}(k_t^{h'})",
            r"y_t^h = \sum_{j \le t} \mathrm{softmax}_j\Big(\frac{\hat q_t^h \cdot \hat k_j^{h'}}{\sqrt d}\Big) "
            r"v_j^{h'} \qquad "
            r"o_t = W_o\,[\sigma(g_t^1) \odot y_t^1, \dots, \sigma(g_t^H) \odot y_t^H]",
        ),
        (
            ("query and gate", "GatedAttention.forward: q", "Reference.gated_attention: query_and_gate"),
            ("key", "GatedAttention.forward: k", "Reference.gated_attention: k < reshape"),
            ("value", "GatedAttention.forward: v", "Reference.gated_attention: v"),
            ("query, normed and turned", "GatedAttention.forward: q_rope", "Reference.gated_attention: q < rope"),
            ("key, normed and turned", "GatedAttention.forward: k_rope", "Reference.gated_attention: k < rope"),
            ("softmax", "attend: y < enable_gqa", "attend: weights"),
            ("weighted sum", "GatedAttention.forward: attn_out", "attend: out < weights"),
            ("gate, out", "GatedAttention.forward: return", "Reference.gated_attention: return"),
        ),
    ),
    Component(
        "Convolution",
        "[GDN], section 3.4. Over the token and the three before it ($W = 4$), with weights of its own for each "
        "channel $c$ of q, k and v. What it saw last, the window, is kept.",
        (r"y_t[c] = \mathrm{SiLU}\Big(\sum_{j=0}^{W-1} w_j[c]\, x_{t-(W-1)+j}[c]\Big)",),
        (
            ("few tokens", "CausalConv.forward: y < taps", "causal_conv: out < window"),
            ("many tokens", "CausalConv.forward: y < conv2d", None),
            ("SiLU", "GatedDeltaNet.forward: conv_out", None),
            ("inputs", "CausalConv.forward: x", "causal_conv: window < concatenate"),
            ("window", "CausalConv.forward: window < clone", "causal_conv: window < !np"),
        ),
    ),
    Component(
        "Keys and queries of length 1",
        "[GDN], section 3.4. $\\epsilon$ is $10^{-6}$ here, whatever the config says of norms.",
        (
            r"\hat k = \frac{k}{\sqrt{|k|^2 + \epsilon}} \qquad \hat q = \frac{q}{\sqrt{|q|^2 + \epsilon}} \cdot "
            r"\frac{1}{\sqrt K}",
        ),
        (
            ("length 1", "l2_normalise: return", "l2_norm: return"),
            ("query", "GatedDeltaNet.forward: q_l2norm", "Reference.gated_delta_net: q < l2_norm"),
            ("key", "GatedDeltaNet.forward: k_l2norm", "Reference.gated_delta_net: k < l2_norm"),
        ),
    ),
    Component(
        "Decay and write strength",
        "[GDN], Eq. 10 and section 3.4; the decay's form is Mamba-2's, "
        "[arXiv 2405.21060](https://arxiv.org/abs/2405.21060). One of each for a token and a value head.",
        (
            r"\alpha_t = e^{g_t} \qquad g_t = -e^{A_{\log}}\, \mathrm{softplus}(a_t + dt_{\mathrm{bias}}) \qquad "
            r"\beta_t = \sigma(b_t)",
        ),
        (
            ("decay", "GatedDeltaNet.forward: g < A_log", "Reference.gated_delta_net: g"),
            ("write strength", "GatedDeltaNet.forward: beta < sigmoid", "Reference.gated_delta_net: beta"),
        ),
    ),
    Component(
        "The gated delta rule, token by token",
        "[GDN], Eq. 10.",
        (
            r"S_t = \alpha_t\,(I - \beta_t k_t k_t^\top)\, S_{t-1} + \beta_t\, k_t v_t^\top \qquad o_t = S_t^\top q_t",
            r"S \leftarrow \alpha_t S \qquad r_t = S^\top k_t \qquad \delta_t = \beta_t (v_t - r_t) \qquad "
            r"S \leftarrow S + k_t \delta_t^\top \qquad o_t = S^\top q_t",
        ),
        (
            ("decay", "recurrent_gated_delta_rule: S < alpha", "gated_delta_rule: S < exp"),
            ("recall", "recurrent_gated_delta_rule: recalled", "gated_delta_rule: recall"),
            ("delta", "recurrent_gated_delta_rule: delta", "gated_delta_rule: delta"),
            ("write", "recurrent_gated_delta_rule: S < delta", "gated_delta_rule: S < delta"),
            ("read", "recurrent_gated_delta_rule: outputs.append", "gated_delta_rule: out < S"),
        ),
    ),
    Component(
        "The gated delta rule, chunk by chunk",
        "[GDN], section 3.3; the triangular solve, [arXiv 2406.06484](https://arxiv.org/abs/2406.06484), section 3.2. "
        "$G_i$ is the sum of $g$ from the chunk's first token to token $i$, and $S$ the state before the chunk. The "
        "rows of $Q$, $K$, $V$ and $\\Delta$ are tokens. The result is the one above, and so is the reference's.",
        (
            r"A_{ij} = \beta_i\, e^{G_i - G_j}\, (k_i \cdot k_j) \;\; (j < i) \qquad M = (I + A)^{-1}\, "
            r"\mathrm{diag}(\beta)",
            r"\Delta = M\,(V - \mathrm{diag}(e^G)\, K S) \qquad O = \mathrm{diag}(e^G)\, Q S + P \Delta \qquad "
            r"P_{ij} = e^{G_i - G_j}\, (q_i \cdot k_j) \;\; (j \le i)",
            r"S' = e^{G_C} S + \sum_j e^{G_C - G_j}\, k_j \delta_j^\top",
        ),
        (
            ("exponents", "chunk_gated_delta_rule: between", None),
            ("decay between two tokens", "chunk_gated_delta_rule: decay", None),
            ("decay since the chunk's start", "chunk_gated_delta_rule: gamma", None),
            ("decay to its end", "chunk_gated_delta_rule: to_end", None),
            ("A", "chunk_gated_delta_rule: A", None),
            ("M", "chunk_gated_delta_rule: M", None),
            ("P", "chunk_gated_delta_rule: inner", None),
            ("delta", "chunk_gated_delta_rule: delta", "gated_delta_rule: delta"),
            ("read", "chunk_gated_delta_rule: outputs.append", "gated_delta_rule: out < S"),
            ("next state", "chunk_gated_delta_rule: S < to_end_n", "gated_delta_rule: S < delta"),
        ),
    ),
    Component(
        "Gated norm, and the way out of Gated DeltaNet",
        "[GDN], section 3.4. The scale is $w$ itself, shared by all heads, and the gate is a SiLU.",
        (
            r"o_t = W_o\,[n_t^1, \dots, n_t^H] \qquad n_t^h = \frac{y_t^h}{\sqrt{\frac{1}{V} \sum_i (y_{t,i}^h)^2 "
            r"+ \epsilon}} "
            r"\odot w \odot \mathrm{SiLU}(z_t^h)",
        ),
        (
            ("norm", "GatedRMSNorm.forward: x", "gated_rms_norm: return"),
            ("gate", "GatedRMSNorm.forward: return", "Reference.gated_delta_net: out < gated_rms_norm"),
            ("out", "GatedDeltaNet.forward: return", "Reference.gated_delta_net: return"),
        ),
    ),
    Component(
        "Router",
        "[arXiv 1701.06538](https://arxiv.org/abs/1701.06538); here the softmax is over all $E$ experts, before the "
        "choice, and the weights of the $k$ chosen ones are made to sum to 1.",
        (
            r"p = \mathrm{softmax}(W_r x) \qquad \mathcal{T} = \text{the } k \text{ largest} \qquad "
            r"w_e = \frac{p_e}{\sum_{j \in \mathcal{T}} p_j}",
        ),
        (
            ("probabilities", "SparseMoeBlock.forward: router_probs", "Reference.moe: p"),
            ("choice", "SparseMoeBlock.forward: chosen_probs", "router: return"),
            ("weights", "SparseMoeBlock.forward: topk_weights < sum", "expert_weights: return"),
        ),
    ),
    Component(
        "Experts and the shared expert",
        "SwiGLU, [arXiv 2002.05202](https://arxiv.org/abs/2002.05202); the shared expert, "
        "[arXiv 2401.06066](https://arxiv.org/abs/2401.06066), has a sigmoid gate of its own here.",
        (
            r"f_e(x) = D_e\,(\mathrm{SiLU}(G_e x) \odot U_e x) \qquad "
            r"y = \sum_{e \in \mathcal{T}} w_e\, f_e(x) + \sigma(u \cdot x)\, f_{\mathrm{shared}}(x)",
        ),
        (
            ("an expert", "MLP.forward: return", "swiglu: return"),
            ("weighted sum", "Experts.forward: return < embedding_bag", "Reference.moe: out < expert"),
            ("with the shared one", "SparseMoeBlock.forward: return", "Reference.moe: out < mlp"),
        ),
    ),
    Component(
        "A layer",
        "Before each half a norm, around it the residual connection. The mixer is attention in every fourth layer.",
        (r"x' = x + \mathrm{mixer}(\mathrm{norm}(x)) \qquad y = x' + \mathrm{MoE}(\mathrm{norm}(x'))",),
        (
            ("mixer", "DecoderLayer.forward: x", "Reference.layer: x < gated_delta_net"),
            ("experts", "DecoderLayer.forward: y < post_attention_layernorm", "Reference.layer: x < moe"),
            ("sum", "DecoderLayer.forward: return", "Reference.layer: return"),
        ),
    ),
    Component(
        "Multi-token prediction",
        "DeepSeek-V3, [arXiv 2412.19437](https://arxiv.org/abs/2412.19437), Eq. 21 to 23, with the embedding first. "
        "$h_i$ is the model's hidden state after its final norm, and $\\mathrm{layer}$ one of gated attention.",
        (
            r"h'_i = M\,[\mathrm{norm}(\mathrm{Emb}(t_{i+1}));\, \mathrm{norm}(h_i)] \qquad "
            r"P(t_{i+2} \mid t_{\le i+1}) = \mathrm{softmax}(W_{\mathrm{head}}\, \mathrm{norm}(\mathrm{layer}(h')_i))",
        ),
        (
            ("both, joined", "MTP.forward: return", "Reference.mtp_hidden: x < concatenate"),
            ("layer, norm", "Qwen3NextForCausalLM.look_ahead: return", "Reference.mtp_hidden: x < layer"),
            ("logits", "Qwen3NextForCausalLM.forward: out.mtp_logits", "Reference.mtp_logits: return"),
        ),
    ),
    Component(
        "Accepting drafts",
        "Speculative decoding, [arXiv 2211.17192](https://arxiv.org/abs/2211.17192), section 2.3. A draft $x$ was "
        "drawn from $q$; the model's distribution is $p$. The first draft that is rejected is replaced, and those "
        "after it go. The text is distributed as by $p$ alone.",
        (
            r"P(\text{accept } x) = \min\Big(1, \frac{p(x)}{q(x)}\Big) \qquad "
            r"\text{after a rejection: } x \sim \frac{\max(p - q,\, 0)}{\sum_y \max(p(y) - q(y),\, 0)}",
        ),
        (
            ("p of the drafts", "Sampling.verify: p_draft", None),
            ("q of the drafts", "Sampling.verify: q_draft", None),
            ("accepted before the first rejection", "Sampling.verify: accepted", None),
            ("what to draw from next", "Sampling.verify: rest < clamp", None),
            ("the next token", "Sampling.verify: return < rest", None),
        ),
    ),
    Component(
        "Losses",
        "Cross-entropy over the $N$ predicted tokens, $n$ ahead (1 for the model, 2 for MTP); the load-balancing loss "
        "of Switch Transformers, [arXiv 2101.03961](https://arxiv.org/abs/2101.03961), Eq. 4 to 6, over all layers "
        "pooled: $f_e$ is the share of tokens that chose expert $e$, and $\\bar p_e$ its mean probability.",
        (
            r"L_n = -\frac{1}{N} \sum_i \ln P(t_{i+n} \mid t_{<i+n}) \qquad L_{\mathrm{aux}} = E \sum_e f_e\, \bar p_e "
            r"\qquad L = L_1 + c_{\mathrm{aux}} L_{\mathrm{aux}} + c_{\mathrm{MTP}} L_2",
        ),
        (
            ("which tokens", "prediction_loss: targets < ahead, !segments", None),
            ("cross-entropy", "prediction_loss: sums", None),
            ("mean", "prediction_loss: return", None),
            ("who was chosen", "load_balancing_loss: chosen", None),
            ("balance", "load_balancing_loss: return", None),
            ("L1", "Qwen3NextForCausalLM.forward: out.loss < prediction_loss", None),
            ("with balance", "Qwen3NextForCausalLM.forward: out.loss < router_aux_loss_coef", None),
            ("with MTP", "Qwen3NextForCausalLM.forward: out.loss < mtp_loss_scaling_factor", None),
        ),
    ),
)


# ---- Finding the lines ----------------------------------------------------------------------------------------------


@functools.cache
def functions(source: str) -> dict[str, ast.FunctionDef]:
    """Each function of a source by its qualified name: Class.method, function, function.inner."""
    found = {}

    def visit(node: ast.AST, prefix: str):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                name = prefix + child.name
                if isinstance(child, ast.FunctionDef):
                    found[name] = child
                visit(child, name + ".")
            else:
                visit(child, prefix)

    visit(ast.parse(source), "")
    return found


def own_nodes(function: ast.FunctionDef) -> list[ast.AST]:
    """What a function holds, but for the functions inside it."""
    found, left = [], list(function.body)
    while left:
        node = left.pop()
        found.append(node)
        if not isinstance(node, ast.FunctionDef):
            left += ast.iter_child_nodes(node)
    return found


def targets(statement: ast.AST) -> set[str]:
    """What a statement sets, returns ("return") or calls: names, `self.cos`, `outputs.append`; of x[i] the x."""
    if isinstance(statement, ast.Return):
        return {"return"}
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return {ast.unparse(statement.value.func)}
    if not isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign):
        return set()
    found = set()
    left = [*statement.targets] if isinstance(statement, ast.Assign) else [statement.target]
    while left:
        target = left.pop()
        if isinstance(target, ast.Tuple):
            left += target.elts
        else:
            found.add(ast.unparse(target.value if isinstance(target, ast.Subscript) else target))
    return found


def mentions(statement: ast.AST) -> set[str]:
    """The names in a statement, but for what it sets: variables, attributes, keywords of calls."""
    found = set()
    for node in ast.walk(getattr(statement, "value", None) or statement):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.keyword):
            found.add(node.arg)
    return found


def find(source: str, file: str, place: str) -> tuple[int, str]:
    """The line number, and the code on one line, of the one statement that `place` describes, as in `Component`.

    A name with ! must not be in it. Raises LookupError, naming the place, if no statement fits, or several do.
    """
    name, _, rest = place.partition(": ")
    target, _, others = rest.partition(" < ")
    function = functions(source).get(name)
    if function is None:
        raise LookupError(f"{file} has no function {name}, which docs/equations.py names")
    wanted = {other for other in others.split(", ") if other and not other.startswith("!")}
    unwanted = {other[1:] for other in others.split(", ") if other.startswith("!")}
    fitting = []
    for node in own_nodes(function):
        if target in targets(node) and wanted <= mentions(node) and not unwanted & mentions(node):
            fitting.append(node)
    if len(fitting) != 1:
        raise LookupError(f"{file}: {len(fitting)} statements fit {place!r} in docs/equations.py, expected one")
    code = " ".join(ast.get_source_segment(source, fitting[0]).split())
    return fitting[0].lineno, code.replace("( ", "(").replace(" )", ")")


def cell(file: str, sources: dict[str, str], place: str | None) -> str:
    """A cell of a section's table: the code, and a link to its line."""
    if place is None:
        return "–"
    line, code = find(sources[file], file, place)
    code = code.replace("|", "\\|")
    return f"[`{code}`](../{file}#L{line})"


def page(sources: dict[str, str]) -> str:
    """The page, from the text of both files by name."""
    parts = [INTRODUCTION]
    for number, component in enumerate(COMPONENTS, 1):
        equations = "\n\n".join(f"$$\n{equation}\n$$" for equation in component.equations)
        rows = [f"| | `{MODEL}` | `{REFERENCE}` |", "|---|---|---|"]
        for label, ours, theirs in component.rows:
            rows.append(f"| {label} | {cell(MODEL, sources, ours)} | {cell(REFERENCE, sources, theirs)} |")
        parts.append(f"## {number}. {component.title}\n\n{component.about}\n\n{equations}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def read_sources() -> dict[str, str]:
    return {file: (HERE.parent / file).read_text(encoding="utf-8") for file in (MODEL, REFERENCE)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not up to date")
    args = parser.parse_args()
    text = page(read_sources())
    if args.check:
        right = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print("equations.md is up to date" if right else "equations.md is out of date: run python docs/equations.py")
        return 0 if right else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
