"""What someone may say who does not know the templates: other names and things, other verbs, other ways to ask.

Only words and sentences are here; corpus.py makes documents of them. In a line, [a|b] is one of several ways to say it;
what else stands in braces is told where the lines are used.
"""

from __future__ import annotations

import random
import re


def split(text: str) -> list[str]:
    """The lines of a text, without the white space around them."""
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def words(text: str) -> list[str]:
    """The words of a list."""
    return text.split()


# Names that no story has by itself; those of the first two lists are always she, or he.
MORE_GIRLS = words("""
    Mia Alice Ann Mary Lisa Eva Zara Laura Julia Sofia Emily Grace Sue Jane Carol Betty Aisha Fatima Leila Yasmin
    Noor Zainab Mariam Khadija Salma Samira Priya Anjali Lakshmi Deepa Kavya Meera Sunita Divya Nisha Radha Yuki
    Sakura Keiko Naomi Aiko Haruka Mei Ling Xiu Lan Jing Hui Thuy Linh Mai Siti Dewi Putri Ingrid Astrid Freya
    Sigrid Solveig Linnea Elin Britta Kirsten Annika Olga Natasha Irina Svetlana Tatiana Katya Ludmila Zofia
    Agnieszka Magda Jadwiga Milena Dragana Jelena Ivana Eszter Zsofia Ilona Elena Ioana Sorina Chiara Giulia
    Francesca Lucia Bianca Paola Carmen Dolores Pilar Ines Ximena Paloma Rocio Camila Valentina Mariana Beatriz
    Fernanda Juana Amelie Chloe Camille Margot Celine Colette Odile Simone Brigitte Manon Ursula Gudrun Hilde Anke
    Sabine Petra Heike Femke Marieke Saskia Siobhan Niamh Aoife Orla Maeve Bronwyn Gwen Carys Morag Isla Eilidh Ayo
    Amara Chioma Ngozi Adaeze Folake Zuri Wanjiru Akinyi Nia Thandi Nomsa Lindiwe Abena Efua Hadiza Makena Aroha
    Mereana Leilani Malia Kalani Tala Winona Aiyana Shira Tamar Miriam Esther Rivka Ruth Naama Leora Shirin Parisa
    Anahita Dilara Elif Zeynep Aylin Gulnara Abigail Agatha Bridget Cecily Daphne Dorothy Edith Eleanor Florence
    Gertrude Harriet Imogen Josephine Kathleen Lorraine Matilda Nancy Penelope Philippa Prudence Rebecca Sylvia
    Susan Theresa Victoria Wendy Yvonne
""")
MORE_BOYS = words("""
    Bob John Paul Mark Nick Dan Eric Fred George Liam Mike Steve Jim Alan Carl Bill Ahmed Ali Hassan Hussein Ibrahim
    Yusuf Khalid Tariq Mustafa Karim Samir Rashid Bilal Hamza Arjun Vikram Rajesh Sanjay Anil Rohan Kiran Dev Ashok
    Suresh Kenji Hiroshi Takeshi Akira Daichi Haruto Wei Jun Chen Feng Bao Minh Tuan Duc Budi Agung Bjorn Sven Lars
    Erik Gunnar Magnus Olaf Leif Torsten Anders Nils Ivan Boris Dmitri Sergei Vladimir Mikhail Pavel Yuri Igor
    Kazimir Piotr Tomasz Wojtek Stanislav Milos Goran Zoran Dragan Laszlo Istvan Zoltan Bogdan Radu Marco Giovanni
    Luigi Matteo Lorenzo Enzo Paolo Pedro Diego Carlos Miguel Javier Pablo Rafael Santiago Joaquin Mateo Tiago Joao
    Vasco Pierre Jacques Luc Marcel Etienne Gaston Thierry Antoine Klaus Jurgen Dieter Wolfgang Heinz Uwe Gerhard
    Joost Pieter Willem Sean Declan Cormac Padraig Eoghan Owen Rhys Dylan Angus Hamish Duncan Fergal Kwame Kofi
    Chidi Emeka Tunde Sipho Thabo Jabari Kamau Otieno Mandla Babatunde Sekou Moussa Ousmane Tane Wiremu Keanu Kimo
    Takoda Moshe Avi Eitan Yonatan Ezra Reza Farhad Darius Cyrus Emre Mehmet Timur Arslan Albert Arthur Barnaby
    Bertram Cedric Clarence Cuthbert Desmond Edgar Edmund Ernest Francis Gilbert Harold Herbert Humphrey Isaac
    Jasper Kenneth Lionel Maurice Neville Oliver Percy Quentin Rupert Stanley Sebastian Timothy Ulysses Vincent
    Walter Xavier Zachary Bartholomew
""")
# Names that tell no pronoun
EITHER = words("""
    Alex Kim Sasha Robin Charlie Jamie Jordan Casey Morgan Taylor Riley Avery Quinn Blake Dakota Skyler Rory Nico
    Remy Andrea Jesse Kai Ariel Noel Micah Hayden Peyton Reese Emerson Finley Harper Parker Sidney Tracy Lee Pat
    Dana Jules Frankie Toni Ash Bo Indigo Phoenix Sage Sunny
""")
MORE_THINGS = words("""
    apple pencil phone letter coin hammer knife bottle toy pen watch glove shoe stone flower cake backpack ticket
    camera orange card car train plane spaceship computer house guitar laptop bicycle balloon acorn album almanac
    amulet anchor anvil apron armchair arrow axe badge bagel ballot banana bandage banjo banner barometer barrel
    baton battery beacon bead beaker beret berry bib binder biscuit blouse bobbin bolt bonnet bookmark boomerang
    boot bow bowl bracelet brick briefcase brooch brush buckle bugle bulb button cabbage cable cactus calculator
    calendar candelabra cane canoe canvas cap cape carpet carrot cassette cauldron cello certificate chain chair
    charm cheese cherry chest chisel chopstick cigar clarinet clip cloak coaster cocoon coconut collar comb cookie
    cork corkscrew cradle crate crayon cube cucumber curtain cushion cymbal dagger dart diamond diary dictionary
    dinghy diploma disk domino doorbell dress drill drone dumbbell dustpan earring easel egg emerald engine envelope
    eraser fan faucet fig flag flask flashlight flipper flowerpot folder football fork fossil frame freezer funnel
    fuse gadget gauge gem glider globe goblet gong gourd grape grater guidebook hairpin hammock handbag handkerchief
    harmonica harness harp hatchet headband helmet hinge hook horseshoe hose hourglass icicle igloo jacket jar
    javelin jersey jewel jigsaw joystick jug kayak kettle keyboard kimono knapsack knob ladder ladle lamp leaf leash
    lemon lens lever lid lighter lipstick lock locket log loom lollipop lute magnet magnifier mallet mandolin mango
    marble mask matchbox medal megaphone melon menu microphone microscope mitten monocle mop mousetrap muffin mug
    mushroom napkin necklace needle net newspaper notebook nugget nut oar oboe onion opal ornament overcoat paddle
    padlock pail paintbrush pan pancake parachute parasol parcel passport peach pear pebble pedal peg pendant
    pendulum pepperpot pickaxe pie pillowcase pinecone pineapple pipe pistachio pitcher plank plate platter plum
    pocketknife postcard poster potato pouch prism propeller pumpkin purse puzzle pyramid quill quilt racket radio
    radish raft rake rattle razor receipt recorder ribbon rocket rod rosary rowboat rubber ruby rucksack rug ruler
    saddle sail sandal sandwich sapphire satchel saucepan saucer saw saxophone scale scepter scooter screwdriver
    scroll seashell seed shawl shield shirt shovel sieve sketchbook skillet skirt skateboard sketch slingshot
    slipper snowball snowglobe sock sombrero spade spanner sponge spool sprinkler stamp stapler stick stocking
    stopwatch strawberry suitcase sunflower surfboard sweater sword syringe tablet tambourine tangerine tapestry
    tarp teabag teacup teaspoon thermometer thimble tie tile timer toaster tomato toothbrush torch towel tractor
    trampoline tray treasure tricycle tripod trombone trophy trowel trumpet trunk tub tuba tulip tunic turban turnip
    typewriter ukulele unicycle vase veil vest vial viola violin visor waffle wallet walnut wand wheel wheelbarrow
    whisk wig windmill wrench wreath xylophone zipper zither
""")
# What nobody is in the plain stories. None is another's kind, as a gecko is a lizard: "Is Zib a lizard?" would get "Zib
# is a gecko, so no." And none is she or he by itself but those in corpus.FIXED.
MORE_KINDS = words("""
    robot dinosaur unicorn fairy ghost witch alien snake tiger whale shark cow bee spider butterfly rat eagle
    soldier detective president lawyer chef dancer zombie vampire ninja cowboy superhero plumber astronaut dentist
    librarian mechanic butcher fisherman firefighter clown juggler magician barber nurse pilot inventor explorer
    hunter hermit giant troll goblin elf dwarf mermaid ogre beekeeper blacksmith cobbler jeweler clockmaker postman
    waiter drummer violinist photographer astronomer botanist mathematician porter thief spy captain gladiator
    viking samurai sheriff mayor judge banker poet actor acrobat skater surfer cyclist student grandmother
    grandfather toddler twin llama alpaca camel kangaroo koala wombat platypus ostrich emu flamingo pelican parrot
    toucan peacock swan stork heron falcon hawk vulture raven magpie woodpecker kingfisher hummingbird seal walrus
    dolphin octopus squid crab lobster jellyfish starfish snail slug worm caterpillar ladybug ant grasshopper
    dragonfly firefly moth scorpion gecko iguana chameleon crocodile alligator newt weasel ferret stoat skunk
    opossum armadillo anteater sloth gorilla chimpanzee lemur panda leopard cheetah jaguar panther lynx hyena jackal
    coyote gazelle buffalo bison yak rhinoceros hippopotamus giraffe zebra hamster gerbil chinchilla porcupine bat
    shrew
""")


