"""Bad input: one clear error before any worker starts, the right exit code, nothing that looks like a run."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Path(__file__).with_name("tiny_pipeline.yaml")


def polysome(environment, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "polysome.cli", *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120,
    )  # fmt: skip


def write_spec(folder, rows, **changes):
    """A small declared task whose only source is a CSV of `rows`."""
    source = folder / "rows.csv"
    source.write_text("sequence,label\n" + rows)
    spec = yaml.safe_load((ROOT / "datasets_spec/planted_promoter.yaml").read_text())
    spec |= {"name": "mine", "format": "csv", "splits": {"train": [{"uri": str(source)}]}, **changes}
    (folder / "mine.yaml").write_text(yaml.safe_dump(spec))
    for name in ("planted_dna", "planted_promoter"):
        (folder / f"{name}.yaml").write_text((ROOT / f"datasets_spec/{name}.yaml").read_text())


SOURCE = "stages.stage2.prepare.sources=[{dataset: mine}]"


@pytest.mark.parametrize(
    ("overrides", "rows", "problem"),
    [
        (["stages.stage1.train.epoch=2"], None, "did you mean 'epochs'"),
        (["stages.stage1.train.optimizer.learning_rate=fast"], None, "learning_rate"),
        (["stages.stage2.prepare.sources=[{dataset: planted_promotor}]"], None, "did you mean 'planted_promoter'"),
        (["evaluation.tasks=[planted_dna]", "serving=null"], None, "unlabelled corpus"),
        ([SOURCE], "ACGT,1\nACXT,0\n", "'X'"),
        ([SOURCE], "ACGT,1\nACGT,maybe\n", "label 'maybe' is neither '1' nor '0'"),
        ([SOURCE], "", "no record"),
        (["tokenizer=/nowhere"], None, "no tokenizer.json"),
    ],
)
def test_refused_with_exit_code_2(tmp_path, isolated_environment, overrides, rows, problem):
    if rows is not None:
        write_spec(tmp_path, rows)
        isolated_environment = isolated_environment | {"POLYSOME_DATASETS": str(tmp_path)}
    done = polysome(isolated_environment, "run", RECIPE, *overrides, "--runs", tmp_path / "runs")
    assert done.returncode == 2, done.stdout + done.stderr
    assert problem in done.stderr
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_missing_source_and_wrong_checksum(tmp_path, isolated_environment):
    write_spec(tmp_path, "ACGT,1\n")
    environment = isolated_environment | {"POLYSOME_DATASETS": str(tmp_path)}
    spec = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    for change, problem in (({"sha256": "0" * 64}, "sha256"), ({"uri": "/nowhere/rows.csv"}, "no such file")):
        spec["splits"]["train"][0] |= change
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(spec))
        done = polysome(environment, "run", RECIPE, SOURCE, "--runs", tmp_path / "runs")
        assert (done.returncode, problem in done.stderr) == (2, True), done.stderr


def test_port_in_use_is_exit_code_3(tmp_path, isolated_environment):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = polysome(isolated_environment, "run", RECIPE, f"serving.port={port}", "--runs", tmp_path / "runs")
    assert done.returncode == 3, done.stderr
    assert str(port) in done.stderr
    assert not (tmp_path / "runs").exists()


def test_too_many_workers_is_exit_code_3(tmp_path, isolated_environment):
    override = "stages.stage1.train.workers.count=64"
    done = polysome(isolated_environment, "run", RECIPE, override, "--runs", tmp_path / "runs")
    assert done.returncode == 3, done.stderr
    assert "64 CPUs" in done.stderr


def test_missing_recipe(isolated_environment):
    done = polysome(isolated_environment, "run", "jobs/recipes/none.yaml")
    assert (done.returncode, "cannot read" in done.stderr) == (2, True)
