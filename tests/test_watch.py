"""Claim: the page of watch.py shows what the model computes, and works in a browser for everyone.

The browser is Chromium, of the system or of Playwright. Without one the tests are skipped, unless BROWSER_TESTS is set
to "required", as .ci/run does where it has installed one: then they fail.
"""

import json
import os
import subprocess
import sys
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, random_model
from test_qwen3_5 import release, their_model

import watch
from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer
from reference_recurrent import gated_delta_rule
from verify.trace import recording

sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "notebooks" / "experiments")]
import film  # noqa: E402
import rules  # noqa: E402

PROMPT = "Tell me a story about a fox and a lantern."
RULES = ["linear attention", "decay only", "delta rule", "gated delta rule"]
WIDTHS, THEMES = (400, 900, 1400), ("light", "dark")


@pytest.fixture(scope="session")
def chromium():
    """The browser, one for all tests."""
    stop = pytest.fail if os.environ.get("BROWSER_TESTS") == "required" else pytest.skip
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        stop("no Playwright: pip install playwright axe-playwright-python")
    with sync_playwright() as playwright:
        browser = film.launch(playwright)
        if browser is None:
            stop("no browser: apt-get install chromium, or playwright install chromium")
        yield browser
        browser.close()


class Opened:
    """A page in the browser, and what went wrong in it. Leaving the `with` block fails if anything did."""

    def __init__(self, browser, file: Path, width: int = 900, **settings):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        self.page = self.context.new_page()
        self.faults = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.requests: list[str] = []
        self.page.goto(file.as_uri())
        self.page.wait_for_selector(".word.now")

    def __enter__(self):
        return self.page

    def __exit__(self, kind, *_):
        self.context.close()
        if kind is None:
            assert not self.faults
            assert [url for url in self.requests if not url.startswith(("data:", "blob:"))] == self.requests[:1]


@pytest.fixture(scope="session")
def tiny_model(tiny):
    return Qwen3NextTokenizer.from_pretrained(tiny), Qwen3NextForCausalLM.from_pretrained(tiny)


@pytest.fixture(scope="session")
def story(tiny_model, tmp_path_factory) -> Path:
    """A page of tiny/'s: the one that most tests open."""
    tokenizer, model = tiny_model
    file = tmp_path_factory.mktemp("watch") / "memory.html"
    file.write_text(watch.page(model, tokenizer, PROMPT, max_new_tokens=60, do_sample=False), encoding="utf-8")
    return file


def data_of(html: str) -> dict:
    """What a page was made from."""
    text = html.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    return json.loads(text)


# ---- The same numbers as the model's --------------------------------------------------------------------------------


def models(name: str, folder: Path):
    """tiny/ in its own bfloat16 and in float32; random ones with unequal everything, of both families."""
    if name.startswith("tiny"):
        return Qwen3NextForCausalLM.from_pretrained(ROOT / "tiny", "float32" if "float32" in name else "auto")
    if name == "Qwen3.5":
        return Qwen3NextForCausalLM.from_pretrained(release(folder, their_model("qwen3_5", vocab_size=2048)))
    return random_model(torch.float32, vocab_size=2048, mtp_num_hidden_layers=1)


