"""Thirteen defects of the training code that was published with the paper, and the tests that would catch each here."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from prepared import write_prepared

from polysome.data.feed import open_feed

TESTS = Path(__file__).resolve().parents[1]

DEFECTS: dict[str, list[str]] = {
    "1: dataset weights 2_1_1 are read as the integer 211, and then passed to nothing": [
        "unit/data/test_mixture.py::test_contradictory_mixtures_are_refused",
        "unit/data/test_mixture.py::test_natural_takes_all_times_their_repeat",
        "unit/operations/test_recipes_chatmultiomics.py::test_stage_1_reads_rna_twice_and_two_million_proteins",
    ],
    "2: packed documents see one another, positions are not reset, the tail is dropped": [
        "unit/models/test_attention.py::test_packed_logits_equal_those_of_separate_documents",
        "unit/models/test_attention.py::test_gradient_stays_within_the_document_and_equals_the_separate_one",
        "unit/data/test_pack.py::test_packed_rows_give_every_document_back",
        "integration/test_training.py::test_curve_equals_a_plain_single_process_loop",
    ],
    "3: steps, warm-up and cosine are computed from the length before packing": [
        "unit/training/test_schedule.py::test_updates_follow_from_epochs_over_packed_rows",
        "integration/test_training.py::test_curve_equals_a_plain_single_process_loop",
    ],
    "4: the first sample is never seen, and the position to resume at is read nowhere": [
        "unit/data/test_feed.py::test_every_epoch_is_a_permutation",
        "unit/training/test_loop.py::test_rows_are_named_by_what_was_trained_on_wherever_it_was_resumed",
        "integration/test_training.py::test_killed_at_any_instant_it_ends_as_if_nothing_had_been",
    ],
    "5: every epoch has the same order": [
        "unit/data/test_feed.py::test_the_order_is_mixed_and_changes_with_seed_and_epoch",
    ],
    "6: every worker reads the whole file into its memory": [
        "unit/test_reference_defects.py::test_a_worker_holds_the_rows_that_it_reads_and_no_others",
    ],
    "7: the ways of reading beside the usual one cannot run": [
        "unit/data/test_feed.py::test_rows_are_those_of_the_shards",
        "unit/data/test_feed.py::test_every_rank_sees_the_mixture",
    ],
    "8: the attention mask is filled with labels": [
        "unit/data/test_rows.py::test_expanded_rows_are_those_of_the_plain_definition",
        "unit/training/test_micro_batch.py::test_loss_equals_the_sum_over_separate_documents",
    ],
    "9: one worker's share of the optimizer state is saved, and none restored": [
        "integration/test_training_curves.py::test_either_engine_goes_on_from_the_others_checkpoint",
        "integration/test_training.py::test_killed_at_any_instant_it_ends_as_if_nothing_had_been",
    ],
    "10: a NaN loss becomes the float 0.0, on which backward is called": [
        "unit/training/test_engine.py::test_an_update_whose_gradient_is_not_finite_changes_nothing",
        "integration/test_training_curves.py::test_a_gradient_that_is_not_finite_on_one_worker_changes_nothing_on_any",
        "unit/training/test_loop.py::test_gradients_that_stay_not_finite_end_the_stage_unsaved",
    ],
    "11: patterns and scales of learning rates are paired by chance": [
        "unit/training/test_optimizer.py::test_groups_hold_every_trainable_parameter_once_by_role",
        "unit/operations/test_recipes_chatmultiomics.py"
        "::test_the_groups_of_the_optimizer_have_the_learning_rates_of_the_finding_on_lora_plus",
        "unit/training/test_optimizer.py::test_ratios_survive_a_schedule_and_a_broken_ratio_is_found",
    ],
    "12: an optimizer that cannot be made is replaced by DeepSpeed's default": [
        "unit/training/test_optimizer.py::test_native_adam_is_chosen_only_where_it_can_run",
        "integration/test_training_curves.py::test_two_workers_train_as_one_process_does",
    ],
    "13: limits that contradict are swapped, and answers that are too long are cut": [
        "unit/data/test_tokenize.py::test_a_chat_that_is_too_long_and_may_not_be_cropped_is_named",
        "unit/data/test_pack.py::test_a_document_that_no_row_holds_is_refused",
        "unit/data/test_crop.py::test_every_chat_fits_and_keeps_its_question_and_answer",
    ],
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_has_its_tests(defect: str) -> None:
    for name in DEFECTS[defect]:
        file, _, test = name.partition("::")
        assert f"\ndef {test}(" in (TESTS / file).read_text(), (
            f"{name} is gone, which would have caught defect {defect}"
        )


def test_a_worker_holds_the_rows_that_it_reads_and_no_others(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path / "prepared", rows=400, max_length=512)
    open_feed(str(folder), seed=1, cache=str(tmp_path))
    tracemalloc.start()
    try:
        feed = open_feed(str(folder), seed=1, cache=str(tmp_path))
        feed.documents(np.arange(3))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < feed.manifest.tokens * 4 / 4
