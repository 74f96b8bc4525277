"""The shapes of the stories: one short function each.

A plot is run once, when this file is read, over a `Shape` that writes down the beats: what is told, in which of
several ways, and what it changes. Every helper that changes the state (who holds the thing or where it lies, what
someone feels) takes the sentences that tell it, so that text and state cannot disagree, and questions are answered
from the state in which a story ends. Hero and friend never share a pronoun or a kind, so "he", "she" and "the fox"
always have one meaning.

In a line, besides what grammar.py explains:

    {h} {f}      the names of hero and friend; also {h.he} {h.him} {h.his} {h.the} ("the fox"), {h.a} ("a fox named
                 Pip") and {h.full} ("Pip the fox")
    {t} {u}      the thing and a second thing: "the kite"; also {t.a} ("a red kite"), {t.noun} and the columns of THINGS
                 in corpus.py: {t.use} {t.used} {t.joy} {t.broken} {t.part} {t.fix}
    {p} {q}      two places: "the mill"; also {p.at} ("at the mill") and {p.to} ("to the mill")
    {s} {food}   a spot in the first place ("on the steps of the mill"); "the pie", and {food.a} ("a berry pie")
    {yes} {no}   how the answer to a question ends that asks for no more
    {day}        "One windy morning," the first time in a story, "That morning," after that

To add a plot, write a function of a Shape with @plot() above it. Begin with `w.open()`, introduce the friend with
{f.a} and the thing with {t.a} or `w.have`, tell the events with `say`, `go`, `give`, `take`, `put` and `feel`, add a
question or two with `fact`, and finish with `w.end()`. @plot can limit the weather and leave out things that would be
silly, as a map in a story where another map leads to it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from grammar import Bind, Choice, Env, Mark, line

WEATHER = "sunny rainy windy foggy cold snowy cloudy"
OUTDOORS = ("pond", "meadow", "orchard", "hill", "river", "garden", "beach")


class Shape:
    """What a plot writes down: the nodes of a story after its opening, and the questions it answers."""

    h, f, t, u, s = "h", "f", "t", "u", "{s}"

    def __init__(self, name: str, weather: str, skip: str):
        self.name, self.weather, self.skip = name, (weather or WEATHER).split(), skip.split()
        self.nodes: list = []
        self.facts: list[tuple[str, str]] = []  # question, true answer
        self.words: dict[str, tuple[str, ...]] = {}  # this plot's own variables
        self.p = SimpleNamespace(noun="p")
        self.holder: dict[str, str] = {}  # who holds a thing, or the spot
        self.where, self.felt = "home", {}

    def set_places(self, *nouns: str):
        """The first place is one of these."""
        self.nodes.append(Bind("places", nouns))

    def var(self, name: str, *values: str):
        """A variable of this plot's own: one of these words, the same throughout the story."""
        self.words[name] = values

    def say(self, *lines: str):
        """Tell one of these lines, which change nothing in the world; no lines, no text."""
        if lines:
            self.nodes += line(*lines)

    def maybe(self, chance: float, *lines: str):
        """Tell one of these lines, or none."""
        self.nodes.append(Choice(((chance, line(*lines)), (1 - chance, ()))))

    def para(self, chance: float = 0.6):
        """Perhaps begin a new paragraph here."""
        self.nodes.append(Choice(((chance, (Mark("\n\n"),)), (1 - chance, ()))))

    def fact(self, question: str, answer: str):
        """Note a question that the story answers."""
        self.facts.append((question, answer))

    def take(self, who: str, thing: str, *lines: str):
        """Someone gets hold of the thing."""
        self.holder[thing] = who
        self.say(*lines)
        self.nodes.append(Bind(f"holder {thing}", who))

    def give(self, giver: str, taker: str, thing: str, *lines: str):
        """The giver, who must hold the thing, hands it over."""
        if self.holder.get(thing) != giver:
            raise ValueError(f"{self.name}: {giver} does not hold {thing}")
        self.take(taker, thing, *lines)

    def put(self, thing: str, spot: str, *lines: str):
        """The thing now lies in a spot; without lines, nobody notices."""
        self.take(spot, thing, *lines)

    def go(self, place: str, *lines: str):
        """The hero goes to a place, or "home"."""
        self.where = place
        self.say(*lines)

    def feel(self, who: str, feeling: str, *lines: str):
        """Someone feels something from now on."""
        self.felt[who] = (feeling, len(self.nodes))
        self.say(*(lines or (f"{{{who}}} was [very |so |]{feeling}.", f"{{{who}}} felt [very |]{feeling}.")))

    def recent(self, who: str) -> str:
        """What someone feels, if one of the last beats told it."""
        feeling, when = self.felt.get(who, ("", 0))
        return feeling if when >= len(self.nodes) - 8 else ""

    def open(self):
        """The opening, which all stories share, comes before."""

    def have(self, who: str, *lines: str):
        """The thing belongs to someone, and they hold it."""
        own = (
            "{h} had {t.a}, and {h.he} [loved|liked] to {t.use}.",
            "{h.his} [favorite|dearest] thing was {t.a}.",
            "{h} owned {t.a}. {t.joy}",
            "{h} had {t.a} that had once been {h.his} grandmother's.",
            "{h.he} had {t.a}. {t.joy}",
        )
        self.take(who, self.t, *(lines or own))

    def walk(self, chance: float = 0.4):
        """Perhaps tell what the weather does to the hero on the way."""
        self.maybe(chance, "{way}")

    def end(self, *lines: str, together: bool = True):
        """Close the story: a line of the plot's own, a common one that is true here, or both."""
        common = [(0.2, line(*ENDINGS))]
        if together:
            near = "home" in self.where or "house" in self.where
            common.append((0.3, line(*(TOGETHER if near else TOGETHER + WALKING_HOME))))
        if not self.recent(self.h):
            common += [
                (0.05, (*line(f"{{h}} was {how}.", f"That night {{h}} went to bed {how}."), Bind("end feeling", how)))
                for how in ("happy", "glad", "content", "proud and happy", "full of joy")
            ]
        if self.holder[self.t] == self.h:
            sleep = Choice(((1, line("Then {h.he} fell asleep.", "Then {h.he} closed {h.his} eyes.")), (1, ())))
            for told, spot in BEDTIME.items():
                put = line(f"That night {{h}} put {{t}} {told}.", f"At bedtime, {{h.he}} set {{t}} down {told}.")
                common.append((0.07, (*put, Bind("holder t", spot), sleep)))
        ending = Choice(tuple(common))
        if lines:
            own = line(*lines)
            self.nodes.append(Choice(((0.35, own), (0.35, (*own, ending)), (0.3, (ending,)))))
        else:
            self.nodes.append(ending)

    def questions(self, env: Env) -> list[tuple[str, str]]:
        """What can be asked at the end of the story, and the true answers, as templates.

        Of what is answered with Yes or No, there is for each question one of the other kind.
        """
        asked = list(self.facts)
        for thing, holder in ((name, env[f"holder {name}"]) for name in self.holder):
            t = f"{{{thing}}}"
            if holder in ("h", "f"):
                one, other = f"{{{holder}}}", "{f}" if holder == "h" else "{h}"
                asked += [
                    (f"Who has {t} now?", f"{t} is with {one}."),
                    (f"Who has {t} at the end?", f"At the end, {one} has {t}."),
                    (f"Does {one} have {t} now?", f"{t} is with {one}, so {{yes}}."),
                    (f"Does {other} have {t} now?", f"{t} is with {one}, so {{no}}."),
                ]
            else:
                asked.append((f"Where is {t} now?", f"{t} is {holder}."))
                asked.append((f"Where is {t} at the end?", f"At the end, {t} is {holder}."))
        asked.append(("Who is the story about?", "The story is about a {h.plain}."))
        for who, other in ("hf", "fh"):
            asked.append((f"Who is {{{who}}}?", f"{{{who}}} is a {{{who}.kind}}."))
            asked.append((f"Is {{{who}}} a {{{who}.kind}}?", f"{{{who}}} is a {{{who}.kind}}, so {{yes}}."))
            asked.append((f"Is {{{who}}} a {{{other}.kind}}?", f"{{{who}}} is a {{{who}.kind}}, so {{no}}."))
            if feeling := self.recent(who):
                asked.append((f"How did {{{who}}} feel at the end?", f"{{{who}}} felt {feeling}."))
        if "end feeling" in env:
            asked.append(("How did {h} feel at the end?", f"{{h}} felt {env['end feeling']}."))
        if "told day" in env:
            asked.append(("What was the weather like at the start?", "It was a {sky}."))
        if "told t.adjective" in env:
            asked.append(("What was {t} like?", "{t} was a {t.adjective} one."))
        return asked


