# SPDX-License-Identifier: Apache-2.0
"""The README's own commands, run as they stand there against a daemon with the demo model: the chat with curl and the
one with the `openai` client. Only the address is another. What they print is what the README says."""

import json
import re
import subprocess
import sys

import pytest

from conftest import ROOT

README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def blocks(title):
    """The indented blocks of a section, without their indent."""
    section = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^#)", README, re.M | re.S).group(1)
    found = re.findall(r"(?:^    .*\n(?:^\n(?=    ))*)+", section, re.M)
    return [re.sub(r"^    ", "", one, flags=re.M) for one in found]


def shows(thing, part):
    """Whether the part is in the thing as it is shown; the thing may have more fields."""
    if isinstance(part, dict):
        return isinstance(thing, dict) and all(name in thing and shows(thing[name], part[name]) for name in part)
    if isinstance(part, list):
        return len(thing) == len(part) and all(map(shows, thing, part))
    return thing == part


@pytest.fixture
def demo(start):
    return start("--served-model-name", "demo-model", model=str(ROOT / "deploy" / "demo-model"))


def test_chat_with_curl(demo):
    script, first, replies = blocks("A chat with curl")
    assert script.count(ADDRESS) == 1
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script.replace(ADDRESS, demo.url)], check=True,
                          capture_output=True, text=True, timeout=60)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    said = [(one["choices"][0]["message"]["content"], one["usage"]["prompt_tokens"],
             one["usage"]["prompt_tokens_details"]["cached_tokens"]) for one in answers]
    shown = re.findall(r"^(.*?)   \(prompt_tokens (\d+), of which cached (\d+)\)$", replies, re.M)
    assert said == [(text, int(prompt), int(cached)) for text, prompt, cached in shown]
    example = json.loads(first)
    assert example.pop("id")[:9] == answers[0]["id"][:9] and example.pop("created") < answers[0]["created"]
    assert shows(answers[0], example)


def test_chat_with_the_openai_client(demo):
    script, printed = blocks("A chat with the openai client")
    assert script.count(ADDRESS) == 1
    done = subprocess.run([sys.executable, "-c", script.replace(ADDRESS, demo.url)], check=True, capture_output=True,
                          text=True, timeout=60)
    assert done.stdout == printed


def test_every_other_curl_of_the_readme_is_known():
    """A command that is added to the README is to be added here too."""
    assert len(re.findall(r"^    .*\bcurl ", README, re.M)) == 1
