"""Endless, seeded training text for the tiny model: short stories, and conversations about them.

How a story is made.  `story` picks the ingredients first (a hero, a friend, a thing; any of them can be asked for),
then the weather and two places, then a plot.  A plot is a short function over a `World`.  The world knows who holds
the thing or where it lies, where the hero is and how each character feels.  Every helper that changes this state
also writes the sentence that tells it, so text and state cannot disagree, and the questions asked about a story are
answered from the state the world ends in.  Hero and friend never share a pronoun or a kind, so "he", "she" and
"the fox" always have one meaning.

How a line is written.  `World.say` takes several lines and keeps one at random.  In a line:

    [went|walked|]     one of the parts, at random; a part may be empty
    {h} {f}            the names of the hero and the friend; also {h.he} {h.him} {h.his} {h.the} ("the fox"),
                       {h.a} ("a fox named Pip") and {h.full} ("Pip the fox")
    {t} {u}            the thing and a second thing: "the kite"; also {t.a} ("a red kite"), {t.noun} and the columns
                       of THINGS: {t.use} {t.used} {t.joy} {t.broken} {t.part} {t.fix}
    {p} {q}            two places: "the mill"; also {p.at} ("at the mill") and {p.to} ("to the mill")
    {s} {food}         a spot in the first place ("on the steps of the mill"); "the pie", and {food.a} ("a berry pie")
    {day}              "One windy morning," the first time in a story, "That morning," after that

"a" becomes "an" where needed, and sentences get their capital letters.

How to add a plot.  Write a function that takes a World and put @plot() above it.  Begin with `w.open()`, introduce
the friend with {f.a} and the thing with {t.a} or `w.have`, tell the events with `say`, `go`, `give`, `take`, `put`
and `feel`, add a question or two with `fact`, and finish with `w.end()`.  @plot can limit the weather and leave out
things that would be silly, as a map in a story where another map leads to it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

SHORTEST, LONGEST = 70, 170  # words in a story


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
OUTDOORS = ("pond", "meadow", "orchard", "hill", "river", "garden", "beach")

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
COLORS = words("red blue green yellow white black brown pink gray")

FOODS = split("""
    berry pie; loaf of bread; bowl of soup; honey cake; seed cake; round cheese; plum tart; pot of stew; jar of
    jam; basin of porridge; apple pie; corn muffin; carrot cake; cherry tart; ginger cookie; pumpkin pie
""")


PLACE_ROWS = {row[0]: row for row in (split(line, "|") for line in PLACES.strip().splitlines())}
THING_ROWS = {row[0]: row for row in (split(line, "|") for line in THINGS.strip().splitlines())}


def a(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


class Character:
    """Someone in a story; the attributes are the words that lines use."""

    def __init__(self, rng: random.Random, kind: str, name: str, he: str) -> None:
        self.kind, self.name, self.he = kind, name, he
        self.him, self.his = ("her", "her") if he == "she" else ("him", "his")
        self.the = f"the {kind}"
        self.full = f"young {name}" if kind in ("girl", "boy") else f"{name} the {kind}"
        self.plain = f"{kind} named {name}"
        self.described = f"{rng.choice(TRAITS)} {self.plain}"
        self.a = a(self.described if rng.random() < 0.4 else self.plain)

    def __str__(self) -> str:
        return self.name


class Thing:
    """The object a story turns on."""

    def __init__(self, rng: random.Random, noun: str) -> None:
        _, adjectives, self.use, self.used, self.joy, self.broken, self.part, self.fix, *weather = THING_ROWS[noun]
        self.used = re.sub(r"\bit\b", f"the {noun}", self.used, count=1)
        self.noun, self.adjective, self.weather = noun, rng.choice(adjectives.split()), weather
        self.a = a(f"{self.adjective} {noun}")

    def __str__(self) -> str:
        return f"the {self.noun}"


class Place:
    """A place near the hero's home."""

    def __init__(self, noun: str) -> None:
        _, preposition, spots = PLACE_ROWS[noun]
        self.noun, self.at, self.to, self.spots = noun, f"{preposition} the {noun}", f"to the {noun}", split(spots)

    def __str__(self) -> str:
        return f"the {self.noun}"


class Food:
    """Something to eat: "the pie" is {food}, "a berry pie" is {food.a}."""

    def __init__(self, phrase: str) -> None:
        self.a = a(phrase)
        self.noun = phrase.split(" of ")[-1] if " of " in phrase else phrase.split()[-1]

    def __str__(self) -> str:
        return f"the {self.noun}"


@dataclass
class Story:
    """A finished story and what can be asked about it."""

    text: str
    hero: str  # the hero's kind, as in "fox"
    name: str
    friend: str  # the friend's kind
    thing: str
    plot: str
    facts: list[tuple[str, str]] = field(default_factory=list)  # question, true answer


CHOICE = re.compile(r"\[([^\[\]]*)\]")
ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
DAY_AGAIN = ["That", "That", "That same", "That very"]
SENTENCE_START = re.compile(r'(^"?|[.!?] "?)([a-z])')


class World:
    """The state of one story, and the text that has told it so far."""

    def __init__(self, rng: random.Random, hero: Character, friend: Character, thing: Thing, weathers: str) -> None:
        self.rng, self.h, self.f, self.t = rng, hero, friend, thing
        allowed = weathers.split() or list(WEATHER)
        self.weather = rng.choice([kind for kind in thing.weather if kind in allowed] or allowed)
        self.day_word, self.time = rng.choice(WEATHER[self.weather][0]), rng.choice(["morning", "afternoon", "day"])
        self.day_told = self.joy_told = False
        self.u = Thing(rng, rng.choice([noun for noun in THING_ROWS if noun != thing.noun]))
        self.names = {"h": hero, "f": friend, "t": thing, "u": self.u, "food": Food(rng.choice(FOODS))}
        self.set_places(*PLACE_ROWS)
        self.where = "home"  # the hero's place
        self.holder: dict[Thing, Character | str | None] = {thing: None, self.u: None}  # who holds it, or the spot
        self.feelings: dict[Character, tuple[str, int]] = {}  # the feeling, and when it was told
        self.paragraphs: list[list[str]] = [[]]
        self.facts: list[tuple[str, str]] = []

    def set_places(self, *nouns: str) -> None:
        """Choose the first place among these, the second among all, and a spot in the first."""
        p = Place(self.rng.choice(nouns))
        q = Place(self.rng.choice([noun for noun in PLACE_ROWS if noun != p.noun]))
        self.p, self.q, self.s = p, q, self.rng.choice(p.spots)
        self.names.update(p=p, q=q, s=self.s)

    # Text.

    def render(self, line: str) -> str:
        """The line with its choices made, its names filled in and its capital letters set."""
        line = CHOICE.sub(lambda match: self.rng.choice(match[1].split("|")), line)
        if "{t.joy}" in line:
            line, self.joy_told = line.replace(" {t.joy}", "" if self.joy_told else " {t.joy}"), True
        if "{day}" in line:
            first = (
                f"One {self.day_word} {self.time},"
                if not self.day_told
                else f"{self.rng.choice(DAY_AGAIN)} {self.time},"
            )
            line, self.day_told = line.replace("{day}", first), True
        line = ARTICLE.sub(r"\1n ", line.format_map(self.names))
        return SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), line)

    def say(self, *lines: str) -> None:
        """Tell one of these lines, which change nothing in the world; no lines, no text."""
        if lines:
            self.paragraphs[-1].append(self.render(self.rng.choice(lines)))

    def told(self) -> int:
        """How many lines have been told."""
        return sum(map(len, self.paragraphs))

    def recent(self, who: Character) -> str:
        """What someone feels, if one of the last lines told it."""
        feeling, when = self.feelings.get(who, ("", 0))
        return feeling if when >= self.told() - 4 else ""

    def maybe(self, chance: float, *lines: str) -> None:
        """Tell one of these lines, or none."""
        if self.rng.random() < chance:
            self.say(*lines)

    def para(self, chance: float = 0.6) -> None:
        """Perhaps begin a new paragraph here."""
        if self.paragraphs[-1] and self.rng.random() < chance:
            self.paragraphs.append([])

    def fact(self, question: str, answer: str) -> None:
        """Note a question that the story answers."""
        self.facts.append((self.render(question), self.render(answer)))

    # Changes to the world, each told by one of its lines.

    def take(self, who: Character, thing: Thing, *lines: str) -> None:
        """Someone gets hold of the thing."""
        self.holder[thing] = who
        self.say(*lines)

    def give(self, giver: Character, taker: Character, thing: Thing, *lines: str) -> None:
        """The giver, who must hold the thing, hands it over."""
        if self.holder[thing] is not giver:
            raise ValueError(f"{giver} does not hold {thing}")
        self.take(taker, thing, *lines)

    def put(self, thing: Thing, spot: str, *lines: str) -> None:
        """The thing now lies in a spot; without lines, nobody notices."""
        self.holder[thing] = spot
        self.say(*lines)

    def go(self, place: str, *lines: str) -> None:
        """The hero goes to a place, or "home"."""
        self.where = place
        self.say(*lines)

    def feel(self, who: Character, feeling: str, *lines: str) -> None:
        """Someone feels something from now on."""
        self.feelings[who] = (feeling, self.told())
        one = "h" if who is self.h else "f"
        self.say(*(lines or (f"{{{one}}} was [very |so |]{feeling}.", f"{{{one}}} felt [very |]{feeling}.")))

    # Parts that most plots share.

    def open(self) -> None:
        """Introduce the hero, in one of many ways."""
        rng, h = self.rng, self.h
        self.names.update(setting=rng.choice(SETTINGS), act=rng.choice(HOME_ACTS), like=rng.choice(LIKES))
        self.names["who"] = h.described if rng.random() < 0.6 else h.plain
        self.names["sky"] = f"{self.day_word} {self.time}"
        roll = rng.random()
        if roll < 0.32:
            self.say(
                "Once upon a time there was a {who} who lived {setting}.",
                "Once upon a time there lived a {who}.",
                "Once upon a time, {setting}, there lived a {who}.",
                "Once upon a time, a {who} lived {setting}.",
            )
        elif roll < 0.62:
            self.day_told = True
            self.say(
                "One {sky}, a {who} {act}.",
                "One {sky}, a {who} {act}.",
                "It was a {sky}, and a {who} {act}.",
                "On a {sky}, a {who} {act}.",
                "Early one {sky}, a {who} {act}." if self.time == "morning" else "One {sky}, a {who} {act}.",
            )
            self.maybe(0.4, *WEATHER[self.weather][1])
            return
        else:
            self.say(
                "There was once a {who} who lived {setting}.",
                "Long ago, {setting}, there lived a {who}.",
                "Long ago there was a {who}.",
                "{setting} lived a {who}.",
                "Not so long ago, a {who} lived {setting}.",
                "This is the story of a {who} who lived {setting}.",
                "Far away, {setting}, there was a {who}.",
                "Many years ago, a {who} lived {setting}.",
            )
        self.maybe(
            0.3, "{h.he} liked {like}.", "{h.the} was fond of {like}.", "More than anything, {h.he} loved {like}."
        )

    def have(self, who: Character, *lines: str) -> None:
        """The thing belongs to someone, and they hold it."""
        own = (
            "{h} had {t.a}, and {h.he} [loved|liked] to {t.use}.",
            "{h.his} [favorite|dearest] thing was {t.a}.",
            "{h} owned {t.a}. {t.joy}",
            "{h} had {t.a} that had once been {h.his} grandmother's.",
            "{h.he} had {t.a}. {t.joy}",
        )
        self.take(who, self.t, *(lines or own))

    def walk(self, chance: float = 0.4) -> None:
        """Perhaps tell what the weather does to the hero on the way."""
        self.maybe(chance, *WEATHER[self.weather][2])

    def end(self, *lines: str, together: bool = True) -> None:
        """Close the story: a line of the plot's own, a common one that is true here, or both."""
        h, t = self.h, self.t
        if lines and self.rng.random() < 0.7:
            self.say(*lines)
            if self.rng.random() < 0.5:
                return
        roll = self.rng.random()
        if roll < 0.3 and not self.recent(h):
            feeling = self.rng.choice(["happy", "glad", "content", "proud and happy", "full of joy"])
            self.feel(h, feeling, f"{{h}} was {feeling}.", f"That night {{h}} went to bed {feeling}.")
        elif roll < 0.5 and self.holder[t] is h:
            told, spot = self.rng.choice(
                [
                    ("beside {h.his} bed", f"beside {h}'s bed"),
                    ("by the window", "by the window"),
                    ("by the door", "by the door"),
                ]
            )
            self.put(t, spot, f"That night {{h}} put {{t}} {told}.", f"At bedtime, {{h.he}} set {{t}} down {told}.")
            self.maybe(0.5, "Then {h.he} fell asleep.", "Then {h.he} closed {h.his} eyes.")
        elif roll < 0.8 and together:
            lines = (
                "After that, {h} and {f} were [good|the best of] friends.",
                '"[Shall we|Can we] meet again tomorrow?" asked {f}. "[Yes, of course|I would like that]," said {h}.',
                "{h} smiled at {f}, and {f.he} smiled back.",
                "They talked and laughed until the stars came out.",
                "And when the moon came up, they were still talking.",
                "Then they sat down together and sang an old song.",
            )
            away = ("{h} and {f} walked home side by side.", "They [laughed|sang|talked] all the way home.")
            self.say(*(lines if "home" in self.where or "house" in self.where.split() else lines + away))
        else:
            self.say(
                "That night {h} slept very well.",
                "It had been a good day.",
                "{h} never forgot that day.",
                "Even years later, {h} told that story.",
                "What a day it had been!",
                "{h} smiled about it for a whole week.",
            )

    def finish(self, plot_name: str) -> Story:
        """The story as it stands, with the questions that the last state answers."""
        h, f, t, holder = self.h, self.f, self.t, self.holder[self.t]
        text = "\n\n".join(" ".join(sentences) for sentences in self.paragraphs if sentences)
        ask = self.facts.append
        if isinstance(holder, Character):
            other = f if holder is h else h
            ask((f"Who has {t} now?", f"{holder} has {t}."))
            ask((f"Who has {t} at the end?", f"At the end, {holder} has {t}."))
            ask((f"Does {holder} have {t} now?", f"Yes, {holder} has {t}."))
            ask((f"Does {other} have {t} now?", f"No, {holder} has {t}."))
        elif holder:
            ask((f"Where is {t} now?", f"The {t.noun} is {holder}."))
            ask((f"Where is {t} at the end?", f"At the end, {t} is {holder}."))
        for who in (h, f):
            if who.kind in ANIMALS:
                ask((f"What kind of animal is {who}?", f"{who} is {a(who.kind)}."))
            else:
                ask((f"Who is {who}?", f"{who} is {a(who.kind)}."))
        if f.kind in ("girl", "boy") and f.kind not in text:
            self.facts.pop()
        ask(("Who is the story about?", f"The story is about {a(h.plain)}."))
        for who in (h, f):
            if feeling := self.recent(who):
                ask((f"How did {who} feel at the end?", f"{who} felt {feeling}."))
        if self.day_told:
            ask(("What was the weather like at the start?", f"It was {a(f'{self.day_word} {self.time}')}."))
        if t.adjective in COLORS and f"{t.adjective} {t.noun}" in text:
            ask((f"What color is {t}?", f"The {t.noun} is {t.adjective}."))
        return Story(text, h.kind, h.name, f.kind, t.noun, plot_name, self.facts)


