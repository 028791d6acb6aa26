"""Reading labelled images: what is read, skipped with a reason, or refused."""

import time

import numpy as np
import pytest
import torch
from PIL import Image

from memlens.audit.audit_data import load_audit_data

RNG = np.random.default_rng(0)


def picture(mode="L", size=(8, 8), seed=None):
    rng = RNG if seed is None else np.random.default_rng(seed)
    return Image.fromarray(rng.integers(256, size=(*size[::-1], 4), dtype=np.uint8)).convert(mode)


def tree(root, names=("cat", "dog"), n=12, **look):
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(n):
            picture(**look).save(root / name / f"{i:02d}.png")
    return root


def reasons(audit_data):
    return dict(zip(audit_data.skipped["file"], audit_data.skipped["reason"]))


def test_a_folder_is_read_in_the_order_of_its_listing(tmp_path):
    audit_data = load_audit_data(tree(tmp_path / "pets"))
    assert audit_data.files[:2] == ("cat/00.png", "cat/01.png") and len(audit_data) == 24
    assert audit_data.name == "pets" and audit_data.dataset.class_names == ("cat", "dog")
    assert audit_data.dataset.train.labels.tolist() == [0] * 12 + [1] * 12
    assert audit_data.dataset.train.index.tolist() == list(
        range(24)
    ) and audit_data.dataset.in_shape == (1, 8, 8)
    for i in (0, 13):
        expected = np.asarray(Image.open(tmp_path / "pets" / audit_data.files[i]))
        assert np.array_equal(audit_data.dataset.train.images[i, 0], expected)
    assert not len(audit_data.dataset.test) and audit_data.skipped.empty and audit_data.notes == ()


def test_what_cannot_be_read_is_left_out_with_its_reason_and_the_rest_keeps_its_place(tmp_path):
    root = tree(tmp_path / "pets")
    (root / "cat" / "03.png").write_bytes(b"no picture")
    whole = (root / "dog" / "01.png").read_bytes()
    (root / "dog" / "01.png").write_bytes(whole[: len(whole) // 2])
    (root / "cat" / "readme.txt").write_text("hello")
    (root / "cat" / ".hidden.png").write_text("hello")
    (root / "empty").mkdir()
    (root / ".git").mkdir()
    picture().save(root / "stray.png")
    audit_data = load_audit_data(root)
    found = reasons(audit_data)
    assert set(found) == {"cat/03.png", "dog/01.png", "cat/readme.txt", "empty/", "stray.png"}
    assert "cannot be decoded" in found["cat/03.png"] and "cannot be" in found["dog/01.png"]
    assert "extension" in found["cat/readme.txt"] and "not in a class folder" in found["stray.png"]
    assert "without images" in found["empty/"]
    assert audit_data.dataset.class_names == ("cat", "dog") and len(audit_data) == 22
    assert audit_data.dataset.train.index.tolist() == [i for i in range(24) if i not in (3, 13)]
    assert audit_data.files[3] == "cat/04.png"


def test_names_with_spaces_and_any_letters(tmp_path):
    audit_data = load_audit_data(tree(tmp_path / "données 1", ("gato negro", "öl & <b>", "猫")))
    assert audit_data.dataset.class_names == ("gato negro", "öl & <b>", "猫")
    assert audit_data.files[-1] == "猫/11.png"


def test_grey_stays_grey_unless_one_image_has_colour(tmp_path):
    root = tree(tmp_path / "pets")
    assert load_audit_data(root).dataset.in_shape[0] == 1
    picture("RGB").save(root / "dog" / "99.png")
    audit_data = load_audit_data(root)
    assert audit_data.dataset.in_shape == (3, 8, 8)
    grey = audit_data.dataset.train.images[0]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])


def test_transparent_pixels_stand_on_white(tmp_path):
    root = tree(tmp_path / "pets")
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 255))
    image.putpixel((2, 1), (200, 0, 0, 0))
    image.save(root / "cat" / "00.png")
    shown = load_audit_data(root).dataset.train.images[0]
    assert shown[:, 1, 2].tolist() == [255] * 3 and shown[:, 0, 0].tolist() == [10, 20, 30]


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    root = tree(tmp_path / "pets")
    deep = np.full((8, 8), 514, np.uint16)
    deep[0, 0] = 65535
    Image.fromarray(deep).save(root / "cat" / "00.png")
    assert load_audit_data(root).dataset.train.images[0, 0, 0, :2].tolist() == [255, 2]


