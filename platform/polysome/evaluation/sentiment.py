"""Sentiment models: a local folder in, a judge of answers that hold none of the paper's keywords out (A-101)."""

from polysome.config import ConfigurationError
from polysome.evaluation.official import Sentiment

MAX_TOKENS = 512
"""Longer texts are cut, as the authors do."""


def sentiment_model(folder: str) -> Sentiment:
    """The judge that stands in a Hugging Face folder of a sequence classifier (safetensors), on the CPU.

    The authors use cardiffnlp/twitter-roberta-base-sentiment-latest; any model with the labels `negative` and
    `positive` (in any case) will do, and what else it knows, such as `neutral`, is left out.

    Raises:
        ConfigurationError: there is no such model in the folder, or it lacks one of the two labels.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"no sentiment model: {error}", where=folder, fix="name a local folder of a sequence classifier"
        ) from error
    places = {str(name).lower(): int(place) for place, name in model.config.id2label.items()}
    if not {"negative", "positive"} <= set(places):
        raise ConfigurationError(
            f"a sentiment model with the labels {', '.join(sorted(places))}",
            where=folder,
            fix="name one that has the labels negative and positive",
        )
    model.eval()

    def judge(text: str) -> tuple[float, float]:
        inputs = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            shares = model(**inputs).logits[0].softmax(dim=-1)
        return float(shares[places["negative"]]), float(shares[places["positive"]])

    return judge
