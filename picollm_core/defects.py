"""A well-known mistake, made on purpose so that a notebook can measure what it does: padding scored as text.

Its sibling, the k-gram window that ends a token too early, is `KGramConfig(offset=1)`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from picollm_core.batches import Batches, make_batches
from picollm_core.config import TrainConfig
from picollm_core.corpora import load_corpus
from picollm_core.evaluate import evaluate
from picollm_core.losses import IGNORE
from picollm_core.models import build_model
from picollm_core.sampling import generate
from picollm_core.tokenizers import load_tokenizer
from picollm_core.trainer import Trainer, seeded


@dataclass
class ScoredPadding:
    """Batches as the defect makes them: every row padded with id 0 to `block_size`, and the padding is a target.

    In GPT-2's vocabulary id 0 is the exclamation mark.
    """

    batches: Batches
    block_size: int

    @property
    def epoch(self) -> float:
        return self.batches.epoch

    @property
    def steps_per_epoch(self) -> int:
        return self.batches.steps_per_epoch

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """idx and targets, both (B, block_size)."""
        idx, targets = self.batches.next_batch()
        room = self.block_size - idx.size(1)
        unscored = targets == IGNORE
        after_the_end = unscored & F.pad(unscored[:, :-1], (1, 0))  # the first unscored input is the end of text itself
        return F.pad(idx.masked_fill(after_the_end, 0), (0, room)), F.pad(targets.masked_fill(unscored, 0), (0, room))

    def state_dict(self) -> dict[str, Any]:
        return self.batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches.load_state_dict(state)


def padding_experiment(steps: int, block_size: int, preset: str = "transformer-pico", seed: int = 0) -> dict[str, Any]:
    """Train one model twice on the custom corpus, padded lines of GPT-2 tokens: padding left out, and padding scored.

    For "right" and "defect": `reported_loss`, the mean training loss of the last 10 updates, which is what a script
    prints; `true_loss`, the evaluator's nats per real token on held-out lines; `after_the_end`, what greedy choice
    adds to a complete held-out line. `padding_share` is the share of the defect's targets that are padding.
    """
    tokenizer, corpus = load_tokenizer("gpt2"), load_corpus("custom", splits=(80, 20, 0))
    held_out = list(corpus.texts("validation"))
    config = TrainConfig(max_steps=steps, batch_size=8, seed=seed)
    found: dict[str, Any] = {}
    for arm in ("right", "defect"):
        batches = make_batches([corpus], (1.0,), tokenizer, block_size, config.batch_size, seed)
        with seeded(seed):
            model = build_model(preset, vocab_size=tokenizer.n_vocab, block_size=block_size)
            trainer = Trainer(model, ScoredPadding(batches, block_size) if arm == "defect" else batches, config)
            losses = [trainer.advance()["loss"] for _ in range(steps)]
        line = held_out[0]
        text = generate(model, tokenizer, line, max_new_tokens=12, temperature=0.0, stop_at_eot=False)
        found[arm] = {
            "reported_loss": sum(losses[-10:]) / len(losses[-10:]),
            "true_loss": evaluate(model, tokenizer, held_out, n_bootstrap=1).nll,
            "after_the_end": text[len(line) :],
        }
    padded = ScoredPadding(make_batches([corpus], (1.0,), tokenizer, block_size, config.batch_size, seed), block_size)
    targets = torch.cat([padded.next_batch()[1].flatten() for _ in range(20)])
    return found | {"padding_share": (targets == 0).float().mean().item()}
