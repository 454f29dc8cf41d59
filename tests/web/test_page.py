# SPDX-License-Identifier: Apache-2.0
"""Chats on the page: with the demo model where the words matter, else with written replies."""

import json

import pytest
from browser import Reply
from selenium.webdriver.common.keys import Keys


def greedy(page):
    """Temperature 0, set as a person does it."""
    page.click("#settings-open")
    page.one("#temperature").send_keys("0", Keys.ENTER)
    page.until(lambda: not page.one("#settings").is_displayed())


def test_three_turns(page, daemon):
    page.open(daemon)
    greedy(page)
    assert "Biscuit" in page.say("My cat is called Biscuit.")
    assert page.say("Spell the word tiger.") == "tiger: t-i-g-e-r."
    assert page.say("What is the name of my cat?") == "Your cat is called Biscuit."
    facts = [e.text for e in page.all(".facts")]
    assert len(facts) == 3 and all("tokens · " in f and "tokens/s" in f for f in facts), facts
    assert "13 tokens" in facts[1]
    assert page.one("#title").text == "My cat is called Biscuit."
    assert page.one("#model").text == "test-model"
    page.shot("three-turns-desktop")


def test_reload_keeps_chats(page, stub):
    page.open(stub)
    stub.replies = [Reply("First ", "answer."), Reply("**Second** answer.")]
    page.say("one")
    page.click("#new-chat")
    assert page.texts("user") == []
    page.say("two")
    page.driver.refresh()
    page.until(lambda: page.texts("assistant") == ["Second answer."])
    assert [e.text for e in page.all(".chat")] == ["two", "one"]
    page.all(".chat")[1].click()
    assert page.texts("user") == ["one"] and page.texts("assistant") == ["First answer."]
    assert "5 tokens" in page.one(".facts").text and "of which cached 3" in page.one(".facts").text


def test_markdown(page, stub):
    page.open(stub)
    text = "# Top\n\n3. three\n4. **four**\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n```js\nlet x;\n```\n\n"
    text += "[see][1]\n\nlast <b>not bold</b> &\n\n[1]: https://example.com/1"
    stub.replies = [Reply(*text)]
    page.say("go")
    inside = lambda css: page.one(".message.assistant .text " + css)
    assert inside("h3").text == "Top" and inside("ol").get_attribute("start") == "3" and inside("strong").text == "four"
    assert inside("td:last-child").get_attribute("align") == "right"
    assert inside("a").get_attribute("href") == "https://example.com/1"
    assert inside("code .hljs-keyword").text == "let" and inside(".bar span").text == "js"
    assert inside("> :last-child").text == "last <b>not bold</b> &"


def test_stop(page, stub):
    page.open(stub)
    reply = Reply("It was a dark ", "and stormy night", gate=True)
    stub.replies = [reply, Reply("Sunny.")]
    page.one("#input").send_keys("tell", Keys.ENTER)
    page.until(lambda: page.texts("assistant") == ["It was a dark"])
    assert not page.one("#send").is_displayed()
    page.click("#stop")
    page.settle()
    assert reply.hung_up.wait(20), "the server was not told"
    assert page.texts("assistant") == ["It was a dark"]
    assert "about 1 token" in page.one(".facts").text and "stopped" in page.one(".facts").text
    assert page.js("return document.activeElement.id") == "input"
    assert page.say("again") == "Sunny."
    assert stub.asked[1]["messages"][1] == {"role": "assistant", "content": "It was a dark "}


def test_reload_in_mid_stream_keeps_what_came(page, stub):
    page.open(stub)
    stub.replies = [Reply("half ", "whole", gate=True)]
    page.one("#input").send_keys("tell", Keys.ENTER)
    page.until(lambda: page.texts("assistant") == ["half"])
    page.driver.refresh()
    page.until(lambda: page.texts("assistant") == ["half"])
    assert "stopped" in page.one(".facts").text and page.one("#send").is_displayed()


def test_edit_and_regenerate(page, stub):
    page.open(stub)
    stub.replies = [Reply("a1"), Reply("a2"), Reply("a3"), Reply("a4")]
    page.say("q1")
    page.say("q2")
    page.click(".regenerate")
    page.settle()
    assert page.texts("assistant") == ["a1", "a3"]
    page.all(".edit")[0].click()
    field = page.one(".message textarea")
    assert field.get_attribute("value") == "q1"
    field.send_keys(" better", Keys.ENTER)
    page.settle()
    assert page.texts("user") == ["q1 better"] and page.texts("assistant") == ["a4"]
    said = [[m["content"] for m in body["messages"]] for body in stub.asked]
    assert said == [["q1"], ["q1", "a1", "q2"], ["q1", "a1", "q2"], ["q1 better"]]
    assert page.one("#title").text == "q1 better"


