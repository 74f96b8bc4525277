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
import phrasing  # noqa: E402
from grammar import Bind, Call, Choice, Env, Floor, Grammar, Mark, Word, line  # noqa: E402
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


def every_text(grammar: Grammar, nodes: tuple, env: Env | None = None) -> dict[tuple[str, ...], float]:
    """All texts with their probabilities, by going down every way from the start."""
    texts: dict[tuple[str, ...], float] = collections.defaultdict(float)

    def follow(p, state, written):
        units, ways = grammar.advance(state)
        written += "".join(unit.text for unit in units)
        if not ways:
            texts[written] += p
        for q, way in ways:
            follow(p * q, way, written)

    floor = Floor(grammar, nodes, list, env)
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


# Known in a meeting with new words
MET = {
    "guests left": 2,
    "new words": 0.4,
    "weather": "sunny",
    "day word": "warm",
    "time": "day",
    "questions a story": 0,
}
# Places in a newcomer's words, or in texts with new words: the nodes, what is known there; names, things, and sentences
# or numbers at most
PLACES_IN_TEXT = {
    "a thing comes in": ((Call(corpus.told_freely),), {}, 3, 1, 1),
    "it was asked for": ((Call(corpus.asked_first),), {}, 2, 1, 1),
    "it is moved": ((Call(corpus.told_freely),), {"held": {"kite": "Mira"}, "alone": "Mira"}, 2, 1, 2),
    "it is fetched": ((Call(corpus.told_freely),), {"held": {"kite": "in the barn"}}, 2, 1, 2),
    "two things": ((Call(corpus.asked_freely),), {"held": {"kite": "Tom", "pen": "by the pond"}}, 2, 2, 2),
    "someone walks": ((Call(corpus.walked),), {"people": ()}, 2, 1, 2),
    "in small letters": ((Bind("small", True), Call(corpus.told_freely)), {}, 3, 1, 1),
    "who gave it": (
        (Call(corpus.asked_freely),),
        {
            "held": {"kite": "Tom", "pen": "by the pond"},
            "acts": (("kite", ("Mira", "gave", "Tom")), ("pen", ("Tom", "put", "by the pond"))),
        },
        2,
        2,
        2,
    ),
    "who is who": ((Call(corpus.presented),), {}, 2, 1, 1),
    "an account with new words": (corpus.ACCOUNT, {"new words": 0.4, "things": 1, "moves": 1}, 3, 1, 1),
    "handed on with new words": (corpus.HANDING_ON, {"new words": 0.4, "things": 1, "moves": 1}, 3, 1, 1),
    "all of it new": (corpus.ACCOUNT, {"new words": 1.0, "things": 1, "moves": 1}, 3, 1, 1),
    "a meeting with new words": ((Call(corpus.guest),), MET | {"questions": False, "rounds": 0}, 3, 1, 1),
    "a meeting of new words": ((Call(corpus.guest),), MET | {"new words": 1.0, "questions": True}, 3, 1, 1),
    "a book with new words": ((Call(corpus.book),), {"new words in books": 0.4, "entries": 2}, 3, 1, 1),
    "numbers": ((corpus.STYLES, Call(corpus.numbers_told)), {"people": (), "length": 1}, 2, 1, 2),
    "not told": (corpus.NOT_TOLD, {}, 3, 2, 1),
    "any story is asked for": ((Call(lambda env: (corpus.anything_asked(),)),), {}, 2, 2, 1),
    "outside": ((corpus.OUTSIDE,), {}, 2, 2, 1),
    "small talk": ((corpus.SMALL,), {}, 2, 2, 1),
}


