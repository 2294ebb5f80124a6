"""The named Transformers side by side: at equal parameters, where their parameters lie, how they start, how fast.

C width, V vocabulary, B rows, T tokens of a row. Token ids are drawn at random wherever their meaning cannot matter.
"""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from picollm_core.batches import PackedBatches
from picollm_core.config import ModelConfig, TrainConfig, TransformerConfig, require
from picollm_core.contrasts import paired_contrast, verdict
from picollm_core.inference import evaluation_mode
from picollm_core.models import build_model
from picollm_core.models.transformer import Transformer
from picollm_core.named_transformers import COURSE_SIZES, NAMED_TRANSFORMERS, gpt2, gpt_oss, llama3, mingpt
from picollm_core.presets import PRESETS
from picollm_core.token_store import TokenStore
from picollm_core.trainer import Trainer, seeded

TITLES = {"mingpt": "minGPT", "gpt2": "GPT-2", "gpt-oss": "gpt-oss", "llama3": "Llama 3"}
"""Preset -> how its authors write it."""

RECORDED = {
    "minGPT": {"loss": 234.14, "tokens_per_second": 26.33, "seconds": 0.57},
    "GPT-2": {"loss": 360.30, "tokens_per_second": 9.35, "seconds": 1.60},
    "gpt-oss": {"loss": 10.93, "tokens_per_second": 12.36, "seconds": 1.21},
}
"""What a course team recorded of 3 batches of 16 rows: mean loss (nats per token), tokens a second, seconds in all."""
RECORDED_BATCHES, RECORDED_ROWS = 3, 16

ACTIVATION_NAMES = {"gelu_tanh": "tanh-GELU", "swiglu": "SwiGLU", "swiglu_clamped": "clamped SwiGLU"}
Head = Literal["tied", "normal", "linear"]


def equal_arms() -> dict[str, TransformerConfig]:
    """The four presets in 2 layers of 4 heads with the same number of parameters, within 2%, at 4,096 tokens.

    All have about 0.63 million in windows of 128 tokens. minGPT is the measure at width 64. GPT-2's tied head leaves
    room for a width of 96. gpt-oss at width 56 has 8 experts, 2 of them active, in place of 32 and 4, and a window of
    32 in place of 128, which would be the whole block. Llama 3's hidden width is 232: its rounding to multiples of 256
    would make the MLP too wide. Both of these share one key head among 4 query heads. The fifth arm is GPT-2 without
    the dropout that it was published with.
    """
    arms = {
        "minGPT": mingpt(64, 4, 2),
        "GPT-2": gpt2(96, 4, 2),
        "gpt-oss": gpt_oss(56, 4, 2).replace(n_expert=8, n_expert_active=2, window=32),
        "Llama 3": llama3(64, 4, 2).replace(mlp_width=232),
        "GPT-2 without dropout": gpt2(96, 4, 2).replace(dropout=0.0),
    }
    return {name: config.replace(vocab_size=4_096, block_size=128) for name, config in arms.items()}


def presets_of(size: str, vocab_size: int = 50_257) -> dict[str, TransformerConfig]:
    """The four presets of one size ("pico", "tiny", "small", "course"). ValueError lists the sizes for another one."""
    sizes = sorted({name.rpartition("-")[2] for name in PRESETS if name.rpartition("-")[0] in TITLES})
    require(size in sizes, f"unknown size {size!r}; choose one of {', '.join(sizes)}")
    found = {}
    for name, title in TITLES.items():
        config = PRESETS[f"{name}-{size}"].replace(vocab_size=vocab_size)
        assert isinstance(config, TransformerConfig)
        found[title] = config
    return found


def outlined() -> dict[str, TransformerConfig]:
    """The presets as a course team outlined them: minGPT tied, gpt-oss and Llama 3 without what makes them so.

    One dense SwiGLU of width 2,048 in place of gpt-oss's experts, and of 8,192 in Llama 3; as many key heads as query
    heads, no windows, no sinks, no YaRN. What the outline leaves open is as in the presets.
    """
    plain = {"n_kv_head": None, "mixers": ("softmax",), "sinks": False, "yarn_factor": 1.0, "n_expert": 0}
    changes: dict[str, dict[str, Any]] = {
        "mingpt": {"tied": True},
        "gpt2": {},
        "llama3": {"n_kv_head": None, "mlp_width": 8_192},
    }
    changes["gpt-oss"] = plain | {"activation": "swiglu", "mlp_width": 2_048, "bias": False}
    return {
        title: NAMED_TRANSFORMERS[name](*COURSE_SIZES[name]).replace(**changes[name]) for name, title in TITLES.items()
    }


