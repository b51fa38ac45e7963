"""Added letter tokens: the tokenizer that has them, the rows that a model gets for them, and training that begins."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prepared import write_prepared
from rendering import examples_of, write_bpe_tokenizer, write_extended_tokenizer
from safetensors.torch import load_file
from tokenizers import Tokenizer, normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from polysome.config import ConfigurationError, DataError
from polysome.data.encode import Encoder, Rendering
from polysome.data.frame import ChatFrame, messages
from polysome.data.manifest import read_manifest
from polysome.data.tokenizer_files import base_fingerprint, load_tokenizer, tokenizer_fingerprint
from polysome.inference.batch import BatchEngine
from polysome.models import trainability
from polysome.models.backbone import ModelSource, build_model
from polysome.models.tokenizer import build_per_base_tokenizer
from polysome.models.vocabulary import LETTERS, extend_tokenizer
from polysome.specs import CONCISE_SYSTEM_PROMPT, dataset
from polysome.training import launch, optimizer
from polysome.training.batch import MicroBatch, PackedLanguageModel
from polysome.training.config import StageConfig
from polysome.training.engine import Place, open_engine
from polysome.training.export import export
from polysome.training.schedule import learns

TEXTS = [CONCISE_SYSTEM_PROMPT, "Is there a promoter, TATAAA? Yes, there is. No, there is not."]
FIELDS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "untied": {"model_type": "llama", **FIELDS},
    "tied": {"model_type": "llama", **FIELDS, "tie_word_embeddings": True},
    # Rows to spare, as for the hardware; and an output layer with a bias.
    "spare": {"model_type": "llama", **FIELDS, "vocab_size": 1000},
    "bias": {"model_type": "phi", **FIELDS},
}


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_extended_tokenizer(tmp_path_factory.mktemp("tokenizers"), TEXTS)


def stage(**fields: Any) -> StageConfig:
    defaults = {"name": "s", "data": "d", "model": {"path": "m"}, "optimizer": {"learning_rate": 1e-2}, "epochs": 1}
    return StageConfig.model_validate({**defaults, **fields})


def base_model(folder: Path, tokenizer: Path, kind: str = "untied") -> Any:
    """A random model for the base tokenizer, saved beside it."""
    model = build_model(ModelSource(config=MODELS[kind]), str(tokenizer.parent / "base"), seed=1)
    if kind == "bias":
        torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer.parent / "base").save_pretrained(folder)
    return model


def test_messages_are_spelled_and_answers_are_not(extended: Path) -> None:
    tokenizer = load_tokenizer(extended)
    asked = "<dna>ACgN</dna> or <rna>AU</rna>, <protein>MJ*</protein>? <dna>A <b>no</b></dna> <dna>AC"
    rendered = tokenizer.apply_chat_template(messages("none", asked, "<dna>AC</dna>"), tokenize=False)
    assert rendered == (
        "<|user|>\n<dna><dna:A><dna:C>g<dna:N></dna> or <rna><rna:A><rna:U></rna>, <protein><protein:M>J<protein:*>"
        "</protein>? <dna>A <b>no</b></dna> <dna>AC<|end|><|assistant|>\n<dna>AC</dna><|end|>"
    )
    frame = ChatFrame.of(tokenizer, "concise")
    assert frame.prompt(asked) == tokenizer.apply_chat_template(
        messages("concise", asked), add_generation_prompt=True, tokenize=False
    )
    with pytest.raises(Exception, match="must be one text"):
        tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": asked}]}], tokenize=False)


def test_words_keep_their_tokens_and_added_ones_tell_where_they_come_from(extended: Path) -> None:
    base, tokenizer = (AutoTokenizer.from_pretrained(folder) for folder in (extended.parent / "base", extended))
    assert len(tokenizer) == len(base) + 6 + sum(map(len, LETTERS.values()))
    for text in [*TEXTS, "Ünïcode 3.14"]:
        assert tokenizer.encode(text) == base.encode(text)
    settings = json.loads((extended / "tokenizer_config.json").read_text())
    assert settings["added_from"]["<dna:A>"] == settings["added_from"]["<protein:A>"] == base.encode("A")
    assert settings["added_from"]["</rna>"] == base.encode("</rna>")
    assert tokenizer_fingerprint(extended) != tokenizer_fingerprint(extended.parent / "base")
    assert base_fingerprint(extended) == tokenizer_fingerprint(extended.parent / "base")
    assert base_fingerprint(extended.parent / "base") is None


def test_what_cannot_be_extended_is_named(extended: Path, tmp_path: Path) -> None:
    def refused(base: Path, match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            extend_tokenizer(base, tmp_path / "new", fingerprint="f")
        assert not (tmp_path / "new").exists()

    refused(extended, "spells molecules already, it has the token <dna:A>")
    build_per_base_tokenizer(tmp_path / "kmers", TEXTS, vocabulary_size=300, kmer=3)
    refused(tmp_path / "kmers", "spells molecules already")
    refused(tmp_path, "no tokenizer.json")
    write_bpe_tokenizer(tmp_path / "base", TEXTS)
    settings = json.loads((tmp_path / "base/tokenizer_config.json").read_text())
    for template, match in ((None, "no chat template"), ({"default": "a", "tools": "b"}, "several chat templates")):
        (tmp_path / "base/tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
        refused(tmp_path / "base", match)
    (tmp_path / "base/tokenizer_config.json").write_text(json.dumps(settings))
    blanks = Tokenizer.from_file(str(tmp_path / "base/tokenizer.json"))
    blanks.normalizer = normalizers.Prepend(" ")
    blanks.save(str(tmp_path / "base/tokenizer.json"))
    refused(tmp_path / "base", "does not give back text that stands between added tokens")
    with pytest.raises(ConfigurationError, match="exists"):
        extend_tokenizer(extended.parent / "base", tmp_path, fingerprint="f")


def test_polysomes_own_vocabulary_can_be_extended_and_keeps_its_tags(tmp_path: Path) -> None:
    build_per_base_tokenizer(tmp_path / "base", TEXTS, vocabulary_size=300)
    added = extend_tokenizer(tmp_path / "base", tmp_path / "new", fingerprint="f")
    assert len(added) == sum(map(len, LETTERS.values()))
    ChatFrame.of(load_tokenizer(tmp_path / "new"), "concise")


@pytest.mark.parametrize("kind", list(MODELS))
def test_new_rows_are_the_means_of_the_rows_they_stand_for(extended: Path, tmp_path: Path, kind: str) -> None:
    before = base_model(tmp_path, extended, kind)
    torch.manual_seed(3)
    drawn = torch.random.get_rng_state()
    model = build_model(ModelSource(path=str(tmp_path)), str(extended), seed=7)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    tokenizer = AutoTokenizer.from_pretrained(extended)
    rows = max(before.config.vocab_size, len(tokenizer))
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == rows
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == (kind == "tied")
    matrices = [(model.get_input_embeddings().weight, before.get_input_embeddings().weight)]
    matrices += [(value, getattr(before.lm_head, name)) for name, value in model.lm_head.named_parameters()]
    for token, ids in tokenizer.init_kwargs["added_from"].items():
        place = tokenizer.convert_tokens_to_ids(token)
        for grown, old in matrices:
            torch.testing.assert_close(grown[place], old[ids].mean(dim=0), rtol=0, atol=0)
    old = len(tokenizer) - len(tokenizer.init_kwargs["added_from"])
    ids = torch.arange(20, 60)[None]
    model.set_attn_implementation("sdpa")
    before.set_attn_implementation("sdpa")
    with torch.no_grad():
        now, then = (one(input_ids=ids, use_cache=False).logits[..., :old] for one in (model.eval(), before.eval()))
    torch.testing.assert_close(now, then, rtol=0, atol=1e-6)
    meta = build_model(ModelSource(path=str(tmp_path)), str(extended), seed=7, meta=True)
    assert [value.shape for value in meta.parameters()] == [value.shape for value in model.parameters()]


def test_a_tokenizer_of_another_size_is_refused_as_ever(extended: Path, tmp_path: Path) -> None:
    base_model(tmp_path / "model", extended)
    build_per_base_tokenizer(tmp_path / "larger", TEXTS, vocabulary_size=400, kmer=5)
    with pytest.raises(ConfigurationError, match="entries and the embedding only"):
        build_model(ModelSource(path=str(tmp_path / "model")), str(tmp_path / "larger"), seed=1)
    # The extended tokenizer beside weights that were never grown: they are not its weights.
    for file in extended.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigurationError, match="entries and the embedding only"):
        build_model(ModelSource(path=str(tmp_path / "model")), str(extended), seed=1)
    (tmp_path / "model/tokenizer.json").unlink()
    with pytest.raises(ConfigurationError, match="the model's own cannot be read"):
        build_model(ModelSource(path=str(tmp_path / "model")), str(extended), seed=1)


def test_embeddings_learn_alone_at_first_and_the_export_answers(extended: Path, tmp_path: Path) -> None:
    base_model(tmp_path / "model", extended)
    rules = [{"match": "embed_tokens|lm_head|norm", "mode": "full"},
             {"match": "_proj$", "mode": "lora", "rank": 2, "alpha": 4}]  # fmt: skip
    config = stage(
        trainability=rules, zero=0, precision="fp32", workers={"count": 1}, gradient_accumulation_steps=1,
        optimizer={"learning_rate": 1e-2, "kind": "adamw"}, schedule={"embedding_warmup_steps": 1},
    )  # fmt: skip
    model = build_model(ModelSource(path=str(tmp_path / "model")), str(extended), seed=1)
    trainability.apply(model, config.trainability, seed=1)
    plan = optimizer.groups(model, config.optimizer)
    assert {group.role: group.names for group in plan if group.role == "embedding"} == {
        "embedding": ("model.embed_tokens.weight", "lm_head.weight")
    }
    engine = open_engine(PackedLanguageModel(model), config, plan, "adamw", Place(0, 1, torch.device("cpu")))
    batch, targets = chats(extended)
    changed = []
    for update in range(2):
        before = {name: value.detach().clone() for name, value in engine.parameters.items()}
        rates = engine.set_rates(1.0, lambda role, update=update: learns(config.schedule, role, update))
        engine.update([batch], targets)
        changed.append({name for name, value in engine.parameters.items() if not torch.equal(value, before[name])})
        assert {role for role, rate in rates.items() if rate} == ({"embedding"} if not update else set(rates))
    assert changed[0] == {"model.embed_tokens.weight", "lm_head.weight"}
    assert changed[1] == set(engine.parameters)

    probe = torch.tensor([AutoTokenizer.from_pretrained(extended).encode("<dna><dna:A><dna:C></dna> Is there?")])
    written = export(
        model, engine.masters(keep=True), tokenizer_folder=str(extended), folder=str(tmp_path / "run"),
        dtype=torch.float32, probe=probe,
    )  # fmt: skip
    loaded = AutoModelForCausalLM.from_pretrained(written)
    with torch.no_grad():
        assert torch.equal(loaded(probe, use_cache=False).logits, model(probe, use_cache=False).logits)
    (answer,) = BatchEngine(written).generate([messages("concise", "<dna>ACGT</dna> Is there?")], max_new_tokens=3)
    assert answer.prompt_tokens == len(
        AutoTokenizer.from_pretrained(extended).apply_chat_template(
            messages("concise", "<dna>ACGT</dna> Is there?"), add_generation_prompt=True
        )["input_ids"]
    )
    # The next stage starts from rows that have learned, and does not begin them again.
    after = build_model(ModelSource(path=written), str(extended), seed=1)
    assert torch.equal(after.lm_head.weight, load_file(f"{written}/model.safetensors")["lm_head.weight"])


def test_a_stage_takes_data_in_the_extension_of_its_models_tokenizer(extended: Path, tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data")
    for file in extended.iterdir():
        (data / "tokenizer" / file.name).write_bytes(file.read_bytes())
    found = tokenizer_fingerprint(data / "tokenizer")
    manifest = read_manifest(str(data)).model_copy(update={"tokenizer_fingerprint": found})
    base_model(tmp_path / "model", extended)
    for file in (extended.parent / "base").iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    rules = [{"match": "q_proj", "mode": "full"}]
    config = stage(
        data=str(data), model={"path": str(tmp_path / "model")}, trainability=rules,
        schedule={"embedding_warmup_steps": 2},
    )  # fmt: skip
    launch._check_tokenizer(config, manifest, str(data / "tokenizer"))
    with pytest.raises(ConfigurationError, match="no rule trains the embedding"):
        launch._write_table(config, launch._bare_model(config, str(data / "tokenizer")), str(tmp_path))
    build_per_base_tokenizer(tmp_path / "model", TEXTS, vocabulary_size=300)
    with pytest.raises(DataError, match="the data was tokenized with tokenizer"):
        launch._check_tokenizer(config, manifest, str(data / "tokenizer"))


def chats(tokenizer_folder: Path) -> tuple[MicroBatch, int]:
    """A micro-batch of promoter chats in letter tokens, and its targets."""
    from polysome.data.rows import Documents
    from polysome.training.batch import flatten

    tokenizer, spec = load_tokenizer(tokenizer_folder), dataset("core_promoter")
    rendering = Rendering.of(tokenizer, chat=True, prompt="concise", seed=1)
    encoder = Encoder.of((tokenizer_folder / "tokenizer.json").read_text(), rendering.spelling)
    encoded = encoder.encode(examples_of(spec, 4), spec, rendering)
    assert encoder.table is not None
    assert tokenizer.convert_tokens_to_ids("<dna:G>") in encoded.ids.values
    lengths = encoded.ids.lengths.astype(np.int32)
    documents = Documents(encoded.ids.values, lengths, encoded.target_starts)
    return flatten(documents, np.zeros(4, np.int64)), int((lengths - encoded.target_starts).sum())
