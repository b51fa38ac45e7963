"""Scoring as a token trie: a prompt computed once, and after it once what choices have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from polysome.inference.forward import Forward, positions_of


@dataclass(frozen=True)
class Trie:
    """Choices that share their beginnings.

    Node 0 is the last token of the prompt. A further node stands for a beginning of one or more choices that at least
    one of them continues; the last token of a choice is predicted and never read, so it needs no node.

    Attributes:
        tokens: int64 [nodes]; that of node 0 is the prompt's.
        depths: int64 [nodes]; 0 for node 0.
        seen: bool [nodes, nodes]; whether node i sees node j: itself and its ancestors.
        sources: int64 [edges]; the node that predicts.
        targets: int64 [edges]; the token that it predicts.
        paths: for each choice its edges.
    """

    tokens: NDArray[np.int64]
    depths: NDArray[np.int64]
    seen: NDArray[np.bool_]
    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    paths: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, choices: Sequence[Sequence[int]]) -> Trie:
        """The trie of choices, each one or more token ids."""
        edges: dict[tuple[int, int], int] = {}
        nodes: dict[int, int] = {}
        sources: list[int] = []
        tokens, parents = [0], [0]
        paths = []
        for choice in choices:
            path: list[int] = []
            for token in choice:
                source = 0
                if path:
                    # The node behind the edge that led here; made when the first choice goes on from it.
                    source = nodes.setdefault(path[-1], len(tokens))
                    if source == len(tokens):
                        tokens.append(choice[len(path) - 1])
                        parents.append(sources[path[-1]])
                edge = edges.setdefault((source, token), len(edges))
                if edge == len(sources):
                    sources.append(source)
                path.append(edge)
            paths.append(np.array(path, dtype=np.int64))
        depths = np.zeros(len(tokens), dtype=np.int64)
        seen = np.eye(len(tokens), dtype=bool)
        for node in range(1, len(tokens)):
            # A parent stands before its children.
            depths[node] = depths[parents[node]] + 1
            seen[node] |= seen[parents[node]]
        targets = [token for _, token in edges]
        return cls(
            np.array(tokens, dtype=np.int64),
            depths,
            seen,
            np.array(sources, dtype=np.int64),
            np.array(targets, dtype=np.int64),
            tuple(paths),
        )

    @property
    def extra(self) -> int:
        """Positions that the trie needs after the prompt."""
        return len(self.tokens) - 1


def tries(choices: Sequence[Sequence[int]], room: int) -> list[Trie]:
    """Tries that one after another hold all choices in their order, each of at most `room` positions or one choice."""
    parts: list[Trie] = []
    start, beginnings = 0, set[tuple[int, ...]]()
    for index, choice in enumerate(choices):
        own = {tuple(choice[:size]) for size in range(1, len(choice))}
        if index > start and len(beginnings | own) > room:
            parts.append(Trie.of(choices[start:index]))
            start, beginnings = index, set()
        beginnings |= own
    return [*parts, Trie.of(choices[start:])]


def score_trie(forward: Forward, prompts: Sequence[Sequence[int]], trie: Trie) -> NDArray[np.float64]:
    """Log-likelihoods [prompts, choices] from one forward pass, a row for each prompt with the trie after it.

    A position sees what it would see if its choice stood there alone: the prompt and its own ancestors, by an additive
    mask [rows, 1, length, length]; and it is told that it stands where its depth puts it.
    """
    input_ids, real = forward.padded(prompts)
    mask, positions = real, positions_of(real)
    if trie.extra:
        nodes, depths = _nodes(trie, real)
        input_ids = torch.cat([input_ids, nodes], dim=1)
        positions = torch.cat([positions, positions[:, -1:] + depths], dim=1)
        mask = _mask(real, trie, forward.dtype, last=input_ids.shape[1])
    logits, _ = forward.logits(input_ids, mask, keep=trie.extra + 1, positions=positions, use_cache=False)
    return _sums(trie, logits)


def score_parts(forward: Forward, prompts: Sequence[Sequence[int]], parts: Sequence[Trie]) -> NDArray[np.float64]:
    """Log-likelihoods [prompts, choices of all parts] from a forward pass over the prompts, and one for each part.

    Every part goes on from the prompts' cache, which `forward.plain_cache` must allow. Attention holds a position
    against all that stand in its pass, also where the mask hides them, so parts cost less than one large trie.
    """
    input_ids, real = forward.padded(prompts)
    first, cache = forward.logits(input_ids, real, keep=1)
    ends = positions_of(real)[:, -1:]
    sums = []
    for part in parts:
        logits = [first]
        if part.extra:
            nodes, depths = _nodes(part, real)
            mask = _mask(real, part, forward.dtype, last=part.extra)
            further, cache = forward.logits(nodes, mask, keep=part.extra, positions=ends + depths, cache=cache)
            cache.crop(-part.extra)
            logits.append(further)
        sums.append(_sums(part, *logits))
    return np.concatenate(sums, axis=1)


def _nodes(trie: Trie, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int64 [rows, extra] and depths int64 [extra] of all nodes but the prompt's."""
    tokens, depths = (torch.from_numpy(values[1:]).to(real.device) for values in (trie.tokens, trie.depths))
    return tokens.expand(len(real), -1), depths


def _mask(real: torch.Tensor, trie: Trie, dtype: torch.dtype, *, last: int) -> torch.Tensor:
    """What the last positions of prompt and trie see: additive [rows, 1, last, width + extra]."""
    width = real.shape[1]
    columns = torch.arange(width + trie.extra, device=real.device)
    positions = columns[-last:, None]
    causal = columns <= positions
    causal[-trie.extra :, width:] = torch.from_numpy(trie.seen[1:, 1:]).to(real.device)
    visible = torch.nn.functional.pad(real.bool(), (0, trie.extra), value=True)[:, None, :] & causal
    # Padding sees itself: a softmax over nothing is no number.
    visible |= columns == positions
    mask = torch.zeros(visible.shape, dtype=dtype, device=real.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def _sums(trie: Trie, *logits: torch.Tensor) -> NDArray[np.float64]:
    """Log-likelihoods float64 [rows, choices]; logits, joined, are [rows, nodes, vocabulary]."""
    sources, targets = (torch.from_numpy(values).to(logits[0].device) for values in (trie.sources, trie.targets))
    # Row by row: logits in fp32 for all rows at once may need more memory than the forward pass.
    values = np.stack([_edges(torch.cat(row), sources, targets) for row in zip(*logits, strict=True)])
    return np.stack([values[:, path].sum(axis=1) for path in trie.paths], axis=1)


def _edges(logits: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> NDArray[np.float64]:
    """Log-probability float64 [edges] of each edge's token; logits [nodes, vocabulary]."""
    logits = logits.float()
    values = logits[sources, targets] - logits.logsumexp(dim=-1)[sources]
    return values.double().cpu().numpy()