def choices(config: TransformerConfig) -> dict[str, str]:
    """What a preset chooses, in words: norm, positions, attention, MLP, head, biases, dropout."""
    positions: str = "learned" if config.position == "absolute" else config.position
    if config.position == "rope":
        stretched = f", YaRN x{config.yarn_factor:g}" if config.yarn_factor > 1 else ""
        positions = f"RoPE, base {config.rope_base:,.0f}, {config.rope_pairs} pairs{stretched}"
    shared = config.n_head // (config.n_kv_head or config.n_head)
    attention = [f"{shared} query heads a key head" if shared > 1 else "a key head for each query head"]
    attention += [f"window {config.window} in {config.mixers.count('window')} of {len(config.mixers)} layers"] * (
        "window" in config.mixers
    )
    attention += ["sinks"] * config.sinks
    mlp = ACTIVATION_NAMES.get(config.activation, config.activation)
    if config.n_expert:
        mlp = f"{config.n_expert} experts of {mlp}, {config.n_expert_active} active"
    return {
        "norm": f"{'RMSNorm' if config.norm_kind == 'rms' else 'LayerNorm'}, {config.norm}",
        "positions": positions,
        "attention": ", ".join(attention),
        "MLP": mlp,
        "head": "tied to the embedding" if config.tied else "of its own",
        "biases": "yes" if config.bias else "no",
        "dropout": f"{config.dropout:g}",
    }


PARTS = ("embedding", "positions", "attention", "MLP", "norms", "head")


def _part(name: str) -> str:
    """The part that a parameter of a Transformer belongs to, by its name."""
    for word, part in ((".mlp.", "MLP"), (".attention.", "attention"), ("norm", "norms")):
        if word in name:
            return part
    return name.partition(".")[0]


def parameter_parts(config: TransformerConfig) -> dict[str, int]:
    """Exact parameters of every part; "MLP" holds experts and router, "head" is 0 where it is the embedding.

    Then "total", and "active": those that one token passes through. An embedding counts whole, as is the custom. The
    model is built without memory for its weights, so any size can be counted.
    """
    with torch.device("meta"):
        model = build_model(config)
    parts = dict.fromkeys(PARTS, 0)
    experts = 0
    for name, parameter in model.named_parameters():
        parts[_part(name)] += parameter.numel()
        experts += parameter.numel() if config.n_expert and ".mlp." in name and ".router." not in name else 0
    total = sum(parts.values())
    idle = experts * (config.n_expert - config.n_expert_active) // config.n_expert if config.n_expert else 0
    return parts | {"total": total, "active": total - idle}


def parts_table(configs: Mapping[str, TransformerConfig]) -> pd.DataFrame:
    """One row a model with the numbers of `parameter_parts`."""
    return pd.DataFrame.from_dict({name: parameter_parts(c) for name, c in configs.items()}, orient="index")


def random_ids(vocab_size: int, rows: int, length: int, seed: int) -> Tensor:
    """Uniform token ids (B, T)."""
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def wrong_start(config: TransformerConfig, head: Head, seed: int) -> Transformer:
    """A model whose every layer starts as torch's default has it: embeddings N(0, 1), linear layers uniform.

    `head` says how the output weights start: "tied" to those embeddings, "normal" for N(0, 1) of their own, "linear"
    for torch's linear layer, whose variance is 1 / (3 C). Raises ValueError for experts, which torch has no layer for.
    """
    require(config.n_expert == 0, f"n_expert is {config.n_expert}; torch has no default start for experts, choose 0")
    with seeded(seed):
        model = build_model(config.replace(tied=head == "tied"))
        assert isinstance(model, Transformer)
        for module in model.modules():
            if isinstance(module, nn.Linear) and (module is not model.head or head == "linear"):
                module.reset_parameters()
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.reset_parameters()
        nn.init.ones_(model.norm.get_parameter("weight"))
        if head == "normal":
            nn.init.normal_(model.head.weight)
    return model