ENDINGS = (
    "That night {h} slept very well.",
    "It had been a good day.",
    "{h} never forgot that day.",
    "Even years later, {h} told that story.",
    "What a day it had been!",
    "{h} smiled about it for a whole week.",
)
TOGETHER = (
    "After that, {h} and {f} were [good|the best of] friends.",
    '"[Shall we|Can we] meet again tomorrow?" asked {f}. "[Yes, of course|I would like that]," said {h}.',
    "{h} smiled at {f}, and {f.he} smiled back.",
    "They talked and laughed until the stars came out.",
    "And when the moon came up, they were still talking.",
    "Then they sat down together and sang an old song.",
)
WALKING_HOME = ("{h} and {f} walked home side by side.", "They [laughed|sang|talked] all the way home.")
BEDTIME = {"beside {h.his} bed": "beside {h}'s bed", "by the window": "by the window", "by the door": "by the door"}

SHAPES: dict[str, Shape] = {}


def plot(weather: str = "", skip: str = "") -> Callable[[Callable[[Shape], None]], Callable[[Shape], None]]:
    """Runs a plot and keeps its shape; `weather` and `skip` are words with spaces between them."""

    def register(build: Callable[[Shape], None]) -> Callable[[Shape], None]:
        shape = Shape(build.__name__, weather, skip)
        build(shape)
        SHAPES[shape.name] = shape
        return build

    return register


@plot()
def lost_and_found(w: Shape) -> None:
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
def trade(w: Shape) -> None:
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
    w.fact("Who has {u} now?", "{u} is with {f}.")
    w.end("Both of them thought they had the better part of the trade.", "It was a fair trade.")


@plot()
def birthday_gift(w: Shape) -> None:
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
    w.go("the friend's house", "Then {h.he} knocked on {f}'s door.", "{h} carried it to {f}'s house.")
    w.give(w.h, w.f, w.t, '"Happy birthday!" said {h}, and gave the parcel to {f}.')
    w.say("{f} pulled off the paper, and there was {t}. {t.joy}")
    w.feel(w.f, "happy", '"I have always wanted {t.a}!" cried {f}. {f.he} was very happy.')
    w.fact("What did {h} give to {f}?", "{h} gave {t} to {f}.")
    w.fact("Where did {h} buy {t}?", "{h} bought {t} {p.at}.")
    w.end("Then they ate {food.a}, and {f} had two helpings.", "{f} {t.used} [twice|again and again] that day.")


@plot("cloudy windy")
def storm(w: Shape) -> None:
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
def race_shared(w: Shape) -> None:
    """A race with the thing as the prize; the hero stops to help, and both win."""
    w.open()
    w.say("{day} there was a race from the old oak {p.to}. The prize was {t.a}.")
    w.put(w.t, w.s, "{t} lay {s}, and everyone could see it.")
    w.say("{h} wanted to win it, and so did {f.a}.", "Only two were in the race: {h} and {f.a}.")
    w.say('"Ready, steady, go!" [called|cried] the judge[, an old heron|].')
    w.say("[At first|For a while] {h} was in front. Then {f} came [closer and closer|past like the wind].")
    w.para()
    w.say("Suddenly {f} [tripped over a root|slipped] and fell. {h} heard the cry and stopped.")
    w.go(w.p.noun, "{h.he} helped {f.him} up, and the two of them reached the end together.")
    w.take(w.h, w.t, '"You both win," said the judge. "You should take it home first," {f} told {h}, so {h.he} did.')
    w.fact("Who won the race?", "{h} and {f} both won the race.")
    w.fact("Who fell in the race?", "{f} fell in the race.")
    w.end('"Tomorrow it will be your turn," {h} promised.')


@plot()
def race_lost(w: Shape) -> None:
    """A race with the thing as the prize; the hero loses and is glad all the same."""
    w.open()
    w.say("{day} there was a race from the old oak {p.to}. The prize was {t.a}.")
    w.put(w.t, w.s, "{t} lay {s}, and everyone could see it.")
    w.say("{h} wanted to win it, and so did {f.a}.", "Only two were in the race: {h} and {f.a}.")
    w.say('"Ready, steady, go!" [called|cried] the judge[, an old heron|].')
    w.say("[At first|For a while] {h} was in front. Then {f} came [closer and closer|past like the wind].")
    w.para()
    w.go(w.p.noun, "{h} ran as fast as {h.he} could, but {f} was [one step|just a little] faster.")
    w.take(w.f, w.t, "So {f} won the race and took {t}.")
    w.say('"Well run!" said {h}. {h.he} was out of breath, but {h.he} [smiled|clapped].')
    w.say('"Come and share it with me," said {f}. Then {f.he} {t.used}. {t.joy}')
    w.fact("Who won the race?", "{f} won the race.")
    w.end('"I will win next year," said {h} with a laugh.')