def made_up(count: int, seed: str, syllables: tuple[int, ...] = (2, 2, 2, 3, 3, 4), longest: int = 10) -> list[str]:
    """Words from nowhere, of so many letters at most and of one of these numbers of syllables.

    A model that knows so many can copy what it has never seen.
    """
    chance, found = random.Random(seed), {}
    while len(found) < count:
        parts = (
            chance.choice(ONSETS) + chance.choice("aeiou") + chance.choice(CODAS)
            for _ in range(chance.choice(syllables))
        )
        word = "".join(parts)
        if len(word) <= longest and not UNFIT.search(word) and word not in REAL:
            found[word] = True
    return list(found)


ONSETS = words("b d f g k l m n p r s t v w z bl br ch dr fl gr kl kr pl sh sk sn st tr th y j h")
CODAS = ["", "", "", "", *words("n l r m s x k p b ng")]
UNFIT = re.compile(
    "fuk|fuc|shit|kunt|nig|neg|rape|dik|tit|kum|fag|kok|jew|naz|hoe|wank|slut|piss|pus|an[aiu]l|as+h|sex|hor"
    "|penis|semen|boner|dildo|porn|homo|dago|gook|paki|kike|pedo|lesb|moron|satan|hitl|vulv|vagi|popo|kaka|virgi|sado"
)
REAL = frozenset(name.lower() for name in MORE_GIRLS + MORE_BOYS + EITHER) | frozenset(MORE_THINGS + MORE_KINDS)
MADE_UP = [word.capitalize() for word in made_up(600, "names")]
MADE_UP_THINGS = made_up(600, "things")
# Shorter ones, of which the tokenizer makes two to four tokens, mostly: what is copied first. No English word that ends
# in a silent e is among them.
SHORT = [word.capitalize() for word in made_up(1500, "short names", (2,), 5) if not word.endswith("e")]
SHORT_THINGS = [word for word in made_up(1500, "short things", (2,), 5) if not word.endswith("e")]

