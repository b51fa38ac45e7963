"""A lint for templates (A-56): does a question ask for what its label holds, an answer say what its pool is for?

The rules are about words and meant to be simple; they stand in the tables below. What is surely wrong is an error, what
may be wrong is a warning.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from polysome.specs.labels import MultiRegressionLabel
from polysome.specs.model import Dataset, Task

Level = Literal["error", "warning"]
ENOUGH_TEMPLATES = 10
"""Hand-written wordings per pool in the paper (A-50)."""


@dataclass(frozen=True)
class Finding:
    """Something about one template.

    Attributes:
        template: the template; for a pool as a whole, the pool's name.
        problem: what is wrong, in words.
    """

    template: str
    problem: str
    level: Level = "error"


def lint(spec: Dataset) -> list[Finding]:
    """Everything that the rules have to say of a data set's templates; empty for a corpus."""
    if spec.task is None:
        return []
    templates = spec.task.templates
    return [
        *_tag(spec.task),
        *_pool("questions", templates.questions),
        *_pool("conditioned", templates.conditioned, optional=True),
        *_questions(spec.task, [*templates.questions, *templates.conditioned]),
        *(finding for name, pool in templates.answers.items() for finding in _pool(f"{name} answers", pool)),
        *_answers(spec.task),
    ]


_AUXILIARY = r"(?:is|are|was|were|does|do|did|has|have|can|could|will|would|should|may|might|isn't|doesn't|aren't)"
# A clause that begins so can be answered with yes or no; `can you …` is a polite request for anything.
_ASKS_YES_NO = re.compile(rf"^(?:(?:and|so|then|now|or|but)\s+)?{_AUXILIARY}\s+(?!you\b|we\b|i\b|one\b)")
_POLITE = re.compile(rf"^(?:(?:and|so|then|now|or|but)\s+)?{_AUXILIARY}\s+(?:you|we|i|one)\b")
_SAYS_YES_NO = re.compile(r"\b(?:yes or no|yes/no|no or yes|whether|or not|true or false|present or absent)\b")
_OPEN = re.compile(r"\b(?:what|what's|which|how|who|where|when|whose)\b")
_OPTIONS = re.compile(r"\bor\b|\bamong\b|\bone of\b|\bout of\b")
_QUANTITY = re.compile(
    r"\bhow (?:much|many|strong|strongly|high|low|large|efficient|efficiently|active|stable|fast|hot|bright)\b"
    r"|\bwhat(?:'s| is| are| would be)? (?:the |its )?(?:predicted |expected |estimated )?"
    r"(?:value|score|number|percentage|rate|degree|temperature|ratio|fraction|proportion)s?\b"
    r"|\b(?:return|give|report|state|provide) (?:me )?(?:a|the|its) (?:value|score|number|percentage)\b"
)
_NUMBER_WANTED = re.compile(
    r"\bas a (?:number|percentage|score)\b|\b(?:rate|score|grade)\b[^.?]*\bfrom \d|\bpercentage\b|\bon a scale\b"
    r"|\b(?:predict|estimate|calculate|compute|quantify) the (?:value|level|amount|degree|score|strength) of\b"
)
_CLASS = re.compile(r"\bwhich (?:class|family|type|kind|category|group|label|of (?:the|these|those))\b")
_REQUEST = re.compile(
    r"\b(?:predict|estimat|determin|assess|evaluat|classif|identif|detect|calculat|comput|quantif|tell|give|report|state"
    r"|provide|name|list|assign|decide|judge|check|analy[sz]|examin|find|infer|measur|rate|score|return|specif|label"
    r"|categor|annotat|say|describ|characteri[sz]|know|indicat|output|work out|help|sort|place|pick|choose|need|want"
    r"|look|screen|verif|confirm|forecast|gauge|read|recogni[sz]|wonder|curious|like|ask|test|inspect|consider|show"
    r"|suggest|guess|deduce|establish|explore|investigat|quote|put|call|tag|map|write|answer|interpret|derive)\w*"
)
_ALL_VALUES = re.compile(
    r"\b(?:all|both|each|every|two|three|values|activities|states|levels|scores|numbers|outputs|signals|profile"
    r"|respectively|readouts|measurements|predictions|figures|strengths)\b"
)
_NEGATION = re.compile(
    r"\b(?:no|not|none|neither|nor|never|without|absent|absence|lacks?|lacking|negative|negatively|cannot|fails?"
    r"|missing|devoid|unlikely|excluded?|rules? out|ruled out|free of|little|unable|inactive|insoluble|unbound"
    r"|unrelated|unconnected|unmodified|uninteresting|separate|independent|aggregates?|poorly|un\w+able|non-?\w+)\b"
    r"|n't\b|n\u2019t\b"
)
_TAG = re.compile(r"^\[(Classification|Regression): [^\[\]]+\]$")


