"""Which tensors of a Transformer are which tensors of transformers' classes, and how each is laid out there.

C width, H heads, Hkv heads of keys and values, D head width, I hidden width of an MLP or expert, E experts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from picollm_core.config import TransformerConfig, require
from picollm_core.models.transformer import Transformer


def _alone(x: Tensor) -> list[Tensor]:
    return [x]


def _only(parts: Sequence[Tensor]) -> Tensor:
    return parts[0]


class Link(NamedTuple):
    """One tensor here and the tensors there that hold the same numbers."""

    ours: str
    theirs: tuple[str, ...]
    split: Callable[[Tensor], Sequence[Tensor]] = _alone
    """From ours to theirs, in the order of their names."""
    join: Callable[[Sequence[Tensor]], Tensor] = _only
    """The inverse."""


def _transposed(ours: str, theirs: str) -> Link:
    """A linear layer (out, in) that GPT-2 keeps as (in, out), its Conv1D."""
    return Link(ours, (theirs,), lambda x: [x.t()], lambda parts: parts[0].t())


def _halves(ours: str, theirs: tuple[str, str]) -> Link:
    """The gates and the values of a gated MLP, one above the other here and apart there."""
    return Link(ours, theirs, lambda x: x.chunk(2), lambda parts: torch.cat([*parts]))


def _alternating(ours: str, theirs: str, n_expert: int) -> Link:
    """Gates and values of experts, (..., 2I): side by side here, taking turns in gpt-oss, one row an expert there."""

    def split(x: Tensor) -> list[Tensor]:
        gate, value = x.reshape(n_expert, *x.shape[1:-1], -1).chunk(2, dim=-1)
        return [torch.stack([gate, value], dim=-1).flatten(-2)]

    def join(parts: Sequence[Tensor]) -> Tensor:
        x = torch.cat([parts[0][..., ::2], parts[0][..., 1::2]], dim=-1)
        return x if x.ndim == 3 else x.flatten()  # the biases of all experts are one vector here

    return Link(ours, (theirs,), split, join)


def _queries_keys_values(config: TransformerConfig, ours: str, theirs: tuple[str, ...]) -> Link:
    """The rows of three projections, one above the other here and apart there.

    Pairs that RoPE turns are (2i, 2i + 1) or (i, i + D/2) here and always the latter there: rows of queries and keys
    change places within their head, which leaves every product of a query and a key as it was.
    """
    width = config.head_width or config.n_embd // config.n_head
    heads = [config.n_head, config.n_kv_head or config.n_head, config.n_kv_head or config.n_head]

    def regrouped(x: Tensor, inner: tuple[int, int]) -> Tensor:
        return x.unflatten(0, (-1, *inner)).transpose(1, 2).flatten(0, 2)

    def split(x: Tensor) -> list[Tensor]:
        q, k, v = x.split([n * width for n in heads])
        turned = config.rope_pairs == "interleaved"
        return [*(regrouped(y, (width // 2, 2)) if turned else y for y in (q, k)), v]

    def join(parts: Sequence[Tensor]) -> Tensor:
        q, k, v = parts
        turned = config.rope_pairs == "interleaved"
        return torch.cat([*(regrouped(y, (2, width // 2)) if turned else y for y in (q, k)), v])

    return Link(ours, theirs, split, join)


def _gpt2_links(config: TransformerConfig) -> Iterator[Link]:
    yield Link("embedding.weight", ("transformer.wte.weight",))
    yield Link("positions.weight", ("transformer.wpe.weight",))
    for layer in range(config.n_layer):
        ours, theirs = f"blocks.{layer}.", f"transformer.h.{layer}."
        for norm, name in (("norm_attention", "ln_1"), ("norm_mlp", "ln_2")):
            yield Link(f"{ours}{norm}.weight", (f"{theirs}{name}.weight",))
            yield Link(f"{ours}{norm}.bias", (f"{theirs}{name}.bias",))
        for linear, name in (
            ("attention.qkv", "attn.c_attn"),
            ("attention.proj", "attn.c_proj"),
            ("mlp.fc", "mlp.c_fc"),
            ("mlp.proj", "mlp.c_proj"),
        ):
            yield _transposed(f"{ours}{linear}.weight", f"{theirs}{name}.weight")
            yield Link(f"{ours}{linear}.bias", (f"{theirs}{name}.bias",))
    yield Link("norm.weight", ("transformer.ln_f.weight",))
    yield Link("norm.bias", ("transformer.ln_f.bias",))


def _llama_mlp(ours: str, theirs: str, config: TransformerConfig) -> Iterator[Link]:
    for kind in ("weight", "bias"):
        yield _halves(f"{ours}fc.{kind}", (f"{theirs}gate_proj.{kind}", f"{theirs}up_proj.{kind}"))
        yield Link(f"{ours}proj.{kind}", (f"{theirs}down_proj.{kind}",))


def _gpt_oss_mlp(ours: str, theirs: str, config: TransformerConfig) -> Iterator[Link]:
    experts, n = f"{theirs}experts.", config.n_expert
    for kind in ("weight", "bias"):
        yield Link(f"{ours}router.{kind}", (f"{theirs}router.{kind}",))
    yield _alternating(f"{ours}fc", f"{experts}gate_up_proj", n)
    yield _alternating(f"{ours}fc_bias", f"{experts}gate_up_proj_bias", n)
    yield Link(f"{ours}proj", (f"{experts}down_proj",))
    yield Link(
        f"{ours}proj_bias", (f"{experts}down_proj_bias",), lambda x: [x.view(n, -1)], lambda parts: parts[0].flatten()
    )


def _llama_links(config: TransformerConfig) -> Iterator[Link]:
    """Of Llama and of gpt-oss, whose channel mixers differ."""
    mlp = _gpt_oss_mlp if config.n_expert else _llama_mlp
    yield Link("embedding.weight", ("model.embed_tokens.weight",))
    for layer in range(config.n_layer):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        attention = f"{theirs}self_attn."
        yield Link(f"{ours}norm_attention.weight", (f"{theirs}input_layernorm.weight",))
        for kind in ("weight", "bias"):
            names = tuple(f"{attention}{part}_proj.{kind}" for part in "qkv")
            yield _queries_keys_values(config, f"{ours}attention.qkv.{kind}", names)
            yield Link(f"{ours}attention.proj.{kind}", (f"{attention}o_proj.{kind}",))
        yield Link(f"{ours}attention.sinks", (f"{attention}sinks",))
        yield Link(f"{ours}norm_mlp.weight", (f"{theirs}post_attention_layernorm.weight",))
        yield from mlp(f"{ours}mlp.", f"{theirs}mlp.", config)
    yield Link("norm.weight", ("model.norm.weight",))


_LINKS = {"gpt2": _gpt2_links, "llama": _llama_links, "gpt_oss": _llama_links}
_PREFIXES = {"gpt2": "transformer.", "llama": "model.", "gpt_oss": "model."}
HEAD = "lm_head.weight"


def _shapes_and_links(config: TransformerConfig, model_type: str) -> list[tuple[torch.Size, Link]]:
    """Every parameter that a model of `config` has: its shape here and its link."""
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in Transformer(config).named_parameters()}
    links = {link.ours: link for link in (*_LINKS[model_type](config), Link("head.weight", (HEAD,)))}
    return [(shape, links[name]) for name, shape in shapes.items()]


def weights_there(model: Transformer, model_type: str) -> dict[str, Tensor]:
    """The weights of `model` under the names and in the shapes of transformers, each in memory of its own.

    Where the class there has biases and the model has none, they are zeros. A tied head is left out.
    """
    always_biased = model_type in ("gpt2", "gpt_oss")
    config = model.config.replace(bias=model.config.bias or always_biased)
    own = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
    there: dict[str, Tensor] = {}
    for shape, link in _shapes_and_links(config, model_type):
        here = own.get(link.ours)
        parts = link.split(torch.zeros(shape, dtype=model.head.weight.dtype) if here is None else here)
        for name, part in zip(link.theirs, parts, strict=True):
            there[name] = part.clone(memory_format=torch.contiguous_format)
    return there


def weights_here(
    there: Mapping[str, Tensor], config: TransformerConfig, model_type: str, absent: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The inverse: float32 tensors under the names of a Transformer of `config`.

    Tensors of a body saved without its head lack their prefix, which is added. Names that end in one of `absent` are
    not expected there, and zeros here. ValueError names what is missing, unexpected or of another shape.
    """
    prefix = _PREFIXES[model_type]
    if not any(name.startswith(prefix) for name in there):
        there = {name if name == HEAD else prefix + name: tensor for name, tensor in there.items()}
    rest = dict(there)
    here, missing = {}, []
    for shape, link in _shapes_and_links(config, model_type):
        parts = []
        for name, wanted in zip(link.theirs, link.split(torch.empty(shape, device="meta")), strict=True):
            without = name.endswith(tuple(absent))
            found = None if without else rest.pop(name, None)
            if found is None and not without:
                missing.append(name)
            part = torch.zeros(wanted.shape) if found is None else found.float()
            require(
                part.shape == wanted.shape,
                f"{name} has shape {tuple(part.shape)}, but the configuration makes it {tuple(wanted.shape)}",
            )
            parts.append(part)
        here[link.ours] = link.join(parts)
    require(not missing, f"{_listed(missing)} missing from the weights")
    head = rest.pop(HEAD, None)
    require(
        head is None or torch.equal(head.float(), here["embedding.weight"]),
        f"tie_word_embeddings is true, but {HEAD} differs from the embedding; set it to false to keep both",
    )
    require(not rest, f"{_listed(sorted(rest))} not part of a {model_type} model of this configuration")
    return here


def _listed(names: Sequence[str]) -> str:
    """At most three names and how many more there are, with the verb."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"
