# SPDX-License-Identifier: Apache-2.0
"""Tool calls: the text format, a stock of tools, and the turns in which the assistant calls them.

The format is the server's, letter by letter. Tools stand behind the system message as compact JSON, a call is
<tool_call>{"name":...,"arguments":{...}}</tool_call> in the assistant's turn, and its results are a user turn of
<tool_response>...</tool_response>. A dialogue as data keeps the roles (see dialogues.py), so that a test can send
tools, calls and results as such; `rendered` makes the plain turns that the model is trained on, and both give
the same prompt.

A kit is what one dialogue offers: one to three tools, worded a little differently each time, so that names
and parameters have to be read off the list. What no tool of the kit answers gets an ordinary reply.
"""
import json
import re

import dialogue_lists as lists

INTRODUCTION = ('You can call tools. To call one, reply with <tool_call>{"name":NAME,"arguments":{...}}</tool_call>. '
                'The tools:\n')
SKILL_NAMES = ("tool call", "two calls", "tool answer", "no tool")
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.S)


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def render_tools(tools):
    """The text behind the system message, from a request's list of tools."""
    lines = []
    for tool in tools:
        function = tool["function"]
        lines.append(compact({k: function[k] for k in ("name", "description", "parameters") if k in function}))
    return INTRODUCTION + "\n".join(lines)


def render_calls(calls):
    return "".join(f"<tool_call>{compact({'name': c['name'], 'arguments': c['arguments']})}</tool_call>"
                   for c in calls)


def parse_calls(text):
    """The calls in a reply, or None where it has anything else in it."""
    try:
        calls = [json.loads(body) for body in _CALL.findall(text)]
    except ValueError:
        return None
    rest = _CALL.sub("", text).strip()
    fitting = all(isinstance(c, dict) and set(c) == {"name", "arguments"} for c in calls)
    return calls if calls and fitting and not rest else None


def rendered(dialogue):
    """Plain turns of system, user and assistant, as the chat format wants them."""
    out = []
    for turn in dialogue:
        if turn.get("tools"):
            content = "\n\n".join(s for s in (turn["content"], render_tools(turn["tools"])) if s)
            out.append({"role": "system", "content": content})
        elif turn.get("tool_calls"):
            out.append({**turn, "content": turn["content"] + render_calls(turn["tool_calls"])})
        elif turn["role"] == "tool":
            response = f"<tool_response>{turn['content']}</tool_response>"
            if out[-1].get("of_tools"):
                out[-1]["content"] += response
            else:
                out.append({"role": "user", "content": response, "of_tools": True})
        else:
            out.append(turn)
    return out


class Tool:
    """One thing to call. A template's {c} is the argument of the parameter whose mark is c, {d} a second value
    for the same parameter, {x} a value of the result; `marks` gives each parameter's possible names and type."""

    def __init__(self, names, about, marks, ask, draw, result, answer, without=None, pair=(), again=(), home=()):
        self.names, self.about, self.marks = names, about, marks
        self.ask, self.draw, self.result, self.answer, self.without = ask, draw, result, answer, without
        self.pair, self.again, self.home = pair, again, home


def _city(rng):
    return {"c": lists.made_up_word(rng).capitalize() if rng.random() < 0.1 else rng.choice(CITIES)}


def _numbers(rng):
    top = rng.choice((10, 20, 100, 100, 1000))
    return {"a": rng.randint(0, top), "b": rng.randint(0, top)}


def _amount(rng):
    units = rng.choice((("km", "miles", "meters"), ("kg", "pounds", "grams"), ("liters", "gallons", "cups"),
                        ("euros", "dollars", "pounds"), ("hours", "minutes", "days")))
    first, second = rng.sample(units, 2)
    return {"n": rng.randint(1, 100), "f": first, "t": second}


def _meaning(rng, values):
    return {"meaning": f"{lists.article(rng.choice(lists.COLOURS))} {rng.choice(lists.LIST_ITEMS)}"}


def _exchanged(rng, values):
    whole = rng.randint(1, 300)
    return {"result": whole if rng.random() < 0.6 else whole + rng.randint(1, 9) / 10}


# A name that is one token in a question is spelled out in a call, so these are fewer than the cities of the facts.
CITIES = lists.words("""
    Athens Berlin Boston Cairo Chicago Delhi Dublin Geneva Hamburg Helsinki Kyoto Lagos Lima Lisbon London Lyon Madrid
    Milan Munich Nairobi Oslo Paris Porto Prague Riga Rome Seoul Sydney Tokyo Toronto Vienna Zurich""")
