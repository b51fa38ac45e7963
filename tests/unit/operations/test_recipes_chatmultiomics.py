"""The recipes of ChatMultiOmics say what the paper's table and its authors' scripts say, cell by cell (A-93)."""

from pathlib import Path
from typing import Any

import pytest

from polysome.operations.pipeline_config import PipelineConfig
from polysome.operations.recipes import load_recipe
from polysome.specs import dataset

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "jobs" / "recipes" / "chatmultiomics"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
DNA = ("epigenetic_marks", "enhancer_activity", "promoter_300", "core_promoter", "tf_human", "tf_mouse")
RNA = (
    "apa_isoform",
    "ncrna_family",
    "rna_modification",
    "mean_ribosome_loading",
    "toehold_switches",
    "crispr_on_target",
)
PROTEIN = ("ec_number", "stability", "fluorescence", "solubility", "thermostability")
SEVERAL = ("antibody_antigen", "rna_protein_interaction", "enhancer_promoter_interaction", "sirna_efficacy")
TASKS = (*DNA, *RNA, *PROTEIN, *SEVERAL)

# Stage 1, 2, 3 by the paper; in the second row by the authors' scripts, where these differ (A-93, AMB-5 to 8).
CELLS: dict[str, list[tuple[Any, Any, Any]]] = {
    "optimizer.learning_rate": [(1e-4, 1e-4, 1e-5)],
    "optimizer.lora_plus_ratio": [(4, 16, 1)],
    "optimizer.betas": [((0.9, 0.999),) * 3],
    "optimizer.epsilon": [(1e-9, 1e-8, 1e-8)],
    "optimizer.weight_decay": [(5e-4, 5e-4, 5e-4)],
    "optimizer.clip": [(1.0, 1.0, 1.0)],
    "optimizer.kind": [("deepspeed_cpu_adam", "deepspeed_cpu_adam", "adamw")],
    "schedule.warmup_fraction": [(0.1, 0.03, 0.03)],
    "schedule.prewarmup_steps": [(100, 50, 1)],
    "schedule.prewarmup_factor": [(0.05, 0.05, 0.05)],
    "schedule.floor": [(0.1, 0.1, 0.5)],
    "epochs": [(2, 1, 3), (2, 1, 2)],
    "max_updates": [(None, None, None)],
    "micro_batch_size": [(2, 2, 2), (2, 2, 1)],
    "gradient_accumulation_steps": [(1, 10, 1), (1, 10, 4)],
    "workers.count": [(24, 20, 12), (32, 20, 12)],
    "workers.gpus_per_worker": [(1, 1, 1)],
    "rows_per_update": [(48, 400, 24), (64, 400, 48)],
    "precision": [("bf16", "bf16", "bf16")],
    "zero": [(2, 2, 2)],
    "offload": [(True, True, False)],
    "seed": [(42, 42, 42)],
}
# Linear layers of Llama: which train by LoRA (rank, alpha) and which in full.
ALL = {"q", "k", "v", "o", "gate", "up", "down"}
RULES: dict[str, tuple[dict[str, Any], ...]] = {
    "paper": (
        {"lora": ALL, "rank": 128, "alpha": 32, "factor": 0.25, "full": set(), "norms": True},
        {"lora": ALL - {"q", "k"}, "rank": 64, "alpha": 32, "factor": 0.5, "full": {"q", "k"}, "norms": True},
        {"lora": set(), "full": ALL, "norms": True},
    ),
    "reference_script": (
        {"lora": {"q", "k", "v", "o"}, "rank": 128, "alpha": 64, "factor": 0.5, "full": set(), "norms": True},
        {"lora": ALL - {"q", "v"}, "rank": 64, "alpha": 32, "factor": 0.5, "full": {"q", "v"}, "norms": True},
        {"lora": set(), "full": ALL, "norms": False},
    ),
}
# A-94, in millions; stage 3 is Llama-3.1-8B without its two tables of 128,256 x 4,096, and in the script without norms.
MILLIONS = {
    "paper": (335.54 + 0.27, 671.09 + 140.51 + 0.27, 6979.59),
    "reference_script": (109.05 + 0.27, None, 6979.32),
}


