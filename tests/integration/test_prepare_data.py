"""Every real file that a spec declares and the mirror holds goes through prepare: counts as declared, rows filled."""

import pytest

from polysome.data.adapt import absent_file
from polysome.data.config import PrepareConfig
from polysome.specs import dataset, names, system_prompt

pytestmark = [pytest.mark.ray, pytest.mark.data, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def sources(kind):
    """A source for every split of every data set of a kind, with all subsets whose files are there."""
    found = []
    for name in names():
        spec = dataset(name)
        if spec.kind != kind or spec.format.kind == "planted":
            continue
        for split, files in spec.splits.items():
            here = [file for file in files if absent_file(spec, file) is None]
            subsets = sorted({file.subset for file in here if file.subset})
            whole = [
                name
                for name in subsets
                if all(absent_file(spec, file) is None for file in files if file.subset == name)
            ]
            if not here or (subsets and not whole):
                continue
            found.append({"dataset": name, "split": split} | ({"subsets": whole} if whole else {}))
    return found


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A per-base vocabulary with the wordings of all tasks, so that chats are as short as they would be in training."""
    from polysome.data.render import wordings
    from polysome.models.tokenizer import build_per_base_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [system_prompt("concise"), *(text for name in names() for text in wordings(dataset(name)))]
    build_per_base_tokenizer(folder, texts, vocabulary_size=8192)
    return str(folder)


@pytest.mark.parametrize(("kind", "recipe", "max_length"), [("corpus", "pretrain", 1200), ("task", "instruct", 1024)])
def test_all_real_data_are_prepared(tmp_path, tokenizer, kind, recipe, max_length):
    from polysome.data.prepare import prepare

    # The sample's rows are those of epigenetic_marks; once more, they are more of one length than the rest fills up.
    chosen = [item for item in sources(kind) if item["dataset"] != "epigenetic_marks_sample"]
    if kind == "corpus":
        # 67,861 peaks of 100 bp, all of one length, would leave 56 of 1,200 positions to nothing.
        chosen = [
            {**item, "subsets": ["contiguous"]} if item["dataset"] == "human_dna_sample" else item for item in chosen
        ]
    config = PrepareConfig(name=kind, kind=recipe, tokenizer=tokenizer, max_length=max_length, sources=chosen)
    manifest = prepare(config, str(tmp_path / "data"))
    for source, report in zip(chosen, manifest.sources, strict=True):
        files = dataset(report.dataset).files(report.split, source.get("subsets"))
        assert report.records == sum(file.rows for file in files)
        if not any(file.share for file in files) and kind == "task":
            assert report.examples == report.records - report.quarantined
        assert report.examples > 0, report
    assert manifest.packing_efficiency >= 0.995
    print(kind, manifest.packing_efficiency, manifest.documents, manifest.tokens, manifest.rows)
