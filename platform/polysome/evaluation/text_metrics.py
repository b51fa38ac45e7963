"""Metrics of generated text: references and texts in, overlap scores from 0 to 1 out (A-146, B-50, B-52, AMB-24, F-13).

An answer that is None (nothing generated) scores 0 everywhere.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from polysome.evaluation.metrics import Floats
from polysome.evaluation.resampling import Resampled

ORDERS = 4
"""Longest n-gram of BLEU."""


@dataclass(frozen=True)
class BleuCounts:
    """What corpus BLEU is made of, per text."""

    matched: Floats
    """[n, 4]: n-grams that stand in the reference as well."""
    written: Floats
    """[n, 4]: n-grams of the text."""
    length: Floats
    """[n]: tokens of the text."""
    reference_length: Floats


def overlaps(references: Sequence[str], texts: Sequence[str | None]) -> dict[str, Floats]:
    """Scores per text [n], 0 to 1; the score of a system is their mean.

    - `rouge_1`, `rouge_1_recall`: F1 and recall of words; `rouge_l`: F1 of the longest common subsequence of words
      (Lin 2004). By rouge-score: case-folded, Porter-stemmed, letters and digits alone.
    - `bleu_sentence`: BLEU of each text, of the orders that it has (sacrebleu, effective order).
    - `meteor_nosyn`: METEOR without synonyms, so that no word list is needed: words and stems, 10·P·R / (R + 9·P) times
      1 - 0.5·(chunks / matches)³ (Banerjee and Lavie 2005), by nltk on sacrebleu's 13a tokens.
    - `longest_common`: longest common stretch of characters, case-folded and spaces made single, over the length of the
      reference (B-50).
    """
    from nltk.translate.meteor_score import single_meteor_score
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    rouge, bleu, tokens = (
        RougeScorer(["rouge1", "rougeL"], use_stemmer=True),
        BLEU(effective_order=True),
        Tokenizer13a(),
    )
    names = ("rouge_1", "rouge_1_recall", "rouge_l", "bleu_sentence", "meteor_nosyn", "longest_common")
    rows = np.zeros((len(texts), len(names)))
    for row, (reference, text) in enumerate(zip(references, texts, strict=True)):
        if not text:
            continue
        scores = rouge.score(reference, text)
        rows[row] = (
            scores["rouge1"].fmeasure,
            scores["rouge1"].recall,
            scores["rougeL"].fmeasure,
            bleu.sentence_score(text, [reference]).score / 100,
            single_meteor_score(tokens(reference).split(), tokens(text).split(), wordnet=_NoSynonyms()),
            longest_common(reference, text),
        )
    return dict(zip(names, rows.T, strict=True))


def longest_common(reference: str, text: str) -> float:
    """Longest common stretch of characters over the length of the reference, 0 to 1 (B-50, AMB-24)."""
    first, second = (" ".join(part.casefold().split()) for part in (reference, text))
    if not first:
        return 0.0
    return SequenceMatcher(None, first, second, autojunk=False).find_longest_match().size / len(first)


def bleu(references: Sequence[str], texts: Sequence[str | None], order: int = ORDERS) -> float:
    """Corpus BLEU of n-grams up to `order`, 0 to 1: BP·exp(mean log p_n), BP = 1 if c > r else exp(1 - r/c) (F-13).

    By sacrebleu (13a tokens, exponential smoothing), over 100.
    """
    from sacrebleu.metrics import BLEU

    told = [text or "" for text in texts]
    return float(BLEU(max_ngram_order=order).corpus_score(told, [list(references)]).score) / 100 if told else math.nan


def bleu_counts(references: Sequence[str], texts: Sequence[str | None]) -> BleuCounts:
    """The counts of each text by sacrebleu."""
    from sacrebleu.metrics import BLEU

    scorer = BLEU(effective_order=True)
    found = [scorer.sentence_score(text or "", [reference]) for reference, text in zip(references, texts, strict=True)]
    return BleuCounts(
        np.array([score.counts for score in found], dtype=float).reshape(-1, ORDERS),
        np.array([score.totals for score in found], dtype=float).reshape(-1, ORDERS),
        np.array([score.sys_len for score in found], dtype=float),
        np.array([score.ref_len for score in found], dtype=float),
    )


def resampled_bleu(counts: BleuCounts, order: int = ORDERS) -> Resampled:
    """Corpus BLEU of many resamples, from sums of the counts."""

    def value(weights: Floats) -> Floats:
        matched, written = weights @ counts.matched[:, :order], weights @ counts.written[:, :order]
        length, reference_length = weights @ counts.length, weights @ counts.reference_length
        logarithm, smoothing = np.zeros(len(weights)), np.ones(len(weights))
        with np.errstate(divide="ignore", invalid="ignore"):
            for place in range(order):
                none = matched[:, place] == 0
                smoothing = np.where(none, 2 * smoothing, smoothing)
                hits = np.where(none, 1 / smoothing, matched[:, place])
                logarithm += np.log(np.where(written[:, place] > 0, hits / written[:, place], 0))
            penalty = np.where(length > reference_length, 1, np.exp(1 - reference_length / length))
            score = penalty * np.exp(logarithm / order)
        return np.where(matched.any(axis=1), score, 0.0)

    return value


def means(values: Mapping[str, Floats]) -> dict[str, float]:
    """Mean of each score."""
    return {name: float(rows.mean()) if len(rows) else math.nan for name, rows in values.items()}


class _NoSynonyms:
    """Stands for a word list that knows no word."""

    def synsets(self, *_: object) -> list[object]:
        return []