@dataclass
class Plot:
    """A plot function, the weather it needs and the things it cannot use."""

    build: Callable[[World], None]
    weather: str
    skip: list[str]


PLOTS: list[Plot] = []


def plot(weather: str = "", skip: str = "") -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Register a plot; `weather` and `skip` are words with spaces between them."""

    def register(build: Callable[[World], None]) -> Callable[[World], None]:
        PLOTS.append(Plot(build, weather, skip.split()))
        return build

    return register


# The plots.


@plot()
def lost_and_found(w: World) -> None:
    """The hero leaves the thing somewhere, thinks back and finds it there."""
    w.open()
    w.have(w.h)
    w.go(w.p.noun, "{day} {h} took {t} {p.to} and stayed there [for an hour|a long while].")
    w.walk()
    w.put(w.t, w.s)
    w.go("home", "Back at home, {h} saw that {t} was gone.", "When {h} came home again, {t} was not there.")
    w.feel(w.h, "worried", "{h} was worried, and {h.he} looked [under the bed|behind the door|in every corner].")
    w.para()
    w.say("[Just then|Soon] {f.a} came by.", "{f.a}, who lived next door, heard the noise and came in.")
    w.say('"[What is wrong|What is the matter]?" asked {f}. "I [cannot find|have lost] my {t.noun}," said {h}.')
    w.say('"Where did you have it last?" asked {f}. {h} thought hard. "{p.at}!" {h.he} said.')
    w.go(w.p.noun, "[They ran|The two of them hurried] back {p.to}.")
    w.take(w.h, w.t, "There, {s}, lay {t}, and {h} picked it up.", "{h} found {t} {s}, just where {h.he} had left it.")
    w.fact("Where did {h} find {t}?", "{h} found {t} {s}.")
    w.end("{h} held it [close|tight] all the way home.", '"Next time I will look after it better," said {h}.')


@plot()
def trade(w: World) -> None:
    """Each likes what the other has, so they swap."""
    w.open()
    w.take(w.h, w.u, "{h} had {u.a}, but {h.he} had grown tired of it.", "{h} owned {u.a} that {h.he} never used.")
    w.go(w.p.noun, "{day} {h} carried it {p.to}.", "{day} {h} took it along {p.to}.")
    w.walk()
    w.take(w.f, w.t, "{p.at} sat {f.a} with {t.a}.", "There {h} met {f.a}, who had {t.a}.")
    w.say("{h} could not stop looking at {t}.", '"What a fine {t.noun}!" said {h}.', "{h} looked at {t} and sighed.")
    w.say('"Do you like it?" asked {f}. "I would rather have {u.a} like yours."', '"I like your {u.noun}," said {f}.')
    w.para()
    w.say('"[Then let us trade!|Shall we swap?]" said {h}. {f} [nodded|thought for a moment and nodded].')
    w.give(w.h, w.f, w.u)
    w.give(w.f, w.h, w.t, "So {h} gave {u} to {f} and got {t} in return.", "{h} gave {u} to {f}, who handed over {t}.")
    w.say("{h} {t.used} right away. {t.joy}", "At once {h} {t.used}. {t.joy}")
    w.fact("What did {h} get from {f}?", "{h} got {t} from {f}.")
    w.fact("Who has {u} now?", "{f} has {u}.")
    w.end("Both of them thought they had the better part of the trade.", "It was a fair trade.")


@plot()
def birthday_gift(w: World) -> None:
    """The hero gives the thing, of which a friend has long dreamed."""
    w.set_places("market", "harbor", "station", "mill", "bridge")
    w.open()
    w.say("{h.his} best friend was {f.a}.", "Next door lived {f.a}, and the two were friends.")
    w.say("{day} it was {f}'s birthday, and {h} did not have a gift yet.")
    w.say('"What would {f.he} like?" {h} [wondered|asked out loud].')
    w.go(w.p.noun, "{h.he} went {p.to} to [think|look around].", "{h} walked {p.to} to find something nice.")
    w.walk()
    w.take(w.h, w.t, "There {h.he} saw {t.a} for sale, and {h.he} bought it with {h.his} last coin.")
    w.para()
    w.say("{h} wrapped {t} in [brown|blue|bright] paper and tied a bow on top.")
    w.go(f"{w.f}'s house", "Then {h.he} knocked on {f}'s door.", "{h} carried it to {f}'s house.")
    w.give(w.h, w.f, w.t, '"Happy birthday!" said {h}, and gave the parcel to {f}.')
    w.say("{f} pulled off the paper, and there was {t}. {t.joy}")
    w.feel(w.f, "happy", '"I have always wanted {t.a}!" cried {f}. {f.he} was very happy.')
    w.fact("What did {h} give to {f}?", "{h} gave {t} to {f}.")
    w.fact("Where did {h} buy {t}?", "{h} bought {t} {p.at}.")
    w.end("Then they ate {food.a}, and {f} had two helpings.", "{f} {t.used} [twice|again and again] that day.")


@plot("cloudy windy")
def storm(w: World) -> None:
    """A storm keeps two strangers in one shelter, where the thing helps to pass the time."""
    w.set_places("barn", "cave", "stable", "mill")
    w.open()
    w.have(w.h)
    w.say("{day} {h} set out for a walk and took {t} along.", "{day} {h} was out in the fields with {t}.")
    w.say("Dark clouds came over the hills. Then there was a flash and a great clap of thunder.")
    w.go(w.p.noun, "{h} ran {p.to} to keep dry.", "The rain came down hard, so {h} ran {p.to}.")
    w.para()
    w.say("Somebody was there already. It was {f.a}, wet from head to toe.", "Inside sat {f.a}, cold and wet.")
    w.feel(w.f, "afraid", '"I am afraid of thunder," said {f}[ in a small voice|].')
    w.give(w.h, w.f, w.t, '"Hold my {t.noun} and count to ten," said {h}, and gave {t} to {f}.')
    w.say("{f} held it and counted: one, two, three. They counted again and again until the thunder was far away.")
    w.feel(w.f, "calm", '"I am not afraid anymore," said {f}.', "Now {f} was calm, and {f.he} even laughed.")
    w.say(
        "At last the rain stopped, so they stepped outside.", "When the storm was over, the whole land smelled fresh."
    )
    w.give(w.f, w.h, w.t, "{f} gave {t} back to {h}.", "{f} said thank you and handed {t} back to {h}.")
    w.fact("Where did {h} hide from the storm?", "{h} hid from the storm {p.at}.")
    w.fact("What was {f} afraid of?", "{f} was afraid of thunder.")
    w.end("A rainbow stood over the hills.", "The puddles shone, and they jumped over every one.")


@plot()
def race(w: World) -> None:
    """A race with the thing as the prize, won or lost in a kind way."""
    w.open()
    w.say("{day} there was a race from the old oak {p.to}. The prize was {t.a}.")
    w.put(w.t, w.s, "{t} lay {s}, and everyone could see it.")
    w.say("{h} wanted to win it, and so did {f.a}.", "Only two were in the race: {h} and {f.a}.")
    w.say('"Ready, steady, go!" [called|cried] the judge[, an old heron|].')
    w.say("[At first|For a while] {h} was in front. Then {f} came [closer and closer|past like the wind].")
    w.para()
    if w.rng.random() < 0.5:
        w.say("Suddenly {f} [tripped over a root|slipped] and fell. {h} heard the cry and stopped.")
        w.go(w.p.noun, "{h.he} helped {f.him} up, and the two of them reached the end together.")
        w.take(
            w.h, w.t, '"You both win," said the judge. "You should take it home first," {f} told {h}, so {h.he} did.'
        )
        w.fact("Who won the race?", "{h} and {f} both won the race.")
        w.fact("Who fell in the race?", "{f} fell in the race.")
        w.end('"Tomorrow it will be your turn," {h} promised.')
    else:
        w.go(w.p.noun, "{h} ran as fast as {h.he} could, but {f} was [one step|just a little] faster.")
        w.take(w.f, w.t, "So {f} won the race and took {t}.")
        w.say('"Well run!" said {h}. {h.he} was out of breath, but {h.he} [smiled|clapped].')
        w.say('"Come and share it with me," said {f}. Then {f.he} {t.used}. {t.joy}')
        w.fact("Who won the race?", "{f} won the race.")
        w.end('"I will win next year," said {h} with a laugh.')


@plot()
def sharing_food(w: World) -> None:
    """The hero shares food with someone hungry and gets the thing as thanks."""
    w.open()
    w.say("{day} {h} packed {food.a} and set out {p.to}.", "{day} {h} carried {food.a} {p.to}.")
    w.go(w.p.noun)
    w.walk()
    w.take(w.f, w.t, "{p.at} sat {f.a}, who had nothing but {t.a}.", "There {h} saw {f.a} with {t.a}.")
    w.feel(
        w.f, "hungry", '"I have not eaten since yesterday," said {f}.', "{f} was so hungry that {f.his} belly growled."
    )
    w.para()
    w.say('"[Sit down with me|Please have some of this]," said {h}. "[There is enough for two|We can share]."')
    w.say("They shared {food}, and it was gone [in no time|to the last crumb].", "They ate {food} together.")
    w.feel(w.f, "happy", "When {f} was full, {f.he} was happy again.")
    w.give(w.f, w.h, w.t, '"[You were kind to me|I want to thank you]," said {f}, and {f.he} gave {t} to {h}.')
    w.say("{h} {t.used} at once. {t.joy}", "{h} held {t} and could hardly believe {h.his} luck.")
    w.fact("What did {h} share with {f}?", "{h} shared {food} with {f}.")
    w.fact("Why did {f} give {t} to {h}?", "{f} gave {t} to {h} because {h} shared {food}.")
    w.end("The next day {h} brought more food, and {f} brought a song.")


@plot()
def mending(w: World) -> None:
    """The thing is broken, and a friend mends it."""
    w.open()
    w.have(w.h)
    w.say("{day} {h} [took out|picked up] {t}, but {t.broken}.", "{day} something was wrong with {t}: {t.broken}.")
    w.feel(w.h, "sad", "{h} was so sad that {h.he} did not want to eat.", '"Oh no!" said {h}. {h.he} felt very sad.')
    w.go(f"{w.f}'s house", "{h.he} carried it to {f.a}, who was good at mending things.")
    w.walk(0.25)
    w.give(w.h, w.f, w.t, '"Can you mend my {t.noun}?" asked {h}, and gave it to {f}.')
    w.para()
    w.say('{f} looked at it from all sides. "[I think so|Yes], but I need {t.part}," {f.he} said.')
    w.say("{h} ran {p.to} and came back with {t.part}.", "{h} looked for one everywhere and found it {p.at}.")
    w.say("{f} {t.fix}. {h} watched and did not say a word.", "Slowly and carefully {f} {t.fix}.")
    w.give(w.f, w.h, w.t, '"[There|Done]!" said {f}, and gave {t} back to {h}.')
    w.feel(w.h, "happy", "{h} {t.used}. {t.joy} Now {h} was happy.", "It was as good as new, and {h} was happy.")
    w.fact("Who mended {t}?", "{f} mended {t}.")
    w.fact("What did {f} need to mend {t}?", "{f} needed {t.part} to mend {t}.")
    w.end("To say thank you, {h} gave {f} {food.a}.", '"Thank you, {f}!" said {h}.')


@plot()
def shy_newcomer(w: World) -> None:
    """Someone new is too shy to speak, until the hero brings the thing along."""
    w.open()
    w.have(w.h)
    w.say("{day} {f.a} moved into the empty house by the {p.noun}.")
    w.feel(
        w.f, "shy", "{f} was so shy that {f.he} hid behind the curtain when people passed.", "{f} was too shy to speak."
    )
    w.say('"How can I make {f.him} feel welcome?" {h} asked out loud.', "{h} waved, but {f} only looked at the ground.")
    w.para()
    w.go(f"{w.f}'s house", "So {h} took {t} and sat down in front of {f}'s door.")
    w.say("{h.he} {t.used}. {t.joy}", "{h.he} did not knock. {h.he} just {t.used}.")
    w.say("After a while the door opened a little. Then it opened a little more.")
    w.say('"Is that your {t.noun}?" asked {f}[ softly|]. "Yes," said {h}. "Would you like to try it?"')
    w.give(w.h, w.f, w.t, "{h} gave {t} to {f}, and {f.he} had a turn.")
    w.feel(w.f, "happy", "Soon {f} was talking and laughing, as happy as could be.")
    w.give(w.f, w.h, w.t, "When it grew late, {f} gave {t} back to {h}.", "Before {h} left, {f.he} gave {t} back.")
    w.fact("Who moved into the empty house?", "{f} moved into the empty house.")
    w.end('"Come back tomorrow," said {f}, who was not shy at all now.')


@plot()
def promise(w: World) -> None:
    """The hero borrows the thing and brings it back in time, though the way is hard."""
    w.open()
    w.have(w.f, "{h.his} neighbor was {f.a}, who owned {t.a}.", "{f.a} lived nearby and had {t.a}.")
    w.say('{day} {h} asked, "May I borrow your {t.noun}?" "Yes," said {f}, "but I need it back before dark."')
    w.give(w.f, w.h, w.t, '"I promise," said {h}, and {f} gave {h.him} {t}.')
    w.go(w.p.noun, "{h} took it {p.to}, where {h.he} {t.used}. {t.joy}")
    w.para()
    w.say("The hours flew by. Suddenly {h} saw that the sun was low.", "When {h} looked up, it was nearly evening.")
    w.say('"[I gave my word|I made a promise]," {h.he} said, and {h.he} began to run.')
    w.say(
        "A fallen tree lay across the path, so {h} climbed over it.",
        "The gate was shut, so {h} went the long way around.",
    )
    w.maybe(
        0.6, "{h.his} legs were tired, but {h.he} did not stop.", "A friend called to {h.him}, but {h} did not stop."
    )
    w.go(f"{w.f}'s house", "Just before dark, {h} knocked on {f}'s door.")
    w.give(w.h, w.f, w.t, '"Here it is," said {h}, and gave {t} back to {f}.')
    w.feel(w.f, "glad", '"You kept your promise," said {f}. {f.he} was glad.')
    w.fact("What did {h} promise?", "{h} promised to bring {t} back before dark.")
    w.fact("Who owned {t}?", "{f} owned {t}.")
    w.end('"You may borrow it any time," {f} added.', "{f} gave {h.him} {food.a} for the way home.")


@plot()
def prank(w: World) -> None:
    """The hero hides the friend's thing for fun, sees the tears and puts it right."""
    w.open()
    w.have(
        w.f, "{h} had a friend, {f.a}, who loved {f.his} {t.adjective} {t.noun}.", "{f.a} lived nearby and had {t.a}."
    )
    w.say("{day} {h} wanted to play a trick.", "{h} liked jokes. {day} {h.he} thought of a new one.")
    w.go(w.p.noun)
    w.put(w.t, w.s, "When {f} was not looking, {h} hid {t} {s}.", "{h} took {t} while {f} slept, and hid it {s}.")
    w.say('"What fun this will be!" {h} thought[, and {h.he} giggled|].')
    w.para()
    w.feel(w.f, "sad", "{f} looked for {t} everywhere. At last {f.he} sat down and cried.")
    w.feel(
        w.h, "sorry", "Then it was not funny anymore, and {h} felt sorry.", "{h} saw the tears and stopped laughing."
    )
    w.say(
        '"I hid it," said {h}. "It was a bad joke. I am sorry."', '"It was me," said {h} in a low voice. "I am sorry."'
    )
    w.take(w.h, w.t, "{h.he} ran {p.to} and fetched {t}.", "{h} went {p.to} and came back with {t}.")
    w.give(w.h, w.f, w.t, "Then {h.he} gave it back to {f}.", "{f} dried {f.his} eyes and took {t} from {h}.")
    w.feel(w.h, "glad", "Now both of them were glad.", "{f} was glad, and so was {h}.")
    w.fact("Who hid {t}?", "{h} hid {t}.")
    w.fact("Where did {h} hide {t}?", "{h} hid {t} {s}.")
    w.end('"Next time, play a trick that makes us both laugh," said {f}.', "They shared {food.a}, and all was well.")


