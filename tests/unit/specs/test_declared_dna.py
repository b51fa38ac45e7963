"""The declared DNA tasks: the paper's sub-tasks and sizes, wordings that parse back, and the real files."""

from collections import Counter

import pytest
from declared_checks import (
    Declared,
    check_answers,
    check_parts,
    check_shares,
    check_wordings,
    declared_files,
    subtask_rows,
)

from polysome import specs
from polysome.data.examples import FileReport, read_examples, read_file

TASKS = ["core_promoter", "promoter_300", "epigenetic_marks", "tf_human", "tf_mouse", "enhancer_activity"]
SAMPLES = ["epigenetic_marks_sample"]
FILES = declared_files([*TASKS, *SAMPLES, "enhancer_sequences_sample"])

SUBTASKS = {
    "cpd-prom_core_all": 47356,
    "cpd-prom_core_notata": 42452,
    "cpd-prom_core_tata": 4904,
    "pd-prom_300_all": 47356,
    "pd-prom_300_notata": 42452,
    "pd-prom_300_tata": 4904,
    "emp-H3": 11971,
    "emp-H3K14ac": 26438,
    "emp-H3K36me3": 27904,
    "emp-H3K4me1": 25341,
    "emp-H3K4me2": 24545,
    "emp-H3K4me3": 29439,
    "emp-H3K79me3": 23069,
    "emp-H3K9ac": 22224,
    "emp-H4": 11679,
    "emp-H4ac": 27275,
    "tf-h-0": 32378,
    "tf-h-1": 30672,
    "tf-h-2": 19000,
    "tf-h-3": 27294,
    "tf-h-4": 19000,
    "tf-m-0": 6478,
    "tf-m-1": 53952,
    "tf-m-2": 2620,
    "tf-m-3": 1904,
    "tf-m-4": 15064,
    "enhancer_activity": 402296,
}
"""Rows per DNA sub-task of the stage-2 training file."""

POSITIVES = {
    "core_promoter-train-prom_core_notata": 21168,
    "core_promoter-train-prom_core_tata": 2449,
    "core_promoter-train-prom_core_all": 23651,
    "core_promoter-dev-prom_core_notata": 2706,
    "core_promoter-dev-prom_core_tata": 307,
    "core_promoter-dev-prom_core_all": 2979,
    "core_promoter-test-prom_core_notata": 2659,
    "core_promoter-test-prom_core_tata": 309,
    "core_promoter-test-prom_core_all": 2968,
    "promoter_300-train-prom_300_tata": 2444,
    "promoter_300-dev-prom_300_notata": 2626,
    "promoter_300-dev-prom_300_tata": 323,
    "promoter_300-dev-prom_300_all": 2946,
    "promoter_300-test-prom_300_notata": 2682,
    "promoter_300-test-prom_300_tata": 298,
    "promoter_300-test-prom_300_all": 2980,
    "epigenetic_marks-dev-H3": 762,
    "epigenetic_marks-dev-H3K14ac": 1926,
    "epigenetic_marks-dev-H3K36me3": 1861,
    "epigenetic_marks-dev-H3K4me1": 1691,
    "epigenetic_marks-dev-H3K4me2": 1799,
    "epigenetic_marks-dev-H3K4me3": 1954,
    "epigenetic_marks-dev-H3K79me3": 1562,
    "epigenetic_marks-dev-H3K9ac": 1517,
    "epigenetic_marks-dev-H4": 638,
    "epigenetic_marks-dev-H4ac": 1823,
    "epigenetic_marks-test-H3": 755,
    "epigenetic_marks-test-H3K14ac": 1896,
    "epigenetic_marks-test-H3K36me3": 1942,
    "epigenetic_marks-test-H3K4me1": 1734,
    "epigenetic_marks-test-H3K4me2": 1795,
    "epigenetic_marks-test-H3K4me3": 1949,
    "epigenetic_marks-test-H3K79me3": 1526,
    "epigenetic_marks-test-H3K9ac": 1535,
    "epigenetic_marks-test-H4": 647,
    "epigenetic_marks-test-H4ac": 1815,
}
"""Positive records of the files as published."""


