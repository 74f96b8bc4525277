"""Endless, seeded training text for the tiny model, and the exact probability of every token in it.

Five kinds of documents: stories (plots.py has their shapes), conversations in which a story is asked for or asked
about, accounts of who moves what where with questions about the end of them, phone books with questions, small talk.
All of it is one grammar (grammar.py), which `Corpus.documents` samples and `Corpus.floor` reads: for each token of a
document its role and its true probability, given everything before it.

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
from collections.abc import Callable, Iterator

from grammar import LINE, Bind, Call, Choice, Env, Floor, Grammar, Mark, Unit, Word, line, parse
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
FIXED = {"hen": "she"} | {kind: he for kind, he in PEOPLE.items() if he}  # kinds that are always she, or always he
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


@functools.cache
def held_out(one: str, other: str) -> bool:
    """Whether this pair never occurs in training."""
    return zlib.crc32(f"{one} {other}".encode()) % 8 == 0


def fits(env: Env, one: str | None, other: str | None) -> bool:
    """Whether a pair may occur in this split; a pair of which one half is still open may."""
    return not one or not other or "split" not in env or held_out(one, other) == (env["split"] == "held out")


def hero_kind(env: Env) -> dict[str, float]:
    """Animals three times in five, children more often than other people."""
    people = {kind: 0.4 / (len(PEOPLE) + 6) * (4 if kind in ("girl", "boy") else 1) for kind in PEOPLE}
    if env.get("hero is") == "person":
        return people
    return people | {kind: 0.6 / len(ANIMALS) for kind in ANIMALS}


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


def thing(env: Env) -> dict[str, float]:
    """Any thing that the plot can use and that may belong to this hero."""
    skip = SHAPES[env["shape"]].skip if "shape" in env else ()
    allowed = (noun for noun in THING_ROWS if noun not in skip and noun != env.get("u.noun"))
    return {noun: 1 for noun in allowed if fits(env, env.get("h.name"), noun)}


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
    "h.name": lambda env: {
        name: 1 for name in names_of(env["h.kind"], env["h.he"]) if fits(env, name, env.get("t.noun"))
    },
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
VARIABLES |= {
    f"{x}.adjective": lambda env, x=x: dict.fromkeys(THING_ROWS[env[f"{x}.noun"]][1].split(), 1) for x in "tu"
}
VARIABLES |= {name: once(*values) for shape in SHAPES.values() for name, values in shape.words.items()}


# Macros: text that depends on variables.


def joy(env: Env) -> str:
    """What is good about the thing, told once."""
    return "" if "told joy" in env else "{tell joy}" + THING_ROWS[env["t.noun"]][4]


def first_food(phrase: str) -> str:
    """ "pie" of "berry pie", "bread" of "loaf of bread"."""
    return phrase.split(" of ")[-1] if " of " in phrase else phrase.split()[-1]


MACROS: dict[str, Callable[[Env], str]] = {
    "": lambda env: "",
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
    MACROS[f"t.{name}"] = lambda env, column=column: THING_ROWS[env["t.noun"]][column]
MACROS["t.used"] = lambda env: re.sub(r"\bit\b", f"the {env['t.noun']}", THING_ROWS[env["t.noun"]][3], count=1)
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
    "Who are you?": "I am a small storyteller. I can tell you short stories.",
    "What is your name?": "I have no name. I am a small storyteller.",
    "What can you do?": "I can tell short stories. Tell me who or what should be in it.",
    "Can you help me?": "I can tell you a story. What should it be about?",
    "What do you like?": "I like stories about animals and old things.",
    "Thank you!": "You are welcome!",
    "Goodbye!": "Goodbye! Come back soon.",
}
AFTER_GREETING = split("Yes, please.; Yes, please!; Yes; Oh yes!; I would love one.; Sure, go on.")


def turn(role: str, *nodes) -> tuple:
    """A message as the chat template writes it, without the line break behind it."""
    known = "answer" if role == "assistant" else None
    begin = (Word("<|im_start|>"), Word(role), Mark("\n"), Bind("role", known))
    return (*begin, *nodes, Bind("role", None), Word("<|im_end|>"))


BREAK = Mark("\n")


def exchange(question: tuple, answer: tuple) -> tuple:
    """One message from the user and its answer."""
    return (*turn("user", *question), BREAK, *turn("assistant", *answer))


def any_of(*options: tuple) -> Choice:
    """One of these sequences of nodes, with equal probability."""
    return Choice(tuple((1, nodes) for nodes in options))


def told(nodes: tuple) -> tuple:
    """A story inside a message: its words keep their own roles."""
    return (Bind("role", None), *nodes)


def asking(forms: list[str]) -> tuple:
    """A request for a story about a hero, a thing, both, or hero and friend."""
    hero = ((0.6, "a {h.kind}", ()), (0.2, "{h.name}", (Bind("hero is", "person"),)), (0.2, "a {h.plain}", ()))
    thing, options = "a {t.noun}", []
    for weight, who, bind in hero:
        subjects = ((0.45, f"{who} and {thing}"), (0.15, f"{thing} and {who}"), (0.3, who))
        options += [(weight * w, bind, text) for w, text in subjects]
    options += [(0.1, (), thing), (0.1, (Bind("friend is", "animal"),), "a {h.kind} and a {f.kind}")]
    ways = [(w / len(forms), (*bind, *line(form.replace("{x}", x)))) for w, bind, x in options for form in forms]
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


def asked(env: Env) -> tuple:
    """One question about the story and its answer; none is asked twice."""
    pairs = SHAPES[env["shape"]].questions(env)
    done = env.get("asked", ())
    ways = [
        (*exchange(line(question), line(answer)), Bind("asked", (*done, question)))
        for question, answer in pairs
        if question not in done
    ]
    return (BREAK, any_of(*ways)) if ways else ()


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
        (*exchange(line(said), line(answer)), BREAK, *exchange((any_of(*map(line, AFTER_GREETING)),), told(STORY)))
        for said, answer in SMALL_TALK.items()
        if answer.endswith("story?")
    )
)
SMALL = any_of(*(exchange(line(said), line(answer)) for said, answer in SMALL_TALK.items()))
# Said before every story that a user tells: where a story ends, it says whether a question may follow in the message.
READ = (*line("[Read this story.|Here is a story.|Listen to this.]"), Mark("\n\n"))


def read_and_asked(env: Env) -> tuple:
    """The user's message: a story and a first question; then more questions."""
    pairs = SHAPES[env["shape"]].questions(env)
    ways = [
        (Mark("\n\n"), *line(question), Word("<|im_end|>"), BREAK, *turn("assistant", *line(answer)))
        for question, answer in pairs
    ]
    return (any_of(*(nodes + (Bind("asked", (pair[0],)),) for nodes, pair in zip(ways, pairs, strict=True))),)


