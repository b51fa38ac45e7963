"""Replicas: what several draws of an answer to one question say in; the prediction that is measured, and how far the
draws agree, out (E-2)."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from polysome.evaluation.official import Prediction
from polysome.specs import Task

_NUMBERS = ("regression", "multi_regression")


def vote(task: Task, told: Sequence[Prediction]) -> Prediction:
    """What the answers to one question say together; those that could not be read have no vote.

    Of classes and sets of classes the most frequent, of equally frequent ones the first; of numbers the median, every
    output by itself; of free text, which has neither, the first answer.
    """
    if len(told) == 1 or task.label.kind == "generation":
        return told[0]
    read = [answer for answer in told if answer is not None]
    if not read:
        return None
    if task.label.kind in _NUMBERS:
        return tuple(np.median(np.array(read, dtype=np.float64), axis=0).tolist())
    return Counter(read).most_common(1)[0][0]


def agreement(task: Task, told: Sequence[Sequence[Prediction]]) -> str:
    """In words: what is measured of the answers [rows, replicas], and how far those of a row agree, over the rows of
    which some answer could be read."""
    if task.label.kind == "generation":
        return "the first answer to each question is measured"
    rows = [(row, [answer for answer in row if answer is not None]) for row in told]
    if task.label.kind in _NUMBERS:
        spreads = [np.std(np.array(read, dtype=np.float64), axis=0).mean() for _, read in rows if read]
        spread = f"{np.mean(spreads):.3g}" if spreads else "undefined"
        return f"the median is measured; a question's answers have a standard deviation of {spread} on average"
    shares = [row.count(vote(task, row)) / len(row) for row, read in rows if read]
    share = f"{100 * np.mean(shares):.1f} %" if shares else "none"
    return f"the majority is measured; of the answers to a question {share} agree with it on average"
