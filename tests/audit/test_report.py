"""The report in a real browser: no error, every picture shown, nothing wider than the window."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

import memlens as ml
from memlens.audit import config, report
from memlens.audit.audit_data import load_audit_data
from memlens.storage import store

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium to open the page with")
# What a page cannot say of itself without a script, and the report has none: copy of a copy.
QUESTIONS = """<script>addEventListener("load", () => {
  const images = [...document.images];
  parent.postMessage(JSON.stringify({
    images: images.length, broken: images.filter(i => !i.complete || !i.naturalWidth).length,
    width: document.documentElement.scrollWidth, window: innerWidth,
    small: [...document.querySelectorAll("p, td, figcaption, .tile")]
      .filter(e => parseFloat(getComputedStyle(e).fontSize) < 11).length}), "*"); });</script>"""
# A window is not narrower than 500 pixels, a frame is as narrow as a telephone.
FRAME = """<!doctype html><script>addEventListener("message", e => document.title = e.data)</script>
<iframe width="{width}" height="900" style="border:0" src="{name}"></iframe>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with every section: flips, a copy under another label, a broken and a long name."""
    place = tmp_path_factory.mktemp("report")
    data = ml.load("digits").subset(300).with_noise(0.08)
    for i, label in enumerate(data.train.labels.tolist()):
        folder = place / "digits" / f"a class with quite a long name {label}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = np.stack([data.train.images[i, 0].numpy() * 15] * 3, -1)
        picture[..., label % 3] //= 2
        Image.fromarray(picture).save(folder / f"{i:03d}_{'x' * 60}.png")
    folders = sorted((place / "digits").iterdir())
    copied = next(folders[1].iterdir())
    (folders[2] / "copy.png").write_bytes(copied.read_bytes())
    (folders[2] / "broken.png").write_bytes(b"no")
    audit_data = load_audit_data(place / "digits")
    choice = config.choose_config(audit_data.dataset, epochs=8)
    found = ml.run_audit(audit_data, choice, cache=store.Store(place / "run"), calibrate=True)
    report.write_report(found, place / "report.html")
    return place / "report.html"


def opened(page, width):
    """Answers of the page to `QUESTIONS` in a window of that width; the browser's console."""
    copy = page.with_name(f"copy{width}.html")
    copy.write_text(page.read_text().replace("</body>", QUESTIONS + "</body>"))
    frame = page.with_name(f"frame{width}.html")
    frame.write_text(FRAME.format(width=width, name=copy.name))
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--window-size=1500,1000", "--virtual-time-budget=5000", "--dump-dom",
         f"file://{frame}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(title[1].replace("&quot;", '"')), console


@needs_browser
@pytest.mark.parametrize("width", [400, 1400])
def test_every_picture_is_shown_and_nothing_is_wider_than_the_window(page, width):
    measured, console = opened(page, width)
    assert measured["images"] > 20 and measured["broken"] == 0 and measured["small"] == 0
    assert measured["width"] <= measured["window"] == width
    assert console == []


@needs_browser
def test_a_broken_picture_would_be_seen(page, tmp_path):
    broken = tmp_path / "report.html"
    text = page.read_text()
    at = text.index("data:image/png;base64,") + 30
    broken.write_text(text[:at] + "####" + text[at:])
    measured, _ = opened(broken, 500)
    assert measured["broken"] == 1
