"""The GPU benchmarks, without a GPU: their table, their references, their parts in miniature."""

import math

import gpu
import gpu_science
import gpu_speed
import gpu_sweep
import numpy as np
import pandas as pd
import published
import pytest
import torch
from common import interleaved
from gpu_curvature import authors_curvature
from gpu_table import NOT_RUN, Bench, Goal, OutOfTime, Table, met, tiny_images

from memlens.experiments.profiles import Profile
from memlens.models import registry
from memlens.storage import store
from memlens.tracking import signals
from memlens.training.config import TrainConfig

GOALS = [Goal("p", "a", "x", "s", "<= 2"), Goal("p", "a", "y"), Goal("p", "b", "x", "s", ">= 2")]


def table_on(path, gpu_name="G1", tiny=""):
    table = Table(path, GOALS, tiny)
    table.here |= {"gpu": gpu_name}
    return table


def read(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def rows(path, *columns):
    return read(path)[list(columns)].values.tolist()


@pytest.fixture
def bench(tmp_path):
    return Bench(table_on(tmp_path / "gpu.csv"), tmp_path / "work", 1, tiny=True)


def test_what_was_never_run_has_rows_that_say_so(tmp_path):
    table_on(path := tmp_path / "gpu.csv").save()
    assert rows(path, "case", "measure", "value", "note", "gpu", "date") == [
        ["a", "x", "", NOT_RUN, "", ""],
        ["a", "y", "", NOT_RUN, "", ""],
        ["b", "x", "", NOT_RUN, "", ""],
    ]


def test_a_number_is_written_at_once_with_its_target_and_verdict(tmp_path):
    table_on(path := tmp_path / "gpu.csv").add("p", "b", "x", 1.23456, epochs=3, note="why")
    found = read(path).set_index("case").loc["b"]
    assert found[["value", "unit", "target", "met", "epochs", "note", "gpu"]].tolist() == [
        "1.235", "s", ">= 2", "missed", "3", "why", "G1",
    ]  # fmt: skip
    assert found[["torch", "python", "date"]].ne("").all()


def test_a_number_replaces_that_of_its_gpu_and_keeps_all_others(tmp_path):
    path = tmp_path / "gpu.csv"
    table_on(path).add("p", "a", "x", 1)
    table_on(path).add("p", "a", "y", 2)
    table_on(path, "G2").add("p", "a", "x", 3)
    table_on(path).add("p", "a", "x", 4)
    assert rows(path, "case", "measure", "gpu", "value") == [
        ["a", "x", "G1", "4"], ["a", "x", "G2", "3"], ["a", "y", "G1", "2"], ["b", "x", "", ""],
    ]  # fmt: skip


def test_a_row_that_is_no_goal_any_more_is_kept(tmp_path):
    path = tmp_path / "gpu.csv"
    table_on(path).add("p", "a", "x", 1)
    Table(path, GOALS[1:]).save()
    assert rows(path, "case", "measure", "value")[-1] == ["a", "x", "1"]


def test_a_miniature_has_no_verdict_and_never_replaces_a_number(tmp_path):
    path = tmp_path / "gpu.csv"
    table_on(path).add("p", "a", "x", 1)
    table_on(path, tiny="small").add("p", "a", "x", 9)
    assert rows(path, "case", "value", "met", "note")[:2] == [
        ["a", "1", "met", ""], ["tiny: a", "9", "", "small"],
    ]  # fmt: skip


def test_a_failure_is_stated_and_costs_no_earlier_number(bench, tmp_path):
    bench.tiny = False
    bench.table.add("p", "a", "x", 1)

    def fail():
        raise RuntimeError("no memory\nat all")

    assert bench.attempt("p", "a", fail)
    assert rows(tmp_path / "gpu.csv", "measure", "value", "note") == [
        ["x", "1", ""], ["y", "", "failed: RuntimeError: no memory"], ["x", "", NOT_RUN],
    ]  # fmt: skip
    assert bench.table.failed
    assert bench.new_first("p", ["a", "b"]) == ["b", "a"]


def test_no_case_begins_after_the_minutes_are_used(bench):
    bench.until = 0.0
    assert not bench.attempt("p", "a", lambda: pytest.fail("begun"))


def test_a_kill_in_a_write_leaves_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "gpu.csv"
    table_on(path).add("p", "a", "x", 1)
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        table_on(path).add("p", "a", "x", 2)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("value", "target", "verdict"),
    [(1, "<= 1", "met"), (1.1, "<= 1", "missed"), (2, ">= 2", "met"), (math.nan, ">= 2", "missed"),
     (1, "", ""), (1, "printed 0.84", "")],
)  # fmt: skip
def test_a_value_meets_or_misses_its_target(value, target, verdict):
    assert met(value, target) == verdict