def test_a_rotation_that_the_camera_noted_is_applied(tmp_path):
    root = tree(tmp_path / "pets", size=(8, 6), mode="RGB")
    flat = Image.new("RGB", (6, 8))
    flat.paste((255, 255, 255), (0, 0, 6, 4))  # white above, black below
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: turn it clockwise
    flat.save(root / "cat" / "00.jpg", exif=exif, quality=95)
    audit_data = load_audit_data(root)
    assert (
        audit_data.dataset.in_shape == (3, 6, 8) and audit_data.notes == ()
    )  # as wide as the others, turned
    turned = (
        audit_data.dataset.train.images[audit_data.files.index("cat/00.jpg")].float().mean((0, 1))
    )
    assert turned[-1] > 200 and turned[0] < 50


def test_a_few_of_another_size_are_fitted_and_counted(tmp_path):
    root = tree(tmp_path / "pets")
    picture(size=(30, 17)).save(root / "dog" / "11.png")
    audit_data = load_audit_data(root)
    assert audit_data.dataset.in_shape == (1, 8, 8) and "1 of 24" in audit_data.notes[0]


def test_mixed_or_large_images_become_squares_of_64_or_as_asked(tmp_path):
    large = tree(tmp_path / "large", size=(100, 80))
    assert load_audit_data(large).dataset.in_shape == (1, 64, 64)
    assert load_audit_data(large, size=20).dataset.in_shape == (1, 20, 20)
    with pytest.raises(ValueError, match="at least 5 pixels"):
        load_audit_data(large, size=4)
    with pytest.raises(ValueError, match="3 x 3 pixels"):
        load_audit_data(tree(tmp_path / "tiny", size=(3, 3)))
    deep = np.zeros((30, 100, 80), np.uint8)
    deep[::2] = 9
    assert load_audit_data(arrays(tmp_path, deep, np.arange(30) % 2)).dataset.in_shape == (
        1,
        64,
        64,
    )


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (lambda r: tree(r, ("cat",), 30), "only the class 'cat'"),
        (lambda r: tree(r, n=4), "8 readable images .* expected at least 20"),
        (lambda r: r.mkdir() or r, "no class folders"),
        (lambda r: tree(r, ("train", "val")), "splits of a data set"),
        (lambda r: _constant(r), "same value"),
        (lambda r: _write(r.with_suffix(".txt"), b"x"), "no folder, .csv, .tsv or .npz"),
        (lambda r: _write(r.with_suffix(".npz"), b"PK\x03\x04 torn"), "damaged|cannot be read"),
        (lambda r: _write(r.with_suffix(".csv"), b"\xff\xfe\x00"), "cannot be read as a table|has"),
        (lambda r: _write(r.with_suffix(".csv"), b""), "cannot be read as a table"),
        (
            lambda r: _write(r.with_suffix(".csv"), b"name,kind\na,b\n"),
            "has the columns name, kind",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_with_what_was_found(tmp_path, made, match):
    with pytest.raises(ValueError, match=match):
        load_audit_data(made(tmp_path / "pets"))


def _constant(root):
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(12):
            Image.new("L", (8, 8), 7).save(root / name / f"{i}.png")
    return root


def _write(path, data):
    path.write_bytes(data)
    return path


def test_a_link_that_leads_back_up_is_not_followed(tmp_path):
    root = tree(tmp_path / "pets")
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "self").symlink_to(root / "cat")
    (tmp_path / "more").mkdir()
    picture().save(tmp_path / "more" / "x.png")
    (root / "dog" / "more").symlink_to(tmp_path / "more")
    audit_data = load_audit_data(root)
    assert len(audit_data) == 25 and audit_data.files[-1] == "dog/more/x.png"


def test_results_among_the_classes_are_no_class(tmp_path):
    root = tree(tmp_path / "pets", ("cat", "dog", "results"))
    assert load_audit_data(root, exclude=root / "results").dataset.class_names == ("cat", "dog")
    parts = tree(tmp_path / "parts", ("train", "val", "results"))
    with pytest.raises(ValueError, match="splits of a data set"):
        load_audit_data(parts, exclude=parts / "results")


