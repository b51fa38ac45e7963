"""Cards say what the run recorded, carry the licences of all stages, and hold code that works."""

import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from test_schedule import stage
from trained_models import LLAMA, MIXED, PROBE, logits, trained
from transformers import AutoModelForCausalLM

from polysome import __version__
from polysome.config import ConfigurationError, DataError
from polysome.data.manifest import Manifest, SourceReport
from polysome.models.backbone import ModelSource, build_model
from polysome.models.trainability import Rule, apply
from polysome.storage import read_json
from polysome.training.checkpoint import Progress
from polysome.training.export import export
from polysome.training.model_card import Card, readme
from polysome.training.optimizer import table
from polysome.training.provenance import Provenance, origin, provenance_content, read_provenance


def manifest(*licences: str, kind: str = "instruct", name: str = "mix") -> Manifest:
    counts = dict.fromkeys(["records", "quarantined", "duplicates", "conflicts", "beyond_limit", "not_drawn",
                            "unmatched", "documents"], 0)  # fmt: skip
    counts |= {"cropped": 3, "examples": 1234, "tokens": 56789}
    nothing: dict[str, int] = {}
    sources = [
        SourceReport(dataset=f"{name}{number}", version=2, split="train", prompt="plain", licence=licence,
                     molecules=["dna"], files={"https://a/b": "0" * 64, "https://a/c": "1" * 64},
                     quarantine_reasons=nothing, in_other_shares=0, changed=nothing, excluded=nothing, **counts)
        for number, licence in enumerate(licences)
    ]  # fmt: skip
    return Manifest(name=name, kind=kind, recipe_fingerprint="recipe0", fingerprint=f"data-{name}",
                    tokenizer_fingerprint="tokens0", vocabulary_size=320, max_length=128, pad_id=0, rows=10,
                    tokens=1000, documents=20, targets=500, packing_efficiency=0.9, shards=[],
                    sources=sources)  # fmt: skip


def card(data: Manifest, *, before: Provenance | None = None, rules: list | None = None, **changes) -> Card:
    rates = {"norm": {"learning_rate": 0.003, "weight_decay": 0.0}}
    return Card(
        config=stage(**changes),
        fingerprint="stage0",
        manifest=data,
        origin=before or Provenance(base=None),
        progress=Progress(update=7, position=2800, tokens=123456, loss=1.23456),
        rules=rules or [{"module": "model.norm", "mode": "full", "trainable": 32, "rates": rates}],
        optimizer="adamw",
        workers=20,
        total_parameters=9_876_543,
        trainable_parameters=4_321,
    )