def _pool(name: str, pool: list[str], *, optional: bool = False) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for template in pool:
        plain = " ".join(re.findall(r"\w+|[{}]", template.lower()))
        if plain in seen:
            yield Finding(template, f"stands twice among the {name}, as {seen[plain]!r}")
        seen.setdefault(plain, template)
    if len(pool) < ENOUGH_TEMPLATES and not (optional and not pool):
        yield Finding(name, f"{len(pool)} wordings, {ENOUGH_TEMPLATES} or more teach more", "warning")


def _tag(task: Task) -> Iterator[Finding]:
    kind = task.label.kind
    if kind == "generation":
        return
    wanted = "Regression" if kind in ("regression", "multi_regression") else "Classification"
    found = _TAG.match(task.tag)
    if found is None or found[1] != wanted:
        yield Finding(task.tag, f"the tag of a {kind} task reads [{wanted}: <name>] (A-62)", "warning")


def _questions(task: Task, templates: list[str]) -> Iterator[Finding]:
    kind = task.label.kind
    check: dict[str, Callable[[Task, _Question], Iterator[tuple[str, Level]]]] = {
        "binary": _asks_yes_no,
        "multiclass": _asks_which,
        "multilabel": _asks_which,
        "regression": _asks_how_much,
        "multi_regression": _asks_every_value,
    }
    for template in templates:
        asked = _Question.of(template)
        if "[" in template:
            yield Finding(template, "holds a bracket: task tags are put in by the recipe", "warning")
        if kind in check:
            for problem, level in check[kind](task, asked):
                yield Finding(template, problem, level)


@dataclass(frozen=True)
class _Question:
    """A question without its placeholders: as written, in lower case, and cut at its punctuation."""

    written: str
    text: str
    clauses: tuple[str, ...]

    @classmethod
    def of(cls, template: str) -> "_Question":
        written = re.sub(r"\{\w*\}", " ", template).replace("\u2019", "'")
        text = " ".join(written.lower().split())
        clauses = (clause.strip() for clause in re.split(r"[.:;,!?()\u2013\u2014]|\s-\s|(?<=\s)-", text))
        return cls(written, text, tuple(clause for clause in clauses if clause))

    @property
    def invites_yes_no(self) -> bool:
        return bool(_SAYS_YES_NO.search(self.text)) or any(_ASKS_YES_NO.match(clause) for clause in self.clauses)

    @property
    def requests(self) -> bool:
        polite = any(_POLITE.match(clause) for clause in self.clauses)
        return polite or bool(_REQUEST.search(self.text)) or "?" in self.written


def _asks_yes_no(task: Task, asked: _Question) -> Iterator[tuple[str, Level]]:
    if asked.invites_yes_no:
        return
    if _QUANTITY.search(asked.text) or _NUMBER_WANTED.search(asked.text):
        yield "asks for a quantity, and the label is yes or no", "error"
    elif re.search(r"\bwhich\b|\bhow\b", asked.text):
        yield "asks which or how, and the label is yes or no", "error"
    elif _OPEN.search(asked.text):
        yield "asks an open question, and the label is yes or no", "warning"
    elif not asked.requests:
        yield "asks nothing", "warning"


