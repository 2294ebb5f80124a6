"""Where a norm stands in a block, and which one: gradients at the start, rates that train, what an update costs."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from picollm_core.batches import PackedBatches
from picollm_core.config import TrainConfig, TransformerConfig, require
from picollm_core.contrasts import Contrast, paired_contrast
from picollm_core.lab import Lab
from picollm_core.losses import next_token_loss
from picollm_core.models.transformer import INIT_STD, Transformer
from picollm_core.plots_arms import mean_interval
from picollm_core.runs import Run
from picollm_core.token_store import TokenStore, token_store
from picollm_core.train import load_data
from picollm_core.trainer import Trainer, TrainingDiverged, seeded

PLACES: tuple[Literal["pre", "post", "sandwich"], ...] = ("pre", "post", "sandwich")
Start = Literal["package", "one std", "xavier"]
STREAM_GROWTH = {"pre": (0.5, 1.5), "post": (0.0, 0.0), "sandwich": (2.0, 2.0)}
"""Mean square of the residual stream after L layers is 1 + growth L, growth between these, from the start "xavier".

Pre and post: Xiong et al. 2020 (arXiv 2002.04745), lemma 2. Sandwich: our own count, two vectors of unit RMS a layer.
"""


def norm_arms(n_layer: int = 8) -> dict[str, TransformerConfig]:
    """The arms of the comparison, alike but for the norm: its place with RMSNorm, and LayerNorm at the first place."""
    shape: dict[str, Any] = {"n_embd": 64, "n_head": 4, "n_layer": n_layer, "position": "rope"}
    places = {f"{place} RMSNorm": TransformerConfig(**shape, norm=place) for place in PLACES}
    return places | {"pre LayerNorm": TransformerConfig(**shape, norm="pre", norm_kind="layer")}


def published_arms() -> dict[str, TransformerConfig]:
    """One block and one head of width 64 with three ways of telling positions, each pre- and post-norm.

    The six variants of a published project that found their losses hardly different.
    """
    positions: dict[str, Any] = {"absolute": "absolute", "RoPE": "rope", "NoPE": "none"}
    return {
        f"{place}, {name}": TransformerConfig(n_embd=64, n_head=1, n_layer=1, position=position, norm=place)
        for name, position in positions.items()
        for place in PLACES[:2]
    }


def theorem_arms(n_layer: int) -> dict[str, TransformerConfig]:
    """Blocks as in theorem 1 of Xiong et al. (2020): ReLU, LayerNorm, square matrices; untied, so that V is small."""
    return {
        place: config.replace(norm_kind="layer", activation="relu", mlp_width=config.n_embd, tied=False)
        for place, config in place_arms(n_layer).items()
    }


def place_arms(n_layer: int) -> dict[str, TransformerConfig]:
    """The three places of an RMSNorm in the blocks of `norm_arms`."""
    return dict(zip(PLACES, norm_arms(n_layer).values(), strict=False))


def start_model(config: TransformerConfig, start: Start, seed: int) -> Transformer:
    """A Transformer with seeded weights, in one of three starts.

    "package" is the package's own: N(0, 0.02), residual projections smaller by sqrt(2 n_layer) (GPT-2). "one std" takes
    0.02 for those too. "xavier" is that of Xiong et al. (2020): every matrix of a block, W_Q, W_K and W_V each for
    itself, with variance 2 / (inputs + outputs), and embeddings of N(0, 1). In each the loss starts near ln V. Raises
    ValueError for another start, and where "xavier" would meet a tied head, grouped heads, experts or linear mixers.
    """
    require(start in ("package", "one std", "xavier"), f"start is {start!r}; choose 'package', 'one std' or 'xavier'")
    plain = config.mixers == ("softmax",) and config.n_kv_head in (None, config.n_head) and config.n_expert == 0
    require(
        start != "xavier" or (plain and not config.tied),
        f"mixers={config.mixers}, n_kv_head={config.n_kv_head}, n_expert={config.n_expert} and tied={config.tied} do "
        "not go with the start 'xavier'; take softmax layers with a key head for every query head, one MLP, tied=False",
    )
    with seeded(seed):
        model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    for name, matrix in model.named_parameters():
        if not name.startswith("blocks.") or matrix.ndim < 2:
            continue
        if start == "one std" and name.endswith("proj.weight"):
            nn.init.normal_(matrix, std=INIT_STD, generator=generator)
        if start == "xavier":
            outputs = matrix.size(0) // 3 if name.endswith("qkv.weight") else matrix.size(0)
            nn.init.normal_(matrix, std=math.sqrt(2 / (outputs + matrix.size(1))), generator=generator)
    if start == "xavier":
        nn.init.normal_(model.embedding.weight, generator=generator)
    return model


def random_text(vocab_size: int, rows: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """idx and targets, (rows, length) each, of token ids drawn alike and independently: text that says nothing."""
    ids = torch.randint(vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1], ids[:, 1:]


def _short(number: Tensor) -> float:
    """Four significant digits, which keep committed records small."""
    return float(f"{number.item():.4g}")


def gradient_norms(model: Transformer, idx: Tensor, targets: Tensor) -> dict[str, Any]:
    """What the loss on idx and targets (B, T) asks of every layer's FFN output matrix, before any update.

    Keys: "gradients", a Euclidean norm a layer from the input up, the subject of theorem 1 of Xiong et al. (2020);
    "stream", the mean square of the residual stream that reaches the final norm; "loss" in nats per token.
    """
    seen: list[Tensor] = []
    hook = model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        loss = next_token_loss(model, idx, targets)
        matrices = [block.mlp.get_parameter("proj.weight") for block in model.blocks]
        gradients = torch.autograd.grad(loss, matrices)
    finally:
        hook.remove()
    return {
        "gradients": [_short(gradient.norm()) for gradient in gradients],
        "stream": _short(seen[0].square().mean()),
        "loss": _short(loss),
    }


def gradient_study(
    arms: Callable[[int], Mapping[str, TransformerConfig]],
    start: Start,
    depths: Sequence[int],
    seeds: Sequence[int],
    *,
    vocab_size: int = 4_096,
    block_size: int = 64,
    batch_size: int = 2,
) -> list[dict[str, Any]]:
    """`gradient_norms` of every arm at every depth from every seed, on random ids: rows with arm, depth, seed.

    `arms` gives the configurations of a depth, such as `place_arms`. A seed fixes weights and ids, so arms are paired.
    """
    rows = []
    for depth in depths:
        for arm, config in arms(depth).items():
            for seed in seeds:
                model = start_model(config.replace(vocab_size=vocab_size, block_size=block_size), start, seed)
                found = gradient_norms(model, *random_text(vocab_size, batch_size, block_size, seed))
                rows.append({"arm": arm, "depth": depth, "seed": seed} | found)
    return rows


def by_layer(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of `gradient_study` with a row a layer: arm, depth, seed, layer (from 1), gradient, stream, loss."""
    return pd.DataFrame(
        [
            {key: value for key, value in row.items() if key != "gradients"} | {"layer": layer, "gradient": gradient}
            for row in rows
            for layer, gradient in enumerate(row["gradients"], 1)
        ]
    )