@plot()
def sharing_food(w: Shape) -> None:
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
def mending(w: Shape) -> None:
    """The thing is broken, and a friend mends it."""
    w.open()
    w.have(w.h)
    w.say("{day} {h} [took out|picked up] {t}, but {t.broken}.", "{day} something was wrong with {t}: {t.broken}.")
    w.feel(w.h, "sad", "{h} was so sad that {h.he} did not want to eat.", '"Oh no!" said {h}. {h.he} felt very sad.')
    w.go("the friend's house", "{h.he} carried it to {f.a}, who was good at mending things.")
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
def shy_newcomer(w: Shape) -> None:
    """Someone new is too shy to speak, until the hero brings the thing along."""
    w.open()
    w.have(w.h)
    w.say("{day} {f.a} moved into the empty house by the {p.noun}.")
    w.feel(
        w.f, "shy", "{f} was so shy that {f.he} hid behind the curtain when people passed.", "{f} was too shy to speak."
    )
    w.say('"How can I make {f.him} feel welcome?" {h} asked out loud.', "{h} waved, but {f} only looked at the ground.")
    w.para()
    w.go("the friend's house", "So {h} took {t} and sat down in front of {f}'s door.")
    w.say("{h.he} {t.used}. {t.joy}", "{h.he} did not knock. {h.he} just {t.used}.")
    w.say("After a while the door opened a little. Then it opened a little more.")
    w.say('"Is that your {t.noun}?" asked {f}[ softly|]. "Yes," said {h}. "Would you like to try it?"')
    w.give(w.h, w.f, w.t, "{h} gave {t} to {f}, and {f.he} had a turn.")
    w.feel(w.f, "happy", "Soon {f} was talking and laughing, as happy as could be.")
    w.give(w.f, w.h, w.t, "When it grew late, {f} gave {t} back to {h}.", "Before {h} left, {f.he} gave {t} back.")
    w.fact("Who moved into the empty house?", "{f} moved into the empty house.")
    w.end('"Come back tomorrow," said {f}, who was not shy at all now.')


@plot()
def promise(w: Shape) -> None:
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
    w.go("the friend's house", "Just before dark, {h} knocked on {f}'s door.")
    w.give(w.h, w.f, w.t, '"Here it is," said {h}, and gave {t} back to {f}.')
    w.feel(w.f, "glad", '"You kept your promise," said {f}. {f.he} was glad.')
    w.fact("What did {h} promise?", "{h} promised to bring {t} back before dark.")
    w.fact("Who owned {t}?", "{f} owned {t}.")
    w.end('"You may borrow it any time," {f} added.', "{f} gave {h.him} {food.a} for the way home.")


@plot()
def prank(w: Shape) -> None:
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
def rescue_gift(w: Shape) -> None:
    """A friend is stuck; the hero pulls with a rope and is given the thing."""
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
    w.give(w.f, w.h, w.t, '"Please take my {t.noun} as a gift," {f.he} said, and {h} took it.')
    w.fact("Where was {f} stuck?", "{f} was stuck in a deep hole by the path.")
    w.fact("What did {h} use to help {f}?", "{h} used a long rope to help {f}.")
    w.end("{h} {t.used} that same evening. {t.joy}")


@plot(skip="rope")
def rescue(w: Shape) -> None:
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
    w.say("To cheer them both up, {f.he} {t.used}. {t.joy}")
    w.fact("Where was {f} stuck?", "{f} was stuck in a deep hole by the path.")
    w.fact("What did {h} use to help {f}?", "{h} used a long rope to help {f}.")
    w.end("From that day on, {f} kept {f.his} eyes on the path.")


@plot("sunny cloudy", skip="basket bucket")
def planting(w: Shape) -> None:
    """The hero plants a seed, waits, and trades the harvest for the thing."""
    w.open()
    w.var("crop", "pumpkin", "melon", "cabbage", "turnip", "sunflower", "squash")
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
def wrong_guess(w: Shape) -> None:
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
def night_walk(w: Shape) -> None:
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
def letter(w: Shape) -> None:
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
def saving_up(w: Shape) -> None:
    """The hero works for coins to buy the thing."""
    w.open()
    w.put(w.t, "in the window of a shop", "{day} {h} saw {t.a} in the window of a shop.")
    w.var("n", "three", "four", "five", "six")
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
def down_the_river(w: Shape) -> None:
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
def wrong_parcel(w: Shape) -> None:
    """A parcel comes to the wrong door."""
    w.open()
    w.take(w.h, w.t, "{day} a parcel came, and {h} opened it. Inside was {t.a}.")
    w.say("{h.he} {t.used}. {t.joy}", '"What a lovely {t.noun}!" said {h}.')
    w.say('Then {h} saw the name on the paper. It was not {h.his} name. It said "{f}".')
    w.feel(w.h, "sorry", "{h} was sorry, because {h.he} wanted to keep {t}.")
    w.maybe(0.5, '"Nobody would know," {h} thought. But {h.he} would know.')
    w.para()
    w.go("the friend's house", "So {h} wrapped it up again and carried it down the lane to {f.a}.")
    w.walk(0.3)
    w.give(w.h, w.f, w.t, '"This is yours. I opened it by mistake," said {h}, and gave {t} to {f}.')
    w.say('"[I have been waiting for this|My aunt sent it]!" said {f}. "Thank you for telling me."')
    w.feel(w.f, "delighted", "{f} was delighted, and {f.he} asked {h.him} to come in.")
    w.say("They had {food.a}, and {f} let {h} try {t} again.", "They sat by the window and ate {food.a}.")
    w.fact("Whose name was on the paper?", "The name on the paper was {f}.")
    w.fact("Where was {t} at first?", "At first, {t} was in a parcel.")
    w.end("{h} was no longer sorry at all.")


@plot()
def first_turn(w: Shape) -> None:
    """Two find the thing and quarrel, then take turns: the hero first."""
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
    w.take(w.h, w.t, "{h} had the first turn. {h.he} {t.used}. {t.joy}")
    w.give(w.h, w.f, w.t, "Then {h} gave {t} to {f}, and {f.he} took it home for the night.")
    w.feel(w.h, "happy")
    w.fact("Who had the first turn?", "{h} had the first turn.")
    w.fact("Where did they find {t}?", "They found {t} {s}.")
    w.end("After that it went from house to house, one day here and one day there.", together=False)


@plot()
def second_turn(w: Shape) -> None:
    """Two find the thing and quarrel, then take turns: the friend first."""
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
    w.take(w.f, w.t, "{f} had the first turn. {f.he} {t.used}. {t.joy}")
    w.give(w.f, w.h, w.t, "Then {f} gave {t} to {h}, and {h.he} took it home for the night.")
    w.feel(w.h, "happy")
    w.fact("Who had the first turn?", "{f} had the first turn.")
    w.fact("Where did they find {t}?", "They found {t} {s}.")
    w.end("After that it went from house to house, one day here and one day there.", together=False)


