"""The cache: atomic writes, keys, damaged artifacts."""

import errno
import json
import os
import shutil
import signal
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from memlens.storage import store
from memlens.storage.store import Artifact, Store

ARTIFACT = Artifact({"x": np.arange(6.0).reshape(2, 3)}, {"epochs": 3})


@pytest.fixture
def cache(tmp_path):
    return Store(tmp_path)


def test_an_artifact_is_read_as_it_was_written(cache):
    cache.put("run-1", ARTIFACT)
    found = cache.get("run-1")
    assert np.array_equal(found.arrays["x"], ARTIFACT.arrays["x"])
    assert found.meta == ARTIFACT.meta
    assert cache.get("run-2") is None


def test_an_existing_artifact_is_kept(cache):
    cache.put("run-1", ARTIFACT)
    cache.put("run-1", ARTIFACT)
    assert [p.name for p in cache.folder.iterdir()] == ["run-1"]


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.98])
def test_a_flipped_byte_is_detected_and_set_aside(cache, where):
    cache.put("run-1", ARTIFACT)
    path = cache.folder / "run-1" / "arrays.npz"
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"run-1 is damaged .*renamed to \.damaged-run-1"):
        assert cache.get("run-1") is None
    assert (cache.folder / ".damaged-run-1").is_dir()
    cache.put("run-1", ARTIFACT)
    assert cache.get("run-1") is not None


@pytest.mark.parametrize("name", ["arrays.npz", "config.json"])
def test_a_truncated_or_missing_file_is_detected(cache, name):
    for harm in (lambda p: p.write_bytes(p.read_bytes()[:-7]), lambda p: p.unlink()):
        cache.put("run-1", ARTIFACT)
        harm(cache.folder / "run-1" / name)
        with pytest.warns(UserWarning, match="damaged"):
            assert cache.get("run-1") is None


@pytest.mark.parametrize("name", ["arrays.npz", "config.json", "SHA256SUMS"])
def test_any_changed_byte_of_any_file_is_detected(cache, name):
    cache.put("run-1", ARTIFACT)
    path = cache.folder / "run-1" / name
    whole = path.read_bytes()
    for at in range(0, len(whole), 5):
        changed = bytearray(whole)
        changed[at] ^= 32  # changes the case of a letter
        path.write_bytes(changed)
        with pytest.raises((ValueError, KeyError, TypeError)):
            store.verified(path.parent)
    path.write_bytes(whole)
    assert store.verified(path.parent)["meta"] == ARTIFACT.meta


def test_a_renamed_artifact_is_detected(cache):
    cache.put("run-1", ARTIFACT)
    os.replace(cache.folder / "run-1", cache.folder / "run-2")
    with pytest.warns(UserWarning, match="run-2 is damaged .*it is the artifact run-1"):
        assert cache.get("run-2") is None


def test_a_file_in_place_of_an_artifact_is_set_aside(cache):
    for read in (True, False):
        (cache.folder / "run-1").write_text("foreign")
        with pytest.warns(UserWarning, match="run-1 is damaged"):
            if read:
                assert cache.get("run-1") is None
            cache.put("run-1", ARTIFACT)
        assert cache.get("run-1").meta == ARTIFACT.meta
        cache.remove("run-1")


@pytest.mark.parametrize("config", ["[]", "3", "{}", '{"sha256": 1}', "[" * 99_999, "\0"])
def test_a_foreign_config_is_damage(cache, config):
    cache.put("run-1", ARTIFACT)
    (cache.folder / "run-1" / "config.json").write_text(config)
    with pytest.warns(UserWarning, match="damaged"):
        assert cache.get("run-1") is None