def _slope(depths: Sequence[float], values: Sequence[float]) -> float:
    """Exponent a of the least-squares line through log values = a log depths + b."""
    return float(np.polyfit(np.log(np.asarray(depths, float)), np.log(np.asarray(values, float)), 1)[0])


def depth_slopes(table: pd.DataFrame, value: str = "gradient") -> pd.DataFrame:
    """How `value` grows with depth in each arm: columns arm, slope, low, high, seeds.

    One line through log value against log depth is fitted for every seed; low and high are the ends of Student's 95%
    interval of their mean, NaN for one seed. `table` has arm, seed, depth, `value`, one row each. ValueError for
    fewer than two depths.
    """
    require(table["depth"].nunique() >= 2, f"depths {sorted(set(table['depth']))} make no line; give two or more")
    rows = []
    for arm, own in table.groupby("arm", sort=False):
        slopes = [_slope(one["depth"].tolist(), one[value].tolist()) for _, one in own.groupby("seed")]
        rows.append((arm, *mean_interval(slopes), len(slopes)))
    return pd.DataFrame(rows, columns=["arm", "slope", "low", "high", "seeds"])


def predicted_slopes(place: str, depths: Sequence[int], start: Start) -> tuple[float, float]:
    """Two slopes against depth, in order, that theory has for the gradient of the last FFN output matrix.

    It passes the final norm, which divides by the stream's RMS. "xavier": sqrt(1 + growth L) with either end of
    STREAM_GROWTH at every depth, which tends to -1/2 (theorem 1 of Xiong et al. 2020). A growth that drifts between
    those ends as depth grows may give a slope outside the two. Our own reasoning by the same argument: "one std"
    starts with a stream so small that the 1 does not count; "package" makes what a layer adds smaller by sqrt(2 L), so
    pre-norm's stream does not grow, and in the sandwich the norm after the layer, which undoes that, passes a gradient
    larger by the same factor. KeyError for another place.
    """
    growths = STREAM_GROWTH[place]
    if start == "package" or max(growths) == 0:
        return 0.0, 0.0
    if start == "one std":
        return -0.5, -0.5
    slopes = [_slope(depths, [(1 + growth * depth) ** -0.5 for depth in depths]) for growth in growths]
    return min(slopes), max(slopes)