@pytest.mark.parametrize("place", PLACES_IN_TEXT)
def test_the_floor_of_new_words_is_exact(place, monkeypatch):
    """Catches a form whose probability is not that of its texts: all of them, in a world of few names and things."""
    nodes, known, names, things, most = PLACES_IN_TEXT[place]
    env = Env(known)
    if "held" in known:
        env |= {"people": ("Mira", "Tom"), "noun": "kite", "told so far": 1}
        env.setdefault("acts", tuple((noun, ("", "", "")) for noun in known["held"]))
    monkeypatch.setattr(corpus, "NAMES", ["Mira", "Tom"][: names - 1])
    monkeypatch.setattr(corpus, "OTHER_NAMES", ((0.3, ["Mia"]),))
    monkeypatch.setattr(corpus, "PEOPLE_TOLD", 2)
    monkeypatch.setattr(corpus, "THING_ROWS", {"kite": ["kite", "red"]})
    monkeypatch.setattr(corpus, "described", corpus.described.__wrapped__)
    monkeypatch.setattr(corpus, "NEW_NAMES", ((0.4, ("Mia",)), (0.6, corpus.SHORT[:1])))
    monkeypatch.setattr(corpus, "NEW_THINGS", ((0.7, ("pen",)), (0.3, ("pan",))))
    monkeypatch.setattr(corpus, "NEW_KINDS", ((1.0, ("cow",)),))
    monkeypatch.setattr(corpus, "new_names_suiting", corpus.new_names_suiting.__wrapped__)
    monkeypatch.setattr(corpus, "names_of", lambda _, he: ["Mira", "Ada"] if he == "she" else ["Tom", "Ben"])
    came = (*line("a "), Call(corpus.guest_kind), Mark(" "), Call(corpus.guest_name), *line(" had "))
    arrival = (*came, Call(corpus.guest_thing), *line("."), Call(corpus.guest_he), Mark("."))
    monkeypatch.setattr(corpus, "ARRIVAL", Choice(((1, arrival),)))
    monkeypatch.setattr(corpus, "PLACE_ROWS", {"barn": ["barn", "in"], "pond": ["pond", "by"]})
    monkeypatch.setattr(phrasing, "ROOMS", {"attic": "in"})
    monkeypatch.setattr(corpus, "place_words", corpus.place_words.__wrapped__)
    monkeypatch.setattr(corpus, "THINGS_TOLD", things)
    monkeypatch.setattr(corpus, "SENTENCES", most)
    monkeypatch.setattr(corpus, "NUMBERS_TOLD", most)
    monkeypatch.setattr(corpus, "PLACE_PHRASES", ["in the barn", "by the pond"])
    monkeypatch.setattr(corpus, "WAYS_THERE", {"barn": "in", "pond": "by", "attic": "in"})
    monkeypatch.setattr(corpus, "next_digit", lambda part, name, digits, length=4: Choice(tuple(
        (p, (Word(d, "number (new)"), Bind("digits", d * length))) for p, d in ((0.25, "1"), (0.75, "2"))
    )))  # fmt: skip
    monkeypatch.setattr(corpus, "ANIMALS", ["hen", "owl"])
    monkeypatch.setattr(corpus, "PEOPLE", {"king": "he"})
    monkeypatch.setattr(phrasing, "MORE_KINDS", ["cow"])
    for forms in ("TAKEN", "LYING", "WHO_HAS", "WHERE_IS", "AND_WHERE", "WHERE_WHO", "DID_WITH", "WHO_GAVE",
                  "GAVE_TO_WHOM", "HAS_WHAT", "WHO_IS", "WHO_IS_THE", "NUMBER_OF", "AND_NUMBER_OF"):  # fmt: skip
        monkeypatch.setattr(phrasing, forms, getattr(phrasing, forms)[:1])
    monkeypatch.setattr(phrasing, "AND_PLACED", "{who} [took|found] the {what} and {put} it {at}")
    monkeypatch.setattr(phrasing, "AND_GIVEN", "{who} took the {what} and gave it to {whom}")
    verbs = {"put": ("put", "hid"), "done": ("put", "hidden"), "took": ("took",)}
    monkeypatch.setattr(corpus, "VERBS", {name: corpus.verb(*words) for name, words in verbs.items()})
    monkeypatch.setattr(corpus, "OTHER_THINGS", ((0.7, ["pen"]),))
    monkeypatch.setattr(phrasing, "ASKING", ["Tell me about {x}.", "{x}[ please|]", "about {x}"])
    monkeypatch.setattr(corpus, "kinds_of", corpus.kinds_of.__wrapped__)
    monkeypatch.setattr(corpus, "names_suiting", corpus.names_suiting.__wrapped__)
    monkeypatch.setattr(phrasing, "SPOTS", ["by the pond"])
    nodes = (*nodes, corpus.END)
    texts = every_text(corpus.GRAMMAR, nodes, env)
    assert math.isclose(sum(texts.values()), 1)
    assert len(texts) >= 10
    assert not [text for text in texts if re.search(r"\b([A-Z]\w+) and \1\b", text)]
    for seed in range(60):
        units = list(corpus.GRAMMAR.sample(random.Random(seed), nodes, env))
        floor = Floor(corpus.GRAMMAR, nodes, lambda text: [ord(letter) for letter in text], env)
        total = sum(surprise for unit in units for _, _, surprise, _ in floor.read(unit))
        assert math.isclose(total, -math.log(texts["".join(unit.text for unit in units)]), abs_tol=1e-9)


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
    for number in range(600):
        units = corpus.Corpus(None, {"free": 1.0} if number % 2 else None).document(number)
        ids = [token for unit in units for token in encode(unit.marks) + encode(unit.word)]
        assert ids == encode(corpus.text_of(units))