@pytest.mark.parametrize("name", ["tiny", "tiny in float32", "random", "Qwen3.5"])
def test_states_are_the_models(name, tmp_path, tiny_model, chromium):
    """Catches a head that gets another's keys, q for k, a wrong byte, a step out of order: in any head, after any word.

    The browser computes in float32, one word after another, the model in chunks: 1e-5 is a hundred roundings.
    """
    model = models(name, tmp_path / "model")
    file = tmp_path / "memory.html"
    html = watch.page(model, tiny_model[0], PROMPT, max_new_tokens=40, do_sample=False)
    file.write_text(html, encoding="utf-8")
    prompt = watch.prompt_ids(tiny_model[0], PROMPT)
    ids, _ = watch.answer(model, prompt, 40, do_sample=False)
    with recording(model, ["model.layers.*.linear_attn.state", "model.layers.*.linear_attn.delta_out"]) as trace:
        model(torch.tensor([ids]))
    with Opened(chromium, file) as page:
        found = page.evaluate("""() => data.delta.layers.map(layer => [...Array(data.delta.heads).keys()].map(head => {
            const steps = run(inputs(`${layer}.${head}`), RULES[3]);
            return {state: [...steps.at(-1).S], out: steps.map(step => [...step.out])};
        }))""")
        layers = page.evaluate("data.delta.layers")
    assert layers == [i for i, kind in enumerate(model.config.layer_types) if kind == "linear_attention"]
    for i, heads in zip(layers, found):
        state, out = (trace[f"model.layers.{i}.linear_attn.{key}"].numpy() for key in ("state", "delta_out"))
        assert len(heads) == len(state)
        assert np.abs(state).max() > 0.1
        # delta_out is what the layer hands on in bfloat16: 8 bits of each number
        spare = 2**-8 * np.abs(out).max() if model.dtype == torch.bfloat16 else 0
        for h, head in enumerate(heads):
            np.testing.assert_allclose(np.array(head["state"]).reshape(state[h].shape), state[h], rtol=0, atol=1e-5)
            np.testing.assert_allclose(np.array(head["out"]), out[:, h], rtol=0, atol=1e-5 + spare)


def test_what_is_returned_under_each_rule(story, chromium):
    """Catches a rule that runs as another one, a share of another word, and counts that are not those of the shares."""
    with Opened(chromium, story) as page:
        words = page.evaluate("words.map(w => [[...w.q], [...w.k], [...w.v], w.alpha, w.beta])")
        t = len(words) - 1
        found = page.evaluate("memories.map(steps => words.map(word => share(steps.at(-1).S, word)))")
        labels = [button.inner_text() for button in page.query_selector_all(".rules button")]
    q, k, v, alpha, beta = (np.array(column) for column in zip(*words))
    _, state = gated_delta_rule(q[:, None], k[:, None], v[:, None], np.log(alpha)[:, None], beta[:, None])
    states = [np.zeros(state.shape[-2:]) for _ in RULES]
    for k_t, v_t, alpha_t, beta_t in zip(k, v, alpha, beta):
        states[0] = states[0] + np.outer(k_t, v_t)
        states[1] = alpha_t * states[1] + np.outer(k_t, v_t)
        states[2] = states[2] + beta_t * np.outer(k_t, v_t - k_t @ states[2])
    states[3] = state.reshape(states[3].shape)
    counts = []
    for i, (S, shares) in enumerate(zip(states, found)):
        expected = np.maximum(0, 1 - ((k @ S - v) ** 2).sum(1) / (v**2).sum(1))
        np.testing.assert_allclose(shares, expected, rtol=0, atol=1e-4)
        counts.append(int((expected >= 0.1).sum()))
        assert labels[i].split("\n") == [RULES[i], f"{counts[-1]} of {t + 1} returned"]
    assert counts[3] > 2 * counts[0]


def test_where_attention_looks(tmp_path, tiny_model, chromium):
    """Catches a query head with another one's keys, a word that sees the next one, and a gate that is left out."""
    model = random_model(torch.float32, vocab_size=2048)
    file = tmp_path / "memory.html"
    file.write_text(watch.page(model, tiny_model[0], PROMPT, max_new_tokens=0), encoding="utf-8")
    ids = torch.tensor([watch.prompt_ids(tiny_model[0], PROMPT)])
    with recording(model, ["model.layers.3.self_attn.*"]) as trace:
        model(ids)
    q, k, gate = (trace[f"model.layers.3.self_attn.{name}"] for name in ("q_rope", "k_rope", "gate"))
    k = k.repeat_interleave(3, dim=1)  # 6 query heads on 2 key heads
    scores = torch.einsum("ihd,jhd->hij", q, k) / 16**0.5
    hidden = torch.ones_like(scores[0]).triu(1).bool()
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1) * gate.sigmoid().mean(-1).T[..., None]
    with Opened(chromium, file) as page:
        for head, t in ((0, 4), (2, 9), (3, 9), (5, ids.shape[1] - 1)):
            found = page.evaluate(f"looks('3.{head}', {t})")
            np.testing.assert_allclose(found, weights[head, t, : t + 1], rtol=0, atol=1e-5)
        page.click("#looks button >> nth=2")
        page.click("#text .word >> nth=9")
        shares = page.evaluate("all('.word').map(word => +word.style.getPropertyValue('--share'))")
        np.testing.assert_allclose(np.square(shares[:10]), weights[2, 9, :10], rtol=0, atol=2e-3)
        assert shares[10:] == [0] * (len(shares) - 10)
        assert f"{100 * gate.sigmoid().mean(-1)[9, 2]:.0f} % open" in page.locator("#sentence").inner_text()
        page.click("#heads button >> nth=1")
        assert page.locator("#heads [aria-pressed=true]").get_attribute("value") == "0.1"
        assert page.locator("#looks [aria-pressed=true]").count() == 0