def load(name: str, *overrides: str) -> PipelineConfig:
    config = load_recipe(FOLDER / name, overrides).config
    assert isinstance(config, PipelineConfig)
    return config


@pytest.fixture(scope="module", params=["paper", "reference_script"])
def preset(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipeline(preset: str) -> PipelineConfig:
    return load("pipeline.yaml", f"preset={preset}")


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_of_the_table(pipeline, preset, cell):
    wanted = CELLS[cell][-1 if preset == "reference_script" else 0]
    for (name, stage), value in zip(pipeline.stages.items(), wanted, strict=True):
        found: Any = stage.train
        for part in cell.split("."):
            found = getattr(found, part)
        assert found == value, f"{name}: {cell}"


def test_the_paper_is_what_is_chosen_when_nothing_is_said():
    assert load("pipeline.yaml") == load("pipeline.yaml", "preset=paper")
    assert load_recipe(FOLDER / "pipeline.yaml").preset == "paper"


def llama() -> Any:
    """Llama-3.1-8B on the meta device: shapes without memory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(shape)


def test_what_trains(pipeline, preset):
    from polysome.models import trainability

    model = llama()
    for position, (stage, wanted) in enumerate(zip(pipeline.stages.values(), RULES[preset], strict=True)):
        rules = stage.train.trainability
        choices = trainability.choose(model, rules)
        found = {
            mode: {choice.module for choice in choices if choice.mode == mode} for mode in ("lora", "full", "frozen")
        }
        suffixes = {mode: {name.rpartition(".")[2] for name in names} for mode, names in found.items()}
        linear = {mode: {f"{name}_proj" for name in wanted[mode]} for mode in ("lora", "full")}
        norms = {"norm", "input_layernorm", "post_attention_layernorm"}
        assert suffixes["lora"] == linear["lora"]
        assert suffixes["full"] == linear["full"] | (norms if wanted["norms"] else set())
        assert suffixes["frozen"] >= {"embed_tokens", "lm_head"}
        for rule in rules:
            if rule.mode == "lora":
                assert (rule.rank, rule.alpha, rule.factor) == (wanted["rank"], wanted["alpha"], wanted["factor"])
                assert (rule.dropout, rule.dora) == (0.0, False)
        if MILLIONS[preset][position] is not None:
            trainable = sum(choice.trainable for choice in choices) / 1e6
            assert trainable == pytest.approx(MILLIONS[preset][position], abs=0.011)


def test_the_groups_of_the_optimizer_have_the_learning_rates_of_the_finding_on_lora_plus(pipeline):
    """A-95, F-9: B learns 4 times as fast as A in stage 1, 16 times in stage 2."""
    optimizers = [stage.train.optimizer for stage in pipeline.stages.values()]
    rates = [optimizer.learning_rate * optimizer.lora_plus_ratio for optimizer in optimizers]
    assert rates == pytest.approx([4e-4, 1.6e-3, 1e-5])


def test_the_base_is_llama_and_its_tokenizer(pipeline):
    assert (pipeline.model.path, pipeline.tokenizer) == (LLAMA, LLAMA)


def test_stage_1_reads_rna_twice_and_two_million_proteins(pipeline):
    """A-91; 1,200 positions packed (A-92)."""
    prepare = pipeline.stages["stage1"].prepare
    assert (prepare.kind, prepare.max_length) == ("pretrain", 1200)
    read = [(source.dataset, source.repeat, source.limit) for source in prepare.sources]
    assert read == [("human_dna", 1, None), ("human_ncrna", 2, None), ("uniref50", 1, 2_000_000)]
    assert [dataset(name).window for name, _, _ in read] == [2000, 2000, 2000]
    assert 2 * 523_933 + 1_561_639 + 2_000_000 == 4_609_505


def test_stage_2_trains_on_all_21_tasks_and_protects_all_their_tests(pipeline, preset):
    prepare = pipeline.stages["stage2"].prepare
    assert (prepare.kind, prepare.max_length, prepare.mixture.by) == ("instruct", 1024, "natural")
    assert tuple(source.dataset for source in prepare.sources) == TASKS
    assert {source.split for source in prepare.sources} == {"train"}
    assert {source.prompt for source in prepare.sources} == {concise(preset)}
    assert prepare.task_tag.fraction == 0.3


def test_stage_3_mixes_the_released_reasoning_with_3000_concise_rows_of_the_validation_split(pipeline, preset):
    """A-73, A-85, AMB-20: replay comes from the part of the validation split that is not `dev`."""
    prepare = pipeline.stages["stage3"].prepare
    reasoning, *replay = prepare.sources
    assert (prepare.kind, prepare.max_length) == ("instruct", 1024)
    assert (reasoning.dataset, reasoning.prompt, reasoning.limit) == (
        "biology_instructions_reasoning",
        "reasoning",
        None,
    )
    assert tuple(source.dataset for source in replay) == TASKS
    assert {(source.split, source.prompt) for source in replay} == {("stage3_pool", concise(preset))}
    assert sum(source.limit or 0 for source in replay) == 3000
    assert reasoning.repeat == 1


def concise(preset: str) -> str:
    """AMB-28."""
    return "concise_reference" if preset == "reference_script" else "concise"


@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_every_test_split_is_protected(pipeline, stage):
    protected = pipeline.stages[stage].prepare.exclude
    assert tuple(item.dataset for item in protected) == TASKS
    assert {(item.split, item.subsets) for item in protected} == {("test", None)}


def test_every_task_is_evaluated(pipeline, preset):
    evaluation = pipeline.evaluation
    assert evaluation is not None
    assert tuple(evaluation.tasks) == TASKS
    assert (evaluation.prompt, evaluation.tagged, evaluation.after) == (concise(preset), False, ["stage2", "stage3"])


@pytest.mark.parametrize("preset", ["paper", "reference_script", "tiny"])
def test_one_stage_by_itself_is_the_stage_of_the_pipeline(preset):
    whole = load("pipeline.yaml", f"preset={preset}")
    for name in ("stage1", "stage2", "stage3"):
        given = [] if name == "stage1" else ["model.path=exported"]
        alone = load(f"{name}.yaml", f"preset={preset}", *given)
        assert alone.stages == {name: whole.stages[name]}
        assert alone.evaluation is None


@pytest.mark.parametrize("name", ["stage2.yaml", "stage3.yaml"])
def test_a_later_stage_by_itself_asks_what_it_starts_from(name):
    from polysome.config import ConfigurationError

    with pytest.raises(ConfigurationError, match="model: required and missing"):
        load(name)


def test_the_tiny_preset_rehearses_the_papers_training_on_two_cpus():
    """Data, sizes and devices are its own; what trains, how, and for how long are the paper's."""
    paper, tiny = load("pipeline.yaml"), load("pipeline.yaml", "preset=tiny")
    own = {
        "optimizer": {"kind"},
        "schedule": {"prewarmup_steps"},
        "workers": True,
        "precision": True,
        "log_every_updates": True,
    }
    for name, stage in tiny.stages.items():
        assert stage.train.model_dump(exclude=own) == paper.stages[name].train.model_dump(exclude=own)
        assert (stage.train.workers.maximum, stage.train.workers.gpus_per_worker) == (2, 0)
        sources = {source.dataset for source in stage.prepare.sources} | {
            item.dataset for item in stage.prepare.exclude
        }
        assert all(source.startswith("planted_") for source in sources)
    assert tiny.model.config is not None


@pytest.mark.parametrize("preset", ["paper", "reference_script", "tiny"])
@pytest.mark.parametrize(
    ("name", "chains"),
    [
        (
            "a141_stages",
            {
                "main": ["stage1", "stage2", "stage3"],
                "stage2_only": ["stage2"],
                "stage1_and_balanced_stage2": ["stage1", "stage2_balanced"],
            },
        ),
        ("a142_balance", {"main": ["stage1", "stage2"], "balanced": ["stage1", "stage2_balanced"]}),
        (
            "a144_lora",
            {
                "main": ["stage1", "stage2"],
                "lora": ["stage1", "stage2_lora"],
                "dora": ["stage1", "stage2_dora"],
                "rslora": ["stage1", "stage2_rslora"],
            },
        ),
    ],
)
def test_an_ablation_changes_one_thing_of_the_pipeline(name, chains, preset):
    whole = load("pipeline.yaml", f"preset={preset}")
    config = load(f"ablations/{name}.yaml", f"preset={preset}")
    assert config.chains == chains
    for stage, settings in config.stages.items():
        original = whole.stages[stage.partition("_")[0]]
        if stage.endswith("balanced"):
            assert settings.prepare.mixture.by == "balanced"
            assert settings.prepare.model_dump(exclude={"mixture"}) == original.prepare.model_dump(exclude={"mixture"})
            assert settings.train == original.train
        elif "_" in stage:
            assert settings.prepare == original.prepare
            assert settings.train.model_dump(exclude={"trainability"}) == original.train.model_dump(
                exclude={"trainability"}
            )
            linear, norms = settings.train.trainability
            assert (linear.rank, linear.alpha, norms.mode) == (64, 32, "full")
            assert linear.dora == (stage == "stage2_dora")
            assert linear.factor == (32 / 64**0.5 if stage == "stage2_rslora" else 0.5)
        else:
            assert settings == original


@pytest.mark.parametrize("preset", ["paper", "reference_script", "tiny"])
def test_the_stage_3_model_is_asked_concisely_and_with_the_reasoning_prompt(preset):
    """A-143; the two tasks without reasoning rows are among them (A-82)."""
    whole, config = (
        load(name, f"preset={preset}") for name in ("pipeline.yaml", "ablations/a143_reasoning_prompt.yaml")
    )
    assert whole.evaluation is not None
    assert config.evaluation is not None
    assert (config.stages, config.evaluation.after) == (whole.stages, ["stage3"])
    asked = config.evaluation.variants["reasoning"]
    tokens = 64 if preset == "tiny" else 1024
    assert config.evaluation.changes("reasoning") == {"prompt": "reasoning", "max_new_tokens": tokens}
    assert asked.tasks == whole.evaluation.tasks
    assert preset == "tiny" or {"antibody_antigen", "rna_protein_interaction"} <= set(asked.tasks)


@pytest.mark.parametrize("preset", ["paper", "reference_script", "tiny"])
def test_models_trained_with_and_without_tags_are_asked_with_and_without(preset):
    """A-145."""
    config = load("ablations/a145_tags.yaml", f"preset={preset}")
    assert config.evaluation is not None
    tagged, untagged = config.stages["stage2"], config.stages["stage2_untagged"]
    assert config.chains == {"main": ["stage1", "stage2"], "trained_without_tags": ["stage1", "stage2_untagged"]}
    assert (tagged.prepare.task_tag.fraction, untagged.prepare.task_tag.fraction) == (0.3, 0)
    assert untagged.prepare.model_dump(exclude={"task_tag"}) == tagged.prepare.model_dump(exclude={"task_tag"})
    assert untagged.train == tagged.train
    assert config.evaluation.changes("asked_with_tag") == {"tagged": True}
    assert not config.evaluation.tagged


@pytest.mark.parametrize("preset", ["paper", "reference_script", "tiny"])
def test_transfer_trains_on_1000_rows_of_each_task_and_measures_their_tests_by_rouge_l(preset):
    """A-146."""
    config = load("ablations/a146_mol_instructions.yaml", f"preset={preset}")
    transfer, evaluation = config.stages["transfer"].prepare, config.evaluation
    assert evaluation is not None
    assert config.chains == {"main": ["stage1", "stage2", "stage3", "transfer"]}
    assert (evaluation.after, evaluation.split) == (["transfer"], "test")
    assert [source.dataset for source in transfer.sources] == evaluation.tasks
    assert [item.dataset for item in transfer.exclude] == evaluation.tasks
    assert {source.prompt for source in transfer.sources} == {evaluation.prompt}
    tasks = [dataset(name).task for name in evaluation.tasks]
    assert {task.metric for task in tasks if task} == {"rouge_l"}
    if preset != "tiny":
        assert [(source.split, source.limit) for source in transfer.sources] == [("train", 1000)] * 4
        assert all(name.startswith("mol_instructions_") for name in evaluation.tasks)
        assert evaluation.max_new_tokens >= 512
