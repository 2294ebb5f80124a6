"""Linear attention, gated linear attention and the gated delta rule: one recurrence each, three ways to compute it.

Symbols: B batch, H heads, T time, N chunks of C tokens, Dk key width, Dv value width; per head q_t, k_t (Dk,),
v_t (Dv,), log decay g_t <= 0, write strength beta_t, and the memory S_t (Dk, Dv), which is all that stays of the past.

- "recurrent" does what the formula says, token after token. It is slow and the truth for the others.
- "chunked" does the work inside all chunks at once by matrix products; only the state goes from chunk to chunk.
- "quadratic" is one chunk of the whole length: T x T scores, as in softmax attention.

All compute in float32 (float64 stays float64), under autocast too, and give the same outputs, states and gradients.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from picollm_core.config_base import require
from picollm_core.models.decay import Reach, scalar_decay, sums_between, vector_decay, without_decay

Form = Literal["recurrent", "chunked", "quadratic"]
FORMS: tuple[Form, ...] = ("recurrent", "chunked", "quadratic")
DELTA_CHUNK = 32  # every chunk of the delta rule is a system of equations, so shorter ones pay: measured on CPUs
LEAST_NORMALISER = 1e-6  # keeps 0/0 out when every feature of a query or of all keys has underflowed


def positive_features(x: Tensor) -> Tensor:
    """elu(x) + 1, which is positive everywhere, as the normalised form needs (arXiv 2006.16236, eq. 7)."""
    return F.elu(x) + 1


def _recurrence(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, state: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_t = diag(e^g_t) S_{t-1} + k_t^T w_t and o_t = q_t S_t, one token after the other.

    What is written, w_t, is v_t; with beta (B, H, T, 1) it is beta_t (v_t - k_t diag(e^g_t) S_{t-1}): the part of v_t
    that the memory does not return for k_t already. g is (B, H, T, Dk) or (B, H, T, 1), and resets is (B, T).
    """
    outputs = []
    queries, keys, values = (x.unbind(2) for x in (q, k, v))
    gates = None if g is None else g.exp().unbind(2)
    strengths = None if beta is None else beta.unbind(2)
    for t in range(len(queries)):
        key = keys[t].unsqueeze(-1)  # (B, H, Dk, 1)
        if resets is not None:
            state = state.masked_fill(resets[:, t, None, None, None], 0.0)
        if gates is not None:
            state = gates[t].unsqueeze(-1) * state
        written = values[t]
        if strengths is not None:
            written = strengths[t] * (written - (key.mT @ state).squeeze(-2))
        state = state + key * written.unsqueeze(-2)  # (B, H, Dk, Dv)
        outputs.append((queries[t].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, dim=2), state


def _into_chunks(x: Tensor, chunk: int) -> Tensor:
    """(B, H, T, D) to (B, H, N, C, D), filled up with zeros, which write nothing and do not decay."""
    return F.pad(x, (0, 0, 0, -x.size(2) % chunk)).unflatten(2, (-1, chunk))


def _resets_into_chunks(resets: Tensor | None, chunk: int) -> Tensor | None:
    """(B, T) to (B, N, C)."""
    return None if resets is None else F.pad(resets, (0, -resets.size(1) % chunk)).unflatten(1, (-1, chunk))


def _chunked_sum(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor, resets: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """Without beta, chunk by chunk: O = (Q e^since) S + A V and S' = diag(e^whole) S + (K e^until)^T V."""
    length = q.size(2)
    q, k, v = (_into_chunks(x, chunk) for x in (q, k, v))
    reach = Reach.of(_resets_into_chunks(resets, chunk), chunk, q)
    if g is None:
        decayed = without_decay(q, k)
    else:
        decayed = (scalar_decay if g.size(-1) == 1 else vector_decay)(q, k, _into_chunks(g, chunk))
    scores = decayed.scores.masked_fill(~reach.pairs, 0.0)
    updates = reach.kept(decayed.keys).mT @ v  # (B, H, N, Dk, Dv)
    decays = reach.survival(decayed.whole).mT.expand(-1, -1, updates.size(2), -1, -1)  # (B, H, N, Dk, 1)
    entering = []
    for decay, update in zip(decays.unbind(2), updates.unbind(2), strict=True):
        entering.append(state)
        state = torch.addcmul(update, decay, state)
    o = scores @ v + reach.seen(decayed.queries) @ torch.stack(entering, dim=2)  # (B, H, N, C, Dv)
    return o.flatten(2, 3)[:, :, :length], state


def _chunked_delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, resets: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """The recurrence with beta and g (B, H, T, 1) (arXiv 2412.06464, section 3.3: the extended WY representation).

    What a chunk writes depends on what it wrote before, (I + M) W = beta (V - (K e^since) S) with M strictly lower
    triangular. The system is solved by substitution: an inverse by doubling explodes on repeated keys. The solution is
    linear in the entering state S, so all chunks are solved at once, and S goes from chunk to chunk by one product.
    """
    length, width = q.size(2), v.size(3)
    q, k, v, g, beta = (_into_chunks(x, chunk) for x in (q, k, v, g, beta))
    reach = Reach.of(_resets_into_chunks(resets, chunk), chunk, q)
    since = g.cumsum(dim=-2).exp()  # (B, H, N, C, 1)
    between = sums_between(g.squeeze(-1)).exp()
    until = between[..., -1, :].unsqueeze(-1)
    between = between.masked_fill(~reach.pairs, 0.0)  # (B, H, N, C, C)
    strong = beta * k
    system = (strong @ k.mT) * between  # of which the solver reads what is below the diagonal, M
    right = torch.cat([beta * v, reach.seen(since * strong)], dim=-1)  # (B, H, N, C, Dv + Dk)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    fresh, recalled = solved.split([width, k.size(-1)], dim=-1)
    leaving = reach.kept(until * k).mT  # (B, H, N, Dk, C)
    identity = torch.eye(k.size(-1), dtype=k.dtype, device=k.device)
    transitions = reach.survival(since[..., -1:, :]) * identity - leaving @ recalled  # (B, H, N, Dk, Dk)
    updates = leaving @ fresh  # (B, H, N, Dk, Dv)
    entering, batch = [], state.shape[:2]
    state = state.flatten(0, 1)  # (B H, Dk, Dv), for which update + transition @ state is one operation
    for transition, update in zip(transitions.flatten(0, 1).unbind(1), updates.flatten(0, 1).unbind(1), strict=True):
        entering.append(state)
        state = torch.baddbmm(update, transition, state)
    states, state = (x.unflatten(0, batch) for x in (torch.stack(entering, dim=1), state))
    written = fresh - recalled @ states  # (B, H, N, C, Dv)
    o = reach.seen(since * q) @ states + (q @ k.mT * between) @ written
    return o.flatten(2, 3)[:, :, :length], state


def _power_of_two(length: int) -> int:
    """The least power of 2 that is not below `length`."""
    return 1 << (length - 1).bit_length()


def _chunk_length(form: str, chunk_size: int, length: int, halving: bool) -> int:
    """Tokens in a chunk: no more than there are, and for halving a power of 2, rounded down where chunk_size is not."""
    if form == "quadratic":
        return _power_of_two(length) if halving else length
    if not halving:
        return min(chunk_size, length)
    return min(1 << (chunk_size.bit_length() - 1), _power_of_two(length))


def _check(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, resets: Tensor | None, form: str, chunk_size: int
) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    require(q.ndim == k.ndim == v.ndim == 4, f"{shapes}; each must be (batch, heads, time, width)")
    require(q.shape == k.shape, f"{shapes}; queries and keys must have the same shape")
    require(q.shape[:3] == v.shape[:3], f"{shapes}; values must agree with keys in batch, heads and time")
    require(q.size(2) >= 1, f"{shapes}; there must be at least one token")
    require(form in FORMS, f"form is {form!r}; choose one of {', '.join(FORMS)}")
    require(chunk_size >= 1, f"chunk_size is {chunk_size}; it must be at least 1")
    if state is not None:
        wanted = (q.size(0), q.size(1), q.size(3), v.size(3))
        require(state.shape == wanted, f"the state is {tuple(state.shape)}; with {shapes} it must be {wanted}")
    if resets is not None:
        fits = resets.shape == (q.size(0), q.size(2)) and resets.dtype == torch.bool
        given = f"{resets.dtype} {tuple(resets.shape)}"
        require(fits, f"resets are {given}; with {shapes} they must be torch.bool {(q.size(0), q.size(2))}")


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    *,
    form: str,
    chunk_size: int,
    state: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The common way in: checks, types, scaling of q, and the choice of the form. beta is (B, H, T, 1) or None."""
    _check(q, k, v, state, resets, form, chunk_size)
    given = v.dtype
    wide = torch.float64 if torch.float64 in (q.dtype, k.dtype, v.dtype) else torch.float32
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (x.to(wide) for x in (q, k, v))
        g, beta = (None if x is None else x.to(wide) for x in (g, beta))
        state = q.new_zeros(q.size(0), q.size(1), q.size(3), v.size(3)) if state is None else state.to(wide)
        q = q * q.size(-1) ** -0.5
        length = q.size(2)
        if form == "recurrent" or length == 1:
            o, state = _recurrence(q, k, v, g, beta, state, resets)
        elif beta is None:
            halving = g is not None and g.size(-1) > 1
            o, state = _chunked_sum(q, k, v, g, state, resets, _chunk_length(form, chunk_size, length, halving))
        else:
            assert g is not None, "the gated delta rule has gates"
            chunk = _chunk_length(form, chunk_size, length, halving=False)
            o, state = _chunked_delta(q, k, v, g, beta, state, resets, chunk)
        return o.to(given), state


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    form: Form = "chunked",
    chunk_size: int = 64,
    state: Tensor | None = None,
    normalised: bool = False,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S_t = S_{t-1} + k_t^T v_t and o_t = Dk^-0.5 q_t S_t (Katharopoulos et al. 2020, arXiv 2006.16236, eq. 16 to 20).

    q and k (B, H, T, Dk) are features already, v is (B, H, T, Dv); returns o (B, H, T, Dv) in v's type and the state
    (B, H, Dk, Dv) after the last token, from which the next call goes on. `normalised` divides o_t by q_t z_t with z_t
    the sum of the keys, for positive features (see positive_features): z is one more value column, always 1, so the
    state is (B, H, Dk, Dv + 1) with z last. `resets` (B, T), bool, empties the memory before the tokens where it is
    true. Raises ValueError for shapes that do not fit, an unknown form and chunk_size < 1.
    """
    if not normalised:
        return _run(q, k, v, None, None, form=form, chunk_size=chunk_size, state=state, resets=resets)
    wide = F.pad(v.to(torch.promote_types(v.dtype, torch.float32)), (0, 1), value=1.0)  # (B, H, T, Dv + 1)
    o, state = _run(q, k, wide, None, None, form=form, chunk_size=chunk_size, state=state, resets=resets)
    return (o[..., :-1] / o[..., -1:].clamp(min=LEAST_NORMALISER)).to(v.dtype), state


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    form: Form = "chunked",
    chunk_size: int = 64,
    state: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S_t = diag(e^g_t) S_{t-1} + k_t^T v_t and o_t = Dk^-0.5 q_t S_t (Yang et al. 2024, arXiv 2312.06635, eq. 3).

    q, k and the log decays g <= 0 are (B, H, T, Dk), v is (B, H, T, Dv); g may be (B, H, T, 1), one decay for all
    channels of a head, which is faster. Returns o (B, H, T, Dv) in v's type and the state (B, H, Dk, Dv). A chunk_size
    that is no power of 2 is rounded down to one when g is a vector; it changes the time and not the result. `resets`
    (B, T), bool, empties the memory before the tokens where it is true. Raises ValueError for shapes that do not fit,
    an unknown form and chunk_size < 1.
    """
    fits = g.ndim == 4 and g.shape[:3] == q.shape[:3] and g.size(-1) in (1, q.size(-1))
    require(fits, f"g is {tuple(g.shape)} with q {tuple(q.shape)}; it must have q's shape, or a last axis of 1")
    return _run(q, k, v, g, None, form=form, chunk_size=chunk_size, state=state, resets=resets)


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    form: Form = "chunked",
    chunk_size: int = DELTA_CHUNK,
    state: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S~ = e^g_t S_{t-1}; S_t = S~ + k_t^T beta_t (v_t - k_t S~); o_t = Dk^-0.5 q_t S_t (arXiv 2412.06464, eq. 10).

    q and k (B, H, T, Dk) arrive with unit length, v is (B, H, T, Dv), the log decays g <= 0 and the write strengths
    beta in [0, 2] are (B, H, T); beta = 1 replaces what the memory returns for k_t, beta = 2 reflects it. Returns o
    (B, H, T, Dv) in v's type and the state (B, H, Dk, Dv). `resets` (B, T), bool, empties the memory before the tokens
    where it is true. Raises ValueError for shapes that do not fit, an unknown form and chunk_size < 1.
    """
    for name, x in (("g", g), ("beta", beta)):
        fits = x.shape == q.shape[:3]
        require(fits, f"{name} is {tuple(x.shape)} with q {tuple(q.shape)}; it must be {tuple(q.shape[:3])}")
    g, beta = g.unsqueeze(-1), beta.unsqueeze(-1)  # (B, H, T, 1)
    return _run(q, k, v, g, beta, form=form, chunk_size=chunk_size, state=state, resets=resets)
