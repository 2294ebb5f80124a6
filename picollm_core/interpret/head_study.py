"""What the heads of one trained model do, as JSON values: on random tokens that come twice, and in one prediction.

T tokens of a prompt, L layers, H heads, K parts of the logits, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import tiktoken
import torch
from torch import Tensor

from picollm_core.config import require
from picollm_core.inference import require_same_vocabulary
from picollm_core.interpret.ablation import head_edits
from picollm_core.interpret.attention_maps import (
    REPETITION_SCORES,
    attention_patterns,
    repeated_tokens,
    repetition_loss,
    repetition_scores,
    uniform_patterns,
    untrained_highest,
)
from picollm_core.interpret.attribution import direct_attribution
from picollm_core.interpret.hooks import hooked
from picollm_core.models import LanguageModel
from picollm_core.next_token import token_text
from picollm_core.sampling import encode_prompt


def repetition_study(
    model: LanguageModel,
    tokenizer: tiktoken.Encoding,
    tokens: Sequence[int] | Tensor,
    length: int = 25,
    n_rows: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """Where every head looks in random `tokens` that come twice, with controls and losses.

    `scores` has a row a head as in `repetition_scores`, `uniform` that of a head without preference, `untrained` the
    highest of each score among the heads of the same architecture with fresh weights; `first` and `second` are the
    losses in nats a token on the two copies of `length` tokens. Raises ValueError for a model without attention,
    another vocabulary, and as `repeated_tokens`.
    """
    require_same_vocabulary(model, tokenizer)
    idx = repeated_tokens(tokens, n_rows, length, tokenizer.eot_token, torch.Generator().manual_seed(seed))
    patterns = attention_patterns(model, idx)
    first, second = repetition_loss(model, idx, length)
    plain = repetition_scores(uniform_patterns(patterns[:1, :, :1]), length)
    return {
        "scores": repetition_scores(patterns, length).round(4).to_dict("records"),
        "uniform": plain[list(REPETITION_SCORES)].iloc[0].to_dict(),
        "untrained": untrained_highest(model, idx, lambda own: repetition_scores(own, length)),
        "first": first,
        "second": second,
    }


def _token_of(tokenizer: tiktoken.Encoding, answer: str) -> int:
    ids = tokenizer.encode_ordinary(answer)
    require(len(ids) == 1, f"{answer!r} is {len(ids)} tokens of {tokenizer.name}; give one, with its space in front")
    return ids[0]


@torch.no_grad()
def prediction_study(
    model: LanguageModel, tokenizer: tiktoken.Encoding, prompt: str, answers: Sequence[str]
) -> dict[str, Any]:
    """What speaks for and against each of `answers` (one token each) after a prompt, and where the heads look there.

    `tokens` (T,) are the prompt's pieces, the start called <start>; `probabilities` and `logits` (n,) those of the
    answers. `parts` (K,) and `shares` (K, n) are those of `direct_attribution`, less their means over the vocabulary;
    `mean_logit` is that mean of the logits, and `largest_difference` that of any of the V logits from the sum of its
    shares. `weights` [layer][head] (T,) are each head's at the last token. `without` has a row a head: layer, head, and
    the `probabilities` when this head's output is set to zero. Give a model in float64 to see the sum come out exactly.
    Raises ValueError for an answer that is no single token, a model without attention, another vocabulary, and a
    prompt that is empty or too long.
    """
    require_same_vocabulary(model, tokenizer)
    ids, chosen = encode_prompt(model, tokenizer, prompt), [_token_of(tokenizer, answer) for answer in answers]
    idx = torch.tensor([ids], device=model.head.weight.device)  # (1, T)
    patterns = attention_patterns(model, idx)[:, 0, :, -1]  # (L, H, T)
    attribution = direct_attribution(model, idx)
    logits = model(idx)[0, -1].double().cpu()  # (V,)
    without = []
    for layer, heads in enumerate(patterns, 1):
        for head in range(1, len(heads) + 1):
            with hooked(model, edit=head_edits(model, [(layer, head)])):
                left = model(idx)[0, -1].double().softmax(-1)[chosen]
            without.append({"layer": layer, "head": head, "probabilities": left.tolist()})
    return {
        "tokens": ["<start>", *(token_text(tokenizer, token) for token in ids[1:])],
        "probabilities": logits.softmax(-1)[chosen].tolist(),
        "logits": logits[chosen].tolist(),
        "mean_logit": logits.mean().item(),
        "parts": list(attribution.names),
        "shares": attribution.contributions(chosen, centred=True)[:, 0].tolist(),
        "largest_difference": (attribution.logits()[0] - logits).abs().max().item(),
        "weights": patterns.double().round(decimals=4).tolist(),
        "without": without,
    }
