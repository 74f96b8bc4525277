"""A grammar that writes text and also knows, at every place in it, the probability of each next word.

A text is described by nodes: words, marks between words, slots for variables, choices. A variable gets its value where
the text first needs it, from a distribution that may depend on the variables that have one. `sample` follows one way
through the nodes. `Floor` follows all ways that agree with the text so far, which makes the probability of what comes
next exact: the grammar is its own language model, and no other can predict its texts better.

    [went|walked|]   one of the parts, with equal probability; a part may be empty
    {name}           the value of a variable, or a macro: another piece of text, which may depend on variables
    {tell name}      writes nothing and sets "told name", as a variable's first mention does
    a                becomes "an" where the next word asks for it; sentences get their capital letters

Where the variable "small" is set, all is in small letters; but in messages of the role "answer" sentences get capitals.

Text leaves the grammar in units: a word, led in by the marks after the word before it. Units, and marks and word in
each, meet where Qwen's pre-tokenisation cuts as well, so a text's tokens are those of its units, one after another.
"""

from __future__ import annotations

import functools
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Word(NamedTuple):
    """Letters or one digit, or a special token as it is."""

    text: str
    role: str = "template"


class Mark(NamedTuple):
    """What stands between words: spaces, line breaks, punctuation."""

    text: str


class Slot(NamedTuple):
    """The value of a variable, or a macro's text."""

    name: str


class Choice(NamedTuple):
    """One of several sequences of nodes, with its weight."""

    options: tuple[tuple[float, tuple], ...]


class Bind(NamedTuple):
    """Writes nothing; gives a variable this value."""

    name: str
    value: object


class Call(NamedTuple):
    """Nodes that depend on the variables: what the function makes of them."""

    function: Callable[[Env], tuple]


class Unbound(Exception):
    """Raised where a variable is needed that has no value yet."""


class Env(dict):
    """The variables that have a value; asking for another one raises Unbound."""

    def __missing__(self, name):
        raise Unbound(name)


class Unit(NamedTuple):
    """A piece of text: marks, then a word with the space before it, and the word's role."""

    marks: str
    word: str
    role: str

    @property
    def text(self) -> str:
        return self.marks + self.word


class State(NamedTuple):
    """A place in a text: the variables, the nodes still to come as (nodes, index, rest), and what is not written yet.

    Not written yet are the marks since the last word, since more may join them; and an "a" before them, which may
    become "an".
    """

    env: Env
    todo: tuple | None
    marks: str = ""
    article: Unit | None = None


START = "\0"  # in a mark: here a line begins, and with it a sentence
LINE = Mark(START)
PIECES = re.compile(r"\{([^{}]*)\}|\[([^\[\]]*)\]|([A-Za-z]+|\d)|('(?:s|t|re|ve|m|ll|d)\b|[^A-Za-z\d{}\[\]])")
TAKES_AN = re.compile(r"(?!eu|uk|uni|use|one)[aeiou]|hour")
OPENS_SENTENCE = re.compile(r'(\0|[.!?] )"?$')
# What pre-tokenisation leaves to the word after them: one space, or one mark that only letters or a line break precede.
LEAD = re.compile(r"(.*?)( |(?:(?<=^)|(?<=\n))[^\s]|)", re.DOTALL)


@functools.cache
def parse(template: str) -> tuple:
    """A template's nodes."""
    nodes = []
    for slot, choice, word, mark in PIECES.findall(template):
        if slot:
            nodes.append(Slot(slot))
        elif word:
            nodes.append(Word(word))
        elif mark:
            nodes.append(Mark(mark))
        else:
            nodes.append(either(*choice.split("|")))
    return tuple(nodes)


def either(*templates: str) -> Choice:
    """One of these templates, with equal probability; one that is named twice has twice the probability."""
    return Choice(tuple((weight, parse(text)) for text, weight in Counter(templates).items()))


def line(*templates: str) -> tuple:
    """A line of its own, a sentence or several: one of these templates."""
    return (LINE, either(*templates)) if len(templates) > 1 else (LINE, *parse(templates[0]))