CHAT = Choice(
    (
        (0.6, (REQUEST, questions(ASKED, 0.5, 0.2, 0.2, 0.1), Choice(((0.1, (THANKING,)), (0.9, ()))))),
        (0.05, (GREETING, questions(ASKED, 0.7, 0.3))),
        (0.35, (*turn("user", *READ, *STORY)[:-2], Call(read_and_asked), questions(ASKED, 0.1, 0.3, 0.3, 0.3))),
    )
)


# Who moves what where.

MOVED, MOVES = 3, 12  # things in an account at most, and how often something is moved at most


def account(env: Env) -> tuple:
    """env["things"] things, or 2 to MOVED of them, and one more characters; then env["moves"] moves, or 1 to MOVES of
    them, and questions where everything is.
    """
    count = env.get("moves")
    counts = range(1, env.get("most moves", MOVES) + 1) if count is None else (count,)
    things = any_of(*((Bind("things", n),) for n in ((env["things"],) if "things" in env else range(2, MOVED + 1))))
    return (perhaps_bare(env), things, any_of(*((Bind("left", n), *LINE_OF_CAST, Call(move)) for n in counts)))


def perhaps_bare(env: Env) -> Choice:
    """With probability env["bare"], 0 unless given, a document is without questions and tells all answers instead."""
    bare = env.get("bare", 0.0)
    return Choice(tuple((p, (Bind("questions", q),)) for p, q in ((bare, False), (1 - bare, True)) if p))


def cast(env: Env) -> tuple:
    """Names one more character, until there are enough."""
    people, last = env.get("people", ()), env["things"]
    if len(people) > last:
        return ()
    ways = ((Word(name, "name (new)"), Bind("people", (*people, name))) for name in NAMES if name not in people)
    between = parse(" and ") if len(people) == last else parse(", ") if people else ()
    return (*between, any_of(*ways), Call(cast))


def set_out(env: Env) -> tuple:
    """Says who has one more thing, until there are enough."""
    held = env.get("held", {})
    if len(held) == env["things"]:
        return ()
    nouns = [noun for noun in THING_ROWS if noun not in held and " " not in noun]
    ways = []
    for person in env["people"]:
        if person in held.values():
            continue
        own = [noun for noun in nouns if fits(env, person, noun)] or nouns
        for noun in own:
            nodes = (Word(person, "name"), *parse(" has a "), Word(noun, "thing (new)"), Mark("."))
            ways.append((1 / len(own), (LINE, *nodes, Bind("held", held | {noun: person}))))
    return (Choice(tuple(ways)), Call(set_out))