def slope_table(layers: pd.DataFrame, starts: Mapping[str, Start]) -> pd.DataFrame:
    """Slopes of the last layer's gradient by setting and place: a row each, beside those of theory.

    `layers` is `by_layer` with a column panel, the setting, whose start `starts` names. Columns: setting, arm, slope,
    low, high, seeds as in `depth_slopes`, theory_low, theory_high, and times_stream: the slope of the gradient times
    the stream's RMS, 0 where the stream's size explains how the gradient changes.
    """
    last = layers[layers["layer"] == layers["depth"]]
    last = last.assign(product=last["gradient"] * last["stream"] ** 0.5)
    parts = []
    for setting, own in last.groupby("panel", sort=False):
        found, depths = depth_slopes(own), sorted(own["depth"].unique())
        theory = [predicted_slopes(place, depths, starts[str(setting)]) for place in found["arm"]]
        found[["theory_low", "theory_high"]] = theory
        found.insert(0, "setting", setting)
        parts.append(found.assign(times_stream=depth_slopes(own, "product")["slope"]))
    return pd.concat(parts, ignore_index=True)


def training_tokens(run: Run) -> TokenStore:
    """The tokens that a run was trained on: the first of its corpora, which must be on this machine."""
    return token_store(load_data(run.config.data)[0], "train", run.load_tokenizer())


