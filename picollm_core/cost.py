"""What training costs: operations of a configuration, and the course's full set-up on a given device.

Operations are those of matrix products: two for each weight and token forward and four backward (Kaplan et al. 2020,
arXiv:2001.08361, table 1, with exact counts in place of its estimates), and attention over the pairs of tokens that the
causal mask lets through. Lookups, norms, softmax and the optimizer count nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from picollm_core.config import ModelConfig, RunConfig, require
from picollm_core.models import build_model
from picollm_core.models.attention import CausalSelfAttention
from picollm_core.models.experts import MixtureOfExperts
from picollm_core.models.linear_mixers import GatedDeltaNet, LinearMixer
from picollm_core.presets import preset
from picollm_core.profiles import get_profile
from picollm_core.speed import core_speed

if TYPE_CHECKING:
    import pandas as pd

STORY_TOKENS = 202.6
"""GPT-2 tokens a story, its `<|endoftext|>` included: 2,552,342 + 12,662 tokens of 12,662 TinyStories."""
FAMILIES, SIZES = ("kgram", "lstm", "transformer"), ("pico", "tiny", "small", "base")
FULL_MODELS = tuple(f"{family}-{size}" for size in SIZES for family in FAMILIES)
SHARE_OF_PEAK = 0.3
"""Assumed of wide models on a GPU; narrow ones are held up by memory, or by the start of an update's kernels, first."""
UPDATE_SECONDS = 0.01
"""Assumed of an update on a GPU beside its work: some hundreds of kernels to start, and numbers to wait for."""
LOGIT_PASSES, LOGIT_BYTES = 5, {"bfloat16": 2, "float32": 4}
"""The chunked loss writes or reads each logit about so often: product, softmax in and out, two gradient products."""


@dataclass(frozen=True)
class Device:
    """A device by its data sheet: dense matrix products in FLOP/s of the type used, and memory in bytes/s."""

    name: str
    flops: float
    bandwidth: float
    precision: str = "bfloat16"


DEVICES = {
    device.name: device
    for device in (
        Device("H200", 989e12, 4.8e12),
        Device("H100", 989e12, 3.35e12),
        Device("A100", 312e12, 2.0e12),
        Device("L4", 121e12, 0.3e12),
        Device("T4", 8.1e12, 0.32e12, "float32"),
    )
}
"""NVIDIA's data sheets, SXM and 80 GB versions, without sparsity. A T4 has no bfloat16, so it trains in float32."""


def _pairs(length: int, window: int | None) -> float:
    """Query-key pairs of `length` tokens that a causal mask, or a window of so many keys, lets through."""
    window = length if window is None else min(window, length)
    return window * (window + 1) / 2 + (length - window) * window


def _multiply_adds(module: nn.Module, length: int) -> float:
    """Of one token in a forward pass, by the module's own products: its submodules count for themselves."""
    if isinstance(module, nn.Linear):
        return module.weight.numel()
    if isinstance(module, nn.LSTM):
        return sum(p.numel() for p in module.parameters() if p.ndim == 2)
    if isinstance(module, MixtureOfExperts):
        return (module.fc.numel() + module.proj.numel()) * module.n_active / module.fc.size(0)
    if isinstance(module, CausalSelfAttention):  # scores, and weighted values
        return 2 * module.n_head * module.head_width * _pairs(length, module.window) / length
    if isinstance(
        module, LinearMixer
    ):  # the recurrence's: write and read, and for the delta rule what is known of a key
        state = module.n_head * module.key_width * module.value_width
        return state * (3 if isinstance(module, GatedDeltaNet) else 2)
    return 0.0


def training_flops(config: ModelConfig, block_size: int | None = None) -> float:
    """Floating-point operations a token of a training step, forward and backward, in windows of `block_size` tokens.

    A tied head counts as the product it is. `block_size` is the configuration's where left out. ValueError when < 1.
    """
    length = config.block_size if block_size is None else block_size
    require(length >= 1, f"block_size is {length}; it must be at least 1")
    with torch.device("meta"):
        model = build_model(config)
    return 6 * sum(_multiply_adds(module, length) for module in model.modules())


def parameter_count(config: ModelConfig) -> int:
    """Trained numbers of a configuration, without building its weights."""
    with torch.device("meta"):
        return build_model(config).num_parameters()