@torch.no_grad()
def start_of(model: Transformer, rows: int = 4, length: int = 32, seed: int = 0) -> dict[str, float]:
    """How an untrained model scores `rows` x `length` random tokens that are followed by random tokens.

    "loss" in nats per token; "own", the mean logit of the token that was just read; "spread", the standard deviation
    of all other logits; "rms", the root mean square of the residual stream that enters the final norm.
    """
    ids = random_ids(model.config.vocab_size, rows, length + 1, seed)
    streams: list[Tensor] = []
    hook = model.norm.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0]))
    try:
        with evaluation_mode(model):
            logits = model(ids[:, :-1]).flatten(0, 1)  # (B T, V)
    finally:
        hook.remove()
    read = ids[:, :-1].reshape(-1, 1)  # (B T, 1)
    others = torch.ones_like(logits, dtype=torch.bool).scatter_(1, read, False)
    return {
        "loss": F.cross_entropy(logits, ids[:, 1:].flatten()).item(),
        "own": logits.gather(1, read).mean().item(),
        "spread": logits[others].std().item(),
        "rms": streams[0].square().mean().sqrt().item(),
    }


def expected_start(width: int, vocab_size: int, head: Head, rms: float) -> float:
    """The loss (nats per token) that `wrong_start` must have, from width, vocabulary and RMS of the residual stream.

    A normed hidden state has length sqrt(C), so logits of unit-normal rows are N(0, C): log-sum-exp of V of them, here
    of the V quantiles, is ln V + C / 2 while C is below 2 ln V and grows as sqrt(2 C ln V) above (the random energy
    model, Derrida 1981, Phys. Rev. B 24, 2613). The right token is one of them, 0 on average. With a tied head the
    token just read is worth more: its embedding e is in the residual stream, so its logit is e.e / RMS = C / RMS.
    """
    scale = math.sqrt(1 / 3) if head == "linear" else math.sqrt(width)
    shares = (torch.arange(vocab_size, dtype=torch.float64) + 0.5) / vocab_size
    others = (scale * torch.special.ndtri(shares)).logsumexp(0)  # (V,) -> ()
    own = torch.tensor(width / rms if head == "tied" else -math.inf, dtype=torch.float64)
    return torch.logaddexp(others, own).item()


def initial_losses(config: TransformerConfig, seeds: Sequence[int]) -> list[float]:
    """Loss (nats per token) of the untrained model on 16 rows of random tokens, one a seed of weights and tokens."""
    losses = []
    for seed in seeds:
        with seeded(seed):
            model = build_model(config)
        assert isinstance(model, Transformer)
        losses.append(start_of(model, rows=16, length=min(32, config.block_size), seed=seed)["loss"])
    return losses


