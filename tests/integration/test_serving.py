"""A model served for real: Ray Serve, HTTP, OpenAI's own client, bad requests, and a clean end."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ports import free_port
from servers import hear_interrupts

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.evaluation.config import EvaluationConfig
from polysome.evaluation.run import evaluate
from polysome.evaluation.samples import SAMPLES_FILE, read_samples
from polysome.inference.batch import BatchEngine
from polysome.inference.endpoint import Endpoint
from polysome.inference.engine import open_engine
from polysome.serving import checks
from polysome.serving.config import Autoscaling, Limits, ServeConfig
from polysome.serving.prediction import read_number, task_spec

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
PROMOTER = "GCGCTATAAAGGCGCGCGATATTTACGCGC"


@pytest.fixture(scope="module")
def served(ray_cluster, model_folder: str) -> Iterator[tuple[str, ServeConfig]]:
    from ray import serve

    from polysome.serving import app

    config = ServeConfig(
        model=model_folder,
        name="tiny",
        port=free_port(),
        autoscaling=Autoscaling(min_replicas=1, max_replicas=1),
        limits=Limits(body_bytes=20_000, records=4, max_tokens=16, default_max_tokens=8),
        request_timeout_seconds=60,
    )
    with app.serving(config) as url:
        yield url, config
    # Other tests of this Ray serve at a port of their own, and Serve has one proxy.
    serve.shutdown()


def chat(url: str, content: str = "Is there a promoter?", **fields: object) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], **fields}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def test_the_openai_client_gets_a_completion_and_the_models(served, model_folder):
    from openai import OpenAI

    url, _ = served
    client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    answers = [
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "<dna>ACGT</dna> Is there a promoter?"}], max_tokens=5
        )
        for _ in range(2)
    ]
    first, second = (answer.choices[0] for answer in answers)
    assert first.message.content == second.message.content  # greedy
    conversation = [{"role": "user", "content": "<dna>ACGT</dna> Is there a promoter?"}]
    (own,) = BatchEngine(model_folder).generate([conversation], max_new_tokens=5)
    assert (first.message.content, first.finish_reason) == (own.text, own.finish_reason)
    assert answers[0].usage.completion_tokens == own.completion_tokens
    assert answers[0].system_fingerprint.startswith("fp_")


def test_an_engine_scores_through_the_server_what_the_model_scores_itself(served, model_folder):
    url, _ = served
    conversation = [{"role": "user", "content": "<dna>ACGT</dna> Is there a promoter?"}]
    choices = ["Yes.", "No, there is none."]
    (found,) = open_engine(Endpoint(url=f"{url}/v1", model="tiny")).score([conversation], choices)
    (own,) = BatchEngine(model_folder).score([conversation], choices)
    assert found.tokens == own.tokens
    assert found.sums == pytest.approx(own.sums, abs=1e-4)
    refused = httpx.post(f"{url}/v1/score", json={"messages": conversation, "choices": [""]}, timeout=60)
    assert refused.status_code == 400


def test_an_evaluation_of_the_server_measures_what_one_of_the_folder_does(served, model_folder, tmp_path):
    """Answers and scores of its address, asked by evaluation actors, are those of the model folder."""
    url, _ = served
    settings = {"modes": ["text", "scores"], "limit": 6, "prior_correction": True, "max_new_tokens": 6}
    settings |= {"calibration_rows": 0, "baselines": [], "actors": 1, "prompt": "none", "resamples": 100}
    found = {}
    for name, model in (("served", Endpoint(url=f"{url}/v1", model="tiny")), ("own", model_folder)):
        config = EvaluationConfig(name=name, model=model, tasks=["planted_promoter"], **settings)
        evaluation = evaluate(config, str(tmp_path / name), shared=str(tmp_path / "shared"))
        assert (evaluation.asked, evaluation.tasks[0].errors, evaluation.tasks[0].measurement.n) == (12, 0, 6)
        samples = read_samples(str(tmp_path / name / SAMPLES_FILE))
        found[name] = {(sample.id, sample.mode): sample for sample in samples}
    assert found["served"].keys() == found["own"].keys()
    assert len({round(own.scores[0], 3) for own in found["own"].values() if own.scores}) > 1
    for place, own in found["own"].items():
        told = found["served"][place]
        assert (told.input, told.model_output) == (own.input, own.model_output)
        assert told.scores == (own.scores and pytest.approx(own.scores, abs=1e-4))


def test_what_many_ask_at_once_equals_what_each_asks_alone(served):
    url, _ = served
    questions = [f"<dna>{'ACGT' * length}</dna> Is there a promoter?" for length in range(1, 9)]
    alone = [chat(url, question).json()["choices"][0]["message"]["content"] for question in questions]
    together: dict[str, str] = {}

    def ask(question: str) -> None:
        together[question] = chat(url, question).json()["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=ask, args=(question,)) for question in questions]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [together[question] for question in questions] == alone


def test_a_seed_repeats_a_sampled_answer(served):
    url, _ = served
    answers = {
        chat(url, temperature=1.5, seed=3, max_tokens=8).json()["choices"][0]["message"]["content"] for _ in range(3)
    }
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"max_tokens": -5}, "invalid_value", "max_tokens"),
        ({"max_tokens": 17}, "limit_exceeded", "max_tokens"),
        ({"n": 9}, "limit_exceeded", "n"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"tools": []}, "unknown_parameter", "tools"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "invalid_value", None),
    ],
)
def test_a_bad_request_is_refused_and_the_next_good_one_is_answered(served, fields, code, param):
    url, _ = served
    refused = chat(url, **fields)
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
    assert chat(url, max_tokens=1).status_code == 200


def test_a_prompt_beyond_the_context_is_refused_and_does_not_harm_its_batch(served):
    url, _ = served
    results: dict[str, httpx.Response] = {}
    questions = {"good": "Is there a promoter?", "poison": f"<dna>{'ACGT' * 500}</dna>"}
    threads = [
        threading.Thread(target=lambda name=name, text=text: results.update({name: chat(url, text)}))
        for name, text in questions.items()
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert results["good"].status_code == 200
    assert results["poison"].status_code == 400
    assert "context" in results["poison"].json()["error"]["message"]


def test_other_refusals_have_the_same_shape(served):
    url, _ = served
    big = httpx.post(f"{url}/v1/chat/completions", content=b"x" * 30_000, timeout=60)
    garbage = httpx.post(
        f"{url}/v1/chat/completions", content=b"{", headers={"content-type": "application/json"}, timeout=60
    )
    cases = {
        413: big,
        400: garbage,
        404: chat(url, model="other"),
        405: httpx.get(f"{url}/v1/predict", timeout=60),
    }
    for status, answer in cases.items():
        assert answer.status_code == status, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert httpx.get(f"{url}/nowhere", timeout=60).json()["error"]["code"] == "not_found"


def test_predict_tells_labels_with_probabilities_and_numbers(served):
    url, _ = served

    def predict(task: str, sequences: list[object]) -> list[dict[str, object]]:
        answer = httpx.post(f"{url}/v1/predict", json={"task": task, "sequences": sequences}, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer.json()["predictions"]

    binary = predict("planted_promoter", [PROMOTER, PROMOTER.lower()])
    assert binary[0]["label"] in ("yes", "no")
    assert sum(binary[0]["probabilities"].values()) == pytest.approx(1)
    assert binary[0]["probability"] == max(binary[0]["probabilities"].values())
    assert binary[0]["probabilities"] == pytest.approx(binary[1]["probabilities"], abs=1e-6)
    (several,) = predict("planted_ncrna_family", ["ACGUACGUACGUACGUACGUACGU"])
    assert len(several["probabilities"]) > 2
    (number,) = predict("planted_thermostability", ["MKVLAARRGGHHKKLLMMAA"])
    assert number["label"] is None
    assert number["value"] == read_number(task_spec("planted_thermostability"), number["text"])
    (pair,) = predict("planted_binding", [{"rna": "ACGUACGUACGU", "protein": "MKVLAARRGG"}])
    assert pair["label"] in ("yes", "no")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"task": "no_such", "sequences": [PROMOTER]}, "invalid_value", "task"),
        ({"task": "planted_dna", "sequences": [PROMOTER]}, "invalid_value", "task"),
        ({"task": "planted_promoter", "sequences": []}, "invalid_value", "sequences"),
        ({"task": "planted_promoter", "sequences": [PROMOTER, "ACGT!"]}, "invalid_value", "sequences[1]"),
        ({"task": "planted_promoter", "sequences": [PROMOTER * 50]}, "invalid_value", "sequences[0]"),
        ({"task": "planted_promoter", "sequences": [PROMOTER] * 5}, "limit_exceeded", "sequences"),
        ({"task": "planted_binding", "sequences": [PROMOTER]}, "invalid_value", "sequences[0]"),
        ({"task": "planted_binding", "sequences": [{"rna": "ACGU"}]}, "invalid_value", "sequences[0]"),
    ],
)
def test_predict_refuses_what_the_task_does_not_take(served, body, code, param):
    url, _ = served
    answer = httpx.post(f"{url}/v1/predict", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)


def test_an_answer_of_many_megabytes_arrives_whole(served):
    """Above gRPC's bound of 4 MiB for a message, between model and gateway and on the way out."""
    url, _ = served
    body = {"model": "tiny", "prompt": ["ACGT" * 75] * 60, "n": 2, "echo": True, "logprobs": 5, "max_tokens": 1}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text[:500]
    assert len(answer.content) > 4 * 1024**2
    assert len(answer.json()["choices"]) == 120


