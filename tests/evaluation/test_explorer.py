"""The explorer's page and picture, from plain arrays: what is in them, and what is refused."""

import base64
import html
import json
import re
from io import BytesIO

import markupsafe
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from memlens.evaluation import explorer, pages

HOSTILE = "</script><script>document.title='broken'</script><b onclick=\"x\">'& {{ 7 * 7 }}"


def numbered_images(n, channels=1):
    """Images (n, channels, 8, 8) whose four quarters spell their number in base 6."""
    digits = np.stack([np.arange(n) // 6**k % 6 for k in range(4)], 1).astype(np.uint8)
    quarters = (50 * digits).reshape(n, 1, 2, 2).repeat(4, 2).repeat(4, 3)
    return quarters.repeat(channels, 1)


def points(n=200, **changes):
    """A grid of samples: x is the position, y repeats 0 ... 9; the labels are of four classes."""
    position = np.arange(n, dtype=float)
    parts = {
        "images": numbered_images(n),
        "index": 1000 + np.arange(n),
        "scores": pd.DataFrame({"first": position, "second": position % 10, "third": -position}),
        "groups": pd.DataFrame({
            "class": pd.Categorical.from_codes(np.arange(n) % 4, ["cat", "dog", HOSTILE, "$x$"]),
            "even": np.arange(n) % 2 == 0,
        }),
        "curves": {"loss": np.linspace(3, 0, 12)[:, None] + position / n,
                   "gradient": np.ones((12, n))},
    }  # fmt: skip
    return explorer.Points(**parts | changes)


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_holds_every_score_group_and_index():
    some = points()
    data = data_of(explorer.page(some, "first", "second", "class"))
    assert data["index"] == some.index.tolist() and data["scores"]["names"] == list(some.scores)
    values = np.frombuffer(base64.b64decode(data["scores"]["values"]), "<f4").reshape(3, -1).T
    np.testing.assert_array_equal(values, some.scores)
    names = {group["name"]: group["names"] for group in data["groups"]}
    assert names == {"class": ["cat", "dog", HOSTILE, "$x$"], "even": ["False", "True"]}
    assert data["groups"][0]["codes"][:5] == [0, 1, 2, 3, 0]


def test_the_sheet_holds_every_image_at_its_place():
    some = points(50, images=numbered_images(50, channels=3))
    file, layout = explorer._sheet(some)
    sheet = np.asarray(Image.open(BytesIO(file)).convert("RGB"))
    for i in (0, 7, 8, 49):
        row, column = divmod(i, layout["columns"])
        tile = sheet[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        np.testing.assert_array_equal(tile.transpose(2, 0, 1), some.images[i])


def test_large_images_are_reduced_and_a_large_sheet_is_compressed():
    noise = np.random.default_rng(0).integers(0, 256, (60, 3, 96, 128), dtype=np.uint8)
    file, layout = explorer._sheet(points(60, images=noise))
    assert (layout["width"], layout["height"]) == (64, 48)
    assert len(file) < explorer.SHEET_BYTES < 60 * 64 * 48 * 3


def test_curves_are_stored_within_a_hundredth_and_gaps_stay_gaps():
    curve = np.random.default_rng(0).exponential(size=(30, 40)) ** 2
    curve[3, 5], curve[4, 6] = np.nan, np.inf
    found = explorer._encode(curve)
    codes = np.frombuffer(base64.b64decode(found["codes"]), np.uint8).reshape(40, 30)
    gaps = ~np.isfinite(curve.T)
    assert (codes == 255).tolist() == gaps.tolist() and gaps.sum() == 2
    values = found["low"] + (found["high"] - found["low"]) * (codes / 254.0) ** 2
    largest = np.nanmax(np.where(gaps, np.nan, curve.T))
    assert np.abs(values - curve.T)[~gaps].max() < 0.01 * largest


@pytest.mark.parametrize("curve", [np.full((5, 200), np.nan), np.full((5, 200), 2.0)])
def test_curves_without_values_or_of_one_value_are_encoded(curve):
    codes = np.frombuffer(base64.b64decode(explorer._encode(curve)["codes"]), np.uint8)
    assert set(codes) == ({255} if np.isnan(curve).any() else {0})


def test_the_bytes_depend_on_the_data_alone():
    first, second = (explorer.page(points(), "first", "second", "class") for _ in range(2))
    assert first == second and explorer.cell(first) == explorer.cell(second)
    drawn = [explorer.png(explorer.static_figure(points(), "first", "second", "class"))
             for _ in range(2)]  # fmt: skip
    assert drawn[0] == drawn[1]
    assert explorer.cell(first) != explorer.cell(explorer.page(points(), "third", "second", "even"))


def test_labels_and_titles_are_escaped_everywhere():
    page = explorer.page(points(), "first", "second", "class", title=HOSTILE)
    assert HOSTILE not in page and str(markupsafe.escape(HOSTILE)) in page
    assert page.count("<script") == 2 and 'onclick="x"' not in page
    cell = explorer.cell(page, title=HOSTILE)
    assert cell.count("<script") == 0 and cell.count("<iframe") == 1
    inside = re.search(r'srcdoc="([^"]*)"', cell)[1]
    assert html.unescape(inside) == page


def test_the_page_loads_nothing_from_elsewhere():
    page = explorer.page(points(), "first", "second", "class")
    addresses = re.findall(r"(?:src|href)=\"?([^\"\s>]+)|url\((.{9})", page)
    assert addresses and all((a or b).startswith("data:") for a, b in addresses)
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")


def test_missing_groups_are_a_category_of_their_own():
    groups = pd.DataFrame({"suggestion": pd.Series(["cat", None, "dog", np.nan], dtype=object)})
    few = points(4, groups=groups)
    assert few.categories["suggestion"].tolist() == ["cat", "none", "dog", "none"]


def test_the_static_picture_shows_the_values_and_leaves_out_what_has_none():
    few = points(20)
    few.scores.loc[3, "first"], few.scores.loc[4, "second"] = np.nan, np.inf
    figure = explorer.static_figure(few, "first", "second", "class")
    scatter, *images = [ax for part in figure.subfigs for ax in axes_of(part)]
    drawn = np.concatenate([c.get_offsets().filled(np.nan) for c in scatter.collections])
    drawn = drawn[np.isfinite(drawn).all(1)]
    expected = few.scores.drop(index=[3, 4])[["first", "second"]].to_numpy()
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, expected))
    highest = images[0].images[0].get_array() * 255
    np.testing.assert_allclose(highest, few.images[9, 0])  # y is 9: the highest of all


def axes_of(figure):
    return [*figure.axes] or [ax for part in figure.subfigs for ax in axes_of(part)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": numbered_images(199)}, "images have 199 rows for 200"),
        ({"images": numbered_images(200)[:, 0]}, "images have shape"),
        ({"scores": pd.DataFrame({"first": range(3)})}, "scores have 3 rows"),
        ({"groups": pd.DataFrame({"class": range(3)})}, "groups have 3 rows"),
        ({"groups": pd.DataFrame(index=range(200))}, "groups have no column"),
        ({"scores": pd.DataFrame(np.ones((200, 2)), columns=["a", "a"])}, "one name"),
        ({"curves": {}}, "no curves"),
        ({"curves": {"loss": np.ones((200, 12))}}, r"'loss' have shape \(200, 12\)"),
        ({"index": np.array([], dtype=int)}, "no samples"),
    ],
)
def test_what_does_not_fit_is_refused_early(changes, message):
    with pytest.raises(ValueError, match=message):
        points(**changes)


@pytest.mark.parametrize("wrong", [{"x": "forth"}, {"y": "class"}, {"color": "first"}])
def test_unknown_columns_are_refused(wrong):
    chosen = {"x": "first", "y": "second", "color": "class"} | wrong
    for function in (explorer.page, explorer.static_figure):
        with pytest.raises(ValueError, match="expected one of"):
            function(points(), **chosen)


def test_a_picture_keeps_its_pixels_and_becomes_small_enough():
    image = np.array([[[0.0, 0.5], [1.0, 2.0]]], dtype=np.float32)
    assert np.asarray(pages.picture(image, 1.0, 96)).tolist() == [[0, 128], [255, 255]]
    assert pages.picture(np.zeros((3, 40, 80)), 255, 20).size == (20, 10)
