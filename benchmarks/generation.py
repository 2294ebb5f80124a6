"""Generation of one text: against transformers' generate on an equal model, and whether a late token costs more."""

import itertools
import statistics
import tempfile
import time
from typing import Any

import tiktoken
import torch
from torch import Tensor, nn

from benchmarks.measuring import Row, Side, compare, in_turns, ratios
from picollm_core.config import KGramConfig, LSTMConfig, ModelConfig, TransformerConfig
from picollm_core.exchange import to_transformers
from picollm_core.models import LanguageModel, build_model
from picollm_core.presets import preset
from picollm_core.sampling import continue_batch, encode_prompt, generate
from picollm_core.tokenizers import load_tokenizer
from picollm_core.trainer import seeded

PROMPT = "Once upon a time there was a"
TOP_P = 0.95
NEW_TOKENS = {"pico": 200, "small": 100}
LOGIT_SPREAD = 4.0  # standard deviation of logits at which 95% of the mass lies on a few thousand tokens at most
EARLY, LATE, NEIGHBOURS = 10, 1_000, 8  # tokens counted from 1, each with so many on either side
FLAT: dict[str, ModelConfig] = {
    "transformer": TransformerConfig(n_embd=64, n_head=1, n_layer=1, block_size=1_152),
    "lstm": LSTMConfig(n_embd=32),
    "kgram": KGramConfig(n_embd=32, n_layer=1),
    **{
        kind: TransformerConfig(n_embd=64, n_head=1, n_layer=1, mixers=(kind,), position="none")  # type: ignore[arg-type]
        for kind in ("linear", "gla", "delta")
    },
}
"""The models whose 1,000th token is timed, all at pico size and GPT-2's vocabulary."""


def equal_pair(name: str) -> tuple[LanguageModel, Any]:
    """A model of this package and transformers' own class with the same weights, both in evaluation mode.

    The final norm is scaled so that logits spread as far as a trained model's; else every nucleus would hold nearly
    the whole vocabulary.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    config = preset(name, dropout=0.0)
    with seeded(0):
        model = build_model(config).eval()
        idx = torch.randint(config.vocab_size, (1, 32))
    with torch.no_grad():
        norm: nn.Module = model.get_submodule("norm")
        scale = LOGIT_SPREAD / model(idx).std()
        for parameter in norm.parameters():
            parameter.mul_(scale)
    with tempfile.TemporaryDirectory() as folder:
        architecture = to_transformers(model, folder)
        theirs = getattr(transformers, architecture).from_pretrained(folder, local_files_only=True).eval()
    return model, theirs


def peer_continuation(theirs: Any, ids: Tensor, new_tokens: int, **options: Any) -> list[int]:
    """What transformers' generate appends to ids (1, T), its cache on, nothing that could end the text early."""
    everything = torch.ones_like(ids)
    with torch.no_grad():
        found = theirs.generate(
            ids, attention_mask=everything, max_new_tokens=new_tokens, use_cache=True, pad_token_id=0, **options
        )
    return found[0, ids.size(1) :].tolist()


def own_continuation(model: LanguageModel, tokenizer: tiktoken.Encoding, new_tokens: int, **options: Any) -> list[int]:
    """The same from this package; `options` are fields of SamplingConfig."""
    (ids,) = continue_batch(model, tokenizer, [PROMPT], max_new_tokens=new_tokens, stop_at_eot=False, **options)
    return ids


def require_same_tokens(ours: list[int], peer: list[int]) -> None:
    """Raise RuntimeError unless both continued greedily with the same tokens: else their times say nothing."""
    if ours != peer:
        place = next((n for n, (a, b) in enumerate(zip(ours, peer, strict=False)) if a != b), min(len(ours), len(peer)))
        raise RuntimeError(f"the greedy continuations differ from token {place + 1} on: their times say nothing")


def measure_generation(size: str, repetitions: int) -> list[Row]:
    """Milliseconds a token of one text, greedy and from the nucleus, against generate on the same GPT-2."""
    model, theirs = equal_pair(f"gpt2-{size}")
    tokenizer, new_tokens = load_tokenizer("gpt2"), NEW_TOKENS[size]
    ids = torch.tensor([encode_prompt(model, tokenizer, PROMPT)])
    greedy: dict[str, Any] = {"do_sample": False}
    nucleus: dict[str, Any] = {"do_sample": True, "top_p": TOP_P, "top_k": 0, "temperature": 1.0}
    require_same_tokens(
        own_continuation(model, tokenizer, new_tokens, temperature=0.0),
        peer_continuation(theirs, ids, new_tokens, **greedy),
    )
    ways = {"greedy": (greedy, {"temperature": 0.0}), "top-p": (nucleus, {"temperature": 1.0, "top_p": TOP_P})}
    rows = []
    for way, (peers, own) in ways.items():
        sides = {
            "peer": Side(lambda peers=peers: peer_continuation(theirs, ids, new_tokens, **peers), units=new_tokens),  # type: ignore[misc]
            "ours": Side(lambda own=own: own_continuation(model, tokenizer, new_tokens, **own), units=new_tokens),  # type: ignore[misc]
        }
        seconds = in_turns(sides, repetitions)
        rows.append(
            compare(
                f"generate-{way}-{size}",
                [1e3 * s for s in seconds["peer"]],
                [1e3 * s for s in seconds["ours"]],
                ratios(seconds["peer"], seconds["ours"]),
                unit="ms per token",
                peer_is=f"transformers' {type(theirs).__name__}.generate with its cache",
                ours_is="sampling.continue_batch",
                notes=f"batch 1, {new_tokens} tokens after {ids.size(1)}, V = {model.config.vocab_size:,}"
                + (f", p = {TOP_P}" if way == "top-p" else ", the same tokens"),
            )
        )
    return rows


def token_seconds(model: LanguageModel, tokenizer: tiktoken.Encoding, new_tokens: int) -> list[float]:
    """Seconds from one use of the head to the next while `generate` writes: element n - 2 is that of token n."""
    moments: list[float] = []
    hook = model.head.register_forward_hook(lambda *_: moments.append(time.perf_counter()))
    try:
        generate(model, tokenizer, PROMPT, max_new_tokens=new_tokens, stop_at_eot=False, temperature=0.0)
    finally:
        hook.remove()
    return [late - early for early, late in itertools.pairwise(moments)]


def around(seconds: list[float], token: int) -> float:
    """The median over a token (counted from 1) and its NEIGHBOURS on either side."""
    return statistics.median(seconds[token - 2 - NEIGHBOURS : token - 1 + NEIGHBOURS])


def measure_flatness(kind: str, repetitions: int) -> list[Row]:
    """Time of the 1,000th generated token over that of the 10th, at pico size, in four times `repetitions` texts.

    Both moments last a few milliseconds, which one interruption can double.
    """
    with seeded(0):
        model = build_model(FLAT[kind]).eval()
    tokenizer = load_tokenizer("gpt2")
    runs = [token_seconds(model, tokenizer, LATE + NEIGHBOURS + 1) for _ in range(4 * repetitions + 1)][1:]
    early, late = ([1e3 * around(run, token) for run in runs] for token in (EARLY, LATE))
    return [
        compare(
            f"flat-{kind}",
            early,
            late,
            ratios(late, early),
            unit="ms per token",
            peer_is=f"generated token {EARLY}",
            ours_is=f"generated token {LATE:,}",
            notes=f"batch 1, greedy, width {model.config.n_embd}, V = {model.config.vocab_size:,}; "
            f"medians over {2 * NEIGHBOURS + 1} tokens round each",
        )
    ]
