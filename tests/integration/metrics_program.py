"""A program for the test of the dashboards: a local Ray in which everything is measured again and again, until its
standard input ends. It prints the address of its metrics as soon as there is something to read."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve

from polysome.data.manifest import Shard
from polysome.data.meters import Usage, count_shard
from polysome.evaluation.actors import ActorOptions, Answerer, Batch
from polysome.inference.asynchronous import Delta, Load
from polysome.inference.engine import Generation
from polysome.serving import metrics
from polysome.training.trackers import Run, open_trackers

PAUSE = 0.5
ROW = {
    "updates": 100,
    "epoch": 0.5,
    "loss": 1.5,
    "by_source": {"toy": {"loss": 1.5, "share": 1.0}},
    "grad_norm": 0.3,
    "learning_rate": {"base": 1e-4},
    "tokens_per_second": 1000.0,
    "tokens_per_second_per_device": 500.0,
    "data_wait_share": 0.1,
    "mfu": 0.4,
    "eta_seconds": 60.0,
    "skipped": 0,
    "dev": {"tasks": {"toy": {"value": 0.5}}},
}
"""A row of metrics.jsonl on a device whose peak is known."""


@ray.remote(num_cpus=0.1, num_gpus=1)
class Trainer:
    """Worker 0 of a training."""

    def run(self) -> None:
        trackers, usage, update = (
            open_trackers(["prometheus"], "unused", Run("demo/stage1", "stage1")),
            Usage("training"),
            0,
        )
        while True:
            update += 1
            trackers.log({**ROW, "update": update})
            usage.tell()
            count_shard("toy", Shard(path="a", sha256="", rows=1, documents=2, tokens=3, targets=1), 0.1)
            time.sleep(PAUSE)


class Pool:
    """A replica without a model."""

    def __init__(self) -> None:
        self._replica = metrics.Replica("base")
        asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        while True:
            self._replica.tell(Load(running=1, waiting=2, cache_used=0.5))
            with self._replica.loading_adapter("kinase@1"):
                self._replica.restarted()
            await asyncio.sleep(PAUSE)

    async def answer(self) -> str:
        async def pieces() -> AsyncIterator[Delta]:
            yield Delta("AC")
            await asyncio.sleep(0.01)
            yield Delta("GT", Generation("ACGT", prompt_tokens=3, completion_tokens=4, finish_reason="stop"))

        return "".join([piece.text async for piece in metrics.observed(pieces(), model="base", adapter="kinase@1")])


class Gateway:
    """The API in little."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __serve_build_asgi_app__(self) -> Any:
        from fastapi import FastAPI

        api = FastAPI()

        @api.get("/v1/answer")
        async def answer() -> str:
            metrics.name_target("base", "kinase@1")
            for reason in ("rate", "overloaded"):
                metrics.rejected(reason)
            return await self._pool.answer.remote()

        @api.get("/v1/broken")
        async def broken() -> None:
            raise RuntimeError("as told")

        api.add_middleware(metrics.Requests)
        return api


def main(port: int) -> None:
    """Measure until the input ends."""
    import httpx

    # One logical GPU, so that its seconds are counted too; what nodes with real ones tell is not seen here.
    with ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, _temp_dir=os.environ["RAY_TMPDIR"]):
        trainer = Trainer.remote()
        trainer.run.remote()
        options = ActorOptions("fake:Yes.", 1, 1, 0, max_batch_tokens=64, max_new_tokens=8, start_timeout=30.0)
        evaluator = ray.remote(num_cpus=0.1)(Answerer).remote(options)
        ray.get(evaluator.load.remote())
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        small = {"ray_actor_options": {"num_cpus": 0.1}}
        pool = serve.deployment(name="ModelPool", **small)(Pool).bind()
        serve.run(serve.deployment(name="Gateway", **small)(serve.ingress()(Gateway)).bind(pool))
        ended = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
        [node] = ray.nodes()
        print(f"127.0.0.1:{node['MetricsExportPort']}", flush=True)
        while not ended.wait(PAUSE):
            # One is answered, and one without a message refused.
            evaluator.answer.remote(Batch([[{"role": "user", "content": "Is it?"}], []]))
            for path in ("answer", "broken"):
                httpx.get(f"http://127.0.0.1:{port}/v1/{path}", trust_env=False)
        serve.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
