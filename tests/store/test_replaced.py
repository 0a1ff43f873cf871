"""Only what distinf has made is ever replaced, and all of it."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import s3fs
import xarray as xr

from distinf.errors import StoreError
from distinf.store import check_output
from distinf.store.contents import CONTENTS, CREATING
from distinf.store.destination import Folder
from tests import s3_server
from tests.store.test_forecast_store import DIAGNOSTICS, curvilinear, grid, look, open_store, result


@pytest.fixture(scope="module")
def bucket():
    with s3_server.s3("replaced") as url:
        yield url


def files():
    return s3fs.S3FileSystem(use_listings_cache=False)


class InFolder:
    """A place for a store, and other files in it."""

    def __init__(self, path):
        self.path = path

    def put(self, name, data=b"mine"):
        file = Path(self.path, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def remove(self, name):
        file = Path(self.path, name)
        file.unlink()
        for above in file.relative_to(self.path).parents:
            with contextlib.suppress(OSError):  # unless something else is there
                Path(self.path, above).rmdir()

    def all(self):
        below = Path(self.path)
        found = {str(p.relative_to(below)): p.read_bytes() for p in below.rglob("*") if p.is_file()}
        return {k: v for k, v in found.items() if not k.startswith(".distinf.lock")}


class InBucket(InFolder):
    def put(self, name, data=b"mine"):
        files().pipe_file(f"{self.path}/{name}", data)

    def remove(self, name):
        files().rm_file(f"{self.path}/{name}")

    def all(self):
        above = f"{self.path}/".removeprefix("s3://")
        found = {name.removeprefix(above): files().cat_file(name) for name in files().find(above)}
        return {k: v for k, v in found.items() if not k.startswith(".distinf.lock")}


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def place(request, tmp_path, bucket):
    if request.param == "folder":
        return InFolder(tmp_path / "f.zarr")
    return InBucket(f"{bucket}/{abs(hash(request.node.name))}/f.zarr")


def begun(place, **kwargs):
    with open_store(place.path, **kwargs) as store:
        store.write("rain", result(DIAGNOSTICS["rain"], 0, 1))


ZARR = {
    "group of others": {"node_type": "group", "zarr_format": 3, "attributes": {}},
    "array": {"node_type": "array", "zarr_format": 3, "attributes": {"config": "{}"}},
    "group with a config": {"node_type": "group", "attributes": {"config": "{}", "history": "me"}},
    "list": [],
}


@pytest.mark.parametrize("mode", ["overwrite", "resume"])
@pytest.mark.parametrize("what", [*ZARR, "no JSON", "a file"])
def test_what_distinf_has_not_made_is_never_touched(place, mode, what):
    if what == "a file":
        place.put("notes.txt")
    else:
        place.put("zarr.json", json.dumps(ZARR[what]).encode() if what in ZARR else b"{")
    before = place.all()
    with pytest.raises(StoreError, match=f"was not made by distinf, so output.mode={mode} does"):
        open_store(place.path, mode)
    assert place.all() == before


OTHERS = ["notes.txt", "mine/zarr.json", "tp/notes.txt", "mean/c/0/0", "f.zarr/zarr.json", "c/0"]


@pytest.mark.parametrize("older", [False, True], ids=["", "older"])
def test_files_of_others_in_a_store_are_never_removed(place, older):
    begun(place)
    if older:
        place.remove(CONTENTS)
    for other in OTHERS:
        place.put(other)
        before = place.all()
        for opened in (open_store, check_output):
            with pytest.raises(StoreError, match=r"which distinf did not write") as caught:
                opened(place.path, "overwrite")
            assert f"f.zarr holds {other.split('/')[0]}" in str(caught.value)
            assert "\n" not in str(caught.value)
        assert place.all() == before
        place.remove(other)
    place.put(OTHERS[0])
    open_store(place.path, "resume").close()  # it takes nothing away
    place.remove(OTHERS[0])
    open_store(place.path, "overwrite").close()


def test_an_array_that_a_user_computed_into_a_store_is_never_removed(tmp_path):
    place = InFolder(tmp_path / "f.zarr")
    begun(place)
    mean = look(place.path)[["tp"]].mean("time", keep_attrs=True).rename(tp="tp_mean")
    with xr.set_options(keep_attrs=True):
        mean.to_zarr(place.path, mode="a", zarr_format=3)
    with pytest.raises(StoreError, match=r"holds tp_mean, which"):
        open_store(place.path, "overwrite")
    assert "tp_mean" in look(place.path)


@pytest.mark.parametrize("grids", [DIAGNOSTICS, {"rain": curvilinear("tp"), "wind": grid("gust")}])
@pytest.mark.parametrize("shards", [None, 2])
def test_an_older_store_is_replaced(tmp_path, grids, shards):
    place = InFolder(tmp_path / "f.zarr")
    open_store(place.path, diagnostics=grids).close()
    place.remove(CONTENTS)
    with open_store(place.path, "overwrite") as store:
        assert store.marks.counts == (0, 12)


@pytest.mark.parametrize("mode", ["overwrite", "resume"])
def test_files_of_others_in_what_was_being_created_are_never_removed(place, mode):
    begun(place)
    place.put(CREATING, b"")
    place.put("thesis/ch1.tex")
    before = place.all()
    with pytest.raises(StoreError, match=r"holds thesis/ch1\.tex, which distinf did not write"):
        check_output(place.path, mode)
    with pytest.raises(StoreError, match=r"holds thesis/ch1\.tex, which distinf did not write"):
        open_store(place.path, mode)
    assert place.all() == before


@pytest.mark.slow
def test_a_run_killed_while_it_replaces_a_store_can_be_run_again(tmp_path, monkeypatch):
    remove = Folder.remove
    for dies_at in range(14):
        place = InFolder(tmp_path / f"{dies_at}.zarr")
        begun(place)
        count = iter(range(dies_at))

        def removed(self, name, count=count):
            if next(count, None) is None:
                raise KeyboardInterrupt
            remove(self, name)

        with monkeypatch.context() as patch:
            patch.setattr(Folder, "remove", removed)
            try:
                open_store(place.path, "overwrite").close()
            except KeyboardInterrupt:
                assert Path(place.path, CREATING).exists()
        with open_store(place.path, "resume") as store:
            assert store.marks.counts[0] == 0
    assert not Path(place.path, CREATING).exists()


@pytest.mark.parametrize("left", ["folder", "part"])
def test_what_a_killed_creation_leaves_is_replaced(tmp_path, left):
    place = InFolder(tmp_path / "f.zarr")
    place.put(CREATING, b"")
    Path(place.path, "tp").mkdir()
    if left == "part":
        place.put(f"tp/zarr.json.{'0' * 32}.partial")
        place.put(f"zarr.json.{'0' * 32}.partial")
    begun(place, mode="resume")
    assert look(place.path)["rain_complete"].sum() == 1


def test_a_link_in_a_store_is_removed_and_not_what_it_leads_to(tmp_path):
    place = InFolder(tmp_path / "f.zarr")
    begun(place)
    Path(place.path, "tp").rename(tmp_path / "large_disk")
    Path(place.path, "tp").symlink_to(tmp_path / "large_disk")
    open_store(place.path, "overwrite").close()
    assert (tmp_path / "large_disk" / "zarr.json").exists()
    assert not Path(place.path, "tp").is_symlink()


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
def test_a_link_that_leads_nowhere_is_left(tmp_path, mode):
    path = tmp_path / "f.zarr"
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(StoreError, match=r"exists already|was not made by distinf"):
        open_store(path, mode)
    assert path.is_symlink()


def test_a_store_is_whole_on_disk_once_it_is_created(tmp_path, monkeypatch):
    """Else a power failure makes the next run begin anew, though steps were complete."""
    synced = []
    fsync = os.fsync

    def note(descriptor):
        where = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((where, (tmp_path / "f.zarr" / CREATING).exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    open_store(tmp_path / "f.zarr").close()
    assert synced[-1] == (str(tmp_path / "f.zarr"), False)


def test_a_store_that_another_run_created_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    place = InFolder(tmp_path / "f.zarr")
    hold = Folder.hold

    def late(self):
        monkeypatch.setattr(Folder, "hold", hold)
        begun(place)
        hold(self)

    monkeypatch.setattr(Folder, "hold", late)
    with pytest.raises(StoreError, match="exists already"):
        open_store(place.path)
    assert look(place.path)["rain_complete"].sum() == 1


def test_a_child_that_is_called_as_its_parent_is_seen(bucket):
    place = InBucket(f"{bucket}/nested/f.zarr")
    place.put("f.zarr/zarr.json")
    with pytest.raises(StoreError, match="exists already"):
        open_store(place.path)
    with pytest.raises(StoreError, match="was not made by distinf"):
        open_store(place.path, "overwrite")


@pytest.mark.slow
def test_a_variable_that_is_called_as_the_store_is_replaced(bucket):
    place = InBucket(f"{bucket}/same/tp")
    begun(place)
    open_store(place.path, "overwrite", {"wind": grid("gust")}).close()
    assert not [name for name in place.all() if name.startswith("tp")]


@pytest.mark.slow
def test_stores_of_similar_names_are_left(bucket):
    others = [f"{bucket}/near/{name}" for name in ("f.zarr2", "f.zar", "f.zarr.bak", "f")]
    place = InBucket(f"{bucket}/near/f.zarr")
    for path in (place.path, *others):
        begun(InBucket(path))
    before = [InBucket(path).all() for path in others]
    open_store(place.path + "/", "overwrite", {"wind": grid("gust")}).close()
    assert "tp/zarr.json" not in place.all()
    assert [InBucket(path).all() for path in others] == before


@pytest.mark.slow
def test_empty_folders_of_a_bucket_are_nothing(bucket):
    s3 = files()
    for key in ("marked/f.zarr/", "marked/f.zarr/tp/"):
        s3.call_s3("put_object", Bucket="replaced", Key=key, Body=b"")
        place = InBucket(f"{bucket}/marked/f.zarr")
        if key.endswith("f.zarr/"):
            begun(place)
    open_store(place.path, "overwrite", {"wind": grid("gust")}).close()
    assert not [name for name in s3.find("replaced/marked") if "/tp" in name]


@pytest.mark.parametrize(
    "name", ["run[1].zarr", *(pytest.param(f"run{c}.zarr", marks=pytest.mark.slow) for c in "*?")]
)
def test_a_name_that_is_a_pattern_is_refused(bucket, name):
    begun(InBucket(f"{bucket}/patterns/run1.zarr"), mode="overwrite")
    before = InBucket(f"{bucket}/patterns/run1.zarr").all()
    with pytest.raises(StoreError, match="stand for the names of other stores"):
        open_store(f"{bucket}/patterns/{name}", "overwrite")
    assert InBucket(f"{bucket}/patterns/run1.zarr").all() == before


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
def test_an_object_in_place_of_the_store_is_left(bucket, mode):
    files().pipe_file(f"{bucket}/thesis.pdf", b"years")
    with pytest.raises(StoreError, match=r"exists already|was not made by distinf"):
        open_store(f"{bucket}/thesis.pdf", mode)
    assert files().find("replaced/thesis.pdf") == ["replaced/thesis.pdf"]


def test_what_may_not_be_removed_ends_the_run(bucket, monkeypatch):
    place = InBucket(f"{bucket}/kept/f.zarr")
    begun(place)

    async def denied(self, paths, **_):
        return []

    monkeypatch.setattr(s3fs.S3FileSystem, "_bulk_delete", denied)
    with pytest.raises(StoreError, match="could not be removed"):
        open_store(place.path, "overwrite")
    assert "tp/zarr.json" in place.all()


def test_a_store_is_not_replaced_by_reading_it(place):
    begun(place)
    before = place.all()
    open_store(place.path, "resume").close()
    after = place.all()
    assert np.all([after[name] == before[name] for name in before])


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_what_another_program_made_of_a_store_is_kept(tmp_path):
    begun(InFolder(tmp_path / "f.zarr"))
    with xr.open_zarr(tmp_path / "f.zarr") as made:
        derived = (made * 1).assign_attrs(made.attrs)
        for name, array in derived.variables.items():
            array.attrs, array.encoding = made[name].attrs, {}
        derived.to_zarr(tmp_path / "mine.zarr")
    before = InFolder(tmp_path / "mine.zarr").all()
    with pytest.raises(StoreError, match=r"mine\.zarr .* was written by another program"):
        open_store(tmp_path / "mine.zarr", "overwrite")
    assert InFolder(tmp_path / "mine.zarr").all() == before
