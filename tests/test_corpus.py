"""Claim: tiny/'s corpus knows itself: true answers, unseen pairs held out, and the exact probability of every token."""

import collections
import math
import random
import re
import sys

import pytest
from conftest import ROOT

from qwen3_next import Qwen3NextTokenizer

sys.path.insert(0, str(ROOT / "tiny"))
import corpus  # noqa: E402
from grammar import Bind, Call, Choice, Floor, Grammar, Word, line  # noqa: E402
from plots import SHAPES  # noqa: E402


@pytest.fixture(scope="module")
def encode(tiny):
    return Qwen3NextTokenizer.from_pretrained(tiny).encode


# A grammar small enough to list all of its texts: a hidden fork whose branches begin alike, a variable that depends on
# another one and is told before it, options that are empty or a part of another, "a" and "an", two ways to one text.
SMALL = Grammar(
    {
        "pet": lambda env: {"cat": 2, "owl": 1} if env["size"] == "old" else {"cat": 1, "dog": 1, "ape": 2},
        "size": lambda env: {"old": 1, "big": 3},
    },
    {"it": lambda env: "the {pet}", "again": lambda env: "it" if "told pet" in env else "nothing"},
    {"pet": "thing"},
)
FORK = Choice(
    (
        (2, line("a {pet} [very |]slept.", "a {pet} sat.")),
        (1, (*line("a {size} {pet} slept."), Bind("x", 1))),
        (1, (*line('"A {pet}!" said {it}.', '"A {pet}!" said {again}.'), Word("<|x|>"))),
        (1, (Call(lambda env: line("{pet}.") if env["size"] == "old" else line("a ape sat.")),)),
    )
)
NODES = (FORK, *line("The {size} [owl|{pet}] is {size}.", "the end."))


def every_text(grammar: Grammar, nodes: tuple) -> dict[tuple[str, ...], float]:
    """All texts with their probabilities, by going down every way from the start."""
    texts: dict[tuple[str, ...], float] = collections.defaultdict(float)

    def follow(p, state, written):
        units, ways = grammar.advance(state)
        written += "".join(unit.text for unit in units)
        if not ways:
            texts[written] += p
        for q, way in ways:
            follow(p * q, way, written)

    floor = Floor(grammar, nodes, list)
    follow(1.0, floor.beliefs[0][2], "")
    return texts


def test_the_floor_is_exact():
    """Catches any error in the conditional probabilities: for all texts of a small grammar, letter by letter."""
    texts = every_text(SMALL, NODES)
    assert math.isclose(sum(texts.values()), 1)
    assert len(texts) > 50
    prefixes: dict[str, float] = collections.defaultdict(float)
    for text, p in texts.items():
        for end in range(len(text) + 1):
            prefixes[text[:end]] += p
    for seed in range(300):
        units = list(SMALL.sample(random.Random(seed), NODES))
        floor, read = Floor(SMALL, NODES, lambda text: [ord(letter) for letter in text]), ""
        for unit in units:
            for letter, _, surprise, entropy in floor.read(unit):
                following = [p / prefixes[read] for key, p in prefixes.items() if key[:-1] == read and key]
                read += chr(letter)
                # A text may end where another goes on: among those that go on, as the floor has it
                goes_on = sum(following)
                assert math.isclose(surprise, -math.log(prefixes[read] / prefixes[read[:-1]] / goes_on), abs_tol=1e-9)
                expected = -sum(p / goes_on * math.log(p / goes_on) for p in following)
                assert math.isclose(entropy, expected, abs_tol=1e-9)
        assert read in texts


def test_articles_and_capitals():
    """Catches "a owl", small letters at a sentence's start, and a capital within one."""
    for text in every_text(SMALL, NODES):
        assert not re.search(r"\b[Aa] [aeio]|\b[Aa]n [^aeio]|\. [a-z]|!\" [A-Z]|^[a-z]| $|  ", text)


def test_a_text_of_another_grammar_is_refused(encode):
    """Catches a floor that gives a probability to what cannot be."""
    document = corpus.Corpus("train", {"book": 1.0}).document(0)
    with pytest.raises(ValueError, match="not a text of this grammar"):
        corpus.Corpus("train", {"story": 1.0}).floor(document, encode)


