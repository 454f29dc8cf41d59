# SPDX-License-Identifier: Apache-2.0
"""The page for everybody: by keyboard alone, with a screen reader, on a phone, by day and by night. Writes
screenshots to build/web."""

import pytest
from browser import Reply
from selenium.webdriver.common.keys import Keys

MARKDOWN = """\
Here is a **function**, its *cost* and a [link](https://example.com/).

```python
def spell(word: str) -> str:
    # letters, one by one
    return "-".join(word[:40]) + f"{len(word)} letters, and a line that is longer than a phone is wide"
```

| expert | picks | share |
|---|--:|--:|
| 0 | 24 | 12.9 % |
| 1 | 28 | 15.1 % |

1. first
2. second with `inline code`

> A quotation.

### A heading
- [x] done
- [ ] to do
"""
ROUTING = {
    "openmoed": {
        "routing": {"layers": [6, 12, 18, 24], "experts": 32, "tokens": 100,
                    "picks": [[(7 * e * (l + 1)) % 13 for e in range(32)] for l in range(4)]},
        "dropped": {"total": 3, "picks": 800, "by_layer": [3, 0, 0, 0], "by_expert": [[3] + [0] * 31] + [[0] * 32] * 3,
                    "by_position": [{"first": 0, "last": 63, "picks": 500, "dropped": 0},
                                    {"first": 64, "last": None, "picks": 300, "dropped": 3}],
                    "by_turn": [{"first": 1, "last": 1, "picks": 800, "dropped": 3}]},
    }
}
CONTRAST = """
const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const colour = rgba(getComputedStyle(e).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return [255, 255, 255, 255];
};
const poor = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const e = walk.currentNode.parentElement;
  const words = walk.currentNode.data.trim();
  if (!words || !e.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
  if (e.closest(".unseen, .skip")) continue;
  const [a, b] = [light(rgba(getComputedStyle(e).color)), light(behind(e))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${e.className || e.tagName}: ${words.slice(0, 30)}`);
}
return poor;
"""
WIDE = """
const [width, root] = [arguments[0], document.documentElement];
return [root, ...document.querySelectorAll("body *")].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.width && e.checkVisibility({ visibilityProperty: true }) && !e.closest("pre, .scroll, .unseen, .skip") &&
    (box.right > width + 1 || box.left < -1 || (e === root && (e.scrollWidth > width || e.scrollHeight > innerHeight)));
}).map((e) => e.tagName + "." + e.className + "#" + e.id);
"""


def fill(page, stub):
    page.open(stub)
    stub.replies = [Reply("A reply with a few plain words."), Reply(*MARKDOWN.splitlines(keepends=True), extra=ROUTING)]
    page.say("A question about experts that is long enough to be cut in the list")
    page.say("Show me everything you can.\nAll of it.".replace("\n", " "))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844), (320, 568)])
def test_looks(page, stub, width, height, scheme):
    page.size(width, height, scheme)
    fill(page, stub)
    name = f"{width}x{height}-{scheme}"
    page.shot(f"chat-{name}")
    assert page.js(WIDE, width) == [] and page.js(CONTRAST) == []
    page.press(alt="x")
    page.until(lambda: page.all(".heat"))
    page.shot(f"experts-{name}")
    assert page.js(WIDE, width) == [] and page.js(CONTRAST) == []
    page.press(alt="x")
    page.press(alt="s")
    page.shot(f"settings-{name}")
    assert page.js(WIDE, width) == [] and page.js(CONTRAST) == []
    page.press(Keys.ESCAPE)
    if width < 960:
        page.click("#side-open")
        page.shot(f"list-{name}")
        assert page.js(WIDE, width) == [] and page.js(CONTRAST) == []
        page.press(Keys.ESCAPE)
        assert not page.one("#side").is_displayed()


def test_theme_switch(page, stub):
    page.open(stub)
    ground = lambda: page.js("return getComputedStyle(document.body).backgroundColor")
    light = ground()
    page.click("#settings-open")
    page.click("#theme option[value=dark]")
    dark = ground()
    assert dark != light
    page.press(Keys.ESCAPE)
    page.driver.refresh()
    assert ground() == dark
    page.size(1280, 900, "dark")
    page.click("#settings-open")
    page.click("#theme option[value=light]")
    assert ground() == light
    page.click("#theme option[value='']")
    assert ground() == dark


def test_keyboard_alone(page, stub):
    page.open(stub)
    stub.replies = [Reply("one"), Reply("two"), Reply("three"), Reply("fo", "ur", gate=True), Reply("five")]
    focus = lambda: page.js("return document.activeElement.id || document.activeElement.className")
    assert focus() == "input"
    page.press("line 1", shift=Keys.ENTER)
    page.press("line 2", Keys.ENTER)
    page.until(lambda: page.texts("assistant") == ["one"])
    assert page.texts("user") == ["line 1\nline 2"]
    page.settle()
    page.press(alt="r")
    page.until(lambda: page.texts("assistant") == ["two"])
    page.settle()
    page.press(alt=Keys.ARROW_UP)
    page.press("+", Keys.ESCAPE)
    assert page.texts("user") == ["line 1\nline 2"] and focus() == "edit"
    page.press(alt=Keys.ARROW_UP)
    page.press("+", Keys.ENTER)
    page.until(lambda: page.texts("assistant") == ["three"])
    assert page.texts("user") == ["line 1\nline 2+"]
    page.settle()
    page.press(alt="n")
    assert focus() == "input"
    page.press("next", Keys.ENTER)
    page.until(lambda: page.texts("assistant") == ["fo"])
    page.press(Keys.ESCAPE)
    page.settle()
    assert "stopped" in page.one(".facts").text
    assert focus() == "input"
    page.press(alt="j")
    assert page.texts("assistant") == ["three"]
    page.press(alt="k")
    assert page.texts("assistant") == ["fo"]
    page.press(alt="/")
    assert page.one("#shortcuts").is_displayed()
    page.press(Keys.ESCAPE)
    assert not page.one("#shortcuts").is_displayed()


