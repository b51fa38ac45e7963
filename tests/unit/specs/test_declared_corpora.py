"""The declared corpora (A-91), the released instruction rows (A-5) and the transfer tasks (A-146)."""

import json

import pytest
from declared_checks import check_wordings
from declared_reading import mirrored, read_whole

from polysome import specs
from polysome.data.examples import read_examples

SAMPLES = ["human_dna_sample", "ncrna_sample", "protein_sample"]
CORPORA = ["human_dna", "human_ncrna", "uniref50"]
TRANSFER = {
    "mol_instructions_protein_function": "protein_function",
    "mol_instructions_general_function": "general_function",
    "mol_instructions_catalytic_activity": "catalytic_activity",
    "mol_instructions_domain_motif": "domain_motif",
}


@pytest.mark.parametrize("name", CORPORA)
def test_corpora_are_cut_at_2000_characters(name):
    spec = specs.dataset(name)
    assert spec.kind == "corpus"
    assert spec.window == 2000


@pytest.mark.parametrize("name", ["biology_instructions_stage2", "biology_instructions_reasoning"])
def test_released_rows_are_instruction_rows(name):
    spec = specs.dataset(name)
    assert spec.kind == "instructions"
    assert spec.splits["train"][0].rows == {"biology_instructions_stage2": 3330232}.get(name, 8002)


def test_human_rna_is_taken_out_of_the_file_of_all_species(tmp_path):
    path = tmp_path / "rna.fasta"
    path.write_text(
        ">URS0000000001_9606 Homo sapiens piRNA\nACGTACGTACGT\n"
        ">URS0000000001_10090 Mus musculus piRNA\nACGTACGTACGT\n"
        ">URS00000A0002_96060 another species\nACGTACGTACGTAA\n"
    )
    spec = _at("human_ncrna", path, "train")
    assert read_examples(spec, "train")["sequences"].to_pylist() == [["ACGUACGUACGU"]]


def test_alternative_sequences_of_the_genome_are_left_out(tmp_path):
    path = tmp_path / "genome.fa"
    path.write_text(">chr1\nACGTacgtaN\n>chrUn\nACGTNNNNNN\n>chr1_KI270706v1_random\nACGTACGTAC\n>chrM\nTTTTTTTTTT\n")
    spec = _at("human_dna", path, "train")
    assert read_examples(spec, "train")["sequences"].to_pylist() == [["ACGTACGTAN"], ["TTTTTTTTTT"]]


@pytest.mark.parametrize("name", TRANSFER)
def test_transfer_rows_are_read_as_the_authors_write_them(name, tmp_path):
    """Fields of Mol-Instructions: the sequence in a code block in `input`, the split in `metadata`."""
    path = tmp_path / "rows.json"
    rows = [
        {"instruction": "Describe.", "input": f"```\n{sequence}\n```", "output": text, "metadata": {"split": split}}
        for sequence, text, split in (("MKV", "It binds.", "test"), ("MAAL", "It cuts.", "train"))
    ]
    path.write_text(json.dumps(rows, indent=4))
    spec = _at(name, path, "test")
    found = read_examples(spec, "test").select(["sequences", "answer"]).to_pylist()
    assert found == [{"sequences": ["MKV"], "answer": "It binds."}]
    check_wordings(spec)
    declared = specs.dataset(name).splits["test"][0].uri
    assert declared.startswith(f"zip://Protein-oriented_Instructions/{TRANSFER[name]}.json::")


@pytest.mark.data
@pytest.mark.parametrize(("name", "split", "number"), mirrored(SAMPLES))
def test_a_file_of_a_sample_reads_whole(name, split, number):
    examples, report = read_whole(name, split, number)
    spec = specs.dataset(name)
    assert report.records == spec.splits[split][number].rows
    assert report.quarantined <= spec.maximum_quarantined * report.records
    assert max(len(row[0]) for row in examples["sequences"].to_pylist()) <= spec.window


def _at(name: str, path: object, split: str) -> specs.Dataset:
    """The declared data set with one split of one file, read from `path`."""
    spec = specs.dataset(name)
    file = spec.splits[split][0].model_copy(update={"uri": str(path), "mirror_path": None, "rows": None})
    return spec.model_copy(update={"splits": {split: [file]}})
