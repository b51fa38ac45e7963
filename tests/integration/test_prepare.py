"""Preparing on real Ray Data: every document arrives once, exclusions and limits are counted, errors leave nothing."""

import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from polysome.config import ConfigurationError, DataError
from polysome.data.config import PrepareConfig
from polysome.data.feed import open_feed
from polysome.data.manifest import read_manifest
from polysome.data.tokenizer_files import load_tokenizer
from polysome.specs import Dataset, dataset

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def source(dataset, split, **more):
    return {"dataset": dataset, "split": split, **more}


def recipe(tokenizer, **changes):
    content = {
        "name": "p",
        "kind": "instruct",
        "tokenizer": tokenizer,
        "max_length": 512,
        "sources": [source("planted_promoter", "dev", repeat=2), source("planted_binding", "dev")],
        "exclude": [source("planted_promoter", "test")],
    }
    return PrepareConfig(**(content | changes))


def documents(folder, manifest):
    """(all ids, trained ids) of every packed document."""
    with tempfile.TemporaryDirectory() as cache:
        rows = open_feed(folder, seed=0, cache=cache).rows(np.arange(manifest.rows))
    for ids, labels, segments in zip(rows.input_ids, rows.labels, rows.segment_ids, strict=True):
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            yield ids[inside].tolist(), labels[inside & (labels != -100)].tolist()


def test_documents_arrive_once_and_answers_alone_are_trained_on(tmp_path, tiny_tokenizer):
    from polysome.data.prepare import prepare

    folder = str(tmp_path / "a")
    manifest = prepare(recipe(tiny_tokenizer), folder)
    assert manifest == read_manifest(folder)
    assert [report.documents for report in manifest.sources] == [400, 200]
    found = list(documents(folder, manifest))
    assert len(found) == manifest.documents == 600
    assert sum(len(ids) for ids, _ in found) == manifest.tokens
    assert sum(len(trained) for _, trained in found) == manifest.targets
    tokenizer = load_tokenizer(tiny_tokenizer)
    texts = set()
    for ids, trained in found:
        text, answer = tokenizer.decode(ids), tokenizer.decode(trained)
        assert text.endswith("<|assistant|>" + answer)
        assert answer.startswith(("Yes", "No"))
        texts.add(text)
    # A repeat asks anew, so hardly any chat stands twice.
    assert len(texts) > 500

    # The same recipe gives the same bytes; another one does not overwrite them.
    again = prepare(recipe(tiny_tokenizer), str(tmp_path / "b"))
    assert again.fingerprint == manifest.fingerprint
    with pytest.raises(ConfigurationError, match="another recipe"):
        prepare(recipe(tiny_tokenizer, seed=1), folder)
    other = shutil.copytree(tiny_tokenizer, tmp_path / "other")
    settings = json.loads((other / "tokenizer_config.json").read_text())
    settings["chat_template"] = settings["chat_template"].replace("<|", " <|", 1)
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigurationError, match="another tokenizer or chat template"):
        prepare(recipe(str(other)), folder)
    assert read_manifest(folder) == manifest


