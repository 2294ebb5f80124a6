"""picollm_core: small language models to train, compare, sample from and look into.

    import picollm_core as pico

    run = pico.train("transformer-pico", corpus="storyworld", max_steps=200)
    text = pico.generate(run.load_model(), run.load_tokenizer(), "Once upon a time", top_p=0.9)

The functions below stand for the whole package; everything else is reached through its module.
"""

from picollm_core.corpora import load_corpus
from picollm_core.evaluate import evaluate
from picollm_core.exchange import from_transformers, to_transformers
from picollm_core.loading import load_model, save_model
from picollm_core.models import MODELS, build_model
from picollm_core.presets import PRESETS, run_config
from picollm_core.runs import load_run, run_table
from picollm_core.sampling import generate, generate_batch, stream
from picollm_core.tokenizers import load_tokenizer
from picollm_core.train import train

__all__ = [
    "MODELS",
    "PRESETS",
    "build_model",
    "evaluate",
    "from_transformers",
    "generate",
    "generate_batch",
    "load_corpus",
    "load_model",
    "load_run",
    "load_tokenizer",
    "run_config",
    "run_table",
    "save_model",
    "stream",
    "to_transformers",
    "train",
]