@functools.cache
def place_words(noun: str) -> tuple:
    """ "in the barn", with the role of a place."""
    return (*parse(f"{PLACE_ROWS[noun][1]} the "), Word(noun, "place (new)"))


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
        some = (any_of(*(facts_told(env, order) for order in orders)),)
        return (Choice(tuple((p, x) for p, x in ((tell, some), (1 - tell, ())) if p)), Bind("told", left), Call(move))
    if not left:
        return few_questions(env, whereabouts, lambda one: (few(one, 0.2, 0.8),)) if env["questions"] else ()
    ways = []
    for noun, holder in held.items():
        thing = (*parse(" the "), Word(noun, "thing"))
        if holder in people:
            for other in people:
                if other != holder and (fits(env, other, noun) or env.get("split") == "held out"):
                    gave = (Word(holder, "name"), Mark(" "), Word("gave"), *thing, *parse(" to "), Word(other, "name"))
                    ways.append((0.5, gave, noun, other))
            for verb in ("put", "left", "lost"):
                for place in PLACE_ROWS:
                    put = functools.partial(put_down, holder, verb, noun, place)
                    ways.append((1 / 3 / len(PLACE_ROWS), (Call(put),), noun, place))
        else:
            takers = [p for p in people if fits(env, p, noun) or env.get("split") == "held out"] or people
            for verb in ("took", "found"):
                for taker in takers:
                    took = (Word(taker, "name"), Mark(" "), Word(verb), *thing)
                    where = (Mark(" "), *parse(f"{PLACE_ROWS[holder][1]} the "), Word(holder, "place"))
                    ways.append((0.5 / len(takers), (*took, *(where if verb == "found" else ())), noun, taker))
    made = ((weight, (LINE, *nodes, Mark("."), Bind("to", (noun, to)))) for weight, nodes, noun, to in ways)

    def moved(env: Env) -> tuple:
        noun, to = env["to"]
        return (Bind("held", held | {noun: to}), Bind("left", left - 1), Call(move))

    return (Choice(tuple(made)), Call(moved))


def put_down(holder: str, verb: str, noun: str, place: str, env: Env) -> tuple:
    """Someone leaves what they hold in a place."""
    who, what = (Word(holder, "name"), Mark(" "), Word(verb)), (*parse(" the "), Word(noun, "thing"))
    return (*who, *what, Mark(" "), *place_words(place))


def facts_told(env: Env, nouns: tuple[str, ...]) -> tuple:
    """Sentences that say where things are, and that this is known now."""
    known = env.get("known", {}) | {noun: env["held"][noun] for noun in nouns}
    return (*itertools.chain(*((*fact(env, noun), Mark(".")) for noun in nouns)), Bind("known", known))


def fact(env: Env, noun: str) -> tuple:
    """A sentence that says where a thing is, but for the full stop."""
    holder = env["held"][noun]
    at = "with " if holder in env["people"] else f"{PLACE_ROWS[holder][1]} the "
    the = (Word("the", "template"), Mark(" "), Word(noun, "thing"), Mark(" "))
    return (LINE, *the, Word("is", "template"), *parse(f" {at}"), Word(holder, "answer"))


def whereabouts(env: Env) -> list[tuple]:
    """The questions about the things of the account, with answers; each thing is asked for once."""
    done, ways = env.get("asked", ()), []
    for noun, holder in env["held"].items():
        if noun not in done:
            asking = "who has the " if holder in env["people"] else "where is the "
            question = (LINE, *parse(asking), Word(noun, "thing"), *parse(" now?"))
            ways.append((question, (*fact(env, noun), Mark(".")), Bind("asked", (*done, noun))))
    return ways


def few_questions(env: Env, ways: Callable[[Env], list[tuple]], more: Callable[[tuple], tuple]) -> tuple:
    """The first question belongs to the message with the text, the others are messages of their own.

    ways: the questions that can be asked now, with answers and what each changes; more: repeats the nodes of one more.
    """
    first = [
        (*question, Word("<|im_end|>"), BREAK, *turn("assistant", *answer), bind)
        for question, answer, bind in ways(env)
    ]

    def again(env: Env) -> tuple:
        left = ways(env)
        return (any_of(*((BREAK, *exchange(q, a), bind) for q, a, bind in left)),) if left else ()

    return (Mark("\n\n"), any_of(*first), *more((Call(again),)))


LINE_OF_CAST = (LINE, Call(cast), *parse(" are friends."), Call(set_out))
ACCOUNT = (Word("<|im_start|>"), Word("user"), Mark("\n"), Call(account))


# Who is who.

GUESTS = 6