def mean_of_first_batches(
    model: Transformer, rate: float, *, batches: int = RECORDED_BATCHES, rows: int = RECORDED_ROWS, length: int = 5
) -> float:
    """Mean loss over the first batches of random tokens, each followed by an update of Adam; rate 0 is no update.

    The model is in training mode, dropout included, and is changed. ValueError for a negative rate.
    """
    require(rate >= 0, f"rate is {rate}; a learning rate is at least 0")
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    losses = []
    with seeded(0):
        for number in range(batches):
            ids = random_ids(model.config.vocab_size, rows, length + 1, number)
            loss = F.cross_entropy(model.train()(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            losses.append(loss.item())
            if rate > 0:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return sum(losses) / batches


def start_by_width(widths: Sequence[int], vocab_size: int, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Losses of untrained two-layer models of minGPT's plan, right and wrong, at several widths.

    One dictionary a model: arm, width, seed, loss, and for the wrong ones "expected", as the theory has it.
    """
    found: list[dict[str, Any]] = []
    heads: tuple[tuple[str, Head], ...] = (("N(0, 1), tied head", "tied"), ("N(0, 1), own head", "normal"))
    for width, seed in itertools.product(widths, seeds):
        config = mingpt(width, 4, 2).replace(vocab_size=vocab_size, block_size=32, tied=True)
        place = {"width": width, "seed": seed}
        for arm, head in heads:
            start = start_of(wrong_start(config, head, seed), seed=seed)
            expected = expected_start(width, vocab_size, head, start["rms"])
            found.append({"arm": arm} | place | {"loss": start["loss"], "expected": expected})
        found.append({"arm": "this project, tied head"} | place | {"loss": initial_losses(config, [seed])[0]})
    return found


def recorded_start(name: str, seeds: Sequence[int], rates: Sequence[float]) -> dict[str, Any]:
    """The start of an outlined preset by torch's defaults, on batches as recorded: 16 rows of 5 tokens, 3 of them.

    "first": loss of the first batch without dropout, one a seed; "expected": the theory's, from each one's RMS;
    "means": rate -> the mean of all batches in training mode with an update of Adam after each, first seed.
    Raises ValueError for a preset of which nothing was recorded.
    """
    require(name in RECORDED, f"nothing was recorded of {name!r}; choose one of {', '.join(RECORDED)}")
    config = outlined()[name]
    head: Head = "tied" if config.tied else "linear"
    length = round(RECORDED[name]["tokens_per_second"] * RECORDED[name]["seconds"] / RECORDED_BATCHES)
    found = [start_of(wrong_start(config, head, seed), RECORDED_ROWS, length, seed) for seed in seeds]
    means = {}
    for rate in rates:
        model = wrong_start(config, head, seeds[0])
        means[f"{rate:g}"] = mean_of_first_batches(model, rate, length=length)
    return {
        "first": [start["loss"] for start in found],
        "expected": [expected_start(config.n_embd, config.vocab_size, head, start["rms"]) for start in found],
        "means": means,
    }


def _random_batches(config: ModelConfig, batch_size: int) -> PackedBatches:
    ids = random_ids(config.vocab_size, 1, 4 * batch_size * config.block_size + 1, 0)[0].numpy().astype(np.uint32)
    return PackedBatches(TokenStore(ids, np.array([0, len(ids)]), n_bytes=len(ids)), config.block_size, batch_size)


def update_seconds(
    configs: Mapping[str, ModelConfig], train: TrainConfig, rounds: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of whole updates: in every round each model makes one, so what else the machine does hits all alike.

    `warm_up` updates of each are left out. Raises ValueError without models and for rounds below 1.
    """
    require(bool(configs) and rounds >= 1, f"{len(configs)} models and {rounds} rounds; at least one of each is needed")
    trainers = {}
    for name, config in configs.items():
        with seeded(0):
            batches = _random_batches(config, train.batch_size)
            trainers[name] = Trainer(build_model(config), batches, train.replace(max_steps=rounds + warm_up))
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(rounds + warm_up):
        for name, trainer in trainers.items():
            started = time.perf_counter()
            trainer.advance()
            seconds[name].append(time.perf_counter() - started)
    return {name: own[warm_up:] for name, own in seconds.items()}


_SAME_START = 0.05
_CLAIMS: tuple[tuple[str, str, str, tuple[str, ...], Literal["below", "above"], float], ...] = (
    ("gpt-oss starts below minGPT (10.93 against 234.14)", "start", "gpt-oss", ("minGPT",), "below", -_SAME_START),
    ("GPT-2 starts above minGPT (360.30 against 234.14)", "start", "GPT-2", ("minGPT",), "above", _SAME_START),
    ("gpt-oss has the lowest loss of the three", "end", "gpt-oss", ("minGPT", "GPT-2"), "below", 0.0),
    ("GPT-2 has the highest loss of the three", "end", "GPT-2", ("minGPT", "gpt-oss"), "above", 0.0),
    ("minGPT is the fastest of the three", "speed", "minGPT", ("GPT-2", "gpt-oss"), "above", 0.0),
    ("GPT-2 is the slowest of the three", "speed", "GPT-2", ("minGPT", "gpt-oss"), "below", 0.0),
)


def judge_claims(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> pd.DataFrame:
    """What the recorded numbers claim about the presets, beside what was measured here.

    `measured` has for "start" (nats per token), "end" (any loss) and "speed" (tokens a second) the paired values of
    every preset. Columns: claim, effect (differences with 95% intervals) and verdict; a start is only lower or higher
    if by more than 0.05 nats. Claims about presets that were not measured are left out.
    """
    rows = []
    for claim, quantity, first, others, side, bound in _CLAIMS:
        values = measured.get(quantity, {})
        if {first, *others} <= values.keys():
            contrasts = [paired_contrast(values[first], values[other]) for other in others]
            effect = "; ".join(f"{first} - {other}: {c}" for other, c in zip(others, contrasts, strict=True))
            rows.append((claim, effect, verdict(*contrasts, claim=side, bound=bound)))
    return pd.DataFrame(rows, columns=["claim", "effect", "verdict"])