def test_subtasks_and_sizes_are_those_of_the_training_file():
    assert subtask_rows(TASKS) == Counter(SUBTASKS)


@pytest.mark.parametrize("name", TASKS)
def test_the_files_of_a_split_add_up_to_what_the_paper_counts(name):
    spec = specs.dataset(name)
    declared = {split: sum(file.rows for file in spec.splits[split]) for split in ("train", "dev", "test")}
    assert declared == spec.task.paper_rows


def test_a_union_of_subsets_is_read_only_when_asked_for():
    for name, union in (("core_promoter", "prom_core_all"), ("promoter_300", "prom_300_all")):
        spec = specs.dataset(name)
        for split in spec.splits:
            assert union not in {file.subset for file in spec.files(split)}
            assert [file.subset for file in spec.files(split, [union])] == [union]


def test_the_sample_asks_the_task_of_the_whole_and_is_tested_on_the_same_files():
    """So that its results may stand beside those of the whole, as the declared deviation that they are."""
    whole, sample = specs.dataset("epigenetic_marks"), specs.dataset("epigenetic_marks_sample")
    assert sample.task == whole.task.model_copy(update={"paper_rows": sample.task.paper_rows})
    assert sample.splits["test"] == whole.splits["test"]
    assert {file.uri for split in ("train", "dev", "stage3_pool") for file in sample.splits[split]} == {
        file.uri for file in whole.splits["dev"]
    }


@pytest.mark.parametrize("name", [*TASKS, *SAMPLES])
def test_wordings_are_many_distinct_and_say_what_the_label_holds(name):
    spec = specs.dataset(name)
    check_wordings(spec)
    check_answers(spec.task)
    check_shares(spec)


def test_every_enhancer_question_asks_for_both_activities():
    for question in specs.dataset("enhancer_activity").task.templates.questions:
        words = question.lower()
        assert "housekeeping" in words or "hk" in words, question
        assert "dev" in words, question


def test_enhancer_activities_are_read_from_the_table_beside_the_sequences(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYSOME_MIRROR", str(tmp_path))
    folder = tmp_path / "dna_enhancer_activity"
    folder.mkdir()
    sequences = ["ACGTN" * 50, "GGCAT" * 50]
    (folder / "Sequences_Test.fa").write_text("".join(f">chr2L_{n}\n{s[:249]}\n" for n, s in enumerate(sequences)))
    (folder / "Sequences_activity_Test.txt").write_text(
        "Dev_log2_enrichment\tHk_log2_enrichment\tDev_log2_enrichment_scaled\n1.5\t-0.25\t9\n-2\t3.125\t9\n"
    )
    spec = specs.dataset("enhancer_activity")
    whole = spec.splits["test"][0].model_copy(update={"rows": None})
    examples = read_examples(spec.model_copy(update={"splits": {"test": [whole]}}), "test")
    assert examples["label"].to_pylist() == [[-0.25, 1.5], [3.125, -2.0]]


@pytest.mark.data
@pytest.mark.parametrize("declared", FILES, ids=str)
def test_a_real_file_reads_whole(declared: Declared):
    """Rows and checksum as declared (the reader checks both), nothing set aside, labels as published."""
    file = declared.file
    if not declared.in_mirror:
        if file.sha256 and not declared.spec.startswith("tf_"):
            pytest.fail(f"{file.mirror_path} is declared with a checksum and not in the mirror")
        pytest.skip("not in the mirror")
    report = FileReport(file.uri)
    whole = file.model_copy(update={"share": None})
    labels: Counter[float] = Counter()
    for batch in read_file(specs.dataset(declared.spec), declared.split, whole, report):
        labels.update(value[0] for value in batch.examples["label"].to_pylist() if value is not None)
    assert (report.examples, report.sha256) == (file.rows, file.sha256)
    assert not report.reasons
    if str(declared) in POSITIVES:
        assert labels == {1.0: POSITIVES[str(declared)], 0.0: file.rows - POSITIVES[str(declared)]}


@pytest.mark.data
@pytest.mark.parametrize("name", ["core_promoter", *SAMPLES])
def test_the_parts_of_a_divided_split_are_the_whole_of_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYSOME_CACHE", str(tmp_path))
    check_parts(specs.dataset(name))
