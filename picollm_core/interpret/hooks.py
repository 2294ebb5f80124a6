"""Reading and editing what passes through a model while it runs: one context manager for every family.

A site is a place where a tensor passes, most often (B, T, width):

- a module's name, such as "blocks.0" or "rnn": what it puts out (of several values the first);
- the name and ":in", such as "blocks.0.mlp.proj:in": what it is given. That is where an MLP's neurons, the heads of an
  attention layer side by side, and the hidden layers of a k-gram are;
- "hidden": what the head reads, whatever the family;
- "rnn.h.0" and "rnn.c.0": output and cell state of an LSTM's layer 0 after each token.

    with hooked(model, read=["blocks.1"], edit={"blocks.0.mlp": torch.zeros_like}) as seen:
        loss = next_token_loss(model, idx, targets)
    seen["blocks.1"]  # (B, T, C), as it was after the edit below it
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from picollm_core.inference import evaluation_mode
from picollm_core.models import LanguageModel
from picollm_core.models.lstm import LSTM
from picollm_core.models.positions import RotaryPositions, SinusoidalPositions
from picollm_core.models.transformer import Transformer

Edit = Callable[[Tensor], Tensor]

HIDDEN = "hidden"
INPUT = ":in"
_WITHOUT_OUTPUT = (nn.ModuleList, nn.Dropout, RotaryPositions, SinusoidalPositions)
# the head is applied through its weight wherever a loss is computed, so its module's output would often not be seen


def _state_sites(model: LanguageModel) -> list[str]:
    layers = range(model.rnn.num_layers) if isinstance(model, LSTM) else ()
    return [f"rnn.{kind}.{layer}" for layer in layers for kind in "hc"]


def site_names(model: LanguageModel) -> list[str]:
    """Every site of a model, from its input to its output."""
    modules = [name for name, module in model.named_modules() if name and not isinstance(module, _WITHOUT_OUTPUT)]
    modules = [name for name in modules if name != "head"]
    return [*(site for name in modules for site in (name, name + INPUT)), *_state_sites(model), HIDDEN]


def main_sites(model: LanguageModel) -> dict[str, str]:
    """The sites worth looking at first, from input to output, each with what it is in words."""
    if isinstance(model, Transformer):
        found = {"embedding": "token embeddings"}
        for i, block in enumerate(model.blocks):
            added = "blocks.{}.norm_{}_out" if model.config.norm == "sandwich" else "blocks.{}.{}"
            found[added.format(i, "attention")] = f"what attention adds in layer {i + 1}"
            if isinstance(block.mlp.proj, nn.Module):  # experts keep theirs in one tensor, where nothing passes
                found[f"blocks.{i}.mlp.proj{INPUT}"] = f"MLP neurons of layer {i + 1}"
            found[added.format(i, "mlp")] = f"what the MLP adds in layer {i + 1}"
            found[f"blocks.{i}"] = f"residual stream after layer {i + 1}"
    elif isinstance(model, LSTM):
        found = {"embedding": "token embeddings"}
        for i in range(model.rnn.num_layers):
            found[f"rnn.h.{i}"] = f"output of LSTM layer {i + 1}"
            found[f"rnn.c.{i}"] = f"cell state of LSTM layer {i + 1}"
    else:
        found = {"input": "input layer, before its activation"}
        layers = range(getattr(model.config, "n_layer", 0))
        found |= {f"layers.{i}{INPUT}": f"hidden layer {i + 1}" for i in layers}
    return found | {HIDDEN: "what the head reads"}


def head_outputs(layer: int) -> str:
    """The site where layer `layer` (from 0) of a Transformer has the outputs of its heads side by side: (B, T, H D)."""
    return f"blocks.{layer}.attention.proj{INPUT}"


def require_site(model: LanguageModel, site: str) -> str:
    """`site`; ValueError with the valid ones when the model has no such site."""
    names = site_names(model)
    if site not in names:
        close = difflib.get_close_matches(site, names, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"a {model.config.family} model has no site {site!r}; {hint}the main ones are "
            f"{', '.join(main_sites(model))}, and site_names(model) lists all {len(names)}"
        )
    return site


def _edited(site: str, edit: Edit, x: Tensor) -> Tensor:
    new = edit(x)
    if not isinstance(new, Tensor) or new.shape != x.shape:
        got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise ValueError(f"the edit of {site!r} returned {got}; it was given {tuple(x.shape)} and must keep the shape")
    return new


class _Tap:
    """Reads and edits at one site: `pass_on` takes the tensor that arrives and returns the one that goes on."""

    def __init__(self, site: str, edit: Edit | None, seen: dict[str, Tensor] | None) -> None:
        self.site, self.edit, self.seen = site, edit, seen

    def pass_on(self, x: Tensor) -> Tensor:
        new = x if self.edit is None else _edited(self.site, self.edit, x)
        if self.seen is not None:
            self.seen[self.site] = new
        return new

    def first_of(self, values: Any) -> Any:
        """`values` with its first tensor passed on; the very object where nothing is edited."""
        if isinstance(values, Tensor):
            return self.pass_on(values)
        new = self.pass_on(values[0])
        return values if new is values[0] else type(values)((new, *values[1:]))

    def after(self, _module: nn.Module, _inputs: tuple, output: Any) -> Any:
        return self.first_of(output)

    def before(self, _module: nn.Module, inputs: tuple) -> tuple:
        return self.first_of(inputs)


@contextmanager
def _replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    """An instance's method replaced inside, and as it was outside."""
    old = owner.__dict__.get(name)
    owner.__dict__[name] = new
    try:
        yield
    finally:
        if old is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = old


