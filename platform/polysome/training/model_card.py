"""Model cards: what a model is, how and on what data it was trained, in Markdown with the head that Hugging Face
reads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from polysome import __version__
from polysome.data.manifest import Manifest
from polysome.training.checkpoint import Progress
from polysome.training.config import StageConfig
from polysome.training.provenance import DataSource, Provenance, StageRecord, origin

__all__ = ["Card", "origin", "readme"]

_OPEN_LICENCES = {"mit", "apache-2.0", "bsd-3-clause", "cc0-1.0", "cc-by-4.0"}
"""Those that ask for no more than attribution, as Hugging Face names them."""
_HUB_LICENCES = _OPEN_LICENCES | {"afl-3.0", "gpl-3.0", "agpl-3.0"}


@dataclass(frozen=True)
class Card:
    """The facts of a finished stage.

    Attributes:
        fingerprint: of the stage.
        origin: of the model that the stage started from, as `origin` read it.
        rules: rows of `training.optimizer.table` as plain values.
        optimizer: which AdamW ran.
        workers: how many trained at the end.
        total_parameters: of the model without adapters, shared ones counted once.
        trainable_parameters: that were trained, LoRA's own among them.
    """

    config: StageConfig
    fingerprint: str
    manifest: Manifest
    origin: Provenance
    progress: Progress
    rules: list[dict[str, Any]]
    optimizer: str
    workers: int
    total_parameters: int
    trainable_parameters: int

    @property
    def provenance(self) -> Provenance:
        """Of the trained model: its origin's, and this stage."""
        manifest, progress = self.manifest, self.progress
        sources = [
            DataSource(**source.model_dump(include=set(DataSource.model_fields) - {"files"}), files=len(source.files))
            for source in manifest.sources
        ]
        stage = StageRecord(
            stage=self.config.name,
            fingerprint=self.fingerprint,
            started_from=self.config.model.path,
            data=manifest.name,
            kind=manifest.kind,
            data_fingerprint=manifest.fingerprint,
            recipe_fingerprint=manifest.recipe_fingerprint,
            tokenizer_fingerprint=manifest.tokenizer_fingerprint,
            sources=sources,
            updates=progress.update,
            rows=progress.position,
            tokens=progress.tokens,
            final_loss=progress.loss,
            polysome=__version__,
        )
        return self.origin.model_copy(update={"stages": [*self.origin.stages, stage]})


def readme(card: Card, *, architecture: dict[str, Any], adapter: str, is_adapter: bool = False) -> str:
    """The model card, Markdown with the YAML head that Hugging Face reads.

    Args:
        architecture: facts of the network by name.
        adapter: a sentence on the adapter.
        is_adapter: the card of the adapter's folder, instead of the merged model's.
    """
    provenance = card.provenance
    parts = [
        f"---\n{yaml.safe_dump(_head(provenance, is_adapter), sort_keys=False, allow_unicode=True)}---",
        f"# {card.config.name}" + (" (adapter)" if is_adapter else ""),
        f"Trained with Polysome {__version__}. Every figure below was recorded by the run that made these weights.",
        "## What it is",
        _items(
            {
                "Stage": card.config.name,
                **architecture,
                "Parameters": f"{card.total_parameters:,} in all; {card.trainable_parameters:,} trained in this stage",
                "Started from": _shown(card.config.model.path) or "weights drawn from a configuration and a seed",
                "Adapter": adapter,
            }
        ),
        "## How to load it",
        _adapter_code(card) if is_adapter else _MODEL_CODE,
        "## How it was trained",
        *_training(card),
        "## On what data",
        *_data(provenance),
        "## Licences",
        *_licences(provenance),
        "## Stages",
        _table(
            {
                "stage": stage.stage,
                "stage fingerprint": stage.fingerprint,
                "data": stage.data,
                "data fingerprint": stage.data_fingerprint,
                "data recipe fingerprint": stage.recipe_fingerprint,
                "tokenizer fingerprint": stage.tokenizer_fingerprint,
                "updates": f"{stage.updates:,}",
                "polysome": stage.polysome,
            }
            for stage in provenance.stages
        ),
        "## Intended use and limits",
        *_limits(card, provenance),
    ]
    return "\n\n".join(parts) + "\n"


_MODEL_CODE = """```python
from transformers import pipeline
ask = pipeline("text-generation", "path/to/this/folder", return_full_text=False)
print(ask([{"role": "user", "content": "your question"}], max_new_tokens=64)[0]["generated_text"])
```"""


def _adapter_code(card: Card) -> str:
    base = _shown(card.config.model.path)
    said = f"`base` is {base}." if base else "`base` is the model of the run's configuration before training."
    return f"""```python
from polysome.training.adapter import load_adapter
model = load_adapter("path/to/base", "path/to/this/folder")
model = model.merge_and_unload()
```

{said} `load_adapter` refuses any other; `peft.PeftModel.from_pretrained` loads the adapter as well, unchecked."""


def _head(provenance: Provenance, is_adapter: bool) -> dict[str, Any]:
    known = provenance.licences if provenance.base is None or provenance.base_licence else []
    names = set(map(_plain, known))
    carried = _plain(provenance.base_licence) if provenance.base_licence else ""
    one = names.pop() if len(names) == 1 else ""
    molecules = {name for source in provenance.sources for name in source.molecules}
    head: dict[str, Any] = {"license": one if one in {*_HUB_LICENCES, carried} - {""} else "other"}
    if head["license"] == "other":
        head["license_name"] = "see-licences-below"
    # An adapter rests on the model that its stage started from, a merged model descends from the first of all.
    base = provenance.stages[-1].started_from if is_adapter else provenance.base
    if base and _is_hub_id(base):
        head["base_model"] = base
    head["library_name"] = "peft" if is_adapter else "transformers"
    head["pipeline_tag"] = "text-generation"
    head["tags"] = ["polysome", "biology", *sorted(molecules), *(["lora"] if is_adapter else [])]
    if provenance.sources:
        head["datasets"] = list(dict.fromkeys(source.dataset for source in provenance.sources))
    return head