@plot(
    skip="ring crown hat scarf coat blanket pillow cup mirror key shell feather painting stool candle basket bag bucket"
    " wagon broom spoon pot teapot umbrella doll book lantern"
)
def learning(w: Shape) -> None:
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
def treasure_map(w: Shape) -> None:
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
def lost_way(w: Shape) -> None:
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
    w.go("the friend's house", "And there in front of {h.him}, on the gate, was {t}!")
    w.say('"I know that {t.noun}!" cried {h}. "I am here!"')
    w.feel(w.h, "safe", "{f} opened the door, and soon {h} was safe and warm by the fire.")
    w.fact("Who hung {t} on the gate?", "{f} hung {t} on the gate.")
    w.fact("How did {h} find the house?", "{h} followed the sound and saw {t} on the gate.")
    w.end("They had {food.a} and talked about the long way.")


@plot()
def sick_friend(w: Shape) -> None:
    """The hero lends the thing to a friend who is ill."""
    w.open()
    w.have(w.h)
    w.say("{day} {h.his} friend {f.full} was ill in bed.", "{day} {h} heard that {f.full} was ill.")
    w.feel(w.f, "sad", "{f} had a cough and was sad, because the days were long.")
    w.go("the friend's house", "{h} took a pot of soup and {t} and went to visit {f.him}.")
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
def lending(w: Shape) -> None:
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
def surprise(w: Shape) -> None:
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
def hide_and_seek(w: Shape) -> None:
    """The thing gives away a perfect hiding place."""
    w.set_places("barn", "orchard", "garden", "mill", "stable", "meadow")
    w.open()
    w.have(w.h)
    w.maybe(0.6, "{h.he} took it everywhere.", "Wherever {h} went, {t} went too.")
    w.go(w.p.noun, "{day} {h} played hide and seek {p.at} with {f.a}.")
    w.say('"One, two, three," {f} counted with {f.his} eyes shut.', "{f} closed {f.his} eyes and counted to twenty.")
    w.var("nook", "an old barrel", "a tall basket", "a heap of straw", "a big crate")
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
def magpie(w: Shape) -> None:
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
    w.say('"We cannot just take it," said {f}. "It will only be stolen again. Magpies like shiny things."')
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
def whose_is_it(w: Shape) -> None:
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
    w.go("the friend's house")
    w.end("{f} asked {h} in for {food.a}.", '"You walked all day just for me?" said {f}. "Yes," said {h}.')


@plot("windy", skip="wagon sled stool bucket pot")
def up_a_tree(w: Shape) -> None:
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
def one_coin(w: Shape) -> None:
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
def the_show(w: Shape) -> None:
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
def muddy_visit(w: Shape) -> None:
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
    w.go("the friend's house", "Hop, hop, hop, {h.he} came to {f}'s door on one leg.")
    w.say('"Where is your boot?" asked {f}. "In the mud," said {h}, "but your gift is dry."')
    w.give(w.h, w.f, w.t, "And {h.he} gave {t} to {f}.", "Then {h} took out {t} and gave it to {f}.")
    w.feel(w.f, "delighted", "{f} was delighted and {t.used}. {t.joy}")
    w.say("Later, {f} dug out the boot.")
    w.fact("Where did {h} lose a boot?", "{h} lost a boot in the mud.")
    w.fact("Why was the path muddy?", "The path was muddy because of the rain.")
    w.end("The boot was never quite the same again.")


@plot()
def dusty_shed(w: Shape) -> None:
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
def picnic(w: Shape) -> None:
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
def moving_away(w: Shape) -> None:
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
def sleepy_guard(w: Shape) -> None:
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
def boasting(w: Shape) -> None:
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


@plot()
def seller(w: Shape) -> None:
    """The hero sells the thing, misses it and buys it back."""
    w.set_places("market", "harbor", "station")
    w.open()
    w.have(w.h)
    w.go(w.p.noun, "{day} {h} needed money and carried {t} {p.to}.", "{day} {h} took {t} {p.to} to sell it.")
    w.walk()
    w.give(w.h, w.f, w.t, "There {f.a} paid two coins for it, and {h} handed over {t}.")
    w.say("The coins felt cold in {h.his} hand.", "{h} counted the coins, but they did not shine.")
    w.go("home", "At home the shelf was empty, and so was the evening.", "{h} went home and looked at the empty shelf.")
    w.feel(w.h, "sorry", '"Why did I sell it?" said {h}. {h.he} was sorry.', "Now {h} was sorry and could not sleep.")
    w.para()
    w.say("In the morning {h} ran back as fast as {h.he} could.", "Before sunrise {h} was on the road again.")
    w.say('"May I buy it back?" asked {h}. "For two coins and a song," said {f}.')
    w.say("So {h} paid and sang, and everyone at the stalls listened.", "{h} laid down the coins and sang the song.")
    w.give(w.f, w.h, w.t, "{f} clapped and gave {t} back to {h}.", "Then {f} handed {t} back to {h}.")
    w.feel(w.h, "happy")
    w.fact("What did {f} pay for {t}?", "{f} paid two coins for {t}.")
    w.fact("What did {h} do to get {t} back?", "{h} paid two coins and sang a song.")
    w.end("{h} never sold it again.", "The shelf was not empty that night.")


@plot()
def three_hands(w: Shape) -> None:
    """The thing goes from the hero to the friend, into a hiding place and back again."""
    w.open()
    w.have(w.h)
    w.say("{day} {f.a} came to visit.", "{day} there was a knock, and in came {f.a}.")
    w.give(w.h, w.f, w.t, '"Would you like to hold it?" asked {h}, and gave {t} to {f}.')
    w.say("{f} turned it over and over.", "{f} had never seen such a fine one. {t.joy}")
    w.go(w.p.noun, "They took it {p.to} and played until noon.", "Together they went {p.to}.")
    w.put(w.t, w.s, "When it was time to eat, {f} put {t} down {s}.", "{f} grew tired and left {t} {s}.")
    w.para()
    w.say("They ate {food.a}, told riddles and forgot everything else.", "They shared {food.a} and looked at the sky.")
    w.feel(w.h, "worried", 'Suddenly {h} was worried. "Where is my {t.noun}?" {h.he} asked.')
    w.say('"I know," said {f}. "I put it down {s}."', '{f} thought hard. "{s}," {f.he} said.')
    w.take(w.h, w.t, "There it was, and {h} picked it up.", "They went to look, and {h} took {t} in both hands.")
    w.feel(w.h, "glad", "{h} was glad, and they walked on.")
    w.fact("Where did {f} put {t}?", "{f} put {t} {s}.")
    w.fact("Who picked {t} up again?", "{h} picked {t} up again.")
    w.end("After that they took turns carrying it.")


