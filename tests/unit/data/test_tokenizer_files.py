"""Where a tokenizer comes from: a folder, or a repository of the hub."""

import huggingface_hub
import pytest

from polysome.config import ConfigurationError
from polysome.data.tokenizer_files import local_tokenizer


def test_a_hub_id_is_fetched_where_no_folder_has_its_name(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append((repository, "tokenizer.json" in allow_patterns, "*.safetensors" in allow_patterns))
        (tmp_path / "tokenizer.json").write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert local_tokenizer("meta-llama/Llama-3.1-8B-Instruct") == tmp_path
    assert asked == [("meta-llama/Llama-3.1-8B-Instruct", True, False)]


def test_a_hub_that_does_not_answer_is_told(monkeypatch):
    def snapshot_download(repository: str, **_: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ConfigurationError, match="nor a model on the hub: no route to host"):
        local_tokenizer("owner/name")


def test_a_folder_that_is_not_there_is_never_looked_for_in_the_hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    for folder in ("/models/none", "./models/none", "runs/a/b", "none"):
        with pytest.raises(ConfigurationError, match=r"no tokenizer.json"):
            local_tokenizer(folder)