def test_focus_is_seen_on_every_stop(page, stub):
    fill(page, stub)
    page.js("document.querySelector('.skip').focus()")
    seen = []
    for _ in range(60):
        name, style, width, opacity = page.js("""const e = document.activeElement, s = getComputedStyle(e);
            return [e.id || e.className || e.tagName, s.outlineStyle, s.outlineWidth, s.opacity]""")
        if name == "BODY":
            break
        seen.append(name)
        assert style != "none" and width == "2px" and opacity == "1", name
        page.press(Keys.TAB)
    for name in ("new-chat", "chat", "settings-open", "routing-open", "log", "edit", "regenerate", "input", "send"):
        assert name in seen, (name, seen)


def test_names_and_roles(page, stub):
    fill(page, stub)
    page.press(alt="x")

    def check(inside=":root"):
        for e in page.all(f"{inside} :is(button, input, select, textarea, a, nav, aside)"):
            if e.is_displayed():
                page.until(lambda: e.accessible_name.strip(), 5)

    check()
    for opener in ("s", "/"):
        page.press(alt=opener)
        assert page.one("dialog[open]").aria_role == "dialog" and page.one("dialog[open]").accessible_name
        check("dialog[open]")
        page.press(Keys.ESCAPE)
    assert page.one("html").get_attribute("lang") == "en"
    assert page.one("main").aria_role == "main" and page.one("nav").aria_role == "navigation"
    assert page.one("#log").aria_role == "log"
    assert page.one("#routing-open").get_attribute("aria-pressed") == "true"
    # headings go down by one level at most
    levels = [int(e.tag_name[1]) for e in page.all("main :is(h1, h2, h3, h4, h5, h6)")]
    assert levels[0] == 1 and all(b - a <= 3 for a, b in zip(levels, levels[1:])), levels
    assert all(e.get_attribute("scope") for e in page.all("#routing th"))
    assert [e.accessible_name for e in page.all(".heat thead th")][1:] == [str(n) for n in range(32)]


def test_what_a_screen_reader_hears(page, stub):
    page.open(stub)
    page.js("""window.heard = [];
        new MutationObserver(() => heard.push(document.getElementById("announce").textContent))
          .observe(document.getElementById("announce"), { childList: true, characterData: true, subtree: true });""")
    stub.replies = [Reply(*"every word comes as its own event".split(" ")), Reply("x", "y", gate=True)]
    page.say("go")
    page.one("#input").send_keys("go", Keys.ENTER)
    page.until(lambda: page.texts("assistant")[-1] == "x")
    assert page.all(".message")[-1].get_attribute("aria-busy") == "true"
    page.press(Keys.ESCAPE)
    page.settle()
    assert page.all(".message")[-1].get_attribute("aria-busy") == "false"
    waiting = "Waiting for the reply."
    assert page.js("return heard") == [waiting, "Reply: everywordcomesasitsownevent", waiting, "Stopped."]


def test_reading_is_not_disturbed(page, stub):
    """Who scrolled up stays there, and a copied block is still the same block, while the reply grows."""
    page.open(stub)
    long = Reply(*[f"paragraph {i}\n\n" for i in range(60)], "end", gate=True)
    stub.replies = [long]
    page.one("#input").send_keys("go", Keys.ENTER)
    page.until(lambda: "paragraph 59" in page.texts("assistant")[0])
    page.js("document.getElementById('log').scrollTop = 0; window.kept = document.querySelector('.assistant .text p')")
    long.gate.set()
    page.until(lambda: page.texts("assistant")[0].endswith("end"))
    page.settle()
    assert page.js("return document.getElementById('log').scrollTop") == 0
    assert page.js("return kept.isConnected")


def test_copy(page, stub):
    page.open(stub)
    stub.replies = [Reply("```c\nint x;\n```\n")]
    page.say("code")
    page.js("window.copied = []; navigator.clipboard.writeText = async (t) => void copied.push(t);")
    page.click(".bar button")
    page.until(lambda: page.one(".bar button").text == "Copied")
    page.click(".foot .actions button")
    assert page.js("return copied") == ["int x;\n", "```c\nint x;\n```\n"]
    assert page.all(".code .hljs-keyword, .code .hljs-built_in")
    # on a page without a clipboard
    page.js("""navigator.clipboard.writeText = async () => { throw new Error("no") };
               document.execCommand = (what) => void copied.push(what + getSelection());""")
    page.click(".message.user .actions button")
    page.until(lambda: len(page.js("return copied")) == 3)
    assert page.js("return copied[2]") == "copycode"