def test_surprise_is_entropy_on_average(encode):
    """Catches a sampler and a floor that do not describe the same texts: over many documents the two must agree."""
    differences = []
    shares = {"moves": 0.2, "book": 0.2, "small talk": 0.1, "story": 0.1, "who": 0.1, "handed on": 0.1, "free": 0.3}
    for number in range(60):
        new = {"new words": 0.4, "new words in books": 0.4} if number % 4 == 0 else {}
        source = corpus.Corpus("train", shares, **{"most entries": 6}, **new)
        rows = source.floor(source.document(f"average:{number}"), encode)
        differences.append(sum(surprise - entropy for _, _, surprise, entropy in rows))
    mean = sum(differences) / len(differences)
    error = math.sqrt(sum((d - mean) ** 2 for d in differences)) / len(differences)
    assert abs(mean) < 4 * error


def test_answers_are_certain(encode):
    """Catches a question that the text does not answer: what is asked for costs the floor nothing."""
    kinds = [{kind: 1.0} for kind in ("chat", "moves", "book", "who", "handed on", "free", "free", "free")]
    for number in range(32):
        new = {"new words": 0.5, "new words in books": 0.5} if number >= 24 else {}
        source = corpus.Corpus("held out", kinds[number % 8], **{"most entries": 6}, **new)
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
    where, asked = {}, ""
    for sentence in re.split(r"(?<=[.?]) ", text):
        sentence = sentence.rstrip(".")
        if match := re.fullmatch(r"(\w+) (?:gave|handed) (\w+) the (\w+)", sentence):
            assert where[match[3]] == match[1]
            where[match[3]] = match[2]
        elif match := re.fullmatch(r"(\w+) (?:got|took) the (\w+) from (\w+)", sentence):
            assert where[match[2]] == match[3]
            where[match[2]] = match[1]
        elif match := re.fullmatch(r"The (\w+) is (?:with )?(.*), so (yes|no)", sentence):
            assert where[match[1]] == match[2]
            assert (asked == match[2]) == (match[3] == "yes")
        elif match := re.fullmatch(r"Does (\w+) have the \w+ now\?|Is the \w+ (.*) now\?", sentence):
            asked = match[1] or match[2]
        elif match := re.fullmatch(r"(\w+) has an? (\w+)", sentence):
            where[match[2]] = match[1]
        elif match := re.fullmatch(r"(\w+) (?:gave|handed|put|left|lost) the (\w+) (?:to )?(.*)", sentence):
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


@pytest.mark.parametrize("kind", ["moves", "handed on"])
@pytest.mark.parametrize("split", ["train", "held out"])
@pytest.mark.parametrize("new", [0.0, 0.5, 1.0])
def test_answers_about_moves_are_true(split, kind, new):
    """Catches an account and a state that disagree, against a second reading of the sentences."""
    source = corpus.Corpus(split, {kind: 1.0}, **{"new words": new})
    for number in range(200 if not new else 100):
        text = corpus.text_of(source.document(f"moves:{number}"))
        where = follow_account(text.split("\n")[1])
        for thing, place in re.findall(r"assistant\nThe (\w+) is (.*?)(?:, so (?:yes|no))?\.<", text):
            assert where[thing] == place.removeprefix("with ")
        assert text.count("?<") >= 1


def test_who_was_named_last_does_not_tell_who_has_it():
    """Catches handovers that always name the one who has the thing now last, or an account without them."""
    last = collections.Counter()
    for number in range(300):
        text = corpus.text_of(corpus.Corpus("train", {"handed on": 1.0}).document(number))
        account = text.split("\n")[1]
        for thing, person in re.findall(r"assistant\nThe (\w+) is with (\w+)\.", text):
            assert follow_account(account)[thing] == person
            told = [sentence for sentence in account.split(". ") if re.search(rf"\b{thing}\b", sentence)][-1]
            names = [word for word in re.findall(r"\w+", told) if word in corpus.NAMES]
            if len(names) > 1:
                last[names[-1] == person] += 1
    assert 0.5 < last[True] / last.total() < 0.75


