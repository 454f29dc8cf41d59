# SPDX-License-Identifier: Apache-2.0
"""Pages of other origins (CORS): off by default, and what preflights and answers say to whom."""

import pytest

from listeners import SHORT, refused
from test_http import error_of

PAGE = "https://chat.example"
OTHER = "http://localhost:3000"
ASK = {"Origin": PAGE, "Access-Control-Request-Method": "POST",
       "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os"}


def cors(headers):
    return {k: v for k, v in headers.items() if k.startswith("access-control-")}


@pytest.fixture(scope="module")
def listed(module_start):
    return module_start("--allowed-origins", f"{PAGE},{OTHER}", "--api-key", "secret")


@pytest.fixture(scope="module")
def module_start():
    import conftest

    running = []

    def begin(*flags):
        running.append(conftest.Daemon(*flags))
        return running[-1]

    yield begin
    for one in running:
        assert one.stop() == 0, one.log


def test_off_by_default(daemon):
    status, headers, body = daemon.request("OPTIONS", "/v1/completions", headers=ASK)
    assert (status, headers["allow"], cors(headers)) == (405, "POST", {})
    error_of(body)
    headers = daemon.request("POST", "/v1/completions", SHORT, {"Origin": PAGE})[1]
    assert not cors(headers) and "vary" not in headers


def test_preflight(listed):
    """Without a key: browsers send none."""
    for path, methods in (("/v1/chat/completions", "POST"), ("/v1/models", "GET, HEAD")):
        status, headers, body = listed.request("OPTIONS", path, headers=ASK)
        assert (status, body) == (204, b"")
        assert cors(headers) == {
            "access-control-allow-origin": PAGE,
            "access-control-allow-methods": methods,
            "access-control-allow-headers": "authorization,content-type,x-stainless-os",
            "access-control-max-age": "600",
        }
        assert headers["vary"] == "Origin" and headers["x-request-id"]


def test_preflights_that_are_none(listed):
    for change, want in (({"Origin": "https://evil.example"}, 405), ({"Origin": None}, 405),
                         ({"Access-Control-Request-Method": None}, 405)):
        headers = {k: v for k, v in {**ASK, **change}.items() if v}
        answer = listed.request("OPTIONS", "/v1/completions", headers=headers)
        assert answer[0] == want and answer[1]["allow"] == "POST"
        assert "access-control-allow-methods" not in answer[1]
    assert listed.request("OPTIONS", "/nowhere", headers=ASK)[0] == 404


def test_header_names_are_not_repeated_unseen(listed):
    for names in ("a: b", "<x>", "a" * 3000):
        headers = listed.request("OPTIONS", "/v1/models",
                                 headers={**ASK, "Access-Control-Request-Headers": names})[1]
        assert "access-control-allow-headers" not in headers
        assert headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("origin, told", [(PAGE, PAGE), (OTHER, OTHER), ("https://evil.example", None),
                                          ("null", None), (PAGE + ".evil", None), (None, None)])
def test_every_answer_says_who_may_read_it(listed, origin, told):
    key = {"Authorization": "Bearer secret"}
    asks = [("POST", "/v1/completions", SHORT, key, 200),
            ("POST", "/v1/completions", {**SHORT, "stream": True}, key, 200),
            ("POST", "/v1/completions", {**SHORT, "n": -1}, key, 400),
            ("POST", "/v1/completions", SHORT, {}, 401), ("GET", "/nowhere", None, {}, 404),
            ("PUT", "/health", None, {}, 405), ("GET", "/health", None, {}, 200)]
    for method, path, body, headers, want in asks:
        headers = {**headers, "Origin": origin} if origin else headers
        status, got, _ = listed.request(method, path, body, headers)
        assert status == want
        assert got.get("access-control-allow-origin") == told
        assert got["vary"] == "Origin"
        exposed = got.get("access-control-expose-headers", "").split(", ")
        assert ("x-request-id" in exposed and "x-ratelimit-remaining-tokens" in exposed
                and "retry-after" in exposed) == (told is not None)
        assert "access-control-allow-credentials" not in got


def test_all_origins(module_start):
    daemon = module_start("--allowed-origins", "*")
    for origin in (PAGE, "null"):
        _, headers, _ = daemon.request("POST", "/v1/completions", SHORT, {"Origin": origin})
        assert headers["access-control-allow-origin"] == "*" and "vary" not in headers
    headers = daemon.request("OPTIONS", "/v1/completions", headers=ASK)[1]
    assert headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in headers
    assert "access-control-allow-origin" not in daemon.get("/health")[1]


def test_bad_lists_are_refused():
    for text in ("chat.example", f"{PAGE},*", f"{PAGE}/", "null"):
        assert "--allowed-origins" in refused("--allowed-origins", text)
