"""The recipe of an evaluation."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from polysome.config import Config
from polysome.data.skeleton import Wording
from polysome.inference.endpoint import Endpoint, as_endpoint
from polysome.specs import Prompt, Split

Mode = Literal["text", "scores"]
"""What an example is asked for: an answer in words, or the likelihood of every answer of a closed set."""
Style = Literal["chat", "open_llm", "closed_llm"]
"""`chat`: the question as our models are trained on it. `open_llm`, `closed_llm`: as the paper asks its baselines."""
Baseline = Literal["majority", "mean", "median", "constant", "length", "kmer", "cnn"]
"""`majority`: the most frequent label of the training rows. `mean`, `median`: of their numbers. `constant`: of 101
quantiles of them the one with the best mixed score. `length`: linear in 32 bins of each molecule's length. `kmer`:
linear in k-mer counts. `cnn`: a small convolutional network."""
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
CHEAP: tuple[Baseline, ...] = BASELINES[:-1]
"""Those that take seconds."""


class EvaluationSettings(Config):
    """Which tasks are asked, and how: a recipe but for its name and model.

    Every answer in words is read by both parsers, strict and official, whose numbers stand apart (E-6).
    """

    seed: int = 42
    """Of the rows that a limit leaves, of the question template of each example, of answers at a temperature, and of
    the bootstrap."""
    tasks: Annotated[list[str], Field(min_length=1)]
    """Names of data sets that declare a task."""
    split: Split = "test"
    subsets: Annotated[list[str], Field(min_length=1)] | None = None
    """Of the split; those that are not optional when not given. Every task must have them."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Ask only so many examples of each task, drawn by the seed. For trying out: the report says so."""
    modes: Annotated[list[Mode], Field(min_length=1)] = ["text"]
    """`text`: an answer in words, which is parsed. `scores`: the likelihood of every answer of a closed set, which
    gives class probabilities and expected numbers."""
    style: Style = "chat"
    """`open_llm` and `closed_llm` ask as the paper asks its baselines (A-131, A-132)."""
    prompt: Prompt = "concise"
    """System prompt of style `chat`. Metric tables use `concise` (A-74)."""
    tagged: bool = False
    """Put the task tag before the question (A-62: off by default)."""
    wording: Wording | dict[str, Wording] = "faithful"
    """`conditioned` questions name the mark, factor or cell line too (AMB-12). One word for all tasks, each of which
    must declare such questions, or a word by task; tasks that are not named are asked faithfully."""
    max_new_tokens: Annotated[int, Field(ge=1, le=8192)] | None = None
    """Of an answer in words. When not given 32, for the prompts of the baselines 64, with reasoning 1024 (A-134)."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Of answers in words; 0 is greedy."""
    replicas: Annotated[int, Field(ge=1, le=100)] = 1
    """How often each question is answered in words, each time with other draws (E-2). Measured is the majority of
    classes, the median of numbers, the first of free texts; the report tells how far they agree."""
    sentiment: str | None = None
    """Local folder of a sentiment model for the official parser of yes-no answers without a keyword (A-101); without
    one such answers count as wrong."""
    prior_correction: bool = False
    """Tell scores relative to those under the same question without its molecules."""
    calibration_rows: Annotated[int, Field(ge=0)] = 2000
    """Most dev rows, and no more than `limit`, that are scored to fit class probabilities, or asked in words for the
    interval of a regression; 0: neither."""
    baselines: list[Baseline] = list(CHEAP)
    """Trivial systems that are measured on the same rows (A-119); `cnn` takes minutes a task."""
    actors: Annotated[int, Field(ge=1)] = 2
    """Engines that answer side by side; fewer start when the cluster has fewer CPUs or GPUs. An endpoint has one."""
    cpus_per_actor: Annotated[int, Field(ge=1)] = 1
    gpus_per_actor: Annotated[float, Field(ge=0, le=1)] = 0
    """Above 0 the engines run on a GPU; a fraction lets several share one."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Examples that an actor gets, answers and hands back at a time; so much is lost at most when all is killed."""
    max_batch_tokens: Annotated[int, Field(ge=1)] = 16384
    """Most positions of one forward batch."""
    start_timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds to wait for the first actor to be placed before a local Ray counts as full; on a cluster that may grow,
    the waiting is told this often."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap resamples of the confidence intervals (E-5)."""

    @field_validator("tasks", "modes", "subsets", "baselines")
    @classmethod
    def _distinct(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and len(set(names)) != len(names):
            raise ValueError("each may stand once")
        return names

    @model_validator(mode="after")
    def _one_prompt(self) -> "EvaluationSettings":
        if self.style != "chat" and self.prompt != "concise":
            raise ValueError(f"style {self.style!r} brings its own system prompt: leave prompt out")
        return self

    @model_validator(mode="after")
    def _wordings_of_tasks(self) -> "EvaluationSettings":
        if isinstance(self.wording, dict) and (strange := sorted(set(self.wording) - set(self.tasks))):
            raise ValueError(f"wording names {strange}, which are not among the tasks {self.tasks}")
        return self

    @model_validator(mode="after")
    def _replicas_differ(self) -> "EvaluationSettings":
        if self.replicas > 1 and (self.temperature == 0 or "text" not in self.modes):
            raise ValueError("replicas are answers in words that differ: set a temperature above 0, and mode text")
        return self

    def wording_of(self, task: str) -> Wording:
        """Which questions a task is asked."""
        return self.wording.get(task, "faithful") if isinstance(self.wording, dict) else self.wording

    @property
    def answer_tokens(self) -> int:
        """Most tokens of an answer in words."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return 1024 if self.prompt == "reasoning" else 64 if self.style != "chat" else 32

    @property
    def decoding(self) -> dict[str, Any]:
        """What an answer in words depends on beside model, question, and which of the replicas it is."""
        drawn = {"seed": self.seed} if self.temperature else {}
        return {"temperature": self.temperature, "max_new_tokens": self.answer_tokens, **drawn}


class EvaluationConfig(EvaluationSettings):
    """The whole recipe of an evaluation."""

    name: str
    model: str | Endpoint
    """Hugging Face folder (safetensors, tokenizer with a chat template), local or any fsspec URL; or an
    OpenAI-compatible endpoint, as its http(s) address or with `url`, `model`, `key_variable`, `budget` and the rest."""
    adapter: str | None = None
    """Folder of a PEFT adapter for the model folder."""

    @model_validator(mode="before")
    @classmethod
    def _addresses_are_endpoints(cls, content: Any) -> Any:
        if isinstance(content, dict) and isinstance(content.get("model"), str):
            content = {**content, "model": as_endpoint(content["model"]) or content["model"]}
        return content

    @model_validator(mode="after")
    def _adapters_have_folders(self) -> "EvaluationConfig":
        if self.adapter is not None and isinstance(self.model, Endpoint):
            raise ValueError("an endpoint takes no adapter: serve its merged export")
        return self

    @model_validator(mode="after")
    def _draws_of_an_endpoint_differ(self) -> "EvaluationConfig":
        if self.replicas > 1 and isinstance(self.model, Endpoint) and self.model.extra.get("seed") is not None:
            raise ValueError("replicas differ in their seed: leave seed out of the endpoint's extra fields")
        return self

    @property
    def source(self) -> str:
        """The model in words: its folder, or the endpoint's address and model."""
        if isinstance(self.model, Endpoint):
            return f"{self.model.url} {self.model.model or ''}".rstrip()
        return self.model