def test_edit_while_the_reply_runs(page, stub):
    page.open(stub)
    stub.replies = [Reply("old", "er", gate=True), Reply("new")]
    page.one("#input").send_keys("q", Keys.ENTER)
    page.until(lambda: page.texts("assistant") == ["old"])
    page.click(".edit")
    page.one(".message textarea").send_keys("2", Keys.ENTER)
    page.until(lambda: page.texts("assistant") == ["new"])
    page.settle()
    assert page.texts("user") == ["q2"]


def test_two_chats_at_once(page, stub):
    page.open(stub)
    slow = Reply("slow ", "one", gate=True)
    stub.replies = [slow, Reply("quick")]
    page.one("#input").send_keys("first", Keys.ENTER)
    page.until(lambda: page.texts("assistant") == ["slow"])
    page.click("#new-chat")
    assert page.say("second") == "quick"
    slow.gate.set()
    page.until(lambda: not page.all("li.running"))
    assert page.texts("assistant") == ["quick"]
    page.all(".chat")[1].click()
    assert page.texts("assistant") == ["slow one"]


def test_settings_are_sent_and_kept(page, stub):
    page.open(stub)
    stub.replies = [Reply("ok"), Reply("ok")]
    page.say("plain")
    assert set(stub.asked[0]) == {"model", "messages", "stream", "stream_options"}
    page.click("#settings-open")
    values = {"temperature": "0.5", "top_p": "0.9", "max_tokens": "12", "seed": "7", "system": "Be brief."}
    for name, value in values.items():
        page.one("#" + name).send_keys(value)
    page.click("#settings .main")
    page.driver.refresh()
    page.until(lambda: page.one("#model").text == "stub")
    page.say("set")
    body = stub.asked[1]
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["seed"]) == (0.5, 0.9, 12, 7)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."} and body["model"] == "stub"


def test_bad_setting_is_not_taken(page, stub):
    page.open(stub)
    page.click("#settings-open")
    page.one("#temperature").send_keys("3")
    page.click("#settings .main")
    assert page.one("#settings").is_displayed()
    page.press(Keys.ESCAPE)
    stub.replies = [Reply("ok")]
    page.say("x")
    assert "temperature" not in stub.asked[0]


def test_key_is_asked_for(page, stub):
    page.forgive = ["401"]
    stub.key = "secret"
    page.open(stub)
    page.until(lambda: page.one("#key-dialog").is_displayed())
    page.press("wrong", Keys.ENTER)
    page.until(lambda: stub.keys[-1] == "Bearer wrong" and page.one("#key-dialog").is_displayed())
    page.press("secret", Keys.ENTER)
    page.until(lambda: page.one("#model").text == "stub")
    stub.replies = [Reply("welcome")]
    assert page.say("hi") == "welcome"
    assert page.one("#notice").text == ""
    assert "secret" not in page.js("return JSON.stringify(localStorage)")


def test_key_is_asked_for_in_mid_chat(page, stub):
    page.forgive = ["401"]
    page.open(stub)
    page.until(lambda: page.one("#model").text == "stub")
    stub.key = "secret"
    stub.replies = [Reply("welcome")]
    page.one("#input").send_keys("hi", Keys.ENTER)
    page.until(lambda: page.one("#key-dialog").is_displayed())
    page.press("secret", Keys.ENTER)
    page.until(lambda: page.texts("assistant") == ["welcome"])


FULL = {"message": "The queue is full.", "code": None}
LOADING = {"message": "The model is still loading."}
LIMIT = {"message": "60 requests a minute.", "code": "rate_limit_exceeded"}