@plot(skip="rope")
def rescue(w: World) -> None:
    """A friend is stuck, and the hero pulls with a rope."""
    w.open()
    w.say("{day} {h} was on the way {p.to} when {h.he} heard a cry for help.")
    w.walk(0.3)
    w.take(w.f, w.t, "In a deep hole by the path sat {f.a}, who was holding {t.a}.")
    w.say('"I was looking at my {t.noun} and not at the path," said {f}, "so I fell in!"')
    w.feel(w.f, "afraid", "{f} was afraid, because the walls were too steep to climb.")
    w.para()
    w.go(w.p.noun, '"Wait here!" said {h}. {h.he} ran {p.to} and found a long rope.')
    w.go("the hole", "{h} tied one end to a tree and threw the other end down.")
    w.say('"[Hold on|Hold tight]!" called {h}. {h.he} pulled and pulled, and up came {f}, {t} and all.')
    w.feel(w.f, "safe", '"I am safe now, thanks to you," said {f}.', "Then {f} sat on the grass, safe at last.")
    if w.rng.random() < 0.5:
        w.give(w.f, w.h, w.t, '"Please take my {t.noun} as a gift," {f.he} said, and {h} took it.')
        w.end("{h} {t.used} that same evening. {t.joy}")
    else:
        w.say("To cheer them both up, {f.he} {t.used}. {t.joy}")
        w.end("From that day on, {f} kept {f.his} eyes on the path.")
    w.fact("Where was {f} stuck?", "{f} was stuck in a deep hole by the path.")
    w.fact("What did {h} use to help {f}?", "{h} used a long rope to help {f}.")


