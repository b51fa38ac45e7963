"""The sizes of all declared tasks together are those of the paper and of the released rows (A-2, F-7)."""

from collections import Counter

import pytest

from polysome import specs

GUE = {"promoter_300": 94_712, "core_promoter": 94_712, "tf_human": 128_344, "tf_mouse": 80_018,
       "epigenetic_marks": 229_885}  # fmt: skip


def test_the_papers_rows_add_up_to_its_totals():
    """But for the test rows: the paper prints 244,681, which is 1,454 more than its tasks have (AMB-1)."""
    totals: Counter[str] = Counter()
    for name in specs.names():
        if task := specs.dataset(name).task:
            totals.update(task.paper_rows)
    assert totals == {"train": 3_330_232, "dev": 190_946, "test": 243_227}
    assert totals["train"] == specs.dataset("biology_instructions_stage2").splits["train"][0].rows


@pytest.mark.parametrize(("name", "total"), GUE.items())
def test_the_subsets_of_gue_add_up(name, total):
    files = specs.dataset(name).splits["train"]
    assert len({file.subset for file in files}) == len(files) > 1
    assert sum(file.rows for file in files) == total


@pytest.mark.parametrize("name", ["ec_number", "stability", "fluorescence", "solubility"])
def test_the_files_of_a_protein_task_have_the_rows_that_the_paper_counts(name):
    spec = specs.dataset(name)
    declared = {split: sum(file.rows for file in spec.splits[split]) for split in ("train", "dev", "test")}
    assert declared == spec.task.paper_rows