def test_experts_and_the_next_word(story, tiny_model, chromium):
    """Catches probabilities of another word, experts of another layer, and truths that are not the corpus's."""
    tokenizer, model = tiny_model
    ids, _ = watch.answer(model, watch.prompt_ids(tokenizer, PROMPT), 60, do_sample=False)
    t = 8
    with recording(model, ["*.topk_ids", "lm_head.out"]) as trace:
        model(torch.tensor([ids]))
    best = trace["lm_head.out"][t].softmax(-1).max()
    rows = data_of(story.read_text(encoding="utf-8"))["next"]
    assert all(tokenizer.decode(new) in dict(row) for row, new in zip(rows, ids[1:]))  # likely or not
    with Opened(chromium, story) as page:
        page.click(f".word >> nth={t}")
        first = page.locator("#next .row").first.inner_text()
        assert f"{100 * best:.0f} %" in first or f"{100 * best:.1f} %" in first
        assert "true" in first
        for layer in range(model.config.num_hidden_layers):
            chosen = trace[f"model.layers.{layer}.mlp.topk_ids"][t].tolist()
            paths = page.locator("#experts .row").nth(layer).locator("path").all()
            assert sorted(int(float(path.get_attribute("d")[1:5])) for path in paths) == sorted(chosen)


def test_the_true_chances_are_the_corpuss(tiny_model, monkeypatch):
    """Catches chances that belong to another token's place, and any for a text or a tokenizer that is not the corpus's.

    The corpus itself says how likely each token of one of its documents is, see test_corpus.py.
    """
    monkeypatch.syspath_prepend(str(ROOT / "tiny"))
    import corpus

    tokenizer, _ = tiny_model
    whole = corpus.Corpus(None, {"small talk": 1.0})
    units = whole.document("a")
    ids = tokenizer.encode(corpus.text_of(units))
    found = watch.true_chances(tokenizer, ids)
    assert len(found) == len(ids)
    for chances in found[:-1]:
        assert sum(chances.values()) == pytest.approx(1, abs=1e-2)
    floor = corpus.Corpus(None).floor(units, tokenizer.encode)
    for place, (token, _, surprise, _) in enumerate(floor):
        if place:
            assert found[place - 1][tokenizer.decode(token)] == pytest.approx(np.exp(-surprise), abs=1e-4)
    assert len(watch.true_chances(tokenizer, [*ids[:4], ids[0], *ids[4:]])) == 4
    other = Qwen3NextTokenizer.from_pretrained(ROOT / "tiny")
    other.backend.add_tokens(["another"])
    assert watch.true_chances(other, ids) is None


def test_six_writes():
    """Catches a rule that is applied wrongly: two of the table's numbers are known, and so is the order of others."""
    linear, decay, delta, gated = watch.six_writes(2000)
    for rule in (delta, gated):
        assert rule[5] == pytest.approx(1, abs=1e-3)  # beta = 1: the last write is returned exactly
        assert rule[0] < 0.1 < 0.5 < rule[3]  # the new value has replaced the old one
    assert linear[0] == pytest.approx(linear[3], abs=0.03)  # it does not know which of two was the last
    assert linear[1] == pytest.approx(linear[5], abs=0.03)
    assert decay[0] < decay[3]