def _training(card: Card) -> Iterable[str]:
    config, progress = card.config, card.progress
    optimizer, schedule = config.optimizer, config.schedule
    yield _items(
        {
            "Optimizer": f"AdamW ({card.optimizer}), learning rate {optimizer.learning_rate:g}, LoRA+ ratio "
            f"{optimizer.lora_plus_ratio:g}, betas {optimizer.betas[0]:g} and {optimizer.betas[1]:g}, epsilon "
            f"{optimizer.epsilon:g}, weight decay {optimizer.weight_decay:g}, clip {optimizer.clip:g}",
            "Schedule": f"{schedule.embedding_warmup_steps} updates of embedding and output layer alone, "
            f"{schedule.prewarmup_steps} updates at {schedule.prewarmup_factor:g} of the peak, warm-up "
            f"over {schedule.warmup_fraction:g} of all updates, cosine down to {schedule.floor:g} of the peak",
            "Updates": f"{progress.update:,} of {config.rows_per_update:,} rows each, {progress.skipped:,} skipped",
            "Rows": f"{progress.position:,} packed rows of at most {card.manifest.max_length:,} tokens",
            "Tokens": f"{progress.tokens:,} without padding",
            "Final loss": "not recorded" if progress.loss is None else f"{progress.loss:.4f} nats per target token",
            "Number loss": f"weight {config.number_loss.weight:g}" if config.number_loss else "none",
            "Precision": f"{config.precision}, master weights and optimizer moments fp32",
            "Workers": f"{card.workers}, ZeRO stage {config.zero}"
            + (", optimizer on the CPU" if config.offload else ""),
            "Seed": str(config.seed),
        }
    )
    yield "What trained:"
    yield _table({**row, "rates": _rates(row["rates"])} for row in card.rules)


def _rates(rates: dict[str, dict[str, float]]) -> str:
    return ", ".join(
        f"{role} {rate['learning_rate']:g} (weight decay {rate['weight_decay']:g})" for role, rate in rates.items()
    )


def _data(provenance: Provenance) -> Iterable[str]:
    for stage in provenance.stages:
        yield f"Stage {stage.stage}: {stage.data} ({stage.kind}), fingerprint `{stage.data_fingerprint}`."
        if stage.sources:
            yield _table(
                {
                    "data set": f"{source.dataset}@{source.version}",
                    "split": source.split,
                    "prompt": source.prompt,
                    "molecules": ", ".join(source.molecules),
                    "examples": f"{source.examples:,}",
                    "tokens": f"{source.tokens:,}",
                    "files (SHA-256 recorded)": f"{source.files:,}",
                    "licence": source.licence,
                }
                for source in stage.sources
            )
        else:
            yield "Its manifest lists no sources."


def _licences(provenance: Provenance) -> Iterable[str]:
    by_licence: dict[str, list[str]] = {}
    for source in provenance.sources:
        names = by_licence.setdefault(source.licence, [])
        if source.dataset not in names:
            names.append(source.dataset)
    if provenance.base is not None:
        licence = provenance.base_licence or "not known to the run: see the page of the base model"
        by_licence.setdefault(licence, []).append(f"the base model {_shown(provenance.base)}")
    yield _table({"licence": licence, "of": ", ".join(names)} for licence, names in by_licence.items()) or "None known."
    if closed := [licence for licence in by_licence if _plain(licence) not in _OPEN_LICENCES]:
        yield (
            "**Read these before you share the weights or use them commercially.** They are restrictive, copyleft, "
            "mixed or unstated, and may forbid it:"
        )
        yield "\n".join(f"- {licence}: {', '.join(by_licence[licence])}" for licence in closed)


def _limits(card: Card, provenance: Provenance) -> Iterable[str]:
    yield "For research only. Not for diagnosis, treatment, or any decision about a person."
    limits = [
        f"This stage saw no text longer than {card.manifest.max_length:,} tokens.",
        "Answers are text that a language model found likely. Nothing here says how good they are: see the report of "
        "an evaluation of this very model.",
    ]
    if cropped := sum(source.cropped for source in card.manifest.sources):
        limits.append(f"In {cropped:,} examples of this stage molecules were cropped to fit.")
    if provenance.tasks:
        limits.append(f"Trained to answer: {', '.join(provenance.tasks)}. Other questions are outside its training.")
    else:
        limits.append("Not trained to answer questions: its data are sequences alone.")
    yield "\n".join(f"- {limit}" for limit in limits)


def _items(facts: dict[str, Any]) -> str:
    return "\n".join(f"- **{name}**: {value}" for name, value in facts.items())


def _table(rows: Iterable[dict[str, Any]]) -> str:
    listed = [{name: str(value).replace("|", r"\|") for name, value in row.items()} for row in rows]
    if not listed:
        return ""
    names = list(listed[0])
    lines = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in listed)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(licence: str) -> str:
    return licence.removesuffix(" (generated)").lower()


def _is_hub_id(model: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model) is not None and not os.path.isdir(model)


def _shown(model: str | None) -> str | None:
    """A hub id as it is; of a folder its last two names, for a card travels and a user's folders need not."""
    return model if model is None or _is_hub_id(model) else "/".join(model.rstrip("/").split("/")[-2:])
