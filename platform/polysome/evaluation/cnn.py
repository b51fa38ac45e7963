"""A small convolutional network on one-hot molecules: what plain supervised learning reaches in minutes on a CPU."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polysome.evaluation.features import ALPHABETS
from polysome.evaluation.linear import Quality, Told
from polysome.evaluation.targets import THRESHOLDS, Target
from polysome.specs import Dataset, Value

if TYPE_CHECKING:
    import torch

LONGEST = 1024
"""Letters of a molecule that are read; of a longer one the middle."""
CHANNELS = 64
KERNEL = 9
EPOCHS = 30
PATIENCE = 4
"""Epochs without a better held-out quality until it stops."""
BATCH = 64
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4
_HELD_OUT = 0.1
_LETTERS_AT_ONCE = 1 << 18


def fit(
    spec: Dataset,
    target: Target,
    sequences: list[list[str]],
    labels: Sequence[Value],
    asked: list[list[str]],
    quality: Quality,
    *,
    held_out: tuple[list[list[str]], Sequence[Value]] | None,
    seed: int,
    seconds: float,
) -> Told:
    """Train the network, keep the weights of the best epoch, and ask it.

    For each molecule two convolutions of 64 channels, the first over 9 letters, with the maximum and the mean over
    places; one linear layer over all molecules. AdamW; cross-entropy, or squared error of standardised numbers.

    Args:
        sequences: for each training row its molecules; `asked` the same of the rows to predict.
        quality: what the epoch and the threshold are chosen by.
        held_out: rows to choose on; None: a tenth of the training rows, drawn by seed, is held out.
        seconds: no epoch begins after so many.
    """
    import torch

    started = time.monotonic()
    generator = np.random.default_rng(seed)
    if held_out is None:
        order = generator.permutation(len(labels))
        cut = max(1, int(_HELD_OUT * len(order)))
        held_out = [sequences[row] for row in order[:cut]], [labels[row] for row in order[:cut]]
        sequences, labels = [sequences[row] for row in order[cut:]], [labels[row] for row in order[cut:]]
    wanted = target.encode(labels)
    mean, deviation = 0.0, 1.0
    if target.kind == "numbers":
        mean, deviation = wanted.mean(axis=0), np.maximum(wanted.std(axis=0), 1e-6)
        wanted = (wanted - mean) / deviation
    parts = [_codes(spec, part) for part in (sequences, held_out[0], asked)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = _network(spec, target.width)
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

        def outputs(codes: list[NDArray[np.int8]]) -> NDArray[np.float64]:
            return _outputs(network, target, codes) * deviation + mean

        best, best_quality, since = None, -np.inf, 0
        threshold = 0.5
        for _ in range(EPOCHS):
            _epoch(network, optimizer, target, parts[0], wanted, generator)
            told = outputs(parts[1])
            for candidate in THRESHOLDS if target.kind == "classes" else (0.5,):
                reached = quality(held_out[1], target.decode(told, candidate))
                if reached > best_quality + 1e-9:
                    best = {name: weight.clone() for name, weight in network.state_dict().items()}
                    best_quality, since, threshold = reached, -1, candidate
            since += 1
            if since == PATIENCE or time.monotonic() - started > seconds:
                break
        if best is not None:
            network.load_state_dict(best)
        return Told(outputs(parts[2]), 0.0, threshold)


def _network(spec: Dataset, width: int) -> Any:
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            letters = [len(ALPHABETS[molecule.type]) for molecule in spec.molecules]
            self.first = nn.ModuleList(nn.Conv1d(count, CHANNELS, KERNEL, padding=KERNEL // 2) for count in letters)
            self.second = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, 5, padding=2) for _ in letters)
            self.halve = nn.MaxPool1d(2, ceil_mode=True)
            self.dropout = nn.Dropout(0.2)
            self.last = nn.Linear(2 * CHANNELS * len(letters), width)

        def forward(self, molecules: "list[torch.Tensor]") -> "torch.Tensor":
            import torch

            features = []
            for first, second, one_hot in zip(self.first, self.second, molecules, strict=True):
                # Places without a letter count for nothing, so that nothing depends on what shares the batch.
                real = self.halve(one_hot.sum(dim=1, keepdim=True))
                found = self.halve(first(one_hot).relu()) * real
                found = second(found).relu() * real
                features += [found.amax(dim=-1), found.sum(dim=-1) / real.sum(dim=-1).clamp(min=1)]
            return self.last(self.dropout(torch.cat(features, dim=1)))

    return Network()


def _epoch(
    network: Any,
    optimizer: Any,
    target: Target,
    codes: list[NDArray[np.int8]],
    wanted: NDArray[np.float64],
    generator: np.random.Generator,
) -> None:
    import torch
    from torch.nn import functional

    network.train()
    order = generator.permutation(len(wanted))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        told = network(_one_hot(network, codes, rows))
        if target.kind == "class":
            loss = functional.cross_entropy(told, torch.from_numpy(wanted[rows].astype(np.int64)))
        elif target.kind == "classes":
            loss = functional.binary_cross_entropy_with_logits(told, torch.from_numpy(wanted[rows]).float())
        else:
            loss = functional.mse_loss(told, torch.from_numpy(wanted[rows]).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _outputs(network: Any, target: Target, codes: list[NDArray[np.int8]]) -> NDArray[np.float64]:
    """float64 [rows, width]: shares of the classes, or standardised numbers."""
    import torch

    network.eval()
    count = len(codes[0])
    at_once = max(1, _LETTERS_AT_ONCE // sum(part.shape[1] for part in codes))
    told = []
    with torch.inference_mode():
        for start in range(0, count, at_once):
            rows = np.arange(start, min(start + at_once, count))
            logits = network(_one_hot(network, codes, rows)).double()
            told.append(
                logits.softmax(dim=1)
                if target.kind == "class"
                else logits.sigmoid()
                if target.kind == "classes"
                else logits
            )
        return torch.cat(told).numpy()


def _codes(spec: Dataset, examples: list[list[str]]) -> list[NDArray[np.int8]]:
    """For each molecule int8 [rows, letters]: 1-based places in the alphabet, 0 for other letters and after the end."""
    found = []
    for position, molecule in enumerate(spec.molecules):
        table = np.zeros(256, dtype=np.int8)
        for code, letter in enumerate(ALPHABETS[molecule.type], start=1):
            table[ord(letter)] = table[ord(letter.lower())] = code
        sequences = [_middle(sequences[position]) for sequences in examples]
        codes = np.zeros((len(sequences), max(KERNEL, *map(len, sequences))), dtype=np.int8)
        for row, sequence in enumerate(sequences):
            codes[row, : len(sequence)] = table[np.frombuffer(sequence.encode("ascii", "replace"), dtype=np.uint8)]
        found.append(codes)
    return found


def _middle(sequence: str) -> str:
    start = max(0, (len(sequence) - LONGEST) // 2)
    return sequence[start : start + LONGEST]


def _one_hot(network: Any, codes: list[NDArray[np.int8]], rows: NDArray[np.int64]) -> "list[torch.Tensor]":
    """For each molecule float32 [rows, letters of the alphabet, letters]."""
    import torch

    molecules = []
    for first, part in zip(network.first, codes, strict=True):
        taken = part[rows]
        used = np.flatnonzero(taken.any(axis=0))
        taken = taken[:, : max(KERNEL, int(used[-1]) + 1 if len(used) else 0)]
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(taken.astype(np.int64)), first.in_channels + 1)
        molecules.append(one_hot[:, :, 1:].transpose(1, 2).float())
    return molecules
