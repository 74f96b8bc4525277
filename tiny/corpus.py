"""Endless, seeded training text for the tiny model, and the exact probability of every token in it.

Its documents: stories (plots.py has their shapes), conversations in which a story is asked for or asked about, accounts
of who moves what where, or only hands it on, with questions about the end of them, meetings with questions who is who,
phone books with questions, small talk; and all that in the words of somebody who does not know the templates, with
questions about the world, which all get the same few answers (phrasing.py has the words). All of it is one grammar
(grammar.py), which `Corpus.documents` samples and `Corpus.floor` reads: for each token of a document its role and its
true probability, given everything before it.

Held out of training are an eighth of all pairs of a name and a thing (a hero's, or a holder's), and of a name and the
last two digits of its number. In documents of the split "held out", hero and thing, every first holder and thing, and
every name and number are such a pair (but for plots that leave no such thing to a hero).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import random
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator

import phrasing
from grammar import LINE, Bind, Call, Choice, Env, Floor, Grammar, Mark, Slot, Unit, Word, line, parse
from plots import SHAPES


def words(text: str) -> list[str]:
    """The words of a list."""
    return text.split()


def split(text: str, mark: str = ";") -> list[str]:
    """The parts of a word list, without the white space around them."""
    return [" ".join(part.split()) for part in text.split(mark)]


GIRLS = words("""
    Mira Anna Ella Lucy Nora Rosa Clara Lily Emma Ruby Ada Maya Sara Hana Tessa Greta Molly Ivy June Wren Nina
    Lena Heidi Kate Amina Zoe Elsie Mina
""")
BOYS = words("""
    Tom Ben Sam Leo Max Jack Finn Hugo Noah Oscar Peter Theo Adam Will Omar Ravi Emil Henry Felix Milo Jonah
    Karl David Simon Luca Arlo Otto Ned
""")
SHE_ANIMALS = words("""
    Hazel Daisy Poppy Clover Maple Tansy Fern Olive Pearl Dotty Bella Pippa Willow Juniper Nettie Plum Minty
    Bramble Tilly Sorrel
""")
HE_ANIMALS = words("""
    Pip Bram Rusty Bruno Teddy Moss Dusty Basil Fergus Toby Barley Rowan Archie Chester Flint Pepper Biscuit
    Monty Wally Nutmeg
""")

ANIMALS = words("""
    fox hen otter hedgehog rabbit mouse bear owl badger squirrel duck goose goat cat dog frog mole beaver crow
    robin lamb pig pony turtle deer raccoon wolf donkey sparrow dragon elephant monkey penguin lion
""")
PEOPLE = {
    "girl": "she", "princess": "she", "queen": "she", "boy": "he", "prince": "he", "king": "he",
    "baker": "", "farmer": "", "miller": "", "sailor": "", "gardener": "", "shepherd": "", "tailor": "", "weaver": "",
    "potter": "", "carpenter": "", "painter": "", "teacher": "", "doctor": "", "knight": "", "wizard": "", "pirate": "",
}  # fmt: skip
# Kinds that are always she, or always he
FIXED = {"hen": "she"} | {kind: he for kind, he in PEOPLE.items() if he}
FIXED |= dict.fromkeys(("cow", "fairy", "witch", "mermaid", "grandmother"), "she")
FIXED |= dict.fromkeys(("cowboy", "fisherman", "policeman", "postman", "waiter", "actor", "grandfather"), "he")
TRAITS = words("""
    small little kind curious clever shy cheerful quiet busy brave gentle young friendly patient merry
    thoughtful careful lively
""")
LIKES = split("""
    warm bread; quiet mornings; old songs; long walks; the smell of rain; the sound of the wind; funny stories;
    sweet tea; bright colors; good company; big puddles; the first stars of the evening
""")
SETTINGS = split("""
    in a village by the sea; at the edge of a quiet wood; on a farm near the hills; beside a slow river; in a
    small town; in a green valley; in a house with a blue door; at the foot of a mountain; near an old forest;
    on a little island; at the end of a long lane; in a cottage by a lake
""")
HOME_ACTS = split("""
    was looking out of the window; was sweeping the floor; sat at the kitchen table; was in a good mood; was
    humming in the kitchen; opened the front door; was tidying the house; was washing the cups; sat by the fire;
    had nothing at all to do
""")

# Weather: words for the day; scenes; what it does to someone on the way.
WEATHER = {
    "sunny": (
        ["sunny", "bright", "warm"],
        ["The sun shone on the roofs.", "There was not a cloud in the sky.", "The sky was clear and blue."],
        [
            "The sun was out, so {h.he} walked slowly and kept to the shade.",
            "The path was dry, so it did not take long.",
        ],
    ),
    "rainy": (
        ["rainy", "wet", "drizzly"],
        ["Rain tapped on the roof.", "The rain made rings in every puddle.", "Water dripped from the leaves."],
        [
            "It was raining, so the path was muddy and {h.he} walked with care.",
            "The lane was full of puddles, so {h.he} wore boots.",
        ],
    ),
    "windy": (
        ["windy", "breezy", "blustery"],
        ["The wind shook the trees.", "Leaves flew over the fence.", "The clouds moved fast across the sky."],
        ["The wind pushed from behind, so {h.he} walked fast.", "It was so windy that {h.he} had to bend low."],
    ),
    "foggy": (
        ["foggy", "misty"],
        ["The hills were hidden in the mist.", "The fog was as thick as wool.", "The trees looked like gray ghosts."],
        ["{h.he} could not see far and walked slowly.", "The fog was thick, so {h.he} stayed close to the fence."],
    ),
    "cold": (
        ["cold", "frosty", "chilly"],
        ["There was frost on the grass.", "Ice covered the puddles.", "The air was clear and sharp."],
        ["It was so cold that {h.he} ran to keep warm.", "The path was icy, so {h.he} took small steps."],
    ),
    "snowy": (
        ["snowy", "wintry"],
        ["Snow lay on every roof.", "Big flakes fell without a sound.", "The whole land was white."],
        ["The snow was deep, so {h.he} went slowly.", "{h.he} left a long line of tracks in the snow."],
    ),
    "cloudy": (
        ["gray", "cloudy", "mild"],
        ["Soft clouds covered the sky.", "The air was still.", "The sky was pale and quiet."],
        ["The path was dry, so {h.he} was soon there.", "{h.he} hummed a song on the way."],
    ),
}

# Places: noun | preposition | spots where a thing can lie.
PLACES = """
pond       | by    | in the reeds by the pond; under the willow by the pond
mill       | at    | behind a sack of flour at the mill; on the steps of the mill
market     | at    | under a stall at the market; beside a cart at the market
bridge     | by    | at the foot of the bridge; on the wall by the bridge
well       | by    | on the ground behind the well; on the rim of the well
meadow     | in    | in the long grass of the meadow; on a tree stump in the meadow
orchard    | in    | under an apple tree in the orchard; beside a ladder in the orchard
barn       | in    | on a bale of hay in the barn; behind the door of the barn
hill       | on    | under the pine on the hill; beside the flat stone on the hill
river      | by    | on the sandy bank of the river; between two stones by the river
garden     | in    | among the roses in the garden; on the bench in the garden
harbor     | at    | beside the nets at the harbor; on a barrel at the harbor
lighthouse | at    | at the door of the lighthouse; on the rocks by the lighthouse
school     | at    | on the wall of the school; under the bench at the school
bakery     | at    | on the counter at the bakery; on the windowsill of the bakery
library    | at    | under a table at the library; on a chair at the library
station    | at    | on the bench at the station; beside the clock at the station
cave       | in    | on a ledge in the cave; behind a rock in the cave
beach      | on    | in the sand on the beach; beside a rock on the beach
stable     | in    | in the straw of the stable; on a shelf in the stable
castle     | at    | beside the gate of the castle; on the stairs of the castle
forge      | at    | beside the anvil at the forge; on the bench at the forge
"""

# Things: noun | adjectives | use | used | joy | what is broken | part to mend it | mending | weather (if it matters)
THINGS = """
lantern | brass old tin little | light it | lit it | It glowed like a small star. | its handle had come off | a piece of wire | tied the handle on with the wire
kite | red blue paper yellow | fly it | flew it | It danced high above the trees. | its string had snapped | a new string | tied on the new string | windy
drum | red little round wooden | play it | played it | It boomed like distant thunder. | its skin had split | a patch of leather | stretched the leather over the top
bell | silver brass small old | ring it | rang it | It rang out clear and bright. | its clapper had dropped out | a small hook | hung the clapper on the hook
basket | round brown straw big | fill it with apples | filled it with apples | It was light but very strong. | its handle had split | a strip of willow | bound the handle with the willow
blanket | wool soft green patchwork | lie on it | lay down on it | It was as soft as moss. | it had a big hole in it | a square of cloth | sewed the cloth over the hole
umbrella | yellow black striped big | open it | opened it | It opened like a great flower. | one of its ribs was bent | a thin stick | tied the stick along the rib | rainy
boat | toy red little white | sail it | sailed it in a tub of water | It floated without a wobble. | its mast had snapped | a straight twig | set the twig in place of the mast
whistle | tin wooden silver small | blow it | blew it | It made a sound like a bird. | it was cracked | a drop of wax | closed the crack with the wax
flute | wooden silver slim old | play it | played it | Its notes were sweet and low. | it was cracked | a thread of silk | wound the silk around the crack
clock | old round brass tall | wind it | wound it | It ticked softly, like a tiny heart. | it had stopped ticking | a drop of oil | put the oil on the wheels
teapot | blue white round old | polish it | polished it | It shone from lid to spout. | its lid was cracked | a dab of glue | stuck the lid together with the glue
book | thick old green picture | read it | read a page of it | It was full of ships and islands. | its cover had come off | a dab of glue | stuck the cover on with the glue
map | old torn painted folded | study it | studied it | It showed every path and stream. | it was ripped in half | a strip of paper | joined the halves with the paper
hat | red straw tall green | wear it | put it on | It was a perfect fit. | its brim was torn | a needle and thread | sewed up the brim
scarf | wool striped long red | wear it | put it on | It was soft and very warm. | it had a hole at one end | a ball of yarn | knitted over the hole with the yarn
ball | red rubber big striped | bounce it | bounced it | It bounced higher than a fence. | it had gone flat | a small patch | stuck the patch on and pumped up the ball
wagon | little red wooden green | pull it | pulled it along | It rolled without a squeak. | one wheel had come off | a strong pin | fixed the wheel on with the pin
bucket | tin blue wooden old | fill it | filled it with water | It did not spill a drop. | there was a hole in it | a plug of wax | closed the hole with the wax
cup | blue gold tin little | drink from it | drank from it | It made even plain water taste good. | its handle was cracked | a dab of glue | stuck the handle on with the glue
fiddle | brown old small shiny | play it | played it | It sang so well that feet began to tap. | one string had snapped | a new string | put on the new string
doll | rag wooden little old | hold it | held it close | It had a smile made of red thread. | one arm was loose | a needle and thread | sewed the arm on again
puppet | wooden funny painted little | make it dance | made it dance | It kicked and bowed and waved. | one of its strings had snapped | a piece of string | tied on the new piece
compass | brass gold old small | play with it | turned around and around with it | Its needle always pointed north. | its glass was loose | a dab of glue | stuck the glass on again
ring | gold silver thin green | wear it | put it on | It sparkled like dew. | it was bent | a small hammer | tapped the ring until it was round
crown | gold paper silver tiny | wear it | put it on | It made everyone want to bow. | one of its points was loose | a drop of glue | stuck the point on with the glue
broom | big straw new old | sweep with it | swept the floor with it | It swept up every crumb. | its handle was loose | a long nail | nailed the handle on
key | iron gold tiny rusty | polish it | polished it | It shone in the light. | it was bent | a small hammer | tapped the key until it was straight
rope | long thick strong new | practice knots with it | tied a knot in it | It never slipped. | it was wearing thin in the middle | a ball of twine | wound the twine around the thin part
telescope | brass long old small | look through it | looked through it | It made far things seem near. | its glass was loose | a thin ring of wire | held the glass in place with the wire
candle | white tall yellow thick | light it | lit it | Its flame was small and steady. | it would not stand up | a clay dish | set the candle in the clay dish
coat | blue warm green long | wear it | put it on | It had two deep pockets. | its sleeve was torn | a needle and thread | sewed up the sleeve
bag | leather brown little old | pack it for a trip | packed it for a trip | It had room for all sorts of things. | its strap was torn | a needle and thread | sewed on the strap
stool | wooden little three-legged low | sit on it | sat down on it | It stood as firm as a rock. | one leg was loose | a wooden peg | fixed the leg with the peg
mirror | silver round small old | look into it | looked into it | It was as clear as a pond. | its frame was loose | a dab of glue | stuck the frame together
sled | red wooden fast new | ride on it | rode on it | It slid as smooth as butter. | one runner was loose | a strong screw | fixed the runner with the screw | snowy
spoon | wooden silver big old | stir soup with it | stirred a pot of soup with it | It was just the right size. | it was cracked | a dab of glue | closed the crack with the glue
shell | pink white shiny smooth | listen to it | listened to it | It whispered like the sea. | it was cracked | a dab of glue | closed the crack with the glue
pot | copper big black clay | cook with it | cooked porridge in it | It never let the porridge burn. | its handle was loose | a small screw | fixed the handle with the screw
painting | small old bright framed | look at it | looked at it | It showed a ship on a green sea. | its frame was loose | a small nail | nailed the frame together
pillow | soft white blue feather | rest on it | took a nap on it | It was like a small cloud. | its seam was open | a needle and thread | sewed up the seam
feather | white long golden blue | stroke it | stroked it | It was softer than snow. | it was bent | a thin stick | tied the stick along the bend
"""  # noqa: E501

FOODS = split("""
    berry pie; loaf of bread; bowl of soup; honey cake; seed cake; round cheese; plum tart; pot of stew; jar of
    jam; basin of porridge; apple pie; corn muffin; carrot cake; cherry tart; ginger cookie; pumpkin pie