# Places, as phrases. To those in the first list one can also bring something, or go.
ROOMS = {
    "kitchen": "in", "attic": "in", "cellar": "in", "shed": "in", "garage": "in", "bedroom": "in", "office": "in",
    "park": "in", "forest": "in", "bathroom": "in", "hallway": "in", "basement": "in", "church": "in", "hospital":
    "in", "theater": "in", "classroom": "in", "gym": "in", "restaurant": "in", "palace": "in", "tower": "in",
    "temple": "in", "desert": "in", "jungle": "in", "valley": "in", "tunnel": "in", "greenhouse": "in", "laundry":
    "in", "stadium": "in", "cabin": "in", "studio": "in", "cafe": "in", "lobby": "in", "pantry": "in", "closet":
    "in", "treehouse": "in", "shop": "at", "hotel": "at", "museum": "at", "airport": "at", "zoo": "at",
    "supermarket": "at", "camp": "at", "circus": "at", "factory": "at", "bank": "at", "playground": "on", "balcony":
    "on", "porch": "on", "terrace": "on", "island": "on", "ship": "on", "dock": "on", "pier": "on", "farm": "on",
}  # fmt: skip
SPOTS = split("""
    on the table
    on the shelf
    on the bed
    on the desk
    on the roof
    on the floor
    on the windowsill
    on the counter
    on the bookcase
    on the doorstep
    on the staircase
    on the mantelpiece
    on the lawn
    on the couch
    on the bench
    on the wall
    on the mat
    on the haystack
    on the worktop
    under the table
    under the bed
    under the tree
    under the bridge
    under the sofa
    under the stairs
    under the blankets
    under the bushes
    under the doormat
    under the pillows
    under the cupboard
    under the floorboards
    in the box
    in the drawer
    in the pond
    in the cupboard
    in the wardrobe
    in the fireplace
    in the bathtub
    in the mailbox
    in the sink
    in the toolbox
    in the hedge
    in the sandbox
    in the nest
    in the oven
    in the lake
    in the ditch
    in the straw
    in the snow
    behind the door
    behind the sofa
    behind the barn
    behind the mill
    behind the curtains
    behind the fridge
    behind the bookcase
    behind the hedge
    behind the waterfall
    behind the fence
    behind the stove
    near the gate
    near the fountain
    near the fireplace
    near the window
    near the stream
    near the fence
    beside the road
    beside the stove
    beside the piano
    beside the statue
    beside the campfire
    inside the chimney
    inside the tent
""")

# Statements. {who} and {whom} are people, {what} is a thing and {it} the thing or "it"; {at} is a place, {to} and
# {from} the way there or back. Someone gets a thing that has not been spoken of, and perhaps is done with it at once:
TAKEN = split("""
    {who} [took|took|picked up|grabbed|has] the {what}
    {who} [has|has|found|got|bought] a {what}
    {who} [owns|is holding|was given] a {what}
    {who} [has taken|has found|is holding] the {what}
""")
AND_PLACED = "{who} [took|picked up|grabbed|found] the {what} and {put} it {at}"
AND_GIVEN = "{who} [took|picked up|grabbed|found] the {what} and [gave|handed] it to {whom}"
LYING = split("""
    the {what} is {at}
    there is a {what} {at}
    the {what} [has been|was] [put|placed|left|hidden] {at}
    someone [put|left|hid] the {what} {at}
    there was a {what} {at}
""")
# Someone puts down what they have, or what has not been spoken of; {put} and the others in braces are verbs, which an
# answer repeats
PLACED = split("""
    {who} {put} {it} {at}
    {who} {put} {it} {at}
    {who} has {done} {it} {at}
    {who} {put} the {what} {at}
""")
PUT = words("put put placed left hid dropped")
DONE = words("put placed left hidden dropped")
BROUGHT = ["{who} {took} {it} {to}"]
CARRIED = words("carried brought took")
GIVEN = split("""
    {who} [gave|gave|handed|passed] {it} to {whom}
    {who} [gave|gave|handed|passed] {whom} the {what}
    {who} has [given|handed|passed] {it} to {whom}
""")
RECEIVED = split("""
    {whom} [took|got|received] {it} from {who}
    the {what} was given to {whom} by {who}
""")
FETCHED = split("""
    {who} [took|picked up|grabbed|found|got] the {what}
    {who} [took|grabbed|found] {it}
""")
FETCHED_THERE = ["{who} found {it} {at}"]
FETCHED_FROM = ["{who} [took|got] {it} {from}"]
WALKED, STANDS = " [went|walked|ran|moved] to the {where}", " is {at}"  # the second only of somebody new