@plot()
def wise_neighbor(w: Shape) -> None:
    """The hero asks the friend for advice about two things and keeps only one."""
    w.open()
    w.have(w.h)
    w.take(w.h, w.u, "{h} also had {u.a}, and there was room for only one of them in {h.his} bag.")
    w.say("{day} {h} was packing for a long trip.", "{day} {h} wanted to travel over the hills.")
    w.feel(w.h, "puzzled", '"Which one shall I take?" {h} asked. {h.he} was puzzled.')
    w.go("the friend's house", "So {h.he} asked {f.a}, who was known to be wise.")
    w.say('"Which one would you miss?" asked {f}. {h} thought about it.', '{f} smiled. "Which one makes you smile?"')
    w.para()
    w.say('"{t}," said {h} at last. "Then you know," said {f}.', '"I would miss {t}," said {h}.')
    w.give(w.h, w.f, w.u, '"Please keep {u} for me," said {h}, and gave it to {f}.')
    w.say("{h} packed {t} and set off over the hills.", "With {t} in the bag, {h} set off.")
    w.say("All the way {h.he} sang, and in the evenings {h.he} {t.used}. {t.joy}")
    w.feel(w.h, "cheerful", "{h} came to the sea at last and was very cheerful.")
    w.fact("What did {h} take on the trip?", "{h} took {t} on the trip.")
    w.fact("What did {h} leave with {f}?", "{h} left {u} with {f}.")
    w.end("In a postcard {h} wrote to {f}: you were right.", together=False)


@plot("rainy cloudy")
def leaking_roof(w: Shape) -> None:
    """The roof leaks, and everything must be carried to the friend's house."""
    w.open()
    w.have(w.h)
    w.say("{day} the rain found a hole in {h}'s roof.", "{day} drops fell from the ceiling, plip, plop.")
    w.feel(w.h, "upset", '"My bed is wet!" cried {h}, who was upset.', "{h} was upset and ran from pot to pot.")
    w.say("{f.a} looked in at the window.", "{f.a} came running with a ladder.")
    w.say('"Bring your things to my house," said {f}. "It is dry there."')
    w.para()
    w.give(w.h, w.f, w.t, "{h} reached out of the window and gave {t} to {f}.", "First {h} handed {t} to {f}.")
    w.put(w.t, "on a high shelf", "{f} ran home and set {t} on a high shelf.", "{f} put {t} safely on a high shelf.")
    w.say("Then they climbed up and nailed new boards over the hole.", "Together they mended the roof with boards.")
    w.say("By night the rain drummed on the new boards and not one drop came in.", "After that, no drop came in.")
    w.go("the friend's house", "When the work was done, {h} went over to see.")
    w.take(w.h, w.t, "{h.he} took {t} down from the shelf.", "There was {t} on the shelf, dry as a bone. {h} took it.")
    w.feel(w.f, "proud", '"We make good roofers," said {f}, who was proud.')
    w.fact("Where did {f} put {t}?", "{f} put {t} on a high shelf.")
    w.fact("What did they mend?", "They mended the roof.")
    w.end("{h} made a pot of tea for both of them.")


@plot("snowy")
def snow_guest(w: Shape) -> None:
    """Snow blocks the road, and a stranger stays the night."""
    w.open()
    w.say("{day} the snow lay so high that nobody could pass.", "{day} the road was gone under the snow.")
    w.take(w.f, w.t, "There was a knock. Outside stood {f.a} with {t.a} and a red nose.")
    w.feel(w.f, "cold", '"I am so cold," said {f}. "May I come in?"', "{f} was so cold that {f.his} teeth chattered.")
    w.say("{h} put more wood on the fire.", "{h} pulled a chair close to the stove.")
    w.say("They had {food.a}, and slowly the color came back to {f}'s face.", "{h} warmed {food.a} for {f}.")
    w.para()
    w.say('"Let me show you something," said {f}. {f.he} {t.used}. {t.joy}', "After supper {f} {t.used}. {t.joy}")
    w.say("Outside the wind howled, but inside there was laughter.", "They did not even hear the storm.")
    w.say("In the morning the sun came out and a path was dug.", "When day came, the road was clear again.")
    w.give(w.f, w.h, w.t, '"For the warm fire," said {f}, and gave {t} to {h}.')
    w.feel(w.h, "thankful")
    w.fact("Why did {f} come in?", "{f} came in because of the cold.")
    w.fact("What did {f} give for the warm fire?", "{f} gave {t}.")
    w.end("Each winter after that, {f} came to visit.", '"Come again when it snows," said {h}.')


@plot()
def echo_song(w: Shape) -> None:
    """The hero hears a voice in the cave, and it is no echo."""
    w.set_places("cave")
    w.open()
    w.have(w.h)
    w.go(w.p.noun, "{day} {h} went {p.to} with {t} and called hello.", "{day} {h} took {t} {p.to} to hear the echo.")
    w.say('"Hello!" came the answer. "Hello, hello!"', '"Good day!" said the cave. "Good day!"')
    w.say('"You are only an echo," said {h}. "No, I am not," said the voice.')
    w.feel(w.h, "surprised", "{h} was so surprised that {h.he} stepped back.")
    w.put(w.t, w.s, "{t} slipped from {h.his} hands and landed {s}.", "{h.he} dropped {t}, and it came to rest {s}.")
    w.para()
    w.say("Out of the shadows came {f.a} with a candle.", "A light came closer, and behind it was {f.a}.")
    w.take(w.f, w.t, "{f} bent down and picked up {t}.", '"You have lost something," said {f}, and picked {t} up.')
    w.give(w.f, w.h, w.t, "{f} wiped it on {f.his} sleeve and gave it to {h}.")
    w.say("Then they shouted together, and ten voices answered.", "Together they sang, and the cave sang along.")
    w.feel(w.f, "merry")
    w.fact("Who was in the cave?", "{f} was in the cave.")
    w.fact("Where did {t} land?", "{t} landed {s}.")
    w.end("They gave the cave a name: the Great Answerer.", together=True)


@plot("sunny cloudy windy")
def kind_ferry(w: Shape) -> None:
    """The hero has no coin for the ferry and leaves the thing as a pledge."""
    w.set_places("river", "harbor")
    w.open()
    w.have(w.h)
    w.go(w.p.noun, "{day} {h} wanted to cross the water and went {p.to}.", "{day} {h} came {p.to} with {t}.")
    w.say("The ferry belonged to {f.a}.", "{f.a} sat in the ferry with a long oar.")
    w.say('"One coin," said {f}. But {h} had none.', '"That will be one coin," said {f}. {h} had no coin at all.')
    w.give(w.h, w.f, w.t, '"Then take my {t.noun} until I can pay," said {h}, and gave it to {f}.')
    w.say("The oar dipped in and out, and soon they were on the other side.", "The water was smooth as glass.")
    w.para()
    w.say("{h} picked berries all day and sold them in the village.", "On the far side {h} chopped wood for a coin.")
    w.say("In the evening {h.he} came back with a coin in {h.his} fist.", "At dusk {h} stood on the bank and waved.")
    w.give(w.f, w.h, w.t, "{f} took the coin and gave {t} back to {h}.", "{h} paid, and {f} handed {t} back.")
    w.feel(w.h, "content", "{h} was content and let one hand trail in the water.")
    w.fact("What did {h} leave with {f}?", "{h} left {t} with {f}.")
    w.fact("What did the ferry cost?", "The ferry cost one coin.")
    w.end('"The next ride is free," said {f}.')


