"""Building the native optimizer ahead, where a compiler may be missing."""

import pytest

from polysome.training import native


def test_without_a_compiler_it_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(native, "_prebuilt", lambda: False)
    monkeypatch.setenv(native.FOLDER_VARIABLE, str(tmp_path / "extensions"))
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert "no C++ compiler" in native.build()


def test_workers_find_ninja_and_the_extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.delenv(native.FOLDER_VARIABLE, raising=False)
    native.prepare_environment()
    native.prepare_environment()
    import os
    import sys

    assert os.environ["PATH"] == f"{sys.prefix}/bin:/usr/bin"
    assert os.environ[native.FOLDER_VARIABLE] == f"{sys.prefix}/torch_extensions"
    monkeypatch.delenv(native.FOLDER_VARIABLE)
