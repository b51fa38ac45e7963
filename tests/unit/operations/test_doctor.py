"""Findings that a user must act on."""

import resource
import socket
import subprocess
from types import SimpleNamespace

import pytest

from polysome.operations import doctor, node


def verdicts(subject: str) -> list[str]:
    return [finding.verdict for finding in doctor.examine() if finding.subject == subject]


def test_every_finding_that_is_not_ok_says_how_to_mend_it():
    findings = doctor.examine()
    assert {"python", "packages", "memory", "disk", "ray", "mirror"} <= {finding.subject for finding in findings}
    assert all(finding.fix for finding in findings if finding.verdict != "ok")


def test_a_mirror_that_is_not_there_fails(monkeypatch):
    monkeypatch.setenv("POLYSOME_MIRROR", "/no/such/folder")
    assert verdicts("mirror") == ["fail"]


def test_a_token_that_others_can_read_fails(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    token = tmp_path / "token"
    token.write_text("x")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert verdicts("ray token") == ["fail"]
    token.chmod(0o600)
    assert verdicts("ray token") == ["ok"]


def test_a_port_in_use_is_told(monkeypatch):
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        monkeypatch.setattr(node, "_PORTS", ((holder.getsockname()[1], "trying"),))
        assert verdicts(f"port {holder.getsockname()[1]}") == ["warn"]


def finding(found: list[node.Finding]) -> tuple[str, str, str]:
    [only] = found
    return only.verdict, only.detail, only.fix


def test_the_token_that_ray_writes_for_all_to_read_is_told(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert node.token() == []
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("x")
    token.chmod(0o644)
    assert finding(node.token()) == ("warn", f"others can read {token}", f"chmod 600 {token}")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert finding(node.token())[0] == "warn"


@pytest.mark.parametrize(
    ("smi", "devices", "cuda", "verdict", "fix"),
    [
        (None, 0, None, "ok", ""),
        ((0, "580.65.06"), 2, "13.0", "ok", ""),
        ((0, "580.65.06"), 0, None, "warn", "locks/cuda.txt"),
        ((0, "470.1"), 0, "13.0", "warn", "CUDA 13.0"),
        ((18, "Failed to initialize NVML: Driver/library version mismatch"), 0, "13.0", "warn", "restart"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_told_apart_from_none(smi, devices, cuda, verdict, fix, monkeypatch):
    import torch

    monkeypatch.setattr(node.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if smi else None)
    monkeypatch.setattr(node.Path, "exists", lambda path: False)
    done = subprocess.CompletedProcess([], smi[0], smi[1] + "\n", "") if smi else None
    monkeypatch.setattr(node.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    told = finding(node.gpus())
    assert told[0] == verdict
    assert fix in told[2]
    assert bool(told[2]) == (verdict != "ok")


def test_a_container_without_the_toolkit_is_told(monkeypatch):
    import torch

    monkeypatch.setattr(node.shutil, "which", lambda name: None)
    monkeypatch.setattr(node.Path, "exists", lambda path: str(path) == "/dev/nvidia0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "--gpus all" in finding(node.gpus())[2]


def test_few_open_files_and_a_full_folder_of_rays_are_told(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(node, "inspect", lambda _: SimpleNamespace(disk_available=1024**3))
    files, folder = node.limits()
    assert (files.verdict, folder.verdict) == ("warn", "warn")
    assert "ulimit -n 65536" in files.fix
    assert str(tmp_path) in folder.detail
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    monkeypatch.setattr(node, "inspect", lambda _: SimpleNamespace(disk_available=50 * 1024**3))
    assert [found.verdict for found in node.limits()] == ["ok", "ok"]
    monkeypatch.setenv("RAY_TMPDIR", "/no/such/folder")
    assert node.limits()[1].verdict == "fail"


@pytest.mark.parametrize(("state", "verdicts"), [(0, ["ok"]), (5, ["warn"]), (-1, [])])
def test_a_clock_that_nothing_keeps_is_told(state, verdicts, monkeypatch):
    monkeypatch.setattr(node.ctypes, "CDLL", lambda _: SimpleNamespace(adjtimex=lambda _: state))
    assert [found.verdict for found in node.clock()] == verdicts


def test_a_store_that_cannot_be_reached_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("POLYSOME_RUNS", "nosuchstore://bucket/runs")
    verdict, detail, _ = finding(node.runs())
    assert verdict == "fail"
    assert "nosuchstore" in detail
    monkeypatch.setenv("POLYSOME_RUNS", str(tmp_path / "later"))
    assert finding(node.runs())[0] == "warn"
    monkeypatch.setenv("POLYSOME_RUNS", str(tmp_path))
    assert finding(node.runs())[0] == "ok"