def test_readiness_means_that_a_token_was_generated(served):
    url, _ = served
    assert httpx.get(f"{url}/readyz", timeout=60).json() == {"status": "ready", "model": "tiny"}


def test_the_server_and_the_folder_predict_the_same(served, model_folder, tmp_path):
    url, _ = served
    fasta = tmp_path / "in.fa"
    fasta.write_text(f">one\n{PROMOTER[:15]}\n{PROMOTER[15:]}\n>two x\nACGTACGTACGTACGTACGT\n")
    command = [sys.executable, "-m", "polysome.cli", "predict", "--json", "--task", "planted_promoter", str(fasta)]

    def ask(*options: str) -> list[dict[str, object]]:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    over_http, in_process = ask("--url", url), ask("--model", str(Path(model_folder).parent))
    assert [item["id"] for item in over_http] == ["one", "two"]
    for left, right in zip(over_http, in_process, strict=True):
        assert left["label"] == right["label"]
        assert left["probability"] == pytest.approx(right["probability"], abs=1e-4)


def test_a_port_in_use_and_a_folder_without_a_model_are_refused_before_anything_starts(served, tmp_path):
    _, config = served
    with pytest.raises(ResourceError, match="cannot listen"):
        checks.check(config)
    with pytest.raises(DataError, match="no model folder"):
        checks.check(config.model_copy(update={"model": str(tmp_path / "none"), "port": free_port()}))


