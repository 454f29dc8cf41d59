# SPDX-License-Identifier: Apache-2.0
"""Drives the page in headless Chromium: fixtures `daemon` (the real thing, with the demo model), `stub` (serves
the page's real files, but answers chats with what a test wants) and `page`.

Every test that uses `page` fails when the policy was violated, when the console shows an error that the test
did not announce, or when a reply ran a script (those set window.hacked).
"""

import importlib.util

import pytest
from browser import ROOT, Page, Stub
from selenium import webdriver

_spec = importlib.util.spec_from_file_location("daemons", ROOT / "tests" / "integration" / "conftest.py")
_daemon = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_daemon)
daemon, start = _daemon.daemon, _daemon.start

WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", (e) => {
  violations.push(`${e.violatedDirective} ${e.blockedURI} ${e.sample}`);
});
"""


@pytest.fixture
def stub(daemon):
    running = Stub(daemon)
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture(scope="session")
def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run",
                 "disable-background-networking", "disable-extensions", "force-device-scale-factor=1"):
        options.add_argument("--" + flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium):
    chromium.get_log("browser")  # of the test before
    one = Page(chromium)
    yield one
    one.check()
