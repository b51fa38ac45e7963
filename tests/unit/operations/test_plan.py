"""Plans: the paper's three stages reproduced from assumptions, parts that add up, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from polysome.config import ConfigurationError
from polysome.operations.plan import Options, Plan, make_plan
from polysome.operations.recipes import load_recipe

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
PROJECTIONS = "(q|k|v|o|gate|up|down)_proj$"


def stage(gpus: int, accumulation: int, rules: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    return {
        "prepare": {"kind": "pretrain", "max_length": 1200, "sources": [{"dataset": "uniref50"}]},
        "train": {
            "trainability": rules,
            "optimizer": {"learning_rate": 1.0e-4},
            "micro_batch_size": 2,
            "gradient_accumulation_steps": accumulation,
            "workers": {"count": gpus, "gpus_per_worker": 1},
            "gradient_checkpointing": True,
            **settings,
        },
    }


NORMS = {"match": "norm$", "mode": "full"}
PAPER = {
    "job": "pipeline",
    "name": "paper",
    "tokenizer": LLAMA,
    "model": {"path": LLAMA},
    "stages": {
        "stage1": stage(
            24, 1, [{"match": PROJECTIONS, "mode": "lora", "rank": 128, "alpha": 32}, NORMS], epochs=2, offload=True
        ),
        "stage2": stage(
            20,
            10,
            [
                {"match": "(q|k)_proj$", "mode": "full"},
                {"match": "(v|o|gate|up|down)_proj$", "mode": "lora", "rank": 64, "alpha": 32},
                NORMS,
            ],
            epochs=1,
            offload=True,
        ),
        "stage3": stage(
            12, 1, [{"match": "embed_tokens$|lm_head$", "mode": "frozen"}, {"match": ".", "mode": "full"}], epochs=6
        ),
    },
}
"""A-93; epochs of stage 3 at its most (AMB-8), which gives the paper's 2,750 updates."""
ROWS = {"stage1": 3_360_000, "stage2": 3_330_232, "stage3": 11_000}
"""Rows of an epoch as the authors ran them: packed in stage 1, one chat a row afterwards (AMB-8, F-7)."""
LENGTHS = {"stage1": 1200, "stage2": 1024, "stage3": 1024}


def write(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    recipe = load_recipe(write(tmp_path_factory.mktemp("paper"), PAPER))
    return make_plan(recipe, Options(gpu="A100-40G", rows=ROWS, tokens_per_row=LENGTHS))


def test_paper_parameters(paper: Plan) -> None:
    """A-94."""
    lora, norms = 335_544_320, 266_240
    assert paper.stages[0].model.trainable == lora + norms
    assert paper.stages[1].model.trainable == 671_088_640 + 140_509_184 + norms
    assert {stage.model.total for stage in paper.stages} == {8_030_261_248}


def test_paper_updates_and_micro_steps(paper: Plan) -> None:
    """AMB-8."""
    assert [stage.updates for stage in paper.stages] == [140_000, 8_326, 2_750]
    assert [stage.micro_steps for stage in paper.stages] == [140_000, 83_260, 2_750]
    assert paper.stages[0].tokens == 8_064_000_000


def test_paper_fits_into_40_gb(paper: Plan) -> None:
    for planned in paper.stages:
        assert planned.fits, planned.verdict
        assert 16e9 < planned.memory.total < 42.4e9


def test_paper_order_of_time(paper: Plan) -> None:
    """A-93: 1.5 days, 16 h and 2 h, all three from one efficiency and one share of the links."""
    for planned, published in zip(paper.stages, (36, 16, 2), strict=True):
        assert planned.time is not None
        assert published / 1.5 < planned.time.seconds / 3600 < published * 1.5
    told = " ".join(paper.assumptions)
    assert "45% of it reached" in told
    assert "links at 50% of 32 GB/s" in told
    assert "4 billion parameters a second" in told


def test_paper_without_recomputation_or_offload_does_not_fit(tmp_path: Path) -> None:
    """The verdict names the part and a change that helps."""
    content = {**PAPER, "stages": {"stage3": {**PAPER["stages"]["stage3"]}}}
    overrides = ["stages.stage3.train.gradient_checkpointing=false", "stages.stage3.train.workers.count=4"]
    made = make_plan(load_recipe(write(tmp_path, content), overrides), Options(gpu="A100-40G", rows={"": 11_000}))
    (planned,) = made.stages
    assert not planned.fits
    assert "does not fit" in planned.verdict
    assert "set gradient_checkpointing: true" in planned.verdict
    assert any(planned.verdict in problem for problem in made.problems)


def test_elastic_workers_must_fit_at_the_fewest(tmp_path: Path) -> None:
    content = {**PAPER, "stages": {"stage3": PAPER["stages"]["stage3"]}}
    path = write(tmp_path, content)
    options = Options(gpu="A100-40G", rows={"": 11_000})
    few, many, elastic = (
        make_plan(load_recipe(path, [f"stages.stage3.train.workers.count={count}"]), options).stages[0]
        for count in ("2", "12", "[2, 12]")
    )
    # Two workers do the update of twelve in several micro-batches, between which the sum of gradients stands.
    assert elastic.memory.parts["optimizer"] == few.memory.parts["optimizer"]
    assert elastic.memory.total >= few.memory.total > many.memory.total
    assert elastic.time == many.time


TINY = {
    "job": "train",
    "name": "tiny",
    "data": "nowhere",
    "model": {
        "config": {
            "model_type": "llama",
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        }
    },
    "trainability": [{"match": ".", "mode": "full"}],
    "optimizer": {"learning_rate": 1.0e-3},
    "max_updates": 10,
    "workers": {"count": 1, "gpus_per_worker": 1},
}


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return write(tmp_path, TINY)


def test_unknown_gpu_is_refused_with_near_names(tiny: str) -> None:
    with pytest.raises(ConfigurationError, match="A1000-40") as told:
        make_plan(load_recipe(tiny), Options(gpu="A1000-40"))
    assert "A100" in told.value.fix


def test_unknown_stage_is_refused(tiny: str) -> None:
    with pytest.raises(ConfigurationError, match="stage9") as told:
        make_plan(load_recipe(tiny), Options(rows={"stage9": 5}))
    assert "tiny" in told.value.fix


def test_recipes_without_stages_are_refused(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, {"job": "serve", "model": "x"}))
    with pytest.raises(ConfigurationError, match="no stages"):
        make_plan(recipe, Options())