@pytest.mark.parametrize(
    ("kind", "bare"),
    [("chat", 0), ("moves", 0), ("moves", 1), ("handed on", 0), ("handed on", 1), ("who", 0), ("who", 1)],
)
def test_yes_and_no_are_answers_as_often_the_one_as_the_other(kind, bare):
    """Catches a reply with Yes or No that does not compare, that counts as template, or that can be guessed."""
    source, said, questions = corpus.Corpus("train", {kind: 1.0}, bare=bare), collections.Counter(), 0
    for number in range(300):
        units = source.document(f"yes:{number}")
        text = corpus.text_of(units)
        replies = re.findall(
            r"(?:Does|Is) (?:the )?(\w+) ([^.?]*?)(?: now)?\?(?: |<.im_end.>\n<.im_start.>assistant\n)"
            r"([^.?\n]*), so (yes|no)\.",
            text,
        )
        for name, asked, told, word in replies:
            right = told.endswith(f" is with {name}" if asked.startswith("have") else asked)
            assert right == (word == "yes")
            said[word] += 1
        roles = [unit.role for unit in units if unit.word in (" yes", " no")]
        assert roles.count("answer") == len(replies) == len(re.findall(", so (?:yes|no)", text))
        questions += text.count("?<")
    assert said.total() > (150 if bare else 0.15 * questions)
    assert 0.42 < said["yes"] / said.total() < 0.58


def test_a_name_tells_the_pronoun():
    """Catches a name that is she in one text and he in another, and pronouns that count as template."""
    lists = (corpus.GIRLS, corpus.BOYS, corpus.SHE_ANIMALS, corpus.HE_ANIMALS)
    assert len(set(corpus.NAMES)) == len(corpus.NAMES) == sum(map(len, lists))
    said = collections.Counter()
    for number in range(300):
        source = corpus.Corpus("train", {"who": 1.0, "story": 1.0})
        units, names = source.document(f"pronoun:{number}"), []
        for unit in units:
            word = unit.word.strip()
            if unit.role.startswith("name") and word not in names:
                names.append(word)
            if word.lower() in ("he", "she"):
                assert unit.role == "pronoun"
                assert word.lower() in map(corpus.pronoun, names)
                said[word.lower()] += 1
            elif word.lower() in ("his", "him", "her"):
                assert unit.role in ("pronoun", "template")
    assert min(said.values()) > 300


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


FACTS = re.compile(
    r"(?:The )?(?P<what>\w+) (?:is with|is an?|was an?) (?P<told>[\w-]+)(?: one)?(?:, so (?P<yes>yes|no))?\."
)


@pytest.mark.parametrize("split", ["train", "held out"])
def test_what_a_meeting_with_new_words_tells_is_true(split):
    """Catches a new name, kind or thing that is another guest's later or is cut short, and a wrong pronoun."""
    source, seen = corpus.Corpus(split, {"who": 1.0}, bare=1.0, **{"new words": 0.5}), collections.Counter()
    for number in range(300):
        text = corpus.text_of(source.document(f"met:{number}")).removesuffix("<|endoftext|>")
        known, name, asked = {}, "", ""
        for sentence in re.split(r"(?<=[.?]) ", text.partition("\n")[2]):
            if match := re.search(r"\b[Aa]n? (?:\w+ )?(\w+) named (\w+)", sentence):
                kind, name = match.groups()
                assert name not in known
                assert corpus.pronoun(name) in ("", corpus.FIXED.get(kind, corpus.pronoun(name)))
                known[name] = kind
                seen["new kind"] += kind in phrasing.MORE_KINDS
                seen["new name"] += name not in corpus.NAMES
            if match := re.search(
                r"(?:, and (\w+)|^(\w+)|named \w+|) (?:had|brought|with) an? ([\w-]+) (\w+)\.", sentence
            ):
                said = match[1] or match[2] or name
                assert said in (name, corpus.pronoun(name), corpus.pronoun(name).title())
                seen["again"] += said == name and bool(match[1] or match[2])
                known |= {match[4]: name, f"{match[4]} like": match[3]}
                assert corpus.held_out(name, match[4]) == (split == "held out")
                seen["new thing"] += match[4] not in corpus.THING_ROWS
            elif match := FACTS.fullmatch(sentence):
                told = known[f"{match['what']} like" if " was " in sentence else match["what"]]
                assert match["told"] == told
                assert not match["yes"] or (match["yes"] == "yes") == (asked == told)
                seen["facts"] += 1
            elif sentence.endswith("?"):
                asked = re.match(r"Does (\w+) |Is \w+ an? (\w+)", sentence)
                asked = asked[1] or asked[2]
            else:
                assert re.search(r" named | met\.|^It was a ", sentence), sentence
    assert seen["facts"] > 3000
    assert min(seen[word] for word in ("new kind", "new name", "new thing", "again")) > 100