def test_the_stored_table_has_every_goal():
    kept = read(gpu.RESULTS / "gpu.csv")
    assert {goal[:3] for goal in gpu.GOALS} <= set(zip(kept["part"], kept["case"], kept["measure"]))
    assert kept.loc[kept["value"] == "", "note"].ne("").all()


def test_rounds_end_when_the_time_is_up_but_one_is_counted():
    assert len(interleaved({"a": list}, rounds=5, until=0.0)) == 1
    assert len(interleaved({"a": list}, rounds=5)) == 5


def test_the_conventional_loop_trains_what_ours_trains():
    data, config = tiny_images(90), TrainConfig(batch_size=32, augment="none", lr=0.02)
    ours = gpu_speed.Loop("small_cnn_bn", data, config, record=True)
    theirs = gpu_speed.Conventional("small_cnn_bn", data, config, workers=0)
    for loop in (ours, theirs):
        loop()
        loop()
    other = theirs.net.state_dict()
    for name, value in ours.net.state_dict().items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4, msg=name)
    start = registry.build("small_cnn_bn", data.n_classes, data.in_shape).state_dict()
    assert (start["0.weight"] - other["0.weight"]).abs().max() > 0.01  # there was a training


def test_the_conventional_loop_crops_and_flips():
    data = tiny_images(40)
    shown = gpu_speed.Pictures(data, TrainConfig(augment="crop_flip"))
    still = gpu_speed.Pictures(data, TrainConfig())
    assert torch.allclose(still[3][0], data.normalise(data.train.images[3]), atol=1e-6)
    assert any(not torch.equal(shown[i][0], still[i][0]) for i in range(9))


def test_a_conventional_loop_that_breaks_costs_no_other_number(bench, monkeypatch, tmp_path):
    def killed(_):
        raise RuntimeError("DataLoader worker is killed by signal: Bus error")

    monkeypatch.setattr(gpu_speed.Conventional, "__call__", killed)
    bench.table = Table(tmp_path / "gpu.csv", gpu_speed.GOALS, "small")
    gpu_speed.run(bench)
    found = read(tmp_path / "gpu.csv").query("case == 'tiny: resnet18, batch 128'")
    found = found.set_index("measure")
    lost = found.index.str.contains("conventional")
    assert found.loc[lost, "note"].str.contains("failed: .* Bus error").all()
    assert (found.loc[lost, "value"] == "").all()
    kept = found.drop(found.index[lost]).drop("waits for the GPU in the steps of an epoch")
    assert (kept["value"] != "").all()
    assert bench.table.failed


def test_the_authors_curvature_is_ours():
    data = tiny_images(40)
    net = registry.build("small_cnn_bn", data.n_classes, data.in_shape).double().eval()
    x, y = data.normalise(data.train.images).double(), data.train.labels
    settings = {"n_directions": 3, "step": 1e-3, "seed": 5}
    ours = signals.curvature(net, x, y, **settings).norm
    assert ours.min() > 0
    torch.testing.assert_close(authors_curvature(net, x, y, **settings), ours, rtol=1e-6, atol=1e-9)


def test_flops_of_a_net_that_can_be_counted_by_hand():
    data = tiny_images(40)
    inputs, classes = math.prod(data.in_shape), data.n_classes
    weights = inputs * 128 + 128 * 128 + 128 * classes
    # The gradient by the input of the first layer is not taken.
    assert gpu_speed.flops_per_sample("mlp", data) == 2 * (3 * weights - inputs * 128)


def test_the_first_minimum_is_that_which_lasts_as_long_as_the_patience():
    assert gpu_science.first_minimum(np.array([3.0, 2, 4, 1, 5]), patience=1) == 1
    assert gpu_science.first_minimum(np.array([3.0, 2, 4, 1, 5]), patience=2) == 3