def lstm_layer(
    rnn: nn.LSTM, layer: int, x: Tensor, h: Tensor, c: Tensor, edit_h: Edit | None = None, edit_c: Edit | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs and cell states (B, T, C) of one layer for x (B, T, C) that follows h and c (B, C), step by step.

    Gates i, f, g, o as torch's nn.LSTM orders them (Hochreiter & Schmidhuber 1997; Gers et al. 2000 for f). The edits
    take (B, 1, C) after each token, the cell state's before the output is made of it, and what they return goes on.
    """
    weights = [getattr(rnn, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    w_in, w_state, b_in, b_state = weights
    from_input = F.linear(x, w_in, b_in)  # (B, T, 4 C)
    outputs, cells = [], []
    for t in range(x.size(1)):
        i, f, g, o = (from_input[:, t] + F.linear(h, w_state, b_state)).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        if edit_c is not None:
            c = _edited(f"rnn.c.{layer}", edit_c, c.unsqueeze(1)).squeeze(1)
        h = o.sigmoid() * c.tanh()
        if edit_h is not None:
            h = _edited(f"rnn.h.{layer}", edit_h, h.unsqueeze(1)).squeeze(1)
        outputs.append(h)
        cells.append(c)
    return torch.stack(outputs, dim=1), torch.stack(cells, dim=1)


def _random_state(device: torch.device) -> Callable[[], None]:
    """A call that sets the generator which draws on a device back to where it is now."""
    draws = torch.cuda if device.type == "cuda" else torch
    return partial(draws.set_rng_state, draws.get_rng_state())


class _Stepped:
    """Stands in for nn.LSTM's forward while its states are read or edited.

    Inside another context it does that one's work too: its edits come first, and it reads what went on in the end.
    """

    fast: Callable
    readers: list[tuple[set[str], dict[str, Tensor]]]
    edits: list[tuple[str, Edit]]

    def __init__(self, rnn: nn.LSTM, edit: Mapping[str, Edit], read: Iterable[str], seen: dict[str, Tensor]) -> None:
        outer = rnn.forward if isinstance(rnn.forward, _Stepped) else None
        self.rnn, self.changed = rnn, False
        self.fast = outer.fast if outer else rnn.forward
        self.readers = [*(outer.readers if outer else ()), (set(read), seen)]
        self.edits = [*(outer.edits if outer else ()), *edit.items()]
        self.edit = {site: partial(self._watched, site) for site, _ in self.edits}

    def _watched(self, site: str, x: Tensor) -> Tensor:
        new, before = x, x.clone()  # an edit may write into what it is given
        for function in (function for name, function in self.edits if name == site):
            new = _edited(site, function, new)
        self.changed |= not torch.equal(new, before)
        return new

    def __call__(self, x: Tensor, state: Any = None) -> Any:
        self.changed, given, redraw = False, x, _random_state(x.device)
        zeros = x.new_zeros(self.rnn.num_layers, x.size(0), self.rnn.hidden_size)
        before = (zeros, zeros) if state is None else state
        last = []
        for layer, (h, c) in enumerate(zip(*before, strict=True)):
            names = f"rnn.h.{layer}", f"rnn.c.{layer}"
            outputs, cells = lstm_layer(self.rnn, layer, x, h, c, *(self.edit.get(name) for name in names))
            for name, values in zip(names, (outputs, cells), strict=True):
                for read, seen in self.readers:
                    if name in read:
                        seen[name] = values
            last.append((outputs[:, -1], cells[:, -1]))
            between = self.rnn.training and layer + 1 < self.rnn.num_layers
            by_time = outputs.transpose(0, 1).contiguous()  # (T, B, C), so that dropout draws as with the fused layer
            x = F.dropout(by_time, self.rnn.dropout, between).transpose(0, 1)  # (B, T, C)
        if not self.changed:  # the fused layer rounds differently, and nothing was asked to change
            redraw()
            return self.fast(given, state)
        return x, tuple(torch.stack(values) for values in zip(*last, strict=True))


def _hidden_with(hidden: Callable, tap: _Tap) -> Callable:
    def run(idx: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return tap.first_of(hidden(idx, state))

    return run


@contextmanager
def hooked(
    model: LanguageModel, read: Iterable[str] = (), edit: Mapping[str, Edit] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Inside, the values at the sites `read` are collected, and those at the keys of `edit` replaced by its functions.

    Gives a dict that fills as the model runs: site -> the tensor that went on from there, edits included; of several
    runs the last. An edit takes the tensor and returns one of the same shape; at an LSTM's states it is called after
    every token, with (B, 1, C), and later tokens continue from what it returned. Works in training and generation, with
    gradients where they are on. An edit that changes nothing changes no bit of the model's output. Afterwards, and
    after any error, the model is as it was. Raises ValueError for a site that the model has not, and when an edit
    changes the shape.
    """
    edit, read = dict(edit or {}), list(read)
    for site in (*read, *edit):
        require_site(model, site)
    seen: dict[str, Tensor] = {}
    states = set(_state_sites(model))
    with ExitStack() as stack:
        for site in dict.fromkeys((*read, *edit)):
            tap = _Tap(site, edit.get(site), seen if site in read else None)
            if site == HIDDEN:
                stack.enter_context(_replaced(model, "hidden", _hidden_with(model.hidden, tap)))
            elif site.endswith(INPUT):
                module = model.get_submodule(site.removesuffix(INPUT))
                stack.callback(module.register_forward_pre_hook(tap.before).remove)
            elif site not in states:
                stack.callback(model.get_submodule(site).register_forward_hook(tap.after).remove)
        if states & {*read, *edit}:
            assert isinstance(model, LSTM)
            wanted = {site: function for site, function in edit.items() if site in states}
            stack.enter_context(_replaced(model.rnn, "forward", _Stepped(model.rnn, wanted, states & set(read), seen)))
        yield seen


class _AllSeen(Exception):
    """Ends a model's run when nothing more of it is asked for."""


@torch.no_grad()
def activations(model: LanguageModel, idx: Tensor, sites: Iterable[str]) -> dict[str, Tensor]:
    """What passes at each site when the model reads ids `idx` (B, T), in evaluation mode and without gradients.

    The model runs as far as the last of the sites. Raises ValueError for a site the model has not, and for one that
    nothing passed at.
    """
    sites = list(sites)

    def stop(*_: Any) -> None:
        if all(site in seen for site in sites):
            raise _AllSeen

    with evaluation_mode(model), hooked(model, read=sites) as seen, ExitStack() as stack:
        for site in {*sites} - {*_state_sites(model), HIDDEN}:
            module = model.get_submodule(site.removesuffix(INPUT))
            register = module.register_forward_pre_hook if site.endswith(INPUT) else module.register_forward_hook
            stack.callback(register(stop).remove)  # after the hook that reads
        with suppress(_AllSeen):
            model.hidden(idx)
    silent = [site for site in sites if site not in seen]
    if silent:
        raise ValueError(f"nothing passed at {', '.join(silent)} while the model read {tuple(idx.shape)} tokens")
    return {site: seen[site] for site in sites}


def site_width(model: LanguageModel, site: str) -> int:
    """Size of the last axis of what passes at a site. ValueError as `activations`."""
    idx = torch.zeros(1, 1, dtype=torch.long, device=model.head.weight.device)
    return activations(model, idx, [site])[site].size(-1)
