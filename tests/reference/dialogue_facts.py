# SPDX-License-Identifier: Apache-2.0
"""Recall: facts that a user tells in one turn and asks for in a later one.

An attribute has a value list, ways to tell it, one acknowledgement, ways to ask for it, one answer and one
way to say that it was never told. A told value is copied exactly as the user typed it, and the newest
telling of an attribute counts. `facts` is the dialogue's memory: attribute key -> value.
"""
import dialogue_lists as lists


class Attribute:
    """One thing a user can tell: its templates hold {v} for the value (and {av} with an article)."""

    def __init__(self, key, values, tell, ack, ask, answer, unknown, invent=0.0):
        self.key, self.values, self.invent = key, values, invent
        self.tell, self.ack, self.ask = tell, ack, ask
        self.answer, self.unknown = answer, unknown

    def draw(self, rng):
        """A value: mostly from the list, sometimes a made-up word (names of all sorts exist)."""
        if rng.random() < self.invent:
            return lists.made_up_word(rng).capitalize()
        return rng.choice(self.values)


def _name():
    return Attribute(
        "name", lists.NAMES,
        ("My name is {v}.", "I'm {v}.", "I am {v}.", "Call me {v}.", "Hi, I am {v}.", "You can call me {v}.",
         "Hello, my name is {v}.", "Hi! I'm {v}.", "Hey, {v} here.", "People call me {v}."),
        "Nice to meet you, {v}!",
        ("What is my name?", "Do you remember my name?", "What's my name?", "Who am I?", "Can you tell me my name?",
         "What did I say my name was?", "Tell me my name.", "Do you know my name?", "What am I called?"),
        "Your name is {v}.", "You have not told me your name yet.", 0.35)


def _city():
    return Attribute(
        "city", lists.CITIES,
        ("I live in {v}.", "My home is in {v}.", "I moved to {v}.", "I am from {v}.", "I'm from {v}.",
         "My city is {v}.", "I live in the city of {v}."),
        "I will remember that you live in {v}.",
        ("Where do I live?", "Which city do I live in?", "What is my city?", "Where am I from?",
         "Do you remember where I live?", "What city am I from?", "Where is my home?"),
        "You live in {v}.", "You have not told me where you live yet.", 0.35)


def _age():
    return Attribute(
        "age", tuple(str(n) for n in range(6, 100)),
        ("I am {v} years old.", "I'm {v} years old.", "My age is {v}.", "I just turned {v}.", "I am {v}."),
        "I will remember that you are {v} years old.",
        ("How old am I?", "What is my age?", "Do you remember how old I am?", "Tell me my age.",
         "What's my age?"),
        "You are {v} years old.", "You have not told me your age yet.")


def _job():
    return Attribute(
        "job", lists.JOBS,
        ("I work as {av}.", "My job is {v}.", "I am {av}.", "I'm {av}.", "I earn my living as {av}."),
        "I will remember that you work as {av}.",
        ("What is my job?", "What do I do for a living?", "What do I work as?", "Do you remember my job?",
         "What's my job?", "What is my work?"),
        "You work as {av}.", "You have not told me your job yet.")


def _hobby():
    return Attribute(
        "hobby", lists.HOBBIES,
        ("My hobby is {v}.", "I like {v}.", "I love {v}.", "In my free time I enjoy {v}."),
        "I will remember that your hobby is {v}.",
        ("What is my hobby?", "What do I like to do?", "Do you remember my hobby?", "What's my hobby?",
         "What do I do in my free time?"),
        "Your hobby is {v}.", "You have not told me your hobby yet.")


def _favourite(kind, values):
    told = [f"My favourite {kind} is {{v}}.", f"My favorite {kind} is {{v}}.", f"The {kind} I like best is {{v}}.",
            f"{{v}} is my favourite {kind}."]
    ask = [f"What is my favourite {kind}?", f"What's my favorite {kind}?", f"Which {kind} do I like best?",
           f"Do you remember my favourite {kind}?", f"Tell me my favourite {kind}."]
    if kind == "colour":
        told += ["My favorite color is {v}.", "The color I like best is {v}."]
        ask += ["What is my favorite color?", "Which color do I like best?"]
    return Attribute("favourite " + kind, values, tuple(told),
                     f"I will remember that your favourite {kind} is {{v}}.", tuple(ask),
                     f"Your favourite {kind} is {{v}}.", f"You have not told me your favourite {kind} yet.")