# Questions after the statements; whatever their form, the answer has the same words.
WHO_HAS = split("""
    who has the {what} now?
    who has the {what}?
    who has got the {what}?
    who has the {what} at the end?
    who is holding the {what}?
    who's got the {what}?
    whos got the {what}?
    who has teh {what}?
    and who has the {what} now?
    so who has the {what}?
    hey, who has the {what}?
    who has the {what}, please?
    do you know who has the {what}?
    can you tell me who has the {what}?
    could you tell me who has the {what} now?
    please tell me who has the {what}.
    tell me who has the {what}.
    I wonder who has the {what}.
    I want to know who has the {what}.
""")
WHERE_IS = split("""
    where is the {what} now?
    where is the {what}?
    where's the {what}?
    where can I find the {what}?
    where is the {what} at the end?
    where is the {what} right now?
    where did the {what} end up?
    where will I find the {what}?
    where's the {what} now?
    wheres the {what}?
    wher is the {what}?
    where is teh {what}?
    so where is the {what}?
    hey, where is the {what}?
    where is the {what}, please?
    do you know where the {what} is?
    can you tell me where the {what} is?
    can you tell me where the {what} is now?
    could you tell me where the {what} is?
    please tell me where the {what} is.
    tell me where the {what} is.
    tell me where the {what} is now.
    I wonder where the {what} is.
    I want to know where the {what} is.
    I am looking for the {what}. Where is it?
""")
# About the last move of a thing, and about what somebody has
DID_WITH = split("""
    what did {who} do with the {what}?
    what has {who} done with the {what}?
    can you tell me what {who} did with the {what}?
    do you know what {who} did with the {what}?
""")
WHO_GAVE = split("""
    who gave {whom} the {what}?
    who gave the {what} to {whom}?
    who handed the {what} to {whom}?
    do you know who gave {whom} the {what}?
""")
GAVE_TO_WHOM = split("""
    who did {who} give the {what} to?
    to whom did {who} give the {what}?
    who got the {what} from {who}?
""")
HAS_WHAT = split("""
    what does {who} have?
    what does {who} have now?
    what has {who} got?
    can you tell me what {who} has?
    what is {who} holding?
""")
# Said to statements without a question
REMEMBERED = "I will remember that."
AND_WHERE = split("""
    and the {what}?
    and where is the {what}?
    what about the {what}?
""")
WHERE_WHO = split("""
    where is {who} now?
    where is {who}?
    where's {who}?
    where's {who} now?
    so where is {who}?
    hey, where is {who}?
    do you know where {who} is?
    can you tell me where {who} is?
    please tell me where {who} is.
    I wonder where {who} is.
""")

# Who is who
WHO_IS = split("""
    who is {who}?
    what is {who}?
    who was {who}?
    and who is {who}?
    tell me who {who} is.
    do you know who {who} is?
    can you tell me what {who} is?
    I wonder what {who} is.
""")
WHO_IS_THE = split("""
    who is the {kind}?
    who's the {kind}?
    what is the name of the {kind}?
    what is the {kind} called?
    do you know who the {kind} is?
    can you tell me who the {kind} is?
    tell me the name of the {kind}.
""")

# Numbers, told in a line: how the list begins, the first entry, the others, what stands between, what before the last
NUMBERS = (
    ("", "{who}'s number is ", "{who}'s is ", ", ", " and "),
    ("", "{who}'s number is ", "{who}'s is ", ", ", ", "),
    ("[Here are some numbers: |Phone numbers: |]", "{who} has ", "{who} has ", ", ", " and "),
    ("[Here are some numbers: |Phone numbers: |]", "{who} ", "{who} ", ", ", ", "),
    ("[Here are some numbers: |Phone numbers: |]", "{who}: ", "{who}: ", ", ", ", "),
    ("", "{who}'s number is ", "{who}'s number is ", ". ", ". "),
    ("", "[the|the phone] number of {who} is ", "the number of {who} is ", ". ", ". "),
    ("", "{who} has the number ", "{who} has the number ", ". ", ". "),
)
NUMBER_OF = split("""
    what is {who}'s number?
    what is {who}'s phone number?
    what's {who}'s number?
    what is the number of {who}?
    which number does {who} have?
    tell me {who}'s number.
    {who}'s number?
""")
AND_NUMBER_OF = split("""
    and {who}'s?
    and {who}'s number?
    what about {who}?
""")

# What may be said of any thing: adjectives, use, used, joy, what is broken, part to mend it, mending
ANY_THING = (
    "old new little big strange shiny lovely", "show it to everyone", "showed it to everyone",
    "There was no other like it.", "it had a big crack", "a dab of glue", "closed the crack with the glue",
)  # fmt: skip
LOSES = "[finds|loses|has|wants|found|lost|finds|loses]"
# What a story may be asked about: the share, how it begins, how it goes on
SUBJECTS = (
    (0.5, "a {kind}", ("", "", " [named|called] {name}", " [named|called] {name}", " whose name is {name}",
                       " and a {thing}", " with a {thing}", f" who {LOSES} a {{thing}}",
                       f" [named|called] {{name}} who {LOSES} a {{thing}}", " [named|called] {name} and a {thing}")),
    (0.4, "{name}", ("", "", " the {kind}", " and [a|the] {thing}", f" who {LOSES} a {{thing}}",
                     " the {kind} and [a|the] {thing}")),
    (0.1, "a {thing}", ("",)),
)  # fmt: skip