def word_frequency_loss(store: TokenStore) -> float:
    """Nats per token for knowing how frequent each token is and nothing else: the entropy of the counts."""
    counts = np.bincount(np.asarray(store.tokens))
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def try_rates(
    config: TransformerConfig,
    start: Start,
    store: TokenStore,
    rates: Sequence[float],
    warmups: Sequence[float],
    train: TrainConfig,
) -> list[dict[str, Any]]:
    """Short trainings of one model on `store` at every peak learning rate and share of warm-up, else as in `train`.

    Rows: rate, warmup (share of the updates), initial (loss of the first batch, nats per token) and final (mean loss
    over the last tenth of the updates; None where training broke off because loss or gradient were not finite).
    Every cell starts from the same weights and sees the same windows, of train.seed. Raises ValueError without
    max_steps.
    """
    require(train.max_steps is not None, "max_steps is None; say how many updates a cell gets")
    steps = int(train.max_steps or 0)
    rows = []
    for rate in rates:
        for warmup in warmups:
            settings = train.replace(learning_rate=rate, warmup_ratio=warmup)
            batches = PackedBatches(store, config.block_size, train.batch_size, train.seed)
            trainer = Trainer(start_model(config, start, train.seed), batches, settings)
            losses: list[float] = []
            try:
                while len(losses) < steps:
                    losses.append(trainer.advance()["loss"])
            except TrainingDiverged:
                pass
            last = losses[-max(1, steps // 10) :]
            final = statistics.mean(last) if len(losses) == steps else None
            rows.append({"rate": rate, "warmup": warmup, "initial": losses[0] if losses else None, "final": final})
    return rows


def outcome(row: Mapping[str, Any], floor: float, margin: float = 0.1) -> Literal["diverged", "stuck", "learns"]:
    """What became of a row of `try_rates`, judged by its final loss.

    "diverged": not finite, or above the initial loss. "learns": at least `margin` nats below `floor`, the loss of
    knowing word frequencies alone. "stuck": neither.
    """
    final, initial = row["final"], row["initial"]
    if final is None or initial is None or final > initial:
        return "diverged"
    return "learns" if final < floor - margin else "stuck"


def rate_table(
    lab: Lab, run: Run, starts: Sequence[Start], *, steps: int, rates: Sequence[float], warmups: Sequence[float]
) -> pd.DataFrame:
    """`try_rates` for every start and place of the norm, on the data and in the shape of `run`: a row a cell.

    Columns: start, panel (the place), rate, warmup, initial, final, outcome, and floor, the loss of knowing word
    frequencies. A cell has `steps` updates; the other settings of training are the run's. Measured once for each start
    and place and then recorded; the head is tied where the start allows it.
    """
    text = {"corpus": run.context["corpus_hashes"], "tokenizer": run.config.data.tokenizer}
    grid = {"steps": steps, "rates": list(rates), "warmups": list(warmups)}
    floor = lab.measure("word frequencies", lambda: word_frequency_loss(training_tokens(run)), **text)
    train = run.config.train.replace(max_steps=steps, learning_rate=None)
    assert isinstance(run.config.model, TransformerConfig)
    rows = []
    for start in starts:
        for place in PLACES:
            config = run.config.model.replace(norm=place, tied=start == "package")

            def find(config: TransformerConfig = config, start: Start = start) -> list[dict[str, Any]]:
                return try_rates(config, start, training_tokens(run), rates, warmups, train)

            on = {"model": config.fingerprint(), "train": train.fingerprint(), "start": start}
            cells = lab.measure("norm rates", find, **on, **grid, **text)
            rows += [
                {"start": start, "panel": place} | cell | {"outcome": outcome(cell, floor), "floor": floor}
                for cell in cells
            ]
    return pd.DataFrame(rows).astype({"initial": float, "final": float})


def time_ratios(seconds: Mapping[str, Sequence[float]], base: str, blocks: int = 5) -> pd.DataFrame:
    """Time of an update as a multiple of that of arm `base`, round by round: one row an arm, `base` left out.

    Columns: ratio (median over rounds), quarter and three_quarters (its quartiles), and excess, a Contrast: by how much
    the median ratio of `blocks` consecutive parts exceeds 1. Raises ValueError for fewer rounds than blocks.
    """
    require(base in seconds, f"base is {base!r}; choose one of {', '.join(seconds)}")
    rounds = len(seconds[base])
    require(1 <= blocks <= rounds, f"{rounds} rounds cannot be cut into {blocks} blocks")
    rows = {}
    for name in seconds:
        if name == base:
            continue
        ratios = np.divide(seconds[name], seconds[base])
        medians = [float(np.median(part)) for part in np.array_split(ratios, blocks)]
        low, middle, high = (float(value) for value in np.quantile(ratios, [0.25, 0.5, 0.75]))
        excess: Contrast = paired_contrast(medians, [1.0] * blocks)
        rows[name] = {"ratio": middle, "quarter": low, "three_quarters": high, "excess": excess}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")