@plot()
def museum(w: Shape) -> None:
    """The friends open a little museum with one thing from each."""
    w.set_places("barn", "stable", "mill", "library")
    w.open()
    w.have(w.h)
    w.say("{day} {h} had a plan. {h.he} told it to {f.a}.", "{day} {h} met {f.a} and whispered in {f.his} ear.")
    w.say('"Let us open a museum," said {h}. "{f}, what can you bring?"')
    w.take(w.f, w.u, "{f} ran home and came back with {u.a}.", '"I have {u.a}," said {f}, and went to get it.')
    w.go(w.p.noun, "They swept the floor {p.at} and built a long table.", "They found an empty corner {p.at}.")
    w.put(w.t, "on the table", "{h} set {t} on the table with a little card.", "{t} went on the table.")
    w.put(w.u, "in a glass case", "{f} put {u} in a glass case.", "{u} found its place in a glass case.")
    w.para()
    w.say("At noon the doors opened, and people stood in a long line.", "The whole village came to look.")
    w.say('"What a wonder!" said an old man with a cane.', '"I have never seen such things," said a little boy.')
    w.feel(w.h, "proud")
    w.fact("What was in the glass case?", "The {u.noun} was in the glass case.")
    w.fact("What was on the table?", "The {t.noun} was on the table.")
    w.end("They counted ten visitors and one goat.", "In the evening they locked the doors and cheered.")


@plot()
def apology(w: Shape) -> None:
    """The hero breaks a promise and makes up for it with the thing."""
    w.open()
    w.have(w.h)
    w.say("{h} had promised to help {f.a} with the harvest.", "{f.a} was waiting for {h}, who had promised to help.")
    w.say("But on that day {h} slept until noon.", "{day} {h} forgot all about it and went fishing.")
    w.say("{f} had carried every sack alone.", "When {h} came at last, all the work was done.")
    w.feel(w.f, "angry", "{f} was angry and did not say hello.", '"You are too late," said {f}, who was angry.')
    w.feel(w.h, "ashamed", "{h} went home, ashamed, and sat in the dark.")
    w.para()
    w.say("The next day {h} was at the gate before the birds.", "The next morning {h} got up with the sun.")
    w.give(w.h, w.f, w.t, '"I am sorry," said {h}. "This is for you." And {h.he} gave {t} to {f}.')
    w.say('"I do not want your {t.noun}," said {f}. "I want you to keep your word."')
    w.give(w.f, w.h, w.t, "{f} gave {t} back to {h} and held out a rake instead.")
    w.say("They raked side by side until the field was clean.", "So {h} raked all day and did not rest once.")
    w.feel(w.f, "pleased", "In the evening {f} was pleased and shook {h.his} hand.")
    w.fact("Why was {f} angry?", "{f} was angry because {h} came too late.")
    w.fact("What did {f} give {h} instead?", "{f} gave {h} a rake.")
    w.end("From then on {h} was never late.")


@plot()
def button_soup(w: Shape) -> None:
    """The friend makes soup from nothing but a button, and everyone adds to it."""
    w.open()
    w.say("{day} {f.a} came by with an empty pot.", "{day} {f.a} knocked. {f.he} carried a pot and nothing else.")
    w.say(
        '"I can make soup from a button," said {f}. {h} laughed out loud.',
        '"Have you ever had button soup?" asked {f}.',
    )
    w.say("{f} dropped a button into the water and stirred.", "Plop went the button, and {f} stirred and stirred.")
    w.var("root", "carrot", "turnip", "potato", "leek", "parsnip", "beet")
    w.say('"It would be even better with a {root}," said {f}. So {h} brought a {root}.')
    w.say(
        '"And with a pinch of salt," said {f}. {h} brought the salt.', '"And a bit of butter," said {f}. {h} had some.'
    )
    w.para()
    w.say("Soon the whole house smelled wonderful.", "It bubbled and steamed until the windows were white.")
    w.feel(w.h, "amazed", '"And all from a button!" said {h}, who was amazed.', "{h} ate two bowls and was amazed.")
    w.take(w.f, w.t, "Then {f} took {t.a} out of {f.his} coat.", "From {f.his} pocket {f} pulled {t.a}.")
    w.give(w.f, w.h, w.t, '"You shared with me," said {f}, and gave {t} to {h}.')
    w.say("{h} {t.used}. {t.joy}", "{t.joy}")
    w.fact("What did {h} bring for the soup?", "{h} brought a {root} for the soup.")
    w.fact("What did {f} drop into the water?", "{f} dropped a button into the water.")
    w.end("{h} never found out how the soup really worked.")


@plot("cold foggy cloudy")
def lamp_lighter(w: Shape) -> None:
    """The hero takes over the friend's work for a night."""
    w.set_places("bridge", "harbor", "station", "castle")
    w.open()
    w.say(
        "{f.a} lit the lamps of the town each evening.", "Every night, {f.a} went from lamp to lamp with a long pole."
    )
    w.feel(w.f, "ill", "{day} {f} was ill and could not get up.")
    w.say('"Who will light the lamps?" {f} sighed. "I will," said {h}.', '"I will do it for you," said {h} at once.')
    w.take(w.h, w.t, "{f} pointed at a chest, and out of it {h} took {t.a}.", "From the wall {h} took down {t.a}.")
    w.say('"It brings luck in the dark," said {f}.', '"Carry it with you," said {f}. "It has always helped me."')
    w.go(w.p.noun, "{h} went through the streets with the pole and {t}.", "{h} walked from the church {p.to}.")
    w.para()
    w.say("One lamp, two lamps, ten lamps: soon the whole town shone.", "Lamp after lamp began to glow.")
    w.put(w.t, w.s, "The last lamp was {p.at}. There {h} put {t} {s} to have both hands free.")
    w.take(w.h, w.t, "When it burned, {h.he} picked {t} up again and hurried back.")
    w.give(w.h, w.f, w.t, '"Not one is dark," said {h}, and gave {t} to {f}.')
    w.feel(w.f, "thankful")
    w.fact("Who lit the lamps that night?", "{h} lit the lamps that night.")
    w.fact("Where was the last lamp?", "The last lamp was {p.at}.")
    w.end("From the window they watched the lights together.")