""")


PLACE_ROWS = {row[0]: row for row in (split(line, "|") for line in PLACES.strip().splitlines())}
THING_ROWS = {row[0]: row for row in (split(line, "|") for line in THINGS.strip().splitlines())}
NAMES = GIRLS + BOYS + SHE_ANIMALS + HE_ANIMALS
OPENINGS = split("""
    Once upon a time there was a {who} who lived {setting}.; Once upon a time there lived a {who}.;
    Once upon a time, {setting}, there lived a {who}.; Once upon a time, a {who} lived {setting}.;
    There was once a {who} who lived {setting}.; Long ago, {setting}, there lived a {who}.; Long ago there was a {who}.;
    {setting} lived a {who}.; Not so long ago, a {who} lived {setting}.;
    This is the story of a {who} who lived {setting}.; Far away, {setting}, there was a {who}.;
    Many years ago, a {who} lived {setting}.
""")
DAY_OPENINGS = split("""
    One {sky}, a {who} {act}.; It was a {sky}, and a {who} {act}.; On a {sky}, a {who} {act}.;
    Early one {sky}, a {who} {act}.
""")
# What a user may begin a story with, and the openings that begin so
FIRST_WORDS = {
    first: [text for text in OPENINGS + DAY_OPENINGS if text.startswith(first)]
    for first in (
        "Once upon a time",
        "Long ago",
        "There was once",
        "Far away",
        "Many years ago",
        "One {sky}",
        "It was a",
    )
}


# Variables: what each may be, given those that have a value already.


# New words of accounts, meetings and phone books, lists with the share of each. Half of names and things are made up.
PLAIN = frozenset((*NAMES, *THING_ROWS, *ANIMALS, *PEOPLE, *PLACE_ROWS))
MORE_NAMES = (*phrasing.MORE_GIRLS, *phrasing.MORE_BOYS, *phrasing.EITHER)
SHORT = tuple(name for name in phrasing.SHORT if name not in PLAIN)
SHORT_THINGS = tuple(noun for noun in phrasing.SHORT_THINGS if noun not in PLAIN)
NEW_NAMES = ((0.5, MORE_NAMES), (0.5, SHORT))
NEW_THINGS = ((0.5, tuple(phrasing.MORE_THINGS)), (0.5, SHORT_THINGS))
NEW_KINDS = ((1.0, tuple(phrasing.MORE_KINDS)),)

WIDE = frozenset(MORE_NAMES + SHORT + SHORT_THINGS)
WIDE |= frozenset(phrasing.MADE_UP + phrasing.MORE_THINGS + phrasing.MADE_UP_THINGS)


@functools.cache
def eighth(word: str) -> int:
    """One of eight groups of words."""
    return zlib.crc32(word.encode()) % 8


@functools.lru_cache(1 << 17)
def held_out(one: str, other: str) -> bool:
    """Whether this pair never occurs in training; for a word of the long lists its group decides."""
    if one in WIDE or other in WIDE:
        return (eighth(one) + eighth(other)) % 8 == 0
    return zlib.crc32(f"{one} {other}".encode()) % 8 == 0


def fits(env: Env, one: str | None, other: str | None) -> bool:
    """Whether a pair may occur in this split; a pair of which one half is still open may."""
    return not one or not other or "split" not in env or held_out(one, other) == (env["split"] == "held out")


def hero_kind(env: Env) -> dict[str, float]:
    """Animals three times in five, children more often than other people."""
    people = {kind: 0.4 / (len(PEOPLE) + 6) * (4 if kind in ("girl", "boy") else 1) for kind in PEOPLE}
    kinds = people if env.get("hero is") == "person" else people | {kind: 0.6 / len(ANIMALS) for kind in ANIMALS}
    he = env.get("h.he")
    return {kind: share for kind, share in kinds.items() if FIXED.get(kind, he) == he} if he else kinds


def friend_kind(env: Env) -> dict[str, float]:
    """Not the hero's kind, and one that can have the other pronoun."""
    he = env["f.he"]
    share = 0.85 if env["h.kind"] in ANIMALS else 0.4
    animals = [kind for kind in ANIMALS if kind != env["h.kind"] and FIXED.get(kind, he) == he]
    people = [kind for kind in PEOPLE if kind != env["h.kind"] and PEOPLE[kind] in ("", he)]
    if env.get("friend is") == "animal":
        people, share = [], 1.0
    return {kind: share / len(animals) for kind in animals} | {kind: (1 - share) / len(people) for kind in people}


def names_of(kind: str, he: str) -> list[str]:
    """The names for someone of this kind."""
    if he == "she":
        return SHE_ANIMALS if kind in ANIMALS else GIRLS
    return HE_ANIMALS if kind in ANIMALS else BOYS


SHE = frozenset(GIRLS + SHE_ANIMALS + phrasing.MORE_GIRLS)
NO_PRONOUN = frozenset(phrasing.EITHER + phrasing.MADE_UP) | frozenset(SHORT)


def pronoun(name: str) -> str:
    """A name is always of the same pronoun; "" for names that tell none."""
    return "she" if name in SHE else "" if name in NO_PRONOUN else "he"


@functools.cache
def thing_row(noun: str) -> list[str]:
    """What is known about a thing; of those that no story has by itself, what may be said of any."""
    return THING_ROWS.get(noun) or [noun, *phrasing.ANY_THING]


def thing(env: Env) -> dict[str, float]:
    """Any thing that the plot can use and that may belong to this hero."""
    skip = SHAPES[env["shape"]].skip if "shape" in env else ()
    allowed = [noun for noun in THING_ROWS if noun not in skip and noun != env.get("u.noun")]
    return dict.fromkeys([noun for noun in allowed if fits(env, env.get("h.name"), noun)] or allowed, 1)


def hero_name(env: Env) -> dict[str, float]:
    """Any name that suits the hero's kind and that may belong to the thing, if it is known."""
    names = names_of(env["h.kind"], env["h.he"])
    return dict.fromkeys([name for name in names if fits(env, name, env.get("t.noun"))] or names, 1)


def shape(env: Env) -> dict[str, float]:
    """Any plot that suits the weather and the thing, as far as these are known."""
    return {
        name: 1
        for name, shape in SHAPES.items()
        if env.get("weather", shape.weather[0]) in shape.weather and env.get("t.noun") not in shape.skip
    }


def once(*values: str) -> Callable[[Env], dict[str, float]]:
    """A variable that is one of these words, with equal probability."""
    return lambda env: dict.fromkeys(values, 1)


VARIABLES: dict[str, Callable[[Env], dict]] = {
    "h.kind": hero_kind,
    "h.he": lambda env: {FIXED[env["h.kind"]]: 1} if env["h.kind"] in FIXED else {"she": 1, "he": 1},
    "h.name": hero_name,
    "f.kind": friend_kind,
    "f.he": lambda env: {"he" if env["h.he"] == "she" else "she": 1},
    "f.name": lambda env: dict.fromkeys(names_of(env["f.kind"], env["f.he"]), 1),
    "t.noun": thing,
    "u.noun": lambda env: {noun: 1 for noun in THING_ROWS if noun != env.get("t.noun")},
    "shape": shape,
    "weather": lambda env: dict.fromkeys(SHAPES[env["shape"]].weather if "shape" in env else WEATHER, 1),
    "day word": lambda env: dict.fromkeys(WEATHER[env["weather"]][0], 1),
    "time": once("morning", "afternoon", "day"),
    "p.noun": lambda env: {noun: 1 for noun in env.get("places", PLACE_ROWS) if noun != env.get("q.noun")},
    "q.noun": lambda env: {noun: 1 for noun in PLACE_ROWS if noun != env["p.noun"]},
    "s": lambda env: dict.fromkeys(split(PLACE_ROWS[env["p.noun"]][2]), 1),
    "dish": once(*FOODS),
}
VARIABLES |= {f"{x}.adjective": lambda env, x=x: dict.fromkeys(thing_row(env[f"{x}.noun"])[1].split(), 1) for x in "tu"}
VARIABLES |= {name: once(*values) for shape in SHAPES.values() for name, values in shape.words.items()}


# Macros: text that depends on variables.


def joy(env: Env) -> str:
    """What is good about the thing, told once."""
    return "" if "told joy" in env else "{tell joy}" + thing_row(env["t.noun"])[4]


def first_food(phrase: str) -> str:
    """ "pie" of "berry pie", "bread" of "loaf of bread"."""
    return phrase.split(" of ")[-1] if " of " in phrase else phrase.split()[-1]


MACROS: dict[str, Callable[[Env], str]] = {
    "": lambda env: "",
    "yes": lambda env: "yes",
    "no": lambda env: "no",
    "day": lambda env: "[That|That|That same|That very] {time}," if "told day" in env else "{tell day}One {sky},",
    "sky": lambda env: "{day word} {time}",
    "way": lambda env: f"[{'|'.join(WEATHER[env['weather']][2])}]",
    "scene": lambda env: f"[{'|'.join(WEATHER[env['weather']][1])}]",
    "who": lambda env: "[{h.described}|{h.described}|{h.described}|{h.plain}|{h.plain}]",
    "setting": lambda env: f"[{'|'.join(SETTINGS)}]",
    "act": lambda env: f"[{'|'.join(HOME_ACTS)}]",
    "like": lambda env: f"[{'|'.join(LIKES)}]",
    "t.joy": joy,
    "food": lambda env: f"the {first_food(env['dish'])}",
    "food.a": lambda env: "a {dish}",
}
for x in "hf":
    MACROS |= {
        x: lambda env, x=x: f"{{{x}.name}}",
        f"{x}.he": lambda env, x=x: env[f"{x}.he"],
        f"{x}.him": lambda env, x=x: "her" if env[f"{x}.he"] == "she" else "him",
        f"{x}.his": lambda env, x=x: "her" if env[f"{x}.he"] == "she" else "his",
        f"{x}.the": lambda env, x=x: f"the {{{x}.kind}}",
        f"{x}.plain": lambda env, x=x: f"{{{x}.kind}} named {{{x}.name}}",
        f"{x}.described": lambda env, x=x: f"[{'|'.join(TRAITS)}] {{{x}.plain}}",
        f"{x}.a": lambda env, x=x: f"a [{{{x}.described}}|{{{x}.described}}|{{{x}.plain}}|{{{x}.plain}}|{{{x}.plain}}]",
        f"{x}.full": lambda env, x=x: (
            f"young {{{x}.name}}" if env[f"{x}.kind"] in ("girl", "boy") else f"{{{x}.name}} the {{{x}.kind}}"
        ),
    }
