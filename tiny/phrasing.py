"""What someone may say who does not know the templates: other names and things, other verbs, other ways to ask.

Only words and sentences are here; corpus.py makes documents of them. In a line, [a|b] is one of several ways to say it;
what else stands in braces is told where the lines are used.
"""

from __future__ import annotations


def split(text: str) -> list[str]:
    """The lines of a text, without the white space around them."""
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def words(text: str) -> list[str]:
    """The words of a list."""
    return text.split()


# Names that no story has; a name is always of the same pronoun.
MORE_GIRLS = words("Mia Alice Ann Mary Lisa Eva Zara Laura Julia Sofia Emily Grace Sue Jane Carol Betty")
MORE_BOYS = words("Bob John Paul Mark Nick Dan Eric Fred George Liam Mike Steve Jim Alan Carl Bill")
# Names of people from nowhere, in two parts: a model that knows them can copy what it has never seen.
FIRST_PARTS = words("Bo Da Ka Lo Mi No Ru Sa Ta Ve Xa Zo")
LAST_PARTS = words("bin dor gal kel lan mas nik ron sha tov")
MADE_UP = [first + last for first in FIRST_PARTS for last in LAST_PARTS]
MORE_THINGS = words("""
    apple pencil phone letter coin hammer knife bottle toy pen watch glove shoe stone flower cake backpack ticket
    camera orange card
""")
# Places, as phrases. To those in the first list one can also bring something, or go.
ROOMS = {"kitchen": "in", "attic": "in", "cellar": "in", "shed": "in", "garage": "in", "bedroom": "in", "office": "in",
         "park": "in", "forest": "in", "shop": "at", "hotel": "at"}  # fmt: skip
SPOTS = split("""
    on the table
    under the table
    on the shelf
    under the bed
    on the bed
    in the box
    in the drawer
    on the desk
    behind the door
    on the roof
    behind the sofa
    under the tree
    behind the barn
    behind the mill
    under the bridge
    in the pond
""")

# Statements. {who} and {whom} are people, {what} is a thing and {it} the thing or "it"; {at} is a place, {to} and
# {from} the way there or back. Someone gets a thing that has not been spoken of, and perhaps is done with it at once:
TAKEN = split("""
    {who} [took|took|picked up|grabbed|has] the {what}
    {who} [has|has|found|got|bought] a {what}
""")
AND_PLACED = "{who} [took|picked up|grabbed|found] the {what} and [put|left|hid|placed] it {at}"
AND_GIVEN = "{who} [took|picked up|grabbed|found] the {what} and [gave|handed] it to {whom}"
LYING = split("""
    the {what} is {at}
    there is a {what} {at}
""")
# Someone puts down what they have, or what has not been spoken of
PLACED = split("""
    {who} [put|put|placed|left|hid|dropped] {it} {at}
    {who} [put|placed|left|hid] the {what} {at}
""")
BROUGHT = ["{who} [carried|brought|took] {it} {to}"]
GIVEN = split("""
    {who} [gave|gave|handed|passed] {it} to {whom}
    {who} [gave|gave|handed|passed] {whom} the {what}
""")
RECEIVED = ["{whom} [took|got] {it} from {who}"]
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
""")
WHERE_IS = split("""
    where is the {what} now?
    where is the {what}?
    where's the {what}?
    where can I find the {what}?
    where is the {what} at the end?
""")
AND_WHERE = split("""
    and the {what}?
    and where is the {what}?
    what about the {what}?
""")
WHERE_WHO = split("""
    where is {who} now?
    where is {who}?
    where's {who}?
""")

# Who is who
WHO_IS = split("""
    who is {who}?
    what is {who}?
    who was {who}?
""")
WHO_IS_THE = split("""
    who is the {kind}?
    who's the {kind}?
    what is the name of the {kind}?
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
""")

# What no story is about, and how a story about something else begins then
ODD = words("""
    robot car train plane spaceship dinosaur unicorn fairy ghost witch monster alien tree computer snake tiger whale
    shark horse cow bee spider butterfly fish rat chicken eagle soldier detective president lawyer chef dancer zombie
    vampire ninja cowboy superhero star cloud house guitar phone laptop bicycle balloon treasure
""")
NO_STORY = "I know no story about that, but here is another one."

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
    [test|testing]
    blah blah
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