def test_unreachable_model_says_what_to_do(tmp_path: Path) -> None:
    content = {**TINY, "model": {"path": str(tmp_path / "absent")}}
    (tmp_path / "absent").mkdir()
    with pytest.raises(ConfigurationError, match="cannot read the configuration") as told:
        make_plan(load_recipe(write(tmp_path, content)), Options())
    assert "config.json" in told.value.fix


FOLDER = Path(__file__).parents[3] / "jobs" / "recipes"
PLANNED = ["demo", "core_promoter", "benchmark/pipeline", "chatmultiomics/pipeline"]
PLANNED += [f"chatmultiomics/ablations/{name}" for name in ("a144_lora", "a146_mol_instructions")]
"""Recipes with all kinds of stages; the stages of the others are among theirs."""


@pytest.mark.parametrize("name", PLANNED)
def test_recipes_can_be_planned(name: str) -> None:
    recipe = load_recipe(FOLDER / f"{name}.yaml")
    made = make_plan(recipe, Options(gpu="A100-40G", rows={"": 100_000}, tokens_per_row={"": 500}))
    chains = recipe.config.model_dump()["ablations"].values()
    assert {stage for chain in chains for stage in chain} <= {stage.config.name for stage in made.stages}
    assert all(stage.updates for stage in made.stages)


def test_unknown_data_leaves_the_totals_open(tiny: str) -> None:
    made = make_plan(load_recipe(tiny, ["max_updates=null", "epochs=1"]), Options())
    assert made.stages[0].updates is None
    assert made.stages[0].gpu_hours is None
    assert made.stages[0].time is not None


def test_a_gpu_that_is_not_here_is_a_problem(tiny: str) -> None:
    made = make_plan(load_recipe(tiny, ["workers.count=4000"]), Options())
    assert any(problem.startswith("4000 GPUs are needed") for problem in made.problems)


def test_given_rate(tiny: str) -> None:
    options = Options(tokens_per_second=100.0, rows={"": 80}, tokens_per_row={"": 50})
    (planned,) = make_plan(load_recipe(tiny), options).stages
    assert planned.time is not None
    assert planned.time.seconds == pytest.approx(10 * 8 * 50 / 100)
    assert planned.gpu_hours == pytest.approx(planned.time.seconds / 3600)


def test_existing_runs_are_told(tiny: str, tmp_path: Path) -> None:
    from polysome.operations import runs

    recipe = load_recipe(tiny)
    root = str(tmp_path / "runs")

    def told(changes: tuple[str, ...] = ()) -> str:
        return make_plan(load_recipe(tiny, changes), Options(runs=root, run_id="one")).existing[0]

    assert "nothing is overwritten" in told()
    with runs.start(root, "train", "tiny", recipe.config, run_id="one"):
        assert "is running" in told()
    assert "finished, is kept" in told()
    assert "another configuration, and is refused" in told(("seed=7",))