def test_new_words_come_only_where_they_are_asked_for():
    """Catches a corpus that is not the one whose floor is known, and a setting that is not obeyed."""
    plain = {*corpus.NAMES, *corpus.THING_ROWS, *corpus.ANIMALS, *corpus.PEOPLE, *corpus.PLACE_ROWS}
    roles = ("name (new)", "thing (new)", "kind (new)", "place (new)")
    for share in (0.0, 0.3, 1.0):
        new = collections.defaultdict(list)
        settings = {"new words": share, "new words in books": share}
        for number in range(300):
            source = corpus.Corpus("train", {"moves": 3.0, "handed on": 1.0, "who": 1.0, "book": 1.0}, **settings)
            for unit in source.document(f"where:{number}"):
                if unit.role in roles:
                    new[unit.role].append(unit.word.strip() not in plain)
        for some in new.values():
            error = math.sqrt(share * (1 - share) / len(some))
            assert abs(sum(some) / len(some) - share) <= 4 * error
        assert set(new) == set(roles)


def test_new_words_are_several_tokens(encode):
    """Catches words that are copied as one token, or as so many that a row has room for nothing else."""
    lists = [words for lists in (corpus.NEW_NAMES, corpus.NEW_THINGS, corpus.NEW_KINDS) for _, words in lists]
    for words in (*lists, tuple(phrasing.ROOMS)):
        lengths = [len(encode(f" {word}")) for word in words]
        assert sum(2 <= n <= 4 for n in lengths) >= 0.75 * len(words)
        assert len(set(words)) == len(words)


@pytest.mark.parametrize("kind", ["chat", "free", "who"])
def test_held_out_documents_are_whole(kind):
    """Catches a thing asked for first to which no held-out name belongs: there the document broke off."""
    source = corpus.Corpus("held out", {kind: 1.0})
    for number in range(600):
        assert source.document(f"end:{number}")[-1].word == "<|endoftext|>"


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


@pytest.mark.parametrize("kind", ["moves", "handed on", "book"])
def test_pairs_with_new_words_are_held_out_too(kind):
    """Catches new words that come with everything in training, and so leave nothing that it has not seen."""
    settings, seen = {"new words": 0.6, "new words in books": 0.6}, collections.Counter()
    for number in range(200):
        for split in ("train", "held out"):
            text = corpus.text_of(corpus.Corpus(split, {kind: 1.0}, **settings).document(number))
            pairs = re.findall(r"(\w+) has an? (\w+)", text) + re.findall(r"(\w+): \d\d(\d\d)", text)
            later = [(to, thing) for thing, to in re.findall(r"(?:gave|handed) the (\w+) to (\w+)", text)]
            later += re.findall(r"(?:gave|handed) (\w+) the (\w+)", text)
            later += re.findall(r"(\w+) (?:took|found|got) the (\w+)", text)
            assert {corpus.held_out(*pair) for pair in pairs} == {split == "held out"}
            assert split == "held out" or not [pair for pair in later if corpus.held_out(*pair)]
            seen[split] += sum(name in corpus.WIDE or other in corpus.WIDE for name, other in pairs)
    assert min(seen.values()) > 200


def test_training_pairs_are_not_held_out():
    """The other half of the claim, over every pair that may be asked for."""
    for number in range(300):
        books = corpus.text_of(corpus.Corpus("train", {"book": 1.0}).document(number))
        moves = corpus.text_of(corpus.Corpus("train", {"moves": 1.0}).document(number))
        pairs = re.findall(r"(\w+): \d\d(\d\d)", books) + re.findall(r"(\w+) has an? (\w+)", moves)
        pairs += [(to, thing) for thing, to in re.findall(r"gave the (\w+) to (\w+)", moves)]
        pairs += re.findall(r"(\w+) (?:took|found) the (\w+)", moves)
        assert not [pair for pair in pairs if corpus.held_out(*pair)]


ASKS = re.compile(
    r"(?:And|So|Hey|Do you|Can you|Could you|Please tell|Tell me|I wonder|I want|I am|Who|Whos|Where|Wheres|Wher|Does"
    r"|Is|What|To whom)\b"
)


def asked_in(message: str) -> tuple[list[str], str]:
    """A newcomer's statements, and the question before or after them, or ""."""
    sentences = [part.strip() for part in re.findall(r"[^.?]+[.?]?", message) if part.strip()]
    asking = [part for part in sentences if ASKS.match(part)]
    return [part for part in sentences if part not in asking], " ".join(asking)