@pytest.mark.parametrize(
    "reply, words",
    [
        (Reply(status=429, error=FULL, retry_after=2), ["too many requests", "about 2 seconds"]),
        (Reply(status=429, error=LIMIT, retry_after=1), ["Your limit is reached. 60 requests", "about 1 second."]),
        (Reply(status=503, error=LOADING, retry_after=5), ["not ready", "still loading"]),
        (Reply(status=400, error={"message": "The prompt is too long."}), ["The prompt is too long."]),
        (Reply("and th", cut=True), ["The connection ended before the reply was complete."]),
    ],
)
def test_errors_in_words(page, stub, reply, words):
    page.forgive = ["429", "503", "400"]
    page.open(stub)
    stub.replies = [reply, Reply("Here I am.")]
    page.one("#input").send_keys("hi", Keys.ENTER)
    page.settle()
    said = page.one(".error").text
    assert all(word in said for word in words), said
    assert page.one("#announce").get_attribute("textContent") == said
    page.click(".regenerate")
    page.settle()
    assert page.texts("assistant") == ["Here I am."] and not page.one(".error").is_displayed()
    assert len(stub.asked[1]["messages"]) == 1


def test_server_is_gone(page, stub):
    page.forgive = ["ERR_CONNECTION_REFUSED"]
    page.open(stub)
    page.until(lambda: page.one("#model").text == "stub")
    stub.server.shutdown()
    stub.server.server_close()
    page.one("#input").send_keys("hi", Keys.ENTER)
    page.settle()
    assert "can't be reached" in page.one(".error").text


def test_delete_export_import(page, stub):
    page.open(stub)
    stub.replies = [Reply("a1"), Reply("a2")]
    page.say("keep")
    page.click("#new-chat")
    page.say("drop")
    page.js("""window.saved = []; const real = URL.createObjectURL;
               URL.createObjectURL = (blob) => (saved.push(blob), real(blob));""")
    page.click("#settings-open")
    page.click("#export")
    file = page.driver.execute_async_script("saved[0].text().then(arguments[0])")
    assert [c["title"] for c in json.loads(file)["chats"]] == ["drop", "keep"]
    page.click("#settings .main")
    page.click("li:first-child .drop")
    page.press(Keys.ENTER)  # Keep has the focus
    assert len(page.all(".chat")) == 2
    page.click("li:first-child .drop")
    page.click("#confirm .danger")
    page.until(lambda: [e.text for e in page.all(".chat")] == ["keep"])
    assert page.texts("assistant") == ["a1"]
    page.click("#settings-open")
    page.click("#delete-all")
    page.click("#confirm .danger")
    page.until(lambda: not page.all(".chat"))
    assert page.js("return Object.keys(localStorage).filter((k) => k.includes('chat')).length") == 0


def test_import(page, stub, tmp_path):
    page.open(stub)
    file = tmp_path / "chats.json"
    file.write_text("[]")
    page.click("#settings-open")
    page.one("#import-file").send_keys(str(file))
    page.until(lambda: page.one("#notice").text == "This file holds no chats.")
    odd = {"title": 5, "messages": [{"role": "system", "content": 1}, {"role": "assistant", "content": "**b**"}, 7]}
    file.write_text(json.dumps({"chats": [odd, {"messages": None}, None]}))
    page.click("#settings-open")
    page.one("#import-file").send_keys(str(file))
    page.until(lambda: page.texts("assistant") == ["b"])
    assert page.texts("user") == ["", ""] and page.one("#title").text == "New chat"


def test_another_tab_sees_the_chat(page, stub):
    page.open(stub)
    stub.replies = [Reply("a1")]
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    try:
        page.driver.get(stub.url)
        page.say("from the other")
    finally:
        page.driver.close()
        page.driver.switch_to.window(first)
    page.until(lambda: [e.text for e in page.all(".chat")] == ["from the other"])


def test_experts(page, start):
    daemon = start("--expert-capacity", "isolated", "--capacity-length", "8")
    page.open(daemon)
    greedy(page)
    page.press(alt="x")
    page.click("#return-routing")
    page.say("Spell the word tiger.")
    page.until(lambda: page.all(".heat"))
    assert len(page.all(".heat tbody tr")) == 3 and len(page.all(".heat tbody tr:first-child td")) == 8
    picks = [int(e.get_attribute("textContent")) for e in page.all(".heat td")]
    tokens = int(page.all("#routing-facts p")[1].text.split()[0])
    assert sum(picks) == tokens * 2 * 3  # two picks in each of three layers
    dropped = sum(int(e.text) for e in page.all(".drops:last-child tbody td:nth-child(3)"))
    assert f"{dropped} of {sum(picks)} picks were dropped" in page.one("#routing-facts").text and dropped > 0
    assert page.all(".heat .lost")
    assert len({e.value_of_css_property("background-color") for e in page.all(".heat td")}) > 3
    page.shot("experts-desktop-light")
    page.size(390, 844, "dark")
    page.shot("experts-phone-dark")