for x in "tu":
    MACROS |= {x: lambda env, x=x: f"the {{{x}.noun}}", f"{x}.a": lambda env, x=x: f"a {{{x}.adjective}} {{{x}.noun}}"}
for column, name in {2: "use", 3: "used", 5: "broken", 6: "part", 7: "fix"}.items():
    MACROS[f"t.{name}"] = lambda env, column=column: thing_row(env["t.noun"])[column]
MACROS["t.used"] = lambda env: re.sub(r"\bit\b", f"the {env['t.noun']}", thing_row(env["t.noun"])[3], count=1)
for x in "pq":
    MACROS |= {
        x: lambda env, x=x: f"the {{{x}.noun}}",
        f"{x}.at": lambda env, x=x: f"{PLACE_ROWS[env[f'{x}.noun']][1]} the {{{x}.noun}}",
        f"{x}.to": lambda env, x=x: f"to the {{{x}.noun}}",
    }
ROLES = {
    "h.name": "name", "f.name": "name", "h.kind": "kind", "f.kind": "kind", "t.noun": "thing", "u.noun": "thing",
    "t.adjective": "adjective", "u.adjective": "adjective", "p.noun": "place", "q.noun": "place", "s": "place",
}  # fmt: skip
ROLES |= dict.fromkeys(("day word", "time", "dish", *(word for s in SHAPES.values() for word in s.words)), "detail")
ROLES |= {f"{x}.{he}": "pronoun" for x in "hf" for he in ("he", "him", "his")} | dict.fromkeys(("yes", "no"), "answer")

GRAMMAR = Grammar(VARIABLES, MACROS, ROLES)


def opening(env: Env) -> tuple:
    """The first sentences: the hero is introduced, in one of many ways."""
    first = env.get("first")
    liking = line("{h.he} liked {like}.", "{h.the} was fond of {like}.", "More than anything, {h.he} loved {like}.")
    ways = []
    for texts, weight, then in ((OPENINGS, 0.7, (0.3, liking)), (DAY_OPENINGS, 0.3, (0.4, line("{scene}")))):
        texts = [text for text in texts if first is None or text.startswith(first)]
        told = (Bind("told day", True),) if texts and texts[0] in DAY_OPENINGS else ()
        more = Choice(((then[0], then[1]), (1 - then[0], ())))
        ways += [(weight / len(texts), (*line(text), *told, more)) for text in texts]
    return (Choice(tuple(ways)),)


STORY = (Call(opening), Call(lambda env: tuple(SHAPES[env["shape"]].nodes)))


# Conversations.

ASKING = split("""Tell me a story about {x}.; Tell me a story about {x}; Can you write a short story about {x}?;
    Please tell me a story about {x}.; I'd like a story with {x} in it, please.; Write a story about {x}.;
    Could you tell me a story about {x}?; Make up a story about {x}.; A story about {x}, please.;
    I want a story about {x}.; Do you know a story about {x}?; Write a short story with {x}.;
    Give me a little story about {x}.; May I have a bedtime story about {x}?;
    My daughter would like a story about {x}.; Tell us a tale about {x}.;
    Hello! Can you tell me a story about {x}?; Please write a tale with {x} in it.; Tell me about {x}.;
    How about a story with {x}?""")
ASKING_ANY = split("""Tell me a story.; Tell me a story; Can you tell me a story?; Please write a short story.;
    I'd like a story.; Write a story for me.; Tell me a bedtime story, please.; Do you know any stories?;
    Make up a story.; A story, please!; Could you tell us a tale?; I can't sleep. Tell me a story.;
    Hi! Tell me a short story.; Write something.; I am bored. Can you tell me a story?;
    Surprise me with a story.""")
ANOTHER = split("""Thank you! Now tell me one about {x}.; That was nice. Can I have another one about {x}?;
    I liked that. Now a story about {x}, please.; Another one, please, with {x} in it.;
    Thanks! Tell me a story about {x}.""")
THANKS = {
    "Thank you!": "You are welcome!",
    "Thanks, that was lovely.": "I am glad you liked it.",
    "I liked that story.": "Thank you! I liked it too.",
    "That was a good story.": "Thank you! Would you like another one?",
    "Good night!": "Good night! Sleep well.",
}
SMALL_TALK = {
    "Hello!": "Hello! Would you like a story?",
    "Hello": "Hello! Would you like a story?",
    "Hi!": "Hi! Shall I tell you a story?",
    "Hi": "Hi! Shall I tell you a story?",
    "Good morning!": "Good morning! Would you like a story?",
    "Good evening.": "Good evening! Would you like a bedtime story?",
    "How are you?": "I am well, thank you. How are you?",
    "Who are you?": phrasing.WHO_I_AM,
    "What is your name?": "I have no name. I am a small storyteller.",
    "What can you do?": phrasing.WHAT_I_DO,
    "Can you help me?": "I can tell you a story. What should it be about?",
    "What do you like?": "I like stories about animals and old things.",
    "Thank you!": "You are welcome!",
    "Goodbye!": "Goodbye! Come back soon.",
} | phrasing.SMALL_TALK
AFTER_GREETING = split("""Yes, please.; Yes, please!; Yes; Oh yes!; I would love one.; Sure, go on.; yes; yes please;
    yes, please; sure; please do; yes!""")


def turn(role: str, *nodes) -> tuple:
    """A message as the chat template writes it, without the line break after it."""
    known = "answer" if role == "assistant" else None
    begin = (Word("<|im_start|>"), Word(role), Mark("\n"), Bind("role", known))
    return (*begin, *nodes, Bind("role", None), Word("<|im_end|>"))


BREAK = Mark("\n")


def exchange(question: tuple, answer: tuple) -> tuple:
    """One message from the user and its answer."""
    return (*turn("user", *question), BREAK, *turn("assistant", *answer))


YES_OR_NO = 0.3  # of the questions about a story, an account or a meeting that can be asked
# How their answers end. The fact comes first, in the words in which it is told when nobody asks for Yes or No: with a
# name in the middle of the line, as in the question. There it is the same token, and the last word need but compare.
SO_YES, SO_NO = ((*parse(", so "), Word(word, "answer"), Mark(".")) for word in ("yes", "no"))


def any_of(*options: tuple) -> Choice:
    """One of these sequences of nodes, with equal probability."""
    return Choice(tuple((1, nodes) for nodes in options))


def told(nodes: tuple) -> tuple:
    """A story inside a message: its words keep their own roles."""
    return (Bind("role", None), *nodes)


def asking(forms: list[str], begin: Callable[[str], tuple] = line) -> tuple:
    """A request for a story about a hero, a thing, both, or hero and friend; `begin` makes nodes of a text."""
    hero = ((0.6, "a {h.kind}", ()), (0.2, "{h.name}", (Bind("hero is", "person"),)), (0.2, "a {h.plain}", ()))
    thing, options = "a {t.noun}", []
    for weight, who, bind in hero:
        subjects = ((0.45, f"{who} and {thing}"), (0.15, f"{thing} and {who}"), (0.3, who))
        options += [(weight * w, bind, text) for w, text in subjects]
    options += [(0.1, (), thing), (0.1, (Bind("friend is", "animal"),), "a {h.kind} and a {f.kind}")]
    ways = [(w / len(forms), (*bind, *begin(form.replace("{x}", x)))) for w, bind, x in options for form in forms]
    return (Choice(tuple(ways)),)


def beginning(env: Env) -> tuple:
    """The user's first words of a story."""
    forms = [
        "{x}",
        "{x}",
        "{x}",
        "{x} ...",
        "Continue this story: {x}",
        "Please go on: {x}",
        'Start a story with "{x}".',
    ]
    ways = [(*line(form.replace("{x}", first)), Bind("first", first)) for first in FIRST_WORDS for form in forms]
    return (any_of(*ways),)


def topic(question: str) -> str:
    """What a question is about; a question and its opposite are about the same."""
    return re.sub(r"^Does \{\w\} |^(Is \{\w\}).*", r"\1", question)


def asked(env: Env) -> tuple:
    """One question about the story and its answer; none is asked twice."""
    done = env.get("asked", ())
    pairs = [pair for pair in SHAPES[env["shape"]].questions(env) if topic(pair[0]) not in done]
    ways = ((*exchange(line(q), line(a)), Bind("asked", (*done, topic(q)))) for q, a in pairs)
    return (BREAK, weighed(env, [compares(a) for _, a in pairs], ways)) if pairs else ()


def compares(answer: str) -> bool:
    """Whether an answer about a story says yes or no."""
    return answer.endswith((" {yes}.", " {no}."))


def weighed(env: Env, compare: list[bool], ways: Iterable[tuple]) -> Choice:
    """One of these ways. Those that compare, which is to say Yes or No, have the share env["yes or no"] together."""
    share, count = env.get("yes or no", YES_OR_NO), sum(compare)
    share = float(count > 0) if count in (0, len(compare)) else share
    weights = (share / count if yes else (1 - share) / (len(compare) - count) for yes in compare)
    return Choice(tuple((p, way) for p, way in zip(weights, ways, strict=True) if p))


def either_way(chance: float, one: tuple, other: tuple) -> Choice:
    """The first nodes with this probability, else the others."""
    return Choice(tuple((p, nodes) for p, nodes in ((chance, one), (1 - chance, other)) if p > 0))


def few(nodes: tuple, *weights: float) -> Choice:
    """The nodes no times, once, twice and so on, by these weights."""
    return Choice(tuple((weight, nodes * count) for count, weight in enumerate(weights)))


def questions(one: tuple, *weights: float) -> Call:
    """One question's nodes no times, once and so on, by these weights, or as often as env["questions a story"] says."""

    def ask(env: Env) -> tuple:
        count = env.get("questions a story")
        return (few(one, *weights),) if count is None else one * count

    return Call(ask)


ASKED = (Call(asked),)


ASKED_ANY = any_of(*(line(text) for text in ASKING_ANY))
REQUEST = any_of(
    *[exchange(asking(ASKING), told(STORY))] * 4,
    exchange((ASKED_ANY,), told(STORY)),
    *[exchange((Call(beginning),), told(STORY))] * 2,
)
THANKING = any_of(*((BREAK, *exchange(line(said), line(answer))) for said, answer in THANKS.items()))
GREETING = any_of(
    *(
        (*exchange(parse(said), line(answer)), BREAK, *exchange((any_of(*map(parse, AFTER_GREETING)),), told(STORY)))
        for said, answer in SMALL_TALK.items()
        if answer.endswith("story?")
    )
)
SMALL = any_of(*(exchange(parse(said), line(answer)) for said, answer in SMALL_TALK.items()))
# Said before every story that a user tells: where a story ends, it says whether a question may follow in the message.
READ = (*line("[Read this story.|Here is a story.|Listen to this.]"), Mark("\n\n"))


def read_and_asked(env: Env) -> tuple:
    """The user's message: a story and a first question; then more questions."""
    pairs = SHAPES[env["shape"]].questions(env)
    ways = [
        (Mark("\n\n"), *line(question), Word("<|im_end|>"), BREAK, *turn("assistant", *line(answer)))
        for question, answer in pairs
    ]
    compare = [compares(answer) for _, answer in pairs]
    ways = ((*nodes, Bind("asked", (topic(pair[0]),))) for nodes, pair in zip(ways, pairs, strict=True))
    return (weighed(env, compare, ways),)