def meeting(env: Env) -> tuple:
    """A day, env["guests"] characters with a thing each, or 2 to GUESTS of them, and questions about all of that.

    If there are no questions, their answers alone, env["rounds"] times, in another order each time.
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


def guest_name(env: Env) -> tuple:
    """The name of someone whose kind is known; nobody else has it."""
    kind, taken = env["guest kind"], [one["name"] for one in env.get("present", ())]
    he = [FIXED[kind]] if kind in FIXED else ["she", "he"]
    names = (name for x in he for name in names_of(kind, x) if name not in taken)
    return (any_of(*((Word(name, "name (new)"), Bind("guest", name)) for name in names)),)


def guest_thing(env: Env) -> tuple:
    """A thing that the guest may have, and nobody else has."""
    taken = [one["noun"] for one in env.get("present", ())]
    nouns = (noun for noun in THING_ROWS if " " not in noun and noun not in taken)
    return (any_of(*(described(noun) for noun in nouns if fits(env, env["guest"], noun))),)


@functools.cache
def described(noun: str) -> tuple:
    """ "a red kite", whatever the adjective."""
    likes = THING_ROWS[noun][1].split()
    adjective = any_of(*((Word(like, "adjective (new)"), Bind("guest thing", like)) for like in likes))
    return (*parse("a "), adjective, Mark(" "), Word(noun, "thing (new)"), Bind("guest noun", noun))


GUEST_KIND = any_of(*((Word(kind, "kind (new)"), Bind("guest kind", kind)) for kind in (*ANIMALS, *PEOPLE)))
TRAIT = Choice(((0.5, parse(f"[{'|'.join(TRAITS)}] ")), (0.5, ())))
WHO = (*parse("a "), TRAIT, GUEST_KIND, *parse(" named "), Call(guest_name))
ARRIVAL = any_of(
    (LINE, *WHO, *parse(" had "), Call(guest_thing), Mark(".")),
    (LINE, *parse("then came "), *WHO, *parse(" with "), Call(guest_thing), Mark(".")),
)


def answers_alone(env: Env) -> tuple:
    """One more answer without its question, until all have been told."""
    ways = [(*answer, bind, Call(answers_alone)) for _, answer, bind in particulars(env)]
    return (any_of(*ways),) if ways else (Bind("asked", ()),)


def particulars(env: Env) -> list[tuple]:
    """Questions about who is who and what the day and the things were like; none twice."""
    weather = (Bind("role", "answer"), *line("It was a {sky}."), Bind("role", None))
    done, pairs = env.get("asked", ()), [(line("What was the weather like at the start?"), weather)]
    for one in env["present"]:
        name, noun, like, kind = (Word(one[key], "answer") for key in ("name", "noun", "like", "kind"))
        the = (*line("The "), noun)
        pairs.append((line(f"Who is {name.text}?"), (LINE, name, *parse(" is a "), kind, Mark("."))))
        pairs.append((line(f"Who has the {noun.text} now?"), (*the, *parse(" is with "), name, Mark("."))))
        pairs.append((line(f"What was the {noun.text} like?"), (*the, *parse(" was a "), like, *parse(" one."))))
    return [(q, a, Bind("asked", (*done, number))) for number, (q, a) in enumerate(pairs) if number not in done]


# Phone books.

ENTRIES = 32


def book(env: Env) -> tuple:
    """A phone book and questions: as many entries as env["entries"], or 2 to ENTRIES, short books more often.

    Each entry is asked for env["rounds"] times, at most 12 in all; if there are no questions, told again so often.
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
    return (BREAK, *parse("- "), any_of(*ways), *parse(": "), Bind("digits", ""), Call(digit))


def digit(env: Env) -> tuple:
    """One more digit of a number."""
    if len(env["digits"]) == 4:
        return (Bind("book", env.get("book", {}) | {env["name"]: env["digits"]}), Call(entry))
    return (next_digit(env.get("split"), env["name"], env["digits"]), Call(digit))


@functools.cache
def next_digit(part: str | None, name: str, digits: str) -> Choice:
    """The ten digits, as often as each leads to a number whose last two digits may belong to the name."""
    env, ways = Env({"split": part} if part else {}), []
    for last in "0123456789":
        more = digits + last
        ends = [""] if len(more) < 3 else [more[2:]] if len(more) == 4 else [last + other for other in "0123456789"]
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


# Documents.

END = Word("<|endoftext|>")
KINDS = {
    "story": STORY,
    "chat": (CHAT,),
    "moves": ACCOUNT,
    "book": (Call(book),),
    "small talk": (SMALL,),
    "who": (Call(meeting),),
}
SHARES = {"story": 0.1, "chat": 0.5, "moves": 0.2, "book": 0.13, "small talk": 0.02, "who": 0.05}


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