def test_tokens_of_the_units_are_those_of_the_text(encode):
    """Catches units that meet where the tokenizer would not cut."""
    for number in range(300):
        units = corpus.Corpus(None).document(number)
        ids = [token for unit in units for token in encode(unit.marks) + encode(unit.word)]
        assert ids == encode(corpus.text_of(units))


def test_surprise_is_entropy_on_average(encode):
    """Catches a sampler and a floor that do not describe the same texts: over many documents the two must agree."""
    differences = []
    for number in range(40):
        source = corpus.Corpus(
            "train", {"moves": 0.3, "book": 0.3, "small talk": 0.2, "story": 0.2}, **{"most entries": 6}
        )
        rows = source.floor(source.document(f"average:{number}"), encode)
        differences.append(sum(surprise - entropy for _, _, surprise, entropy in rows))
    mean = sum(differences) / len(differences)
    error = math.sqrt(sum((d - mean) ** 2 for d in differences)) / len(differences)
    assert abs(mean) < 4 * error


def test_answers_are_certain(encode):
    """Catches a question that the text does not answer: what is asked for costs the floor nothing."""
    kinds = ({"chat": 1.0}, {"moves": 1.0}, {"book": 1.0})
    for number in range(12):
        source = corpus.Corpus("held out", kinds[number % 3], **{"most entries": 6})
        rows = source.floor(source.document(f"certain:{number}"), encode)
        assert sum(surprise for _, role, surprise, _ in rows if role == "answer") < 1e-9


def test_documents_are_a_function_of_the_seed():
    """Catches text that depends on the clock, the hash seed or an earlier document."""
    first = [text for _, text in zip(range(20), corpus.documents(3), strict=False)]
    assert first == [text for _, text in zip(range(20), corpus.documents(3), strict=False)]
    assert first[7] == corpus.text_of(corpus.Corpus().document("3:7"))
    assert first[7] != corpus.text_of(corpus.Corpus().document("4:7"))


def follow_account(text: str) -> dict[str, str]:
    """Where each thing of an account is in the end, read from the sentences alone."""
    where = {}
    for sentence in text.split(". "):
        sentence = sentence.rstrip(".")
        if match := re.fullmatch(r"(\w+) has an? (\w+)", sentence):
            where[match[2]] = match[1]
        elif match := re.fullmatch(r"(\w+) (?:gave|put|left|lost) the (\w+) (?:to )?(.*)", sentence):
            assert where[match[2]] == match[1]
            where[match[2]] = match[3]
        elif match := re.fullmatch(r"The (\w+) is (?:with )?(.*)", sentence):
            assert where[match[1]] == match[2]
        elif match := re.fullmatch(r"(\w+) took the (\w+)", sentence):
            where[match[2]] = match[1]
        elif match := re.fullmatch(r"(\w+) found the (\w+) (.*)", sentence):
            assert where[match[2]] == match[3]
            where[match[2]] = match[1]
        else:
            assert sentence.endswith("are friends"), sentence
    return where


@pytest.mark.parametrize("split", ["train", "held out"])
def test_answers_about_moves_are_true(split):
    """Catches an account and a state that disagree, against a second reading of the sentences."""
    source = corpus.Corpus(split, {"moves": 1.0})
    for number in range(200):
        text = corpus.text_of(source.document(f"moves:{number}"))
        where = follow_account(text.split("\n")[1])
        for thing, place in re.findall(r"assistant\nThe (\w+) is (.*?)\.<", text):
            assert where[thing] == place.removeprefix("with ")
        assert text.count("?<") >= 1


def test_what_is_told_after_each_move_is_true():
    """Catches facts that lag a move behind, in the documents without questions."""
    source, facts = corpus.Corpus("train", {"moves": 1.0}, bare=True), 0
    for number in range(100):
        text = corpus.text_of(source.document(f"told:{number}")).removesuffix("<|endoftext|>")
        assert 2 <= len(follow_account(text.split("\n")[1])) <= corpus.MOVED
        facts += text.count("The ")
    assert facts > 500


