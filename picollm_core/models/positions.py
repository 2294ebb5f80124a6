"""How a Transformer knows the order of its tokens. T time, C width, H heads, D head width."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

YARN_BETAS = (32.0, 1.0)  # turns within yarn_length above which a pair is kept, and below which it is stretched


class Place(NamedTuple):
    """Where the tokens of one call stand: what the mixers of all layers need to know of it."""

    start: int
    """Tokens of the sequence before the first of these."""
    angles: tuple[Tensor, Tensor] | None = None
    """RoPE's cos and sin, each (T, D), of these positions."""
    resets: Tensor | None = None
    """(B, T), true at tokens before which a linear mixer forgets everything."""


class RotaryPositions(nn.Module):
    """RoPE (Su et al. 2021, arXiv 2104.09864, eq. 34): rotates pair i of a head by position * base^(-2i/D).

    Pairs are (i, i + D/2), the half-split convention of Hugging Face, or (2i, 2i + 1), that of the paper and of Llama's
    own code. With `yarn_factor` above 1 slow pairs are stretched as YaRN does (Peng et al. 2023, arXiv 2309.00071,
    section 3.2, without rounding the limits, as gpt-oss). The frequencies belong to this module, and stay float64 on
    the CPU when it is moved: rounded to bfloat16 they would turn far positions by wrong angles.
    """

    def __init__(
        self, head_width: int, base: float, pairs: str = "half", yarn_factor: float = 1.0, yarn_length: int = 4096
    ) -> None:
        super().__init__()
        self.interleaved = pairs == "interleaved"
        exponent = torch.arange(0, head_width, 2, dtype=torch.float64, device="cpu") / head_width
        self.inverse_frequency = base**-exponent  # (D/2,)
        self.scale = 1.0
        if yarn_factor > 1:
            fast, slow = (
                head_width * math.log(yarn_length / (2 * math.pi * turns)) / (2 * math.log(base))
                for turns in YARN_BETAS
            )
            pair = torch.arange(head_width // 2, dtype=torch.float64, device="cpu")
            stretched = ((pair - max(fast, 0.0)) / max(min(slow, head_width - 1) - max(fast, 0.0), 1e-3)).clamp(0, 1)
            self.inverse_frequency = self.inverse_frequency * (stretched / yarn_factor + 1 - stretched)
            self.scale = 0.1 * math.log(yarn_factor) + 1.0

    def angles(self, start: int, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each (T, D), of positions start .. start + length - 1, in the type of `like`."""
        position = torch.arange(start, start + length, dtype=torch.float64, device="cpu")
        angle = torch.outer(position, self.inverse_frequency)  # (T, D/2)
        angle = angle.repeat_interleave(2, dim=-1) if self.interleaved else torch.cat([angle, angle], dim=-1)  # (T, D)
        return (self.scale * angle.cos()).to(like), (self.scale * angle.sin()).to(like)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, pairs: str = "half") -> Tensor:
    """Apply RoPE to queries or keys x (B, H, T, D) with cos and sin (T, D) of the same convention for pairs."""
    if pairs == "interleaved":
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)  # (B, H, T, D)
    else:
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
    return x * cos + turned * sin


class SinusoidalPositions(nn.Module):
    """Fixed waves added to the embeddings (Vaswani et al. 2017, section 3.5): sin and cos of t * 10000^(-2i/C).

    `scale` is the standard deviation of the embeddings at the start: the paper adds waves of amplitude 1 to embeddings
    of scale 1, and this keeps that ratio.
    """

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        exponent = torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width
        self.inverse_frequency = 10_000.0**-exponent  # (C/2,)

    def table(self, start: int, length: int, like: Tensor) -> Tensor:
        """(T, C) for positions start .. start + length - 1, in the type of `like`."""
        position = torch.arange(start, start + length, dtype=torch.float64, device="cpu")
        angle = torch.outer(position, self.inverse_frequency)  # (T, C/2)
        return (self.scale * torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)).to(like)


def alibi_slopes(n_head: int) -> Tensor:
    """(H,) slopes of ALiBi (Press et al. 2022, arXiv 2108.12409, section 3): 2^(-8h/H) for head h = 1 .. H.

    For a number of heads that is no power of two, the slopes of the next lower one, then every second slope of the
    next higher one, as the authors' code has it.
    """
    power = 2 ** math.floor(math.log2(n_head))
    slopes = [2.0 ** (-8 * h / power) for h in range(1, power + 1)]
    between = [2.0 ** (-8 * h / (2 * power)) for h in range(1, 2 * power + 1, 2)]
    return torch.tensor((slopes + between)[:n_head], dtype=torch.float64)
