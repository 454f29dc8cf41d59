# SPDX-License-Identifier: Apache-2.0
"""schemathesis reads /openapi.json and asks what it makes of it: all fields and their limits, bodies that fit the
document and bodies that do not, links between endpoints. No answer may be a server error or differ from the document,
and nothing that breaks it may be accepted.

Left out is the check that whatever fits the document is accepted: it can't say how long a context is, which ids the
vocabulary has, or which fields exclude each other; a refusal with status 400 is part of the document.
TEST_SEED and TEST_EXAMPLES ask for other and for more cases."""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys

from client import MODEL
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "load"))
import overload  # noqa: E402

EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "10"))
SEED = os.environ.get("TEST_SEED", "1")
PHASES = "examples,coverage,fuzzing,stateful"
HELLO = {"type": "object", "required": ["role", "content"], "additionalProperties": False, "properties": {
    "role": {"const": "user"}, "content": {"enum": ["Hello!", "What is 7 + 8?", [{"type": "text", "text": "Hi."}]]}}}


def resolved(document, node):
    while "$ref" in node:
        found = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def prepare(document):
    """Names the served model, without which all is 404, and leaves the bytes of event streams to test_openapi.py:
    the document calls them a string, schemathesis looks at each event."""
    named = set()
    for path, methods in document["paths"].items():
        for operation in (one for one in methods.values() if isinstance(one, dict)):
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            model = body and resolved(document, body["schema"]).get("properties", {}).get("model")
            if model:
                model["enum"] = [MODEL, None] if "null" in model["type"] else [MODEL]
                named.add(path)
            for answer in operation.get("responses", {}).values():
                resolved(document, answer).get("content", {}).get("text/event-stream", {}).pop("schema", None)
    return named


def responses(daemon):
    """How many answers had which status so far."""
    page = daemon.get("/metrics")[2].decode()
    found = re.findall(r'^openmoed_http_responses_total{code="(\d+)"} (\d+)$', page, re.M)
    return collections.Counter({code: int(n) for code, n in found})


class Run:
    """One run of schemathesis: how many cases, and which statuses and ended generations they had."""

    def __init__(self, daemon, folder, document, *more):
        before, ended = responses(daemon), self._ended(daemon)
        (folder / "openapi.json").write_text(json.dumps(document))
        program = pathlib.Path(sys.executable).with_name("st")
        command = [program, "run", "openapi.json", "--url", daemon.url, "--no-color", "--continue-on-failure",
                   "--exclude-checks", "positive_data_acceptance", "--workers", "2", "--seed", SEED,
                   "--request-timeout", "60", *more]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        self.cases = int(re.search(r"(\d+) generated", done.stdout).group(1))
        self.answers, self.ended = responses(daemon) - before, self._ended(daemon) - ended
        print(done.stdout[-800:], self.answers, self.ended)
        assert self.answers.total() >= self.cases
        assert not [code for code in self.answers if code[0] == "5"]

    @staticmethod
    def _ended(daemon):
        return sum(daemon.metric(f'openmoed_requests_total{{outcome="{one}"}}') for one in ("stop", "length"))


def test_no_server_error_and_nothing_that_is_not_in_the_document(start, tmp_path):
    daemon = start("--max-model-len", "256")
    document = json.loads(daemon.get("/openapi.json")[2])
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses"} <= prepare(document)
    run = Run(daemon, tmp_path, document, "--phases", PHASES, "--max-examples", str(EXAMPLES))
    assert run.cases > 1000 and run.ended > 20
    # Random conversations break some rule of their order: here one that does not, with any other fields.
    chat = document["components"]["schemas"]["ChatRequest"]["properties"]
    chat["messages"] = {"type": "array", "minItems": 1, "maxItems": 1, "items": HELLO}
    run = Run(daemon, tmp_path, document, "--phases", "fuzzing", "--include-path", "/v1/chat/completions", "--mode",
              "positive", "--max-examples", str(3 * EXAMPLES))
    assert run.cases >= EXAMPLES and run.ended > EXAMPLES / 4
    assert not overload.wait_idle(daemon)
    assert daemon.stop() == 0, daemon.log
