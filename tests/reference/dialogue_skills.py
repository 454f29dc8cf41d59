# SPDX-License-Identifier: Apache-2.0
"""The skills of the demo model: each function makes one turn whose reply follows from the question.

A skill takes the random generator and the dialogue's state and returns (template, values, reply, answer):
the user's words are the template with {name} filled from `values`. Keeping them apart lets the caller make
the template lower-case or sloppy without touching the values. Replies spell things out step by step, so
that a small model can compute them one token at a time.
"""
import dialogue_about as about
import dialogue_facts as facts
import dialogue_lists as lists


_TOPICS = lists.THINGS + lists.ANIMALS + lists.FOODS


class State:
    """What the dialogue has established so far."""

    def __init__(self, lower):
        self.facts = {}         # attribute -> value, see dialogue_facts.py
        self.lower = lower      # the user types without capitals
        self.word = None        # the word of the last spelling turn, for "And backwards?"


def _letters(word):
    return "-".join(word)


def tell(rng, state):
    return facts.tell(rng, state.facts, state.lower)


def ask(rng, state):
    return facts.ask(rng, state.facts)


def arithmetic(rng, state):
    kind = rng.random()
    if kind < 0.30:
        return _add(rng)
    if kind < 0.55:
        return _subtract(rng)
    if kind < 0.80:
        return _times(rng)
    if kind < 0.87:
        a = rng.randint(0, 30)
        return rng.choice(("Is {a} even or odd?", "Is the number {a} odd or even?")), {"a": a}, \
            f"{a} is {'odd' if a % 2 else 'even'}.", "odd" if a % 2 else "even"
    if kind < 0.94:
        a = rng.randint(0, 60)
        return rng.choice(("What comes after {a}?", "Which number comes after {a}?")), {"a": a}, \
            f"After {a} comes {a + 1}.", str(a + 1)
    a, b = rng.sample(range(31), 2)
    return rng.choice(("Which is bigger, {a} or {b}?", "Which number is larger, {a} or {b}?")), {"a": a, "b": b}, \
        f"{max(a, b)} is bigger than {min(a, b)}.", str(max(a, b))


def _operand(rng):
    return rng.randint(0, 10) if rng.random() < 0.5 else rng.randint(0, 20)


def _add(rng):
    a, b = _operand(rng), _operand(rng)
    template = rng.choice((
        "What is {a} + {b}?", "What is {a} plus {b}?", "{a} + {b}", "{a} + {b} = ?", "How much is {a} plus {b}?",
        "Add {a} and {b}.", "Calculate {a} + {b}.", "What's {a}+{b}?", "I have {a} {t}s and get {b} more. How many?",
        "What is the sum of {a} and {b}?", "Can you add {a} and {b}?"))
    return template, {"a": a, "b": b, "t": rng.choice(lists.FRUITS[:3])}, f"{a} + {b} = {a + b}.", str(a + b)


def _subtract(rng):
    a, b = _operand(rng), _operand(rng)
    a, b = max(a, b), min(a, b)
    template = rng.choice((
        "What is {a} - {b}?", "What is {a} minus {b}?", "{a} - {b}", "{a} - {b} = ?", "How much is {a} minus {b}?",
        "Subtract {b} from {a}.", "Calculate {a} - {b}.", "What's {a}-{b}?", "Take {b} away from {a}.",
        "I have {a} {t}s and give {b} away. How many are left?"))
    return template, {"a": a, "b": b, "t": rng.choice(lists.FRUITS[:3])}, f"{a} - {b} = {a - b}.", str(a - b)


def _times(rng):
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    template = rng.choice((
        "What is {a} times {b}?", "What is {a} * {b}?", "{a} * {b}", "{a} x {b}", "How much is {a} times {b}?",
        "Multiply {a} by {b}.", "Calculate {a} * {b}.", "What's {a} times {b}?"))
    return template, {"a": a, "b": b}, f"{a} * {b} = {a * b}.", str(a * b)


def _word(rng, state):
    state.word = rng.choice(lists.SPELL_WORDS)
    return state.word


def spell(rng, state):
    w = _word(rng, state)
    template = rng.choice((
        "Spell the word {w}.", "Spell {w}.", "How do you spell {w}?", "Can you spell {w}?", "Please spell {w}.",
        "How is {w} spelled?", "Which letters are in {w}?"))
    return template, {"w": w}, f"{w}: {_letters(w)}.", _letters(w)