@plot("sunny cloudy", skip="basket bucket")
def planting(w: World) -> None:
    """The hero plants a seed, waits, and trades the harvest for the thing."""
    w.open()
    w.names["crop"] = w.rng.choice(["pumpkin", "melon", "cabbage", "turnip", "sunflower", "squash"])
    w.say("{day} {h} planted one small seed behind the house.", "{day} {h} found a seed and put it in the ground.")
    w.say("{h.he} watered it and waited. Nothing happened.", "{h} looked every hour, but there was only brown earth.")
    w.say('"Seeds need time," said {f.a} from over the fence.', '{f.a} came by. "Be patient," {f.he} told {h.him}.')
    w.say("So {h} waited. [In a week|After ten days] there was a green shoot, and then came leaves.")
    w.para()
    w.say("By the end of summer, the seed had become a huge {crop}.")
    w.feel(w.h, "proud")
    w.have(w.f, 'When {f} saw it, {f.he} clapped. "I will give you {t.a} for it!" {f.he} said.')
    w.give(
        w.f, w.h, w.t, "So {f} took the {crop}, and {h} got {t}.", "{h} was glad to trade, and {f} gave {h.him} {t}."
    )
    w.say("{h} {t.used}. {t.joy}")
    w.fact("What grew from the seed?", "A huge {crop} grew from the seed.")
    w.fact("What did {h} get for the {crop}?", "{h} got {t} for the {crop}.")
    w.end("{h} kept one new seed for the next spring.", "Next year {h} planted two seeds.")


@plot()
def wrong_guess(w: World) -> None:
    """The hero thinks a friend took the thing, but it was somewhere else all along."""
    w.open()
    w.have(w.h)
    w.put(w.t, w.s)
    w.say("{day} {t} was not in its place.", "{day} {h} looked for {t}, but could not find it.")
    w.say("Now next door lived {f.a}.", "Only {f.a}, who lived next door, had been there that week.")
    w.feel(w.h, "angry", '"{f} must have taken it!" {h} said. {h.he} was angry.')
    w.say('{h} marched over. "Give me back my {t.noun}!" {h.he} [shouted|cried].')
    w.say('"I do not have it," said {f}[ quietly|]. "But I will help you look."')
    w.para()
    w.say(
        "They looked in every room. They looked under the stairs.", "First they looked in the house, then in the yard."
    )
    w.go(w.p.noun, '"You were {p.at} yesterday," said {f}. So they went {p.to}.')
    w.take(w.h, w.t, "There was {t}, {s}. {h} picked it up.", "And there it was, {s}! {h} took it and went red.")
    w.feel(w.h, "sorry", '"I was wrong about you," said {h}. "I am sorry."')
    w.say('"[That is all right|Never mind]," said {f}[ kindly|]. "Anyone can make a mistake."')
    w.fact("Who did {h} think had taken {t}?", "{h} thought that {f} had taken {t}.")
    w.fact("Where was {t} all along?", "The {t.noun} was {s}.")
    w.end("To make up for it, {h} let {f} have the first turn with it.", "{h} shared {food.a} with {f} that evening.")


@plot("cloudy cold windy sunny")
def night_walk(w: World) -> None:
    """A frightening noise in the dark turns out to be a friend bringing the thing."""
    w.open()
    w.have(w.h)
    w.go(w.p.noun, "{day} {h} took {t} {p.to} and did not notice how late it was.")
    w.put(w.t, w.s)
    w.say("When {h.he} set out for home, it was already dark.", "By the time {h.he} turned back, the stars were out.")
    w.say("The trees looked tall and black. Step, step, step went something behind {h.him}.")
    w.feel(w.h, "afraid", "{h} was afraid and began to walk faster.", "{h.his} heart beat fast, for {h.he} was afraid.")
    w.say("But the steps came faster too.", "The steps did not stop.", "Step, step, step! They came closer.")
    w.para()
    w.say('"Who is there?" cried {h}. "It is only me," said a [friendly|soft] voice.')
    w.take(w.f, w.t, "Out of the dark came {f.a}, who was carrying {t}.")
    w.say('"You left this {s}," said {f}. "I have been running after you."')
    w.feel(w.h, "glad", "{h} [laughed|let out a long breath]. {h.he} was so glad that {h.he} hugged {f}.")
    w.give(w.f, w.h, w.t, "{f} gave {h.him} {t}, and they went on together.")
    w.go("home")
    w.fact("Who was walking behind {h}?", "{f} was walking behind {h}.")
    w.fact("Where had {h} left {t}?", "{h} had left {t} {s}.")
    w.end("With a friend, the dark was not so dark.", "At the door they said good night.", together=False)


@plot()
def letter(w: World) -> None:
    """A letter with no name on it asks the hero to come and bring the thing."""
    w.set_places(*OUTDOORS)
    w.open()
    w.have(w.h)
    w.say(
        "{day} there was a letter under the door. It had no name on it.",
        "{day} a sparrow dropped a letter at the door.",
    )
    w.say('It said: "Come {p.to} and bring your {t.noun}."', 'The letter said, "Please bring your {t.noun} {p.to}."')
    w.feel(
        w.h, "curious", "{h} was curious. Who had written it?", '"Who can it be from?" said {h}, who was very curious.'
    )
    w.go(w.p.noun, "So {h} took {t} and went {p.to}.", "{h.he} picked up {t} and hurried {p.to}.")
    w.walk()
    w.para()
    w.say("{p.at} stood {f.a} beside a table with {food.a} on it.")
    w.say('"I wrote the letter," said {f}. "Today I have a party, and I need your help."')
    w.say('{f.he} pointed at {t}. "Nobody else has one, and a party is no fun without it!"')
    w.say("{h} laughed and {t.used}. {t.joy}", "So {h} {t.used}, and {f} clapped. {t.joy}")
    w.feel(w.f, "happy")
    w.fact("Who wrote the letter?", "{f} wrote the letter.")
    w.fact("What did the letter ask {h} to bring?", "The letter asked {h} to bring {t}.")
    w.end("Then the guests came, and everyone had some of {food}.", "{h} kept the letter in a box for many years.")


@plot()
def saving_up(w: World) -> None:
    """The hero works for coins to buy the thing."""
    w.open()
    w.put(w.t, "in the window of a shop", "{day} {h} saw {t.a} in the window of a shop.")
    w.names["n"] = w.rng.choice(["three", "four", "five", "six"])
    w.say("It cost {n} coins, and {h} had none.", '"How much is it?" asked {h}. "{n} coins," said the shopkeeper.')
    w.say("{h} looked at it for a long time[ and sighed|]. Then {h.he} had an idea.")
    w.say("{h.he} went to {f.a}, who always had too much to do.", "{f.a} needed help, so {h} went there.")
    w.say('"[May I work for you|Do you have any work for me]?" asked {h}. "Gladly," said {f}.')
    w.para()
    w.say(
        "{h} [swept the yard|washed the windows|carried wood|pulled weeds] day after day, and {f} paid one coin a day."
    )
    w.feel(w.h, "tired", "{h} was tired each evening, but {h.his} purse grew heavy.")
    w.say("After {n} days, {h} had {n} coins.")
    w.go("the shop", "{h.he} ran to the shop with all of {h.his} coins.")
    w.take(w.h, w.t, "{t} was still there, and {h} bought it.", "{h} paid the {n} coins, and {t} was {h.his} at last.")
    w.feel(w.h, "proud", "{h} was proud, because {h.he} had earned it.")
    w.fact("How many coins did {t} cost?", "The {t.noun} cost {n} coins.")
    w.fact("Who paid {h}?", "{f} paid {h}.")
    w.end("First of all, {h} showed it to {f}. {t.joy}")


