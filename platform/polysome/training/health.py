"""Health of a training run: what happened since the last logged row, over all workers, becomes that row's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from polysome.data.manifest import Manifest

if TYPE_CHECKING:
    import torch


def source_names(manifest: Manifest) -> list[str]:
    """A name for every source of a prepared folder, in its order: the data set's, and where it stands there more than
    once also the split and the prompt if they differ, or else a number."""
    names: list[str] = []
    for source in manifest.sources:
        namesakes = [other for other in manifest.sources if other.dataset == source.dataset]
        differing = [field for field in ("split", "prompt") if len({getattr(other, field) for other in namesakes}) > 1]
        names.append("-".join([source.dataset, *(getattr(source, field) for field in differing)]))
    before = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name}-{count + 1}" if count else name for name, count in zip(names, before, strict=True)]


def losses(sources: Sequence[str], sums: torch.Tensor) -> dict[str, Any]:
    """Means of summed losses.

    Args:
        sources: names.
        sums: [sources, 3]: summed cross-entropy, targets, and targets predicted right.

    Returns:
        loss: cross-entropy per target (nat), None without targets.
        by_source: for every source with targets its `loss`, its `targets_share`, and `accuracy`, the share of its
            targets that were the likeliest token.
    """
    entropy, targets, _ = sums.sum(0).tolist()
    return {
        "loss": entropy / targets if targets else None,
        "by_source": {
            name: {"loss": loss / count, "targets_share": count / targets, "accuracy": right / count}
            for name, (loss, count, right) in zip(sources, sums.tolist(), strict=True)
            if count
        },
    }


class Window:
    """Sums since the last logged row; `row` ends one window and begins the next.

    Every worker holds one. Token and target counts are of all workers, as every worker knows them; losses, seconds and
    waiting are its own until `row` adds them up.
    """

    def __init__(
        self,
        sources: Sequence[str],
        device: torch.device,
        *,
        flops_per_token: float | None = None,
        peak_tflops: float | None = None,
    ) -> None:
        """Begin the first window.

        Args:
            sources: different names, in the order of the rows given to `add_losses`.
            device: that the losses are on and that workers reduce on.
            flops_per_token: of the model, forward and backward, without recomputation.
            peak_tflops: of one device. Without either there is no `mfu`.
        """
        if len(set(sources)) != len(sources):
            raise ValueError(f"sources need different names, got {list(sources)}")
        self._sources, self._device = tuple(sources), device
        self._flops = (flops_per_token, peak_tflops)
        self._begin()

    def add_losses(self, by_source: torch.Tensor) -> None:
        """Add sums of this worker's part of the update that runs; they count once `add` says that it was taken.

        Args:
            by_source: float64 [sources, 3] on the device: summed cross-entropy, targets, and targets predicted right.
        """
        self._update += by_source

    def add(self, *, tokens: int, targets: int, seconds: float, waited: float, skipped: bool = False) -> None:
        """Add one update.

        Args:
            tokens: positions that are no padding, of all workers.
            targets: positions trained on, of all workers.
            seconds: that the update took.
            waited: seconds of these in which this worker waited for data.
            skipped: the gradient was not finite. Its time and tokens count; its losses, which may be nan, do not.
        """
        if not skipped:
            self._losses += self._update
        self._update.zero_()
        self._updates += 1
        self._skipped += skipped
        self._tokens += tokens
        self._targets += targets
        self._seconds += seconds
        self._waited += waited

    def row(self, *, updates_left: int) -> dict[str, Any]:
        """The window's numbers over all workers; every worker calls it, after at least one update.

        Returns:
            loss, by_source: see `losses`; the loss is None when every update was skipped.
            tokens_per_second, tokens_per_second_per_device, targets_per_second: without padding.
            mfu: share of the devices' peak that the model's own FLOPs took; only where both are known.
            data_wait_share: of the workers' time; eta_seconds: at the window's speed; skipped: updates in the window.
        """
        import torch

        sums = torch.cat([self._losses.flatten(), self._losses.new_tensor([self._seconds, self._waited])])
        workers = 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
            workers = torch.distributed.get_world_size()
        seconds, waited = sums[-2:].tolist()
        speed = self._tokens * workers / seconds
        row = {
            **losses(self._sources, sums[:-2].view(-1, 3)),
            "tokens_per_second": speed,
            "tokens_per_second_per_device": speed / workers,
            "targets_per_second": self._targets * workers / seconds,
            "data_wait_share": waited / seconds,
            "eta_seconds": seconds / workers / self._updates * updates_left,
            "skipped": self._skipped,
        }
        flops_per_token, peak_tflops = self._flops
        if flops_per_token and peak_tflops:
            row["mfu"] = flops_per_token * speed / workers / (peak_tflops * 1e12)
        self._begin()
        return row

    def _begin(self) -> None:
        import torch

        self._losses = torch.zeros((len(self._sources), 3), dtype=torch.float64, device=self._device)
        self._update = torch.zeros_like(self._losses)
        self._updates = self._skipped = self._tokens = self._targets = 0
        self._seconds = self._waited = 0.0