# Requests for a story, about {x} and about anything, as they come from a keyboard: small letters, no marks, slips.
ASKING = split("""
    tell me a story about {x}
    tell me a story about {x} please
    please tell me a story about {x}
    story about {x}
    a story about {x}
    a story about {x} please
    short story about {x}
    Short story about {x}.
    i want a story about {x}
    I'd like a story with {x} in it
    I'd like a story with {x}.
    i would like a story about {x}
    I would like to hear a story about {x}.
    can you tell me a story about {x}
    could you tell me a story about {x}
    Could you please tell me a story about {x}?
    Could you tell a story with {x} in it?
    Would you tell me a story about {x}, please?
    tel me a stroy about {x}
    tell me a stroy about {x}
    Tell me a stroy about {x}.
    tell me story about {x}
    tell a story about {x}
    Tell me another story about {x}.
    pls tell me a story abuot {x}
    a stroy with {x} please
    write a story about {x}
    Write me a story with {x} in it.
    write me a short story about {x}
    make up a story about {x}
    give me a story about {x}
    hi, tell me a story about {x}
    Hello, I'd like a story about {x}.
    let me hear a story about {x}
    something about {x}
    Something about {x}, please.
    {x}[ please|]
    do you know a story about {x}
    what about a story with {x}
    tell us about {x}
    my son wants a story about {x}
    Once more: a story about {x}.
    Invent a story about {x}.
    invent a story with {x} in it
    Could we have a story about {x}?
    could we hear a story about {x}
    Let's hear a story about {x}.
    lets hear one about {x}
    Let's hear about {x}!
    I want to hear about {x}.
    I want to read something about {x}.
    Tell me a bedtime story about {x}.
    a bedtime story about {x} please
    We'd like a bedtime story with {x}.
    Tell me a short story about {x}.
    tell me a very short story about {x}
    Give me a short tale about {x}.
    A little tale about {x}, please.
    Could you write a short tale about {x}?
    Could you make up a bedtime story about {x}?
    Can you make up something about {x}?
    Can you write something about {x}?
    Can you invent a tale about {x}?
    Do you have a story about {x}?
    do you have any story with {x}
    Have you got a story about {x} for me?
    Is there a story about {x}?
    May I have a story about {x}?
    May we hear the story of {x}?
    Tell me the story of {x}.
    tell the story of {x}
    The story of {x}, please.
    Tell the kids a story about {x}.
    my daughter loves stories about {x}, tell one
    Please write a story for my kids about {x}.
    Please give us a story in which there is {x}.
    I need a story about {x}.
    I need a bedtime story about {x} for my son.
    we want a story about {x}!
    How about a story about {x}?
    how about {x}
    How about a tale of {x}?
    Hey, do you know one about {x}?
    hey tell me about {x}
    Hi! Could you tell me something about {x}?
    I love stories about {x}. Tell me one!
    Can you do a story about {x}?
    Can the story be about {x}?
    Make it a story about {x}.
    Next, a story about {x}.
    I can't sleep, tell me about {x}.
    Story time! Tell us about {x}.
    Once upon a time there was {x}. Go on!
    Write about {x}.
    Tell a tale of {x}.
    Think of a story about {x}.
    What happened to {x}? Tell me a story.
    Read me a story about {x}.
    Read us something about {x}.
    Please, a new story about {x}.
    My class would like to hear a story about {x}.
    I wish you would tell me a story about {x}.
""")
ASKING_ANY = split("""
    tell me a story
    tell me a story please
    please tell me a story
    tell a story
    Tell a story.
    story
    Story!
    story please
    a story
    a story please
    one story please
    short story
    A short story, please.
    i want a story
    I want a story!
    I would like a story, please.
    can you tell me a story
    could you tell me a story
    Could you please tell me a story?
    Would you tell me a story?
    tel me a stroy
    tell me a stroy
    Tell me a stroy.
    tell me story
    tell me a short story
    Tell me something.
    tell me something
    write a story
    write me a story
    make up a story
    give me a story
    Can I have a story?
    can i have a story
    another story
    Another story, please.
    tell me a tale
    Tell me a good story.
    tell me a nice story
    any story
    i am bored, tell me a story
    I want to hear a story.
    let me hear a story
    go on, tell me a story
    Let's hear a story.
    let's hear a story then
    Could we have a story?
    Could we hear a bedtime story?
    Invent a story.
    Invent something for me.
    Make something up.
    Surprise me.
    surprise me with a tale
    Read me a story.
    read me something
    Story time!
    it's story time
    Bedtime story, please.
    a bedtime story
    Tell us a story.
    We would like a story.
    my kids want a story
    Do you have a story for me?
    do you know a story
    Got any stories?
    What stories do you know? Tell me one.
    One more story, please.
    I need a story.
    I need a bedtime story for my daughter.
    Entertain me.
    Tell me something nice before I go to sleep.
    I can't sleep.
    Write something short for me.
    Write a little tale.
    Your best story, please.
    Please tell me your favorite story.
    Any story will do.
    how about a story
    once upon a time
    Once upon a time ...
""")

