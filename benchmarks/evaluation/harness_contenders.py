"""The two sides of `harness.py`, each run in a process of its own: `python harness_contenders.py '{"program": ...}'`.

Our side imports nothing of the harness, the harness's side nothing of Polysome, so that another environment can run it.
Each writes JSON to `told`: seconds, texts and likelihoods by task and document, values of the metrics by task.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

METRICS = {"acc": "accuracy", "mcc": "mcc"}
"""Of a choice task: the harness's name, and ours."""


def main(job: dict[str, Any]) -> None:
    """Pin this process, evaluate, and tell what was found."""
    os.sched_setaffinity(0, [job["core"]])
    # What both need anyway is not timed.
    import scipy.stats  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch

    torch.set_num_threads(1)
    found = {"polysome": polysome, "lm_eval": lm_eval}[job["program"]](job)
    Path(job["told"]).write_text(json.dumps(found))


def polysome(job: dict[str, Any]) -> dict[str, Any]:
    """Our engine, parser and metrics, as an evaluation's actor and outcome call them."""
    from polysome.data.render import messages
    from polysome.evaluation.actors import ask
    from polysome.evaluation.measure import measure, predictions_of
    from polysome.evaluation.parsers import parser
    from polysome.inference.engine import Generation, open_engine
    from polysome.specs import dataset

    engine = open_engine(job["model"])
    started = time.process_time()
    texts, likelihoods, values = {}, {}, {}
    for name in job["names"]:
        base, _, kind = name.rpartition("_")
        task = dataset(base.removeprefix("polysome_")).task
        assert task is not None
        documents = [json.loads(line) for line in Path(job["tasks"], f"{base}.jsonl").read_text().splitlines()]
        conversations = [messages("concise", document["question"]) for document in documents]
        labels = [tuple(document["label"]) for document in documents]
        if kind == "text":
            answers = ask(engine, conversations, job["max_new_tokens"])
            told = [answer.text for answer in answers if isinstance(answer, Generation)]
            texts |= {f"{name}/{place}": text.split("\n\n")[0] for place, text in enumerate(told)}
            read = parser(task)
            measured = measure(task, labels, [read(text) for text in told], seed=0, resamples=0)
            values[f"{name} {task.metric}"] = measured.value.value
        else:
            sums = [scores.sums for scores in engine.score(conversations, _choices(Path(job["tasks"], f"{name}.yaml")))]
            likelihoods |= {f"{name}/{place}": list(found) for place, found in enumerate(sums)}
            import numpy as np

            measured = measure(task, labels, predictions_of(task, np.array(sums)), seed=0, resamples=0)
            told_values = {task.metric: measured.value.value} | {
                key: estimate.value for key, estimate in measured.extras.items()
            }
            values |= {f"{name} {ours}": told_values[ours] for ours in METRICS.values()}
    return {"seconds": time.process_time() - started, "texts": texts, "likelihoods": likelihoods, "values": values}


def lm_eval(job: dict[str, Any]) -> dict[str, Any]:
    """The harness on the exported tasks, its Hugging Face model on one CPU."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=job["model"], device="cpu", dtype="float32", batch_size=job["batch_size"])
    manager = TaskManager(include_path=job["tasks"], include_defaults=False)
    started = time.process_time()
    found = simple_evaluate(
        model=model,
        tasks=job["names"],
        task_manager=manager,
        apply_chat_template=True,
        bootstrap_iters=0,
        log_samples=True,
    )
    seconds = time.process_time() - started
    texts, likelihoods, values = {}, {}, {}
    for name in job["names"]:
        kind = name.rpartition("_")[2]
        for sample in found["samples"][name]:
            key = f"{name}/{sample['doc_id']}"
            if kind == "text":
                texts[key] = sample["resps"][0][0]
            else:
                likelihoods[key] = [float(response[0][0]) for response in sample["resps"]]
        for key, value in found["results"][name].items():
            metric, _, filtered = key.partition(",")
            if kind == "choice" and metric in METRICS:
                values[f"{name} {METRICS[metric]}"] = float(value)
            elif kind == "text" and filtered == "strict" and metric != "parse_rate" and not metric.endswith("_stderr"):
                values[f"{name} {metric}"] = float(value)
    versions = {package: version(package) for package in ("lm_eval", "torch", "transformers", "datasets", "accelerate")}
    return {"seconds": seconds, "texts": texts, "likelihoods": likelihoods, "values": values, "versions": versions}


def _choices(path: Path) -> list[str]:
    """The wordings of the classes."""
    import yaml

    # The tag for functions is the harness's own; none stands in a choice task.
    choices: list[str] = yaml.safe_load(path.read_text())["doc_to_choice"]
    return choices


if __name__ == "__main__" and len(sys.argv) > 1:
    main(json.loads(sys.argv[1]))
