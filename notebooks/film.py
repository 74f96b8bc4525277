"""Makes the page docs/watch/index.html, and records from it the film at the top of the README, gallery/watch.gif.

    python notebooks/film.py              a story of tiny/ in which a thing is lost and found: the first one that ends
    python notebooks/film.py --seed 3     this one

Needs Playwright, Pillow, and Chromium: Debian's, or that of `playwright install chromium`.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT)]
PROMPT = "Tell me a story about a fox and a lantern."
TOKENS = 210  # the longest answer
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def launch(playwright):
    """A Chromium: the system's, or Playwright's own. None if there is neither."""
    own = playwright.chromium.executable_path
    path = next(filter(None, map(shutil.which, NAMES)), own if Path(own).is_file() else None)
    if path is None:
        return None
    arguments = [] if getattr(os, "geteuid", lambda: 1)() else ["--no-sandbox"]  # root has no sandbox
    return playwright.chromium.launch(executable_path=path, args=arguments)


def choose_seed(model, tokenizer) -> int:
    """The first seed with a story that comes to its end, and in which something is lost and found."""
    import watch

    prompt = watch.prompt_ids(tokenizer, PROMPT)
    for seed in range(200):
        ids, _ = watch.answer(model, prompt, TOKENS, seed=seed)
        text = tokenizer.decode(ids[len(prompt) :])
        if len(ids) < len(prompt) + TOKENS and "lost" in text and "found" in text:
            return seed
    raise ValueError(f"in 200 answers to {PROMPT!r}, nothing is lost and found: choose a seed with --seed")


def make_page(file: Path, seed: int | None):
    """Writes the page."""
    import watch
    from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer

    tokenizer = Qwen3NextTokenizer.from_pretrained(ROOT / "tiny")
    model = Qwen3NextForCausalLM.from_pretrained(ROOT / "tiny")
    seed = choose_seed(model, tokenizer) if seed is None else seed
    notebooks = watch.link_from(file.parent)
    html = watch.page(model, tokenizer, PROMPT, max_new_tokens=TOKENS, seed=seed, notebooks=notebooks)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(html, encoding="utf-8")
    print(f"{file.relative_to(ROOT)}: seed {seed}, {len(html.encode()) / 1e6:.2f} MB")


def record(page_file: Path, film: Path, width: int = 760):
    """Plays the page's text, then changes the rule, and writes what is seen as an animated GIF."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    frames = []  # (picture, milliseconds)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        if browser is None:
            raise FileNotFoundError("no browser: apt-get install chromium, or playwright install chromium")
        settings = {"viewport": {"width": 960, "height": 1300}, "reduced_motion": "reduce", "color_scheme": "light"}
        page = browser.new_context(**settings).new_page()
        page.set_default_timeout(600_000)  # on a busy machine a screenshot takes minutes
        page.goto(page_file.as_uri())
        page.wait_for_selector(".word.now")
        page.add_style_tag(content="section { margin-bottom: 14px; } #own, .slider { visibility: hidden; }")
        page.evaluate("window.scrollTo(0, 0)")

        def shoot(milliseconds: int):
            top = page.locator("#text").bounding_box()["y"]
            end = page.locator(".rules").bounding_box()
            clip = {"x": 8, "y": top - 8, "width": 944, "height": end["y"] + end["height"] + 8 - (top - 8)}
            picture = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
            size = (width, round(width * picture.height / picture.width))
            frames.append((picture.resize(size, Image.Resampling.LANCZOS), milliseconds))

        words = page.evaluate("T")
        for t in range(0, words, 5):
            page.evaluate(f"choose({{t: {t}}})")
            shoot(130)
        page.evaluate(f"choose({{t: {words - 1}}})")
        shoot(1800)
        for rule, milliseconds in ((0, 2600), (1, 1600), (2, 1600), (3, 2200)):
            page.click(f".rules button >> nth={rule}")
            shoot(milliseconds)
        browser.close()
    height = min(picture.height for picture, _ in frames)  # the sentence may take a line more
    palette = frames[-1][0].quantize(64)
    pictures = [picture.crop((0, 0, width, height)).quantize(palette=palette, dither=0) for picture, _ in frames]
    durations = [milliseconds for _, milliseconds in frames]
    pictures[0].save(film, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True)
    print(f"{film.relative_to(ROOT)}: {len(frames)} pictures, {film.stat().st_size / 1e6:.2f} MB")


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, metavar="N", help="of the story (default: the first that fits)")
    args = parser.parse_args()
    page_file = ROOT / "docs" / "watch" / "index.html"
    make_page(page_file, args.seed)
    record(page_file, HERE / "gallery" / "watch.gif")


if __name__ == "__main__":
    main()