def test_the_builder_for_config_files_takes_settings_or_a_recipe(model_folder, tmp_path):
    from ray.serve import Application

    specification = importlib.util.spec_from_file_location("serve_app", ROOT / "serve" / "app.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    recipe = tmp_path / "serve.yaml"
    recipe.write_text("job: serve\nmodel: overridden\n")
    assert isinstance(module.application({"model": model_folder, "max_batch_size": "4"}), Application)
    assert isinstance(module.application({"recipe": str(recipe), "model": model_folder}), Application)
    with pytest.raises(ConfigurationError, match="did you mean 'model'"):
        module.application({"modle": model_folder})


def test_the_serve_command_serves_until_it_is_told_to_end(model_folder, tmp_path):
    """`polysome serve` with a Ray of its own; SIGINT ends it with code 0 and frees the port."""
    import signal

    port = free_port()
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "polysome.cli", "serve", model_folder, "--port", str(port), "--json"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=hear_interrupts,
    ) as server:
        try:
            assert server.stdout is not None
            told = ""
            while not told.rstrip().endswith("}"):
                line = server.stdout.readline()
                assert line, server.stderr.read() if server.stderr else ""
                told += line
            url = json.loads(told)["url"]
            answer = httpx.post(
                f"{url}/v1/chat/completions",
                json={"model": "polysome", "messages": [{"role": "user", "content": "Is there a promoter?"}]},
                timeout=60,
            )
            assert answer.status_code == 200
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()
    checks.require_free_port("127.0.0.1", port)
    assert not (tmp_path / ".ray").exists()