@plot()
def down_the_river(w: World) -> None:
    """The thing falls into the stream, and someone further down fishes it out."""
    w.set_places("river")
    w.open()
    w.have(w.h)
    w.say("{day} {h} was crossing the river on the stepping stones with {t}.")
    w.put(w.t, "in the river", "{h.he} slipped, and {t} fell into the water with a splash.")
    w.say("The river carried it away, around the bend and out of sight.", "Before {h} could move, it was far away.")
    w.feel(w.h, "sad", '"Come back!" {h} cried, and {h.he} was very sad.', "{h} sat down on the bank and felt sad.")
    w.para()
    w.say(
        "Further down, {f.a} was [washing a shirt|sitting by the water|catching nothing at all] when something came by."
    )
    w.take(w.f, w.t, '"[What is this?|Well, well!]" said {f}, and {f.he} pulled {t} out with a stick.')
    w.say("{f} dried it well and walked up the river to find out whose it was.", "{f} shook the water off it.")
    w.go("the river", "Soon {f.he} came to {h} on the bank.")
    w.say('"Have you lost {t.a}?" asked {f}. {h} jumped up. "Yes! It is mine!"')
    w.give(w.f, w.h, w.t, "{f} gave {t} to {h}.", "So {f} handed {t} over to {h}.")
    w.feel(w.h, "thankful", "{h} was so thankful that {h.he} danced on the bank.")
    w.fact("Who pulled {t} out of the river?", "{f} pulled {t} out of the river.")
    w.end("After that, {h} always took the bridge.", "{h} invited {f} to share {food.a}.")


@plot()
def wrong_parcel(w: World) -> None:
    """A parcel comes to the wrong door."""
    w.open()
    w.take(w.h, w.t, "{day} a parcel came, and {h} opened it. Inside was {t.a}.")
    w.say("{h.he} {t.used}. {t.joy}", '"What a lovely {t.noun}!" said {h}.')
    w.say('Then {h} saw the name on the paper. It was not {h.his} name. It said "{f}".')
    w.feel(w.h, "sorry", "{h} was sorry, because {h.he} wanted to keep {t}.")
    w.maybe(0.5, '"Nobody would know," {h} thought. But {h.he} would know.')
    w.para()
    w.go(f"{w.f}'s house", "So {h} wrapped it up again and carried it down the lane to {f.a}.")
    w.walk(0.3)
    w.give(w.h, w.f, w.t, '"This is yours. I opened it by mistake," said {h}, and gave {t} to {f}.')
    w.say('"[I have been waiting for this|My aunt sent it]!" said {f}. "Thank you for telling me."')
    w.feel(w.f, "delighted", "{f} was delighted, and {f.he} asked {h.him} to come in.")
    w.say("They had {food.a}, and {f} let {h} try {t} again.", "They sat by the window and ate {food.a}.")
    w.fact("Whose name was on the paper?", "The name on the paper was {f}.")
    w.fact("Where was {t} at first?", "At first, {t} was in a parcel.")
    w.end("{h} was no longer sorry at all.")


@plot()
def two_want_one(w: World) -> None:
    """Two find the thing at the same moment and quarrel, then take turns."""
    w.open()
    w.go(w.p.noun, "{day} {h} went {p.to}.", "{day} {h} took a walk {p.to}.")
    w.walk()
    w.put(w.t, w.s, "{s}, {h.he} saw {t.a} that belonged to nobody.")
    w.say("At the same moment, {f.a} saw it too.", "But {f.a} had seen it too.")
    w.say('"It is mine!" cried {h}. "No, I saw it first!" cried {f}.')
    w.say("They pulled and pulled, [until both of them fell over|and neither would let go].")
    w.feel(w.h, "cross", "{h} was cross, and {f} was cross too.")
    w.para()
    w.say('"Wait," said {f}. "If we pull like this, it will break."', '"Stop," said {f}. "This is silly."')
    w.say('"You are right," said {h}. "We could take turns."', '"Then let us take turns," said {h}.')
    first, second = (w.h, w.f) if w.rng.random() < 0.5 else (w.f, w.h)
    w.names.update(x=first, y=second)
    w.take(first, w.t, "{x} had the first turn. {x.he} {t.used}. {t.joy}")
    w.give(first, second, w.t, "Then {x} gave {t} to {y}, and {y.he} took it home for the night.")
    w.feel(w.h, "happy")
    w.fact("Who had the first turn?", "{x} had the first turn.")
    w.fact("Where did they find {t}?", "They found {t} {s}.")
    w.end("After that it went from house to house, one day here and one day there.", together=False)


@plot(
    skip="ring crown hat scarf coat blanket pillow cup mirror key shell feather painting stool candle basket bag bucket"
    " wagon broom spoon pot teapot umbrella doll book lantern"
)
def learning(w: World) -> None:
    """The hero cannot do something with the thing; the friend shows how, step by step."""
    w.open()
    w.have(w.h, "{h.his} uncle sent {h.him} {t.a}.", "For {h.his} birthday {h} got {t.a}.")
    w.say("{day} {h} wanted to {t.use}, but it did not go well.", "{day} {h} tried to {t.use}, but all went wrong.")
    w.say("{h.he} tried [once more|a second time], and it was even worse.", "{h.he} tried again. It was no better.")
    w.feel(w.h, "angry", '"I will never learn!" said {h}, who was angry by now.')
    w.put(w.t, "on the ground", "{h.he} put {t} on the ground and looked away.")
    w.para()
    w.say('{f.a} was watching. "May I show you?" {f.he} asked.', '"Not so fast," said {f.a}, who had seen it all.')
    w.take(w.f, w.t, "{f} picked up {t} and showed {h.him}, slowly, one step after another.")
    w.give(w.f, w.h, w.t, '"Now you," said {f}, and gave {t} to {h}.')
    w.say("{h} took a deep breath and tried. It [almost worked|was better]. {h.he} tried again.")
    w.say("This time {h} {t.used} with no trouble at all. {t.joy}")
    w.feel(w.h, "proud")
    w.fact("Who helped {h} to learn?", "{f} helped {h} to learn.")
    w.end('"You see?" said {f}. "It only takes practice."', '"Again!" cried {h}, and {f} laughed.')


@plot(skip="map")
def treasure_map(w: World) -> None:
    """An old map leads to a box with the thing in it."""
    w.set_places(*OUTDOORS)
    w.open()
    w.say("{day} {h} found an old map in a [drawer|teapot|book]. It had a red cross on it.")
    w.say("{h.he} showed it to {f.a}.", "{h.he} took it to {f.a}, who knew every path.")
    w.say('"The cross is {p.at}!" said {f}. "{h}, get a spade."', '"I know where that is," said {f}. "It is {p.at}."')
    w.go(w.p.noun, "They walked {p.to} and began to dig.", "The two of them ran {p.to} with a spade.")
    w.say("They dug and dug. There were only stones and roots.", "They dug one hole, and then another. Nothing!")
    w.feel(w.h, "tired", "{h} was tired and wanted to stop.")
    w.para()
    w.say('"One more try," said {f}. Clunk! The spade hit something hard.', "Then the spade hit something. Clunk!")
    w.take(w.h, w.t, "It was a box. {h} opened it and took out {t.a}.")
    w.say('"No gold," said {f}. "This is better," said {h}.', "{h.he} wiped the dust off {t}. {t.joy}")
    w.feel(w.h, "excited", "{h} was so excited that {h.he} {t.used} right there.")
    w.fact("What was in the box?", "There was {t.a} in the box.")
    w.fact("Where was the box?", "The box was {p.at}.")
    w.end('"Who put it there?" asked {f}. They never found out.', "They put the map back where it came from.")


@plot("foggy snowy", skip="ring key feather compass shell stool sled wagon pillow book candle spoon")
def lost_way(w: World) -> None:
    """The hero is lost and knows the right way again by the thing."""
    w.open()
    w.have(w.f, "{h.his} friend was {f.a}, who had {t.a}.", "{f.a} was {h.his} friend and owned {t.a}.")
    w.say("{day} {h} set out to visit {f}. The road was hard to see.", "{day} {h} wanted to visit {f} on the hill.")
    w.go("the path", "{h.he} turned left at a stone, then right at a tree. Everything looked the same.")
    w.walk()
    w.feel(w.h, "lost", '"I am lost," said {h}[ in a small voice|].', "Soon {h} was lost.")
    w.para()
    w.say("At home, {f} looked at the clock. {h} was late.", "{f} waited and waited, but nobody came.")
    w.put(w.t, "on the gate", "So {f} went out and hung {t} on the gate, where it could be seen.")
    w.say("{f.he} called as loudly as {f.he} could.", "Then {f.he} banged on a pan.")
    w.say("Far away, {h} heard it. {h.he} followed the sound, step by step.")
    w.go(f"{w.f}'s house", "And there in front of {h.him}, on the gate, was {t}!")
    w.say('"I know that {t.noun}!" cried {h}. "I am here!"')
    w.feel(w.h, "safe", "{f} opened the door, and soon {h} was safe and warm by the fire.")
    w.fact("Who hung {t} on the gate?", "{f} hung {t} on the gate.")
    w.fact("How did {h} find the house?", "{h} followed the sound and saw {t} on the gate.")
    w.end("They had {food.a} and talked about the long way.")


@plot()
def sick_friend(w: World) -> None:
    """The hero lends the thing to a friend who is ill."""
    w.open()
    w.have(w.h)
    w.say("{day} {h.his} friend {f.full} was ill in bed.", "{day} {h} heard that {f.full} was ill.")
    w.feel(w.f, "sad", "{f} had a cough and was sad, because the days were long.")
    w.go(f"{w.f}'s house", "{h} took a pot of soup and {t} and went to visit {f.him}.")
    w.walk(0.3)
    w.say('"How are you?" asked {h}. "I am so bored," said {f}.', "{f} ate a little soup and smiled a little.")
    w.give(w.h, w.f, w.t, '"You may keep my {t.noun} until you are well," said {h}, and gave it to {f}.')
    w.say("{f} liked it very much. {t.joy}", "{t.joy} {f} forgot all about the cough.")
    w.para()
    w.say("Every day {h} came again, and every day {f} felt a little better.")
    w.say("After a week, {f} was well and got out of bed.", "At the end of the week, {f.he} could run again.")
    w.give(w.f, w.h, w.t, "{f.he} went to {h}'s house and gave {t} back.", "{f.he} brought {t} back to {h}.")
    w.go("home")
    w.feel(w.f, "well", '"You and your {t.noun} made me well," said {f}.')
    w.fact("Who was ill?", "{f} was ill.")
    w.fact("Who lent {t} to {f}?", "{h} lent {t} to {f}.")
    w.end('"And the soup!" said {h}. "And the soup," said {f}.')