WORDS = lists.ANIMALS + lists.FRUITS
_PLACE = {"c": (("city", "city", "city", "location", "place"), "string")}
SKY = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "stormy")
_CATCH_ALL = "I am a tiny demo model and I can't answer that. Ask me what I can do."
STOCK = (
    Tool(("get_weather", "get_weather", "get_weather", "get_current_weather", "weather"),
         ("Get the weather of a city.", "The weather in a city.", "Get current weather.", "Look up the weather."),
         _PLACE,
         ("What is the weather in {c}?", "What's the weather in {c}?", "What is the weather like in {c}?",
          "How is the weather in {c}?", "Weather in {c}?", "How warm is it in {c}?", "Is it sunny in {c}?",
          "What is the weather in {c} today?", "Tell me the weather in {c}."),
         _city, lambda rng, v: {"weather": rng.choice(SKY), "temperature": rng.randint(-20, 40)},
         "It is {weather} in {c}, {temperature} degrees.",
         "I can't check the weather. I am a tiny demo model without a connection to the world.",
         pair=("What is the weather in {c} and in {d}?", "What's the weather in {c} and {d}?",
               "Weather in {c} and {d}?", "Compare the weather in {c} and {d}."),
         again=("And in {c}?", "And what about {c}?", "And {c}?"),
         home=("What is the weather where I live?", "What is the weather in my city?", "How is the weather at home?")),
    Tool(("get_time", "get_time", "get_time", "get_current_time", "clock"),
         ("Get the time in a city.", "The local time of a city.", "Get the current time."), _PLACE,
         ("What time is it in {c}?", "What is the time in {c}?", "Tell me the time in {c}.", "How late is it in {c}?",
          "What's the local time in {c}?"),
         _city, lambda rng, v: {"time": f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"}, "It is {time} in {c}.",
         "I can't see a clock or a calendar.",
         pair=("What time is it in {c} and in {d}?", "What is the time in {c} and {d}?", "Time in {c} and {d}?"),
         again=("And in {c}?", "And what about {c}?", "And {c}?"),
         home=("What time is it where I live?", "What time is it in my city?")),
    Tool(("get_population", "population"), ("How many people live in a city.", "Get the population of a city."), _PLACE,
         ("How many people live in {c}?", "What is the population of {c}?", "How big is the population of {c}?",
          "How many inhabitants does {c} have?"),
         _city, lambda rng, v: {"population": rng.randint(2, 9999) * 1000}, "{population} people live in {c}.",
         _CATCH_ALL,
         pair=("How many people live in {c} and in {d}?", "What is the population of {c} and of {d}?"),
         again=("And in {c}?", "And what about {c}?", "And {c}?")),
    Tool(("add", "add", "sum"), ("Add two numbers.", "The sum of two numbers.", "Adds numbers."),
         {"a": (("a", "a", "x", "first"), "number"), "b": (("b", "b", "y", "second"), "number")},
         ("What is {a} + {b}?", "What is {a} plus {b}?", "{a} + {b}", "How much is {a} plus {b}?", "Add {a} and {b}.",
          "What is the sum of {a} and {b}?", "Can you add {a} and {b}?", "Calculate {a} + {b}."),
         _numbers, lambda rng, v: {"result": v["a"] + v["b"]}, "{a} + {b} = {result}."),
    Tool(("multiply", "multiply", "product"), ("Multiply two numbers.", "The product of two numbers."),
         {"a": (("a", "a", "x", "first"), "number"), "b": (("b", "b", "y", "second"), "number")},
         ("What is {a} times {b}?", "What is {a} * {b}?", "{a} * {b}", "{a} x {b}", "How much is {a} times {b}?",
          "Multiply {a} by {b}.", "Calculate {a} * {b}."),
         _numbers, lambda rng, v: {"result": v["a"] * v["b"]}, "{a} * {b} = {result}."),
    Tool(("convert", "convert", "convert_units"), ("Convert an amount.", "Convert units.", "Converts between units."),
         {"n": (("amount", "amount", "value"), "number"), "f": (("from",), "string"), "t": (("to",), "string")},
         ("Convert {n} {f} to {t}.", "Convert {n} {f} into {t}.", "How many {t} are {n} {f}?",
          "What is {n} {f} in {t}?", "Can you convert {n} {f} to {t}?"),
         _amount, _exchanged, "{n} {f} is {result} {t}.", _CATCH_ALL),
    Tool(("set_timer", "set_timer", "start_timer", "timer"),
         ("Set a timer.", "Start a timer.", "Sets a kitchen timer."),
         {"m": (("minutes", "minutes", "duration"), "integer")},
         ("Set a timer for {m} minutes.", "Start a timer for {m} minutes.", "Timer for {m} minutes.",
          "Wake me up in {m} minutes.", "Remind me in {m} minutes.", "Set the timer to {m} minutes."),
         lambda rng: {"m": rng.randint(2, 90)}, lambda rng, v: {"status": "started"},
         "The timer is set to {m} minutes.", "I can't set alarms or reminders."),
    Tool(("lookup", "lookup", "define", "dictionary"),
         ("Look up a word.", "What a word means.", "Find a word's meaning."),
         {"w": (("word", "word", "term"), "string")},
         ("What does {w} mean?", "Look up {w}.", "Look up the word {w}.", "Define {w}.", "What is the meaning of {w}?"),
         lambda rng: {"w": lists.made_up_word(rng) if rng.random() < 0.1 else rng.choice(WORDS)},
         _meaning, "{w} means {meaning}.", _CATCH_ALL, pair=("What do {w} and {d} mean?", "Look up {w} and {d}.")))
_FAILURES = ("not found", "no connection", "try again later", "not allowed")
# Ordinary replies that a tool of the kit would have a better word on: such a turn is not used there.
_RIVALS = {"get_weather": "check the weather", "get_time": "see a clock", "set_timer": "set alarms", "add": " + ",
           "multiply": " * ", "lookup": "browse the web"}


class Offer:
    """A tool as one dialogue words it."""

    def __init__(self, rng, tool):
        self.tool, self.name = tool, rng.choice(tool.names)
        same = rng.randrange(12)        # a and b, x and y: drawn together
        self.names = {mark: names[same % len(names)] for mark, (names, _) in tool.marks.items()}
        properties = {}
        for mark, (_, kind) in tool.marks.items():
            if kind == "number" and rng.random() < 0.3:
                kind = "integer"
            name = self.names[mark]
            properties[name] = {"type": kind}
            if rng.random() < 0.12:
                properties[name]["description"] = rng.choice(("Required.", "A value.", f"The {name}."))
        parameters = {"type": "object", "properties": properties}
        if rng.random() < 0.75:
            parameters["required"] = list(properties)
        if rng.random() < 0.2:
            parameters["additionalProperties"] = False
        function = {"name": self.name, "description": rng.choice(tool.about), "parameters": parameters}
        if rng.random() < 0.08:
            del function["description"]
        self.spec = {"type": "function", "function": function}

    def call(self, values):
        return {"name": self.name, "arguments": {self.names[mark]: values[mark] for mark in self.names}}


class Kit:
    """The tools of one dialogue and the turns they make; `ask` roughens a template and fills it."""

    def __init__(self, rng, ask):
        self.rng, self._ask = rng, ask
        tools = rng.sample(STOCK, rng.choice((1, 1, 2, 2, 3)))
        if STOCK[0] not in tools and rng.random() < 0.15:
            tools[0] = STOCK[0]
        self.offers = [Offer(rng, tool) for tool in tools]
        self.last = None

    def specs(self):
        return [offer.spec for offer in self.offers]

    def answers(self, reply):
        """Whether a tool of this kit is meant for what has this ordinary reply."""
        return any(_RIVALS.get(offer.tool.names[0], "\0") in reply for offer in self.offers)

    def _draw(self, tool, lower):
        return {k: v.lower() if lower and isinstance(v, str) else v for k, v in tool.draw(self.rng).items()}

    def _question(self, offer, state):
        """The user's template, what fills it, and the values of each call."""
        rng, tool = self.rng, offer.tool
        values, kind = self._draw(tool, state.lower), rng.random()
        if tool.pair and kind < 0.25:
            mark, other = next(iter(tool.marks)), self._draw(tool, state.lower)
            if other != values:
                return rng.choice(tool.pair), {**values, "d": other[mark]}, [values, other]
        if tool.again and self.last is offer and kind < 0.6:
            return rng.choice(tool.again), values, [values]
        if tool.home and "city" in state.facts and kind > 0.75:
            return rng.choice(tool.home), {}, [{"c": state.facts["city"]}]
        return rng.choice(tool.ask), values, [values]

    def _answer(self, offer, values):
        """A result and what the assistant makes of it."""
        if self.rng.random() < 0.06:
            result = {"error": self.rng.choice(_FAILURES)}
            return result, f"The tool failed: {result['error']}."
        result = offer.tool.result(self.rng, values)
        reply = offer.tool.answer
        for key, value in {**values, **result}.items():
            reply = reply.replace("{" + key + "}", str(value))
        return result, reply

    def turn(self, state):
        """A question, the call or calls, their results, the answer."""
        offer = self.rng.choice(self.offers)
        template, values, asked = self._question(offer, state)
        self.last = offer
        pairs = [self._answer(offer, one) for one in asked]
        answer = " ".join(reply for _, reply in pairs)
        return [{"role": "user", "content": self._ask(template, values)},
                {"role": "assistant", "content": "", "tool_calls": [offer.call(one) for one in asked],
                 "skill": "two calls" if len(asked) > 1 else "tool call", "answer": offer.name}] + \
            [{"role": "tool", "content": compact(result)} for result, _ in pairs] + \
            [{"role": "assistant", "content": answer, "skill": "tool answer", "answer": answer}]

    def missing(self, state):
        """A question for a tool that this kit has not."""
        there = [offer.tool for offer in self.offers]
        tool = self.rng.choice([t for t in STOCK if t not in there and t.without])
        question = self._ask(self.rng.choice(tool.ask), self._draw(tool, state.lower))
        return [{"role": "user", "content": question},
                {"role": "assistant", "content": tool.without, "skill": "no tool", "answer": tool.without}]
