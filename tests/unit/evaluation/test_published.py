"""The published numbers are whole, as printed, and say what a reader must know."""

from collections import Counter

from polysome.evaluation.published import published
from polysome.specs import dataset


def value(name: str, system: str, output: str | None = None) -> float:
    (item,) = [found for found in published([name]) if found.system == system and found.output == output]
    return item.value


def test_every_table_is_whole() -> None:
    found = Counter(item.source.rpartition(", ")[2] for item in published())
    # Systems x tasks; BioMedGPT-LM-7B is absent from the DNA table.
    assert found == {"Table 1": 8 * 4, "Table 4": 16 * 7, "Table 5": 17 * 6, "Table 6": 17 * 5, "Table 7": 17 * 4}


def test_values_are_those_of_the_paper() -> None:
    assert value("core_promoter", "ChatMultiOmics stages 1+2+3") == 44.54
    assert value("enhancer_activity", "ChatMultiOmics stages 1+2", "dev") == 46.82
    assert value("enhancer_activity", "GPT-4o", "hk") == -1.17
    assert value("apa_isoform", "APARENT") == 50.82
    assert value("ncrna_family", "ChatMultiOmics stages 1 + balanced 2") == 35.68
    assert value("crispr_on_target", "ChatMultiOmics stage 2 only") == 2.87
    assert value("toehold_switches", "GPT-4o-mini") == 0.03
    assert value("rna_modification", "Galactica-1.3B") == 53.78
    assert value("ec_number", "SaProt-GearNet") == 88.9
    assert value("fluorescence", "ChatMultiOmics stages 1+2+3") == 2.57
    assert value("thermostability", "LLaMA3.1-8B-Instruct") == 4.67
    assert value("sirna_efficacy", "Qwen2-7B") == 33.39
    assert value("rna_protein_interaction", "BioMedGPT-LM-7B") == -2.39


def test_a_value_of_another_scale_is_told_as_all_are() -> None:
    (item,) = [
        found for found in published(["mol_instructions_catalytic_activity"]) if found.system == "ChatMultiOmics"
    ]
    assert (item.value, item.scale, item.scaled) == (0.60, 1, 60.0)


def test_every_number_is_of_a_declared_task_and_one_of_its_metrics() -> None:
    for item in published():
        task = dataset(item.dataset).task
        assert task is not None
        assert item.metric == task.metric
        assert item.output is None or item.output in task.label.outputs


def test_caveats_stand_where_they_belong_and_only_there() -> None:
    def ids(name: str, system: str) -> list[str]:
        return [caveat.id for item in published([name]) if item.system == system for caveat in item.caveats]

    assert ids("apa_isoform", "APARENT") == ["K-3", "AMB-21", "AMB-21"]
    assert ids("apa_isoform", "GPT-4o") == ["AMB-9", "K-4", "AMB-21"]
    assert ids("sirna_efficacy", "GPT-4o") == ["AMB-9", "K-4", "A-119", "K-4", "AMB-12"]
    assert ids("mol_instructions_protein_function", "Alpaca") == ["A-146"]
    assert "AMB-1" in ids("enhancer_promoter_interaction", "EPI-DLMH")