@plot()
def lending(w: World) -> None:
    """The hero lends the thing, waits for it, and gets it back with something on top."""
    w.set_places("barn", "school", "castle", "market", "library")
    w.open()
    w.have(w.h)
    w.say("{day} {f.a} knocked on the door.", "{day} {f.a} came to see {h.him}.")
    w.say('"[Could you lend me|May I borrow] your {t.noun}?" asked {f}. "I need it for a show {p.at}."')
    w.say("{h} did not like to lend things. But {f} looked so hopeful.", "{h} thought about it for a moment.")
    w.give(w.h, w.f, w.t, '"Take good care of it," said {h}, and gave {t} to {f}.')
    w.para()
    w.say("One day went by, and then two. {h} looked down the road.", "{h} waited a whole day, and then another.")
    w.feel(w.h, "worried", '"Will I see my {t.noun} again?" {h} wondered. {h.he} was worried.')
    w.say("On the third day there was a knock.", "Then, on the third day, someone came up the path.")
    w.give(w.f, w.h, w.t, "It was {f}. {f.he} gave {t} back to {h}, clean and whole.")
    w.say('"The show went well," said {f}, "and this is for you." It was {food.a}.')
    w.feel(w.h, "glad", "{h} was glad that {h.he} had said yes.")
    w.fact("Why did {f} need {t}?", "{f} needed {t} for a show {p.at}.")
    w.fact("When did {f} come back?", "{f} came back on the third day.")
    w.end("They ate {food} on the doorstep.")


@plot()
def surprise(w: World) -> None:
    """The hero thinks everyone has forgotten the birthday, but they have not."""
    w.open()
    w.say("{day} it was {h}'s birthday, but nobody said a word about it.")
    w.say("{h} met {f.a}, but {f.he} only said hello and hurried on.", "Even {h.his} friend {f.full} walked past.")
    w.feel(w.h, "lonely", '"They have all forgotten," thought {h}, and {h.he} felt lonely.')
    w.go(w.p.noun, "{h.he} went {p.to} and sat there alone.", "So {h} walked {p.to} all alone.")
    w.walk()
    w.para()
    w.go("home", "When it was nearly dark, {h} went home. The house was dark and still.")
    w.say('{h.he} opened the door. "Surprise!" cried many voices[, and all the lamps were lit|].')
    w.say("There was {food.a}, and there were all {h.his} friends.", "On the table stood {food.a} just for {h.him}.")
    w.take(w.f, w.t)
    w.give(w.f, w.h, w.t, "{f} stepped forward and gave {h} {t.a}.", '"This is for you," said {f}, and gave {h} {t.a}.')
    w.say("{h} {t.used}. {t.joy}", '"{t.a}!" cried {h}. "How did you know?"')
    w.feel(w.h, "happy", "{h} was so happy that {h.he} could hardly speak.")
    w.fact("Whose birthday was it?", "It was {h}'s birthday.")
    w.fact("Who gave {t} to {h}?", "{f} gave {t} to {h}.")
    w.end('"We would never forget you," said {f}.', "They danced until midnight.")


@plot("sunny cloudy windy cold")
def hide_and_seek(w: World) -> None:
    """The thing gives away a perfect hiding place."""
    w.set_places("barn", "orchard", "garden", "mill", "stable", "meadow")
    w.open()
    w.have(w.h)
    w.maybe(0.6, "{h.he} took it everywhere.", "Wherever {h} went, {t} went too.")
    w.go(w.p.noun, "{day} {h} played hide and seek {p.at} with {f.a}.")
    w.say('"One, two, three," {f} counted with {f.his} eyes shut.', "{f} closed {f.his} eyes and counted to twenty.")
    w.names["nook"] = w.rng.choice(["an old barrel", "a tall basket", "a heap of straw", "a big crate"])
    w.say("{h} crept into {nook} and kept very still.", "{h} hid in {nook} and did not make a sound.")
    w.para()
    w.say(
        "{f} looked here and there. {f.he} walked past twice.",
        '"Where can {h.he} be?" said {f}. {f.he} looked all around.',
    )
    w.say("{h} wanted to laugh, but {h.he} kept quiet.", "It was dark in there, and a bit dusty.")
    w.say("But {h} had forgotten one thing. {t} was sticking out!", "But a bit of {t} was peeking out, and {f} saw it.")
    w.say('"Found you!" cried {f}. "Your {t.noun} told me where you were."')
    w.feel(w.h, "surprised", "{h} was surprised, and then {h.he} laughed.")
    w.fact("Where did {h} hide?", "{h} hid in {nook}.")
    w.fact("How did {f} find {h}?", "{f} saw {t} sticking out.")
    w.end("Then it was {h}'s turn to count.", '"Next time I will leave it at home," said {h}.')


@plot(skip="wagon sled stool")
def magpie(w: World) -> None:
    """A magpie steals the thing and takes something shiny instead."""
    w.open()
    w.have(w.h)
    w.say("{day} {h} left {t} by the open window.", "{day} {h} put {t} down on the doorstep, just for a moment.")
    w.put(w.t, "in the nest", "Swoosh! A magpie flew down, grabbed {t} and carried it up to its nest.")
    w.feel(
        w.h,
        "upset",
        '"Thief!" cried {h}, who was very upset.',
        "{h} was upset, for the nest was at the top of a tall tree.",
    )
    w.say("{h.he} called {f.a}, who was not afraid of heights.", "{f.a} heard the shout and came running.")
    w.say('"We cannot just take it," said {f}. "She will only steal it again. Magpies like shiny things."')
    w.para()
    w.say("So {h} fetched a [bright button|piece of glass] and laid it on the grass.")
    w.say("Down flew the magpie to look at it.")
    w.take(w.f, w.t, "Quickly {f} climbed up and got {t}.")
    w.give(w.f, w.h, w.t, "Back on the ground, {f.he} gave {t} to {h}.")
    w.maybe(0.5, "The magpie kept the shiny gift.")
    w.feel(w.h, "glad")
    w.fact("Who took {t} from {h}?", "A magpie took {t} from {h}.")
    w.fact("Who climbed up to the nest?", "{f} climbed up to the nest.")
    w.end("From then on, {h} kept the window shut.", "Now and then, {h} left a button out for the magpie.")


@plot()
def whose_is_it(w: World) -> None:
    """The hero finds the thing and asks around until the owner is found."""
    w.open()
    w.go(w.p.noun, "{day} {h} was walking {p.to} when {h.he} saw something odd.", "{day} {h} went {p.to}.")
    w.take(w.h, w.t, "{s} lay {t.a}. {h} picked it up and looked around, but nobody was there.")
    w.say('"Somebody will miss this," {h.he} said.', "{h} liked it, but it was not {h.his}.")
    w.say('{h} asked the [mail carrier|innkeeper]. "It is not mine," was the answer.')
    w.say(
        "{h.he} asked at the school and at the inn. Nobody knew.",
        "{h.he} asked at ten doors, and ten times the answer was no.",
    )
    w.para()
    w.say("At last {h} came to a house where {f.a} sat on the steps, looking sad.")
    w.say('"Why are you sad?" asked {h}. "I have lost my {t.adjective} {t.noun}," said {f}.')
    w.give(w.h, w.f, w.t, '"Is it this one?" said {h}, and gave {t} to {f}.')
    w.feel(w.f, "happy", "{f} [jumped up|shouted for joy]. {f.he} was so happy that {f.he} {t.used} then and there.")
    w.fact("Where did {h} find {t}?", "{h} found {t} {s}.")
    w.fact("Whose {t.noun} was it?", "It was {f}'s {t.noun}.")
    w.go(f"{w.f}'s house")
    w.end("{f} asked {h} in for {food.a}.", '"You walked all day just for me?" said {f}. "Yes," said {h}.')


@plot("windy", skip="wagon sled stool bucket pot")
def up_a_tree(w: World) -> None:
    """The wind puts the thing in a tree, and it takes three tries to get it down."""
    w.set_places("meadow", "orchard", "hill", "garden")
    w.open()
    w.have(w.h)
    w.go(w.p.noun, "{day} {h} was {p.at} with {t}.", "{day} {h} took {t} {p.to}.")
    w.put(w.t, "in the tree", "A gust of wind tore {t} away and left it high up in a tree.")
    w.say("First {h} shook the tree. Nothing fell but leaves.", "First {h} jumped, but {h.he} could not reach it.")
    w.say("Then {h.he} threw a stick. The stick got stuck as well!", "Then {h.he} threw a stone, but it missed.")
    w.feel(w.h, "sad", "{h} was sad, and {h.he} did not know what else to try.")
    w.para()
    w.say('{f.a} came along. "Shall we try together?" {f.he} asked.', '"That tree is too tall for one," said {f.a}.')
    w.say("{f} stood under the tree, and {h} climbed onto {f.his} shoulders. {h.he} stretched as far as {h.he} could.")
    w.take(w.h, w.t, "Up, up, a bit more, and {h} had {t}!", "{h.he} got hold of it and pulled. Down came {t}!")
    w.feel(w.h, "glad", '"Thank you!" cried {h}. {h.he} was glad and out of breath.')
    w.fact("How did {t} get into the tree?", "The wind blew {t} into the tree.")
    w.fact("Who helped {h}?", "{f} helped {h}.")
    w.end("This time {h} held on tight.", '"What a wind!" said {f}.')


@plot()
def one_coin(w: World) -> None:
    """At the fair the hero has one coin, and must choose between food and the thing."""
    w.set_places("market", "castle", "meadow", "harbor", "school")
    w.open()
    w.say("{day} there was a fair {p.at}, and {h} had one coin to spend.")
    w.go(w.p.noun, "{h.he} walked from stall to stall.", "{h} went there as soon as it opened.")
    w.put(w.t, "on a stall", "On one stall there was {t.a}. On the next there was {food.a}, and it smelled good.")
    w.say('"I am hungry," thought {h}, "but I would love that {t.noun}."', "{h} could not choose. {h.he} wanted both.")
    w.say("There {h.he} met {f.a}, who had one coin too.", "Beside {h.him} stood {f.a}, who could not choose either.")
    w.para()
    w.say('"I have an idea," said {f}. "You buy one, I buy the other, and we share."')
    w.take(w.h, w.t, "So {h} bought {t}, and {f} bought {food}.")
    w.say("They sat down on the grass and shared {food}. Then {h} {t.used}, and {f} had a turn too.")
    w.say("With one coin each, they had two treats.", "It was good to have both.")
    w.feel(w.h, "pleased", "{h} was very pleased with {h.his} coin.")
    w.fact("What did {h} buy?", "{h} bought {t}.")
    w.fact("What did {f} buy?", "{f} bought {food}.")
    w.end("At the end of the fair, they had no coins and no worries.")


