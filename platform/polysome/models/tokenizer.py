"""Polysome's own vocabulary: bases or overlapping k-mers, amino acids, and whole phrases of the templates as tokens.

A Hugging Face tokenizer folder comes out. With `kmer=1` every capital letter and digit stands alone, so a sequence has
one token per character and a substitution changes one token. With `kmer=k` the chat template spells DNA and RNA as
overlapping k-mers (the input convention of DNABERT, Ji et al. 2021), with `protein_kmer=k` proteins: still one token
per letter, each seeing k letters, so a substitution changes k tokens; a small model need not learn to join letters
first. Runs of lower-case words are merged by byte-level BPE across spaces, so that the few phrasings of an instruction
set cost little. Encoding is lossless.
"""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from polysome.config import ConfigurationError

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
MOLECULE_TAGS = ("<dna>", "</dna>", "<rna>", "</rna>", "<protein>", "</protein>")

BASES, RESIDUES = "ACGTU", "ACDEFGHIKLMNPQRSTVWY"

_TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + CONTENT + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Rewrites every <tag>SEQUENCE</tag> to overlapping k-mers; polysome.data.render.spell does the same for raw documents.
_SPELL = (
    "{% macro spell(text, tag, k) %}{% for part in text.split('<' + tag + '>') %}"
    "{% if loop.first %}{{ part }}{% else %}"
    "{% set sequence = part.split('</' + tag + '>')[0] %}{{ '<' + tag + '>' }}"
    "{% if sequence|length < k or '</' + tag + '>' not in part %}{{ part }}{% else %}"
    "{% for start in range(sequence|length - k + 1) %}{{ ' ' + sequence[start:start + k] }}{% endfor %}"
    "{{ part[sequence|length:] }}{% endif %}{% endif %}{% endfor %}{% endmacro %}"
)


_PIECES = r"[A-Z*]|[0-9]| ?[a-z]+(?:,? [a-z]+)*|[^A-Za-z0-9]"


def chat_template(kmer: int, protein_kmer: int = 1) -> str:
    """The Jinja chat template for sequences spelled in k-mers (1: as they are)."""
    content = "message['content']"
    for tag, size in (("dna", kmer), ("rna", kmer), ("protein", protein_kmer)):
        if size > 1:
            content = f"spell({content}, '{tag}', {size})"
    return (_SPELL if "spell(" in content else "") + _TURNS.replace("CONTENT", content)


def build_per_base_tokenizer(
    folder: str | Path, texts: Iterable[str], *, vocabulary_size: int = 1024, kmer: int = 1, protein_kmer: int = 1
) -> None:
    """Write a tokenizer folder (tokenizer.json, tokenizer_config.json with the chat template) for transformers.

    Args:
        folder: local folder, made when absent.
        texts: wordings whose phrases shall become tokens: templates, system prompts, class names.
        vocabulary_size: upper bound without the k-mers; at least 276 (256 bytes and 20 special tokens and tags).
        kmer: 1 to 6; above 1, DNA and RNA are spelled in overlapping k-mers, each a token of its own.
        protein_kmer: 1 to 3, the same for proteins: 400 tokens of 2 residues, 8,000 of 3.
    """
    for name, size, most in (("kmer", kmer, 6), ("protein_kmer", protein_kmer, 3)):
        if not 1 <= size <= most:
            raise ConfigurationError(
                f"{name} {size} is outside 1..{most}", where="tokenizer", fix=f"choose 1 (letters) to {most}"
            )
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    word = "".join(
        f" [{letters}]{{{size}}}(?![A-Z])|" for letters, size in ((BASES, kmer), (RESIDUES, protein_kmer)) if size > 1
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(word + _PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, BOS, END, *ROLES]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - len(MOLECULE_TAGS),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=200,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if words := [*(_kmers(kmer) if kmer > 1 else []), *(_joined(RESIDUES, protein_kmer) if protein_kmer > 1 else [])]:
        _add_words(tokenizer, [f" {word}" for word in words])
    # Not special: they belong to the text and must survive decoding.
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in MOLECULE_TAGS])

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": END,
        "chat_template": chat_template(kmer, protein_kmer),
        "sequence_kmer": kmer,
        **({"protein_kmer": protein_kmer} if protein_kmer > 1 else {}),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _kmers(kmer: int) -> list[str]:
    """All DNA k-mers, then the RNA k-mers that hold a U."""
    return _joined("ACGT", kmer) + [word for word in _joined("ACGU", kmer) if "U" in word]


def _joined(letters: str, size: int) -> list[str]:
    return ["".join(word) for word in itertools.product(letters, repeat=size)]


def _add_words(tokenizer: Tokenizer, words: list[str]) -> None:
    """Put whole words into the BPE vocabulary; `ignore_merges` then takes a pre-token that is a word as it stands."""
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    for word in words:
        vocabulary.setdefault(word.replace(" ", "\u0120"), len(vocabulary))
    tokenizer.model = models.BPE(
        vocab=vocabulary, merges=[tuple(pair) for pair in content["model"]["merges"]], ignore_merges=True
    )