@plot()
def lucky_number(w: Shape) -> None:
    """A draw of lots: the hero wins the wrong prize and swaps."""
    w.set_places("school", "market", "library", "castle")
    w.open()
    w.say("{day} there was a raffle {p.at}.", "{day} everyone went {p.to}, for there was a raffle.")
    w.go(w.p.noun, "{h} drew a ticket from a tall hat.", "{h} closed {h.his} eyes and drew a ticket.")
    w.take(w.h, w.u, "It won {u.a}. {h} had hoped for something else.", 'For it {h} got {u.a}. "Oh well," said {h.he}.')
    w.take(w.f, w.t, "Next came {f.a}, who won {t.a}.", "The next ticket was drawn by {f.a}, who won {t.a}.")
    w.feel(w.h, "jealous", "{h} was a little jealous.", "{h} looked at {t} and was jealous.")
    w.para()
    w.say("But {f} was looking at {u}.", '"I always wanted {u.a}," {f} said softly.')
    w.say('"Are you thinking what I am thinking?" asked {h}. {f} was.', "They looked at each other and grinned.")
    w.give(w.h, w.f, w.u, "{h} gave {u} to {f}.", "{u} went from {h} to {f}.")
    w.give(w.f, w.h, w.t, "And {f} gave {t} to {h}. {t.joy}", "And {t} went from {f} to {h}.")
    w.feel(w.h, "delighted", "{h} was delighted.", "Both of them were delighted.")
    w.fact("What did {h} win at first?", "At first, {h} won {u.a}.")
    w.fact("Who won {t} at first?", "At first, {f} won {t}.")
    w.end("So both had won the best prize of all.")


@plot(skip="wagon sled stool")
def attic_mouse(w: Shape) -> None:
    """Something moves the thing every night, and the hero finds out who."""
    w.open()
    w.have(w.h)
    w.put(w.t, "on the stairs", "{day} {t} lay on the stairs. {h} had not put it there.")
    w.take(w.h, w.t, "{h.he} picked it up and shook {h.his} head.", "{h} took it back to the bedroom.")
    w.put(w.t, "in the attic", "The next day it was in the attic!", "But in the morning {t} was in the attic.")
    w.feel(w.h, "curious", "{h} was curious and stayed awake that night.", '"How odd," said {h}, who was curious.')
    w.para()
    w.say("At midnight the floor creaked.", "The clock struck twelve, and a board creaked.")
    w.take(w.f, w.t, "It was {f.a}, who lifted {t} very carefully.", "In came {f.a} on tiptoe and took {t}.")
    w.say('"Stop!" cried {h}. {f} froze.', '"Good evening," said {h}. {f} jumped.')
    w.say('"I only wanted to look at it," said {f}. "I can never sleep."', '"I walk in my sleep," said {f}.')
    w.give(w.f, w.h, w.t, "{f} blushed and gave {t} to {h}.", "With a bow {f} gave {t} back to {h}.")
    w.say('"Then come by day," said {h}. "We can look at it together."')
    w.feel(w.f, "relieved")
    w.fact("Who moved {t} at night?", "{f} moved {t} at night.")
    w.fact("Where was {t} on the first day?", "On the first day, {t} was on the stairs.")
    w.end("After that the nights were quiet.")


@plot()
def message(w: Shape) -> None:
    """The thing travels from hand to hand to deliver a message."""
    w.open()
    w.have(w.h)
    w.say(
        "{day} {h} wanted to send word to {f.a}, who lived far off.", "{day} {h} thought of {f.a}, a friend far away."
    )
    w.say("There was no paper in the house, only {t}.", '"{f} will know my {t.noun}," {h} said.')
    w.var("carrier", "miller", "peddler", "shepherd", "fiddler", "coachman")
    w.put(w.t, "on the cart of the {carrier}", "{h} laid {t} on the cart of a {carrier}.")
    w.say("Over three hills and two bridges it went.", "The cart rolled through rain and sun.")
    w.para()
    w.take(w.f, w.t, "Far away, {f} got {t} from the {carrier}.", "At last the {carrier} gave {t} to {f}.")
    w.say('"This is from {h}!" cried {f}. "It means: come soon."', "{f} knew at once who had sent it.")
    w.say("{f.he} saddled a pony and rode all night.", "{f.he} packed a bundle and walked for two days.")
    w.go("home", "{h} was at the gate when someone called.", "One evening there were steps in front of {h}'s house.")
    w.give(w.f, w.h, w.t, '"I got your message," said {f}, and gave {t} back to {h}.')
    w.feel(w.h, "overjoyed", "{h} was overjoyed.", "{h} was overjoyed and danced.")
    w.fact("Who carried {t} to {f}?", "The {carrier} carried {t} to {f}.")
    w.fact("What did the message mean?", "The message meant: come soon.")
    w.end("They had {food.a} and talked all night.")


@plot("windy cloudy")
def scarecrow(w: Shape) -> None:
    """The hero dresses a scarecrow, and the crows carry the thing off."""
    w.set_places("garden", "orchard", "meadow")
    w.open()
    w.have(w.h)
    w.say("{day} the crows were eating all the seeds.", "{day} {h} saw black birds in the rows of peas.")
    w.put(w.t, "on the scarecrow", "{h} built a scarecrow from straw and hung {t} on it.")
    w.say('"Now they will stay away," said {h}. They did not.', "The crows came closer and looked at it.")
    w.put(
        w.t, w.s, "The biggest crow took {t} and dropped it {s}.", "One crow grabbed {t}, flew off and let it fall {s}."
    )
    w.feel(w.h, "cross", "{h} was cross and threw {h.his} arms in the air.")
    w.para()
    w.take(w.f, w.t, "{f.a}, who was passing by, found {t} {s}.", "{s}, {f.a} found {t}.")
    w.say('"Crows are clever," said {f}. "You must be friends with them."', '"Give them a row of their own," said {f}.')
    w.give(w.f, w.h, w.t, "{f} gave {t} to {h} and a bag of old corn as well.")
    w.say(
        "{h} scattered the corn by the fence, and the peas were left alone.", "From then on the crows ate by the fence."
    )
    w.feel(w.h, "satisfied")
    w.fact("What did {h} hang on the scarecrow?", "{h} hung {t} on the scarecrow.")
    w.fact("What did {f} give {h} for the crows?", "{f} gave {h} a bag of old corn.")
    w.end("Even the scarecrow seemed to smile.")


@plot()
def new_teacher(w: Shape) -> None:
    """The hero teaches the friend to read, and the thing is the reward."""
    w.set_places("school", "library")
    w.open()
    w.say("{f.a} could not read.", "Nobody had ever taught {f.a} to read.")
    w.say('{day} {f} stood in front of a sign. "What does it say?" {f.he} asked.', "{day} {f} held a book upside down.")
    w.go(
        w.p.noun,
        '"I will teach you," said {h}, and they went {p.to}.',
        "{h} took {f.him} by the hand, and they went {p.to}.",
    )
    w.say("First came A, round and red like an apple.", "They drew letters in the dust with a stick.")
    w.feel(w.f, "impatient", "{f} was impatient and wanted to give up.", '"It is too hard," said {f}, impatient.')
    w.para()
    w.say("But {h} came back every day for a month.", "{h} did not give up, and so {f} did not either.")
    w.say('One day {f} read a whole page out loud. "The end!" {f.he} shouted.', "Then {f} read a letter without help.")
    w.feel(w.f, "proud")
    w.take(w.f, w.t, "{f.he} ran home and came back with {t.a}.", "From under {f.his} bed {f.he} got {t.a}.")
    w.give(w.f, w.h, w.t, '"For my teacher," said {f}, and gave {t} to {h}.')
    w.fact("What did {h} teach {f}?", "{h} taught {f} to read.")
    w.fact("What did the teacher get?", "{h} got {t}.")
    w.end("After that {f} read to {h} every Sunday.")