def follow_freely(sentences: list[str]) -> tuple[dict[str, str], list[tuple[str, str, str, str]]]:
    """Where each thing is in the end, or somebody, read from a newcomer's sentences alone; and who did what with what:
    giver or who put it, "gave", "got" or "put", the thing, to whom or where.
    """
    where, acts, people, last, subject = {}, [], set(), "", ""
    name, to = r"(?P<who>[A-Z]\w*)", r"(?P<to>[A-Z]\w+)"
    at = r"(?P<at>(?:in|on|at|by|under|behind|near|beside|inside) the \w+)"
    what = r"(?:the (?P<what>\w+)|it)"
    got = r"took|picked up|grabbed|has|found|got|bought|owns|is holding|was given|has taken|has found"
    put = r"put|placed|left|hid|dropped|has (?:put|placed|left|hidden|dropped)"
    given = r"gave|handed|passed|has (?:given|handed|passed)"
    forms = {
        rf"{name} (?:{got}) (?:an? (?P<a>\w+)|{what})(?: from the \w+)?": "who",
        rf"{name} found {what} {at}": "who",
        rf"{name} (?:took|got|received) {what} from (?P<giver>[A-Z]\w+)": "who",
        rf"The (?P<what>\w+) was given to {name} by (?P<giver>[A-Z]\w+)": "who",
        rf"{name} (?:{got}) {what} and (?:{put}) it {at}": "at",
        rf"{name} (?:{got}) {what} and (?:{given}) it to {to}": "to",
        rf"The (?P<what>\w+) (?:is|was put|was placed|was left|was hidden) {at}": "at",
        rf"The (?P<what>\w+) has been (?:put|placed|left|hidden) {at}": "at",
        rf"There (?:is|was) an? (?P<a>\w+) {at}": "at",
        rf"{name} (?:{put}) {what} {at}": "at",
        rf"{name} (?:carried|brought|took) {what} to the (?P<room>\w+)": "room",
        rf"{name} (?:{given}) {what} to {to}": "to",
        rf"{name} (?:{given}) {to} the (?P<what>\w+)": "to",
        rf"{name} (?:went|walked|ran|moved) to the (?P<room>\w+)": "room",
        rf"{name} is {at}": "at",
    }
    for sentence in sentences:
        sentence = re.sub(r"^Then (\w)", lambda m: m[1].upper(), sentence.strip(" \n."))
        match, end = next((match, end) for form, end in forms.items() if (match := re.fullmatch(form, sentence)))
        found = {"who": "", "what": "", "a": "", "giver": "", "to": "", **match.groupdict()}
        if found["who"] in ("He", "She"):
            assert corpus.pronoun(subject) == found["who"].lower()
            found["who"] = subject
        subject, people = found["who"], people | {found["who"], found["to"]}
        thing = found["what"] or found["a"] or (last if "it" in sentence.split() else found["who"])
        if found["giver"] or end == "to" and " and " not in sentence:
            assert where[thing] == (found["giver"] or found["who"])
        last = thing
        place = f"{corpus.WAYS_THERE[found['room']]} the {found['room']}" if end == "room" else found[end]
        if found["giver"] or end == "to":
            acts.append((found["giver"] or subject, "got" if found["giver"] else "gave", thing, place))
        elif end in ("at", "room") and subject and thing != subject:
            before = sentence.rpartition(" the ")[0].split()[-1]
            acts.append((subject, "put", thing, f"{before} the {place.split()[-1]}"))
        elif end == "who":
            acts.append((subject, "fetched", thing, place))
        where[thing] = place
    return {thing: f"with {place}" if place in people else place for thing, place in where.items()}, acts


