"""Preparing on real Ray Data: every document arrives once, exclusions and limits are counted, errors leave nothing."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from polysome.config import ConfigurationError, DataError
from polysome.data.config import PrepareConfig
from polysome.data.manifest import read_manifest
from polysome.data.tokenizer_files import load_tokenizer
from polysome.specs import Dataset, dataset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def source(dataset, split, **more):
    return {"dataset": dataset, "split": split, **more}


def recipe(tokenizer, **changes):
    content = {
        "name": "p",
        "kind": "instruct",
        "tokenizer": tokenizer,
        "max_length": 512,
        "sources": [source("planted_promoter", "dev", repeat=2), source("planted_binding", "dev")],
        "exclude": [source("planted_promoter", "test")],
    }
    return PrepareConfig(**(content | changes))


def documents(folder, manifest):
    """(all ids, trained ids) of every packed document."""
    for shard in manifest.shards:
        for row in pq.read_table(f"{folder}/{shard.path}").to_pylist():
            ids, labels, segments = (np.array(row[name]) for name in ("input_ids", "labels", "segment_ids"))
            for segment in range(1, row["documents"] + 1):
                inside = segments == segment
                yield ids[inside].tolist(), labels[inside & (labels != -100)].tolist()


def test_documents_arrive_once_and_answers_alone_are_trained_on(tmp_path, tiny_tokenizer):
    from polysome.data.prepare import prepare

    folder = str(tmp_path / "a")
    manifest = prepare(recipe(tiny_tokenizer), folder)
    assert manifest == read_manifest(folder)
    assert [report.documents for report in manifest.sources] == [400, 200]
    found = list(documents(folder, manifest))
    assert len(found) == manifest.documents == 600
    assert sum(len(ids) for ids, _ in found) == manifest.tokens
    assert sum(len(trained) for _, trained in found) == manifest.targets
    tokenizer = load_tokenizer(tiny_tokenizer)
    texts = set()
    for ids, trained in found:
        text, answer = tokenizer.decode(ids), tokenizer.decode(trained)
        assert text.endswith("<|assistant|>" + answer)
        assert answer.startswith(("Yes", "No"))
        texts.add(text)
    # A repeat asks anew, so hardly any chat stands twice.
    assert len(texts) > 500

    # The same recipe gives the same bytes; another one does not overwrite them.
    again = prepare(recipe(tiny_tokenizer), str(tmp_path / "b"))
    assert again.fingerprint == manifest.fingerprint
    with pytest.raises(ConfigurationError, match="another recipe"):
        prepare(recipe(tiny_tokenizer, seed=1), folder)
    assert read_manifest(folder) == manifest


def test_a_corpus_is_split_without_loss_and_limits_and_exclusions_are_counted(tmp_path, tiny_tokenizer):
    from polysome.data.prepare import prepare

    folder = str(tmp_path / "a")
    sources = [source("planted_promoter", "test"), source("planted_rna", "dev", limit=50)]
    held = [source("planted_promoter", "dev")]
    manifest = prepare(recipe(tiny_tokenizer, kind="pretrain", max_length=32, sources=sources, exclude=held), folder)
    first, second = manifest.sources
    assert (first.excluded, first.beyond_limit) == ({}, 0)
    assert (second.records, second.beyond_limit) == (200, 150)
    tokenizer = load_tokenizer(tiny_tokenizer)
    pieces = [tokenizer.decode(ids) for ids, _ in documents(folder, manifest)]
    assert sum(piece.count("</dna>") for piece in pieces) == 200
    assert sum(piece.count("</rna>") for piece in pieces) == 50

    # The same sequences under another name are found, and what is then empty is refused.
    copy = Dataset.model_validate(dataset("planted_promoter").model_dump() | {"name": "copy"})
    write_spec(tmp_path, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYSOME_DATASETS", str(tmp_path / "specs"))
        held = [source("copy", "test")]
        mixed = [source("planted_promoter", "test"), source("planted_promoter", "dev")]
        manifest = prepare(recipe(tiny_tokenizer, kind="pretrain", sources=mixed, exclude=held), str(tmp_path / "b"))
        assert [report.excluded for report in manifest.sources] == [{"copy/test": 200}, {}]
        with pytest.raises(DataError, match="nothing is left"):
            prepare(recipe(tiny_tokenizer, sources=mixed[:1], exclude=held), str(tmp_path / "c"))
    assert not (tmp_path / "c" / "manifest.json").exists()


def write_spec(tmp_path, spec):
    """A folder of specs with `spec` and those that the recipes here name."""
    (tmp_path / "specs").mkdir()
    for item in (spec, dataset("planted_promoter")):
        content = yaml.safe_dump(item.model_dump(mode="json"))
        (tmp_path / "specs" / f"{item.name}.yaml").write_text(content)


def test_an_error_in_a_worker_is_the_products_own_and_commits_nothing(tmp_path, tiny_tokenizer):
    from polysome.data.prepare import prepare

    folder = tmp_path / "a"
    with pytest.raises(DataError, match="a row takes 16") as error:
        prepare(recipe(tiny_tokenizer, max_length=16), str(folder))
    assert type(error.value) is DataError
    assert not (folder / "manifest.json").exists()