CHAT = Choice(
    (
        (0.6, (REQUEST, questions(ASKED, 0.5, 0.2, 0.2, 0.1), Choice(((0.1, (THANKING,)), (0.9, ()))))),
        (0.05, (GREETING, questions(ASKED, 0.7, 0.3))),
        (0.35, (*turn("user", *READ, *STORY)[:-2], Call(read_and_asked), questions(ASKED, 0.1, 0.3, 0.3, 0.3))),
    )
)


# Who moves what where.

MOVED, MOVES = 3, 12  # things in an account at most, and how often something is moved at most
HANDED = 3  # how often at most something is moved where things are only handed on
# How they are: from whom, what, to whom. The one who has the thing in the end is named first in every third.
HANDOVERS = (
    "{giver} gave {what} to {taker}",
    "{giver} gave {taker} {what}",
    "{taker} got {what} from {giver}",
    "{giver} handed {what} to {taker}",
    "{giver} handed {taker} {what}",
    "{taker} took {what} from {giver}",
)


def account(env: Env) -> tuple:
    """env["things"] things, or 2 to MOVED of them, and one more characters; then env["moves"] moves, or 1 to MOVES of
    them, and questions where everything is. With env["handed on"] things only change hands, no time to HANDED times.
    Names, things and places are new words as often as env["new words"] says (see `perhaps_new`).
    """
    count = env.get("moves")
    counts = range(1, env.get("most moves", MOVES) + 1) if count is None else (count,)
    if env.get("handed on") and count is None:
        counts = range(min(counts[-1], HANDED) + 1)
    things = any_of(*((Bind("things", n),) for n in ((env["things"],) if "things" in env else range(2, MOVED + 1))))
    return (perhaps_bare(env), things, any_of(*((Bind("left", n), *LINE_OF_CAST, Call(move)) for n in counts)))


def perhaps_bare(env: Env) -> Choice:
    """With probability env["bare"], 0 unless given, a document is without questions and tells all answers instead."""
    bare = env.get("bare", 0.0)
    return Choice(tuple((p, (Bind("questions", q),)) for p, q in ((bare, False), (1 - bare, True)) if p))


def perhaps_new(env: Env, new: tuple, plain: tuple) -> Choice:
    """With probability env["new words"], 0 unless given, a word that stories do not have, else one that they have.

    The tokenizer makes several tokens of most new words. Each of them is copied from its own place.
    """
    return either_way(env.get("new words", 0.0), new, plain)


def one_new(lists: tuple, taken: Iterable[str], role: str, variable: str, other: str | None = None) -> tuple:
    """A new word, as `from_lists` has it."""
    return (Call(lambda env: from_lists(env, lists, taken, role, variable, other=other)),)


def cast(env: Env) -> tuple:
    """Names one more character, until there are enough."""
    people, last = env.get("people", ()), env["things"]
    if len(people) > last:
        return ()
    ways = ((Word(name, "name (new)"), Bind("people", (*people, name))) for name in NAMES if name not in people)
    between = parse(" and ") if len(people) == last else parse(", ") if people else ()
    new = (*one_new(NEW_NAMES, people, "name (new)", "who"), JOINED)
    return (*between, perhaps_new(env, new, (any_of(*ways),)), Call(cast))


def set_out(env: Env) -> tuple:
    """Says who has one more thing, until there are enough."""
    held = env.get("held", {})
    if len(held) == env["things"]:
        return ()
    nouns = [noun for noun in THING_ROWS if noun not in held and " " not in noun]
    ways, share = [], env.get("new words", 0.0)
    for person in env["people"]:
        if person in held.values():
            continue
        has_a = (LINE, Word(person, "name"), *parse(" has a "))
        own = [noun for noun in nouns if fits(env, person, noun)]
        new = 1.0 if share and not own else share
        own = own or nouns
        if new:
            what = one_new(NEW_THINGS, held, "thing (new)", "noun", other=person)
            ways.append((new, (*has_a, *what, Mark("."), Call(functools.partial(now_owns, person)))))
        for noun in own if new < 1 else ():
            nodes = (*has_a, Word(noun, "thing (new)"), Mark("."))
            ways.append(((1 - new) / len(own), (*nodes, Bind("held", held | {noun: person}))))
    return (Choice(tuple(ways)), Call(set_out))


def now_owns(person: str, env: Env) -> tuple:
    """Somebody has the thing that has just been named."""
    return (Bind("held", env.get("held", {}) | {env["noun"]: person}),)


@functools.cache
def place_words(noun: str, role: str) -> tuple:
    """ "in the barn": the noun has the role."""
    return (*parse(f"{WAYS_THERE[noun]} the "), Word(noun, role))


def places(env: Env) -> list[tuple[float, str]]:
    """The places of an account, with the weight of each for one of three verbs."""
    share = env.get("new words", 0.0)
    some = [(1 / 3 / len(PLACE_ROWS) * (1 - share), place) for place in PLACE_ROWS]
    some += [(share / 3 / len(phrasing.ROOMS), place) for place in phrasing.ROOMS]
    return [(p, place) for p, place in some if p]


def move(env: Env) -> tuple:
    """One move and then the next, at last the questions; if there are none, all their answers at the end, and one
    answer after each move with probability env["tell"], 1 unless given. With env["news"], what has been told is told
    again only when it has changed: it could be copied from there.
    """
    left, held, people = env["left"], env["held"], env["people"]
    if not env["questions"] and env.get("told") != left:
        known = env.get("known", {}) if env.get("news") else {}
        nouns, tell = [noun for noun in held if known.get(noun) != held[noun]], env.get("tell", 1.0) if left else 1.0
        orders = itertools.permutations(nouns, min(len(nouns), 1) if left else len(nouns))
        some = (any_of(*((*facts_told(env, order), *sometimes_compared(env, order[-1:])) for order in orders)),)
        return (Choice(tuple((p, x) for p, x in ((tell, some), (1 - tell, ())) if p)), Bind("told", left), Call(move))
    if not left:
        more = (0.1, 0.3, 0.6) if env.get("handed on") else (0.2, 0.8)
        return few_questions(env, whereabouts, lambda one: (few(one, *more),)) if env["questions"] else ()
    ways = []
    for noun, holder in held.items():
        thing = (*parse(" the "), Word(noun, "thing"))
        if holder in people:
            for other in people:
                if other == holder or not (fits(env, other, noun) or env.get("split") == "held out"):
                    continue
                if env.get("handed on"):
                    ways.append((1, handed_over(holder, noun, other), noun, other))
                else:
                    gave = (Word(holder, "name"), Mark(" "), Word("gave"), *thing, *parse(" to "), Word(other, "name"))
                    ways.append((0.5, gave, noun, other))
            for verb in () if env.get("handed on") else ("put", "left", "lost"):
                for p, place in places(env):
                    put = functools.partial(put_down, holder, verb, noun, place)
                    ways.append((p, (Call(put),), noun, place))
        else:
            takers = [p for p in people if fits(env, p, noun) or env.get("split") == "held out"] or people
            for verb in ("took", "found"):
                for taker in takers:
                    took = (Word(taker, "name"), Mark(" "), Word(verb), *thing)
                    where = (Mark(" "), *place_words(holder, "place"))
                    ways.append((0.5 / len(takers), (*took, *(where if verb == "found" else ())), noun, taker))
    if not ways:  # the split has nobody whom a thing may go to
        return (Bind("left", 0), Call(move))
    made = ((weight, (LINE, *nodes, Mark("."), Bind("to", (noun, to)))) for weight, nodes, noun, to in ways)

    def moved(env: Env) -> tuple:
        noun, to = env["to"]
        seen = (Bind("seen", (*env.get("seen", ()), to)),) if to in WAYS_THERE else ()
        return (*seen, Bind("held", held | {noun: to}), Bind("left", left - 1), Call(move))

    return (Choice(tuple(made)), Call(moved))


@functools.lru_cache(1 << 12)
def handed_over(giver: str, noun: str, taker: str) -> tuple:
    """A thing changes hands, in one of several ways to say it."""
    what = (*parse("the "), Word(noun, "thing"))
    giver, taker = (Word(giver, "name"),), (Word(taker, "name"),)
    return (any_of(*(fill(form, giver=giver, taker=taker, what=what) for form in HANDOVERS)),)


def fill(form: str, **parts: tuple) -> tuple:
    """A line's nodes, with these nodes for what stands in braces."""
    return sum((parts[part[1:-1]] if part[:1] == "{" else parse(part) for part in re.split(r"(\{\w+\})", form)), ())


def put_down(holder: str, verb: str, noun: str, place: str, env: Env) -> tuple:
    """Someone leaves what they hold in a place."""
    who, what = (Word(holder, "name"), Mark(" "), Word(verb)), (*parse(" the "), Word(noun, "thing"))
    return (*who, *what, Mark(" "), *place_words(place, "place (new)"))


def facts_told(env: Env, nouns: tuple[str, ...]) -> tuple:
    """Sentences that say where things are, and that this is known now."""
    known = env.get("known", {}) | {noun: env["held"][noun] for noun in nouns}
    return (*itertools.chain(*((*fact(env, noun), Mark(".")) for noun in nouns)), Bind("known", known))


def fact(env: Env, noun: str) -> tuple:
    """A sentence that says where a thing is, but for the full stop."""
    holder = env["held"][noun]
    at = "with " if holder in env["people"] else f"{WAYS_THERE[holder]} the "
    the = (Word("the", "template"), Mark(" "), Word(noun, "thing"), Mark(" "))
    return (LINE, *the, Word("is", "template"), *parse(f" {at}"), Word(holder, "answer"))


def compared(env: Env, noun: str) -> list[tuple[tuple, tuple]]:
    """Two questions about where a thing is that name somebody or a place, with answers: one is Yes, the other No."""
    holder, thing = env["held"][noun], Word(noun, "thing")
    people = [person for person in env["people"] if person != holder]
    has = (*parse(" have the "), thing, *parse(" now?"))
    another = (LINE, *parse("does "), any_of(*((Word(person, "name"),) for person in people)), *has)
    told = fact(env, noun)
    if holder in env["people"]:
        return [((LINE, *parse("does "), Word(holder, "name"), *has), (*told, *SO_YES)), (another, (*told, *SO_NO))]
    places = dict.fromkeys(place for place in env.get("seen", ()) if place != holder)
    places = list(places or (place for place in PLACE_ROWS if place != holder))

    def lies(*places: str) -> tuple:
        where = any_of(*(place_words(place, "place") for place in places))
        return (LINE, *parse("is the "), thing, Mark(" "), where, *parse(" now?"))

    return [(lies(holder), (*told, *SO_YES)), ((any_of(lies(*places), another),), (*told, *SO_NO))]


def sometimes_compared(env: Env, nouns: tuple[str, ...]) -> tuple:
    """For one of the things perhaps one question that asks for Yes or No, with its answer."""
    share, ways = env.get("yes or no", YES_OR_NO), [q + a for noun in nouns for q, a in compared(env, noun)]
    return (Choice(tuple((p, x) for p, x in ((share, (any_of(*ways),)), (1 - share, ())) if p)),) if ways else ()


def whereabouts(env: Env) -> list[tuple]:
    """The questions about the things of the account; each thing is asked for once."""
    done, ways = env.get("asked", ()), []
    for noun, holder in env["held"].items():
        if noun not in done:
            bind = Bind("asked", (*done, noun))
            asking = "who has the " if holder in env["people"] else "where is the "
            question = (LINE, *parse(asking), Word(noun, "thing"), *parse(" now?"))
            ways.append((question, (*fact(env, noun), Mark(".")), bind, False))
            ways += [(*pair, bind, True) for pair in compared(env, noun)]
    return ways


