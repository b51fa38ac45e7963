"""Batches: answered chunk by chunk by whoever is alive, wrong rows told in their place, nothing asked twice."""

import asyncio
import csv
import gzip
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from fake_pool import FakePool

from polysome.config import DataError, ResourceError
from polysome.serving import batch_worker
from polysome.serving.batch_worker import Worker
from polysome.serving.batches import Batches
from polysome.serving.calibrations import Calibrations
from polysome.serving.calls import Overloaded
from polysome.serving.config import Limits, ServeConfig
from polysome.serving.context import Context
from polysome.serving.gateway import create_api
from polysome.serving.prediction import task_spec

DNA = "ACGTACGTACGTACGTACGTACGT"
SPEC = task_spec("planted_promoter")


def context(folder, pool=None, **settings):
    config = ServeConfig(model="unused", name="tiny", batches=str(folder), **settings)
    return Context(config, pool or FakePool(), "0" * 16)


def worker(of, **settings):
    store = Batches(of.config.batches)
    return Worker(of, store, Calibrations(of.config), **{"sweep": 0.02, "pause": 0.01, **settings})


def fasta(count):
    return "".join(f">r{number}\n{DNA}{'ACGT'[number % 4]}\n" for number in range(count)).encode()


def create(store, content, chunk=4, most=100):
    return store.create(io.BytesIO(content), SPEC, "tiny", "", most=most, chunk=chunk)


async def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


async def finished(store, batch):
    await until(lambda: store.end(batch.id) is not None)
    return store.end(batch.id)


def rows(store, batch):
    return list(csv.DictReader(io.StringIO(b"".join(store.result(batch, SPEC)).decode())))


def test_every_record_has_its_row_and_a_wrong_one_says_why(tmp_path):
    of = context(tmp_path, limits=Limits(sequence_characters=40))
    store = Batches(str(tmp_path))
    table = f"id,sequence\na,{DNA}\nb,ACGT!\nc,{'A' * 41}\nd,\ne,{DNA},1\n=f,{DNA}\n"
    batch = create(store, table.encode())

    async def run():
        one = worker(of)
        one.wake()
        end = await finished(store, batch)
        await one.close()
        return end

    end = asyncio.run(run())
    assert (end.status, end.errors) == ("finished", 4)
    found = rows(store, batch)
    assert [row["id"] for row in found] == ["a", "b", "c", "d", "5", "'=f"]
    assert [bool(row["error"]) for row in found] == [False, True, True, True, True, False]
    assert "'!' at position 5" in found[1]["error"]
    assert "above the limit of 40" in found[2]["error"]
    assert (found[0]["label"], found[0]["model"], found[0]["task"]) == ("yes", "tiny", "planted_promoter")
    assert store.status(batch)["done"] == 6
    assert store.unfinished() == []


GATEWAY = """
import asyncio, sys
from fake_pool import FakePool
from polysome.serving import batches
from polysome.serving.batch_worker import Worker
from polysome.serving.calibrations import Calibrations
from polysome.serving.config import ServeConfig
from polysome.serving.context import Context

batches.LEASE = 1.0
config = ServeConfig(model="unused", name="tiny", batches=sys.argv[1])

async def work():
    of = Context(config, FakePool(seconds=0.3), "0" * 16)
    Worker(of, batches.Batches(config.batches), Calibrations(config)).wake()
    await asyncio.sleep(600)

asyncio.run(work())
"""


def test_another_gateway_goes_on_where_a_killed_one_stopped(tmp_path):
    store = Batches(str(tmp_path))
    batch = create(store, fasta(40))
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here.parents[2] / "platform"), str(here.parents[1])]),
    }
    with subprocess.Popen([sys.executable, "-c", GATEWAY, str(tmp_path)], env=environment) as killed:
        try:
            deadline = time.monotonic() + 120
            while len(store.answered(batch.id)) < 2:
                assert killed.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            killed.kill()
    left = store.answered(batch.id)
    assert len(left) < 10
    pool = FakePool()

    async def run():
        another = worker(context(tmp_path, pool))
        another.wake()
        end = await finished(store, batch)
        await another.close()
        return end

    assert asyncio.run(run()).status == "finished"
    assert [row["id"] for row in rows(store, batch)] == [f"r{number}" for number in range(40)]
    assert len([call for call in pool.calls if call[0] == "generate"]) == 40 - 4 * len(left)


def test_a_gateway_that_ends_leaves_its_batch_at_once(tmp_path):
    store = Batches(str(tmp_path))
    batch = create(store, fasta(8))

    async def run():
        first = worker(context(tmp_path, FakePool(seconds=60)))
        first.wake()
        await until(lambda: store.status(batch)["status"] == "running")
        await first.close()
        assert store.status(batch)["status"] == "queued"
        second = worker(context(tmp_path))
        second.wake()
        await finished(store, batch)
        await second.close()

    asyncio.run(run())
    assert len(rows(store, batch)) == 8


