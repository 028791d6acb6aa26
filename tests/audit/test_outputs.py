"""`memlens audit` from end to end on planted digits: found, written, loaded, gone on with."""

import json
import os
import time
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import memlens as ml
from memlens.__main__ import main
from memlens.audit import config, outputs, pipeline, report
from memlens.audit.audit_data import load_audit_data
from memlens.storage import store
from memlens.training import loop, posthoc, progress

EPOCHS, N, FLIPS = 12, 500, 25
FEW = 150  # where it does not matter what is found
pytestmark = pytest.mark.slow


def plant(root, n=N):
    """Digits as files, some with a flipped label; one picture twice, one file broken."""
    data = ml.load("digits").subset(n).with_noise(FLIPS / N, seed=1)
    train = data.train
    for i in range(n):
        folder = root / f"digit {train.labels[i]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(train.images[i, 0].numpy() * 15).save(folder / f"{i:03d}.png")
    copied = sorted((root / "digit 7").glob("*.png"))[0]
    (root / "digit 1" / "copy.png").write_bytes(copied.read_bytes())
    (root / "digit 0" / "broken.png").write_bytes(b"no")
    return {f"digit {train.labels[i]}/{i:03d}.png" for i in np.flatnonzero(train.is_noisy.numpy())}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    place = tmp_path_factory.mktemp("audit")
    flipped, messages = plant(place / "digits"), []
    found = outputs.audit_path(
        place / "digits", place / "out", epochs=EPOCHS, calibrate=True, log=messages.append
    )
    return place, flipped, found, "\n".join(messages)


def test_flips_and_the_copy_are_found(scored):
    _, flipped, found, messages = scored
    table = found.table
    called = set(found.suspects["file"])
    assert len(called & flipped) >= 0.7 * FLIPS and len(called & flipped) >= 0.7 * len(called)
    by_aum = table.sort_values("aum_rank")["file"].head(FLIPS)
    assert len(set(by_aum) & flipped) >= 0.7 * FLIPS
    copy = table[table["file"] == "digit 1/copy.png"].iloc[0]
    assert copy.duplicate_of.startswith("digit 7/") and "duplicate?" in copy.finding
    assert f"{N + 1} images in 10 classes" in messages and "1 cannot be decoded" in messages
    assert "with planted flips" in messages


def test_the_table_has_each_sample_once_with_every_score_and_its_rank(scored):
    place, _, found, _ = scored
    table = pd.read_csv(place / "out" / "scores.csv", index_col="index", keep_default_na=False)
    assert len(table) == N + 1 and table["file"].is_unique
    assert [*table.columns[:8]] == ["file", "label", "predicted_label", "p_predicted", "p_label",
                                    "finding", "evidence", "memorization"]  # fmt: skip
    for name in found.run.scores:
        values = table[name].astype(float)
        assert (table[f"{name}_rank"] == values.rank(ascending=False, method="min")).all()
    assert table["p_label"].astype(float).between(0, 1).all()
    assert (table["label"] == table["file"].str.split("/").str[0]).all()


def test_results_at_the_prompt_are_one_line(scored):
    _, _, found, _ = scored
    assert repr(found).startswith("AuditResult(") and len(repr(found)) < 100
    assert repr(found.audit_data).startswith("AuditData(") and len(repr(found.audit_data)) < 100


def test_the_probability_of_a_sample_comes_from_a_net_that_never_saw_it(scored):
    *_, found, _ = scored
    place = scored[0]
    audit = pipeline.Audit(found.audit_data, found.config, cache=store.Store(place / "out" / "run"))
    jobs = list(audit.jobs())[1:]
    left_out = [set(job.data.test.index.tolist()) for job in jobs]
    assert sum(map(len, left_out)) == N + 1 == len(set.union(*left_out))
    for job, out in zip(jobs, left_out):
        assert not out & set(job.data.train.index.tolist())
    (run,) = ml.train_many([jobs[1]], n_jobs=1, cache=audit.cache)  # found, not trained
    logits = posthoc.predict(run.snapshot("last"), run.data, run.data.test)
    rows = found.table.index.get_indexer(run.data.test.index.numpy())
    assert found.held_out[rows] == pytest.approx(logits.double().softmax(1).numpy())


