"""Makes the page docs/watch/index.html, and records from it the film at the top of the README, gallery/watch.gif.

    python notebooks/film.py              a story of tiny/ that shows it: the first seed with one
    python notebooks/film.py --seed 3     this one
    python notebooks/film.py --model DIR --out DIR      of another model, to another folder

A story shows it if it comes to its end, a thing is lost in it and found later, the memory returns at least half of its
words in the end, and under linear attention at most a quarter as many. The first choice is a story about the thing that
the prompt asks for, named at the beginning and near the end. If no seed has one, it may be about another thing; if none
shows it even then, that is an error.

Needs Playwright, Pillow, and Chromium: Debian's, or that of `playwright install chromium`.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT)]
THING = "lantern"
PROMPT = f"Tell me a story about a fox and a {THING}."
TOKENS = 230  # the longest answer
OPENING = 50  # tokens of an answer that tell what it is about
SEEDS = 80  # how many are tried
ANY_THING_SEEDS = 20  # and for stories about another thing
PAGE_BYTES, FILM_BYTES = 2_000_000, 1_500_000  # limits
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LOST = re.compile(r"\b(lost|gone|not there|cannot find|fell into|slipped out)\b")
FOUND = re.compile(r"\b(found|picked (it|up)|pulled|pull|It is mine|gave [^.]* back)\b")


def launch(playwright):
    """A Chromium: the system's, or Playwright's own. None if there is neither."""
    own = playwright.chromium.executable_path
    path = next(filter(None, map(shutil.which, NAMES)), own if Path(own).is_file() else None)
    if path is None:
        return None
    arguments = [] if getattr(os, "geteuid", lambda: 1)() else ["--no-sandbox"]  # root has no sandbox
    return playwright.chromium.launch(executable_path=path, args=arguments)


def lost_and_found(story: str) -> bool:
    """Whether something is lost in a story, and found after that."""
    lost = LOST.search(story)
    return lost is not None and FOUND.search(story, lost.end()) is not None


def named_again(story: str, thing: str) -> bool:
    """Whether a thing is named in the first third of a story's words and in the last third."""
    words = re.findall(r"\w+", story)
    third = len(words) // 3
    return thing in words[:third] and thing in words[len(words) - third :]


def open_page(browser, file: Path):
    """The page in a window of the film's size."""
    settings = {"viewport": {"width": 960, "height": 1300}, "reduced_motion": "reduce", "color_scheme": "light"}
    page = browser.new_context(**settings).new_page()
    page.set_default_timeout(600_000)  # on a busy machine a picture takes minutes
    page.goto(file.as_uri())
    page.wait_for_selector(".word.now")
    return page


def returned(browser, html: str) -> tuple[int, list[int]]:
    """How many words a page has, and how many of them the memory returns in the end, under each of the four rules."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(html, encoding="utf-8")
        page = open_page(browser, file)
        found = page.evaluate("[T, memories.map(steps => returned(steps, T - 1))]")
        page.context.close()
    return tuple(found)


def shows_it(words: int, counts: list[int]) -> bool:
    """Whether the memory returns much of a text, and linear attention little."""
    linear, _, _, gated = counts
    return 2 * gated >= words and 4 * linear <= gated


def make_html(model, tokenizer, seed: int, notebooks: str) -> str:
    """The page: of all layers, or of as many as fit into it."""
    import watch

    options = {"max_new_tokens": TOKENS, "seed": seed, "notebooks": notebooks}
    html = watch.page(model, tokenizer, PROMPT, **options)
    layers = [i for i, kind in enumerate(model.config.layer_types) if kind == "linear_attention"]
    size = len(html.encode())
    if size >= PAGE_BYTES:
        layers = watch.spread(layers, size / len(layers), 0.9 * PAGE_BYTES)
        html = watch.page(model, tokenizer, PROMPT, layers=layers, **options)
    return html


def stories(model, tokenizer, thing: str | None):
    """Seeds, in order, with a story that ends and in which a thing is lost and found: this one, or any for None."""
    import watch

    prompt = watch.prompt_ids(tokenizer, PROMPT)

    def told(tokens: int, seed: int) -> tuple[str, bool]:
        """A story's text so far, and whether it goes on."""
        ids, _ = watch.answer(model, prompt, tokens, seed=seed)
        return tokenizer.decode(ids[len(prompt) :]), len(ids) >= len(prompt) + tokens

    for seed in range(SEEDS if thing else ANY_THING_SEEDS):
        if thing and thing not in told(OPENING, seed)[0]:
            continue
        story, goes_on = told(TOKENS, seed)
        if not goes_on and lost_and_found(story) and (thing is None or named_again(story, thing)):
            yield seed