def head(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def written(one: Card, **options) -> str:
    return readme(one, architecture={"Architecture": "TinyForCausalLM"}, adapter="none", **options)


def test_a_card_holds_every_recorded_fact() -> None:
    text = written(card(manifest("MIT", name="promoters")))
    for fact in [
        "TinyForCausalLM", "9,876,543", "4,321",
        "| model.norm | full | 32 | norm 0.003 (weight decay 0) |", "AdamW (adamw)", "0.001", "2,800",
        "123,456", "1.2346 nats", "bf16", "20, ZeRO stage 2", "promoters0@2", "1,234", "56,789", "data-promoters",
        "recipe0", "tokens0", "7 of 400 rows", "stage0", __version__, "research only",
        "In 3 examples",
    ]:  # fmt: skip
        assert fact in text, fact
    assert re.search(r"promoters0@2 .*\| 2 \| MIT \|", text)  # its two files


def test_one_known_licence_is_named_and_others_are_listed() -> None:
    assert head(written(card(manifest("CC0-1.0 (generated)", "CC0-1.0"))))["license"] == "cc0-1.0"
    agpl = written(card(manifest("AGPL-3.0")))
    assert head(agpl)["license"] == "agpl-3.0"
    assert "Read these before you share" in agpl
    closed = "OligoFormer Proprietary Software License Agreement (restrictive)"
    mixed = written(card(manifest("MIT", closed, "Apache-2.0")))
    assert head(mixed)["license"] == "other"
    assert f"- {closed}: mix1" in mixed
    assert "- MIT" not in mixed
    assert "Read these before you share" not in written(card(manifest("MIT", "Apache-2.0")))


def test_licences_and_tasks_of_earlier_stages_are_carried_on() -> None:
    llama = "meta-llama/Llama-3.1-8B"
    first = card(manifest("terms of the competition", kind="pretrain", name="corpus"), name="one",
                 model={"path": llama}, before=origin(ModelSource(path=llama), llama))  # fmt: skip
    second = card(manifest("MIT", name="promoters"), name="two", before=first.provenance, model={"path": "/r/1/export"})
    third = card(manifest("MIT", name="splice"), name="three", before=second.provenance)
    text = written(third)
    assert "- terms of the competition: corpus0" in text
    assert "- not known to the run: see the page of the base model: the base model meta-llama/Llama-3.1-8B" in text
    assert head(text)["base_model"] == "meta-llama/Llama-3.1-8B"
    assert head(written(first, is_adapter=True))["base_model"] == llama
    assert "base_model" not in head(written(second, is_adapter=True))  # it needs the first stage's export
    assert head(text)["license"] == "other"
    assert head(text)["datasets"] == ["corpus0", "promoters0", "splice0"]
    assert third.provenance.tasks == ["promoters0", "splice0"]
    assert [record.stage for record in third.provenance.stages] == ["one", "two", "three"]
    for fingerprint in ("data-corpus", "data-promoters", "data-splice"):
        assert fingerprint in text
    assert "/r/1" not in written(second)  # a user's folders do not travel
    assert "Not trained to answer questions" in written(first)


def test_origin_reads_the_parent_or_the_licence_of_a_base(tmp_path: Path) -> None:
    source = ModelSource(path=str(tmp_path))
    assert origin(ModelSource(config={"model_type": "llama"}), None) == Provenance(base=None)
    assert origin(source, str(tmp_path)) == Provenance(base=str(tmp_path))
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: llama3.1\n---\n# Base\n")
    base = origin(source, str(tmp_path))
    assert base.base_licence == "llama3.1"
    assert "- llama3.1: the base model" in written(card(manifest("MIT"), before=base))
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(DataError, match="not YAML"):
        origin(source, str(tmp_path))
    (tmp_path / "polysome.json").write_text('{"format": 9, "base": null}')
    with pytest.raises(ConfigurationError, match="format"):
        origin(source, str(tmp_path))


def test_an_export_carries_its_card_and_the_code_in_it_runs(
    tiny_tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(tmp_path / "base")
    build_model(ModelSource(config=LLAMA), tiny_tokenizer, seed=1).save_pretrained(base)
    model, masters, _ = trained(base, tiny_tokenizer, MIXED)
    choices = apply(build_model(ModelSource(path=base), tiny_tokenizer, seed=1), MIXED, seed=1)
    rules = [asdict(row) for row in table(choices, stage().optimizer)]
    one = card(manifest("MIT", name="promoters"), rules=rules, model={"path": base},
               before=origin(ModelSource(path=base), base))  # fmt: skip
    folder = export(model, masters, tokenizer_folder=tiny_tokenizer, folder=str(tmp_path / "run"),
                    dtype=torch.float32, probe=PROBE, card=one)  # fmt: skip
    assert read_provenance(folder) == one.provenance
    assert read_json(f"{folder}/polysome.json")["tasks"] == ["promoters0"]
    assert read_provenance(str(tmp_path / "run" / "adapter")) == one.provenance
    text = Path(folder, "README.md").read_text()
    assert "LlamaForCausalLM (llama), 2 layers, hidden size 32, vocabulary " in text
    assert "in the folder adapter/ beside this one" in text
    assert "base 0.001 (weight decay 0.0005), lora_b 0.001" in text
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    exec(code.replace("path/to/this/folder", folder).replace("=64", "=2"), {})
    assert capsys.readouterr().out

    adapter = os.path.join(tmp_path, "run", "adapter")
    code = re.findall(r"```python\n(.*?)```", Path(adapter, "README.md").read_text(), re.DOTALL)[0]
    names: dict = {}
    exec(code.replace("path/to/this/folder", adapter).replace("path/to/base", base), names)
    merged = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert (logits(names["model"]) - logits(merged)).abs().max() <= 1e-5


def test_a_stage_without_lora_says_that_it_has_no_adapter(tiny_tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()  # of an earlier attempt with other rules
    model, masters, _ = trained(LLAMA, tiny_tokenizer, [Rule(match="norm", mode="full")])
    folder = export(model, masters, tokenizer_folder=tiny_tokenizer, folder=str(tmp_path), dtype=torch.float32,
                    probe=PROBE, card=card(manifest("MIT")))  # fmt: skip
    assert "none; no module trained by LoRA" in Path(folder, "README.md").read_text()
    assert not (tmp_path / "adapter").exists()
    assert provenance_content(read_provenance(folder))["licences"] == ["MIT"]