def one_of(env: Env, ways: list[tuple], tell: Callable[[tuple, tuple], tuple]) -> Choice:
    """One of these questions and its answer, told so: ways are as `few_questions` has them."""
    return weighed(env, [way[3] for way in ways], ((*tell(q, a), bind) for q, a, bind, _ in ways))


def first_exchange(question: tuple, answer: tuple) -> tuple:
    """As `exchange`, but the user's message has begun already."""
    return (*question, Word("<|im_end|>"), BREAK, *turn("assistant", *answer))


def few_questions(env: Env, ways: Callable[[Env], list[tuple]], more: Callable[[tuple], tuple]) -> tuple:
    """The first question belongs to the message with the text, the others are messages of their own.

    ways: the questions that can be asked now, each with its answer, with what it changes, and whether it compares;
    more: repeats the nodes of one more.
    """

    def again(env: Env) -> tuple:
        left = ways(env)
        return (one_of(env, left, lambda q, a: (BREAK, *exchange(q, a))),) if left else ()

    return (Mark("\n\n"), one_of(env, ways(env), first_exchange), *more((Call(again),)))


LINE_OF_CAST = (LINE, Call(cast), *parse(" are friends."), Call(set_out))
ACCOUNT = (Word("<|im_start|>"), Word("user"), Mark("\n"), Call(account))
HANDING_ON = (Bind("handed on", True), *ACCOUNT)


# Who is who.

GUESTS = 6


def meeting(env: Env) -> tuple:
    """A day, env["guests"] characters with a thing each, or 2 to GUESTS of them, and questions about all of that.

    If there are no questions, their answers alone, env["rounds"] times, in another order each time. Names, kinds and
    things are new words as often as env["new words"] says (see `perhaps_new`).
    """
    count = env.get("guests")
    counts = range(2, env.get("most guests", GUESTS) + 1) if count is None else (count,)
    day = ("It was a {sky}.", "One {sky}, some friends met.", "On a {sky}, some friends met.")
    begin = (Word("<|im_start|>"), Word("user"), Mark("\n"), *line(*day))
    return (*begin, perhaps_bare(env), any_of(*((Bind("guests left", n),) for n in counts)), Call(guest))


def guest(env: Env) -> tuple:
    """One more character, until there are enough; then the questions."""
    present, left = env.get("present", ()), env["guests left"]
    if not left and env["questions"]:
        return few_questions(env, particulars, lambda one: (questions(one, 0.2, 0.3, 0.3, 0.2),))
    if not left:
        return (Call(answers_alone),) * env.get("rounds", 1)

    def arrived(env: Env) -> tuple:
        one = {"name": env["guest"], "kind": env["guest kind"], "like": env["guest thing"], "noun": env["guest noun"]}
        return (Bind("present", (*present, one)), Bind("guests left", left - 1), Call(guest))

    return (ARRIVAL, Call(arrived))


def guest_kind(env: Env) -> tuple:
    """What a guest is."""
    plain = any_of(*((Word(kind, "kind (new)"), Bind("guest kind", kind)) for kind in (*ANIMALS, *PEOPLE)))
    return (perhaps_new(env, one_new(NEW_KINDS, (), "kind (new)", "guest kind"), (plain,)),)


def guest_name(env: Env) -> tuple:
    """The name of someone whose kind is known; nobody else has it."""
    kind, taken = env["guest kind"], [one["name"] for one in env.get("present", ())]
    he = [FIXED[kind]] if kind in FIXED else ["she", "he"]
    names = (name for x in he for name in names_of(kind, x) if name not in taken)
    plain = any_of(*((Word(name, "name (new)"), Bind("guest", name)) for name in names))
    lists = new_names_suiting(FIXED.get(kind, ""))
    return (perhaps_new(env, one_new(lists, taken, "name (new)", "guest"), (plain,)),)


def guest_he(env: Env) -> tuple:
    """She or he, by the guest's name; a name that tells neither again."""
    he = pronoun(env["guest"])
    return (Word(he, "pronoun") if he else Word(env["guest"], "name"),)


def guest_thing(env: Env) -> tuple:
    """A thing that the guest may have, and nobody else has."""
    taken = [one["noun"] for one in env.get("present", ())]
    others = [noun for noun in THING_ROWS if " " not in noun and noun not in taken]
    own = [noun for noun in others if fits(env, env["guest"], noun)]
    nouns = own or ([] if env.get("new words") else others)
    plain = any_of(*(described(noun) for noun in nouns))
    what = one_new(NEW_THINGS, taken, "thing (new)", "guest noun", other=env["guest"])
    new = (*parse("a "), adjective_of(phrasing.ANY_THING[0]), Mark(" "), *what)
    return (perhaps_new(env, new, (plain,)),) if nouns else new


@functools.cache
def described(noun: str) -> tuple:
    """ "a red kite", whatever the adjective."""
    what = (Word(noun, "thing (new)"), Bind("guest noun", noun))
    return (*parse("a "), adjective_of(THING_ROWS[noun][1]), Mark(" "), *what)


@functools.cache
def adjective_of(likes: str) -> Choice:
    """What a guest's thing is like: one of these words."""
    return any_of(*((Word(like, "adjective (new)"), Bind("guest thing", like)) for like in likes.split()))


TRAIT = Choice(((0.5, parse(f"[{'|'.join(TRAITS)}] ")), (0.5, ())))
WHO = (*parse("a "), TRAIT, Call(guest_kind), *parse(" named "), Call(guest_name))
ARRIVAL = any_of(
    (LINE, *WHO, *parse(" had "), Call(guest_thing), Mark(".")),
    (LINE, *parse("then came "), *WHO, *parse(" with "), Call(guest_thing), Mark(".")),
    (
        LINE,
        *parse("[then|there] came "),
        *WHO,
        *parse(", and "),
        Call(guest_he),
        *parse(" had "),
        Call(guest_thing),
        Mark("."),
    ),
    (LINE, *WHO, *parse(" came. "), LINE, Call(guest_he), *parse(" [had|brought] "), Call(guest_thing), Mark(".")),
)


def answers_alone(env: Env) -> tuple:
    """One more answer without its question, or a question that compares with its answer, until all have been told."""
    ways = particulars(env)
    if not any(not compare for *_, compare in ways):
        return (Bind("asked", ()),)
    told = ((*(q if compare else ()), *a, bind, Call(answers_alone)) for q, a, bind, compare in ways)
    return (weighed(env, [compare for *_, compare in ways], told),)


def particulars(env: Env) -> list[tuple]:
    """Questions about who is who and what the day and the things were like; none twice, nor one and its opposite."""
    weather = (Bind("role", "answer"), *line("It was a {sky}."), Bind("role", None))
    done, pairs, compared = env.get("asked", ()), [(line("What was the weather like at the start?"), weather)], []
    for one in env["present"]:
        name, noun, like, kind = (Word(one[key], "answer") for key in ("name", "noun", "like", "kind"))
        the = (*line("The "), noun)
        compared += [(number, q, a) for number, q, a in who_and_what(env, one) if number not in done]
        pairs.append((line(f"Who is {name.text}?"), (LINE, name, *parse(" is a "), kind, Mark("."))))
        pairs.append((line(f"Who has the {noun.text} now?"), (*the, *parse(" is with "), name, Mark("."))))
        pairs.append((line(f"What was the {noun.text} like?"), (*the, *parse(" was a "), like, *parse(" one."))))
    asked = [(number, q, a, False) for number, (q, a) in enumerate(pairs) if number not in done]
    asked += [(*way, True) for way in compared]
    return [(q, a, Bind("asked", (*done, number)), compare) for number, q, a, compare in asked]


def who_and_what(env: Env, one: dict) -> list[tuple]:
    """Two pairs of questions about a guest that ask for Yes or No, with answers; each pair has a name of its own."""
    others, ways = [other for other in env["present"] if other is not one], []
    name, noun = one["name"], one["noun"]
    is_a = (LINE, Word(name, "answer"), *parse(" is a "), Word(one["kind"], "answer"))
    is_with = (*line("The "), Word(noun, "answer"), *parse(" is with "), Word(name, "answer"))
    for so, names, kinds in (
        (SO_YES, [name], [one["kind"]]),
        (SO_NO, [o["name"] for o in others], [o["kind"] for o in others if o["kind"] != one["kind"]]),
    ):
        if kinds:
            kind = any_of(*((Word(kind, "kind"),) for kind in kinds))
            question = (*line(f"Is {name} "), *parse("a "), kind, Mark("?"))
            ways.append((f"{name} is", question, (*is_a, *so)))
        who = any_of(*((Word(who, "name"),) for who in names))
        question = (*line("Does "), who, *parse(f" have the {noun} now?"))
        ways.append((f"has {noun}", question, (*is_with, *so)))
    return ways


# Phone books.

ENTRIES = 32


def book(env: Env) -> tuple:
    """A phone book and questions: as many entries as env["entries"], or 2 to ENTRIES, short books more often.

    Each entry is asked for env["rounds"] times, at most 12 in all; if there are no questions, told again so often.
    Names are new words as often as env["new words in books"] says, 0 unless given.
    """
    count = env.get("entries")
    counts = [(1 / n, n) for n in range(2, env.get("most entries", ENTRIES) + 1)] if count is None else [(1, count)]
    ways = (
        (weight, (Bind("entries", n), Bind("to ask", min(n * env.get("rounds", 1), 12)), Call(entry)))
        for weight, n in counts
    )
    begin = (Word("<|im_start|>"), Word("user"), *parse("\nPhone book:"))
    return (*begin, perhaps_bare(env), Choice(tuple(ways)))


def entry(env: Env) -> tuple:
    """One more entry, until there are enough; then the first question."""
    listed = env.get("book", {})
    if len(listed) == env["entries"]:
        return (*((Mark("\n\n"),) if env["questions"] else ()), Call(numbers_asked))
    ways = [(Word(name, "name (new)"), Bind("name", name)) for name in NAMES if name not in listed]
    new = one_new(NEW_NAMES, listed, "name (new)", "name")
    name = either_way(env.get("new words in books", 0.0), new, (any_of(*ways),))
    return (BREAK, *parse("- "), name, *parse(": "), Bind("digits", ""), Call(digit))


def digit(env: Env) -> tuple:
    """One more digit of a number."""
    if len(env["digits"]) == 4:
        return (Bind("book", env.get("book", {}) | {env["name"]: env["digits"]}), Call(entry))
    return (next_digit(env.get("split"), env["name"], env["digits"]), Call(digit))


@functools.lru_cache(1 << 15)
def next_digit(part: str | None, name: str, digits: str, length: int = 4) -> Choice:
    """The ten digits, as often as each leads to a number whose last two digits may belong to the name."""
    env, ways = Env({"split": part} if part else {}), []
    for last in "0123456789":
        more = digits + last
        left = length - len(more)
        ends = [""] if left > 1 else [last + other for other in "0123456789"] if left else [more[-2:]]
        if weight := sum(fits(env, name, end) for end in ends):
            ways.append((weight, (Word(last, "number (new)"), Bind("digits", more))))
    return Choice(tuple(ways))


def numbers_asked(env: Env) -> tuple:
    """One more question, for one number or several, and then another, until enough have been asked for."""
    asked = env.get("asked", ())
    left, told = env["to ask"] - len(asked), len(asked) % env["entries"]
    if not left:
        return ()
    if not env["questions"]:
        names = [name for name in env["book"] if name not in asked[len(asked) - told :]]
        ways = [(*lines_of(env, (name,), "name (asked)"), Bind("asked", (*asked, name))) for name in names]
        return (any_of(*ways), Call(numbers_asked))
    single, most = env.get("single questions", 0.5), min(left, env["entries"] - told, 6)
    ways = [(single if count == 1 else (1 - single) / 5, count) for count in range(1, most + 1)]
    first = (BREAK, Word("<|im_start|>"), Word("user"), BREAK) if asked else ()
    ways = [(p, (*first, Bind("names left", count), Bind("now", ()), Call(name_asked))) for p, count in ways]
    return (Choice(tuple(ways)),)