@pytest.mark.parametrize("rule", RULES)
def test_the_small_models_follow_their_rules(rule):
    """Catches a model that is trained with another rule than the table says, or asked before all is written."""
    model = rules.Memory(rule, seed=1)
    names, things, asked, _ = rules.batch("new text", 5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        k = rules.l2_normalise(model.keys(names[0])).double().numpy()
        v = model.values(things[0]).double().numpy()
        a, b = (torch.tensor(np.concatenate([k, v], axis=1)).float() @ model.gates.weight.T + model.gates.bias).T
        alpha, beta = torch.exp(-torch.nn.functional.softplus(a)).numpy(), torch.sigmoid(b).numpy()
        S = np.zeros((16, 16))
        for t in range(len(k)):
            S = S * (alpha[t] if "decay" in rule or "gated" in rule else 1)
            S = S + np.outer(k[t], beta[t] * (v[t] - k[t] @ S) if "delta" in rule else v[t])
        read = torch.tensor(rules.l2_normalise(model.keys(asked[0])).numpy() @ S).float()
        expected = model.readout(model.norm(read))
        torch.testing.assert_close(model(names, things, asked)[0], expected, rtol=0, atol=1e-4)


def test_the_small_models_questions():
    """Catches an answer that is not the name's last one, and texts that are not of their kind."""
    generator = torch.Generator().manual_seed(0)
    for kind, length in (("once", 6), ("replaced", 24), ("new text", 20)):
        names, things, asked, targets = rules.batch(kind, 6, generator)
        assert names.shape == things.shape == (rules.ROWS, length)
        for row in range(rules.ROWS):
            last = dict(zip(names[row].tolist(), things[row].tolist()))  # the later one counts
            assert [last[name] for name in asked[row].tolist()] == targets[row].tolist()
            assert asked[row].unique().numel() == 6
        assert (names == rules.NAMES).sum(1).tolist() == [2 if kind == "new text" else 0] * rules.ROWS


def test_what_the_small_models_learned():
    """Catches a table that is not the stored runs', and a sentence about it that they do not show.

    The order of the rules must hold for every seed, not only on average.
    """
    runs = [run for run in rules.results.load(rules.RESULT) if run["what"] == "recall"]
    seeds = {run["seed"] for run in runs}
    by_seed = {(run["rule"], run["seed"]): [run["accuracy"][kind]["16"] for kind in rules.TASKS] for run in runs}
    assert len(by_seed) == len(runs) == 4 * len(seeds) >= 12
    table = np.array(watch.trained_rules())
    np.testing.assert_allclose(table, [np.mean([by_seed[rule, s] for s in seeds], 0) for rule in RULES], atol=6e-4)
    for seed in seeds:
        linear, decay, delta, gated = (by_seed[rule, seed] for rule in RULES)
        assert min(delta[1], gated[1]) > max(linear[1], decay[1]) + 0.1  # delta replaces
        assert min(decay[2], gated[2]) > linear[2] + 0.1  # decay clears


# ---- What the page is made from -------------------------------------------------------------------------------------


def test_a_shorter_answer_is_the_beginning(tiny_model):
    """Catches a film that leaves a story out, or takes one, by an opening that the story does not have."""
    tokenizer, model = tiny_model
    prompt = watch.prompt_ids(tokenizer, PROMPT)
    for seed in (0, 4):
        whole, _ = watch.answer(model, prompt, 90, seed=seed)
        opening, _ = watch.answer(model, prompt, film.OPENING, seed=seed)
        assert opening == whole[: len(prompt) + film.OPENING]


@pytest.mark.parametrize("options", [{"do_sample": False}, {"seed": 3}], ids=["greedy", "sampled"])
def test_the_answer_is_generates(options, tiny_model):
    """Catches another text than `generate` writes, and drafts that are said to be accepted but were replaced."""
    tokenizer, model = tiny_model
    prompt = watch.prompt_ids(tokenizer, PROMPT)
    ids, drafts = watch.answer(model, prompt, 120, **options)
    stats = {}
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=120, num_draft_tokens=1, stats=stats, **options)
    assert ids == expected[0].tolist()
    assert (len(drafts), sum(accepted for _, accepted in drafts.values())) == (stats["drafted"], stats["accepted"])
    assert 0 < stats["accepted"] < stats["drafted"]
    for place, (draft, accepted) in drafts.items():
        assert (ids[place] == draft) == accepted