class Grammar:
    """Variables, macros and the roles of their words.

    variables: name -> function of the Env that gives {value: weight}; it may need other variables.
    macros: name -> function of the Env that gives a template.
    roles: name of a variable -> the role of its words; " (new)" is added where the value is told for the first time.
    Of a macro: the role of its own words, always the same.
    """

    def __init__(self, variables: dict, macros: dict, roles: dict[str, str]):
        self.variables, self.macros, self.roles = variables, macros, roles

    def slot(self, name: str, env: Env) -> tuple:
        """The nodes of a slot. Raises Unbound."""
        if name.startswith("tell "):
            return (Bind(name.replace("tell ", "told "), True),)
        if name in self.macros:
            nodes = parse(self.macros[name](env))
            if name not in self.roles:
                return nodes
            role = env.get("role") or self.roles[name]
            return tuple(Word(node.text, role) if isinstance(node, Word) else node for node in nodes)
        role = env.get("role") or self.roles.get(name, "template")
        seen = f"told {name}"
        if role != "template" and not env.get("role"):
            role += "" if seen in env else " (new)"
        nodes = tuple(Word(node.text, role) if isinstance(node, Word) else node for node in parse(env[name]))
        return nodes if seen in env else (*nodes, Bind(seen, True))

    def draw(self, name: str, env: Env) -> list[tuple[float, object]]:
        """The values a variable may take here, with their probabilities."""
        weights = self.variables[name](env)
        total = sum(weights.values())
        return [(weight / total, value) for value, weight in weights.items() if weight > 0]

    def advance(self, state: State) -> tuple[list[Unit], list[tuple[float, State]]]:
        """Goes on by one node. Returns the units that this completed and the ways to go on from here.

        The second list is empty at the end of the text.
        """
        env, todo, marks, article = state
        if todo is None:
            rest = [Unit(marks.replace(START, ""), "", "template")]
            return [unit for unit in [article, *rest] if unit and unit.text], []
        nodes, index, rest = todo
        if index == len(nodes):
            return [], [(1.0, State(env, rest, marks, article))]
        node, following = nodes[index], (nodes, index + 1, rest)
        match node:
            case Mark(text):
                return [], [(1.0, State(env, following, join(marks, text), article))]
            case Word():
                small = env.get("small")
                node = node._replace(text=node.text.lower()) if small else node
                units = write(marks, article, node, capitals=not small or env.get("role") == "answer")
                article = units.pop() if units[-1].word.strip(' "') in ("a", "A") else None
                return units, [(1.0, State(env, following, "", article))]
            case Bind(name, value):
                return [], [(1.0, State(Env(env, **{name: value}), following, marks, article))]
            case Choice(options):
                total = sum(weight for weight, _ in options)
                return [], [(p / total, State(env, (nodes, 0, following), marks, article)) for p, nodes in options]
        try:
            made = node.function(env) if isinstance(node, Call) else self.slot(node.name, env)
        except Unbound as missing:
            return [], self.bind(str(missing), state)
        return [], [(1.0, State(env, (made, 0, following), marks, article))]

    def bind(self, name: str, state: State) -> list[tuple[float, State]]:
        """The same place, once for every value of a variable."""
        try:
            values = self.draw(name, state.env)
        except Unbound as missing:
            return self.bind(str(missing), state)
        return [(p, state._replace(env=Env(state.env, **{name: value}))) for p, value in values]

    def sample(self, rng: random.Random, nodes: tuple, env: Env | None = None) -> Iterator[Unit]:
        """The units of a random text."""
        state = State(env or Env(), (nodes, 0, None))
        while True:
            nodes, index, rest = state.todo or ((), 0, None)
            if index < len(nodes) and isinstance(nodes[index], Choice):  # as below, without a state for each way
                options = nodes[index].options
                weights = [weight for weight, _ in options]
                _, chosen = rng.choices(options, weights)[0] if len(options) > 1 else options[0]
                state = state._replace(todo=(chosen, 0, (nodes, index + 1, rest)))
                continue
            units, ways = self.advance(state)
            yield from units
            if not ways:
                return
            state = ways[0][1] if len(ways) == 1 else rng.choices(ways, [p for p, _ in ways])[0][1]

    def outcomes(self, state: State) -> list[tuple[float, list[Unit], State | None]]:
        """All that may be written next, with its probability and the place after it; None at the end of the text."""
        found, open_ways = [], [(1.0, state)]
        while open_ways:
            p, state = open_ways.pop()
            units, ways = self.advance(state)
            if units:
                found.append((p, units, ways[0][1] if ways else None))
            else:
                open_ways += [(p * q, way) for q, way in ways]
        return found


