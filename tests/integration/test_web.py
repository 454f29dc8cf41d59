# SPDX-License-Identifier: Apache-2.0
"""The files of the page for people, as HTTP: types, policy, compression, revalidation. What they do in a
browser is tested in tests/web."""

import gzip
import re

import pytest


def links(page):
    return re.findall(r'(?:src|href)="(/[^"]+)"', page.decode())


def test_page_and_all_it_names(daemon):
    status, headers, page = daemon.get("/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "txt": "text/plain"}
    assert len(set(links(page))) >= 5
    for path in set(links(page)):
        status, headers, body = daemon.get(path)
        assert status == 200 and body, path
        assert headers["content-type"].split(";")[0] == types[path.rsplit(".", 1)[1]]
        assert headers["x-content-type-options"] == "nosniff"


def test_nothing_comes_from_elsewhere(daemon):
    page = daemon.get("/")[2].decode()
    assert not re.findall(r'(?:src|href)="(?!/static/|#)', page)
    assert not re.findall(r"<script>|<style|\son\w+=|\sstyle=", page)


def test_policy(daemon):
    for path in ("/", "/static/app.js", "/static/icon.svg"):
        headers = daemon.get(path)[1]
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "accept, packed",
    [
        (None, False),
        ("gzip", True),
        ("deflate, GZIP;q=0.5, br", True),
        ("br;q=1.0, gzip", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0, br", False),
        ("gzipped, x-gzip", False),
        ("identity", False),
    ],
)
def test_compression(daemon, accept, packed):
    plain = daemon.get("/static/libraries.js")[2]
    headers = {} if accept is None else {"Accept-Encoding": accept}
    status, headers, body = daemon.request("GET", "/static/libraries.js", headers=headers)
    assert status == 200
    assert "Accept-Encoding" in headers["vary"]
    assert headers.get("content-encoding") == ("gzip" if packed else None)
    assert (gzip.decompress(body) if packed else body) == plain
    assert len(body) < 100_000 or not packed


def test_revalidation(daemon):
    tag = daemon.get("/static/app.js")[1]["etag"]
    assert tag != daemon.get("/static/style.css")[1]["etag"]
    for known in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
        status, headers, body = daemon.request("GET", "/static/app.js", headers={"If-None-Match": known})
        assert (status, body) == (304, b""), known
        assert headers["etag"] == tag and "content-security-policy" in headers
    for other in ('"other"', tag.replace('"', ""), tag[:-2] + '"'):
        assert daemon.request("GET", "/static/app.js", headers={"If-None-Match": other})[0] == 200, other


def test_methods(daemon):
    status, headers, body = daemon.request("HEAD", "/")
    assert status == 200 and body == b"" and int(headers["content-length"]) > 1000
    for path in ("/", "/static/app.js"):
        status, headers, _ = daemon.request("POST", path, body=b"{}", headers={"Content-Type": "application/json"})
        assert (status, headers["allow"]) == (405, "GET, HEAD")
    for path in ("/static/", "/static/none.js", "/static/../config.json", "/static/libraries.sh", "/static/app"):
        assert daemon.get(path)[0] == 404, path


def test_page_needs_no_key(start):
    daemon = start("--api-key", "secret")
    assert daemon.get("/")[0] == daemon.get("/static/app.js")[0] == 200
    assert daemon.get("/v1/models")[0] == 401
