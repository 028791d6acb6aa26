"""The explorer in a real browser without a network: hover, brush, change an axis, filter, keys.

What is drawn is read from pixels: a test of the elements alone passes on blank images.
"""

import re
import shutil
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from test_explorer import points

from memlens.evaluation import explorer

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright to drive a browser")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the explorer with"),
    pytest.mark.slow,
]
UNTRUSTED = r"(?s)<style>.*?</style>|<iframe.*?</iframe>"  # what JupyterLab removes


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def some():
    found = points()
    found.scores.loc[3, "first"], found.scores.loc[4, "second"] = np.nan, np.inf
    found.curves["loss"][2, 5] = np.nan
    return found


@pytest.fixture(scope="module")
def page(some):
    return explorer.page(some, "first", "second", "class")


@pytest.fixture(params=["page", "cell"])
def opened(request, browser, page, tmp_path):
    """(window, document) of the page itself, or of the output of a cell; no error may occur."""
    window, document, errors = open_file(browser, tmp_path, page, request.param)
    yield window, document
    assert errors == []
    window.context.close()


def open_file(browser, folder, page, kind):
    path = folder / "opened.html"
    before = "<!doctype html><p>text</p>"
    path.write_text(page if kind == "page" else before + explorer.cell(page), encoding="utf-8")
    window = browser.new_context(offline=True, viewport={"width": 1000, "height": 800}).new_page()
    errors = []
    window.on("pageerror", lambda error: errors.append(str(error)))
    window.on("console", lambda message: errors.append(message.text))
    window.on("dialog", lambda dialog: errors.append("a dialog"))
    window.goto(f"file://{path}")
    document = window if kind == "page" else window.frames[1]
    document.locator("#legend button").first.wait_for()
    return window, document, errors


def place(document, sample):
    """Where a sample is in the window."""
    box = document.locator("#overlay").bounding_box()
    x, y = document.evaluate("i => [px[i], py[i]]", sample)
    return box["x"] + x, box["y"] + y


def drag(window, start, end):
    window.mouse.move(*start)
    window.mouse.down()
    window.mouse.move(*end, steps=4)
    window.mouse.up()
    window.wait_for_timeout(60)  # three frames of the screen


def chosen(document):
    return document.evaluate("Array.from(selected.keys()).filter(isShown)")


def pixels(locator):
    return np.asarray(Image.open(BytesIO(locator.screenshot())).convert("L"), dtype=int)


def shows(locator, image):
    """Whether the element on the screen has these pixels (1, 8, 8)."""
    seen, want = pixels(locator), np.asarray(image)[0].astype(int)
    rows, columns = (np.round((np.arange(8) + 0.5) * size / 8).astype(int) for size in seen.shape)
    return np.abs(seen[np.ix_(rows, columns)] - want).max() <= 3


def test_hovering_shows_the_image_its_labels_and_its_scores(opened, some):
    window, document = opened
    window.mouse.move(*place(document, 77))
    document.locator("#tip").wait_for()
    text = document.locator("#tip-text").inner_text()
    assert text.splitlines() == ["#1077", "class: dog", "even: False", "first: 77", "second: 7"]
    image = document.locator("#tip-image")
    assert shows(image, some.images[77]) and not shows(image, some.images[78])
    window.mouse.move(1, 1)
    assert document.locator("#tip").is_hidden()


def test_brushing_shows_the_images_and_stays_when_an_axis_changes(opened, some):
    window, document = opened
    (left, _), (right, _) = place(document, 100), place(document, 139)
    box = document.locator("#overlay").bounding_box()
    drag(window, (left - 1, box["y"] + 2), (right + 1, box["y"] + 340))
    assert chosen(document) == [*range(100, 140)]
    cells = document.locator("#grid .sprite:visible")
    by_y = sorted(range(100, 140), key=lambda i: (-some.scores["second"][i], -i))
    shown = [int(cell) for cell in cells.evaluate_all("all => all.map(c => c.dataset.sample)")]
    assert [some.scores["second"][i] for i in shown] == [some.scores["second"][i] for i in by_y]
    for k in (0, 17, 39):
        assert shows(cells.nth(k), some.images[shown[k]])
    assert sorted(map(int, re.findall(r"\d+", document.locator("#indices").input_value()))) == [
        *range(1100, 1140)
    ]
    document.locator("#x").select_option("third")
    assert chosen(document) == [*range(100, 140)]
    assert place(document, 100)[0] > place(document, 139)[0]