def test_a_training_that_ran_out_of_time_ends_as_one_that_did_not(tmp_path):
    unit = gpu_science.NOISY
    whole = Bench(table_on(None), tmp_path / "a", 1, tiny=True)
    parts = Bench(table_on(None), tmp_path / "b", 1, tiny=True)
    expected = gpu_science.trained(whole, unit)
    parts.until = 0.0
    for _ in range(3):  # an epoch a call
        with pytest.raises(OutOfTime):
            gpu_science.trained(parts, unit)
    found = gpu_science.trained(parts, unit)
    for name in expected.keys() - {"history/seconds"}:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_sweep_goes_on_with_the_nets_it_has(bench, tmp_path):
    bench.table.goals = {goal[:3]: goal for goal in gpu_sweep.GOALS}
    gpu_sweep.cifar(bench)
    n = len(bench.data.train)
    kept = gpu_sweep.Answers(bench, n)
    assert len(kept) == 3
    assert kept.correct.dtype == kept.masks.dtype == np.uint8
    first = gpu_sweep.Answers(bench, n)
    first.masks, first.correct, first.seconds = kept.masks[:1], kept.correct[:1], kept.seconds[:1]
    first.add(kept.masks[1], kept.correct[1], 1.0)
    gpu_sweep.cifar(bench)
    again = gpu_sweep.Answers(bench, n)
    np.testing.assert_array_equal(again.masks, kept.masks)
    np.testing.assert_array_equal(again.correct, kept.correct)


@pytest.mark.slow
def test_every_part_runs_in_miniature_and_fills_its_goals(tmp_path, capsys):
    out, work = tmp_path / "out", tmp_path / "work"
    assert gpu.main(["all", "--tiny", "--out", str(out), "--work", str(work)]) == 0
    kept = read(out / "gpu.csv")
    tiny = kept[kept["case"].str.startswith("tiny: ")]
    assert set(tiny["part"]) == set(gpu.PARTS)
    assert tiny["value"].ne("").all()
    assert tiny["met"].eq("").all()
    assert tiny["note"].str.contains("miniature").all()
    rest = kept[~kept["case"].str.startswith("tiny: ")]
    assert rest["note"].eq(NOT_RUN).all()  # a miniature is no result
    assert len(rest) == len(gpu.GOALS)


def test_a_miniature_writes_no_table_unless_told_to(tmp_path, capsys):
    before = (gpu.RESULTS / "gpu.csv").read_bytes()
    assert gpu.main(["curvature", "--tiny", "--work", str(tmp_path)]) == 0
    assert (gpu.RESULTS / "gpu.csv").read_bytes() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_parts_are_refused(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["speed"])
    assert "--tiny" in capsys.readouterr().err


def test_what_grows_is_measured_and_forecast_in_miniature(tmp_path, monkeypatch):
    """One process each: two are tried in the tests of `ranks` and `workers`."""
    import growth

    monkeypatch.setattr(growth, "PROCESSES", (1,))
    monkeypatch.setattr(growth, "SWEEP_NETS", 4)
    assert growth.main(["--counts", "100", "200", "--parts", "sweep", "step", "--tiny", "--out",
                        str(tmp_path)]) == 0  # fmt: skip
    growth.main(["--parts", "step", "--tiny", "--out", str(tmp_path)])  # the sweep's rows stay
    table = pd.read_csv(tmp_path / "growth.csv").set_index(["part", "measure"])["value"]
    assert table["sweep", "kept for a further sample and net"].item() == pytest.approx(40, rel=0.1)
    assert table["forecast", "in-step scores, in each process"].item() == pytest.approx(5.637)
    assert table["forecast", "answers of all nets"].item() == 80
    assert len(table["step", "a sample"]) == len(table["forecast", "all trainings"]) == 3


def test_scores_beside_published_memorization_in_miniature(tmp_path, monkeypatch, house_style):
    truth = np.random.default_rng(0).random(128)
    monkeypatch.setenv("MEMLENS_JOBS", "1")  # processes take longer to start than so few nets
    for name in ("CACHE", "FIGURES"):
        monkeypatch.setenv(f"MEMLENS_{name}", str(tmp_path / name))
    monkeypatch.setattr("common.RESULTS", tmp_path)
    monkeypatch.setattr(published, "SCALE", 0.03)
    monkeypatch.setattr(Profile, "load", lambda _: tiny_images(128))
    monkeypatch.setattr(Profile, "memorization", lambda *_: pd.DataFrame({"memorization": truth}))
    assert published.main() == 0
    found = pd.read_csv(tmp_path / "published.csv", index_col=["images", "measure"])["value"]
    assert not found.index.duplicated().any()
    plain = found["as they are"]
    assert plain["epochs"] == 6
    assert plain["csl, auroc"] > 0.8  # the class of a tiny image shows: a wrong label does, too
    drawn = pd.read_csv(tmp_path / "FIGURES/cifar100/published_similarity.csv", comment="#")
    drawn = drawn.set_index(["images", "score"])
    for images, score in drawn.index:
        assert found[images, f"{score}, pearson"] == pytest.approx(
            drawn.loc[(images, score), "pearson"], abs=1e-3
        )
