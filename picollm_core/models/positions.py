"""How a Transformer knows the order of its tokens."""

import torch
from torch import Tensor, nn


class RotaryPositions(nn.Module):
    """RoPE (Su et al. 2021, arXiv 2104.09864, eq. 34): rotates pair i of a head by position * base^(-2i/D).

    Pairs are (i, i + D/2), the half-split convention of Hugging Face. The frequencies belong to this module, and stay
    float64 on the CPU when it is moved: rounded to bfloat16 they would turn far positions by wrong angles.
    """

    def __init__(self, head_width: int, base: float) -> None:
        super().__init__()
        exponent = torch.arange(0, head_width, 2, dtype=torch.float64, device="cpu") / head_width
        self.inverse_frequency = base**-exponent  # (D/2,)

    def angles(self, start: int, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each (T, D), of positions start .. start + length - 1, in the type of `like`."""
        position = torch.arange(start, start + length, dtype=torch.float64, device="cpu")
        angle = torch.outer(position, self.inverse_frequency)  # (T, D/2)
        angle = torch.cat([angle, angle], dim=-1)  # (T, D)
        return angle.cos().to(like), angle.sin().to(like)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to queries or keys x (B, H, T, D) with cos and sin (T, D)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
