"""The adapter registry: versions that never change, what is refused, and that a replica gets what was published."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
import torch
from safetensors.torch import load, save_file

from polysome.cli import main
from polysome.config import ConfigurationError, DataError, PolysomeError, ResourceError
from polysome.data.tokenizer_files import copy_tokenizer
from polysome.inference.folder import adapter_fingerprint, model_fingerprint
from polysome.models.backbone import ModelSource, build_model
from polysome.models.trainability import Rule, apply
from polysome.serving import adapters
from polysome.serving.adapters import Registry
from polysome.storage import join, list_folder, read_json, write_json
from polysome.training.adapter import load_adapter, write_adapter

LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
         "num_attention_heads": 4}  # fmt: skip
WEIGHTS, OPTIONS = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def models(tiny_tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `other` of the same shape, and `run/adapter` trained on `base`."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("base", 1), ("other", 2)):
        build_model(ModelSource(config=LLAMA), tiny_tokenizer, seed=seed).save_pretrained(folder / name)
        copy_tokenizer(tiny_tokenizer, str(folder / name))
    model = build_model(ModelSource(path=str(folder / "base")), tiny_tokenizer, seed=1)
    apply(model, [Rule(match="_proj$", mode="lora", rank=4, alpha=8)], seed=1)
    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.05 * torch.randn_like(value))
    (folder / "run").mkdir()
    assert write_adapter(model, str(folder / "run" / "adapter"), base=str(folder / "base"))
    copy_tokenizer(tiny_tokenizer, str(folder / "run" / "adapter"))
    return folder


@pytest.fixture
def adapter(models: Path, tmp_path: Path) -> Path:
    """A copy of the adapter, to be spoilt."""
    return Path(shutil.copytree(models / "run" / "adapter", tmp_path / "adapter"))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYSOME_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["folder", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "registry") if request.param == "folder" else f"memory://{uuid4().hex}"


def publish(registry: Registry, adapter: Path, name: str = "promoters", **rest: str) -> adapters.Published:
    return registry.publish(str(adapter), name, **rest)


def test_a_replica_gets_what_was_published(root, models):
    published = publish(Registry(root), models / "run", user="ada", note="first")
    assert published.id == "promoters@1"
    assert published.base_fingerprint == model_fingerprint(str(models / "base"))
    assert published.adapter_fingerprint == adapter_fingerprint(str(models / "run" / "adapter"))
    gateway = Registry(root, base=published.base_fingerprint)
    assert gateway.find("promoters") == gateway.find("promoters@1") == published
    assert gateway.list() == [published]
    assert gateway.find("promoters@2") is gateway.find("others") is None
    folder = Registry(root).fetch(published)
    for file in (models / "run" / "adapter").iterdir():
        assert (Path(folder) / file.name).read_bytes() == file.read_bytes()
    load_adapter(str(models / "base"), folder)
    (manifest,) = gateway.versions("promoters")
    assert (manifest.rank, manifest.user, manifest.note) == (4, "ada", "first")
    assert WEIGHTS in list_folder(published.folder)


def test_a_name_goes_on_and_back_and_versions_stay(root, models, adapter, monkeypatch):
    registry = Registry(root)
    first = publish(registry, adapter)
    weights = load((adapter / WEIGHTS).read_bytes())
    save_file({name: value * 2 for name, value in weights.items()}, adapter / WEIGHTS)
    second = publish(registry, adapter)
    assert (second.version, second.fingerprint == first.fingerprint) == (2, False)
    again = publish(registry, models / "run")
    assert (again.version, again.fingerprint) == (3, first.fingerprint)
    assert registry.find("promoters") == again
    assert registry.rollback("promoters") == second == registry.find("promoters")
    assert registry.rollback("promoters", 1) == first == registry.find("promoters")
    assert registry.find("promoters@3") == again
    for wrong in (None, 4):
        with pytest.raises(ConfigurationError):
            registry.rollback("promoters", wrong)
    assert publish(registry, adapter).version == 4
    assert registry.find("promoters@4") == registry.find("promoters")
    # Another process learns of a change when what it remembers is old.
    now = [0.0]
    monkeypatch.setattr("polysome.serving.adapters.time.monotonic", lambda: now[0])
    gateway = Registry(root)
    assert gateway.find("promoters").version == 4
    registry.rollback("promoters", 2)
    now[0] = 1.9
    assert gateway.find("promoters").version == 4
    now[0] = 2.1
    assert gateway.find("promoters").version == 2


def test_adapters_of_another_base_are_not_offered(root, models, caplog):
    publish(Registry(root), models / "run")
    gateway = Registry(root, base=model_fingerprint(str(models / "other")))
    assert gateway.find("promoters") is gateway.find("promoters@1") is None
    assert gateway.list() == gateway.list() == []
    assert [record.getMessage().split(", not of")[0] for record in caplog.records] == [
        f"adapter 'promoters' is not listed: version 1 is of the base {model_fingerprint(str(models / 'base'))}"
    ]
    with pytest.raises(ConfigurationError, match="not the model of this registry"):
        publish(gateway, models / "run")


@pytest.mark.parametrize(
    "name", ["", "../promoters", "a/b", "/etc", "..", ".hidden", "A", "a b", "a@1@1", "a@0", "a@01", "a\n", "a" * 65]
)
def test_a_name_that_is_a_path_is_no_name(name, models, tmp_path, monkeypatch):
    registry = Registry(str(tmp_path / "registry"))
    for step in (registry.versions, registry.rollback, lambda given: publish(registry, models / "run", given)):
        with pytest.raises(ConfigurationError, match="no name of an adapter"):
            step(name)
    assert not (tmp_path / "registry").exists()
    monkeypatch.setattr(adapters, "_load", lambda *_: pytest.fail("something was looked up"))
    assert registry.find(name) is None


def options(**changed: object) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        content = json.loads((adapter / OPTIONS).read_text())
        (adapter / OPTIONS).write_text(json.dumps(content | changed))

    return change


def poisoned(adapter: Path) -> None:
    weights = load((adapter / WEIGHTS).read_bytes())
    first = next(iter(weights))
    weights[first][0, 0] = float("nan")
    save_file(weights, adapter / WEIGHTS)


def pickled(adapter: Path) -> None:
    torch.save(load((adapter / WEIGHTS).read_bytes()), adapter / WEIGHTS)


def beside(name: str) -> Callable[[Path], object]:
    return lambda adapter: (adapter / name).write_bytes(b"x")


def linked(adapter: Path) -> None:
    (adapter / "tokenizer.json").rename(adapter.parent / "elsewhere.json")
    (adapter / "tokenizer.json").symlink_to(adapter.parent / "elsewhere.json")


def another_template(adapter: Path) -> None:
    (adapter / "chat_template.jinja").write_text("{{ messages }}")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (beside("adapter_model.bin"), "adapter_model.bin is neither"),
        (beside("model.safetensors"), "neither"),
        (beside("setup.py"), "neither"),
        (beside(".hidden.json"), "neither"),
        (linked, "tokenizer.json is no plain file"),
        (lambda adapter: (adapter / "folder.json").mkdir(), "no plain file"),
        (lambda adapter: os.mkfifo(adapter / "pipe.json"), "no plain file"),
        (lambda adapter: (adapter / WEIGHTS).unlink(), "is missing"),
        (pickled, "no safetensors file"),
        (poisoned, "no number"),
        (options(peft_type="PROMPT_TUNING"), "peft_type"),
        (options(r=512), "less than or equal to 256"),
        (options(rank_pattern={"q_proj": 1000}), "less than or equal to 256"),
        (options(rank_pattern=["q_proj"]), "rank_pattern"),
        (options(rank_pattern={"(a+)+$": 4}), "pattern"),
        (options(target_modules=".*_proj"), "target_modules"),
        (options(target_modules=[".*"]), "pattern"),
        (options(lora_alpha=float("inf")), "finite"),
        (options(bias="all"), "bias"),
        (options(init_lora_weights="pissa"), "init_lora_weights"),
        (options(layer_replication=[[0, 1], [0, 1]]), "layer_replication"),
        (options(auto_mapping={"base_model_class": "x", "parent_library": "os"}), "auto_mapping"),
        (options(not_known_yet=1), "not_known_yet"),
        (options(r=2), "has shape"),
        (lambda adapter: (adapter / "base.json").unlink(), "base.json"),
        (another_template, "another tokenizer"),
    ],
)
def test_what_is_no_adapter_for_this_base_is_refused_and_leaves_nothing(spoil, said, adapter, models, tmp_path):
    spoil(adapter)
    registry = Registry(str(tmp_path / "registry"))
    with pytest.raises((DataError, ConfigurationError), match=said):
        publish(registry, adapter, model=str(models / "base"))
    assert not (tmp_path / "registry").exists()


def test_a_foreign_base_is_refused_by_its_weights(models, tmp_path):
    registry = Registry(str(tmp_path / "registry"))
    with pytest.raises(ConfigurationError, match="belongs to another base"):
        publish(registry, models / "run", model=str(models / "other"))
    assert registry.names() == []


def test_a_file_that_changed_in_the_registry_is_never_loaded(root, models, tmp_path):
    registry = Registry(root)
    published = publish(registry, models / "run")
    with fsspec.open(join(published.folder, WEIGHTS), "rb") as handle:
        content = bytearray(handle.read())
    content[-1] ^= 1
    with fsspec.open(join(published.folder, WEIGHTS), "wb") as handle:
        handle.write(bytes(content))
    with pytest.raises(DataError, match=f"{WEIGHTS} of adapter promoters@1 is not what was published"):
        registry.fetch(published)
    filesystem, path = fsspec.url_to_fs(published.folder)
    filesystem.rm(join(path, WEIGHTS))
    with pytest.raises(DataError, match="is gone"):
        registry.fetch(published)
    assert not [name for name in os.listdir(tmp_path / "cache" / "adapters") if not name.endswith(".lock")]


def test_a_copy_that_changed_on_this_machine_is_fetched_anew(models, tmp_path):
    registry = Registry(str(tmp_path / "registry"))
    published = publish(registry, models / "run")
    first = Path(registry.fetch(published))
    inode = (first / WEIGHTS).stat().st_ino
    assert Path(registry.fetch(published)) == first
    assert (first / WEIGHTS).stat().st_ino == inode
    (first / OPTIONS).write_text("{}")
    assert Path(registry.fetch(published)) == first
    assert (first / OPTIONS).read_bytes() == (models / "run" / "adapter" / OPTIONS).read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda manifest: manifest["files"].update({"../evil.json": manifest["files"][OPTIONS]}), "evil"),
        (lambda manifest: manifest["files"].update({"evil.pkl": manifest["files"][OPTIONS]}), "evil"),
        (lambda manifest: manifest.update(name="others"), "is of others@1"),
        (lambda manifest: manifest["files"][OPTIONS].update(sha256="0" * 64), "was changed"),
        (lambda manifest: manifest.update(base_fingerprint="0" * 16), "was changed"),
    ],
)
def test_a_manifest_that_changed_is_refused(change, said, models, tmp_path):
    registry = Registry(str(tmp_path / "registry"))
    published = publish(registry, models / "run")
    url = join(published.folder, "manifest.json")
    manifest = read_json(url)
    change(manifest)
    write_json(url, manifest)
    with pytest.raises(PolysomeError, match=said):
        registry.fetch(published)


def test_published_at_once_each_has_a_version_of_its_own(root, adapter, models, monkeypatch):
    monkeypatch.setattr(adapters, "check_adapter", lambda *_, **__: 4)
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: publish(Registry(root), adapter), range(8)))
    assert sorted(published.version for published in made) == list(range(1, 9))
    registry = Registry(root)
    assert [manifest.version for manifest in registry.versions("promoters")] == list(range(1, 9))
    assert registry.find("promoters") in made


def test_a_publishing_that_ended_early_is_no_version(root, models, monkeypatch):
    registry = Registry(root)

    def full(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(adapters, "write_json", full)
        with pytest.raises(ResourceError, match="disk full"):
            publish(registry, models / "run")
    assert registry.find("promoters") is registry.find("promoters@1") is None
    assert registry.list() == []
    assert publish(registry, models / "run").version == 2


def test_a_stray_file_in_the_registry_is_no_adapter(tmp_path, models):
    registry = Registry(str(tmp_path / "registry"))
    published = publish(registry, models / "run")
    (tmp_path / "registry" / "readme.md").write_text("ours")
    assert registry.list() == [published]


def current(text: str) -> Callable[[Path], object]:
    return lambda adapter: (adapter / "current.json").write_text(text)


def manifest(text: str) -> Callable[[Path], object]:
    return lambda adapter: (adapter / "2" / "manifest.json").write_text(text)


@pytest.mark.parametrize("damage", [current("{"), current("{}"), manifest("{"), manifest('{"format": 7}')])
def test_a_damaged_adapter_hides_no_other_and_can_be_gone_back_from(
    damage, models, tmp_path, monkeypatch, caplog, capsys
):
    monkeypatch.setattr(adapters, "check_adapter", lambda *_, **__: 4)
    root = tmp_path / "registry"
    registry = Registry(str(root))
    sound = publish(registry, models / "run", "sound")
    for _ in range(2):
        publish(registry, models / "run", "broken")
    damage(root / "broken")
    gateway = Registry(str(root))
    assert gateway.list() == gateway.list() == [sound]
    assert caplog.text.count("adapter 'broken' is not listed") == 1
    with pytest.raises(PolysomeError):
        gateway.find("broken")
    assert main(["adapters", "ls", "--registry", str(root), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["version"]) for row in rows] == [("broken", 1), ("broken", 2), ("sound", 1)]
    assert rows[1]["problem"]
    assert rows[2]["problem"] is None
    assert main(["adapters", "ls", "--registry", str(root)]) == 0
    assert "sound@1" in capsys.readouterr().out
    assert registry.rollback("broken", 1).id == "broken@1"
    assert [one.id for one in Registry(str(root)).list()] == ["broken@1", "sound@1"]


def test_the_command_publishes_lists_and_goes_back(tmp_path, models, capsys, monkeypatch):
    monkeypatch.setenv("POLYSOME_ADAPTERS", str(tmp_path / "registry"))

    def run(*arguments: str) -> tuple[int, object]:
        code = main(["adapters", *arguments, "--json"])
        return code, json.loads(capsys.readouterr().out)

    for version in (1, 2):
        code, told = run("publish", str(models / "run"), "promoters", "--base", str(models / "base"))
        assert (code, told["id"]) == (0, f"promoters@{version}")
    assert run("rollback", "promoters")[1]["id"] == "promoters@1"
    assert [(row["version"], row["current"]) for row in run("ls")[1]] == [(1, True), (2, False)]
    assert run("rollback", "promoters", "--to", "7")[0] == 2
    assert run("publish", str(models / "base"), "promoters")[0] == 2