def test_curves_of_the_brushed_samples_are_drawn(opened, some):
    window, document = opened
    loss = document.locator("#curve-0")
    before = pixels(loss)
    window.mouse.click(*place(document, 150))
    window.mouse.move(1, 1)
    window.wait_for_timeout(60)
    assert chosen(document) == [150]
    curve = document.evaluate("Array.from(curves[0].values.slice(150 * 12, 151 * 12))")
    np.testing.assert_allclose(curve, some.curves["loss"][:, 150], atol=0.04)
    assert (np.abs(pixels(loss) - before) > 60).sum() > 100
    details = document.locator("#details div").all_inner_texts()
    assert details == ["first: 150", "second: 0", "third: -150"]


def test_the_legend_filters(opened):
    window, document = opened
    document.locator("#legend button", has_text="dog").click()
    assert document.evaluate("drawOrder.length") == 148  # 200 less 50 dogs less 2 without a value
    assert document.locator("#legend button[aria-pressed=false]").count() == 1
    window.mouse.move(*place(document, 77))  # a dog
    assert document.locator("#tip").is_hidden()
    box = document.locator("#overlay").bounding_box()
    drag(window, (box["x"] + 40, box["y"] + 2), (box["x"] + 415, box["y"] + 345))
    assert len(chosen(document)) == 148 and 77 not in chosen(document)
    document.locator("#none").click()
    assert chosen(document) == []
    document.locator("#all").click()
    assert len(chosen(document)) == 148  # the brush is kept, and so is what it did not choose
    document.locator("#color").select_option("even")
    assert document.locator("#legend button").all_inner_texts() == [" False (100)", " True (100)"]


def test_the_keyboard_reaches_and_brushes_samples(opened, some):
    window, document = opened
    document.locator("#overlay").focus()
    for _ in range(3):
        window.keyboard.press("ArrowRight")
    assert "#1002" in document.locator("#tip-text").inner_text()
    window.keyboard.press(" ")
    window.keyboard.press("ArrowRight")  # 4: sample 3 has no value, and so has 4 its y
    window.keyboard.press(" ")
    assert chosen(document) == [2, 5]
    window.keyboard.press("Escape")
    assert chosen(document) == []
    window.keyboard.press("ArrowUp")
    assert document.locator("#tip").is_visible()


def test_samples_without_a_value_are_counted_and_logarithms_leave_out_zero(opened):
    window, document = opened
    missing = document.locator("#missing")
    assert missing.inner_text() == "2 of 200 samples have no value here."
    document.locator("#log-x").check()
    assert missing.inner_text() == "3 of 200 samples have no value here."
    window.mouse.move(*place(document, 100))
    assert "first: 100" in document.locator("#tip-text").inner_text()


def test_labels_are_shown_as_they_are_written(opened):
    window, document = opened
    window.mouse.move(*place(document, 2))
    assert "</script><script>document.title='broken'" in document.locator("#tip-text").inner_text()
    assert document.locator("b").count() == 0 and window.title() != "broken"


def test_an_untrusted_notebook_says_what_to_do_and_a_trusted_one_does_not(browser, page, some):
    cell = explorer.cell(
        page, explorer.png(explorer.static_figure(some, "first", "second", "even"))
    )
    window = browser.new_page()
    window.set_content(cell)
    message = window.get_by_text("File > Trust Notebook")
    assert message.is_hidden() and window.locator("iframe").is_visible()
    window.set_content(re.sub(UNTRUSTED, "", cell))
    assert message.is_visible() and window.locator("iframe").count() == 0
    assert window.locator("img").evaluate("i => i.complete && i.naturalWidth") > 300
    window.close()


def test_two_explorers_of_a_notebook_hide_only_their_own_message(browser, page, some):
    other = explorer.page(some, "third", "second", "class")
    window = browser.new_page()
    trusted, untrusted = explorer.cell(page), re.sub(UNTRUSTED, "", explorer.cell(other))
    window.set_content(trusted + untrusted)
    messages = window.get_by_text("File > Trust Notebook")
    assert [message.is_visible() for message in messages.all()] == [False, True]
    window.close()


def test_an_exported_notebook_shows_the_explorer(browser, page, some, tmp_path):
    """Its page asks for scripts on the web, and works without them."""
    nbformat, nbconvert = pytest.importorskip("nbformat"), pytest.importorskip("nbconvert")
    data = {"text/html": explorer.cell(page), "text/plain": "Explorer"}
    output = nbformat.v4.new_output("execute_result", data)
    cell = nbformat.v4.new_code_cell("ml.explore(run)", outputs=[output])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    exported, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    (tmp_path / "exported.html").write_text(exported, encoding="utf-8")
    window = browser.new_context(offline=True).new_page()
    window.goto(f"file://{tmp_path}/exported.html", wait_until="commit")
    frame = window.frame_locator("iframe.memlens-explorer")
    frame.locator("#legend button").first.wait_for()
    frame.locator("#overlay").scroll_into_view_if_needed()
    window.mouse.move(*place(window.frames[1], 77))
    assert shows(frame.locator("#tip-image"), some.images[77])
    window.context.close()