def reverse(rng, state):
    if state.word and rng.random() < 0.2:
        w, template = state.word, rng.choice(("And backwards?", "And in reverse?", "Now backwards."))
    else:
        w = _word(rng, state)
        template = rng.choice((
            "Reverse the word {w}.", "Reverse {w}.", "Spell {w} backwards.", "What is {w} backwards?",
            "Write {w} backwards.", "Say {w} in reverse.", "Turn the word {w} around.", "Can you reverse {w}?"))
    return template, {"w": w}, f"{w}: {_letters(w)}. Backwards: {_letters(w[::-1])}.", _letters(w[::-1])


def count(rng, state):
    kind = rng.random()
    if kind < 0.4:
        return _count_letters(rng, state)
    if kind < 0.7:
        return _count_items(rng)
    return _count_numbers(rng)


def _count_letters(rng, state):
    if state.word and rng.random() < 0.15:
        w, template = state.word, rng.choice(("How many letters is that?", "And how many letters?"))
    else:
        w = _word(rng, state)
        template = rng.choice((
            "How many letters are in {w}?", "How many letters does {w} have?", "Count the letters in {w}.",
            "How many letters are in the word {w}?", "How long is the word {w}?"))
    return template, {"w": w}, f"{w}: {_letters(w)}. That makes {len(w)} letters.", str(len(w))


def _count_items(rng):
    items = rng.sample(lists.LIST_ITEMS, rng.randint(2, 6))
    template = rng.choice((
        "How many things are these: {l}?", "Count these: {l}.", "How many words are in this list: {l}?",
        "How many items do I have: {l}?", "Count the things: {l}."))
    steps = ", ".join(f"{i} {item}" for i, item in enumerate(items, 1))
    return template, {"l": ", ".join(items)}, f"{steps}. That makes {len(items)}.", str(len(items))


def _count_numbers(rng):
    kind = rng.random()
    if kind < 0.5:
        n = rng.randint(2, 20)
        first, last = 1, n
        template = rng.choice(("Count to {n}.", "Count up to {n}.", "Can you count to {n}?", "Count from 1 to {n}."))
    else:
        first, last = rng.randint(2, 40), 0
        last = first + rng.randint(2, 9)
        if kind > 0.75:
            first, last = last, first
        template = rng.choice(("Count from {m} to {n}.", "Can you count from {m} to {n}?"))
    step = 1 if last > first else -1
    numbers = ", ".join(str(i) for i in range(first, last + step, step))
    return template, {"n": last, "m": first}, numbers + ".", numbers


def greeting(rng, state):
    language = rng.choice(tuple(lists.LANGUAGES))
    hello, thanks, bye = lists.LANGUAGES[language]
    kind = rng.random()
    if kind < 0.35:
        return rng.choice((hello, hello + "!")), {}, f"{hello}! How can I help you?", hello
    if kind < 0.65:
        word, templates = hello, ("How do you say hello in {g}?", "Say hello in {g}.", "Greet me in {g}.",
                                  "What is hello in {g}?", "How do people greet in {g}?")
    elif kind < 0.85:
        word, templates = thanks, ("How do you say thank you in {g}?", "Say thank you in {g}.",
                                   "What is thank you in {g}?", "Thank me in {g}.")
    else:
        word, templates = bye, ("How do you say goodbye in {g}?", "Say goodbye in {g}.", "What is goodbye in {g}?")
    return rng.choice(templates), {"g": language}, f"In {language} you say: {word}.", word


def _fixed(rng, table):
    questions, answer = rng.choice(table)
    thing = rng.choice(_TOPICS)
    values = {"x": thing, "ax": lists.article(thing), "c": rng.choice(lists.CITIES), "n": rng.choice(lists.NAMES)}
    return rng.choice(questions), values, answer, answer


def small_talk(rng, state):
    return _fixed(rng, about.SMALL_TALK)


def openmoe(rng, state):
    return _fixed(rng, about.OPENMOE)


def cannot(rng, state):
    # the catch-all stands last and is drawn more often: the world is full of other questions
    if rng.random() < 0.35:
        return _fixed(rng, about.CANNOT[-1:])
    return _fixed(rng, about.CANNOT)


# function, name in the reports, weight in a dialogue
SKILLS = (
    (tell, "tell", 16), (ask, "recall", 18), (arithmetic, "arithmetic", 14), (spell, "spell", 8),
    (reverse, "reverse", 9), (count, "count", 11), (greeting, "greeting", 7), (small_talk, "small talk", 6),
    (openmoe, "openmoe", 8), (cannot, "cannot", 8))