@pytest.mark.parametrize("split", ["train", "held out"])
def test_answers_to_a_newcomer_are_true(split):
    """Catches sentences and a state that disagree, against a second reading; and a pronoun that is somebody else's."""
    forms, said = collections.Counter(), collections.Counter()
    for number in range(500):
        nodes = (*corpus.USER, Call((corpus.told_freely, corpus.asked_first, corpus.walked)[number % 3]))
        env = Env({"split": split})
        units = list(corpus.GRAMMAR.sample(random.Random(number), nodes, env))
        text = "".join(unit.text for unit in units)
        message, *turns = text.removeprefix("<|im_start|>user\n").split("<|im_end|>\n<|im_start|>")
        statements, question = asked_in(message)
        where, acts = follow_freely(statements)
        holders = [(place.removeprefix("with "), thing) for thing, place in where.items() if place.startswith("with")]
        first = re.match(r"([A-Z]\w+) (?:took|grabbed|picked up|has|put|left|hid) (?:the|an?) (\w+)", message)
        if split == "train":
            assert not [pair for pair in holders if corpus.held_out(*pair)]
        elif first and first[1] != "Someone":
            assert corpus.held_out(*first.groups())
        replies = [turn.removeprefix("assistant\n").removesuffix("<|im_end|>") for turn in turns[::2]]
        questions = [question, *(turn.partition("\n")[2] for turn in turns[1::2])]
        if not question:
            assert replies.pop(0) == phrasing.REMEMBERED
            questions = questions[1:]
        for question, reply in zip(questions, replies, strict=True):
            forms.update(question.split()[:1])
            if match := re.fullmatch(r"(\w+) gave the (\w+) to (\w+)\.", reply):
                giver, noun, taker = match.groups()
                gave = [act for act in acts if act[2] == noun and act[1] in ("gave", "got")]
                assert [act for act in acts if act[2] == noun][-1] == (giver, "gave", noun, taker)
                if "did" in question and " do " in question or "done" in question:
                    assert [act[0] for act in acts if act[2] == noun and act[1] != "fetched"].count(giver) == 1
                else:
                    asked, column = (giver, 0) if giver in question else (taker, 3)
                    assert asked in question
                    assert [act[column] for act in gave].count(asked) == 1
                assert noun in question
                forms["gave"] += 1
                continue
            if match := re.fullmatch(r"(\w+) has the (\w+)\.", reply):
                assert match[1] in question
                assert [thing for thing, place in where.items() if place == f"with {match[1]}"] == [match[2]]
                forms["has"] += 1
                continue
            if match := re.fullmatch(r"([A-Z]\w+) (?!is)(\w+) the (\w+) (.*)\.", reply):
                did = [act for act in acts if act[2] == match[3]]
                assert did[-1] == (match[1], "put", match[3], match[4])
                assert [act[0] for act in did if act[1] != "fetched"].count(match[1]) == 1
                assert match[1] in question
                assert match[3] in question
                forms["put"] += 1
                continue
            match = re.fullmatch(r"(?:Nobody has it\. )?(?:The )?(\w+) is (.*?)(?:, so (?:yes|no))?\.", reply)
            assert match, reply
            assert where[match[1]] == match[2]
            if reply.endswith((", so yes.", ", so no.")):
                name = re.match(r"Does (\w+) have the (\w+)", question)
                at = re.search(r"the \w+ (\w+ the \w+)", question)
                right = where[name[2]] == f"with {name[1]}" if name else where[match[1]] == at[1]
                assert right == reply.endswith("yes.")
                said[right] += 1
            else:
                assert re.search(rf"\b{match[1]}\b", question)
                asks_who = bool(re.search(r"\b[Ww]ho", question))
                assert ("Nobody" in reply) == (asks_who and not where[match[1]].startswith("with"))
    assert 0.35 < said[True] / said.total() < 0.65
    assert min(forms[word] for word in ("Where", "Who", "Does", "Is", "And", "gave", "put", "has")) >= 5


def test_who_is_who_to_a_newcomer_is_true():
    """Catches an answer that is somebody else's kind, a queen that is he, and a Yes that should be No."""
    said = collections.Counter()
    for number in range(400):
        units = corpus.GRAMMAR.sample(random.Random(number), (*corpus.USER, Call(corpus.presented)), Env())
        text = "".join(unit.text for unit in units)
        kinds = dict(re.findall(r"(\w+) is an? (\w+)\.", text.partition("<|im_end|>")[0]))
        for name, kind in kinds.items():
            assert corpus.pronoun(name) in ("", corpus.FIXED.get(kind, corpus.pronoun(name)))
        replies = re.findall(r"([^.?>]*)[?.]?<.im_end.>\n<.im_start.>assistant\n(.*?)(?:, so (yes|no))?\.<", text)
        for question, reply, yes in replies:
            words = reply.split()
            assert words[-1] == kinds[words[0]] if words[0] != "The" else kinds[words[-1]] == words[1]
            if yes:
                said[yes] += 1
                assert (question.split()[-1] == words[-1]) == (yes == "yes")
                assert question.split()[-3] == words[0]
        said["questions"] += len(replies)
    assert said["questions"] > 400
    assert 0.35 < said["yes"] / (said["yes"] + said["no"]) < 0.65


def test_numbers_told_in_a_line_are_true():
    """Catches an answer that is somebody else's number, and a pair of name and number that training must not have."""
    styles = set()
    for number in range(400):
        nodes = (*corpus.USER, corpus.STYLES, Call(corpus.numbers_told))
        split = ("train", "held out")[number % 2]
        units = corpus.GRAMMAR.sample(random.Random(number), nodes, Env({"split": split}))
        message, *turns = "".join(unit.text for unit in units).split("<|im_end|>")
        told = dict(re.findall(r"([A-Z][a-z]+)\W[^A-Z\d]*(\d+)", message.partition("\n")[2].replace(" numbers:", "")))
        styles.add(re.sub(r"\d+.*|[A-Z]\w+", "", message.partition("\n")[2]))
        for name, digits in re.findall(r"assistant\n(\w+)'s number is (\d+)\.", "".join(turns)):
            assert told[name] == digits
            assert corpus.held_out(name, digits[-2:]) == (split == "held out")
    assert len(styles) >= 5


