# SPDX-License-Identifier: Apache-2.0
"""What the tests of the page share: a server whose replies a test writes (Stub, Reply), and the page as a person
meets it (Page)."""

import http.server
import json
import os
import pathlib
import threading
import time

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHOTS = pathlib.Path(os.environ.get("TEST_SCREENSHOTS", ROOT / "build" / "web"))


class Reply:
    """One answer of the stub: `pieces` as a stream, or an error. With `gate` it waits before the last piece."""

    def __init__(self, *pieces, status=200, error=None, retry_after=None, gate=False, cut=False, extra=None):
        self.pieces, self.status, self.error, self.retry_after = pieces, status, error, retry_after
        self.gate = threading.Event() if gate else None
        self.cut, self.extra = cut, extra or {}
        self.hung_up = threading.Event()  # the client went away


class Stub:
    """A server of the page whose replies are written by the test. `asked` has the bodies of the requests."""

    def __init__(self, daemon):
        self.replies, self.asked, self.keys, self.strange = [], [], [], []
        self.key = None
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                if self.path == "/v1/models":
                    if not stub.admit(self):
                        return
                    stub.send_json(self, 200, {"object": "list", "data": [{"id": "stub", "max_model_len": 4096}]})
                    return
                if self.path != "/" and not self.path.startswith("/static/"):
                    stub.strange.append(self.path)
                status, headers, body = daemon.get(self.path)
                self.send_response(status)
                for name in ("content-type", "content-security-policy", "x-content-type-options", "referrer-policy"):
                    if name in headers:
                        self.send_header(name, headers[name])
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if not stub.admit(self):
                    return
                stub.asked.append(body)
                stub.answer(self, stub.replies.pop(0))

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def admit(self, handler):
        self.keys.append(handler.headers["authorization"])
        if self.key is None or self.keys[-1] == f"Bearer {self.key}":
            return True
        self.send_json(handler, 401, {"error": {"message": "no", "code": "invalid_api_key"}})
        return False

    @staticmethod
    def send_json(handler, status, value, retry_after=None):
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        if retry_after:
            handler.send_header("Retry-After", str(retry_after))
        handler.end_headers()
        handler.wfile.write(json.dumps(value).encode())

    def answer(self, handler, reply):
        if reply.error:
            self.send_json(handler, reply.status, {"error": reply.error}, reply.retry_after)
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        try:
            for i, piece in enumerate(reply.pieces):
                if reply.gate and i == len(reply.pieces) - 1:
                    while not reply.gate.wait(0.05):
                        self.event(handler, {"choices": []})
                self.event(handler, {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            if reply.cut:
                return
            self.event(handler, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            usage = {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}}
            self.event(handler, {"choices": [], "usage": usage, **reply.extra})
            handler.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            reply.hung_up.set()

    @staticmethod
    def event(handler, value):
        handler.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        handler.wfile.flush()


class Page:
    """The page as a person meets it. `forgive` lists texts of console errors that a test brings about itself."""

    def __init__(self, driver):
        self.driver = driver
        self.forgive = []
        self.size(1280, 900)

    def size(self, width, height, scheme="light"):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in media.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, server, chats=None):
        """Opens the page with nothing stored, or with these chats."""
        self.driver.get(server.url)
        self.js("localStorage.clear(); sessionStorage.clear();")
        for chat in chats or []:
            self.js("localStorage.setItem('openmoed.chat.' + arguments[0].id, JSON.stringify(arguments[0]))", chat)
        self.driver.get(server.url)
        self.until(lambda: self.js("return document.readyState") == "complete")
        return self

    def js(self, code, *args):
        return self.driver.execute_script(code, *args)

    def until(self, probe, seconds=30):
        """Until probe() is true; an element that is rendered anew while it is looked at is looked at again."""
        end = time.monotonic() + seconds
        while True:
            try:
                if value := probe():
                    return value
            except StaleElementReferenceException:
                pass
            assert time.monotonic() < end, "did not happen"
            time.sleep(0.03)

    def one(self, css):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def click(self, css):
        self.one(css).click()

    def press(self, *keys, alt=None, shift=None):
        """Types into whatever has the focus; then a key with Alt or Shift held."""
        chain = webdriver.ActionChains(self.driver)
        for key in keys:
            chain.send_keys(key)
        for held, key in ((Keys.ALT, alt), (Keys.SHIFT, shift)):
            if key:
                chain.key_down(held).send_keys(key).key_up(held)
        chain.perform()

    def texts(self, role):
        return self.until(lambda: [[e.text for e in self.all(f".message.{role} .text")]])[0]

    def settle(self):
        """Waits until nothing is being generated."""
        self.until(lambda: not self.one("#stop").is_displayed())

    def say(self, text):
        """Sends text; the whole reply."""
        self.one("#input").send_keys(text, Keys.ENTER)
        self.settle()
        return self.texts("assistant")[-1]

    def shot(self, name):
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SHOTS / f"{name}.png"))

    def check(self):
        assert not self.js("return window.hacked"), "a reply ran a script"
        assert self.js("return window.violations") == []
        for entry in self.driver.get_log("browser"):
            if not any(text in entry["message"] for text in self.forgive):
                assert entry["level"] not in ("SEVERE", "WARNING"), entry["message"]
