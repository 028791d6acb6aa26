"""Custom loops: index of each sample, samplers, workers, AMP, compilation, processes, hooks."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign_loops import (
    EPOCHS,
    RATE,
    SIZE,
    Dicts,
    N,
    X,
    Y,
    assert_same,
    build,
    dataset,
    global_batches,
    in_order,
    plain,
    run_processes,
)  # fmt: skip
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torch.utils.data import WeightedRandomSampler as Weighted

from memlens.tracking.counting import CountingRecorder
from memlens.tracking.hooks import RecorderHooks, scale_from_logits, scale_from_loss
from memlens.tracking.indexing import with_index
from memlens.tracking.recorder import Recorder

# ---------------------------------------------------------------------------- with_index


class Named(torch.utils.data.Dataset):
    classes, fetched = ["cat", "dog"], ()

    def __len__(self):
        return 5

    def __getitem__(self, i):
        if i >= 5:
            raise IndexError(i)
        return [torch.full((1,), float(i)), i % 2]

    def __getitems__(self, positions):
        self.fetched = tuple(positions)
        return [self[i] for i in positions]


def test_an_item_begins_with_its_index():
    data = with_index(Named())
    assert len(data) == 5
    assert data[3][0] == 3 and data[3][2] == 1 and isinstance(data[3], tuple)
    assert data[-1][0] == 4
    assert [item[0] for item in data] == [0, 1, 2, 3, 4]
    assert data[torch.tensor(2)][0] == 2 and data[np.int64(2)][0] == 2


@pytest.mark.parametrize("position", [5, -6])
def test_a_position_outside_the_data_set_is_refused(position):
    class Endless(Named):
        def __getitem__(self, i):
            return [i]

    with pytest.raises(IndexError, match=rf"position {position} in a data set of 5"):
        with_index(Endless())[position]
    with pytest.raises(IndexError, match=r"in a data set of 5"):
        with_index(Endless()).__getitems__([0, position])
    assert len(list(with_index(Endless()))) == 5


def test_several_items_are_fetched_together_where_possible():
    inner = Named()
    assert [item[0] for item in with_index(inner).__getitems__([4, 0, -2])] == [4, 0, 3]
    assert inner.fetched == (4, 0, 3)
    items = with_index(TensorDataset(X, Y)).__getitems__([7, 2])
    assert [item[0] for item in items] == [7, 2]
    assert torch.equal(items[1][1], X[2])


def test_a_dict_gets_the_key_index():
    item = with_index(Dicts())[6]
    assert item["index"] == 6 and item["labels"] == int(Y[6])
    with pytest.raises(ValueError, match=r'a key "index" already: rename it'):
        with_index([{"index": 1}])[0]


def test_other_attributes_are_those_of_the_wrapped_data_set_also_when_unpickled():
    data = pickle.loads(pickle.dumps(with_index(Named())))
    assert data.classes == ["cat", "dog"] and data[1][0] == 1
    with pytest.raises(AttributeError, match="targets"):
        _ = data.targets
    assert not hasattr(data, "targets")


def test_positions_are_those_in_the_wrapped_data_set():
    assert with_index(Subset(TensorDataset(X, Y), [9, 4]))[1][0] == 1
    assert Subset(dataset(), [9, 4])[1][0] == 4


def test_data_sets_without_positions_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield 1

    with pytest.raises(TypeError, match=r"Stream has no positions: .* map-style"):
        with_index(Stream())
    with pytest.raises(TypeError, match=r"generator has no positions"):
        with_index(i for i in range(3))
    with pytest.raises(ValueError, match=r"already: wrap it once"):
        with_index(dataset())
    with pytest.raises(TypeError, match=r"an item is a Tensor; expected a tuple"):
        with_index(X)[0]


def test_workers_return_the_right_index():
    loader = DataLoader(dataset(), SIZE, shuffle=True, num_workers=2)
    seen = []
    for index, x, y in loader:
        assert torch.equal(x, X[index]) and torch.equal(y, Y[index])
        seen += index.tolist()
    assert sorted(seen) == list(range(N))


# ---------------------------------------------------------------------------- plain PyTorch


class Loop:
    """A usual training loop of one network; the ``step`` varies."""

    def __init__(self, kind=Recorder, **options):
        self.net = build()
        self.run, self.recorder = self.net, kind(N, **options)
        self.optimizer = torch.optim.SGD(self.net.parameters(), RATE)

    def __call__(self, loader, step):
        for _ in range(EPOCHS):
            for batch in loader:
                step(*batch)
            self.recorder.end_epoch()
        return self.recorder

    def step(self, index, x, y):
        x = self.recorder.watch(x)
        logits = self.run(x)
        self.optimizer.zero_grad()
        F.cross_entropy(logits, y).backward()
        self.optimizer.step()
        self.recorder.update(index, x, logits, y)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_with_workers_gives_the_same_scores(workers):
    loop = Loop()
    loader = DataLoader(dataset(), SIZE, num_workers=workers)
    assert_same(loop(loader, loop.step), plain(kind=Recorder)[0])


def test_weighted_sampling_counts_its_visits():
    weights = torch.arange(N) % 5
    drawn = []

    def note(batch):
        index, x, y = torch.utils.data.default_collate(batch)
        drawn.append(index)
        return index, x, y

    sampler = Weighted(weights, N, generator=torch.Generator().manual_seed(0))
    loop = Loop(CountingRecorder)
    recorder = loop(DataLoader(dataset(), SIZE, sampler=sampler, collate_fn=note), loop.step)
    counts = torch.stack([torch.bincount(e, minlength=N) for e in torch.cat(drawn).split(N)])
    assert recorder.visits.tolist() == counts.tolist()
    assert counts.max() > 1 and not recorder.visits[:, weights == 0].any()
    batches = [torch.cat(drawn)[:N].split(SIZE)]
    first = plain(batches[0], epochs=1)[0]
    np.testing.assert_allclose(recorder.trace.grad_l2[0], first.trace.grad_l2[0], rtol=1e-5)


def test_drop_last_leaves_a_sample_out():
    loop = Loop(CountingRecorder)
    recorder = loop(DataLoader(dataset(), SIZE, drop_last=True), loop.step)
    assert recorder.visits.sum(1).tolist() == [32] * EPOCHS
    assert_same(recorder, plain(in_order()[:-1])[0])


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_a_grad_scaler_does_not_change_the_scores(low):
    loop, scaler = Loop(), torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    used = set()

    def step(index, x, y):
        x = loop.recorder.watch(x)
        with torch.autocast("cpu", low):
            logits = loop.net(x)
            loss = F.cross_entropy(logits.float(), y)
        loop.optimizer.zero_grad()
        scaler.scale(loss).backward()
        scale = scaler.scale(torch.ones(()))
        used.add(float(scale))
        scaler.step(loop.optimizer)
        scaler.update()
        loop.recorder.update(index, x, logits, y, loss_scale=scale)

    recorder = loop(DataLoader(dataset(), SIZE), step)
    assert len(used) > 2  # it grew on the way
    # without a scaler small gradients are rounded once more; a power of two changes nothing else
    assert_same(recorder, plain(low=low)[0], rtol=torch.finfo(low).eps)


def test_an_overflow_of_a_scaler_leaves_a_gap():
    loop, scaler = Loop(), torch.amp.GradScaler("cpu", init_scale=2.0**15)
    steps = iter(range(1000))

    def step(index, x, y):
        x = loop.recorder.watch(x)
        logits = loop.net(x)
        loss = F.cross_entropy(logits, y)
        if next(steps) == 2:
            loss = loss * 1e38  # times the scale this is beyond float32
        loop.optimizer.zero_grad()
        scaler.scale(loss).backward()
        scale = scaler.scale(torch.ones(()))
        scaler.step(loop.optimizer)
        scaler.update()
        loop.recorder.update(index, x, logits, y, loss_scale=scale)

    recorder = loop(DataLoader(dataset(), SIZE), step)
    gaps = np.isnan(recorder.trace.grad_l2)
    assert gaps[0, 16:24].all() and gaps.sum() == 8
    assert not np.isnan(recorder.trace.loss).any()
    assert recorder.trace.filled().grad_l2[0, 20] == recorder.trace.grad_l2[1, 20]


def test_a_compiled_net_gives_the_same_scores():
    loop = Loop()
    loop.run = torch.compile(loop.net, backend="aot_eager")
    assert_same(loop(DataLoader(dataset(), SIZE), loop.step), plain()[0])


@pytest.mark.slow
def test_two_processes_record_what_one_does(tmp_path):
    gathered, results = run_processes("ddp", tmp_path)
    expected, _ = plain(global_batches())
    assert expected.visits[0].tolist() == [2] + [1] * (N - 1)  # the sampler pads with sample 0
    for recorder, result in zip(gathered, results, strict=True):
        assert_same(recorder, expected)
        assert result["share"] == [(N + 1) // 2] * EPOCHS
    assert str(results[0]["values"]) == str(results[1]["values"])  # both stop at one epoch
    means = np.average(expected.trace.grad_l2, axis=1, weights=expected.visits[0])
    # not equal: the trace averages the two visits of sample 0 as squares, 1 of 38 visits
    assert results[0]["values"][0] == pytest.approx(means, rel=2e-4)
    assert len(results[0]["values"][1]) == EPOCHS
    predicted = expected.trace.predicted
    changes = [np.nan, *(predicted[1:] != predicted[:-1]).sum(1)]
    assert results[0]["values"][2] == pytest.approx(changes, nan_ok=True) and max(changes[1:]) > 0


# ---------------------------------------------------------------------------- hooks


def hooked_loop(net, recorder, step, epochs=EPOCHS, **how):
    optimizer = torch.optim.SGD(net.parameters(), RATE)
    with RecorderHooks(net, recorder, **how) as hooks:
        for _ in range(epochs):
            for index in in_order():
                optimizer.zero_grad()
                step(net, index, hooks)
                optimizer.step()
            hooks.end_epoch()
    return recorder


def by_position(net, index, hooks):
    F.cross_entropy(net(X[index]), Y[index]).backward()
    hooks.update(index, Y[index])


@pytest.mark.parametrize("factor", [1.0, 0.25, 4096.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_scale_of_the_loss_is_measured(factor, reduction):
    def step(net, index, hooks):
        loss = F.cross_entropy(net(X[index]), Y[index], reduction=reduction)
        if reduction == "sum":
            loss = loss / len(index)
        (loss * factor).backward()
        for weight in net.parameters():
            weight.grad /= factor
        hooks.update(index, Y[index])

    assert_same(hooked_loop(build(), Recorder(N), step), plain()[0])


@pytest.mark.parametrize("given", [None, 1.0])
def test_a_scale_can_be_passed(given):
    assert_same(hooked_loop(build(), Recorder(N), by_position, loss_scale=given), plain()[0])


def test_the_scale_is_relative_to_the_recorders_reduction():
    recorder = hooked_loop(build(), Recorder(N, reduction="sum"), by_position)
    assert_same(recorder, plain()[0])


def test_only_train_mode_is_recorded_and_the_hooks_are_removed():
    net, recorder = build(), Recorder(N)
    hooks = RecorderHooks(net, recorder)
    net.eval()
    net(X)
    net.train()
    with torch.no_grad():
        net(X)
    with pytest.raises(ValueError, match=r"has not run in train mode since the last update"):
        hooks.update(torch.arange(N), Y)
    assert net(X).grad_fn is not None
    hooks.remove()
    net(X), net(X)
    assert not net._forward_hooks and not net._forward_pre_hooks


class ByName(nn.Module):
    """A network with keyword arguments; others are an error."""

    def __init__(self, compiled=None):
        super().__init__()
        self.net = build()

    def forward(self, mask=None, pixel_values=None, labels=None):
        logits = self.net(pixel_values)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def by_keyword(net, index, hooks):
    out = net(mask=torch.ones(1), pixel_values=X[index], labels=Y[index], index=index)
    out["loss"].backward()
    hooks.update()


def test_keywords_are_recorded_and_the_index_is_removed():
    recorder = hooked_loop(ByName(), Recorder(N), by_keyword, input="pixel_values")
    assert_same(recorder, plain()[0])
    net = ByName().eval()
    with RecorderHooks(net, Recorder(N)):
        net(pixel_values=X, labels=Y, index=torch.arange(N))


@pytest.mark.parametrize("how", ["around", "within", "in_place"])
@pytest.mark.slow
def test_hooks_work_on_compiled_nets(how):
    torch.compiler.reset()
    net = build()
    if how == "around":  # hooks on what torch.compile returns
        recorder = hooked_loop(torch.compile(net, backend="aot_eager"), Recorder(N), by_position)
    elif how == "in_place":
        net.compile(backend="aot_eager")
        recorder = hooked_loop(net, Recorder(N), by_position)
    else:  # hooks on the net, which the loop calls through the compiled one
        compiled = torch.compile(net, backend="aot_eager")

        def step(_, index, hooks):
            F.cross_entropy(compiled(X[index]), Y[index]).backward()
            hooks.update(index, Y[index])

        recorder = hooked_loop(net, Recorder(N), step)
    assert_same(recorder, plain()[0])


def smoothed(logits, y):
    return F.cross_entropy(logits, y, label_smoothing=0.2)


def weighted(logits, y):
    return F.cross_entropy(logits, y, weight=torch.tensor([1.0, 5.0, 1.0, 0.2]))


def other_labels(logits, y):
    return F.cross_entropy(logits, y.roll(1))


@pytest.mark.parametrize("loss", [smoothed, weighted, other_labels])
def test_another_loss_is_refused(loss):
    def step(net, index, hooks):
        loss(net(X[index]), Y[index]).backward()
        hooks.update(index, Y[index])

    with pytest.raises(ValueError, match=r"differs by \d+% from that of the cross-entropy"):
        hooked_loop(build(), Recorder(N), step)
    assert hooked_loop(build(), Recorder(N), step, loss_scale=1.0).n_epochs == EPOCHS


def test_layers_before_the_hooked_network_are_trained():
    stem, net = nn.Conv2d(1, 1, 1), build()
    with (
        RecorderHooks(net, Recorder(N)),
        pytest.raises(ValueError, match=r"on the module that receives"),
    ):
        net(stem(X))
    whole = nn.Sequential(stem, net)
    with RecorderHooks(whole, Recorder(N)) as hooks:
        by_position(whole, torch.arange(N), hooks)
    assert stem.weight.grad.any()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_bfloat16_is_the_cross_entropy_however_well_it_is_fitted(rate):
    net, recorder = build().bfloat16(), Recorder(N)
    optimizer = torch.optim.SGD(net.parameters(), rate)
    with RecorderHooks(net, recorder) as hooks:
        for _ in range(30):
            for index in in_order():
                optimizer.zero_grad()
                F.cross_entropy(net(X[index].bfloat16()), Y[index]).backward()
                hooks.update(index, Y[index])
                optimizer.step()
            hooks.end_epoch()
    assert recorder.n_epochs == 30


@pytest.mark.parametrize("loss", [smoothed, weighted, other_labels])
def test_another_loss_is_refused_in_bfloat16(loss):
    def step(net, index, hooks):
        loss(net(X[index].bfloat16()).float(), Y[index]).backward()
        hooks.update(index, Y[index])

    with pytest.raises(ValueError, match=r"differs by \d+% from that of the cross-entropy"):
        hooked_loop(build().bfloat16(), Recorder(N), step, epochs=12)


def test_rounding_in_a_fitted_network_is_not_refused():
    logits = torch.tensor([[14.0, 0.0], [14.0, 0.0]], requires_grad=True)
    y, net, recorder = torch.tensor([0, 0]), nn.Identity(), Recorder(2)
    with RecorderHooks(net, recorder) as hooks:
        out = net(logits.detach())
        (error,) = torch.autograd.grad(F.cross_entropy(out, y), out, retain_graph=True)
        out.backward(1.02 * error + torch.tensor([[1e-7, 0.0], [0.0, 0.0]]))  # as compilers round
        hooks.update(torch.arange(2), y)
        hooks.end_epoch()


def test_new_hooks_replace_older_ones():
    net = build()
    RecorderHooks(net, Recorder(N))  # of a training that was interrupted
    net(X)
    with RecorderHooks(net, Recorder(N)) as hooks:
        by_position(net, torch.arange(N), hooks)
        hooks.end_epoch()
    assert not net._forward_hooks and not net._forward_pre_hooks


def test_a_fully_fitted_network_is_recorded():
    net, recorder = nn.Linear(2, 2), Recorder(1)
    with torch.no_grad():
        net.weight.copy_(1000 * torch.eye(2))
    with RecorderHooks(net, recorder) as hooks:
        F.cross_entropy(net(torch.tensor([[1.0, 0.0]])), torch.tensor([0])).backward()
        hooks.update(torch.tensor([0]), torch.tensor([0]))
        hooks.end_epoch()
    assert recorder.trace.grad_l2.tolist() == [[0.0]]


def test_an_overflow_under_hooks_is_a_gap():
    steps = iter(range(100))

    def step(net, index, hooks):
        factor = 3e38 if next(steps) == 6 else 1.0
        (F.cross_entropy(net(X[index]), Y[index]) * factor * factor).backward()
        hooks.update(index, Y[index])
        for weight in net.parameters():
            weight.grad.nan_to_num_(0.0, 0.0, 0.0)  # as a scaler skips the step

    recorder = hooked_loop(build(), Recorder(N), step)
    gaps = np.isnan(recorder.trace.grad_l2)
    assert gaps[1, 8:16].all() and gaps.sum() == 8
    assert not np.isnan(recorder.trace.loss).any()


def test_missing_tensors_are_reported():
    net = ByName()
    hooks = RecorderHooks(net, Recorder(N))
    net(pixel_values=X, labels=Y)["loss"].backward()
    with pytest.raises(ValueError, match=r"no index: wrap the training set with ml.with_index"):
        hooks.update()
    with pytest.raises(ValueError, match=r"ran twice in one step"):
        net(pixel_values=X, labels=Y)
    hooks.reset()
    net(pixel_values=X, labels=Y, index=torch.arange(N))
    with pytest.raises(ValueError, match=r"no gradient at the logits"):
        hooks.update()
    hooks.remove()
    flat = nn.Conv2d(1, 4, 3)
    with RecorderHooks(flat, Recorder(N)), pytest.raises(ValueError, match=r"expected logits"):
        flat(X)


# ---------------------------------------------------------------------------- scale of a loss


@pytest.mark.parametrize("times", [1.0, 1 / 3, 2.0**14])
def test_the_scale_is_measured_from_the_logits(times):
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(5), requires_grad=True)
    y = torch.arange(9) % 4
    (gradient,) = torch.autograd.grad(times * F.cross_entropy(logits, y), logits)
    scale, error, size = scale_from_logits(logits.detach(), y, gradient)
    assert float(scale) == pytest.approx(times, rel=1e-5)
    assert error < 1e-10 * size


@pytest.mark.parametrize(("kind", "times"), [("mean", 1), ("sum", 9), ("items", 9 / 25)])
def test_the_scale_is_measured_from_the_loss(kind, times):
    logits, y = torch.randn(9, 4, generator=torch.Generator().manual_seed(5)), torch.arange(9) % 4
    loss = times * F.cross_entropy(logits, y)
    for items in (25, torch.tensor(25)):
        scale, error, size = scale_from_loss(logits, y, loss, items)
        assert float(scale) == pytest.approx(times) and error < 1e-10 * size
    _, error, size = scale_from_loss(logits, y, 1.3 * loss, 25)
    assert error > 0.01 * size


def test_the_scale_is_measured_from_the_loss_if_the_logits_have_no_gradient():
    class Copies(ByName):
        def forward(self, **inputs):
            out = super().forward(**inputs)
            return {**out, "logits": out["logits"].clone()}  # as mixed precision converts them

    def step(net, index, hooks):
        loss = net(pixel_values=X[index], labels=Y[index], index=index)["loss"]
        (loss * 1024).backward()
        for weight in net.parameters():
            weight.grad /= 1024
        hooks.update()

    assert_same(hooked_loop(Copies(), Recorder(N), step), plain()[0])
    assert_same(hooked_loop(Copies(), Recorder(N, reduction="sum"), step), plain()[0])