def _asks_which(task: Task, asked: _Question) -> Iterator[tuple[str, Level]]:
    if re.search(r"\bhow (?:much|many)\b", asked.text) and task.label.kind == "multiclass":
        yield "asks for a quantity, and the label is a name", "error"
    elif _only_yes_no(asked):
        yield "can be answered with yes or no, and the label names classes", "error"
    elif not (_OPEN.search(asked.text) or asked.requests):
        yield "asks nothing", "warning"


def _asks_how_much(task: Task, asked: _Question) -> Iterator[tuple[str, Level]]:
    if _only_yes_no(asked):
        yield "can be answered with yes or no, and the label is a number", "error"
    elif _CLASS.search(asked.text):
        yield "asks which class, and the label is a number", "error"
    elif not (_OPEN.search(asked.text) or asked.requests):
        yield "asks nothing", "warning"


def _asks_every_value(task: Task, asked: _Question) -> Iterator[tuple[str, Level]]:
    assert isinstance(task.label, MultiRegressionLabel)
    named, rest = [], asked.written
    # Longest first, so that `ON/OFF` is not taken for ON and OFF.
    for output in sorted(task.label.outputs, key=len, reverse=True):
        pattern = _naming(output)
        if pattern.search(rest):
            named.append(output)
            rest = pattern.sub(" ", rest)
    missing = [output for output in task.label.outputs if output not in named]
    if missing and not _ALL_VALUES.search(asked.text):
        if named:
            # Beside `and` the others may stand under another name.
            level: Level = "warning" if re.search(r"\band\b|\bplus\b", asked.text) else "error"
            yield f"asks for {', '.join(sorted(named))}, and the label also holds {', '.join(missing)}", level
        else:
            yield f"names none of {', '.join(missing)} and does not ask for all values", "warning"
    yield from _asks_how_much(task, asked)


_ALSO_CALLED = {
    "hk": "housekeeping",
    "dev": "developmental",
    "on_off": "ratio|dynamic range|fold change",
    "off": "leak|leaks|leakage",
    "gain": r"on minus off|difference|rise|rises|increase|change",
}
_COMMON_PARTS = {"enrichment", "activity", "value", "score", "log2", "level", "state"}


def _naming(output: str) -> re.Pattern[str]:
    """What in a question names an output: `ON_OFF` is also ON/OFF or the ratio, `Dev_enrichment` is developmental."""
    parts = [part for part in output.split("_") if part.lower() not in _COMMON_PARTS] or [output]
    names = r"\s*[/:_\u2013-]\s*".join(re.escape(part) for part in parts)
    # Two letters are a word of their own in lower case (on, off): they count as they are written.
    spelled = names if len(output) <= 3 and output.isupper() else f"(?i:{names})"
    also = _ALSO_CALLED.get("_".join(parts).lower())
    return re.compile(rf"(?<!\w)(?:{spelled}{f'|(?i:{also})' if also else ''})(?!\w)")


def _only_yes_no(asked: _Question) -> bool:
    """Whether a question is a yes/no question and nothing that asks for more."""
    if re.search(r"\b(?:yes or no|yes/no|true or false)\b", asked.text):
        return True
    if not any(_ASKS_YES_NO.match(clause) for clause in asked.clauses):
        return False
    return not (_OPEN.search(asked.text) or _OPTIONS.search(asked.text) or _REQUEST.search(asked.text))


def _answers(task: Task) -> Iterator[Finding]:
    pools = task.templates.answers
    if task.label.kind != "binary":
        for template in (template for pool in pools.values() for template in pool):
            if re.match(r"(?:yes|no)\b(?!\.\s*\d)", template.lower()):
                yield Finding(template, f"says yes or no, and the label is {task.label.kind}")
        return
    for template in set(pools["positive"]) & set(pools["negative"]):
        yield Finding(template, "stands among the positive and the negative answers")
    for template in pools["positive"]:
        if re.match(r"no\b(?! doubt)", template.lower()):
            yield Finding(template, "denies, and stands among the positive answers")
        elif _NEGATION.search(template.lower()) and not template.lower().startswith("yes"):
            yield Finding(template, "may deny, and stands among the positive answers", "warning")
    for template in pools["negative"]:
        if template.lower().startswith("yes") or not _NEGATION.search(template.lower()):
            yield Finding(template, "does not deny, and stands among the negative answers")
