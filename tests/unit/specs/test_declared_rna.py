"""The declared RNA tasks and their stand-ins: sizes, wordings that parse back, layouts, and the real files."""

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
from polysome.data.readers import open_records
from polysome.specs.formats import CsvFormat, FastaFormat
from polysome.storage import resolve

TASKS = [
    "apa_isoform",
    "ncrna_family",
    "rna_modification",
    "mean_ribosome_loading",
    "toehold_switches",
    "crispr_on_target",
]
SITES = ["2ome", "m1a", "m5u", "m6a", "m6am", "m7g", "psi", "atoi"]
RELATIVES = [
    "apa_variant_clinvar",
    "mean_ribosome_loading_mttrans",
    "toehold_green2014",
    "toehold_viral2020",
    "crispr_on_target_class",
    *(f"rna_modification_{site}" for site in SITES),
]
"""Real data where the paper's own files are not freely at hand."""
FILES = declared_files(TASKS + RELATIVES)

SUBTASKS = {
    "Isoform-Isoform": 1575557,
    "NoncodingRNAFamily-NoncodingRNAFamily": 5670,
    "Modification-Modification": 304661,
    "MeanRibosomeLoading-MeanRibosomeLoading": 76319,
    "ProgrammableRNASwitches-ProgrammableRNASwitches": 73227,
    "CRISPROnTarget-CRISPROnTarget": 1453,
}
"""Rows per RNA sub-task of the stage-2 training file."""

POSITIVES = {
    "rna_modification_2ome-train-Am": 1205,
    "rna_modification_2ome-train-Cm": 1172,
    "rna_modification_2ome-train-Gm": 996,
    "rna_modification_2ome-train-Um": 624,
    "rna_modification_m1a-train-0": 593,
    "rna_modification_m1a-test-0": 114,
    "rna_modification_m5u-train-0": 3694,
    "rna_modification_m5u-train-1": 0,
    "rna_modification_m6a-train-0": 1307,
    "rna_modification_m6am-train-0": 1419,
    "rna_modification_m6am-test-0": 355,
    "rna_modification_m7g-train-0": 3292,
    "rna_modification_m7g-dev-0": 1097,
    "rna_modification_m7g-test-0": 1097,
    "rna_modification_psi-train-0": 492,
    "rna_modification_psi-train-1": 0,
    "rna_modification_psi-test-0": 387,
    "rna_modification_atoi-train-0": 125,
    "rna_modification_atoi-test-0": 300,
    "rna_modification_atoi-test-1": 0,
    "crispr_on_target_class-train-hl60": 1474,
    "crispr_on_target_class-train-hct116": 2718,
    "crispr_on_target_class-train-hek293t": 1374,
    "crispr_on_target_class-train-hela": 5060,
}
"""Positive records of the files as published."""

SET_ASIDE = {"rna_modification_m5u-train-0": {"column 'label' does not match": 1}}
"""Records that cannot be used: a header line that strayed into the positives."""


def test_subtasks_and_sizes_are_those_of_the_training_file():
    rows = subtask_rows(TASKS)
    # The union of train and validation, optional.
    assert rows.pop("NoncodingRNAFamily-nrc_6320") == 6320
    # A share of one file; the other cell lines are optional.
    cells = {name: rows.pop(name) for name in list(rows) if name.startswith("CRISPROnTarget-")}
    paper = specs.dataset("crispr_on_target").task.paper_rows
    assert cells.pop("CRISPROnTarget-CRISPROnTarget") == sum(paper.values())
    assert set(cells) == {"CRISPROnTarget-hct116", "CRISPROnTarget-hek293t", "CRISPROnTarget-hela"}
    assert rows + Counter({"CRISPROnTarget-CRISPROnTarget": paper["train"]}) == Counter(SUBTASKS)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "crispr_on_target"])
def test_the_files_of_a_split_have_the_rows_that_the_paper_counts(name):
    spec = specs.dataset(name)
    declared = {split: sum(file.rows for file in spec.files(split)) for split in ("train", "dev", "test")}
    # No public file has the 4,840 test rows of the paper (AMB-2).
    differs = {"test": 2600} if name == "ncrna_family" else {}
    assert declared == {**spec.task.paper_rows, **differs}


@pytest.mark.parametrize("name", TASKS + RELATIVES)
def test_wordings_are_many_distinct_and_say_what_the_label_holds(name):
    spec = specs.dataset(name)
    check_wordings(spec)
    check_answers(spec.task)
    check_shares(spec)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("toehold_switches", (("ON",), ("OFF",), ("ON/OFF",))),
        ("toehold_green2014", (("ON", "with trigger"), ("OFF", "without trigger"), ("ratio", "fold change"))),
        ("toehold_viral2020", (("OFF", "without trigger"), ("ON", "gain", "change"))),
    ],
)
def test_every_switch_question_asks_for_all_values(name, words):
    for question in specs.dataset(name).task.templates.questions:
        for alternatives in words:
            assert any(word in question for word in alternatives), question


