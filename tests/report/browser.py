"""A page opened in headless Chromium: what its console says, and which pictures it shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
needs_browser = pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason="no Chromium is installed")

# Added at the end of a copy of the page; the page itself has no script.
_SCRIPT = """<script>addEventListener('load',()=>{const images=[...document.images];
const texts=[...document.querySelectorAll('p,td,th,h1,h2,h3,figcaption,svg text')];
const seen=document.createElement('pre');seen.id='seen';seen.textContent=JSON.stringify({
images:images.length,broken:images.filter(i=>!i.complete||!i.naturalWidth).length,
unnamed:images.filter(i=>!i.alt).length,drawings:document.querySelectorAll('svg').length,
wide:document.documentElement.scrollWidth-innerWidth,
smallest:Math.min(...texts.map(t=>parseFloat(getComputedStyle(t).fontSize))),
requests:performance.getEntriesByType('resource').filter(e=>!e.name.startsWith('data:')).length});
document.body.append(seen)})</script>"""


def opened(page: Path) -> dict[str, int]:
    """Open a page; return counts of its pictures, drawings and requests, after checking that the console is silent."""
    program = next(path for path in map(shutil.which, NAMES) if path)
    copy = page.with_name(f"{page.stem}_opened.html")
    copy.write_text(page.read_text() + _SCRIPT)
    command = [
        program,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr", "--v=0"),
        # It contacts no server, and leaves no profile behind.
        *("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={page.with_name(f'{page.stem}_profile')}"),
        *("--window-size=1280,900", "--virtual-time-budget=20000", "--dump-dom", copy.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-500:]
    return json.loads(found[1])
