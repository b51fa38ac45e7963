"""Evaluations on real Ray actors, of a tiny random Llama and of an endpoint: answers kept, failures survived."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from polysome.config import DataError, ResourceError
from polysome.evaluation import actors
from polysome.evaluation.actors import ActorOptions, Batch, answer_batches
from polysome.evaluation.choices import choices
from polysome.evaluation.config import EvaluationConfig
from polysome.evaluation.run import RESULTS_FILE, evaluate, read_evaluation
from polysome.evaluation.samples import SAMPLES_FILE
from polysome.inference.batch import BatchEngine
from polysome.inference.endpoint import Endpoint
from polysome.specs import dataset

pytestmark = pytest.mark.ray

ROWS = 60
CONTEXT = 128
SPEC = """
name: {name}
title: Tiny {name}
homepage: https://example.org
licence: CC0-1.0
citation: made for this test
format: csv
molecules: [{{type: dna}}]
splits:
  train:
    - {{uri: "{folder}/{name}.train.csv"}}
  dev:
    - {{uri: "{folder}/{name}.dev.csv"}}
  test:
    - {{uri: "{folder}/{name}.a.csv", subset: a}}
    - {{uri: "{folder}/{name}.b.csv", subset: b}}
task:
  name: {name}
  title: Tiny {name}
  label: {label}
  metric: {metric}
  tag: "[Test: {name}]"
  hint: Answer.
  templates:
    questions: ["{{sequence}} What is it?", "{{sequence}} And this?"]
    answers: {answers}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: str) -> str:
    """A tiny random Llama, exported as a plain Hugging Face folder."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A binary task, one of whose sequences exceeds the model's context, and a regression; two subsets each."""
    folder = tmp_path / "specs"
    folder.mkdir()
    draw = random.Random(3)
    kinds = {
        "tiny_binary": ("{kind: binary}", "mcc", '{positive: ["Yes."], negative: ["No."]}'),
        "tiny_number": ("{kind: regression}", "spearman", '{any: ["It is {label}."]}'),
    }
    for name, (label, metric, answers) in kinds.items():
        (folder / f"{name}.yaml").write_text(
            SPEC.format(name=name, folder=folder, label=label, metric=metric, answers=answers)
        )
        for part in ("a", "b", "train", "dev"):
            with open(folder / f"{name}.{part}.csv", "w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["sequence", "label"])
                for row in range(ROWS // 2):
                    too_long = name == "tiny_binary" and part == "b" and row == 7
                    length = 2 * CONTEXT if too_long else draw.randint(20, 40)
                    value = draw.randint(0, 1) if name == "tiny_binary" else round(draw.random(), 2)
                    rows.writerow(["".join(draw.choices("ACGT", k=length)), value])
    monkeypatch.setenv("POLYSOME_DATASETS", str(folder))
    return list(kinds)


def recipe(model: str, tasks: list[str], **changes: object) -> EvaluationConfig:
    settings = {"prompt": "none", "max_new_tokens": 6, "batch_size": 8, "baselines": [], "resamples": 100} | changes
    return EvaluationConfig(name="tiny", model=model, tasks=tasks, **settings)


def samples_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / SAMPLES_FILE).read_text().splitlines()]


