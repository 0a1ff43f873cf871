"""Files that survive a power failure, or leave what was there."""

import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype

from distinf.store import destination


@pytest.fixture
def steps(monkeypatch):
    """What the file system was asked to do, in order; a sync by the path of what is synced."""
    done = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor):
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def note_replace(source, target):
        done.append(("replace", Path(target)))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    return done


def test_a_new_file_and_all_its_new_folders_are_synced(tmp_path, steps):
    path = tmp_path / "c" / "0" / "5"
    destination.write_durably(path, b"values")
    assert path.read_bytes() == b"values"
    synced = [what for kind, what in steps if kind == "sync"]
    assert synced == [path, path.parent, tmp_path / "c", tmp_path]


def test_what_is_replaced_is_there_until_the_new_is_on_disk(tmp_path, steps):
    path = tmp_path / "chunk"
    path.write_bytes(b"old")
    destination.write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert [kind for kind, _ in steps] == ["sync", "replace", "sync"]
    assert [what for kind, what in steps if kind == "sync"][1] == tmp_path


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "chunk"
    path.write_bytes(b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        destination.write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["chunk"]


def test_zarr_writes_no_chunk_that_is_not_synced(tmp_path, steps):
    array = zarr.create_array(
        destination.DurableStore(tmp_path / "x.zarr"), shape=(4,), chunks=(2,), dtype="float32"
    )
    array[:] = np.arange(4.0)
    synced = [what.name for kind, what in steps if kind == "sync" and what.is_file()]
    assert sorted(synced) == ["0", "1", "zarr.json"]


def test_neither_does_it_without_asyncio(tmp_path, steps):
    value = default_buffer_prototype().buffer.from_bytes(b"values")
    destination.DurableStore(tmp_path).set_sync("c/0", value)
    assert (tmp_path / "c" / "0").read_bytes() == b"values"
    assert ("sync", tmp_path / "c" / "0") in steps