def test_the_pages_text_is_the_texts(story, chromium, tiny_model):
    """Catches words that are lost, spaces that are doubled, and characters that HTML reads as its own."""
    tokenizer, model = tiny_model
    text = 'He said: "<b>5 &lt; 6 & 7</b>"\n\n  Ünïcödé 😀 </script> <!--'
    html = watch.page(model, tokenizer, text, raw=True, max_new_tokens=0)
    data = data_of(html)
    assert "".join(data["tokens"]) == text
    file = story.with_name("text.html")
    file.write_text(html, encoding="utf-8")
    with Opened(chromium, file) as page:
        shown = page.evaluate("document.querySelector('.message').textContent.replace(/↵/g, '')")
        assert shown.removeprefix("READ") == text
        assert page.locator(".answer").count() == 0


def test_it_is_one_small_file(tiny_model):
    """Catches a page that asks another file for something, and one that is too large to send by mail."""
    tokenizer, model = tiny_model
    html = watch.page(model.float(), tokenizer, " ".join(["The fox found a lantern ."] * 25), max_new_tokens=0)
    model.bfloat16()
    assert len(data_of(html)["tokens"]) >= 150
    assert len(html.encode()) < 4_000_000
    assert "src=" not in html
    assert "url(" not in html


def test_the_template_can_be_read():
    """Catches a page that grows past its reader."""
    lines = (ROOT / "watch.html").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 450
    assert max(map(len, lines)) <= 120


def test_a_large_model_gets_fewer_layers():
    """Catches a page of hundreds of megabytes for a checkpoint of the released size."""
    model = random_model(torch.float32, num_hidden_layers=40, linear_num_value_heads=8, linear_value_head_dim=128)
    known = [i for i, kind in enumerate(model.config.layer_types) if kind == "linear_attention"]
    shown = watch.delta_layers(model, 150, None)
    assert 1 <= len(shown) < len(known)
    assert set(shown) < set(known)
    assert watch.delta_layers(model, 10, None) == known
    assert watch.delta_layers(model, 150, [4, 0]) == [0, 4]
    with pytest.raises(ValueError, match="layer 3 is no Gated DeltaNet layer, expected some of"):
        watch.delta_layers(model, 150, [3])
    with pytest.raises(ValueError, match="no Gated DeltaNet layer"):
        watch.delta_layers(random_model(full_attention_interval=1), 150, None)


def test_every_link_leads_to_a_section():
    """Catches an explanation that sends its reader to a heading that a notebook does not have."""
    for text, place in watch.TIPS.values():
        file, _, section = place.partition("#")
        notebook = json.loads((ROOT / "notebooks" / file).read_text(encoding="utf-8"))
        lines = [line for cell in notebook["cells"] if cell["cell_type"] == "markdown" for line in cell["source"]]
        headings = {line.lstrip("#").strip().replace(" ", "-") for line in lines if line.startswith("#")}
        assert urllib.parse.unquote(section) in headings
        assert text.endswith(".")


def test_the_committed_page_is_of_this_template():
    """Catches a page that shows an older template than watch.html, or that has grown too large to be served to phones.

    `python notebooks/film.py` makes it anew.
    """
    file = ROOT / "docs" / "watch" / "index.html"
    html = file.read_text(encoding="utf-8")
    before, after = (ROOT / "watch.html").read_text(encoding="utf-8").split(watch.PLACE)
    assert html.startswith(before)
    assert html.endswith(after)
    assert file.stat().st_size < 2_000_000
    for gif in ROOT.glob("notebooks/gallery/watch.gif"):
        assert gif.stat().st_size < 1_500_000
    data = data_of(html)
    assert (file.parent / data["notebooks"] / "2_delta_rule.ipynb").is_file()
    assert len(data["tokens"]) > 100


def test_the_films_story_shows_it():
    """Catches a film of a story in which nothing is found again, or in which linear attention forgets little."""
    assert film.lost_and_found("Pip's kite fell into the pond. Ada pulled it out.")
    assert film.lost_and_found('"I have lost my kite," said Pip. Ada found it at the mill.')
    assert not film.lost_and_found("Pip found a kite. Then Pip lost it.")
    assert not film.lost_and_found("Pip flew a kite.")
    assert film.named_again("The kite was new. It flew far away. Ada found the kite.", "kite")
    assert not film.named_again("The kite was new. The kite flew far away. Ada was sad.", "kite")
    assert not film.named_again("Pip sat still. It was a warm day. Ada found a kite.", "kite")
    assert not film.named_again("The kites were new. They flew far away. Ada found two kites.", "kite")
    assert film.THING in film.PROMPT
    assert film.shows_it(200, [25, 1, 190, 100])
    assert not film.shows_it(200, [0, 1, 190, 99])
    assert not film.shows_it(200, [26, 1, 190, 100])