def full_config(name: str) -> RunConfig:
    """The run of profile `full` for the preset called `name`: 1M TinyStories, GPT-2 tokens, 5 epochs, batch 64.

    ValueError for an unknown preset.
    """
    profile = get_profile("full")
    model = preset(name, block_size=profile.block_size)
    return RunConfig(model=model, data=profile.data, train=profile.train)


def full_tokens(story_tokens: float = STORY_TOKENS) -> float:
    """Training tokens of one run of profile `full`: stories x share of training x tokens a story x epochs."""
    profile = get_profile("full")
    stories, splits = (profile.data.limit or (None,))[0], profile.data.splits
    assert stories is not None, "the full profile names its number of stories"
    assert splits is not None, "the full profile names its splits"
    return stories * splits[0] / sum(splits) * story_tokens * profile.train.epochs


def measured_speed(name: str, updates: int = 3, batch_size: int | None = None, precision: str = "auto") -> float:
    """Tokens a core-second of profile `full`'s updates of one preset, measured here and now; see speed.core_speed.

    A smaller `batch_size` than the profile's 64 saves time and memory. It is a lower bound then: the optimizer's part
    of an update is spread over fewer tokens.
    """
    config = full_config(name)
    settings = {"batch_size": batch_size or config.train.batch_size, "precision": precision}
    return core_speed(config.replace(train=config.train.replace(**settings)), updates)


def computed_speed(
    config: ModelConfig, device: Device, share: float = SHARE_OF_PEAK, tokens_per_update: float | None = None
) -> float:
    """Tokens a second from a data sheet: the slower of `share` of the peak and the logits' way through memory.

    UPDATE_SECONDS are added to each update of `tokens_per_update` tokens, profile `full`'s where left out. Not in it:
    the sequence of an LSTM's steps, which keeps a GPU waiting. ValueError for a share outside (0, 1].
    """
    require(0 < share <= 1, f"share is {share}; it must lie in (0, 1]")
    profile = get_profile("full")
    tokens = tokens_per_update or profile.train.batch_size * profile.block_size
    products = training_flops(config) / (share * device.flops)
    logits = config.vocab_size * LOGIT_PASSES * LOGIT_BYTES[device.precision] / device.bandwidth
    return 1 / (max(products, logits) + UPDATE_SECONDS / tokens)


def full_setup_table(
    measured: Mapping[str, float] | None = None,
    *,
    device: str | None = None,
    share: float = SHARE_OF_PEAK,
    models: Sequence[str] = FULL_MODELS,
    cores: int = 1,
    story_tokens: float = STORY_TOKENS,
) -> "pd.DataFrame":
    """What the full set-up costs: one row a preset of `models`, one run each, and a row "all" with the sums.

    Give either `measured`, tokens a second by preset on `cores` cores (measured_speed), or the name of a `device` in
    DEVICES, of whose peak `share` is reached. Columns: parameters, flops_per_token, tokens, flops, tokens_per_second,
    seconds, hours (of the device, or core-hours) and basis, which says "measured steps" or "computed, not measured".
    The final evaluation and the sweep's five seeds are not in it.

    ValueError for an unknown device, for neither or both of measured and device, for a preset without a measurement.
    """
    import pandas as pd

    require((measured is None) != (device is None), "give either measured speeds or a device, not both or neither")
    require(device is None or device in DEVICES, f"device is {device!r}; choose one of {', '.join(DEVICES)}")
    require(cores >= 1, f"cores is {cores}; it must be at least 1")
    tokens = full_tokens(story_tokens)
    rows = []
    for name in models:
        config = full_config(name).model
        if measured is not None:
            require(name in measured, f"no speed of {name!r} is given, only of {', '.join(measured)}")
            speed, units, basis = measured[name], cores, f"measured steps, {cores} core{'s' * (cores > 1)}"
        else:
            assert device is not None, "one of the two is given"
            speed, units = computed_speed(config, DEVICES[device], share), 1
            basis = f"computed, not measured: {share:.0%} of the {DEVICES[device].precision} peak of one {device}"
        flops = training_flops(config)
        rows.append(
            {
                "model": name,
                "parameters": parameter_count(config),
                "flops_per_token": flops,
                "tokens": tokens,
                "flops": flops * tokens,
                "tokens_per_second": speed,
                "seconds": tokens / speed,
                "hours": tokens / speed * units / 3_600,
                "basis": basis,
            }
        )
    table = pd.DataFrame(rows).set_index("model")
    summed = table[["tokens", "flops", "seconds", "hours"]].sum()
    table.loc["all", summed.index] = summed
    table.loc["all", "basis"] = table["basis"].iloc[0]
    return table