def _pet(kind):
    return Attribute(
        "pet " + kind, lists.PET_NAMES,
        (f"My {kind} is called {{v}}.", f"I have a {kind} named {{v}}.", f"My {kind}'s name is {{v}}.",
         f"I have a {kind} called {{v}}.", f"The name of my {kind} is {{v}}."),
        f"{{v}} is a lovely name for a {kind}.",
        (f"What is my {kind} called?", f"What is the name of my {kind}?", f"What's my {kind}'s name?",
         f"Do you remember the name of my {kind}?", f"What is my {kind}'s name?"),
        f"Your {kind} is called {{v}}.", f"You have not told me about your {kind} yet.", 0.3)


def _person(kind):
    return Attribute(
        "person " + kind, lists.NAMES,
        (f"My {kind} is called {{v}}.", f"My {kind}'s name is {{v}}.", f"I have a {kind} named {{v}}.",
         f"The name of my {kind} is {{v}}."),
        f"I will remember that your {kind} is called {{v}}.",
        (f"What is my {kind} called?", f"What is my {kind}'s name?", f"What's the name of my {kind}?",
         f"Do you remember my {kind}'s name?"),
        f"Your {kind} is called {{v}}.", f"You have not told me about your {kind} yet.", 0.35)


ATTRIBUTES = {a.key: a for a in [
    _name(), _city(), _age(), _job(), _hobby(), _favourite("colour", lists.COLOURS),
    _favourite("food", lists.FOODS), _favourite("fruit", lists.FRUITS), _favourite("animal", lists.ANIMALS),
    _favourite("drink", lists.DRINKS), _favourite("sport", lists.SPORTS), _favourite("season", lists.SEASONS),
    _favourite("number", tuple(str(n) for n in range(1, 100)))]
    + [_pet(k) for k in lists.PET_KINDS] + [_person(k) for k in lists.PEOPLE]}

# name, city and colour are what people try first, so they come up more often than the rest
_COMMON = ("name", "city", "favourite colour", "age", "job", "pet cat", "pet dog")
_KEYS = tuple(ATTRIBUTES)


def _draw_key(rng):
    return rng.choice(_COMMON) if rng.random() < 0.5 else rng.choice(_KEYS)


def _fill(template, value):
    return template.replace("{av}", lists.article(value)).replace("{v}", value)


def tell(rng, facts, lower):
    """A turn that tells one fact, sometimes two at once: (user, reply, answer)."""
    if rng.random() < 0.12:
        return _tell_two(rng, facts, lower)
    attribute = ATTRIBUTES[_draw_key(rng)]
    for _ in range(4):      # telling something new is the common case, changing it the rare one
        if attribute.key not in facts or rng.random() < 0.15:
            break
        attribute = ATTRIBUTES[_draw_key(rng)]
    value = attribute.draw(rng)
    value = value.lower() if lower else value
    facts[attribute.key] = value
    template = rng.choice(attribute.tell)
    return template, {"v": value, "av": lists.article(value)}, _fill(attribute.ack, value), value


def _tell_two(rng, facts, lower):
    name, city = ATTRIBUTES["name"].draw(rng), ATTRIBUTES["city"].draw(rng)
    if lower:
        name, city = name.lower(), city.lower()
    facts["name"], facts["city"] = name, city
    template = rng.choice(("My name is {v} and I live in {w}.", "I'm {v} from {w}.", "Hi, I am {v} and I live in {w}.",
                           "Hello! I am {v} from {w}."))
    return template, {"v": name, "w": city}, f"Nice to meet you, {name} from {city}!", name


def ask(rng, facts):
    """A turn that asks for a fact: mostly one that was told, sometimes one that was not."""
    if facts and rng.random() < 0.8:
        key = rng.choice(list(facts))
    else:
        key = _draw_key(rng)
    attribute = ATTRIBUTES[key]
    template = rng.choice(attribute.ask)
    if key not in facts:
        return template, {}, attribute.unknown, "not told"
    return template, {}, _fill(attribute.answer, facts[key]), facts[key]