def test_a_worker_stops_when_its_batch_is_removed_or_taken(tmp_path):
    store = Batches(str(tmp_path))
    removed, taken = create(store, fasta(8)), create(store, fasta(8))

    async def run():
        pool = FakePool(seconds=60)
        one = worker(context(tmp_path, pool), lease=0.03)
        one.wake()
        await until(lambda: pool.running >= 4)
        store.delete(removed.id)
        # Again and again: the worker may have looked at its lease before, and renew it after.
        await until(lambda: store.renew(taken.id, "another") or pool.running == 0)
        await until(lambda: store.renew(taken.id, "another") or store.lease(taken.id).owner == "another")
        await until(lambda: not (tmp_path / removed.id).exists())
        assert store.lease(taken.id).owner == "another"
        await one.close()

    asyncio.run(run())
    assert store.unfinished() == [taken.id]


def test_a_pool_that_is_full_or_away_is_waited_for(tmp_path):
    store = Batches(str(tmp_path))
    batch = create(store, fasta(4))
    pool = FakePool(error=Overloaded("full"))

    async def run():
        one = worker(context(tmp_path, pool), lease=0.03)
        one.wake()
        await until(lambda: len(pool.calls) > 20)
        pool.error = ResourceError("no replica")
        await until(lambda: store.status(batch)["message"] == "waits for the model: no replica")
        pool.error = None
        await finished(store, batch)
        await one.close()

    asyncio.run(run())
    assert store.end(batch.id).errors == 0


def test_a_record_that_kills_whoever_answers_is_an_error_row_in_the_end(tmp_path, monkeypatch):
    class Poisoned(FakePool):
        async def score(self, prompt, choices, target):
            if "GGGG" in prompt[-1]["content"]:
                raise ResourceError("the replica that answered is gone")
            return await super().score(prompt, choices, target)

    store = Batches(str(tmp_path))
    batch = create(store, f">a\n{DNA}\n>b\nGGGG\n>c\n{DNA}\n".encode())

    async def run():
        one = worker(context(tmp_path, Poisoned()))
        one.wake()
        await finished(store, batch)
        await one.close()

    asyncio.run(run())
    told = [row["error"] for row in rows(store, batch)]
    attempts = f"no answer in {batch_worker.ATTEMPTS} attempts: the replica that answered is gone"
    assert told == ["", attempts, ""]


def test_batches_leave_most_of_the_queue_to_others(tmp_path):
    store = Batches(str(tmp_path))
    for _ in range(3):
        create(store, fasta(30), chunk=30)
    pool = FakePool(seconds=0.002)

    async def run():
        one = worker(context(tmp_path, pool, max_queued_requests=32, limits=Limits(records=32)))
        one.wake()
        await until(lambda: not store.unfinished())
        await one.close()

    asyncio.run(run())
    assert 0 < pool.most <= 8


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"id,sequence\n", "no record"),
        (fasta(101), "more than 100"),
        (b"\xffoo\n1\n", "cannot be read"),
        (b"a,a\n1,2\n", "twice"),
    ],
)
def test_an_input_that_is_none_leaves_nothing_behind(tmp_path, content, told):
    with pytest.raises(DataError, match=told):
        create(Batches(str(tmp_path)), content)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def over_http(of, work):
    """Runs `work(client)` against the application while it lives."""

    async def run():
        api = create_api(of)
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with (
            api.router.lifespan_context(api),
            httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
        ):
            return await work(client)

    return asyncio.run(run())