@plot()
def borrowed_twice(w: Shape) -> None:
    """The friend lends on what was borrowed, and the hero must follow the trail."""
    w.open()
    w.have(w.h)
    w.give(w.h, w.f, w.t, "{day} {f.a} asked for {t}, and {h} gave it to {f.him}.", "{day} {h} lent {t} to {f.a}.")
    w.say("A week went by, and {f} did not bring it back.", "The days passed. {h} waited.")
    w.say('"Where is my {t.noun}?" {h} asked at last. {f} turned red.', '{h} went to ask. "Oh dear," said {f}.')
    w.var("lender", "cook", "smith", "mayor", "tinker", "postman", "barber")
    w.put(w.t, "with the {lender}", '"I lent it to the {lender}," {f} said.', '"The {lender} has it now," said {f}.')
    w.feel(w.h, "annoyed", "{h} was annoyed, but {h.he} said nothing.")
    w.para()
    w.say("So both of them went to find the {lender}.", "They set out together to see the {lender}.")
    w.take(w.f, w.t, "The {lender} gave {t} to {f} without a word.", '"Here," said the {lender}, and {f} took {t}.')
    w.give(w.f, w.h, w.t, "And {f} gave it to {h}. It was a little dusty.", "{f} handed {t} to {h} and bowed.")
    w.say('"Never lend what is not yours," said {h}. "Never again," said {f}.')
    w.feel(w.h, "content")
    w.fact("Who did {f} lend {t} to?", "{f} lent {t} to the {lender}.")
    w.fact("What must nobody lend?", "Nobody must lend what is not theirs.")
    w.end("On the way back they stopped for {food.a}.")


@plot("sunny windy cloudy")
def sand_castle(w: Shape) -> None:
    """The tide takes the castle but leaves the thing."""
    w.set_places("beach")
    w.open()
    w.have(w.h)
    w.go(
        w.p.noun,
        "{day} {h} built a castle of sand with {f.a}.",
        "{day} {h} met {f.a}, and they built a castle of sand.",
    )
    w.say("It had four towers and a deep ditch.", "They made walls, a gate and a road of shells.")
    w.put(w.t, "on the highest tower", "{h} set {t} on the highest tower.", "At the very top {h} put {t}.")
    w.say("{f} stuck a feather beside it for a flag.", '"Now it is a real castle," said {f}.')
    w.para()
    w.say("They did not see the tide. A wave came, and then a bigger one.", "Then the water came up, wave after wave.")
    w.put(w.t, "under the sand", "The castle fell, and {t} was gone under the sand.")
    w.feel(w.h, "sad", '"My {t.noun}!" cried {h}, very sad.', "{h} was sad and stared at the waves.")
    w.say('"Dig here," said {f}, for {f.he} had counted the steps.', "{f} remembered the place and began to dig.")
    w.take(w.f, w.t, "Down in the wet sand {f} found {t}.", "{f} dug like a dog and pulled out {t}.")
    w.give(w.f, w.h, w.t, "{f} rinsed it in the sea and gave it to {h}.")
    w.feel(w.h, "relieved")
    w.fact("Where did {h} put {t} at first?", "At first, {h} put {t} on the highest tower.")
    w.fact("What made the castle fall?", "A wave made the castle fall.")
    w.end("Next time they built further from the water.")


@plot("cold snowy foggy cloudy")
def night_watch(w: Shape) -> None:
    """Two guards share one thing through the night, hour by hour."""
    w.set_places("castle", "bridge", "lighthouse", "harbor")
    w.open()
    w.go(w.p.noun, "{day} {h} had to keep watch {p.at}.", "{day} it was {h}'s turn to keep watch {p.at}.")
    w.have(w.h, "To pass the time, {h} had brought {t.a}.", "{h.his} only comfort was {t.a}.")
    w.say("The other guard was {f.a}.", "{f.a} kept watch on the other side.")
    w.feel(w.f, "bored", "{f} was bored and counted the stars.", '"Nothing ever happens here," said {f}, bored.')
    w.give(
        w.h,
        w.f,
        w.t,
        "After one hour {h} gave {t} to {f}.",
        '"You take it for an hour," said {h}, and gave {t} to {f}.',
    )
    w.para()
    w.say("An owl called. Far away a dog barked.", "The moon came out and went in again.")
    w.give(w.f, w.h, w.t, "After the second hour {f} gave {t} back to {h}.")
    w.say("So it went until the sky turned pink.", "Hour by hour the night grew shorter.")
    w.give(
        w.h, w.f, w.t, "At dawn {h} gave {t} to {f} for good.", '"Keep it," said {h} at sunrise, and gave {t} to {f}.'
    )
    w.feel(w.f, "happy")
    w.fact("Where did they keep watch?", "They kept watch {p.at}.")
    w.fact("Who had {t} after the first hour?", "After the first hour, {f} had {t}.")
    w.end("Then they went to have breakfast: {food.a}.")


@plot()
def the_judge(w: Shape) -> None:
    """Both say the thing is theirs, and a judge finds the truth."""
    w.open()
    w.have(w.h)
    w.take(w.f, w.t, "{day} {f.a} found {t} on the road and kept it.", "{day} {h} lost it, and {f.a} picked {t} up.")
    w.say('"That is mine!" said {h}. "Mine!" said {f}.', "Soon both of them said that it was theirs.")
    w.feel(w.h, "angry")
    w.say("They went to the judge, who wore a long gray beard.", "The judge of the town was called.")
    w.put(w.t, "on the judge's desk", "The judge laid {t} on the desk and looked from one to the other.")
    w.para()
    w.say('"Let us cut it in half," said the judge. "No!" cried {h}. "Then {f} can have it."')
    w.say('"Who loves it does not want it broken," said the judge.', '"Now I know the owner," said the judge.')
    w.take(w.h, w.t, "And the judge gave {t} to {h}.", "So {h} got {t}.")
    w.say('"I did not know it was yours," said {f}. "I am sorry."', "{f} looked down and said that {f.he} was sorry.")
    w.feel(w.h, "calm")
    w.fact("Where did the judge lay {t}?", "The judge laid {t} on the desk.")
    w.fact("Who got {t} from the judge?", "{h} got {t} from the judge.")
    w.end("On the steps {h} let {f} try it.", "Outside they shook hands.")
