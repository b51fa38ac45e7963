"""Keys: made, found, ended; and their file, which nobody else reads and nothing half-written ever is."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from polysome.cli import main
from polysome.config import ConfigurationError
from polysome.serving import keys
from polysome.serving.secrets import write_private


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "secrets" / "keys.json")


def make(store: str, **changed: object) -> tuple[keys.Key, str]:
    return keys.create(store, **{"team": "lab", "scopes": ["infer"], "expires": None, **changed})


def test_a_key_is_found_by_its_whole_text_alone(store):
    key, text = make(store, scopes=["submit", "infer"])
    other, _ = make(store, team="others")
    ring = keys.KeyRing(store)
    assert ring.find(text) == key
    assert (key.team, key.scopes) == ("lab", ["infer", "submit"])
    secret = text.rpartition(f"{key.id}_")[2]
    for wrong in ("", key.id, f"omk_{key.id}_", text[:-1], f"{text}x", f"{text}\n", f"omk_{other.id}_{secret}", secret):
        assert ring.find(wrong) is None, wrong


def test_the_file_holds_no_secret_and_is_its_owners_alone(store):
    _, text = make(store)
    path = Path(store)
    assert text[17:] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not list(path.parent.glob("*.tmp"))


def test_what_others_could_have_read_or_replaced_is_refused(store):
    make(store)
    os.chmod(store, 0o640)
    with pytest.raises(ConfigurationError, match="mode 0640"):
        keys.KeyRing(store)
    os.chmod(store, 0o600)
    os.chmod(Path(store).parent, 0o770)
    for step in (lambda: keys.read(store), lambda: make(store)):
        with pytest.raises(ConfigurationError, match="replace the files"):
            step()
    os.chmod(Path(store).parent, 0o755)
    assert len(keys.read(store)) == 1


def test_a_pipe_in_its_place_is_refused_and_not_waited_for(store):
    make(store)
    os.unlink(store)
    os.mkfifo(store, 0o600)
    with pytest.raises(ConfigurationError, match="no file"):
        keys.read(store)


def test_a_gateway_sees_changes_and_lets_nobody_in_by_a_file_that_it_cannot_use(store):
    key, text = make(store)
    ring = keys.KeyRing(store)
    _, later = make(store)
    assert ring.find(later)
    keys.revoke(store, key.id)
    assert ring.find(text) is None
    assert ring.find(later)
    os.chmod(store, 0o644)
    with pytest.raises(ConfigurationError):
        ring.find(later)
    os.chmod(store, 0o600)
    assert ring.find(later)
    write_private(store, b'{"format": 1, "keys": [{}]}')
    with pytest.raises(ConfigurationError):
        ring.find(later)
    os.unlink(store)
    with pytest.raises(ConfigurationError):
        ring.find(later)


def test_a_key_ends_at_its_time(store):
    _, past = make(store, expires=datetime.now(UTC) - timedelta(seconds=1))
    _, open_still = make(store, expires=datetime.now(UTC) + timedelta(hours=1))
    ring = keys.KeyRing(store)
    assert ring.find(past) is None
    assert ring.find(open_still)


def test_keys_made_at_once_are_all_kept(store):
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda number: make(store, note=str(number)), range(16)))
    ring = keys.KeyRing(store)
    assert all(ring.find(text) == key for key, text in made)


@pytest.mark.parametrize("wrong", [{"team": "../lab"}, {"scopes": ["root"]}, {"scopes": []}, {"note": "x" * 201}])
def test_what_is_no_key_is_not_written(store, wrong):
    with pytest.raises(ConfigurationError):
        make(store, **wrong)
    assert not os.path.exists(store)


def test_the_command_makes_lists_and_ends_a_key(store, capsys):
    def run(*arguments: str):
        code = main(["keys", *arguments, "--keys", store, "--json"])
        return code, json.loads(capsys.readouterr().out)

    code, made = run("create", "--team", "lab", "--scope", "infer", "--scope", "batch", "--expires", "30d")
    assert code == 0
    found = keys.KeyRing(store).find(made["key"])
    assert found is not None
    assert found.scopes == ["batch", "infer"]
    assert timedelta(days=29) < found.expires - datetime.now(UTC) <= timedelta(days=30)
    assert [row["state"] for row in run("ls")[1]] == ["active"]
    assert run("revoke", made["key"])[1]["state"] == "revoked"
    code, listed = run("ls")
    assert [row["state"] for row in listed] == ["revoked"]
    assert "sha256" not in listed[0]
    for wrong in ("soon", "2001-01-01", "0d"):
        assert run("create", "--team", "lab", "--expires", wrong)[0] == 2