def test_a_file_goes_in_and_a_table_comes_out(tmp_path):
    async def work(client):
        sent = await client.post("/v1/predict/batch?task=planted_promoter", content=fasta(5))
        assert sent.status_code == 202, sent.text
        at = f"/v1/predict/batch/{sent.json()['id']}"
        early = await client.get(f"{at}/result")
        while (status := (await client.get(at)).json())["status"] != "finished":
            assert status["status"] in ("queued", "running")
            await asyncio.sleep(0.01)
        result = await client.get(f"{at}/result")
        assert (await client.delete(at)).json()["deleted"]
        gone = await client.get(at)
        return early, status, result, gone

    early, status, result, gone = over_http(context(tmp_path, FakePool(seconds=0.02)), work)
    assert (early.status_code, early.json()["error"]["code"]) == (400, "batch_not_finished")
    assert (status["records"], status["done"], status["errors"]) == (5, 5, 0)
    assert result.headers["content-type"].startswith("text/csv")
    assert [row["id"] for row in csv.DictReader(io.StringIO(result.text))] == [f"r{number}" for number in range(5)]
    assert gone.status_code == 404
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("query", "content", "headers", "status", "code"),
    [
        ("task=planted_promoter", gzip.compress(b"id,sequence\n" + b"A" * 2_000_000), {}, 400, "compressed"),
        ("task=planted_promoter", b"PK\x03\x04" + b"x" * 99, {}, 400, "compressed"),
        ("task=planted_promoter", fasta(3), {"content-encoding": "gzip"}, 400, "compressed"),
        ("task=planted_promoter", b" \n", {}, 400, "invalid_value"),
        ("task=planted_promoter", b"x" * 5000, {}, 413, "body_too_large"),
        ("task=planted_promoter", b"id,other\n1,2\n", {}, 400, "invalid_value"),
        ("task=planted_promoter&model=worse", fasta(3), {}, 404, "model_not_found"),
        ("task=none", fasta(3), {}, 400, "invalid_value"),
        ("", fasta(3), {}, 400, "missing_parameter"),
    ],
)
def test_what_is_no_batch_is_refused_and_the_next_one_is_taken(tmp_path, query, content, headers, status, code):
    async def work(client):
        refused = await client.post(f"/v1/predict/batch?{query}", content=content, headers=headers)
        sent = await client.post("/v1/predict/batch?task=planted_promoter", content=fasta(2))
        assert sent.status_code == 202, sent.text
        at = f"/v1/predict/batch/{sent.json()['id']}"
        while (await client.get(at)).json()["status"] != "finished":
            await asyncio.sleep(0.01)
        assert (await client.delete(at)).status_code == 200
        return refused

    answer = over_http(context(tmp_path, limits=Limits(batch_bytes=4096)), work)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert str(tmp_path) not in answer.text
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("batch_id", ["batch_x", "%2e%2e", "batch_" + "0" * 32, "%2e%2e%2fopen"])
def test_an_id_is_never_a_path(tmp_path, batch_id):
    answer = over_http(context(tmp_path), lambda client: client.get(f"/v1/predict/batch/{batch_id}"))
    assert answer.status_code == 404


def test_a_batch_belongs_to_a_team(tmp_path):
    batch = Batches(str(tmp_path)).create(io.BytesIO(fasta(2)), SPEC, "tiny", "genomics", most=10)

    async def work(client):
        at = f"/v1/predict/batch/{batch.id}"
        return [await client.get(at), await client.get(f"{at}/result"), await client.delete(at)]

    answers = over_http(context(tmp_path, FakePool(seconds=60)), work)
    assert [answer.status_code for answer in answers] == [404] * 3
    assert Batches(str(tmp_path)).read(batch.id) == batch


def test_a_server_without_a_folder_for_batches_takes_none():
    of = Context(ServeConfig(model="unused"), FakePool(), "0" * 16)
    answer = over_http(of, lambda client: client.post("/v1/predict/batch?task=planted_promoter", content=fasta(1)))
    assert answer.status_code == 404


@pytest.mark.parametrize("damage", [b"{", b"\xff\xfe", b'{"id": 1}', b"[]", None])
def test_a_damaged_record_of_a_batch_is_told_and_stops_no_other(tmp_path, caplog, damage):
    # As the gateway has it: models that share the folder have their own in it.
    store = Batches(str(tmp_path / "tiny"))
    broken, sound = create(store, fasta(4)), create(store, fasta(4))
    record = tmp_path / "tiny" / broken.id / "batch.json"
    record.unlink()
    record.mkdir() if damage is None else record.write_bytes(damage)

    async def work(client):
        await until(lambda: store.end(sound.id) is not None)
        return await client.get(f"/v1/predict/batch/{broken.id}")

    answer = over_http(context(tmp_path), work)
    assert answer.status_code == 500
    assert str(tmp_path) not in answer.text
    if damage is not None:
        assert answer.json()["error"]["code"] == "batch_damaged"
    for _ in range(2):
        assert store.unfinished() == []
    assert caplog.text.count(f"batch {broken.id} is left out") == 2, "once by the gateway, once by this store"


def test_a_damaged_lease_is_written_anew(tmp_path):
    store = Batches(str(tmp_path))
    batch = create(store, fasta(4))
    (tmp_path / "open" / f"{batch.id}.json").write_text('{"owner": 1}')

    async def run():
        one = worker(context(tmp_path))
        one.wake()
        end = await finished(store, batch)
        await one.close()
        return end

    assert asyncio.run(run()).status == "finished"


def test_what_is_wrong_on_the_server_is_told_without_its_places(tmp_path, caplog):
    store = Batches(str(tmp_path))
    batch = create(store, fasta(1))
    pool = FakePool(error=DataError("not what was published: /secret/x", where="/secret/x"))

    async def run():
        one = worker(context(tmp_path, pool))
        # Ready, though no record can be answered.
        pool.ready = lambda: asyncio.sleep(0)
        one.wake()
        await finished(store, batch)
        await one.close()

    asyncio.run(run())
    (row,) = rows(store, batch)
    told = "the server's own files or settings are wrong; tell the operators"
    assert row["error"] == f"no answer in {batch_worker.ATTEMPTS} attempts: {told}"
    assert "/secret/x" in caplog.text
