"""The store: whole objects or none, found by key, damaged ones made again."""

import errno
import subprocess
from pathlib import Path

import pytest

from harness import store as module
from harness.errors import StoreError, UsageError
from harness.store import Store, canonical, digest_of, folder_stamp, is_full, write_whole


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def commit(store, key, text="content", digest=None):
    folder = store.begin()
    (folder / "sub").mkdir()
    (folder / "sub" / "file.txt").write_text(text)
    return store.commit(
        folder,
        key,
        kind="toy",
        spec={"a": 1},
        inputs={"in": "x"},
        result={"n": 1},
        cost={"seconds": 2.0},
        digest=digest,
    )


def test_an_object_comes_back_as_it_was_committed(store):
    entry = commit(store, "k" * 64)
    assert store.get("k" * 64) == entry
    assert (entry.path / "sub" / "file.txt").read_text() == "content"
    assert (entry.kind, entry.result, entry.cost) == ("toy", {"n": 1}, {"seconds": 2.0})
    assert store.get("m" * 64) is None
    assert not list((store.root / "tmp").iterdir())


def test_the_digest_is_of_content_and_result_not_of_key_or_cost(store):
    assert commit(store, "a" * 64).digest == commit(store, "b" * 64).digest
    assert commit(store, "c" * 64, "other").digest != store.get("a" * 64).digest
    assert commit(store, "d" * 64, digest="given").digest == "given"


def test_the_first_writer_of_a_key_wins(store):
    first = commit(store, "k" * 64, "first")
    second = commit(store, "k" * 64, "second")
    assert second.digest == first.digest
    assert (second.path / "sub" / "file.txt").read_text() == "first"


@pytest.mark.parametrize("damage", ["truncate", "remove", "meta", "no meta"])
def test_a_damaged_object_is_put_aside_and_made_again(store, damage):
    entry = commit(store, "k" * 64)
    file, meta = entry.path / "sub" / "file.txt", entry.path / "meta.json"
    if damage == "truncate":
        file.write_text("con")
    elif damage == "remove":
        file.unlink()
    elif damage == "meta":
        meta.write_text(meta.read_text()[:40])
    else:
        meta.unlink()
    assert store.get("k" * 64) is None
    assert commit(store, "k" * 64, "again").result == {"n": 1}


def test_gc_keeps_what_is_live_and_counts_what_goes(store):
    commit(store, "a" * 64)
    commit(store, "b" * 64)
    assert [key for key, _ in store.collect(["a" * 64], dry_run=True)] == ["b" * 64]
    assert store.get("b" * 64) is not None
    gone = store.collect(["a" * 64])
    assert [key for key, _ in gone] == ["b" * 64]
    assert gone[0][1] > 0
    assert store.get("a" * 64) is not None and store.get("b" * 64) is None


def test_gc_removes_what_dead_writers_left_but_for_what_a_live_key_goes_on_from(store):
    left = store.begin()
    for key in ("a" * 64, "b" * 64):
        store.scratch(key).mkdir(parents=True)
    store.collect(["a" * 64])
    assert not left.exists()
    assert store.scratch("a" * 64).exists() and not store.scratch("b" * 64).exists()


def test_gc_waits_for_no_run_and_hurts_none(store):
    with store.in_use(), pytest.raises(UsageError, match="a run is using the store"), store.in_use(alone=True):
        pass
    with store.in_use(), store.in_use():
        pass
    with store.in_use(alone=True):
        pass


def test_a_key_is_worked_on_by_one_at_a_time(store):
    with store.working("k" * 64):
        other = subprocess.run(
            ["flock", "--nonblock", str(store.root / "locks" / ("k" * 64)), "true"], check=False, capture_output=True
        )
        assert other.returncode == 1
    with store.working("k" * 64):
        pass


def test_a_folder_is_stamped_by_its_files(tmp_path):
    (tmp_path / "weights").write_text("one")
    before = folder_stamp(tmp_path)
    assert folder_stamp(tmp_path) == before
    (tmp_path / "weights").write_text("two, and longer")
    assert folder_stamp(tmp_path) != before


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), RuntimeError("I/O error: No space left on device (os error 28)")]
)
def test_a_full_disk_is_seen_however_it_is_wrapped(error):
    try:
        try:
            raise error
        except Exception as inner:
            raise ValueError("cannot write the model") from inner
    except ValueError as outer:
        assert is_full(outer)
    assert not is_full(ValueError("something else"))


def test_run_folders_are_roots_as_long_as_they_exist(store, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    store.keep(run)
    assert store.roots() == [run]
    run.rmdir()
    assert store.roots() == []


def test_a_full_disk_says_what_to_do_and_leaves_no_object(store, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(module, "_fsync", full)
    with pytest.raises(StoreError, match="the disk is full.*fuse-bench gc"):
        commit(store, "k" * 64)
    monkeypatch.undo()
    assert store.get("k" * 64) is None
    assert commit(store, "k" * 64).result == {"n": 1}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"file.* cannot be made: a file is in the way"):
        Store(tmp_path / "file" / "store")


def test_a_read_only_place_is_named(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UsageError, match="cannot be written: Permission denied"):
        Store(tmp_path / "store")


def test_canonical_json_has_one_spelling_and_no_nan():
    assert canonical({"b": 1, "a": [1.5, "é"]}) == '{"a":[1.5,"é"],"b":1}'
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        canonical(float("nan"))


def test_writing_whole_replaces_and_leaves_nothing_else(tmp_path):
    write_whole(tmp_path / "f", "one")
    write_whole(tmp_path / "f", "two")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_text() == "two"