# ---- In the reader's hands ------------------------------------------------------------------------------------------


def word(page) -> int:
    """The number of the word that the page is at."""
    return page.evaluate("[...document.querySelectorAll('.word')].findIndex(word => word.matches('.now'))")


def blue(page) -> int:
    """How many words are lit."""
    shares = page.evaluate("all('.word').map(word => +word.style.getPropertyValue('--share'))")
    return sum(share**2 >= 0.1 for share in shares)


def test_keys(story, chromium):
    """Catches arrows, Home, End, the space bar and digits that do nothing, or that a button keeps for itself."""
    with Opened(chromium, story) as page:
        last = page.evaluate("T - 1")
        press = page.keyboard.press
        assert word(page) == last
        for key, at in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", last)):
            press(key)
            assert word(page) == at
        lit = blue(page)
        for key, name in zip("1234", RULES):
            press(key)
            assert page.locator(".rules [aria-pressed=true] b").inner_text() == name
        assert blue(page) == lit
        page.click(".rules button >> nth=0")
        assert blue(page) < lit / 2
        press(" ")  # plays, from the beginning, though a button was clicked last
        page.wait_for_function("view.t > 2")
        press(" ")
        at = word(page)
        page.wait_for_timeout(400)
        assert word(page) == at
        page.focus("#on")
        press(" ")  # now it is the button's
        assert word(page) == at + 1


def test_mouse_and_sliders(story, chromium):
    """Catches a word that can't be clicked, a drag that goes nowhere, sliders without effect, and no way back."""
    with Opened(chromium, story, 1400) as page:
        page.click(".word >> nth=30")
        assert word(page) == 30
        boxes = [page.locator(".word").nth(i).bounding_box() for i in (32, 35)]
        page.mouse.move(boxes[0]["x"] + 3, boxes[0]["y"] + 8)
        page.mouse.down()
        page.mouse.move(boxes[1]["x"] + 3, boxes[1]["y"] + 8, steps=4)
        page.mouse.up()
        assert word(page) == 35
        page.click("#back")
        assert word(page) == 34
        page.fill("#time", "40")
        assert word(page) == 40
        before = blue(page), page.locator("#sentence").inner_text()
        page.fill("#alpha", "0")
        k, v, beta = page.evaluate("[words.map(w => [...w.k]), words.map(w => [...w.v]), words[40].beta]")
        k, v = np.array(k)[:41], np.array(v)[:41]
        alone = ((k @ k[40])[:, None] * beta * v[40] - v) ** 2  # only what word 40 has written is left
        assert blue(page) == (1 - alone.sum(1) / (v**2).sum(1) >= 0.1).sum()
        assert "alpha = 0.000, yours" in page.locator("label[for=alpha]").inner_text()
        page.click("#own")
        assert (blue(page), page.locator("#sentence").inner_text()) == before
        page.fill("#beta", "0")
        assert blue(page) == 0  # nothing is written
        page.fill("#beta", "1")
        assert page.evaluate("share(memories[3][view.t].S, words[view.t])") > 0.999  # all of it
        page.click(".rules button >> nth=0")
        assert page.locator("#alpha").is_disabled()
        assert page.locator("#beta").is_disabled()
        code = page.locator("#code").inner_text()
        assert "recall" not in code
        assert "beta" not in code
        assert "alpha" not in code
        assert "nothing fades" in code
        assert "not asked" in code
        assert "outer(k, v)" in code
        page.click(".rules button >> nth=1")
        code = page.locator("#code").inner_text()
        assert "alpha" in code
        assert "nothing fades" not in code
        assert "not asked" in code
        page.click(".rules button >> nth=3")
        assert page.locator("#code span").count() == 5
        code = page.locator("#code").inner_text()
        assert "nothing fades" not in code
        assert "not asked" not in code


