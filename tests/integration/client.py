# SPDX-License-Identifier: Apache-2.0
"""What the tests with the `openai` client share: the client itself and a reader of streams.

The client never retries: a test wants to see the first answer. Fields beyond OpenAI's go through
`extra_body`; what the daemon adds to an answer is read with `extra`.
"""

import time

import openai

MODEL = "test-model"  # conftest.py serves every model under this name


def connect(daemon, kind=openai.OpenAI, key="none"):
    return kind(base_url=daemon.url + "/v1", api_key=key, max_retries=0, timeout=120)


def user(text):
    return {"role": "user", "content": text}


def extra(thing, name):
    """A field that the client's types do not know."""
    return thing.model_extra[name]


def eventually(probe, seconds=20):
    end = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


class Stream:
    """A finished stream: texts, finish reasons, ids and log-probabilities by choice, and usage.

    Checks what every stream must hold on the way: one id, nothing for a choice after its
    finish_reason, usage in the last chunk alone.
    """

    def __init__(self, chunks):
        self.chunks = list(chunks)
        self.text, self.finish, self.ids, self.logprobs = {}, {}, {}, {}
        self.usage = None
        assert len({(c.id, c.created, c.model, c.object) for c in self.chunks}) == 1
        for chunk in self.chunks:
            assert self.usage is None, "a chunk after the usage chunk"
            self.usage = chunk.usage
            assert (chunk.usage is None) == (len(chunk.choices) == 1)
            for choice in chunk.choices:
                self._take(choice)

    def _take(self, choice):
        i = choice.index
        assert i not in self.finish, "a chunk after the finish_reason"
        text = choice.delta.content if hasattr(choice, "delta") else choice.text
        self.text[i] = self.text.get(i, "") + (text or "")
        self.ids.setdefault(i, []).extend((choice.model_extra or {}).get("token_ids") or [])
        if choice.logprobs:
            self.logprobs.setdefault(i, []).append(choice.logprobs)
        if choice.finish_reason:
            self.finish[i] = choice.finish_reason
