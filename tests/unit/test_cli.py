"""The command as a program sees it: exit codes, what stands on which stream, JSON, and that nothing heavy is loaded."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from polysome.cli import main

ROOT = Path(__file__).resolve().parents[2]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_loads_neither_torch_nor_ray():
    heavy = ("torch", "ray", "transformers", "deepspeed", "sklearn", "pandas", "pyarrow")
    program = (
        "import sys; sys.argv = ['polysome', '--help']\n"
        "from polysome.cli import main\n"
        f"code = main(); loaded = [name for name in {heavy!r} if name in sys.modules]\n"
        "sys.exit(code or repr(loaded) if loaded else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    commands = [
        "doctor",
        "datasets",
        "prepare",
        "train",
        "evaluate",
        "serve",
        "predict",
        "run",
        "submit",
        "status",
        "logs",
        "stop",
        "resume",
        "runs",
        "config-schema",
    ]
    assert all(f"  {command} " in done.stdout for command in commands)


def test_a_wrong_recipe_exits_2_and_says_what_where_and_how(capsys, tmp_path):
    code, out, err = run(capsys, "run", str(tmp_path / "none.yaml"))
    assert (code, out) == (2, "")
    assert "where:" in err
    assert "fix:" in err


def test_with_json_an_error_is_json_on_standard_output(capsys, tmp_path):
    code, out, err = run(capsys, "train", str(tmp_path / "none.yaml"), "--json")
    assert (code, err) == (2, "")
    assert json.loads(out)["error"]["exit_code"] == 2


def test_an_unknown_option_exits_2(capsys):
    code, _, err = run(capsys, "runs", "--no-such")
    assert code == 2
    assert "--no-such" in err


def test_a_failed_check_of_the_doctor_exits_3(capsys, monkeypatch):
    monkeypatch.setenv("POLYSOME_MIRROR", "/no/such/folder")
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 3
    assert json.loads(out)["ok"] is False


def test_an_unexpected_error_exits_1_with_its_traceback_only_on_demand(capsys, monkeypatch):
    monkeypatch.setattr("polysome.operations.doctor.examine", lambda: 1 / 0)
    code, _, err = run(capsys, "doctor")
    assert code == 1
    assert "ZeroDivisionError" in err
    assert "Traceback" not in err
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "doctor"])


def test_runs_lists_what_stands_in_the_folder(capsys, tmp_path):
    from polysome.operations import runs

    with runs.start(str(tmp_path), "train", "one", {}, run_id="one") as done:
        done.finish({"loss": 1.0})
    code, out, _ = run(capsys, "runs", "--runs", str(tmp_path))
    assert code == 0
    assert "finished" in out
    assert "\x1b" not in out
    assert out.rstrip().splitlines()[-1].startswith("next: polysome runs one")
    code, out, _ = run(capsys, "runs", "--runs", str(tmp_path), "--json")
    assert [item["id"] for item in json.loads(out)] == ["one"]


def test_a_run_that_does_not_exist_exits_2(capsys, tmp_path):
    assert run(capsys, "runs", "none", "--runs", str(tmp_path))[0] == 2


def test_samples_are_chats_as_a_model_sees_them(capsys):
    code, out, _ = run(capsys, "datasets", "sample", "planted_binding", "-n", "2", "--json")
    assert code == 0
    first, second = json.loads(out)
    assert [message["role"] for message in first["messages"]] == ["system", "user", "assistant"]
    assert "<rna>" in second["messages"][1]["content"]
    assert run(capsys, "datasets", "sample", "planted_dna", "-n", "1")[1].startswith("planted_dna/train/-/0")


def test_an_unknown_data_set_is_told_with_the_nearest(capsys):
    code, _, err = run(capsys, "datasets", "show", "planted_bindin")
    assert code == 2
    assert "planted_binding" in err


def test_every_declared_spec_is_valid(capsys):
    code, out, _ = run(capsys, "datasets", "validate", "--json")
    assert code == 0
    assert all(item["ok"] for item in json.loads(out))


def test_the_schema_of_a_recipe_is_json(capsys):
    code, out, _ = run(capsys, "config-schema", "serve")
    assert code == 0
    assert json.loads(out)["properties"]["model"]["type"] == "string"
    assert run(capsys, "config-schema", "nothing")[0] == 2


def test_serving_a_folder_without_a_model_or_on_a_taken_port_is_refused_at_once(capsys, tmp_path):
    assert run(capsys, "serve", str(tmp_path))[0] == 2
    assert run(capsys, "serve", str(tmp_path), "port=eighty")[0] == 2
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = run(capsys, "serve", str(tmp_path), "--port", str(taken.getsockname()[1]))
    assert code == 3
    assert "cannot listen" in err


@pytest.mark.parametrize("runs", [[], ["--runs", "runs"]])
def test_a_job_is_not_submitted_without_a_place_that_the_cluster_sees(capsys, runs):
    code, _, err = run(capsys, "submit", str(ROOT / "jobs" / "recipes" / "demo.yaml"), *runs)
    assert code == 2
    assert "where: --runs" in err


def test_predict_refuses_two_sources_of_answers(capsys):
    code, _, err = run(capsys, "predict", "ACGT", "--task", "planted_promoter", "--url", "http://x", "--model", "y")
    assert code == 2
    assert "exclude" in err


def test_a_job_program_tells_errors_as_the_command_does(tmp_path):
    program = [sys.executable, str(ROOT / "jobs" / "train.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    for arguments, told in (([], "usage"), ([str(tmp_path / "none.yaml")], "fix:")):
        done = subprocess.run([*program, *arguments], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 2
        assert told in done.stderr
        assert "Traceback" not in done.stderr


def test_ready_made_rows_are_exported_as_they_came(capsys, tmp_path, monkeypatch):
    rows = [
        {"input": "<rna>ACGU<rna> Which?", "output": "tRNA.", "label": "tRNA", "task": "NoncodingRNAFamily-x"},
        {
            "input": "<dna>AC</dna> How much?",
            "output": "0.50",
            "label": {"hk": 0.50, "dev": -1},
            "task": "ea",
            "more": 1,
        },
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "given.yaml").write_text(
        "name: given\ntitle: t\nhomepage: h\nlicence: l\ncitation: c\nformat: jsonl\nmolecules: []\n"
        f"instructions: {{}}\nsplits: {{train: [{{uri: {source}}}]}}\n"
    )
    monkeypatch.setenv("POLYSOME_DATASETS", str(tmp_path))
    code, out, _ = run(capsys, "datasets", "export", "given")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == rows


def test_a_broken_tokenizer_is_named(capsys, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{broken")
    code, _, err = run(capsys, "tokens", "audit", str(tmp_path))
    assert code == 2
    assert "tokenizer.json is not JSON" in err


def test_a_vocabulary_is_built_and_audited(capsys, tmp_path):
    folder = str(tmp_path / "vocabulary")
    assert run(capsys, "tokens", "build", folder, "--dataset", "planted_promoter")[0] == 0
    assert run(capsys, "tokens", "build", folder)[0] == 2
    code, out, _ = run(capsys, "tokens", "audit", folder, "--json")
    assert code == 0
    audits = {item["molecule"]: item for item in json.loads(out)["molecules"]}
    assert audits["dna"]["characters_per_token"] == 1
    assert audits["dna"]["changed_max"] == 1