def shown(share: float) -> str:
    """A share as the page writes it: in percent, with one digit after the point just below 100."""
    return "< 1 %" if 0 < share < 0.005 else f"{100 * share:.{1 if 0.985 < share < 0.9995 else 0}f} %"


def test_the_sentence(story, chromium):
    """Catches numbers in words that are not the numbers of the memory."""
    with Opened(chromium, story) as page:
        page.click(".word >> nth=30")
        text = " ".join(page.locator("#sentence").inner_text().split())
        alpha, beta = page.evaluate("[words[30].alpha, words[30].beta]")
        before = page.evaluate("share(times(words[30].alpha, memories[3][29].S), words[30])")
        assert f"fades the whole memory to {shown(alpha)}" in text
        if 0.65 < alpha < 0.999:
            assert f" (at this rate, to half in {np.log(2) / -np.log(alpha):.0f} words)" in text
        assert f"returns {shown(before)} of its value. The word writes the difference" in text
        assert f"with strength {beta:.2f}" in text
        assert f"The memory still returns {blue(page)} of 31 words" in text
        k, v, S = page.evaluate("[words.map(w => [...w.k]), words.map(w => [...w.v]), [...memories[3][30].S]]")
        k, v = np.array(k)[:31], np.array(v)[:31]
        others = np.array([k[(j + 17) % 31] for j in range(31)]) @ np.reshape(S, (k.shape[1], v.shape[1]))
        count = (1 - ((others - v) ** 2).sum(1) / (v**2).sum(1) >= 0.1).sum()
        left = np.prod(page.evaluate("words.slice(21, 31).map(w => w.alpha)"))
        kept = f"the memory still returns {count} of 31 values"
        why = kept if blue(page) > 15 else f"ten words ago, {shown(left)} remains"
        assert why in page.locator("#why").inner_text()
        page.click(".rules button >> nth=0")
        sizes = np.linalg.norm(k @ (k.T @ v), axis=1) / np.linalg.norm(v, axis=1)
        assert f"{np.median(sizes):.1f} times as long as the word's value" in page.locator("#why").inner_text()


def test_explanations(story, chromium):
    """Catches a dotted word that explains nothing to a mouse, a finger or the keyboard, or leads nowhere."""
    with Opened(chromium, story) as page:
        tips = page.locator("main .term, header .term")
        assert tips.count() >= 6
        for i in range(tips.count()):
            if not tips.nth(i).is_visible():
                continue
            for act in (tips.nth(i).hover, tips.nth(i).focus, tips.nth(i).click):
                page.mouse.move(0, 0)
                page.keyboard.press("Escape")
                assert page.locator("#tip").is_hidden()
                act()
                assert page.locator("#tip").is_visible()
                box = page.locator("#tip").bounding_box()
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= 900
        link = page.locator("#tip a").get_attribute("href")
        assert link.startswith("notebooks/")
        page.locator("#tip a").hover()
        page.wait_for_timeout(400)
        assert page.locator("#tip").is_visible()  # it can be reached


@pytest.mark.parametrize("width", [400, 900])
def test_whatever_is_pointed_at_explains_itself(width, story, chromium):
    """Catches a thing that explains itself late, elsewhere on the page, or not at all."""
    things = [".word >> nth=12", ".rules button >> nth=1", "#code", ".slider >> nth=0", "table >> nth=0", "#written"]
    things += ["#strips .row >> nth=4", "#heads button >> nth=2", "#looks button >> nth=1", "#next", "#experts"]
    with Opened(chromium, story, width) as page:
        said = set()
        for thing in things:
            page.mouse.move(0, 0)
            page.keyboard.press("Escape")
            target = page.locator(thing)
            target.scroll_into_view_if_needed()
            target.hover()
            assert page.locator("#tip").is_visible(), thing
            said.add(page.locator("#tip").inner_text())
            box, place = page.locator("#tip").bounding_box(), target.bounding_box()
            assert 0 <= box["y"] <= box["y"] + box["height"] <= 900, thing
            assert 0 <= box["x"] <= box["x"] + box["width"] <= width, thing
            middle = place["y"] + place["height"] / 2
            assert min(abs(box["y"] - middle), abs(box["y"] + box["height"] - middle)) < 60, thing
        assert len(said) >= len(things) - 1  # a rule and its code have the same sentence