def test_a_path_where_nothing_is_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_audit_data(tmp_path / "pets")


def test_a_broken_majority_says_why_there_are_too_few(tmp_path):
    root = tree(tmp_path / "pets")
    for path in root.glob("cat/*"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="12 readable images .* 12 cannot be decoded"):
        load_audit_data(root)


def table(tmp_path, rows, name="labels.csv", head="file,label"):
    text = "\n".join([head, *rows])
    return _write(tmp_path / name, text.encode())


def test_a_table_of_files_and_labels(tmp_path):
    root = tree(tmp_path / "all")
    files = sorted(str(p.relative_to(tmp_path)) for p in root.rglob("*.png"))
    rows = [f"{f},{i % 3}" for i, f in enumerate(files)]
    rows += ["all/none.png,1", f"{files[0]},", "  ,2"]
    audit_data = load_audit_data(table(tmp_path, rows))
    assert (
        audit_data.files == tuple(files)
        and audit_data.dataset.train.labels.tolist() == [0, 1, 2] * 8
    )
    assert set(reasons(audit_data).values()) == {"no such file", "no label in its row"}
    assert len(audit_data.skipped) == 3
    ends = [row + "," for row in rows]  # a comma too many in every row
    assert (
        load_audit_data(table(tmp_path, ends, "ends.csv", "\ufefffile,label")).files
        == audit_data.files
    )
    long = [*rows, f"{'x' * 300}.png,1"]
    assert len(load_audit_data(table(tmp_path, long, "long.csv")).skipped) == 4
    tabs = [row.replace(",", "\t") for row in rows]
    again = load_audit_data(table(tmp_path, tabs, "labels.tsv", "Image_Path\tCLASS"))
    assert again.files == audit_data.files


def test_numbers_sort_by_value(tmp_path):
    audit_data = load_audit_data(tree(tmp_path / "n", ("10", "9", "2"), 8))
    assert audit_data.dataset.class_names == ("2", "9", "10")


def test_labels_that_are_not_among_the_known_classes_are_left_out(tmp_path):
    root = tree(tmp_path / "pets", ("cat", "dog", "dgo"))
    audit_data = load_audit_data(root, classes=["dog", "cat", "bird"])
    assert audit_data.dataset.class_names == ("dog", "cat") and len(audit_data) == 24
    assert set(reasons(audit_data).values()) == {"class 'dgo' is not in classes"}
    assert audit_data.dataset.train.index.tolist() == [*range(12), *range(24, 36)]
    with pytest.raises(ValueError, match="none of classes"):
        load_audit_data(root, classes=["birds", "fish"])
    with pytest.raises(ValueError, match="classes has cat more than once"):
        load_audit_data(root, classes=["cat", "dog", "cat"])


def arrays(tmp_path, x, y, **names):
    path = tmp_path / "mine.npz"
    np.savez(path, **(names or {"x": x, "y": y}))
    return path


@pytest.mark.parametrize("shape", [(30, 6, 5), (30, 6, 5, 1), (30, 1, 6, 5)])
def test_grey_arrays_of_any_layout(tmp_path, shape):
    x = RNG.integers(256, size=shape, dtype=np.uint8)
    audit_data = load_audit_data(arrays(tmp_path, x, np.arange(30) % 2))
    assert np.array_equal(audit_data.dataset.train.images.numpy().ravel(), x.ravel())
    assert audit_data.dataset.in_shape == (1, 6, 5) and audit_data.files[3] == "mine.npz[3]"


def test_colour_arrays_with_the_channel_last_and_labels_of_text(tmp_path):
    x = RNG.integers(256, size=(30, 6, 5, 3), dtype=np.uint8)
    y = np.array(["b", "a", "c"] * 10)
    path = arrays(tmp_path, None, None, images=x, labels=y)
    audit_data = load_audit_data(path)
    assert np.array_equal(audit_data.dataset.train.images.numpy(), x.transpose(0, 3, 1, 2))
    assert audit_data.dataset.class_names == ("a", "b", "c")
    assert audit_data.dataset.train.labels[:3].tolist() == [1, 0, 2]
    assert load_audit_data(path, size=5).dataset.in_shape == (3, 5, 5)