def join(marks: str, mark: str) -> str:
    """Marks with one more after them; no space stands twice, or at a line's start or end."""
    if mark == START and not marks.endswith(("\n", " ")):
        mark = " " + START
    if mark == " " and marks.endswith((" ", START)):
        mark = ""
    if mark.startswith("\n"):
        marks = marks.removesuffix(" ")
    return marks + mark


def write(marks: str, article: Unit | None, word: Word, capitals: bool = True) -> list[Unit]:
    """The units that a word completes: itself with the marks before it, and the "a" or "an" that waited for it."""
    text, lead = word.text, ""
    if article and marks == " " and TAKES_AN.match(text):
        article = article._replace(word=article.word + "n")
    if capitals and OPENS_SENTENCE.search(marks):
        text = text[0].upper() + text[1:]
    marks = marks.replace(START, "")
    if text[0].isalpha():
        marks, lead = LEAD.fullmatch(marks).groups()
    unit = Unit(marks, lead + text, word.role)
    return [article, unit] if article else [unit]


class Floor:
    """The exact probability of every token of a text, and the entropy of what might have stood there.

    `encode` gives a piece of text's token ids.
    """

    def __init__(self, grammar: Grammar, nodes: tuple, encode: Callable[[str], list[int]], env: Env | None = None):
        self.grammar, self.encode = grammar, functools.cache(lambda text: tuple(encode(text)))
        # Every way to go on: its probability, the tokens it is bound to write next, and the place it is at after those.
        self.beliefs: list[tuple[float, tuple, State | None]] = [(1.0, (), State(env or Env(), (nodes, 0, None)))]

    def read(self, unit: Unit) -> Iterator[tuple[int, str, float, float]]:
        """Reads the next unit of a text: for each of its tokens the id, its role, -log p and the entropy, in nats.

        Raises ValueError for a unit that the grammar could not have written here.
        """
        for text, role in ((unit.marks, "template"), (unit.word, unit.role)):
            for token in self.encode(text):
                surprise, entropy = self.step(token)
                if math.isinf(surprise):
                    raise ValueError(f"not a text of this grammar: {unit.text!r}")
                yield token, role, surprise, entropy

    def ways(self) -> list[tuple[float, tuple, State | None]]:
        """The beliefs, each followed until it is bound to write at least one token."""
        ways = []
        for p, ids, state in self.beliefs:
            if ids:
                ways.append((p, ids, state))
            elif state:
                for q, units, after in self.grammar.outcomes(state):
                    ids = sum((self.encode(part) for unit in units for part in (unit.marks, unit.word)), ())
                    ways.append((p * q, ids, after))
        return ways

    def next_tokens(self) -> dict[int, float]:
        """Every token that may come next, and its probability."""
        chances: dict[int, float] = {}
        for p, ids, _ in self.ways():
            chances[ids[0]] = chances.get(ids[0], 0.0) + p
        total = sum(chances.values())
        return {token: p / total for token, p in chances.items()}

    def step(self, token: int) -> tuple[float, float]:
        """Reads one token: -log p and the entropy of its place, in nats."""
        ways = self.ways()
        chances: dict[int, float] = {}
        for p, ids, _ in ways:
            chances[ids[0]] = chances.get(ids[0], 0.0) + p
        if not (chance := chances.get(token, 0.0)):
            return math.inf, 0.0
        self.beliefs = [(p / chance, ids[1:], state) for p, ids, state in ways if ids[0] == token]
        total = sum(chances.values())
        return -math.log(chance / total), -sum(p / total * math.log(p / total) for p in chances.values())