def test_a_corpus_is_split_without_loss_and_limits_and_exclusions_are_counted(tmp_path, tiny_tokenizer):
    from polysome.data.prepare import prepare

    folder = str(tmp_path / "a")
    sources = [source("planted_promoter", "test"), source("planted_rna", "dev", limit=50)]
    held = [source("planted_promoter", "dev")]
    manifest = prepare(recipe(tiny_tokenizer, kind="pretrain", max_length=32, sources=sources, exclude=held), folder)
    first, second = manifest.sources
    assert (first.excluded, first.beyond_limit) == ({}, 0)
    assert (second.records, second.beyond_limit) == (200, 150)
    tokenizer = load_tokenizer(tiny_tokenizer)
    pieces = [tokenizer.decode(ids) for ids, _ in documents(folder, manifest)]
    assert sum(piece.count("</dna>") for piece in pieces) == 200
    assert sum(piece.count("</rna>") for piece in pieces) == 50

    # The same sequences under another name are found, and what is then empty is refused.
    copy = Dataset.model_validate(dataset("planted_promoter").model_dump() | {"name": "copy"})
    write_spec(tmp_path, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYSOME_DATASETS", str(tmp_path / "specs"))
        held = [source("copy", "test")]
        mixed = [source("planted_promoter", "test"), source("planted_promoter", "dev")]
        manifest = prepare(recipe(tiny_tokenizer, kind="pretrain", sources=mixed, exclude=held), str(tmp_path / "b"))
        assert [report.excluded for report in manifest.sources] == [{"copy/test": 200}, {}]
        with pytest.raises(DataError, match="nothing is left"):
            prepare(recipe(tiny_tokenizer, sources=mixed[:1], exclude=held), str(tmp_path / "c"))
    assert not (tmp_path / "c" / "manifest.json").exists()


def write_spec(tmp_path, spec):
    """A folder of specs with `spec` and those that the recipes here name."""
    (tmp_path / "specs").mkdir()
    for item in (spec, dataset("planted_promoter")):
        content = yaml.safe_dump(item.model_dump(mode="json"))
        (tmp_path / "specs" / f"{item.name}.yaml").write_text(content)


def test_an_error_in_a_worker_is_the_products_own_and_commits_nothing(tmp_path, tiny_tokenizer):
    from polysome.data.prepare import prepare

    folder = tmp_path / "a"
    with pytest.raises(DataError, match="a row takes 16") as error:
        prepare(recipe(tiny_tokenizer, max_length=16), str(folder))
    assert type(error.value) is DataError
    assert not (folder / "manifest.json").exists()


def big_recipe(tokenizer):
    """Enough blocks that a kill comes between them, and a selection, which a resume must repeat exactly."""
    sources = [
        source("planted_promoter", "train", repeat=40),
        source("planted_binding", "train", repeat=20, limit=1000),
    ]
    return {
        "job": "prepare",
        "name": "big",
        "kind": "instruct",
        "tokenizer": tokenizer,
        "max_length": 512,
        "sources": sources,
        "exclude": [source("planted_promoter", "test")],
    }


def test_a_killed_preparation_goes_on_and_gives_the_same_bytes(tmp_path, tiny_tokenizer, isolated_environment):
    from polysome.data.prepare import prepare

    content = big_recipe(tiny_tokenizer)
    whole = prepare(PrepareConfig(**{k: v for k, v in content.items() if k != "job"}), str(tmp_path / "whole"))
    assert [report.examples for report in whole.sources] == [160_000, 20_000]

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "polysome.cli", "prepare", str(path), "--runs", str(tmp_path / "runs")]
    command += ["--run-id", "big", "--json"]
    folder = tmp_path / "runs" / "big" / "data"
    for commits in (5, 15):
        started = subprocess.Popen(
            command, env=isolated_environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(list(folder.glob("commits/*.json"))) < commits:
            assert started.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
        assert not (folder / "manifest.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("shards/*.parquet")}
    done = subprocess.run(command, env=isolated_environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    resumed = read_manifest(str(folder))
    assert resumed.fingerprint == whole.fingerprint
    assert resumed.sources == whole.sources
    # What stood was not written again, and nothing else is left.
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("shards/*.parquet")}
    assert sum(after.get(name) == changed for name, changed in before.items()) >= 5
    assert set(after) == {Path(shard.path).name for shard in resumed.shards}
    assert not (folder / "commits").exists()


def test_workers_that_are_killed_are_replaced_and_no_row_is_lost(tmp_path, tiny_tokenizer):
    import psutil

    from polysome.data.prepare import prepare

    content = {k: v for k, v in big_recipe(tiny_tokenizer).items() if k != "job"}
    killed = []

    def kill_one(progress):
        workers = [p for p in psutil.process_iter(["cmdline"]) if "WriteShards" in " ".join(p.info["cmdline"] or [])]
        mine = [p for p in workers if p.username() == psutil.Process().username() and is_ours(p)]
        if mine and len(killed) < 2 and progress.shards >= 3 * (len(killed) + 1):
            mine[0].kill()
            killed.append(mine[0].pid)

    def is_ours(process):
        """Whether the worker belongs to this test's Ray, which this process started."""
        return psutil.Process() in process.parents()

    whole = prepare(PrepareConfig(**content), str(tmp_path / "whole"))
    hurt = prepare(PrepareConfig(**content), str(tmp_path / "hurt"), report=kill_one)
    assert killed
    assert hurt.fingerprint == whole.fingerprint


@pytest.mark.slow
def test_a_node_that_is_lost_loses_no_row(tmp_path, tiny_tokenizer, isolated_environment):
    from polysome.data.prepare import prepare

    content = {key: value for key, value in big_recipe(tiny_tokenizer).items() if key != "job"}
    whole = prepare(PrepareConfig(**content), str(tmp_path / "whole"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    program = [sys.executable, str(Path(__file__).with_name("nodes_program.py")), str(recipe), str(tmp_path / "hurt")]
    environment = {**isolated_environment, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(program, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed_after"]
    assert told["fingerprint"] == whole.fingerprint


class Slow(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and makes whoever asks for `slow.fa` wait."""

    waits = 0.0

    def do_GET(self):
        if self.path.endswith("slow.fa"):
            time.sleep(type(self).waits)
        super().do_GET()

    def log_message(self, *arguments):
        """Nothing."""


def test_a_slow_file_changes_nothing_of_what_comes_out(tmp_path, tiny_tokenizer, isolated_environment):
    (tmp_path / "web").mkdir()
    for name, base in (("slow.fa", "A"), ("quick.fa", "C")):
        text = "".join(f">{number}\n{base * 20}{'ACGT' * (number % 9)}\n" for number in range(3000))
        (tmp_path / "web" / name).write_text(text)
    handler = functools.partial(Slow, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        content = dataset("human_dna_sample").model_dump(mode="json") | {"name": "web", "window": None}
        content["splits"] = {"train": [{"uri": f"{address}/{name}"} for name in ("slow.fa", "quick.fa")]}
        write_spec(tmp_path, Dataset.model_validate(content))
        environment = {name: value for name, value in isolated_environment.items() if name != "POLYSOME_MIRROR"}
        environment |= {"POLYSOME_DATASETS": str(tmp_path / "specs")}
        settings = recipe(tiny_tokenizer, kind="pretrain", sources=[{"dataset": "web"}], exclude=[]).model_dump()
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"job": "prepare", **settings}))
        command = [sys.executable, "-m", "polysome.cli", "prepare", str(tmp_path / "recipe.yaml")]
        made = []
        for waits in (0.0, 1.5):
            Slow.waits = waits
            arguments = ["--runs", str(tmp_path / "runs"), "--run-id", f"waits-{waits}"]
            done = subprocess.run(
                [*command, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            made.append(read_manifest(str(tmp_path / "runs" / f"waits-{waits}" / "data")))
        server.shutdown()
    assert made[0].documents == 6000
    assert made[0] == made[1]