def test_answers_and_scores_are_those_of_the_engine_and_results_are_whole(
    ray_cluster, model: str, tasks: list[str], tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    config = recipe(
        model, tasks, modes=["text", "scores"], prior_correction=True, baselines=["majority", "mean", "kmer"]
    )
    evaluation = evaluate(config, str(tmp_path / "out"), progress=lambda done, total: seen.append((done, total)))

    samples = samples_in(tmp_path / "out")
    # Beside the test rows the dev rows of the calibration and of the interval.
    total = 4 * ROWS + 2 * (ROWS // 2)
    assert len(samples) == len({sample["key"] for sample in samples}) == evaluation.asked == total
    assert (seen[0], seen[-1]) == ((0, total), (total, total))
    engine = BatchEngine(model)
    training = [(value,) for value in labels_in(tmp_path / "specs" / "tiny_number.train.csv")]
    sets = {name: choices(dataset(name), training, seed=config.seed) for name in tasks}
    for sample in random.Random(1).sample([sample for sample in samples if not sample["error"]], 16):
        asked, closed = sample["input"], sets[sample["dataset"]]
        if sample["mode"] == "text":
            assert sample["model_output"] == engine.generate([chat(asked)], max_new_tokens=6)[0].text
        else:
            blank = re.sub("<dna>.*</dna>", "<dna></dna>", asked)
            told, prior = (engine.score([chat(text)], closed.texts)[0].sums for text in (asked, blank))
            assert sample["scores"] == pytest.approx(closed.read(told, prior), abs=1e-3)

    binary, number = evaluation.tasks
    assert (binary.measurement.n, number.measurement.n) == (ROWS, ROWS)
    assert set(binary.measurement.subsets) == {"a", "b"}
    assert set(binary.baselines) == {"majority", "kmer"}
    assert set(number.baselines) == {"mean", "kmer"}
    # The row that is too long could be asked neither in words nor for scores, and is one row.
    assert (binary.errors, number.errors) == (1, 0)
    assert f"the model's context is {CONTEXT}" in " ".join(reason for reason, _ in binary.error_reasons)
    assert binary.calibration is not None
    assert binary.calibration.dev_n == ROWS // 2
    results = json.loads((tmp_path / "out" / RESULTS_FILE).read_text())
    assert results["tasks"][0]["styles"]["strict"]["metric"] == "mcc"
    assert results["settings"]["decoding"] == {"temperature": 0.0, "max_new_tokens": 6}
    again = evaluate(config, str(tmp_path / "out"))
    assert (again.asked, again.reused) == (0, total)
    assert [task.to_json() for task in again.tasks] == results["tasks"]
    assert read_evaluation(str(tmp_path / "out")).to_json() == again.to_json()


def test_a_killed_evaluation_goes_on_where_it_was(ray_cluster, tasks: list[str], tmp_path: Path) -> None:
    """kill -9 of the whole driver in the middle: what was written is not asked again, and the answers are the same."""
    folder = tmp_path / "out"
    program = (
        "import sys, time, ray\n"
        "from polysome.evaluation import run\n"
        "from polysome.evaluation.config import EvaluationConfig\n"
        "ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "config = EvaluationConfig.model_validate_json(sys.argv[1])\n"
        "run.evaluate(config, sys.argv[2], progress=lambda done, total: time.sleep(0.5 if done else 0))\n"
    )
    config = recipe("fake:Yes, 0.5.", tasks, actors=1)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    scratch = tempfile.mkdtemp(prefix="pk-", dir="/tmp")
    environment |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": scratch,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    driver = subprocess.Popen(
        [sys.executable, "-c", program, config.model_dump_json(), str(folder)], env=environment, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / SAMPLES_FILE).exists() or (folder / SAMPLES_FILE).read_bytes().count(b"\n") < 24:
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        shutil.rmtree(scratch, ignore_errors=True)
    with open(folder / SAMPLES_FILE, "ab") as file:
        file.write(b'{"key": "torn')
    written = [sample for sample in (folder / SAMPLES_FILE).read_text().splitlines()[:-1]]
    assert not (folder / RESULTS_FILE).exists()

    evaluation = evaluate(config, str(folder))
    assert evaluation.reused == len(written)
    assert evaluation.asked == 2 * ROWS + ROWS // 2 - len(written)
    assert (folder / SAMPLES_FILE).read_text().splitlines()[: len(written)] == written
    fresh = evaluate(config, str(tmp_path / "fresh"))
    assert [task.to_json() for task in evaluation.tasks] == [task.to_json() for task in fresh.tasks]


@pytest.fixture
def endpoint() -> Iterator[str]:
    """An API that is busy at first, then broken, then answers nonsense; one question it can never answer."""
    calls = Counter[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})

        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = content["messages"][-1]["content"]
            calls[asked] += 1
            turn = calls.total()
            if "ACGTACGTACGTACGTACGTACGT" in asked:
                self.reply(500, {"error": {"message": "an inner error"}})
            elif turn == 1:
                self.reply(429, {"error": {"message": "busy"}}, {"Retry-After": "0"})
            elif turn == 2:
                self.reply(502, "<html>bad gateway</html>")
            elif turn == 3:
                self.reply(200, "{not json")
            elif turn == 4:
                self.reply(200, {"choices": []})
            else:
                message = {"role": "assistant", "content": "Yes."}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                self.reply(200, {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})

        def reply(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
            body = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_an_endpoint_that_misbehaves_is_asked_again_and_its_failures_are_told(
    ray_cluster, endpoint: str, tasks: list[str], tmp_path: Path
) -> None:
    with open(tmp_path / "specs" / "tiny_binary.b.csv", "a") as file:
        file.write("ACGTACGTACGTACGTACGTACGT,1\n")
    source = Endpoint(url=endpoint, model="tiny", attempts=6, backoff_seconds=0.01, timeout_seconds=10)
    config = recipe(source, ["tiny_binary"], batch_size=32)  # type: ignore[arg-type]
    evaluation = evaluate(config, str(tmp_path / "out"))
    [result] = evaluation.tasks
    assert (result.errors, result.measurement.n) == (1, ROWS + 1)
    assert "500" in result.error_reasons[0][0]
    answered = [sample for sample in samples_in(tmp_path / "out") if sample["error"] is None]
    assert len(answered) == ROWS
    assert {sample["model_output"] for sample in answered} == {"Yes."}
    [failed] = [sample for sample in samples_in(tmp_path / "out") if sample["error"]]
    assert failed["transient"]
    again = evaluate(config, str(tmp_path / "out"))
    assert (again.asked, again.reused) == (1, ROWS)


def test_an_endpoint_that_is_gone_is_told_before_anything_starts(tasks: list[str], tmp_path: Path) -> None:
    gone = Endpoint(url="http://127.0.0.1:9/v1", model="tiny", attempts=2, backoff_seconds=0.01)
    with pytest.raises(ResourceError):
        evaluate(recipe(gone, tasks), str(tmp_path / "out"))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_an_actor_that_dies_is_replaced_and_its_batch_answered(
    ray_cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    marker = tmp_path / "died"

    class Mortal(actors.Answerer):
        def answer(self, batch):
            if not marker.exists():
                marker.touch()
                os._exit(1)
            return super().answer(batch)

    monkeypatch.setattr(actors, "Answerer", Mortal)
    batches = [Batch([chat(letters)]) for letters in ("A", "C", "G", "T")]
    answers = dict(answer_batches(batches, options()))
    assert sorted(answers) == [0, 1, 2, 3]
    assert marker.exists()


def test_a_batch_that_kills_every_actor_ends_the_evaluation(ray_cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    class Doomed(actors.Answerer):
        def load(self):
            pass

        def answer(self, batch):
            os._exit(1)

    monkeypatch.setattr(actors, "Answerer", Doomed)
    with pytest.raises(ResourceError, match=f"{actors.ATTEMPTS} evaluation actors died at batch 0"):
        list(answer_batches(one_batch(), options()))


def test_what_is_wrong_with_the_model_or_the_cluster_is_said(ray_cluster, tmp_path: Path) -> None:
    import ray

    batches = one_batch()
    with pytest.raises(DataError, match="no model folder"):
        list(answer_batches(batches, options(str(tmp_path / "gone"))))
    with pytest.raises(ResourceError, match="needs 64 CPUs"):
        list(answer_batches(batches, options(cpus=64)))

    @ray.remote(num_cpus=2)
    class Occupant:
        def here(self) -> bool:
            return True

    occupant = Occupant.remote()
    assert ray.get(occupant.here.remote())
    try:
        with pytest.raises(ResourceError, match="could be placed within 3 s"):
            list(answer_batches(batches, options(start_timeout=3)))
    finally:
        ray.kill(occupant)


def test_a_full_cluster_that_can_grow_is_waited_for(
    ray_cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    @ray.remote(num_cpus=2)
    class Occupant:
        def here(self) -> bool:
            return True

    occupant = Occupant.remote()
    assert ray.get(occupant.here.remote())
    monkeypatch.setattr(actors, "can_grow", lambda: True)
    leaves = threading.Timer(3, ray.kill, [occupant])
    leaves.start()
    batches = one_batch()
    assert [index for index, _ in answer_batches(batches, options(start_timeout=1))] == [0]
    leaves.join()
    assert "waiting for the cluster to grow" in caplog.text


def one_batch() -> list[Batch]:
    return [Batch([chat("A")])]


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def labels_in(path: Path) -> list[float]:
    with open(path, newline="") as file:
        return [float(row["label"]) for row in csv.DictReader(file)]


def options(model: str = "fake:Yes.", *, cpus: int = 1, start_timeout: float = 60) -> ActorOptions:
    return ActorOptions(
        model, actors=2, cpus=cpus, gpus=0, max_batch_tokens=4096, max_new_tokens=4, start_timeout=start_timeout
    )