def test_numbers_are_those_of_the_book():
    """Catches an answer that is another entry's, and a list told again with other numbers."""
    for number in range(200):
        source = corpus.Corpus("train", {"book": 1.0}, bare=number % 2 == 0, rounds=2)
        book: dict[str, str] = {}
        for name, digits in re.findall(r"- (\w+): (\d{4})", corpus.text_of(source.document(f"numbers:{number}"))):
            assert book.setdefault(name, digits) == digits


def test_held_out_pairs_do_not_occur_in_training():
    """Catches a test set that training has seen: pairs of name and thing, and of name and the end of its number."""
    seen = collections.Counter()
    for number in range(400):
        for split in ("train", "held out"):
            books = corpus.text_of(corpus.Corpus(split, {"book": 1.0}).document(number))
            pairs = [(name, digits) for name, digits in re.findall(r"(\w+): \d\d(\d\d)", books)]
            if split == "train":
                moves = corpus.text_of(corpus.Corpus(split, {"moves": 1.0}).document(number))
                pairs += re.findall(r"(\w+) has an? (\w+)", moves)
                pairs += [(to, thing) for thing, to in re.findall(r"gave the (\w+) to (\w+)", moves)]
                story = corpus.text_of(corpus.Corpus(split, {"story": 1.0}).document(number))
                pairs += re.findall(r"(\w+) (?:owned|had) an? (?:[\w-]+ )?(\w+)[.,]", story.split("\n")[0])[:1]
            for name, other in pairs:
                if name in corpus.NAMES and (other in corpus.THING_ROWS or other.isdigit()):
                    seen[split] += 1
                    if split == "held out":
                        assert corpus.held_out(name, other)
    assert seen["train"] > 1000 < seen["held out"]


def test_training_pairs_are_not_held_out():
    """The other half of the claim, over every pair that may be asked for."""
    for number in range(300):
        books = corpus.text_of(corpus.Corpus("train", {"book": 1.0}).document(number))
        moves = corpus.text_of(corpus.Corpus("train", {"moves": 1.0}).document(number))
        pairs = re.findall(r"(\w+): \d\d(\d\d)", books) + re.findall(r"(\w+) has an? (\w+)", moves)
        pairs += [(to, thing) for thing, to in re.findall(r"gave the (\w+) to (\w+)", moves)]
        pairs += re.findall(r"(\w+) (?:took|found) the (\w+)", moves)
        assert not [pair for pair in pairs if corpus.held_out(*pair)]


COMMON = """
a an and are as at be been but by can could did do does for from had has have he her here him his how i if in into is
it its just let like me more my no not now of off on one or our out over own she so some than that the their them then
there these they this those to too under until up us very was we were what when where which who whose why will with
would yes you your im start end user assistant endoftext
"""


def test_it_is_varied_enough():
    """Catches a corpus that reads as one template: shapes of stories, and words that carry meaning."""
    assert len(SHAPES) >= 60
    words = set()
    for number in range(400):
        words |= set(re.findall("[a-z]+", corpus.text_of(corpus.Corpus().document(number)).lower()))
    assert len(words - set(COMMON.split()) - {name.lower() for name in corpus.NAMES}) >= 600


@pytest.mark.parametrize("shape", SHAPES)
def test_every_plot_reads_clean(shape):
    """Catches a template mark left in, doubled spaces, "a" before a vowel, and a story too short or too long."""
    for number in range(25):
        source = corpus.Corpus("train", {"story": 1.0}, shape=shape)
        text = corpus.text_of(source.document(f"clean:{number}")).removesuffix("<|endoftext|>")
        assert not re.search(r"[{}\[\]|_\0]|  | \n|\n | $|\b[Aa] [aeio]|\.\.|[.!?] [a-z]", text)
        assert 55 <= len(text.split()) <= 220


def test_requests_are_met():
    """Catches a story without the character or the thing that was asked for."""
    met = 0
    for number in range(800):
        text = corpus.text_of(corpus.Corpus("train", {"chat": 1.0}).document(number))
        if match := re.search(r"user\n(?:Tell|Write|Make).* an? (\w+) and an? (\w+)", text):
            story = text.split("assistant\n")[1]
            assert match[1] in story
            assert match[2] in story
            met += 1
    assert met > 20