NEWCOMERS = (
    ("Mia took the lantern. Mia put the lantern in the barn. Where is the lantern now?", "The lantern is in the barn."),
    ("Where is the kite now? Bob grabbed the kite. He gave it to Alice.", "The kite is with Alice."),
    ("Mia picked up the apple. She hid it under the bed. Who has the apple?",
     "Nobody has it. The apple is under the bed."),
    ("Tom has a key. Tom handed Mia the key. Does Tom have the key?", "The key is with Mia, so no."),
    ("Mary went to the kitchen. John is in the garage. Where is Mary?", "Mary is in the kitchen."),
    ("Pip is a fox. Anna is a baker. Who is the fox?", "The fox is Pip."),
    ("Bob is a robot. Mira is a hen. Is Mira a robot?", "Mira is a hen, so no."),
    ("Ann's number is 4821, Bob's is 3307. What is Bob's number?", "Bob's number is 3307."),
    ("what is the capital of france", phrasing.UNKNOWN[0]),
    ("Write a Python function that adds two numbers.", phrasing.UNKNOWN[1]),
    ("What is 3 + 4?", phrasing.UNKNOWN[2]),
    ("hi there", "Hi! Shall I tell you a story?"),
    ("who are you?", phrasing.WHO_I_AM),
    ("Who has the kite?", phrasing.HAVE_NOT_TOLD),
)  # fmt: skip


@pytest.mark.parametrize(("message", "reply"), NEWCOMERS)
def test_a_newcomers_first_words_are_in_the_corpus(message, reply, encode):
    """Catches a first prompt that training never has, or one with another answer: any other costs infinitely much."""
    source = corpus.Corpus(None, {"free": 1.0})
    floor = Floor(corpus.GRAMMAR, source.nodes, encode, source.env)
    surprise = [
        floor.step(token)[0] for token in encode(f"<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n")
    ]
    answer = [floor.step(token)[0] for token in encode(f"{reply}<|im_end|>")]
    assert math.isfinite(sum(surprise))
    assert sum(answer) < (1.2 if reply in phrasing.UNKNOWN else 1e-6)


REQUESTS = (
    "tel me a stroy about a fox",
    "short story about a bell",
    "story please",
    "I'd like a story with a fox in it",
    "could you tell me a story about a hen",
)


@pytest.mark.parametrize("asked", REQUESTS)
def test_a_newcomer_gets_a_story(asked, encode):
    """Catches a request in other words that training never has."""
    source = corpus.Corpus(None, {"free": 1.0})
    floor = Floor(corpus.GRAMMAR, source.nodes, encode, source.env)
    text = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\nOnce upon a time"
    assert math.isfinite(sum(floor.step(token)[0] for token in encode(text)))


def test_what_lies_outside_has_the_same_few_answers():
    """Catches a question to which the model would have to know the world, and prompts too few to learn from."""
    prompts = set()
    for number in range(600):
        units = list(corpus.GRAMMAR.sample(random.Random(number), (corpus.OUTSIDE,)))
        text = "".join(unit.text for unit in units)
        said, reply = re.fullmatch(
            r"<.im_start.>user\n(.*)<.im_end.>\n<.im_start.>assistant\n(.*)<.im_end.>", text
        ).groups()
        assert reply in phrasing.UNKNOWN
        assert [unit.word for unit in units if unit.role == "answer"] == ["I"]
        prompts.add(said)
    assert len(prompts) > 300


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


def test_an_account_ends_where_nothing_can_be_moved():
    """Catches training that stops: three people of whom the split lets none have what another holds."""
    settings = {"bare": 1.0, "news": True, "most entries": 32, "most guests": 6, "most moves": 3}
    settings |= {"tell": 0.5, "rounds": 1, "single questions": 0.356, "questions a story": 6}
    shares = {"moves": 0.45, "handed on": 0.25, "who": 0.15, "inline": 0.15}
    text = corpus.text_of(corpus.Corpus("train", shares, **settings).document("0:1792:25:1"))
    assert "Arlo, Clover and Juniper are friends. Juniper has a bag. Arlo has a spoon. The bag is with Juniper." in text
    assert "The spoon is with Arlo." in text
