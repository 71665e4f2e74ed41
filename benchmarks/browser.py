"""Chromium without a window, driven by its DevTools protocol: open a page, wait until it shows something, picture it.

For tests and measurements of MLflow's pages. It needs the package ``websockets``, which Prefect brings.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_TIMEOUT_SECONDS = 60.0


def chromium() -> str | None:
    """The program of an installed Chromium or Chrome; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """One tab of a browser with a new profile: nothing is remembered of earlier visits."""

    def __init__(self, connection: Any):
        self.connection, self._numbers = connection, itertools.count(1)

    def open(self, url: str) -> None:
        """Load a page; returns when the browser has begun to."""
        self._call("Page.enable")
        self._call("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """What a JavaScript expression is worth on the page, as plain data; None while the page changes."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        return found.get("result", {}).get("value")

    def text(self) -> str:
        """The text that the page shows."""
        return str(self.value("document.body ? document.body.innerText : ''") or "")

    def wait_for(self, script: str, seconds: float = 60.0) -> float:
        """Wait until a JavaScript expression is true; returns how many seconds that took. Raises: TimeoutError."""
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            if self.value(script):
                return time.monotonic() - began
            time.sleep(0.05)
        raise TimeoutError(f"not within {seconds:.0f} s: {script}\n{self.text()[:2000]}")

    def picture(self, file: Path) -> None:
        """Write what the tab shows as a PNG."""
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self.connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:  # events of the page come on the same connection
            answer = json.loads(self.connection.recv(timeout=60))
            if answer.get("id") == number:
                return answer.get("result", {})


@contextlib.contextmanager
def new_tab(width: int = 1600, height: int = 1000) -> Iterator[Tab]:
    """A tab of a new browser, which ends with the block. Raises: FileNotFoundError where there is no Chromium."""
    program = chromium()
    if program is None:
        raise FileNotFoundError("there is no Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-dev-shm-usage"]
        options += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "--remote-debugging-port=0"]
        options += ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to run as root otherwise
        quiet: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([program, *options, "about:blank"], start_new_session=True, **quiet)
        try:
            with connect(_address(Path(profile), process), max_size=None, proxy=None) as connection:
                tab = Tab(connection)
                tab._call(
                    "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
                )
                yield tab
        finally:
            process.terminate()
            process.wait(20)


def _address(profile: Path, process: subprocess.Popen[Any]) -> str:
    """The address of the browser's tab, once it has one."""
    import urllib.request

    port_file, limit = profile / "DevToolsActivePort", time.monotonic() + START_TIMEOUT_SECONDS
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < limit and process.poll() is None:
        with contextlib.suppress(OSError, IndexError, ValueError):
            port = int(port_file.read_text().split()[0])
            with without_proxy.open(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
                return tabs[0]["webSocketDebuggerUrl"]
        time.sleep(0.05)
    raise TimeoutError("Chromium did not start")