@plot()
def the_show(w: World) -> None:
    """The hero is nervous before a show, and a friend helps."""
    w.set_places("barn", "school", "castle", "market", "library")
    w.open()
    w.have(w.h)
    w.say("{day} there was a show {p.at}, and {h} was to go on stage with {t}.")
    w.go(w.p.noun, "{h} stood behind the curtain and looked out. So many faces!")
    w.feel(
        w.h,
        "nervous",
        "{h} was so nervous that {h.his} knees shook.",
        '"I cannot do it," said {h}. {h.he} was nervous.',
    )
    w.say("{f.a} was standing there too, waiting for a turn.", "Next to {h.him} stood {f.a}.")
    w.para()
    w.say(
        '"Look only at me," said {f}. "I will sit in the front row."',
        '"Do it just for me," said {f}. "I like your {t.noun}."',
    )
    w.say(
        "Then the curtain rose. {h} saw {f} and nobody else.",
        "So {h} stepped out and looked for {f}. There {f.he} was!",
    )
    w.say("{h} {t.used}. {t.joy}", "{h.he} {t.used}, just as {h.he} did at home. {t.joy}")
    w.say("It was quiet for a moment. Then everyone clapped and cheered.", "The people clapped for a long time.")
    w.feel(w.h, "proud", "{h} bowed. {h.he} was proud.")
    w.fact("Where was the show?", "The show was {p.at}.")
    w.fact("Who helped {h} before the show?", "{f} helped {h} before the show.")
    w.end('"I knew you could do it," said {f}.', "Next came {f}, and this time {h} sat in the front row.")


@plot("rainy")
def muddy_visit(w: World) -> None:
    """Mud and puddles on the way to bring the thing to a friend."""
    w.set_places("pond", "hill", "river", "meadow", "orchard")
    w.open()
    w.take(w.h, w.t, "{h} had {t.a} for a friend.")
    w.say("It was for {f.a}, who lived beyond {p}.")
    w.say("{day} {h} set out. It had rained all night, so the path was muddy.", "{day} {h} set out on a muddy path.")
    w.say("{h} put on boots and held {t} under {h.his} cloak to keep it dry.")
    w.go("the path", "Squelch, squelch went the boots. Then one boot stuck fast!")
    w.say("{h} pulled and pulled. Out came {h.his} foot, but not the boot.")
    w.feel(w.h, "wet", "Now {h} was wet.")
    w.para()
    w.go(f"{w.f}'s house", "Hop, hop, hop, {h.he} came to {f}'s door on one leg.")
    w.say('"Where is your boot?" asked {f}. "In the mud," said {h}, "but your gift is dry."')
    w.give(w.h, w.f, w.t, "And {h.he} gave {t} to {f}.", "Then {h} took out {t} and gave it to {f}.")
    w.feel(w.f, "delighted", "{f} was delighted and {t.used}. {t.joy}")
    w.say("Later, {f} dug out the boot.")
    w.fact("Where did {h} lose a boot?", "{h} lost a boot in the mud.")
    w.fact("Why was the path muddy?", "The path was muddy because of the rain.")
    w.end("The boot was never quite the same again.")


@plot()
def dusty_shed(w: World) -> None:
    """While cleaning the shed the hero finds the thing, and a friend knows its story."""
    w.open()
    w.go("the shed", "{day} {h} began to clean out the old shed.", "{day} {h} opened the shed to tidy it up.")
    w.say("There were [cobwebs|old sacks|empty jars] everywhere, and the dust made {h.him} sneeze.")
    w.take(w.h, w.t, "At the very back, under a cloth, {h} found {t.a}.", "In a corner {h.he} found {t.a}.")
    w.say("It was gray with dust, so {h} cleaned it well.", "{h.he} cleaned it and {t.used}. {t.joy}")
    w.say('"Whose was it?" {h.he} wondered.', '"I have never seen this before," said {h}.')
    w.para()
    w.say("{h} showed {t} to {f.a}, who had lived there longer than anyone.")
    w.say('"I know it," said {f}. "It was your [grandfather|grandmother]\'s. I saw it every day when I was small."')
    w.say(
        "Then {f} told {h} one story after another about the old days.", "{f} smiled and told {h} about the old days."
    )
    w.feel(w.h, "happy", "{h} listened, and {h.he} was happy to know.")
    w.fact("Where did {h} find {t}?", "{h} found {t} in the shed.")
    w.fact("Who knew the story of {t}?", "{f} knew the story of {t}.")
    w.go("home")
    w.end("The shed was only half clean, but that could wait.", '"Tell me one more," said {h}.')


@plot("sunny cloudy")
def picnic(w: World) -> None:
    """Both friends forget the food, but not the thing."""
    w.set_places(*OUTDOORS)
    w.open()
    w.have(w.h)
    w.say("{day} {h} met {f.a} for a picnic {p.at}.", "{day} {h} planned a picnic {p.at} with {f.a}.")
    w.go(w.p.noun)
    w.walk(0.3)
    w.say('"I have brought my {t.noun}," said {h}. "Did you bring the food?"')
    w.say(
        '"I thought you had it!" said {f}. They looked at each other.',
        '"Me?" said {f}. "No, I thought that was your part."',
    )
    w.feel(w.h, "hungry", "{h} was hungry, and so was {f}.", '"And I am so hungry," said {h}.')
    w.para()
    w.say("{f} laughed first. Then both of them laughed until they had to sit down.")
    w.say("{f} ran home to look in the kitchen. While {f.he} was away, {h} {t.used}.")
    w.say("Soon {f.he} was back with {food.a}.", "It was not long before {f} came back with {food.a}.")
    w.say("It was the best they had ever tasted.", "They ate every bit of {food}.")
    w.feel(w.h, "full", "At last {h} was full.", "In the end {h} was full and lay back in the grass.")
    w.fact("What did {f} bring?", "{f} brought {food.a}.")
    w.fact("What did they forget?", "They forgot the food.")
    w.end('"Next time I will bring the food," said {h}. "Me too," said {f}.')


@plot()
def moving_away(w: World) -> None:
    """A friend moves away and leaves the thing to remember them by."""
    w.open()
    w.have(w.f, "{h.his} best friend was {f.a}, who owned {t.a}.", "Next door lived {f.a}, who had {t.a}.")
    w.say('{day} {f} came with bad news. "We are moving [far away|over the mountains]," {f.he} said.')
    w.feel(w.h, "sad", "{h} was so sad that {h.he} could not say a word.", '"Oh," said {h}. {h.he} felt very sad.')
    w.go(w.p.noun, "One last time they went {p.to} together.", "They walked {p.to}, as they had done so often.")
    w.give(w.f, w.h, w.t, 'There {f} gave {t} to {h}. "This is to remember me by," {f.he} said.')
    w.para()
    w.go("home", "Then the cart rolled away, and {h} waved until it was out of sight.")
    w.say("The house next door was empty. When {h} missed {f.him}, {h.he} {t.used}.", "The days were quiet after that.")
    w.say('A month later a letter came. "I miss you," it said. "Come and visit me in the spring!"')
    w.feel(w.h, "happy", "{h} read it three times, and {h.he} was happy again.")
    w.fact("Who moved away?", "{f} moved away.")
    w.fact("What did {f} give to {h}?", "{f} gave {t} to {h}.")
    w.end("That very day, {h} began to count the weeks.", "{h} wrote back at once.", together=False)


@plot("cloudy windy")
def sleepy_guard(w: World) -> None:
    """The hero falls asleep on guard, and the friend has already brought the thing in."""
    w.open()
    w.have(w.f, "{h} had a neighbor, {f.a}, who owned {t.a}.", "Across the lane lived {f.a}, who had {t.a}.")
    w.say('{day} {f} said, "I must go {p.to}. Will you watch my {t.noun}?" "Of course," said {h}.')
    w.put(w.t, "in the yard", "So {f} left {t} in the yard, and {h} sat down beside it.")
    w.say("Nothing happened. A bee flew by. {h} yawned.", "{h} counted clouds: one, two, three, four.")
    w.feel(w.h, "sleepy", "{h} was sleepy, and soon {h.his} eyes fell shut.")
    w.para()
    w.take(w.f, w.t)
    w.say("A drop of rain woke {h.him}. {t} was gone!", "When {h} woke up, it was raining, and {t} was not there!")
    w.feel(
        w.h,
        "ashamed",
        '"I had only one thing to do," said {h}, who was ashamed.',
        "{h} was ashamed and ran to tell {f}.",
    )
    w.say('"I fell asleep, and now your {t.noun} is gone," {h.he} told {f}.')
    w.say('{f} began to laugh. "I came home early," {f.he} said. "I took it inside before the rain."')
    w.feel(w.h, "relieved", "{h} was so relieved that {h.he} laughed too.")
    w.fact("Who took {t} inside?", "{f} took {t} inside.")
    w.fact("Why did {h} not see {f} come home?", "{h} was asleep.")
    w.end('"You look better after a nap," said {f}.', '"Next time I will stand," said {h}.')


@plot()
def boasting(w: World) -> None:
    """The hero boasts about the thing, needs help and learns to listen."""
    w.open()
    w.have(w.h)
    w.say('"My {t.noun} is the best in the world," {h} told everyone.', "All day long {h} talked of nothing but {t}.")
    w.go(w.p.noun, "{day} {h} walked {p.to}, {t} held up high for all to see.")
    w.say('There sat {f.a}. "Good day," said {f}, but {h} only talked about {t}.')
    w.say('"Look out!" cried {f}. But {h} did not listen.', '"Mind the ditch," said {f}. But {h} was too busy to hear.')
    w.para()
    w.go("the ditch", "Splash! {h} fell right into a ditch, and {t} landed in the mud.")
    w.put(w.t, "in the mud")
    w.feel(w.h, "ashamed", "{h} sat there, dirty and ashamed.")
    w.take(w.f, w.t, "{f} pulled {h.him} out, picked up {t} and wiped it clean.")
    w.give(w.f, w.h, w.t, '"It really is a fine {t.noun}," {f.he} said, and gave it back to {h}.')
    w.say('"Thank you," said {h}. "Now tell me about you."')
    w.feel(w.h, "happy", "So {f} talked, and {h} listened and was happy.")
    w.fact("Where did {h} fall?", "{h} fell into a ditch.")
    w.fact("Who wiped {t} clean?", "{f} wiped {t} clean.")
    w.end("It turned out that {f} knew a lot of good stories.")


