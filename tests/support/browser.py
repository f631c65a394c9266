"""Chromium without a window, for tests of the pages and for their pictures."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, BrowserType, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

NONE = "no Chromium here: install the package chromium"
"""Why a test is skipped."""


SECONDS = 30


@contextmanager
def browsing() -> Iterator[Browser]:
    """Start the Chromium of this machine; Playwright's own would have to be downloaded."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        try:
            yield browser
        finally:
            browser.close()


class NoScripts:
    """A page in a Chromium whose scripts are off from the start: Playwright's own switch leaves `<noscript>` hidden.

    Playwright looks for elements by scripts, so the browser is asked by its protocol.
    """

    def __init__(self, browser_type: BrowserType, address: str) -> None:
        self.browser = browser_type.launch(executable_path=CHROMIUM, args=["--blink-settings=scriptEnabled=false"])
        self.page = self.browser.new_page()
        self._protocol = self.page.context.new_cdp_session(self.page)
        self.page.goto(address)

    def text(self) -> str:
        """What a screen reader finds."""
        nodes = self._protocol.send("Accessibility.getFullAXTree")["nodes"]
        return "\n".join(str(node["name"].get("value", "")) for node in nodes if "name" in node)

    def wait_for(self, wanted: str) -> None:
        """Wait until a text is there.

        Raises:
            RuntimeError: it does not come.
        """
        end = time.monotonic() + SECONDS
        while wanted not in self.text():
            if time.monotonic() > end:
                raise RuntimeError(f"'{wanted}' does not come:\n{self.text()}")
            time.sleep(0.1)

    def choose_file(self, selector: str, path: Path) -> None:
        """Give a file to a field."""
        self._protocol.send("DOM.setFileInputFiles", {"nodeId": self._node(selector), "files": [str(path)]})

    def type(self, selector: str, text: str) -> None:
        """Type a text into a field."""
        self._protocol.send("DOM.focus", {"nodeId": self._node(selector)})
        self.page.keyboard.type(text)

    def _node(self, selector: str) -> int:
        root = self._protocol.send("DOM.getDocument")["root"]["nodeId"]
        return int(self._protocol.send("DOM.querySelector", {"nodeId": root, "selector": selector})["nodeId"])
