# SPDX-License-Identifier: Apache-2.0
"""A reply can never run script, load from elsewhere, or take the page's own look for itself."""

import pytest
from browser import Reply

CALL = "window.hacked=1;fetch('/hacked')"
ATTACKS = [
    f"<script>{CALL}</script>",
    f"<img src=x onerror=\"{CALL}\">",
    f"<svg onload=\"{CALL}\"><animate onbegin=\"{CALL}\" attributeName=x dur=1s></svg>",
    f"<iframe srcdoc=\"<script>parent.hacked=1</script>\"></iframe><iframe src=\"javascript:{CALL}\"></iframe>",
    f"[click](javascript:{CALL.replace(' ', '')})",
    f"[click](  JaVaScRiPt&colon;{CALL})",
    f"[click](data:text/html,<script>{CALL}</script>)",
    "[click](/hacked) [x][1]\n\n[1]: javascript:hacked=1",
    f"![x](x\" onerror=\"{CALL}) ![y](/hacked.png) ![z](https://example.com/z.png)",
    f"[t](https://example.com \"\\\" onmouseover=\\\"{CALL}\")",
    f"```x\"><img/src=x/onerror={CALL}>\ncode</code></pre><script>{CALL}</script>\n```",
    f"```html\n<script>{CALL}</script><img src=x onerror=\"{CALL}\">\n```",
    f"`<img src=x onerror={CALL}>`",
    f"|<img src=x onerror={CALL}>|\n|-|\n|<script>{CALL}</script>|",
    f"<form action=/hacked><input id=input autofocus onfocus=\"{CALL}\"><button id=send>Send</button></form>",
    "<style>@import '/hacked.css'; * { background: url(/hacked.png) }</style><p style=\"position:fixed;inset:0\">",
    f"<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror={CALL}&gt;\">",
    f"<details open ontoggle=\"{CALL}\"><summary>s</summary></details><video><source onerror=\"{CALL}\"></video>",
    "<base href=https://example.com/><link rel=stylesheet href=/hacked.css>",
    "<meta http-equiv=refresh content='0;/hacked'>",
    f"<a href=\"java\tscript:{CALL}\">a</a> <javascript:{CALL}> <object data=/hacked></object><embed src=/hacked>",
]
MARKUP = """
const EXPECTED = /^(DIV|SPAN|BUTTON|A|P|PRE|CODE|TABLE|THEAD|TBODY|T[RHD]|STRONG|EM|H[3-6]|UL|OL|LI|BR|HR|DEL)$/;
const inside = [...document.querySelectorAll(".message.assistant .text *")];
return {
  odd: inside.map((e) => e.tagName).filter((name) => !EXPECTED.test(name)),
  handlers: inside.flatMap((e) => e.getAttributeNames()).filter((name) => /^(on.*|style|id|name|src)$/.test(name)),
  links: inside.filter((e) => e.href).map((e) => e.getAttribute("href")),
};
"""


def check_markup(page, stub):
    found = page.js(MARKUP)
    assert found["odd"] == [] and found["handlers"] == []
    assert all(link.startswith("https://") for link in found["links"]), found["links"]
    assert stub.strange == []


def test_attacks_in_streamed_replies(page, stub):
    page.open(stub)
    for attack in ATTACKS:  # also while it arrives, cut at every place that matters
        stub.replies = [Reply(*[attack[i : i + 7] for i in range(0, len(attack), 7)])]
        page.say("go")
        check_markup(page, stub)
    assert len(page.all(".message.assistant")) == len(ATTACKS)
    assert "<script>" in page.texts("assistant")[0]  # shown, not run


def test_attacks_from_storage(page, stub):
    messages = [{"role": role, "content": attack} for attack in ATTACKS for role in ("user", "assistant")]
    bad = ATTACKS[1]
    facts = {"tokens": bad, "rate": bad, "first": 0, "prompt": 0, "cached": bad}
    dropped = {"total": 1, "picks": bad, "by_expert": [[bad]], "by_position": [], "by_turn": []}
    routing = {"layers": [bad], "experts": 1, "tokens": bad, "picks": [[bad]]}
    messages[-1] |= {"error": bad, "finish": bad, "facts": facts, "routing": {"routing": routing, "dropped": dropped}}
    page.open(stub, [{"id": bad, "title": bad, "updated": 1, "messages": messages}])
    assert page.one("#title").text == bad
    page.press(alt="x")
    assert not page.all("main img, aside img, svg, iframe, main style")
    assert not page.all(".message.user :not(div, button, h2)")
    check_markup(page, stub)


@pytest.mark.parametrize(
    "code",
    [
        "document.body.append(Object.assign(document.createElement('div'), { innerHTML: '<b>x</b>' }))",
        "document.body.setAttribute('onclick', 'hacked = 1'); document.body.click()",
        "setTimeout('hacked = 1')",
        "document.body.append(Object.assign(document.createElement('img'), { src: 'https://example.com/x.png' }))",
    ],
)
def test_policy_is_in_force(page, stub, code):
    """What the tests above rely on: past DOMPurify there is still the policy, and violations are seen."""
    page.open(stub)
    page.forgive = ["Content Security Policy", "TrustedHTML", "TrustedScript"]
    page.driver.execute_async_script(f"const done = arguments[0]; try {{ {code} }} catch {{}} setTimeout(done, 200)")
    assert page.js("return violations.length") > 0
    assert not page.js("return window.hacked")
    page.js("violations.length = 0")


def test_links_leave_in_peace(page, stub):
    page.open(stub)
    stub.replies = [Reply("See [this](https://example.com/a) and https://example.com/b.")]
    page.say("links")
    links = page.all(".message.assistant a")
    assert [a.get_attribute("href") for a in links] == ["https://example.com/a", "https://example.com/b"]
    assert all(a.get_attribute("target") == "_blank" and "noopener" in a.get_attribute("rel") for a in links)
