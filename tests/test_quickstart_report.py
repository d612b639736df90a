"""The report in a browser, on the width of a phone; skipped where there is no Chromium."""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--virtual-time-budget=20000"),
)
# a window cannot be as narrow as a phone, a frame can
PAGE = """<!DOCTYPE html><meta charset="utf-8"><title>-</title>
<textarea hidden>{report}</textarea>
<script>
const frame = document.createElement("iframe");
frame.width = 390;
frame.height = 800;
const errors = [];
window.addEventListener("error", event => errors.push(String(event.message)));
frame.onload = () => {{
  const inside = frame.contentDocument;
  document.title = JSON.stringify({{
    width: inside.documentElement.scrollWidth,
    images: [...inside.images].map(image => [image.naturalWidth, image.getBoundingClientRect().width]),
    text: parseFloat(frame.contentWindow.getComputedStyle(inside.body).fontSize),
    requests: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name.slice(0, 5)),
    errors: errors,
  }});
}};
frame.srcdoc = document.querySelector("textarea").value;
document.body.append(frame);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_on_a_phone(journey, tmp_path):
    folder = journey[0]
    page = tmp_path / "page.html"
    page.write_text(PAGE.format(report=escape((folder / "report.html").read_text())))
    shown = subprocess.run(
        [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    found = json.loads(unescape(re.search("<title>(.*?)</title>", shown)[1]))
    assert found["errors"] == []
    # nothing has to be pushed aside to be read, tables scroll on their own
    assert found["width"] <= 390
    assert len(found["images"]) == 7
    for own, wide in found["images"]:
        # there, and not shrunk below the width for which its letters are made
        assert own > 600
        assert 330 <= wide <= 390
    assert found["text"] >= 15
    assert set(found["requests"]) <= {"data:"}