def test_arrays_of_16_bits_of_booleans_and_with_transparency_are_read(tmp_path):
    x = RNG.integers(65536, size=(30, 6, 5), dtype=np.uint16)
    audit_data = load_audit_data(arrays(tmp_path, x, (np.arange(30) % 2)[:, None].astype(float)))
    assert np.array_equal(audit_data.dataset.train.images[:, 0].numpy(), x // 257)
    assert audit_data.dataset.class_names == ("0", "1")
    flags = load_audit_data(arrays(tmp_path, x > 30_000, np.array([b"a", b"b"] * 15)))
    assert flags.dataset.train.images.unique().tolist() == [0, 255]
    assert flags.dataset.class_names == ("a", "b")
    clear = np.zeros((30, 6, 5, 4), np.uint8)  # wholly transparent, but for one pixel
    clear[:, 0, 0] = 10, 20, 30, 255
    shown = load_audit_data(arrays(tmp_path, clear, np.arange(30) % 2)).dataset.train.images[0]
    assert shown[:, 0, 0].tolist() == [10, 20, 30] and shown[:, 1, 1].tolist() == [255] * 3


def test_rows_without_a_label_are_left_out(tmp_path):
    y = (np.arange(30) % 3).astype(float)
    y[4] = np.nan
    audit_data = load_audit_data(arrays(tmp_path, RNG.random((30, 6, 5)), y))
    assert audit_data.dataset.class_names == ("0", "1", "2") and reasons(audit_data) == {
        "mine.npz[4]": "no label"
    }


def test_floats_keep_their_white_and_rows_with_nan_are_left_out(tmp_path):
    x = RNG.random((30, 6, 5)).astype(np.float64)
    x[7, 0, 0] = np.nan
    audit_data = load_audit_data(arrays(tmp_path, x, np.arange(30) % 2))
    assert audit_data.dataset.pixel_max == 1.0 and len(audit_data) == 29
    assert reasons(audit_data) == {"mine.npz[7]": "has NaN or infinite pixels"}
    assert audit_data.dataset.train.index[7] == 8
    high = load_audit_data(arrays(tmp_path, np.nan_to_num(x) * 200, np.arange(30) % 2))
    assert high.dataset.pixel_max == 255.0


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        (np.zeros((30, 4)), np.zeros(30), "have shape"),
        (np.zeros((30, 4, 4, 4)), np.zeros(30), "have shape"),
        (np.zeros((30, 6, 6), np.uint8), np.array(3), "one label per image"),
        (np.full((30, 6, 6), "x"), np.arange(30) % 2, "expected numbers"),
        (RNG.normal(size=(30, 4, 4)), np.arange(30) % 2, "undo the normalisation"),
        (np.zeros((30, 4, 4), np.uint8), np.arange(29), "one label per image"),
        (np.zeros((30, 4, 4), np.uint8), np.array([{}] * 30), "cannot be read"),
    ],
)
def test_arrays_that_are_no_labelled_images(tmp_path, x, y, match):
    with pytest.raises(ValueError, match=match):
        load_audit_data(arrays(tmp_path, x, y))


def test_other_arrays_are_named(tmp_path):
    with pytest.raises(ValueError, match="has the arrays pictures; expected images x and labels y"):
        load_audit_data(arrays(tmp_path, None, None, pictures=np.zeros(3)))


def test_images_that_do_not_fit_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    root = tree(tmp_path / "pets")
    monkeypatch.setattr("memlens.training.devices.free_memory", lambda device: 1_000)
    with pytest.raises(MemoryError, match="smaller size"):
        load_audit_data(root)


@pytest.mark.slow
def test_a_hundred_thousand_files_are_listed_fast(tmp_path):
    """The listing alone: every file is opened later, by all cores."""
    from memlens.audit import listings

    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(50_000):
            (tmp_path / name / f"{i}.png").touch()
    start = time.perf_counter()
    listing = listings.list_folder(tmp_path, None)
    assert len(listing.names) == 100_000 and not listing.skipped
    assert time.perf_counter() - start < 10  # a second here; a stat a file would take many
