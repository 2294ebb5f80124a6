"""The control beside every trained model: what its architecture shows with weights that learned nothing."""

from picollm_core.models import LanguageModel, build_model
from picollm_core.trainer import seeded


def untrained_model(model: LanguageModel, seed: int = 0) -> LanguageModel:
    """A fresh model of the same configuration, device and number format, in evaluation mode.

    Its weights come from `seed`; torch's global generators stay as they were.
    """
    with seeded(seed):
        fresh = build_model(model.config)
    return fresh.to(model.head.weight).eval()