def test_loaded_again_it_is_the_same_and_nothing_is_trained(scored, monkeypatch):
    place, _, found, _ = scored
    monkeypatch.setattr(
        "memlens.training.jobs.train", lambda *_, **__: pytest.fail("trained again")
    )
    again = ml.load_audit(place / "out")
    pd.testing.assert_frame_equal(again.table, found.table)
    pd.testing.assert_frame_equal(again.calibration, found.calibration)
    calls = []
    outputs.audit_path(place / "digits", place / "out", epochs=EPOCHS, calibrate=True,
                       confirm=calls.append, log=lambda _: None)  # fmt: skip
    assert not calls


def test_changed_or_lost_images_are_told_when_loading(scored, tmp_path):
    place, *_ = scored
    with pytest.raises(FileNotFoundError, match="has no results"):
        ml.load_audit(tmp_path)
    plant(tmp_path / "digits")
    (tmp_path / "digits" / "digit 1" / "copy.png").unlink()
    with pytest.raises(ValueError, match="have changed since the audit"):
        ml.load_audit(place / "out", path=tmp_path / "digits")


class HtmlPage(HTMLParser):
    """Tags, their attributes and the text of a page; raises if tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_is_one_page_that_needs_no_network(scored):
    place, _, found, _ = scored
    page = HtmlPage((place / "out" / "report.html").read_text())
    addresses = [a.get("src") or a.get("href") or "" for _, a in page.tags]
    assert all(a == "" or a.startswith(("data:", "#")) for a in addresses)
    assert not any(tag in ("script", "iframe", "object") for tag, _ in page.tags)
    pictures = [a for tag, a in page.tags if tag == "img"]
    assert len(pictures) > 20 and all(a["alt"] for a in pictures)
    text = "".join(page.text)
    for title in report.SECTIONS.values():
        assert title in text
    assert "digit 0/broken.png" in text and found.suspects["file"].iloc[0] in text
    assert "flips among them" in text


def test_names_of_files_and_classes_cannot_break_the_page(tmp_path):
    root = tmp_path / "a <b> & c"
    rng = np.random.default_rng(0)
    for name in ("<script>alert(1)<&", 'quote "x" <img src=y>', "a$b_{$c", "猫 öl"):
        (root / name).mkdir(parents=True)
        for i in range(12):
            image = Image.fromarray(rng.integers(256, size=(8, 8), dtype=np.uint8))
            image.save(root / name / f"<i>{i}.png")
    raw = os.fsencode(root / "猫 öl") + b"/caf\xe9.png"  # as old archives leave them
    os.rename(root / "猫 öl" / "<i>0.png", raw)
    audit_data = load_audit_data(root)
    found = ml.run_audit(
        audit_data,
        config.choose_config(audit_data.dataset, epochs=2),
        cache=store.Store(tmp_path / "run"),
    )
    assert "猫 öl/caf\\xe9.png" in audit_data.files
    outputs.write_outputs(found, tmp_path)
    page = HtmlPage((tmp_path / "report.html").read_text())
    assert not any(tag == "script" for tag, _ in page.tags)
    assert not any(a.get("src") == "y" for _, a in page.tags)
    assert found.run.show(n=2).axes[0].get_title()


def test_long_work_is_not_started_unasked(tmp_path, monkeypatch):
    plant(tmp_path / "digits", FEW)
    monkeypatch.setattr(outputs, "write_report", lambda *_: None)  # which takes most of the time
    monkeypatch.setattr(outputs, "estimate_seconds", lambda *_: 20_000.0)
    questions = []
    out = outputs.audit_path(tmp_path / "digits", tmp_path / "out", log=lambda _: None,
                             confirm=lambda text: bool(questions.append(text)))  # fmt: skip
    assert out is None and "5.6 hours" in questions[0]
    assert not list((tmp_path / "out" / "run").glob("run-*"))
    command = ["audit", str(tmp_path / "digits"), "--out", str(tmp_path / "out"), "--epochs", "1"]
    assert main(command) == 2  # nobody there to answer
    assert main([*command, "--yes"]) == 0
    # What is done is done: a calibration is confirmed separately.
    assert main([*command, "--calibrate"]) == 2
    assert main(command) == 0


def test_wrong_labels_do_not_confirm_each_other_through_copies(tmp_path):
    """Each wrong label stands there three times: no net that judges one has seen another."""
    plant(tmp_path / "digits")
    wrong = sorted((tmp_path / "digits" / "digit 4").glob("*.png"))[:5]
    for path in wrong:
        for k in range(3):
            (tmp_path / "digits" / "digit 9" / f"wrong {path.stem} {k}.png").write_bytes(
                path.read_bytes()
            )
        path.unlink()
    audit = pipeline.Audit(
        load_audit_data(tmp_path / "digits"), cache=store.Store(tmp_path / "run")
    )
    masks = config.folds(audit.audit_data.dataset, audit.groups)
    for group in audit.groups:
        assert all(mask[group].all() or not mask[group].any() for mask in masks)
    assert sum(len(group) == 3 for group in audit.groups) == 5
    assert np.sum(masks, axis=0).max() == 1 and np.mean(np.sum(masks, axis=0)) > 0.99
    flipped = pipeline.Audit(audit.audit_data, cache=audit.cache, calibrate=True).flipped
    assert not any(flipped.train.is_noisy.numpy()[group].any() for group in audit.groups)


def test_an_unfinished_or_changed_call_is_told_and_not_trained(tmp_path, monkeypatch):
    plant(tmp_path / "digits", FEW)
    monkeypatch.setattr(outputs, "write_report", lambda *_: None)  # which takes most of the time
    out = tmp_path / "out"
    train = loop.train
    calls = []

    def stopped(*arguments, **options):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    monkeypatch.setattr(outputs, "estimate_seconds", lambda *_: 1.0)
    monkeypatch.setattr("memlens.training.jobs.train", stopped)
    arguments = ["audit", str(tmp_path / "digits"), "--out", str(out), "--epochs", "1"]
    assert main(arguments) == 130
    with pytest.raises(ValueError, match="was not finished"):
        ml.load_audit(out)
    monkeypatch.setattr("memlens.training.jobs.train", train)
    # The cores that are free do not change what is gone on with.
    monkeypatch.setattr(config, "cpu_count", lambda: 7)
    done = written(out)
    assert main(arguments) == 0 and done and done.items() <= written(out).items()
    moved = tmp_path / "moved"
    (tmp_path / "digits").rename(moved)
    assert len(ml.load_audit(out, path=moved).table) == FEW + 1
    record = json.loads((out / "run" / "request.json").read_text())
    record["config"]["train_config"]["device"] = "cuda:0"  # scored on another machine
    (out / "run" / "request.json").write_text(json.dumps(record))
    assert len(ml.load_audit(out, path=moved).table) == FEW + 1


def test_a_folder_that_cannot_be_written_is_told_before_the_images_are_read(tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    assert main(["audit", str(tmp_path / "none"), "--out", str(tmp_path / "taken")]) == 2
    assert "pass another --out" in capsys.readouterr().err


def written(out):
    """When each finished training was written."""
    return {p.parent.name: p.stat().st_mtime_ns for p in out.glob("run/run-*/config.json")}


def _score(root, out):
    torch.set_num_threads(1)
    outputs.audit_path(root, out, epochs=EPOCHS, log=lambda _: None)


def test_an_interrupted_call_goes_on_and_ends_as_it_would_have(tmp_path, scored, ready):
    """Killed when the first training is done; the next call finds it so."""
    place, _, found, _ = scored
    out, root = tmp_path / "out", place / "digits"
    process = ready.Process(target=_score, args=(root, out))
    process.start()
    deadline = time.monotonic() + 120
    while not list(out.glob("run/run-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.join()
    first = written(out)
    assert not (out / "scores.csv").exists()
    again = outputs.audit_path(root, out, epochs=EPOCHS, log=lambda _: None)
    assert first and first.items() <= written(out).items()  # none was done again
    pd.testing.assert_frame_equal(again.table, found.table)


def test_parquet_is_the_same_table(scored):
    pytest.importorskip("pyarrow")
    place, _, found, _ = scored
    pd.testing.assert_frame_equal(pd.read_parquet(place / "out" / "scores.parquet"), found.table,
                                  check_dtype=False)  # fmt: skip


def test_a_class_smaller_than_the_folds_is_trained_on_and_not_judged(tmp_path):
    plant(tmp_path / "digits", FEW)
    few = tmp_path / "digits" / "ghost"
    few.mkdir()
    for path in sorted((tmp_path / "digits" / "digit 3").glob("*"))[:2]:
        (few / path.name).write_bytes(path.read_bytes()[:])
        path.unlink()
    audit_data = load_audit_data(tmp_path / "digits")
    masks = config.folds(audit_data.dataset)
    ghost = audit_data.dataset.train.labels == audit_data.dataset.class_names.index("ghost")
    assert not any(mask[ghost].any() for mask in masks)
    assert sum(mask.sum() for mask in masks) == len(audit_data) - 2
    found = ml.run_audit(
        audit_data,
        config.choose_config(audit_data.dataset, epochs=2),
        cache=store.Store(tmp_path / "run"),
    )
    rows = found.table[found.table["label"] == "ghost"]
    assert (rows["predicted_label"] == "").all() and rows["p_label"].isna().all()
    page = report.page(found)
    assert HtmlPage(page) and "memorization +nan" not in page and "memorization nan" not in page
    with pytest.raises(ValueError, match="the minimum"):
        pipeline.Audit(load_audit_data(few_of_each(tmp_path / "few")), calibrate=True)


def few_of_each(root):
    """Ten classes of five images: too few for one flip in twenty."""
    digits = ml.load("digits")
    for label in range(10):
        (root / str(label)).mkdir(parents=True)
        for i in (digits.train.labels == label).nonzero()[:5, 0].tolist():
            image = Image.fromarray(digits.train.images[i, 0].numpy() * 15)
            image.save(root / str(label) / f"{i}.png")
    return root


def test_what_the_page_needs_is_packed_with_the_code():
    root = Path(ml.__file__).parent
    settings = tomllib.loads((root.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    packed = {
        path
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in root.parent.joinpath(*package.split(".")).glob(pattern)
    }
    packages = {".".join(p.parent.relative_to(root.parent).parts) for p in root.rglob("*.py")}
    assert packages == set(settings["packages"])
    others = {p for p in root.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert others == packed


def test_a_plan_fits_the_data_and_refuses_what_it_does_not_know():
    digits = ml.load("digits")
    choice = config.choose_config(digits, device="cpu")
    assert choice.train_config.stop == "weight_norm" and 30 <= choice.train_config.epochs <= 100
    assert config.choose_config(digits.subset(20), device="cpu").train_config.batch_size == 10
    with pytest.raises(ValueError, match="unknown model"):
        config.choose_config(digits, model="nothing")
    with pytest.raises(ValueError, match="unknown device 'tpu'"):
        config.choose_config(digits, device="tpu")


def test_the_batch_shrinks_until_it_fits(monkeypatch):
    digits = ml.load("digits")
    monkeypatch.setattr("memlens.training.devices.free_memory", lambda device: 12_000_000)
    assert config.choose_config(digits, device="cpu").train_config.batch_size < config.BATCH_SIZE
    monkeypatch.setattr("memlens.training.devices.free_memory", lambda device: 1_000)
    with pytest.raises(MemoryError, match="GB"):
        config.choose_config(digits, device="cpu")


def test_the_command_line_asks_for_what_it_needs(tmp_path, capsys):
    assert main(["audit", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "does not exist" in capsys.readouterr().err
    plant(tmp_path / "digits", FEW)
    (tmp_path / "known.txt").write_text("digit 1\ndigit 2\n\n")
    arguments = ["audit", str(tmp_path / "digits"), "--out", str(tmp_path / "out"),
                 "--epochs", "2", "--classes", str(tmp_path / "known.txt")]  # fmt: skip
    assert main(arguments) == 0
    assert "in 2 classes" in capsys.readouterr().out
    request = json.loads((tmp_path / "out" / "run" / "request.json").read_text())
    assert request["classes"] == ["digit 1", "digit 2"]


def test_the_bar_counts_every_training_and_takes_early_stops_at_once(capsys):
    bar = progress.Progress(10)
    row = {"epoch": 3, "train_loss": 0.5, "input_gradient": 0.1, "weight_norm": 9.0}
    bar("first", 1, 2)(row)
    bar("second", 2, 2)(row | {"epoch": 0})
    assert bar._bar.n == 11 and bar._bar.total == 20
    bar.close()
    assert bar._bar.n == 20
    assert "weight norm=9" in capsys.readouterr().err


def test_live_curves_are_shown_once_and_then_shown_anew(monkeypatch):
    shown = []

    class Handle:
        def update(self, figure):
            shown.append("anew")

    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(progress, "SHARE", float("inf"))  # no pause between two drawings
    monkeypatch.setattr(
        "IPython.display.display", lambda figure, display_id: shown.append("once") or Handle()
    )
    run = ml.train(
        "mlp", ml.load("digits").subset(100), ml.TrainConfig(epochs=3), watch=ml.LivePlot()
    )
    assert shown == ["once", "anew", "anew"] and len(run.history) == 3


def test_a_notebook_shows_live_curves_and_the_figures_after_them():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [
        "import memlens as ml\nrun = ml.train('mlp', ml.load('digits').subset(100), "
        "ml.TrainConfig(epochs=3), watch=ml.LivePlot())",
        "run.show('csl')",
        "run.plot()",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, kernel_name="python3").execute()
    shown = [[o.output_type for o in cell.outputs if "data" in o] for cell in book.cells]
    assert shown == [["display_data"], ["execute_result"], ["execute_result"]]  # each once


def test_live_curves_are_lines_of_text_where_nobody_can_see_them(capsys):
    ml.train("mlp", ml.load("digits").subset(100), ml.TrainConfig(epochs=2), watch=ml.LivePlot())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1"]
    assert "weight norm" in lines[1]


def test_watching_changes_nothing_and_what_it_raises_stops_the_training():
    data, config, rows = ml.load("digits").subset(100), ml.TrainConfig(epochs=3), []
    plain, watched = ml.train("mlp", data, config), ml.train("mlp", data, config, watch=rows.append)
    assert torch.equal(*(torch.tensor(r.scores["csg"].to_numpy()) for r in (plain, watched)))
    assert [r["epoch"] for r in rows] == [0, 1, 2]

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ml.train("mlp", data, config, watch=stop)
    with pytest.raises(ValueError, match="one training at a time"):
        ml.train_many([ml.Job("mlp", data, config)], watch=rows.append)


def test_a_run_shows_its_pictures_and_its_curves():
    run = ml.train("mlp", ml.load("digits").subset(100).with_noise(0.1), ml.TrainConfig(epochs=3))
    figure = run.show("csl", n=4)
    titles = [ax.get_title() for ax in figure.axes]
    highest, lowest = run.scores["csl"].idxmax(), run.scores["csl"].idxmin()
    assert len(titles) == 8 and titles[0].startswith(f"{highest}: ")
    assert titles[4].startswith(f"{lowest}: ")
    assert f"{run.scores['csl'].max():.3g}" in titles[0]
    with pytest.raises(ValueError, match="unknown score 'x'"):
        run.show("x")
    with pytest.raises(ValueError, match="n is 0"):
        run.show(n=0)
    lines = {ax.get_title("left"): ax for ax in run.plot().axes}
    assert set(lines) == {"loss", "mean input gradient", "weight norm"}
    drawn = lines["weight norm"].lines[0].get_ydata()
    assert np.allclose(drawn, run.history["weight_norm"])
