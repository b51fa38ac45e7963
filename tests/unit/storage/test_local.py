"""Local copies of remote folders."""

import os
from pathlib import Path

import pytest

from polysome.config import DataError
from polysome.storage import join, write_json
from polysome.storage.local import local_folder


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("POLYSOME_CACHE", str(tmp_path / "cache"))
    url = f"memory://{tmp_path.name}-{os.getpid()}/model"
    write_json(join(url, "config.json"), 1)
    write_json(join(url, "deep", "more.json"), 2)
    return url


def test_a_remote_folder_is_copied_whole_once_and_again_when_it_changed(remote: str, tmp_path: Path) -> None:
    copy = Path(local_folder(remote))
    assert copy.is_relative_to(tmp_path / "cache")
    assert (copy / "deep" / "more.json").read_text() == "2\n"
    (copy / "mark").touch()
    assert Path(local_folder(remote), "mark").exists()
    write_json(join(remote, "config.json"), 3)
    changed = Path(local_folder(remote))
    assert (changed / "config.json").read_text() == "3\n"


def test_a_local_folder_is_used_where_it_stands_and_an_absent_url_is_told(tmp_path: Path) -> None:
    assert local_folder(str(tmp_path)) == str(tmp_path)
    assert local_folder(f"file://{tmp_path}") == str(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        local_folder("memory://nothing-stands-here/model")