# What is said without need of a story, and the answers
WHO_I_AM = "I am a small storyteller. I know stories, who has what, who is who, and phone books."
WHAT_I_DO = 'I can tell stories and remember who has what. Try "Tell me a story about a fox."'
HELLO = "Hello! Would you like a story?"
HI = "Hi! Shall I tell you a story?"
SMALL_TALK = {
    "hello": HELLO, "hello!": HELLO, "hello there": HELLO, "Hello there!": HELLO, "Hello.": HELLO, "Good day!": HELLO,
    "good day": HELLO, "hi": HI, "hi!": HI, "hi there": HI, "Hi there!": HI, "Hi there": HI, "hey": HI, "Hey!": HI,
    "Hey": HI, "hey there": HI, "good morning": "Good morning! Would you like a story?",
    "good evening": "Good evening! Would you like a bedtime story?",
    "Good evening!": "Good evening! Would you like a bedtime story?",
    "who are you?": WHO_I_AM, "who are you": WHO_I_AM, "Who are you": WHO_I_AM, "what are you?": WHO_I_AM,
    "What are you?": WHO_I_AM, "what are you": WHO_I_AM, "tell me about yourself": WHO_I_AM,
    "Tell me about yourself.": WHO_I_AM, "are you a robot?": WHO_I_AM, "Are you a person?": WHO_I_AM,
    "what can you do?": WHAT_I_DO, "what can you do": WHAT_I_DO, "What can you do": WHAT_I_DO, "help": WHAT_I_DO,
    "Help!": WHAT_I_DO, "what do you know?": WHAT_I_DO, "What do you know?": WHAT_I_DO,
    "What can I ask you?": WHAT_I_DO, "what can i ask": WHAT_I_DO, "What should I ask?": WHAT_I_DO,
    "How does this work?": WHAT_I_DO,
    "how are you?": "I am well, thank you. How are you?", "how are you": "I am well, thank you. How are you?",
    "How are you today?": "I am well, thank you. How are you?",
    "what is your name?": "I have no name. I am a small storyteller.",
    "what's your name": "I have no name. I am a small storyteller.",
    "What's your name?": "I have no name. I am a small storyteller.",
    "thanks": "You are welcome!", "Thanks": "You are welcome!", "Thanks!": "You are welcome!",
    "thank you": "You are welcome!", "Thank you": "You are welcome!", "Thank you.": "You are welcome!",
    "Thank you very much!": "You are welcome!", "thanks a lot": "You are welcome!",
    "bye": "Goodbye! Come back soon.", "Bye!": "Goodbye! Come back soon.", "bye bye": "Goodbye! Come back soon.",
    "goodbye": "Goodbye! Come back soon.", "Goodbye.": "Goodbye! Come back soon.",
    "See you!": "Goodbye! Come back soon.", "see you later": "Goodbye! Come back soon.",
    "good night": "Good night! Sleep well.", "Good night.": "Good night! Sleep well.",
    "ok": "Would you like a story?", "Ok.": "Would you like a story?", "okay": "Would you like a story?",
    "cool": "Thank you! Would you like a story?", "Nice!": "Thank you! Would you like a story?",
    "great": "Thank you! Would you like a story?", "You are funny.": "Thank you! Would you like a story?",
    "I love you.": "Thank you! Would you like a story?", "no": "That is fine. Ask me again when you like.",
    "No, thank you.": "That is fine. Ask me again when you like.",
    "No.": "That is fine. Ask me again when you like.",
} | {
    said: answer
    for answer, many in (
        (HELLO, "hello friend; Hello, friend!; hallo; helo; hello again; Hello again!; greetings; Greetings!; howdy; "
                "Hello, how nice to meet you.; good afternoon; Good afternoon!; hello, anybody there?; welcome"),
        (HI, "hi friend; hii; Hey you!; hey, what's up; heya; yo; sup; Hi, nice to meet you.; hi again; hey hey"),
        (WHO_I_AM, "who r u; what r u; Who am I talking to?; who is this?; Introduce yourself.; introduce yourself "
                   "please; Tell me who you are.; what kind of thing are you?; are you a bot?; are you an ai; Are you "
                   "human?; Are you a computer?; what are you exactly?; who are you, please?; So, who are you?"),
        (WHAT_I_DO, "what can u do; What do you do?; what are you able to do?; help me; Help me, please.; Can you help "
                    "me?; can you help; i need help; What can you do for me?; what can i do here; How do I use this?; "
                    "how do you work?; what now?; Give me an example.; what are you good at?; What are you for?; "
                    "what else can you do?; Show me what you can do.; So what can you do?; options; menu; commands; "
                    "tell me what you can do; What are my choices?"),
        ("I am well, thank you. How are you?", "how r u; how are you doing; How are you doing?; how do you do; How do "
                    "you feel?; How's it going?; hows it going; are you well?; Are you okay?; How are things?; "
                    "hello, how are you?; Hi, how are you?"),
        ("I have no name. I am a small storyteller.", "whats your name; your name?; What are you called?; what should "
                    "i call you; Do you have a name?; tell me your name; may I ask your name?; What's your name, "
                    "please?"),
        ("You are welcome!", "thank you so much; Thank you so much!; thx; ty; many thanks; Many thanks!; thanks for "
                    "your help; Thanks, that helps.; thank you for the help; cheers"),
        ("Goodbye! Come back soon.", "cya; see ya; See you tomorrow!; bye for now; I have to go.; i must go now; "
                    "farewell; Farewell!; that is all; That's all, thanks.; good bye; so long; take care"),
        ("Good night! Sleep well.", "gn; nighty night; Sleep well!; I am going to bed.; good night, storyteller"),
        ("Would you like a story?", "k; alright; All right.; fine; I see.; hm; hmm; what?; why?; "
                    "really?; and?"),
        ("Thank you! Would you like a story?", "awesome; Awesome!; wow; Wow!; good; Good job!; well done; Well done!; "
                    "perfect; You are nice.; you are great; I like you.; lol; haha"),
        ("That is fine. Ask me again when you like.", "nope; not now; Maybe later.; later; never mind; no thanks; "
                    "stop; Stop it."),
    )
    for said in (" ".join(part.split()) for part in many.split(";"))
}  # fmt: skip

