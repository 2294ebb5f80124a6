"""Keys and values of the tokens that attention has seen."""

from typing import NamedTuple

import torch
from torch import Tensor


class KVCache(NamedTuple):
    """Keys and values that later queries need: entries first .. first + length - 1 of buffers that may be longer.

    `filled` is shared by all caches on one buffer and says how far it has been written. Appending to the newest cache
    writes in place; appending to an older one, which would overwrite what a newer one holds, copies first.

    With a sliding window the entries before `first` are left behind, and the buffer, when it is full, is renewed from
    the window alone: it holds about two windows whatever the length. (A ring that overwrites its oldest entry would
    need half of that, but would destroy what an earlier state of the same sequence still needs.)
    """

    keys: Tensor  # (B, Hkv, capacity, D)
    values: Tensor
    length: int
    filled: list[int]
    first: int = 0

    def append(self, k: Tensor, v: Tensor, window: int | None = None) -> "KVCache":
        """The cache after new keys and values k, v (B, Hkv, T, D): all, or what a `window` of the first sees."""
        if self.length == 0:
            return KVCache(k, v, k.size(2), [k.size(2)])
        dropped = 0 if window is None else max(0, self.length - window + 1)
        cache = self._replace(first=self.first + dropped, length=self.length - dropped)
        total = cache.length + k.size(2)
        if torch.is_grad_enabled() and (k.requires_grad or self.keys.requires_grad):
            keys, values = (torch.cat([old, new], dim=2) for old, new in ((cache.keys_seen, k), (cache.values_seen, v)))
            return KVCache(keys, values, total, [total])
        if cache.first + total > cache.keys.size(2) or cache.filled[0] != cache.first + cache.length:
            cache = cache._roomier(total)
        end = cache.first + cache.length
        cache.keys[:, :, end : end + k.size(2)] = k
        cache.values[:, :, end : end + k.size(2)] = v
        cache.filled[0] = end + k.size(2)
        return cache._replace(length=total)

    def _roomier(self, total: int) -> "KVCache":
        """The same entries in buffers with at least double the room: n appended tokens cost O(n) copying in all."""
        capacity = max(2 * self.length, total, 64)
        buffers = []
        for seen in (self.keys_seen, self.values_seen):
            buffer = seen.new_empty(seen.size(0), seen.size(1), capacity, seen.size(3))
            buffer[:, :, : self.length] = seen
            buffers.append(buffer)
        return KVCache(buffers[0], buffers[1], self.length, [self.length])

    @property
    def keys_seen(self) -> Tensor:
        """(B, Hkv, length, D)."""
        return self.keys[:, :, self.first : self.first + self.length]

    @property
    def values_seen(self) -> Tensor:
        """(B, Hkv, length, D)."""
        return self.values[:, :, self.first : self.first + self.length]