def test_too_many_open_files_is_not_damage(cache, monkeypatch):
    cache.put("run-1", ARTIFACT)

    def refuse(_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(store, "verified", refuse)
    with pytest.raises(OSError, match="Too many"):
        cache.get("run-1")
    assert "run-1" in cache


def test_the_first_of_two_writers_wins(cache, monkeypatch):
    """The other process finishes between the check and the rename."""
    real = os.replace

    def late(source, target):
        if target == cache.folder / "run-1" and not target.exists():
            monkeypatch.setattr(os, "replace", real)
            cache.put("run-1", ARTIFACT)
        real(source, target)

    monkeypatch.setattr(os, "replace", late)
    cache.put("run-1", Artifact({"x": np.zeros(3)}, {}))
    assert cache.get("run-1").meta == ARTIFACT.meta
    assert [p.name for p in cache.folder.iterdir()] == ["run-1"]


def test_a_killed_removal_leaves_no_incomplete_artifact(cache, monkeypatch):
    cache.put("run-1", ARTIFACT)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before
    cache.remove("run-1")
    assert "run-1" not in cache


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux names open files so")
def test_names_are_flushed_to_the_disk(cache, monkeypatch):
    """Each new name is followed by an fsync of the folder that holds it, each file by its own."""
    done, synced = [], []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(b.parent), real(a, b)))
    monkeypatch.setattr(os, "fsync", lambda n: synced.append(os.readlink(f"/proc/self/fd/{n}")))
    monkeypatch.setattr(store.files, "flush_folder", lambda f: synced.append(str(f)))
    cache.put("run-1", ARTIFACT)
    assert [str(folder) for folder in done if str(folder) not in synced] == []
    assert {os.path.basename(name).split(".")[0] for name in synced} >= {"arrays"}
    assert synced[-1] == str(cache.folder)  # last of all


def test_no_pickle_is_ever_loaded(cache):
    cache.put("run-1", Artifact({"x": np.array([{"code": "runs"}], dtype=object)}, {}))
    with pytest.warns(UserWarning, match="damaged"):
        assert cache.get("run-1") is None


def test_clear_counts_artifacts_and_removes_leftovers(cache):
    cache.put("run-1", ARTIFACT)
    (cache.folder / ".run-2.77.part").mkdir()
    assert cache.clear() == 1
    assert not list(cache.folder.iterdir())
    assert Store(cache.folder / "nowhere").clear() == 0


def test_an_unwritable_cache_is_reported_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="MEMLENS_CACHE"):
        Store(tmp_path / "file").put("run-1", ARTIFACT)


def _write_forever(folder):
    cache = Store(folder)
    big = Artifact({"x": np.zeros(200_000)}, {})
    while True:
        cache.put(f"run-{time.monotonic_ns()}", big)


@pytest.mark.slow
def test_a_kill_leaves_complete_artifacts_only(tmp_path, ready):
    for attempt in range(5):
        writer = ready.Process(target=_write_forever, args=(tmp_path,))
        writer.start()
        deadline = time.monotonic() + 60
        while not any(tmp_path.glob("run-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.013 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        artifacts = list(tmp_path.glob("run-*"))
        assert artifacts
        assert all(Store(tmp_path).get(p.name) is not None for p in artifacts)
        Store(tmp_path).clear()


def test_write_atomic_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    target = tmp_path / "a.csv"
    store.write_atomic(target, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        store.write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


@dataclass(frozen=True)
class AuditConfig:
    lr: float = 0.1
    steps: tuple = (1, 2)


def test_different_values_have_different_fingerprints():
    base = [AuditConfig(), torch.arange(3), {"a": 1, "b": None}, "x"]
    others = [
        [AuditConfig(lr=0.2), *base[1:]],
        [base[0], torch.tensor([0, 1, 3]), *base[2:]],
        [base[0], torch.arange(3.0), *base[2:]],
        [base[0], torch.arange(3)[None], *base[2:]],
        [*base[:2], {"a": 2, "b": None}, "x"],
    ]
    keys = {store.fingerprint(v) for v in [base, *others]}
    assert len(keys) == 6
    assert store.fingerprint(base) == store.fingerprint([AuditConfig(), torch.arange(3), *base[2:]])
    assert store.fingerprint({"a": 1, "b": 2}) == store.fingerprint({"b": 2, "a": 1})
    with pytest.raises(TypeError, match="cannot make a cache key from function"):
        store.fingerprint(lambda: 0)


def test_code_version_ignores_comments(monkeypatch, tmp_path):
    monkeypatch.setattr(store, "PACKAGE", tmp_path)
    versions = []
    for text in ("x = 1\n", "x = 1  # one\n", "x = 2\n"):
        (tmp_path / "module.py").write_text(text)
        versions.append(store.code_version())
    assert versions[0] == versions[1] != versions[2]


def test_config_is_readable_by_a_person(cache):
    cache.put("run-1", ARTIFACT)
    config = json.loads((cache.folder / "run-1" / "config.json").read_text())
    assert config["meta"] == {"epochs": 3}
    assert config["made_by"]["torch"] == torch.__version__.partition("+")[0]
    assert config["made_by"]["numpy"] == np.__version__