# What it cannot know, and what it says then: one sentence or two, always the same few. All of them begin alike.
OUTSIDE = split("""
    What is [1|2|3|4|5|6|7|8|9] [+|-|*|/] [1|2|3|4|5|6|7|8|9]?
    [1|2|3|4|5|6|7|8|9] [+|-|*|x] [1|2|3|4|5|6|7|8|9]
    [1|2|3|4|5|6|7|8|9] + [1|2|3|4|5|6|7|8|9] = ?
    How much is [1|2|3|4|5|6|7|8|9][1|2|3|4|5|6|7|8|9] [plus|minus|times] [1|2|3|4|5|6|7|8|9]?
    What is [two|three|five|seven|ten] [plus|minus|times] [two|three|four|six]?
    What is the square root of [1|2|3|4|5|6|7|8|9][0|1|4|6|9]?
    Solve x + [1|2|3|4|5] = [6|7|8|9].
    Is [7|9|8] a prime number?
    What is the capital of [France|Spain|Italy|Germany|Japan|China|India|Brazil|Canada|Egypt]?
    Where is [France|Spain|Paris|London|Rome|Berlin|Japan|Africa]?
    How many people live in [France|Paris|London|Berlin|India|Tokyo]?
    What language do they speak in [Brazil|Canada|Egypt|China|India]?
    How far is it from [Paris|London|Rome] to [Berlin|Tokyo|Madrid]?
    Which is the [largest|longest|highest|smallest] [country|river|mountain|city] in [the world|Europe|Africa|Asia]?
    What is the weather like in [Paris|London|Rome|Berlin|Tokyo]?
    What will the weather be [today|tomorrow|on Monday]?
    Will it rain [today|tomorrow|this weekend]?
    What time is it?
    What day is it today?
    What year is it?
    What is the date?
    What's the news?
    What happened [today|yesterday] in [politics|sports|the world]?
    Who won the [game|match|election|world cup]?
    Who is the president of [France|Brazil|the United States|Mexico]?
    Who is [Einstein|Napoleon|Shakespeare|Mozart|Obama|Picasso]?
    Who [wrote Hamlet|painted the Mona Lisa|invented the telephone|discovered America]?
    When was [Einstein|Napoleon|Mozart|Shakespeare] born?
    When did [the war|World War Two|the French Revolution] [begin|start|end]?
    Write a [Python|Java|Rust] [function|program|script] that [sorts a list|adds two numbers|reads a file].
    Write some [Python|Java|HTML|SQL] code for me.
    How do I [sort a list|read a file|write a loop] in [Python|Java|Rust]?
    Fix this [code|bug|program] for me.
    What does this error mean?
    Explain [gravity|democracy|evolution|machine learning|photosynthesis|inflation|quantum physics].
    What is [gravity|democracy|an atom|a black hole|a neural network|the internet|DNA|philosophy]?
    How does [a computer|an engine|the internet|a plane|the brain] work?
    How tall is [Mount Everest|the Eiffel Tower|a giraffe]?
    How old is [the earth|the sun|the universe]?
    How far away is the [sun|moon]?
    How many [planets|continents|oceans|bones|states] are there?
    Why is the [sky|sea] blue?
    Why do [cats purr|birds sing|leaves fall|we dream]?
    What do [cows|bats|frogs|bees] eat?
    Translate [hello|good morning|I love you|thank you] into [French|Spanish|German|Italian].
    How do you say [hello|thank you|water] in [French|Spanish|German|Italian]?
    What does [bonjour|gracias|danke|ciao] mean?
    Spell [banana|necessary|Mississippi].
    What is the opposite of [hot|big|happy|fast]?
    What rhymes with [cat|day|moon]?
    Summarize this [article|text|email|book].
    Write [an email|a letter|an essay|a report|a resume] [to my boss|about climate change|for my job|for school].
    Write a poem about [the sea|love|autumn|my mother].
    Sing me a song.
    Tell me a joke.
    Tell me a fact.
    Give me a recipe for [pancakes|bread|soup|pizza].
    How do I [bake bread|cook rice|make coffee|boil an egg]?
    What should I [eat|wear|cook|buy|do] [today|tonight]?
    Recommend a [movie|song|restaurant|book|game].
    Play [some music|a game|chess].
    Set [an alarm for 7|a timer for 5 minutes].
    Book a [flight|hotel|table] [in|to] [Paris|Rome|London].
    How do I [lose weight|sleep better|learn English|earn money|find a job]?
    I have a [headache|fever|cold]. What should I do?
    What is the price of [gold|bitcoin|oil|a car]?
    Should I buy [a house|a car|stocks|bitcoin]?
    Who will win [tomorrow|the election|the next game]?
    How old are you?
    Where do you live?
    Do you have [feelings|a body|friends|parents]?
    Who made you?
    Are you [alive|smart|ChatGPT|real]?
    What is your favorite [color|food|movie|song]?
    What do you think about [politics|religion|art|robots]?
    What is the meaning of life?
    Is there a god?
    Draw a [cat|house|picture|map].
    Show me a picture of a [cat|dog|house].
    Open the [browser|camera|settings].
    Count to [ten|twenty].
    Name three [fruits|colors|animals|countries].
    List the [planets|months|presidents].
    How many letters are in the word [banana|strawberry]?
    What is 10% of [50|80|200]?
    Convert [5|10|20] [miles|pounds|dollars] to [meters|grams|euros].
    Help me with my homework.
    Can you [drive|swim|dance|cook|fly|see me]?
    Let's talk about [sports|music|science|history|cars].
    Do you like [pizza|football|music|winter]?
    What is a [verb|noun|triangle|prime number]?
    asdf
    [test|testing|1 2 3|foo bar|qwerty]
    blah blah
    [Add|Multiply|Subtract] [1|2|3|4|5|6|7|8|9] and [1|2|3|4|5|6|7|8|9].
    can you add [1|2|3|4|5|6|7|8|9][0|2|5|7] and [1|2|3|4|5|6|7|8|9][1|3|6|8]?
    calculate [1|2|3|4|5|6|7|8|9][0|2|5|7] [+|-|*|/] [2|3|4|5|6|8]
    what's [1|2|3|4|5|6|7|8|9] times [1|2|3|4|5|6|7|8|9]?
    [1|2|3|4|5|6|7|8|9][0|1|2|3|5|8] [divided by|minus|plus|times] [2|3|4|5|6|7|8|9]
    Is [1|2|3|4|5|6|7|8|9] greater than [1|2|3|4|5|6|7|8|9]?
    Do my math homework.
    What is half of [8|10|60|100]?
    What comes after [7|9|12|99]?
    How many [days|weeks|hours|minutes] are in a [year|month|week|day]?
    Do you know the capital of [Norway|Peru|Kenya|Poland|Turkey|Cuba]?
    Tell me the capital of [Norway|Peru|Kenya|Poland|Greece|Chile].
    capital of [Sweden|Greece|Portugal|Austria|Ireland|Finland]
    What's the capital city of [Australia|Russia|Mexico|Sweden|Iran]?
    Is [Paris|London|Rome|Berlin] in [France|Italy|Germany|England]?
    Which continent is [Egypt|Peru|India|Norway] in?
    Who discovered [penicillin|gravity|the moon|electricity]?
    Who is the [king|queen|prime minister] of [England|Spain|Norway|Sweden]?
    Who is the richest man in the world?
    Who was the first [man on the moon|president|emperor of Rome]?
    Who sang [Yesterday|Imagine|Thriller]?
    What is the [tallest|biggest|fastest|oldest] [building|animal|tree|car] [in the world|on earth]?
    weather
    weather in [Paris|Madrid|Oslo|Boston]
    How is the weather [today|outside|in Rome|in Madrid]?
    Is it [raining|snowing|sunny|cold] [now|today|outside|in Berlin]?
    Do I need an umbrella today?
    What's the temperature [today|outside|in Paris]?
    news
    Any news [today|about the election|from Paris]?
    Tell me the latest news.
    Who is winning the [race|war|league]?
    What's on TV tonight?
    When is [Easter|Christmas|the next train|my birthday]?
    How do you say [cat|dog|house|goodbye] in [Latin|Greek|Japanese|Chinese|Russian]?
    What is [water|bread|love|house] in [French|Spanish|German|Latin]?
    Can you speak [French|Spanish|German|Chinese]?
    Speak [French|Spanish|German] to me.
    Translate this [text|sentence|letter] [into French|into English|for me].
    [hola|bonjour|guten Tag|ciao]
    print("hello world")
    Write hello world in [C|Go|Python|Java|Rust].
    Write a [class|loop|test|regex] in [Python|Java|Go].
    Can you [program|code|write code|debug this]?
    How do I install [Python|Linux|Windows]?
    What is a [pointer|loop|compiler|database|server]?
    import numpy as np
    def f(x): return x
    SELECT * FROM users
    What is the best [phone|car|laptop|programming language|school]?
    Which is better, [tea or coffee|cats or dogs|Java or Python|summer or winter]?
    Do you think [robots|people|animals] are [good|bad|clever]?
    What is your opinion on [taxes|war|school|money]?
    Are you happy?
    Are you [bored|tired|hungry|sad]?
    Who do you love?
    Do you believe in [God|ghosts|love]?
    Do you remember me?
    What do you want?
    What are you thinking about?
    Who is your [boss|father|best friend]?
    Where are you from?
    When were you born?
    My [head|back|tooth|knee] hurts. What can I do?
    Which medicine helps against [pain|a cold|fever|flu]?
    Is [coffee|sugar|milk|wine] [healthy|bad for me|good for me]?
    How many calories are in [an egg|a banana|bread]?
    Can I mix [aspirin|alcohol|milk] and [wine|coffee|tea]?
    Am I [sick|ill|pregnant|fat]?
    Do you know a [joke|riddle|song|poem]?
    Make me laugh.
    say something funny
    another joke please
    Tell me a riddle.
    Write a [song|haiku|rap|limerick|poem] [about love|for my mother|about rain|for me].
    What is the [recipe|best recipe] for [cake|pasta|salad]?
    What can I cook with [eggs|rice|potatoes]?
    How long do I boil [an egg|rice|potatoes]?
    Order [a pizza|a taxi|some food].
    Call [my mother|a taxi|the police].
    Send [a message|an email] to [my boss|my mother|my friend].
    Remind me to [buy milk|call my mother|sleep].
    Turn [on|off] the [light|radio|music].
    Search the web for [shoes|flights|hotels].
    What is [bitcoin|inflation|a mortgage|the stock market]?
    How do I [fix my car|tie a tie|plant a tree|fold a shirt|write a resume]?
    Plan my [week|day|holiday|trip to Rome].
    Give me advice about [love|money|work|school].
    My [boss|friend|brother] is angry with me.
    I am [sad|lonely|tired|angry].
    Correct my grammar.
    Is this sentence correct?
    What does [ubiquitous|apathy|entropy] mean?
    Define [love|irony|justice|energy].
    How do you spell [rhythm|beautiful|Wednesday]?
    Give me a synonym for [big|nice|fast].
    Write an essay on [freedom|the sea|school uniforms].
    Finish my [essay|homework|report].
    What is the speed of [light|sound]?
    What is the boiling point of [water|iron]?
    Why is [grass green|snow white|blood red|ice cold]?
    Why do [we sleep|people lie|dogs bark|stars shine]?
    How do [birds fly|fish breathe|planes fly|magnets work]?
    What is the largest [planet|ocean|desert]?
    Do [fish|plants|snakes] sleep?
    Can [pigs|penguins|cats] fly?
    Prove that [there are many primes|the earth is round].
    Let's play [chess|a game|hangman].
    Guess my [age|name|number].
    Pick a number between 1 and [5|10].
    Flip a coin.
    ???
    ...
    !!!
""")
UNKNOWN = split("""
    I only know stories, who has what, who is who, and phone books: try "Tell me a story about a fox."
    I do not know that, but I know stories: try "Tell me a story about a lantern."
    I cannot help with that, but I can tell you a story: try "Tell me a story about a fox."
""")
# Asked without anything that tells it
NOT_TOLD = split("""
    who has the {what} now?
    who has the {what}?
    where is the {what} now?
    where is the {what}?
    what is {who}'s number?
    where is {who}?
    does {who} have the {what}?
""")
HAVE_NOT_TOLD = "You have not told me that yet."
