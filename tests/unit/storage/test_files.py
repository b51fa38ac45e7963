"""Files on a local disk and in memory: whole or not at all, checksums, mirrors."""

import errno
import os

import fsspec
import pytest

from polysome import storage
from polysome.config import DataError, ResourceError


@pytest.fixture(params=["disk", "memory"])
def root(request, tmp_path):
    return str(tmp_path) if request.param == "disk" else f"memory://{tmp_path.name}-{os.getpid()}"


def test_a_file_appears_whole(root):
    path = storage.join(root, "deep", "a.json")
    storage.write_json(path, {"x": [1, "ü"]})
    assert storage.read_json(path) == {"x": [1, "ü"]}
    assert storage.list_folder(storage.join(root, "deep")) == ["a.json"]


def test_a_number_that_json_has_not_is_not_written(root):
    path = storage.join(root, "a.json")
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(path, {"loss": float("nan")})
    assert not storage.exists(path)


def test_a_write_that_fails_leaves_what_stood_there_and_nothing_else(root):
    path = storage.join(root, "a.txt")
    with storage.open_atomic(path, "w") as handle:
        handle.write("old")
    with pytest.raises(ZeroDivisionError), storage.open_atomic(path, "w") as handle:
        handle.write(f"half of the new {1 / 0}")
    assert fsspec.open(path).open().read() == b"old"
    assert storage.list_folder(root) == ["a.txt"]


def test_folders_are_made_listed_found_and_removed(root):
    storage.make_folder(storage.join(root, "b"))
    storage.make_folder(storage.join(root, "b"))
    storage.write_json(storage.join(root, "b", "2.json"), 2)
    storage.write_json(storage.join(root, "b", "1.json"), 1)
    found = storage.glob(storage.join(root, "b", "*.json"))
    assert [storage.read_json(path) for path in found] == [1, 2]
    storage.remove(storage.join(root, "b"))
    storage.remove(storage.join(root, "b"))
    assert not storage.exists(storage.join(root, "b"))
    assert storage.list_folder(storage.join(root, "b")) == []


def test_what_is_not_there_or_not_json_is_told_with_its_place(tmp_path, monkeypatch):
    monkeypatch.delenv(storage.MIRROR_VARIABLE, raising=False)
    assert storage.MIRROR_VARIABLE in storage.absent_fix(str(tmp_path / "none"))
    with pytest.raises(DataError, match="no such file"):
        storage.read_json(str(tmp_path / "none.json"))
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(DataError, match="not JSON"):
        storage.read_json(str(tmp_path / "half.json"))


def test_a_mirror_holds_each_file_at_its_declared_place_or_at_host_and_path(monkeypatch):
    uri = "https://host.org/a/b.csv"
    monkeypatch.delenv(storage.MIRROR_VARIABLE, raising=False)
    assert storage.resolve(uri) == uri
    monkeypatch.setenv(storage.MIRROR_VARIABLE, "s3://bucket/copy")
    assert storage.resolve(uri) == "s3://bucket/copy/host.org/a/b.csv"
    assert storage.resolve(uri, "x/y.csv") == "s3://bucket/copy/x/y.csv"
    assert storage.resolve("planted://promoter?rows=3") == "planted://promoter?rows=3"
    assert storage.resolve("/data/own.csv") == "/data/own.csv"


def test_a_fingerprint_depends_on_content_not_on_the_order_of_keys():
    assert storage.fingerprint({"a": 1, "b": 2}) == storage.fingerprint({"b": 2, "a": 1})
    assert storage.fingerprint({"a": 1}) != storage.fingerprint({"a": "1"})


def test_a_path_is_made_absolute_and_a_url_is_not():
    assert storage.absolute("runs") == os.path.join(os.getcwd(), "runs")
    assert storage.absolute("s3://bucket/runs") == "s3://bucket/runs"


def test_a_full_disk_is_named_and_leaves_what_stood_there(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")

    def write():
        with storage.open_atomic(str(path)) as handle:
            handle.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ResourceError, match="no space"):
        write()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_of_a_chained_address_the_archive_is_mirrored(tmp_path, monkeypatch):
    chained = "zip://a/peptides.tsv::https://example.org/x/all.zip"
    monkeypatch.delenv(storage.MIRROR_VARIABLE, raising=False)
    assert storage.resolve(chained) == chained
    monkeypatch.setenv(storage.MIRROR_VARIABLE, str(tmp_path))
    assert storage.resolve(chained) == f"zip://a/peptides.tsv::{tmp_path}/example.org/x/all.zip"
    assert storage.resolve(chained, "peptides.tsv") == f"{tmp_path}/peptides.tsv"
    assert storage.resolve("zip://a::/data/all.zip") == "zip://a::/data/all.zip"


def test_a_version_changes_with_the_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("one")
    first = storage.version(str(path))
    assert first == storage.version(str(path))
    path.write_text("other")
    assert storage.version(str(path)) != first
    with pytest.raises(DataError, match="no such file"):
        storage.version(str(tmp_path / "none"))
