"""Findings that a user must act on."""

import socket

from polysome.operations import doctor


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
        monkeypatch.setattr(doctor, "_PORTS", ((holder.getsockname()[1], "trying"),))
        assert verdicts(f"port {holder.getsockname()[1]}") == ["warn"]
