"""A page in real Chromium, without a window and without network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-background-networking",
    "--enable-logging=stderr",
    "--virtual-time-budget=2000",
]


def ask(page: Path, question: str, *, dark: bool = False) -> Any:
    """What a JavaScript expression gives once the page is there.

    Fails on any error or refusal that the page's console shows.
    """
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: the page isn't looked at in a browser")
    asking = page.with_name(f"asked-{page.name}")
    answer = f"document.title = 'answer ' + JSON.stringify({question});"
    text = page.read_text(encoding="utf-8").replace("</body>", f"<script>{answer}</script></body>")
    asking.write_text(text, encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, scheme, "--dump-dom", asking.as_uri()],
        capture_output=True,
        timeout=120,
        check=False,
    )
    console = [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line]
    assert not console, console
    title = re.search("<title>answer (.*?)</title>", done.stdout.decode(), re.DOTALL)
    assert title, done.stderr.decode()[-2000:]
    return json.loads(html.unescape(title[1]))