def fill(rng: random.Random, hero: str | None, friend: str | None) -> tuple[Character, Character]:
    """The hero and the friend: kinds and names that suit each other and what was asked for."""
    kind, _, name = (hero or "").partition(" named ")
    if kind in GIRLS or kind in BOYS:
        kind, name = "", kind
    if kind and kind not in ANIMALS and kind not in PEOPLE:
        raise ValueError(f"unknown hero: {hero}")
    if friend and friend not in ANIMALS:
        raise ValueError(f"unknown friend: {friend}")
    he = FIXED.get(kind) or ("she" if name in GIRLS + SHE_ANIMALS else "he" if name else "")
    other = FIXED.get(friend or "", "")
    if he and he == other:
        raise ValueError(f"hero and friend must differ: {hero}, {friend}")
    he = he or ({"she": "he", "he": "she"}[other] if other else rng.choice(["she", "he"]))
    if not kind:
        child = "girl" if he == "she" else "boy"
        grown = [person for person in PEOPLE if PEOPLE[person] in ("", he)]
        kind = (
            rng.choice([child, child, *grown])
            if name or rng.random() < 0.4
            else rng.choice([k for k in ANIMALS if FIXED.get(k, he) == he])
        )
    animal = kind in ANIMALS
    first = Character(rng, kind, name or pick_name(rng, animal, he), he)
    other = "he" if he == "she" else "she"
    if rng.random() < (0.85 if animal else 0.4):
        kinds = ANIMALS
    else:
        kinds = [person for person in PEOPLE if PEOPLE[person] in ("", other)]
    friend = friend or rng.choice([k for k in kinds if k != kind and FIXED.get(k, other) == other])
    return first, Character(rng, friend, pick_name(rng, friend in ANIMALS, other), other)


def pick_name(rng: random.Random, animal: bool, he: str) -> str:
    """A name for an animal or a person."""
    if he == "she":
        return rng.choice(SHE_ANIMALS if animal else GIRLS)
    return rng.choice(HE_ANIMALS if animal else BOYS)


def story(rng: random.Random, hero: str | None = None, thing: str | None = None, friend: str | None = None) -> Story:
    """A story.  The hero is a kind ("fox"), a name ("Mira") or both ("fox named Pip"); a friend is an animal."""
    if thing and thing not in THING_ROWS:
        raise ValueError(f"unknown thing: {thing}")
    noun = thing or rng.choice(list(THING_ROWS))
    usable = [candidate for candidate in PLOTS if noun not in candidate.skip]
    while True:
        chosen = rng.choice(usable)
        first, second = fill(rng, hero, friend)
        world = World(rng, first, second, Thing(rng, noun), chosen.weather)
        chosen.build(world)
        made = world.finish(chosen.build.__name__)
        if SHORTEST <= len(made.text.split()) <= LONGEST:
            return made


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
CONTINUE = split(
    """{x}; {x}; {x}; {x}; {x}; {x} ...; Continue this story: {x}; Please go on: {x}; Start a story with "{x}"."""
)
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
SYSTEM = split("""You are a storyteller.; You tell short stories.; You are a kind storyteller who writes short stories.;
    You are a helpful assistant.; Tell short stories in simple words.; Answer in simple English.""")
FIRST_WORDS = ["Once upon a time", "Long ago", "There was once", "One day", "It was a"]

Message = dict[str, str]


def exchange(question: str, answer: str) -> list[Message]:
    """One message from the user and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def roughen(rng: random.Random, request: str) -> str:
    """Now and then, the request as a hurried person types it."""
    return request.rstrip(".!").lower() if rng.random() < 0.08 else request


def request(rng: random.Random, lines: list[str]) -> list[Message]:
    """Ask for a story with one or two ingredients; the answer is a story with them."""
    roll = rng.random()
    hero = friend = None
    thing = rng.choice(list(THING_ROWS))
    if roll < 0.9:
        kind = rng.random()
        he = rng.choice(["she", "he"])
        if kind < 0.55:
            hero = rng.choice(ANIMALS)
        elif kind < 0.7:
            hero = rng.choice(list(PEOPLE))
        elif kind < 0.88:
            hero = pick_name(rng, False, he)
        else:
            hero = f"{rng.choice(ANIMALS)} named {pick_name(rng, True, he)}"
    named = hero if hero in GIRLS or hero in BOYS else a(hero) if hero else ""
    if roll < 0.55:
        asked = [named, a(thing)] if rng.random() < 0.75 else [a(thing), named]
    elif roll < 0.65:
        friend = rng.choice([animal for animal in ANIMALS if animal not in ("hen", (hero or "").split(" ")[0])])
        asked = [named, a(friend)]
    elif roll < 0.9:
        asked = [named]
    else:
        asked = [a(thing)]
    made = story(rng, hero, thing if a(thing) in asked else None, friend)
    return exchange(roughen(rng, rng.choice(lines).format(x=" and ".join(asked))), made.text)


def request_any(rng: random.Random) -> list[Message]:
    """Ask for any story."""
    return exchange(roughen(rng, rng.choice(ASKING_ANY)), story(rng).text)


def opening(rng: random.Random) -> list[Message]:
    """Give the first words of a story; the answer is the whole story, from these words on."""
    text = story(rng).text
    parts = text.split("\n")[0].split(" ")
    start = " ".join(parts[: rng.randint(3, min(12, len(parts)))])
    for first in FIRST_WORDS:
        if text.startswith(first) and rng.random() < 0.5:
            start = first
    return exchange(rng.choice(CONTINUE).format(x=start.strip().rstrip(".,:;")), text)


def question(rng: random.Random) -> list[Message]:
    """Give a story and ask about it."""
    made = story(rng)
    asked, answer = rng.choice(made.facts)
    form = rng.choice(
        ["{text}\n\n{asked}", "{text}\n\n{asked}", "Read this story.\n\n{text}\n\n{asked}", "{asked}\n\n{text}"]
    )
    return exchange(form.format(text=made.text, asked=asked), answer)


def several_turns(rng: random.Random) -> list[Message]:
    """A story and then a question, thanks or a second request; or a greeting and then a story."""
    roll = rng.random()
    if roll < 0.4:
        made = story(rng)
        asked = rng.sample(made.facts, rng.randint(1, 2))
        turns = [exchange(*pair) for pair in asked]
        return exchange(rng.choice(ASKING_ANY), made.text) + [message for turn in turns for message in turn]
    if roll < 0.6:
        return request(rng, ASKING) + exchange(*rng.choice(list(THANKS.items())))
    if roll < 0.8:
        return request(rng, ASKING) + request(rng, ANOTHER)
    greeting = rng.choice([pair for pair in SMALL_TALK.items() if pair[1].endswith("story?")])
    return exchange(*greeting) + exchange(rng.choice(AFTER_GREETING), story(rng).text)


def small_talk(rng: random.Random) -> list[Message]:
    """A greeting or a short question."""
    return exchange(*rng.choice(list(SMALL_TALK.items())))


# Lists: nothing but looking back.  They teach a new model to find in its memory what stories take for granted.

LISTED = GIRLS + BOYS + SHE_ANIMALS + HE_ANIMALS


def narrow(names: int, animals: int, things: int) -> None:
    """Keeps the first so many names of each list, kinds of animals, and things: all that a short training can learn."""
    for row in (GIRLS, BOYS, SHE_ANIMALS, HE_ANIMALS):
        del row[names:]
    del ANIMALS[animals:]
    for noun in list(THING_ROWS)[things:]:
        del THING_ROWS[noun]
    LISTED[:] = GIRLS + BOYS + SHE_ANIMALS + HE_ANIMALS


def echo(rng: random.Random) -> str:
    """A list of words, said twice."""
    line = " ".join(rng.sample([*LISTED, *ANIMALS, *THING_ROWS], rng.randint(4, 40)))
    return f"{line}. {line}."


def belongings(rng: random.Random) -> str | list[Message]:
    """Who has what, and then a question for each of them in another order."""
    pairs = list(zip(rng.sample(LISTED, count := rng.randint(2, 8)), rng.sample(list(THING_ROWS), count)))
    told = " ".join(f"{name} has {a(thing)}." for name, thing in pairs)
    turns = []
    for name, thing in rng.sample(pairs, count):
        if rng.random() < 0.6:
            turns.append((f"Who has the {thing}?", f"{name} has the {thing}."))
        else:
            turns.append((f"What does {name} have?", f"{name} has {a(thing)}."))
    if rng.random() < 0.5:
        return " ".join([told, *(f"{asked} {answer}" for asked, answer in turns)])
    turns[0] = (f"{told} {turns[0][0]}", turns[0][1])
    return [message for turn in turns for message in exchange(*turn)]


KINDS: list[tuple[Callable[[random.Random], list[Message]], int]] = [
    (lambda rng: request(rng, ASKING), 44),
    (request_any, 10),
    (opening, 18),
    (question, 14),
    (several_turns, 10),
    (small_talk, 4),
]


def document(rng: random.Random, lists: float = 0.1) -> str | list[Message]:
    """One training document: a plain story, or the messages of a conversation; a list for that share of them."""
    if rng.random() < lists:
        return echo(rng) if rng.random() < 0.5 else belongings(rng)
    if rng.random() < 0.3:
        return story(rng).text
    (make,) = rng.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])
    messages = make(rng)
    if rng.random() < 0.08:
        messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM)})
    return messages


def documents(seed: int) -> Iterator[str | list[Message]]:
    """Endless documents; each depends on nothing but the seed and its own number."""
    number = 0
    while True:
        yield document(random.Random(f"{seed}:{number}"))
        number += 1


def whole_number(text: str) -> int:
    """A whole number, not below zero."""
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def main() -> None:
    """Write documents as JSON lines."""
    parser = argparse.ArgumentParser(description="Write generated stories and conversations as JSON lines.")
    parser.add_argument("--seed", type=int, default=0, help="which endless row of documents (default: 0)")
    parser.add_argument("--documents", type=whole_number, default=5, help="how many to write (default: 5)")
    parser.add_argument("--out", help="file to write (default: standard output)")
    args = parser.parse_args()
    try:
        out = open(args.out, "w", encoding="ascii") if args.out else sys.stdout  # noqa: SIM115
    except OSError as error:
        parser.error(f"cannot write {args.out}: {error.strerror}")
    with out:
        for _, item in zip(range(args.documents), documents(args.seed), strict=False):
            print(json.dumps({"text": item} if isinstance(item, str) else {"messages": item}), file=out)


if __name__ == "__main__":
    main()
