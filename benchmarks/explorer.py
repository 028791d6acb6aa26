"""The explorer in a headless Chromium: seconds until it is visible, and stalls while brushing.

python benchmarks/explorer.py [2000 10000]

A brush grows in 60 steps of 16 ms over nearly all samples. A stall is a task of 50 ms or more, as
the browser reports it; the time of one redrawing is the script's own.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from playwright.sync_api import sync_playwright

from memlens.evaluation import explorer

WATCH = """() => {
  window.tasks = []; window.drawings = [];
  new PerformanceObserver((list) => list.getEntries().forEach((e) => tasks.push(e.duration)))
    .observe({ entryTypes: ["longtask"] });
  const draw = drawSelection;
  drawSelection = () => {
    const start = performance.now(); draw(); drawings.push(performance.now() - start);
  };
}"""
DECODED = """async () => {
  const image = new Image();
  image.src = getComputedStyle(document.querySelector("#tip-image")).backgroundImage.slice(5, -2);
  await image.decode();
  await new Promise(requestAnimationFrame);
}"""


def random_points(n):
    """Return n noise images with 20 scores, ten classes and two curves of 60 epochs."""
    rng = np.random.default_rng(0)
    return explorer.Points(
        images=rng.integers(0, 256, (n, 1, 28, 28), dtype=np.uint8),
        index=np.arange(n),
        scores=pd.DataFrame(rng.normal(size=(n, 20)), columns=[f"score {i}" for i in range(20)]),
        groups=pd.DataFrame({"class": rng.integers(0, 10, n).astype(str)}),
        curves={"loss": rng.exponential(size=(60, n)), "gradient": rng.exponential(size=(60, n))},
    )


def measure(browser, n, folder):
    page = explorer.page(random_points(n), "score 0", "score 1", "class")
    path = folder / f"{n}.html"
    path.write_text(page, encoding="utf-8")
    window = browser.new_page(viewport={"width": 1000, "height": 800})
    start = time.perf_counter()
    window.goto(f"file://{path}", wait_until="commit")
    window.locator("#legend button").first.wait_for()
    window.evaluate(DECODED)
    visible = time.perf_counter() - start
    window.evaluate(WATCH)
    box = window.locator("#overlay").bounding_box()
    window.mouse.move(box["x"] + 60, box["y"] + 20)
    window.mouse.down()
    for step in range(60):
        window.mouse.move(box["x"] + 60 + 6 * step, box["y"] + 20 + 5 * step)
        window.wait_for_timeout(16)
    window.mouse.up()
    window.wait_for_timeout(300)
    longest = window.evaluate("Math.max(...drawings)")
    stalls = window.evaluate("tasks")
    print(
        f"{n:,} samples, {len(page) / 1e6:.1f} MB: visible after {visible:.2f} s; longest "
        f"redrawing {longest:.0f} ms; {len(stalls)} stalls {[round(stall) for stall in stalls]}; "
        f"{window.locator('#count').inner_text()}"
    )
    window.close()


def main():
    sizes = [int(size) for size in sys.argv[1:]] or [2_000, 10_000]
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=chromium, args=arguments)
        for n in sizes:
            measure(browser, n, Path(folder))
        browser.close()


if __name__ == "__main__":
    main()