def test_reduced_motion(story, chromium):
    """Catches colours that fade although the reader has asked for stillness."""
    with Opened(chromium, story, reduced_motion="reduce") as page:
        assert page.evaluate("getComputedStyle(document.querySelector('.word')).transitionDuration") in ("0s", "1e-05s")


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_is_accessible(width, theme, story, chromium):
    """Catches text that runs out of the page or into other text, too little contrast, and controls without a name."""
    from axe_playwright_python.sync_playwright import Axe

    with Opened(chromium, story, width, color_scheme=theme) as page:
        for t in (25, page.evaluate("T - 1")):
            page.evaluate(f"choose({{t: {t}}})")
            page.wait_for_timeout(300)  # for the colours to settle
            violations = Axe().run(page).response["violations"]
            serious = [v for v in violations if v["impact"] in ("serious", "critical")]
            assert not serious, [(v["id"], [node["html"][:99] for node in v["nodes"][:3]]) for v in serious]
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(OVERLAPS) == []


# Pairs of texts and controls that share more than a pixel or two, neither of them inside the other
OVERLAPS = """() => {
    const kinds = "h1, h2, p, button:not(p button), input, td, th, label, figcaption, pre span, .legend > span";
    const seen = all(`${kinds}, .row > span, canvas, svg:not(button svg)`).filter(e => e.checkVisibility());
    const boxes = seen.map(e => e.getBoundingClientRect());
    const found = [];
    for (let i = 0; i < seen.length; i++) for (let j = i + 1; j < seen.length; j++) {
        const a = boxes[i], b = boxes[j];
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        const inside = seen[i].contains(seen[j]);
        if (wide > 2 && high > 2 && !inside) found.push([seen[i], seen[j]].map(e => e.outerHTML.slice(0, 80)));
    }
    const cut = seen.filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth && e.tagName != "INPUT");
    return found.concat(cut.map(e => ["cut off", e.outerHTML.slice(0, 80)]));
}"""


def test_show(tiny_model, tmp_path, monkeypatch):
    """Catches a notebook that carries the page itself, and a frame that looks for it elsewhere."""
    pytest.importorskip("IPython")
    tokenizer, model = tiny_model
    monkeypatch.chdir(tmp_path)
    frame = watch.show(model, tokenizer, "Hello!", max_new_tokens=5, seed=0)
    assert frame.src == "memory.html"
    assert len(frame._repr_html_()) < 1000
    data = data_of((tmp_path / "memory.html").read_text(encoding="utf-8"))
    assert len(data["tokens"]) <= data["answer"] + 5
    assert (tmp_path / data["notebooks"] / "2_delta_rule.ipynb").is_file()


# ---- The command line -----------------------------------------------------------------------------------------------


def command(*arguments):
    line = [sys.executable, str(ROOT / "watch.py"), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, encoding="utf-8", cwd=ROOT)


def test_the_command_line(tmp_path):
    """Catches an option that is not obeyed: a page of another text, of another seed, at another place."""
    file = tmp_path / "a page.html"
    result = command("--prompt", PROMPT, "--out", file, "--max-new-tokens", 20, "--seed", 3, "--layers", 1, 2)
    assert result.returncode == 0, result.stderr
    data = data_of(file.read_text(encoding="utf-8"))
    assert data["delta"]["layers"] == [1, 2]
    assert len(data["tokens"]) - data["answer"] <= 20
    assert (tmp_path / data["notebooks"] / "2_delta_rule.ipynb").is_file()


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--greedy", "--seed", 1], 2, "not allowed with argument"),
        (["--max-new-tokens", -1], 2, "--max-new-tokens is -1, expected 0 or more"),
        (["--model", "nowhere/at/all"], 1, "nowhere/at/all"),
        (["--out", "nowhere/memory.html"], 1, "nowhere/memory.html: no such folder"),
        (["--layers", 99], 1, "layer 99 is no Gated DeltaNet layer"),
        (["--raw", "--prompt", ""], 1, "the prompt is empty"),
    ],
)
def test_what_is_refused(arguments, code, message):
    """Catches a traceback, and an option that is passed over in silence."""
    result = command("--prompt", "Hello!", *arguments)
    assert result.returncode == code
    assert message in result.stderr.splitlines()[-1]