def test_stand_ins_leave_the_papers_sizes_to_the_papers_tasks():
    assert not [name for name in RELATIVES if specs.dataset(name).task.paper_rows]


def sites(*names: str) -> str:
    """A label as BEACON writes it."""
    return " ".join(str(int(name in names)) for name in specs.dataset("rna_modification").task.label.classes)


@pytest.mark.parametrize(
    ("name", "path", "content", "labels"),
    [
        (
            "apa_isoform",
            "rna_apa_isoform/beacon/test.csv",
            f"library,seq,proximal_isoform_proportion,library_index\n2,{'ACGT' * 46},0.375,7\n",
            [[0.375]],
        ),
        (
            "mean_ribosome_loading",
            "rna_mean_ribosome_loading/beacon/test.csv",
            f"utr,rl\n{'ACGT' * 7},6.5\n",
            [[6.5]],
        ),
        (
            "toehold_switches",
            "rna_toehold_switches/beacon/test.csv",
            f"sequence,ON,OFF,ON_OFF\n{'ACGT' * 37},0.75,0.25,0.5\n",
            [[0.75, 0.25, 0.5]],
        ),
        (
            "rna_modification",
            "rna_modification/beacon/test.csv",
            "sequence,label\n"
            + "".join(
                f"{'ACGTA' * 10}A,{label}\n"
                for label in (
                    sites(),
                    sites("Am"),
                    sites("AtoI"),
                    sites("m6A", "m6Am"),
                    sites("Am", "Cm", "Gm", "Um", "m1A", "m5C", "m5U", "m6A", "m6Am", "m7G", "Psi", "AtoI"),
                )
            ),
            [[], [0], [11], [7, 8], list(range(12))],
        ),
    ],
    ids=["apa_isoform", "mean_ribosome_loading", "toehold_switches", "rna_modification"],
)
def test_a_file_laid_out_as_beacon_does_gives_its_labels(name, path, content, labels, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYSOME_MIRROR", str(tmp_path))
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(content)
    spec = specs.dataset(name)
    whole = spec.splits["test"][0].model_copy(update={"rows": None})
    examples = read_examples(spec.model_copy(update={"splits": {"test": [whole]}}), "test")
    assert examples["label"].to_pylist() == labels


@pytest.mark.data
@pytest.mark.parametrize("declared", FILES, ids=str)
def test_a_real_file_reads_whole(declared: Declared):
    """Rows and checksum as declared (the reader checks both), what is set aside, labels as published."""
    file = declared.file
    if not declared.in_mirror:
        if file.sha256:
            pytest.fail(f"{file.mirror_path} is declared with a checksum and not in the mirror")
        pytest.skip("not in the mirror")
    report = FileReport(file.uri)
    spec = specs.dataset(declared.spec)
    whole = file.model_copy(update={"share": None})
    labels: Counter[float] = Counter()
    for batch in read_file(spec, declared.split, whole, report):
        labels.update(value[0] for value in batch.examples["label"].to_pylist())
    assert (report.records, report.sha256) == (file.rows, file.sha256)
    assert report.reasons == SET_ASIDE.get(str(declared), {})
    assert report.examples == file.rows - report.quarantined
    if spec.task.label.kind == "binary":
        assert labels[1.0] == POSITIVES[str(declared)]
    if declared.spec == "ncrna_family" and file.subset == "NoncodingRNAFamily":
        assert len(labels) == 13


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    ["ncrna_family", "crispr_on_target", "apa_variant_clinvar", "toehold_viral2020"]
    + [f"rna_modification_{site}" for site in ("2ome", "m5u", "m6a", "atoi", "psi")],
)
def test_the_parts_of_a_divided_file_are_the_whole_of_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYSOME_CACHE", str(tmp_path))
    check_parts(specs.dataset(name))


@pytest.mark.data
@pytest.mark.parametrize(
    ("path", "layout", "rows"),
    [
        ("rna_modification/m5C/human_train.txt", FastaFormat(), 400),
        ("rna_modification/m5C/human_indep.txt", FastaFormat(), 138),
        (
            "rna_apa_isoform/deereect_mouse/parental.pAs.usage.txt.gz",
            CsvFormat(delimiter="\t", columns=["site", "BL", "SP"], skip_lines=1),
            30940,
        ),
        ("rna_toehold_switches/all_toeholds_Green_2014_formatted.csv", CsvFormat(), 181),
        ("rna_toehold_switches/sastra_all_features.csv", CsvFormat(), 228),
        (
            "rna_toehold_switches/Green2014_clean.csv",
            CsvFormat(columns=["row", "id", "sequence", "switch", "trigger", "ratio", "sd", "rating"], skip_lines=1),
            168,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_real_files_that_are_no_task_read_whole(path, layout, rows):
    """No labels, or no sequences, or measurements that a declared data set holds already."""
    with open_records(resolve("https://mirrored", path), layout) as records:
        found = [(len(part.numbers), part.damaged.num_rows) for part in records]
    assert (sum(good for good, _ in found), sum(damaged for _, damaged in found)) == (rows, 0)