def choose(model, tokenizer, browser, notebooks: str) -> tuple[int, str]:
    """The first seed with a story that shows it, and its page. Raises ValueError if there is none."""
    candidates = []
    for thing in (THING, None):
        for seed in stories(model, tokenizer, thing):
            html = make_html(model, tokenizer, seed, notebooks)
            words, counts = returned(browser, html)
            print(f"seed {seed}: of {words} words the four rules return {counts}", flush=True)
            if shows_it(words, counts):
                return seed, html
            candidates.append(seed)
        if thing:
            print(f"{SEEDS} seeds, and no story of a lost {thing} shows it: now of any lost thing", flush=True)
    if candidates:
        found = f"a thing is lost and found with seeds {candidates}, but none shows it: see the numbers above"
        raise ValueError(f"{found}; choose a seed with --seed")
    raise ValueError(f"in the answers to {PROMPT!r}, nothing is lost and found: choose a seed with --seed")


def make_page(file: Path, folder: Path, seed: int | None, browser):
    """Writes the page of a model."""
    import watch
    from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer

    tokenizer = Qwen3NextTokenizer.from_pretrained(folder)
    model = Qwen3NextForCausalLM.from_pretrained(folder)
    notebooks = watch.link_from(file.resolve().parent)
    if seed is None:
        seed, html = choose(model, tokenizer, browser, notebooks)
    else:
        html = make_html(model, tokenizer, seed, notebooks)
        words, counts = returned(browser, html)
        verdict = "" if shows_it(words, counts) else ": this does not show what the page is about"
        print(f"seed {seed}: of {words} words the four rules return {counts}{verdict}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(html, encoding="utf-8")
    size = len(html.encode())
    print(f"{file}: seed {seed}, {size / 1e6:.2f} MB", flush=True)
    if size >= PAGE_BYTES:
        raise ValueError(f"{file} has {size} bytes, expected under {PAGE_BYTES}: choose a seed with a shorter story")


def record(browser, page_file: Path, film: Path, width: int = 760):
    """Plays the page's text, then changes the rule, and writes what is seen as an animated GIF."""
    from PIL import Image

    page = open_page(browser, page_file)
    page.add_style_tag(content="section { margin-bottom: 14px; } #why, #tip { display: none; }")
    page.evaluate("window.scrollTo(0, 0)")
    frames = []  # (picture, milliseconds)

    def shoot(milliseconds: int):
        top = page.locator("#text").bounding_box()["y"]
        end = page.locator(".rules").bounding_box()
        clip = {"x": 8, "y": top - 8, "width": 944, "height": end["y"] + end["height"] + 8 - (top - 8)}
        picture = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
        size = (width, round(width * picture.height / picture.width))
        frames.append((picture.resize(size, Image.Resampling.LANCZOS), milliseconds))

    words = page.evaluate("T")
    for t in range(0, words, 6):
        page.evaluate(f"choose({{t: {t}}})")
        shoot(150)
    page.evaluate(f"choose({{t: {words - 1}}})")
    shoot(1800)
    ending = [len(frames) - 1]
    for rule, milliseconds in ((0, 2600), (1, 1600), (2, 1600), (3, 2200)):
        page.evaluate(f"choose({{rule: RULES[{rule}]}})")
        ending.append(len(frames))
        shoot(milliseconds)
    height = min(picture.height for picture, _ in frames)  # the sentence may take a line more
    palette = frames[-1][0].quantize(64)
    pictures = [picture.crop((0, 0, width, height)).quantize(palette=palette, dither=0) for picture, _ in frames]
    for every in (1, 2, 3, 4):  # fewer pictures of the reading, if all are too large
        kept = [i for i in range(len(frames)) if i % every == 0 or i in ending]
        durations = [frames[i][1] * (1 if i in ending else every) for i in kept]
        first, *others = (pictures[i] for i in kept)
        first.save(film, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)
        if film.stat().st_size < FILM_BYTES:
            print(f"{film}: {len(kept)} pictures, {film.stat().st_size / 1e6:.2f} MB")
            return
    raise ValueError(f"{film} has {film.stat().st_size} bytes, expected under {FILM_BYTES}")


def main():
    """The command line."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, metavar="N", help="of the story (default: the first that shows it)")
    parser.add_argument("--model", type=Path, default=ROOT / "tiny", metavar="DIR", help="checkpoint (default: tiny/)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for both files (default: where they belong)")
    args = parser.parse_args()
    page_file = (args.out or ROOT / "docs" / "watch") / "index.html"
    with sync_playwright() as playwright:
        browser = launch(playwright)
        if browser is None:
            raise FileNotFoundError("no browser: apt-get install chromium, or playwright install chromium")
        make_page(page_file, args.model, args.seed, browser)
        record(browser, page_file, (args.out or HERE / "gallery") / "watch.gif")
        browser.close()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"film.py: {error}")