def lines_of(env: Env, names: tuple[str, ...], role: str) -> list:
    """A line for each name, with its number as the phone book has it."""
    lines = []
    for name in names:
        digits = (Word(digit, "answer") for digit in env["book"][name])
        lines += [BREAK, *parse("- "), Word(name, role), *parse(": "), *digits]
    return lines


def name_asked(env: Env) -> tuple:
    """One more name of a question; the answer, when the question is complete."""
    now, left, asked = env["now"], env["names left"], env.get("asked", ())
    if not left:
        answer = turn("assistant", *lines_of(env, now, "name (copied)")[1:])
        return (Mark("?"), Word("<|im_end|>"), BREAK, *answer, Bind("asked", (*asked, *now)), Call(numbers_asked))
    if now:
        before = parse(" and ") if left == 1 else parse(", ")
    else:
        before = line("What is the number of " if left == 1 else "What are the numbers of ")
    this_round = asked[len(asked) // env["entries"] * env["entries"] :]
    names = [name for name in env["book"] if name not in this_round + now]
    return (*before, any_of(*((Word(name, "name (asked)"), Bind("now", (*now, name))) for name in names)), *AND_SO_ON)


AND_SO_ON = (Call(lambda env: (Bind("names left", env["names left"] - 1), Call(name_asked))),)


# All that, as someone would say it who does not know the templates. phrasing.py has the words.

PEOPLE_TOLD, THINGS_TOLD, SENTENCES = 4, 3, 6  # in an account told so, at most
NUMBERS_TOLD = 7  # in a line, at most
MORE_YES_OR_NO = 0.45  # of the questions about such an account
# Lists of names and things with the share of each: seven in ten are from the long lists, or made up
OTHER_NAMES = ((0.4, phrasing.MORE_GIRLS + phrasing.MORE_BOYS + phrasing.EITHER), (0.3, phrasing.MADE_UP))
OTHER_THINGS = ((0.4, phrasing.MORE_THINGS), (0.3, phrasing.MADE_UP_THINGS))
WAYS_THERE = {noun: row[1] for noun, row in PLACE_ROWS.items()} | phrasing.ROOMS
PLACE_PHRASES = [f"{at} the {noun}" for noun, at in WAYS_THERE.items()]


@functools.lru_cache(1 << 12)
def sifted(listed: tuple[str, ...], other: str | int, split: str, names: bool) -> tuple[str, ...]:
    """The words that make with the other a pair of this split; the other may be a group of words of the long lists.

    names: whether the listed words are names and the other is a thing, not the other way round.
    """
    if isinstance(other, int):
        return tuple(word for word in listed if ((eighth(word) + other) % 8 == 0) == (split == "held out"))
    pairs = (((word, other) if names else (other, word)) for word in listed)
    return tuple(word for word, pair in zip(listed, pairs, strict=True) if held_out(*pair) == (split == "held out"))


@functools.cache
def word_told(word: str, role: str, variables: tuple[str, ...]) -> tuple:
    """A word, which becomes the value of these variables."""
    return (Word(word, role), *(Bind(name, word) for name in variables))


@functools.lru_cache(1 << 9)
def any_word(listed: tuple[str, ...], role: str, variables: tuple[str, ...]) -> Choice:
    """One of these words."""
    return Choice(tuple((1, word_told(word, role, variables)) for word in listed))


def from_lists(
    env: Env, lists: Iterable, taken: Iterable[str], role: str, *variables: str, other: str | None = None
) -> tuple:
    """A word from one of these lists, each with its share; none that is taken, or may not be in a pair with the other.

    Of no such word: no nodes.
    """
    ways = []
    for share, listed in lists:
        listed = tuple(listed)
        if other and "split" in env:
            half = eighth(other) if other in WIDE else other
            listed = sifted(listed, half, env["split"], role.startswith("name"))
        if any(word not in taken for word in listed):
            ways.append((share, (Call(functools.partial(from_list, listed, taken, role, variables)),)))
    return (Choice(tuple(ways)),) if ways else ()


def from_list(listed: tuple[str, ...], taken: Iterable[str], role: str, variables: tuple[str, ...], env: Env) -> tuple:
    """A word from this list that is not taken."""
    if any(word in listed for word in taken):
        return (Choice(tuple((1, word_told(word, role, variables)) for word in listed if word not in taken)),)
    return (any_word(listed, role, variables),)


def new_name(env: Env, *variables: str, fitting: str | None = None) -> tuple:
    """A name that nobody has yet, which may have that thing; it becomes the value of the variables."""
    lists = ((0.3, NAMES), *OTHER_NAMES)
    return from_lists(env, lists, env.get("people", ()), "name (new)", *variables, other=fitting)


JOINED = Call(lambda env: (Bind("people", (*env.get("people", ()), env["who"])),))


def someone(env: Env, fitting: str | None = None, giver: str | None = None) -> tuple:
    """Somebody the text has named before, or somebody new, who becomes env["who"] and may have that thing.

    With a giver, somebody else, by name.
    """
    people = env.get("people", ())
    known = [name for name in people if name != giver and fits(env, name, fitting)]
    new = new_name(env, "who", fitting=fitting) if len(people) < PEOPLE_TOLD or not known else ()
    share = 0.6 if known and new else float(bool(known))
    calls = (((Word(name, "name"),) if giver else call(env, name), name) for name in known)
    ways = [(share / len(known), (*nodes, Bind("who", name))) for nodes, name in calls]
    return (Choice((*ways, *(((1 - share, (*new, JOINED)),) if new else ()))),)


def call(env: Env, name: str) -> tuple:
    """Somebody who has been named: the name, or the pronoun of the only one in the sentence before."""
    if env.get("alone") != name or not pronoun(name):
        return (Word(name, "name"),)
    return (Choice(((0.6, (Word(name, "name"),)), (0.4, (Word(pronoun(name), "pronoun"),)))),)


def new_thing(env: Env) -> tuple:
    """A thing that has not been spoken of; the one that was asked for at the start comes first, or soon."""
    held, who, wanted = env.get("held", {}), env.get("who"), env.get("wanted")
    if wanted:
        return (Word(wanted, "thing (new)"), Bind("noun", wanted))
    pools = things_told()
    if not any(fits(env, who, noun) for _, listed in pools for noun in listed if noun not in held):
        who = None  # a name may have but one held-out thing
    return from_lists(env, pools, held, "thing (new)", "noun", other=who)


def things_told() -> tuple:
    """Lists of things, with the share of each."""
    return ((0.3, [noun for noun in THING_ROWS if " " not in noun]), *OTHER_THINGS)


def somewhere(env: Env) -> tuple:
    """A place, as a phrase."""
    phrases = ((0.5, PLACE_PHRASES), (0.5, phrasing.SPOTS))
    ways = [(w / len(all_of), (*spot(one, "place (new)"), Bind("at", one))) for w, all_of in phrases for one in all_of]
    return (Choice(tuple(ways)),)


@functools.cache
def spot(phrase: str, role: str) -> tuple:
    """ "in the barn": preposition and noun have the role."""
    at, the, noun = phrase.split()
    return (Word(at, role), *parse(f" {the} "), Word(noun, role))


def to_somewhere(env: Env) -> tuple:
    """ "to the barn"."""
    ways = ((Word(noun, "place (new)"), Bind("at", f"{at} the {noun}")) for noun, at in WAYS_THERE.items())
    return (*parse("to the "), any_of(*ways))


def it(env: Env, noun: str) -> tuple:
    """A thing that has been spoken of: "it", if it was in the sentence before."""
    the = (*parse("the "), Word(noun, "thing"))
    return (Choice(((0.5, the), (0.5, parse("it")))),) if env.get("noun") == noun and env.get("told so far") else the


def told_freely(env: Env) -> tuple:
    """A statement and then the next, at last the question."""
    held, count, wanted = env.get("held", {}), env.get("told so far", 0), env.get("wanted")
    ways = []
    if len(held) < THINGS_TOLD and (not held or wanted or count < 4):
        ways.append((1.0 if wanted and count > 2 else 0.4, (Call(introduced),)))
    if held and not (wanted and count > 2):
        ways += [(0.6 / len(held), (Call(functools.partial(moved_freely, noun)),)) for noun in held]
    stop = 0.0 if not held or wanted else 1.0 if count >= SENTENCES else 0.35 if count > 1 else 0.2
    go_on = (Choice(tuple(ways)), Mark("."), Bind("told so far", count + 1), Call(told_freely))
    then = Choice(((0.9, (LINE,)), (0.1, (*line("then"), Mark(" ")) if count else (LINE,))))
    return (either_way(1 - stop, (then, *go_on), (Call(asked_freely),)),)


def verb(*words: str) -> tuple:
    """One of these verbs, which becomes env["verb"]."""
    return (any_of(*((Word(word), Bind("verb", "hid" if word == "hidden" else word)) for word in words)),)


VERBS = {"put": verb(*phrasing.PUT), "done": verb(*phrasing.DONE), "took": verb(*phrasing.CARRIED)}


def placed_by(env: Env, who: str) -> tuple:
    """That somebody put the thing in a place."""
    at = "to the " + env["at"].split()[-1] if env["verb"] in phrasing.CARRIED else env["at"]
    return now(env, env["at"], who, (who, env["verb"], at))


def passed_by(env: Env, who: str, told: bool = True) -> tuple:
    """That somebody gave the thing away; told: in these words."""
    return now(env, env["who"], None, (who, "gave" if told else "got", env["who"]))


def now(env: Env, to: str, alone: str | None = None, act: tuple[str, str, str] = ("", "", "")) -> tuple:
    """The thing has come there; who was named alone may be a pronoun in the next sentence.

    act: who did what with it, "gave" it to whom or put it where; "got" if the words are the taker's, "" if only
    fetched.
    """
    noun = env["noun"]
    known = Bind("wanted", None if env.get("wanted") == noun else env.get("wanted"))
    seen = () if to in env.get("people", ()) else (Bind("seen", (*env.get("seen", ()), to)),)
    acts = Bind("acts", (*env.get("acts", ()), (noun, act)))
    return (*seen, Bind("held", env.get("held", {}) | {noun: to}), known, Bind("alone", alone), acts)


def introduced(env: Env) -> tuple:
    """A thing comes in: somebody has it, or it lies somewhere."""
    wanted = env.get("wanted")
    what, at = (Call(new_thing),), (Call(somewhere),)
    whom = (Call(lambda env: (Bind("giver", env["who"]), *someone(env, later(env, env["noun"]), giver=env["who"]))),)

    def lies(env: Env) -> tuple:
        return now(env, env["at"])

    def lies_by(env: Env) -> tuple:
        return placed_by(env, env["who"])

    def has_been_given(env: Env) -> tuple:
        return passed_by(env, env["giver"])

    ways = [(0.6 / len(phrasing.TAKEN), form, has_it) for form in phrasing.TAKEN]
    ways += [(0.1, phrasing.AND_PLACED, lies_by), (0.08, phrasing.AND_GIVEN, has_been_given)]
    ways += [(0.12, phrasing.PLACED[-1], lies_by)]
    parts = {"who": (), "what": what, "at": at, "whom": whom} | VERBS
    by_someone = ((p, (*fill(form, **parts), Call(then))) for p, form, then in ways)
    by_itself = (Bind("who", None), any_of(*(fill(form, what=what, at=at) for form in phrasing.LYING)), Call(lies))
    return (either_way(0.9, (Call(lambda env: someone(env, wanted)), Choice(tuple(by_someone))), by_itself),)


def later(env: Env, noun: str) -> str | None:
    """What those must fit who get the thing later: nothing in held-out documents, where its first holder does."""
    return None if env.get("split") == "held out" else noun


def has_it(env: Env) -> tuple:
    """Somebody has the thing now."""
    return now(env, env["who"], env["who"], (env["who"], "", ""))


def moved_freely(noun: str, env: Env) -> tuple:
    """The thing, of which the text has spoken, goes from hand to hand, or to a place, or from there to somebody."""
    holder, bound = env["held"][noun], Bind("noun", noun)
    parts = {"what": (Word(noun, "thing"),), "it": (Call(lambda env: it(env, noun)),)} | VERBS
    if holder in env.get("people", ()):
        who, known = (Call(lambda env: call(env, holder)),), (Word(holder, "name"),)
        whom = (Call(lambda env: someone(env, later(env, noun), giver=holder)),)
        given = [fill(form, who=who, whom=whom, **parts) for form in phrasing.GIVEN]
        received = [fill(form, who=known, whom=whom, **parts) for form in phrasing.RECEIVED]
        placed = [fill(form, who=who, at=(Call(somewhere),), **parts) for form in phrasing.PLACED]
        placed += [fill(form, who=who, to=(Call(to_somewhere),), **parts) for form in phrasing.BROUGHT]
        placed = (any_of(*placed), bound, Call(lambda env: placed_by(env, holder)))
        given = (any_of(*given), bound, Call(lambda env: passed_by(env, holder)))
        received = (any_of(*received), bound, Call(lambda env: passed_by(env, holder, told=False)))
        return (Choice(((0.5, placed), (0.35, given), (0.15, received))),)
    who = (Call(lambda env: someone(env, later(env, noun))),)
    at = spot(holder, "place")
    parts |= {"at": at, "from": (*parse("from the "), at[-1])}
    forms = phrasing.FETCHED * 2 + phrasing.FETCHED_THERE + (phrasing.FETCHED_FROM if holder in PLACE_PHRASES else [])
    return (any_of(*(fill(form, who=who, **parts) for form in forms)), bound, Call(has_it))


def where_it_is(env: Env, noun: str, end: tuple = (Mark("."),)) -> tuple:
    """The answer to every question where a thing is; `end` is the full stop, or more."""
    holder, the = env["held"][noun], (LINE, *parse("the "), Word(noun, "thing"), *parse(" is "))
    at = (*parse("with "), Word(holder, "answer")) if holder in env.get("people", ()) else spot(holder, "answer")
    return (*the, *at, *end)


def put_so(form: str, **parts: tuple) -> tuple:
    """A question as the form has it, or without the mark at its end."""
    return (either_way(0.7, (LINE, *fill(form, **parts)), (LINE, *fill(form.rstrip("?."), **parts))),)


def questions_about_acts(env: Env, noun: str) -> list[tuple[tuple, tuple]]:
    """What somebody did last with a thing, if the account has but one answer to that: questions and answers."""
    acts = [act for about, act in env.get("acts", ()) if about == noun]
    if acts[-1][1] in ("", "got"):
        return []
    (who, did, where), what = acts[-1], (Word(noun, "thing"),)
    names = {"who": (Word(who, "name (asked)"),), "whom": (Word(where, "name (asked)"),), "what": what}
    the, forms = (*parse(" the "), *what), []
    if [actor for actor, verb, _ in acts if verb].count(who) == 1:
        forms.append(phrasing.DID_WITH)
    if did == "gave":
        gave = [(giver, taker) for giver, verb, taker in acts if verb in ("got", "gave")]
        if [taker for _, taker in gave].count(where) == 1:
            forms.append(phrasing.WHO_GAVE)
        if [giver for giver, _ in gave].count(who) == 1:
            forms.append(phrasing.GAVE_TO_WHOM)
        answer = (Word(who, "answer"), *parse(" gave"), *the, *parse(" to "), Word(where, "answer"), Mark("."))
    else:
        answer = (Word(who, "answer"), Mark(" "), Word(did, "answer"), *the, Mark(" "), *spot(where, "answer"))
        answer = (*answer, Mark("."))
    return [((any_of(*(put_so(form, **names) for form in some)),), (LINE, *answer)) for some in forms]


def free_questions(env: Env) -> list[tuple]:
    """Questions and answers as `few_questions` has them; each thing is asked for once."""
    done, people, ways = env.get("asked", ()), env.get("people", ()), []
    for noun, holder in env["held"].items():
        if noun in done:
            continue
        bind, what = any_of((Bind("asked", (*done, noun)), Bind("asked where", False))), Word(noun, "thing")
        where = any_of((Bind("asked", (*done, noun)), Bind("asked where", True)))
        forms = phrasing.AND_WHERE * 6 if done and env.get("asked where", True) else []
        forms = forms + (phrasing.WHO_HAS if holder in people else []) + phrasing.WHERE_IS
        question = any_of(*(put_so(form, what=(what,)) for form in forms))
        ways += [((question,), where_it_is(env, noun), where, False)] * 2
        ways += [(q, a, bind, False) for q, a in questions_about_acts(env, noun)] * 2
        if holder in people and list(env["held"].values()).count(holder) == 1:
            who = (Word(holder, "name (asked)"),)
            question = any_of(*(put_so(form, who=who) for form in phrasing.HAS_WHAT))
            answer = (LINE, Word(holder, "name (copied)"), *parse(" has the "), Word(noun, "answer"), Mark("."))
            ways.append(((question,), answer, bind, False))
        has = (*parse(" have the "), what, *parse("[ now|][?|?|]"))
        does, others = (LINE, *parse("does ")), [(Word(name, "name"),) for name in people if name != holder]
        is_it = (LINE, *parse("is the "), what, Mark(" "))
        others = others or [(Word(name, "name (new)"),) for name in NAMES if name not in people]
        if holder in people:
            ways.append(((*does, Word(holder, "name"), *has), where_it_is(env, noun, SO_YES), bind, True))
            ways.append(((*does, any_of(*others), *has), where_it_is(env, noun, SO_NO), bind, True))
        else:
            places = {place for place in env.get("seen", ()) if place != holder} or set(PLACE_PHRASES) - {holder}
            at = any_of(*(spot(place, "place") for place in sorted(places)))
            asked = (*is_it, *spot(holder, "place"), *parse("[ now|][?|?|]"))
            ways.append((asked, where_it_is(env, noun, SO_YES), bind, True))
            other = [(*is_it, at, *parse("[ now|][?|?|]")), (*does, any_of(*others), *has)]
            ways.append(((any_of(*other),), where_it_is(env, noun, SO_NO), bind, True))
            question = any_of(*(put_so(form, what=(what,)) for form in phrasing.WHO_HAS))
            nobody = (LINE, Word("nobody", "answer"), *parse(" has it."), *where_it_is(env, noun))
            ways.append(((question,), nobody, bind, True))
    return ways


def asked_freely(env: Env) -> tuple:
    """The question at the end, if none was at the start; then the answer, and perhaps another question."""

    def again(env: Env) -> tuple:
        left = free_questions(env)
        return (one_of(env, left, lambda q, a: (BREAK, *exchange(q, a))),) if left else ()

    more = few((Call(again),), 0.55, 0.3, 0.15)
    if noun := env.get("first asked"):
        end = (Word("<|im_end|>"), BREAK, *turn("assistant", *where_it_is(env, noun)), Bind("asked", (noun,)))
        return (*end, more)
    between = Choice(((0.7, ()), (0.15, (BREAK,)), (0.15, (Mark("\n\n"),))))
    here = (between, one_of(env, free_questions(env), first_exchange), more)
    noted = (Word("<|im_end|>"), BREAK, *turn("assistant", *line(phrasing.REMEMBERED)), BREAK, *turn("user")[:-2])
    return (either_way(0.85, here, (*noted, one_of(env, free_questions(env), first_exchange), more)),)


def asked_first(env: Env) -> tuple:
    """The question before the statements."""
    what = from_lists(env, things_told(), (), "thing (new)", "wanted", "first asked")
    forms = [form for form in phrasing.WHERE_IS if "looking" not in form]
    return (any_of(*((LINE, *fill(form, what=what)) for form in forms)), Call(told_freely))


def walked(env: Env) -> tuple:
    """Where people go, and the question where one of them is."""
    count, where = env.get("walks", 0), env.get("where", {})
    stop = 1.0 if count >= SENTENCES else 0.4 if count > 1 else 0.1 * count
    to = any_of(*((Word(n, "place (new)"), Bind("at", f"{at} the {n}")) for n, at in WAYS_THERE.items()))
    went, stands = fill(phrasing.WALKED, where=(to,)), fill(phrasing.STANDS, at=(Call(somewhere),))
    goes = Call(lambda env: went if env["who"] in where else (Choice(((0.7, went), (0.3, stands))),))

    def arrived(env: Env) -> tuple:
        return (Bind("where", where | {env["who"]: env["at"]}), Bind("alone", env["who"]), Bind("walks", count + 1))

    go_on = (LINE, Call(someone), goes, Mark("."), Call(arrived), Call(walked))
    ways = []
    for name, at in where.items():
        answer = (LINE, Word(name, "name (copied)"), *parse(" is "), *spot(at, "answer"), Mark("."))
        question = any_of(*(put_so(form, who=(Word(name, "name (asked)"),)) for form in phrasing.WHERE_WHO))
        ways.append(first_exchange((question,), answer))
    return (either_way(1 - stop, go_on, (any_of(*ways),)),)


def presented(env: Env) -> tuple:
    """Who is a fox and who a baker, one sentence for each, and questions about it."""
    kinds = env.get("kinds", {})
    count = len(kinds)
    stop = 1.0 if count >= PEOPLE_TOLD else 0.4 if count > 1 else 0.15 * count

    def known(env: Env) -> tuple:
        people = (*env.get("people", ()), env["who"])
        return (Bind("kinds", kinds | {env["who"]: env["kind"]}), Bind("people", people), Call(presented))

    def again(env: Env) -> tuple:
        left = who_is_who(env)
        return (one_of(env, left, lambda q, a: (BREAK, *exchange(q, a))),) if left else ()

    def first(env: Env) -> tuple:
        return (one_of(env, who_is_who(env), first_exchange), few((Call(again),), 0.5, 0.3, 0.2))

    more = (LINE, *new_name(env, "who"), *parse(" is a "), Call(new_kind), Mark("."), Call(known))
    return (either_way(1 - stop, more, (Call(first),)),)


def new_kind(env: Env) -> tuple:
    """What somebody is, and nobody else in this text; kings are he."""
    he, taken = pronoun(env["who"]), env.get("kinds", {}).values()
    return from_lists(env, kinds_of(he), tuple(taken), "kind (new)", "kind")


@functools.cache
def kinds_of(he: str) -> tuple:
    """Lists of kinds, with the share of each: those that may have this pronoun; all for ""."""
    lists = ((0.4, (*ANIMALS, *PEOPLE)), (0.6, phrasing.MORE_KINDS))
    return tuple((p, tuple(kind for kind in kinds if not he or FIXED.get(kind, he) == he)) for p, kinds in lists)


def who_is_who(env: Env) -> list[tuple]:
    """Questions and answers as `few_questions` has them; each person is asked for once."""
    done, ways = env.get("asked", ()), []
    for name, kind in env["kinds"].items():
        if name in done:
            continue
        bind, who, a_kind = Bind("asked", (*done, name)), (Word(name, "name (asked)"),), Word(kind, "kind")
        is_a = (LINE, Word(name, "name (copied)"), *parse(" is a "), Word(kind, "answer"))
        the_one = (*line("The "), a_kind, *parse(" is "), Word(name, "answer"), Mark("."))
        question = any_of(*(put_so(form, who=who) for form in phrasing.WHO_IS))
        ways.append(((question,), (*is_a, Mark(".")), bind, False))
        question = any_of(*(put_so(form, kind=(a_kind,)) for form in phrasing.WHO_IS_THE))
        ways.append(((question,), the_one, bind, False))
        others = [other for other in env["kinds"].values() if other != kind]
        others = others or [other for other in (*ANIMALS, *PEOPLE) if other != kind]
        is_it = (LINE, *parse("is "), *who, *parse(" a "))
        ways.append(((*is_it, a_kind, Mark("?")), (*is_a, *SO_YES), bind, True))
        another = any_of(*((Word(other, "kind"),) for other in others))
        ways.append(((*is_it, another, Mark("?")), (*is_a, *SO_NO), bind, True))
    return ways


# Numbers told in a line.


def numbers_told(env: Env) -> tuple:
    """One entry more of a phone book that is told in a line, or the question."""
    lead, first, other, between, last = env["style"]
    listed, ended = env.get("numbers", {}), env.get("ended")
    if ended:
        return (Mark("."), Call(number_asked), few((Call(number_asked),), 0.5, 0.3, 0.2))
    who = (*new_name(env, "name"), Bind("digits", ""))
    one = (*fill(other if listed else first, who=who), Call(digit_told))
    if not listed:
        return (LINE, *parse(lead), *one)

    def next_one(mark: str, ended: bool) -> tuple:
        nodes = (Mark("."), LINE) if mark == ". " else parse(mark)
        return (*nodes, Bind("ended", ended), *one)

    return (either_way(0.6 if len(listed) + 1 < NUMBERS_TOLD else 0.0, next_one(between, False), next_one(last, True)),)


def digit_told(env: Env) -> tuple:
    """One more digit of a number told in a line; all numbers of the text are as long."""
    if "length" not in env:
        return (LENGTHS, Call(digit_told))
    name, digits, length = env["name"], env["digits"], env["length"]
    if len(digits) < length:
        return (next_digit(env.get("split"), name, digits, length), Call(digit_told))
    people = (*env.get("people", ()), name)
    return (Bind("numbers", env.get("numbers", {}) | {name: digits}), Bind("people", people), Call(numbers_told))


def number_asked(env: Env) -> tuple:
    """One question for a number and its answer; the first belongs to the message with the numbers."""
    done, ways = env.get("asked", ()), []
    for name, digits in env["numbers"].items():
        if name not in done:
            forms = phrasing.NUMBER_OF + (phrasing.AND_NUMBER_OF if done else [])
            q = any_of(*((LINE, *fill(form, who=(Word(name, "name (asked)"),))) for form in forms))
            number = (Word(digit, "answer") for digit in digits)
            answer = (LINE, Word(name, "name (copied)"), *parse("'s number is "), *number, Mark("."))
            told = first_exchange((q,), answer) if not done else (BREAK, *exchange((q,), answer))
            ways.append((*told, Bind("asked", (*done, name))))
    return (any_of(*ways),) if ways else ()


STYLES = any_of(*((Bind("style", style),) for style in phrasing.NUMBERS))
LENGTHS = Choice(tuple((w, (Bind("length", n),)) for w, n in ((0.1, 3), (0.6, 4), (0.1, 5), (0.1, 6), (0.1, 7))))
USER = (Word("<|im_start|>"), Word("user"), Mark("\n"))


# What needs no text before it.


def careless(text: str) -> tuple:
    """A line as it is, or in small letters and without the mark at its end."""
    return (Choice(((0.6, parse(text)), (0.4, parse(text.lower().rstrip("?.!= ") or text)))),)


def certain_start(text: str) -> tuple:
    """A reply whose first word is always right here, so that it counts as an answer."""
    first, _, rest = text.partition(" ")
    return (LINE, Word(first, "answer"), *parse(f" {rest}"))


def not_told(env: Env) -> tuple:
    """A question to which no text has told the answer."""
    who = any_of(*((Word(name, "name (new)"),) for name in NAMES))
    what = any_of(*((Word(noun, "thing (new)"),) for noun in THING_ROWS))
    return (any_of(*((LINE, *fill(form, who=(who,), what=(what,))) for form in phrasing.NOT_TOLD)),)


I_DO_NOT_KNOW = (any_of(*map(certain_start, phrasing.UNKNOWN)),)
OUTSIDE = any_of(*(exchange(careless(text), I_DO_NOT_KNOW) for text in phrasing.OUTSIDE))
NOT_TOLD = exchange((Call(not_told),), certain_start(phrasing.HAVE_NOT_TOLD))
WITHOUT_TEXT = Choice(((0.7, (OUTSIDE,)), (0.1, NOT_TOLD), (0.2, (SMALL,))))


# A story that is asked for with a hero or a thing that no story has by itself.


def kind_asked(env: Env) -> tuple:
    """What the hero is; it must suit the name, if that has been told."""
    return (*from_lists(env, kinds_of(env.get("h.he", "")), (), "kind (new)", "h.kind"), Call(kind_settled))


def kind_settled(env: Env) -> tuple:
    """Kings are he."""
    he = FIXED.get(env["h.kind"])
    return (Bind("told h.kind", True), *((Bind("h.he", he),) if he else ()))


def name_asked_with(env: Env) -> tuple:
    """The hero's name; it must suit the kind, if that has been told."""
    lists = names_suiting(env.get("h.he", ""))
    return (*from_lists(env, lists, (), "name (new)", "h.name", other=env.get("t.noun")), Call(name_settled))


@functools.cache
def names_suiting(he: str) -> tuple:
    """Lists of names, with the share of each: those that may have this pronoun; all for ""."""
    return suiting(he, ((0.3, NAMES), *OTHER_NAMES))


@functools.cache
def new_names_suiting(he: str) -> tuple:
    """The same of new words alone."""
    return suiting(he, NEW_NAMES)


def suiting(he: str, lists: tuple) -> tuple:
    """Of these lists the names that may have this pronoun; all for ""."""
    return tuple((p, tuple(name for name in names if not he or pronoun(name) in ("", he))) for p, names in lists)


def name_settled(env: Env) -> tuple:
    """The pronoun, if the name or the kind tells it; else she or he."""
    told_so = (Bind("told h.name", True), Bind("hero is", "person"))
    if "h.he" in env:
        return told_so
    he = pronoun(env["h.name"])
    return (*told_so, Bind("h.he", he) if he else any_of((Bind("h.he", "she"),), (Bind("h.he", "he"),)))


def thing_asked_with(env: Env) -> tuple:
    """The thing of the story."""
    thing = from_lists(env, things_told(), (), "thing (new)", "t.noun", other=env.get("h.name"))
    return (*thing, Bind("told t.noun", True))


ASKED_WITH = {"kind": (Call(kind_asked),), "name": (Call(name_asked_with),), "thing": (Call(thing_asked_with),)}


def anything_asked() -> Choice:
    """A request for a story about anybody and anything."""
    ways = []
    for share, first, tails in phrasing.SUBJECTS:
        ways.append((share, (*fill(first, **ASKED_WITH), any_of(*(fill(tail, **ASKED_WITH) for tail in tails)))))
    subject = Choice(tuple(ways))
    return any_of(*(spliced(careless(form), subject) for form in dict.fromkeys(phrasing.ASKING)))


def spliced(form: tuple, subject: Choice) -> tuple:
    """A form with this subject in place of {x}."""
    nodes = []
    for node in form:
        if isinstance(node, Choice):
            node = Choice(tuple((p, spliced(option, subject)) for p, option in node.options))
        nodes.append(subject if node == Slot("x") else node)
    return tuple(nodes)


FREE_REQUEST = Choice(
    (
        (0.25, exchange(asking(phrasing.ASKING, parse), told(STORY))),
        (0.55, exchange((anything_asked(),), told(STORY))),
        (0.2, exchange((any_of(*map(careless, phrasing.ASKING_ANY)),), told(STORY))),
    )
)
SMALL_LETTERS = either_way(0.15, (Bind("small", True),), ())
COMPARED = Call(lambda env: () if "yes or no" in env else (Bind("yes or no", MORE_YES_OR_NO),))
# What may come after a short exchange: nothing, another, a text with questions, a story
TEXTS = (
    (0.36, (*USER, SMALL_LETTERS, COMPARED, Call(told_freely))),
    (0.06, (*USER, SMALL_LETTERS, COMPARED, Call(presented))),
    (0.1, (*USER, SMALL_LETTERS, COMPARED, Call(asked_first))),
    (0.08, (*USER, SMALL_LETTERS, Call(walked))),
    (0.12, (*USER, STYLES, Call(numbers_told))),
    (0.28, (FREE_REQUEST, questions(ASKED, 0.6, 0.3, 0.1), Choice(((0.1, (THANKING,)), (0.9, ()))))),
)
FREE = Choice(
    (
        (0.75, (Choice(((0.85, ()), (0.15, (WITHOUT_TEXT, BREAK)))), Choice(TEXTS))),
        (0.25, (WITHOUT_TEXT, few((BREAK, WITHOUT_TEXT), 0.6, 0.3, 0.1))),
    )
)


# Documents.

END = Word("<|endoftext|>")
KINDS = {
    "story": STORY,
    "chat": (CHAT,),
    "moves": ACCOUNT,
    "handed on": HANDING_ON,
    "free": (FREE,),
    "inline": (Choice(TEXTS[:-1]),),  # of "free", accounts and numbers alone
    "book": (Call(book),),
    "small talk": (SMALL,),
    "who": (Call(meeting),),
}
SHARES = {
    "story": 0.08, "chat": 0.38, "moves": 0.13, "book": 0.09, "small talk": 0.01, "who": 0.05, "handed on": 0.04,
    "free": 0.22,
}  # fmt: skip


class Corpus:
    """The grammar's documents, and their exact probabilities.

    split: "train", "held out", or None for both. settings: values that variables have from the start, for example
    entries=16 for phone books of that size or moves=4.
    """

    def __init__(self, split: str | None = "train", shares: dict[str, float] | None = None, **settings):
        self.env = Env(settings | ({"split": split} if split else {}))
        self.nodes = (Choice(tuple((share, KINDS[kind]) for kind, share in (shares or SHARES).items())), END)

    def document(self, seed: object) -> list[Unit]:
        """The units of one document, a function of the seed."""
        return list(GRAMMAR.sample(random.Random(str(seed)), self.nodes, self.env))

    def floor(self, units: list[Unit], encode: Callable[[str], list[int]]) -> list[tuple[int, str, float, float]]:
        """For every token of a document: its id, its role, -log p and the entropy of its place, both in nats.

        What the template leaves open has the role "free choice" here.
        """
        floor, rows = Floor(GRAMMAR, self.nodes, encode, self.env), []
        for token, role, surprise, entropy in (row for unit in units for row in floor.read(unit)):
            free = role == "template" and entropy > 1e-9
            rows.append((token, "free choice" if free else role, surprise, entropy))
        return rows


def text_of(units: list[Unit]) -> str:
    """A document as text."""
    return "".join(unit.text for unit in units)


def documents(seed: int, split: str | None = "train") -> Iterator[str]:
    """Endless documents; each depends on nothing but the seed and its own number."""
    corpus, number = Corpus(split), 0
    while True:
        yield text_of(corpus.document(f"{seed}:{number}"))
        number += 1


def whole_number(text: str) -> int:
    """A whole number, not below zero."""
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def main():
    """Write documents as JSON lines."""
    parser = argparse.ArgumentParser(description="Write generated stories, conversations and lists as JSON lines.")
    parser.add_argument("--seed", type=int, default=0, help="which endless row of documents (default: 0)")
    parser.add_argument("--documents", type=whole_number, default=5, help="how many to write (default: 5)")
    parser.add_argument("--out", help="file to write (default: standard output)")
    args = parser.parse_args()
    try:
        out = open(args.out, "w", encoding="ascii") if args.out else sys.stdout  # noqa: SIM115
    except OSError as error:
        parser.error(f"cannot write {args.out}: {error.strerror}")
    with out:
        for _, text in zip(range(args.documents), documents(args.seed), strict=False):
            print(json.dumps({"text": text}), file=out)


if __name__ == "__main__":
    main()
