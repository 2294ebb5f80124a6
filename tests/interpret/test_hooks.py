"""Hooks read and edit every site of every family, change nothing unasked, and leave no trace."""

import pytest
import torch
from torch import Tensor, nn

from picollm_core.interpret.hooks import (
    activations,
    head_outputs,
    hooked,
    main_sites,
    require_site,
    site_names,
    site_width,
)
from picollm_core.losses import next_token_loss
from picollm_core.models import LanguageModel, build_model
from picollm_core.sampling import generate
from picollm_core.tokenizers import build_encoding
from tests.conftest import TINY, VOCAB


def ids(batch=2, time=9, seed=0) -> Tensor:
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(seed))


def build(name: str, **changes) -> LanguageModel:
    torch.manual_seed(0)
    return build_model(TINY[name], **changes).eval()


def bytes_tokenizer():
    return build_encoding("tiny", {bytes([65 + i]): i for i in range(VOCAB - 1)})


def is_clean(model: LanguageModel) -> bool:
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    return not hooks and "hidden" not in model.__dict__ and "forward" not in getattr(model, "rnn", model).__dict__


# reading


def test_every_site_can_be_read_and_the_main_ones_are_among_them(tiny_model):
    names = site_names(tiny_model)
    found = activations(tiny_model, ids(), names)
    assert list(found) == names
    main = main_sites(tiny_model)
    assert set(main) <= set(names)
    assert list(main)[-1] == names[-1] == "hidden"
    for site in main:
        assert found[site].shape == (2, 9, site_width(tiny_model, site)), site
    assert not any(name.split(":")[0] == "head" for name in names)
    assert is_clean(tiny_model)


@torch.no_grad()
def test_what_is_read_is_what_the_model_computes_with(tiny_model):
    found = activations(tiny_model, ids(), site_names(tiny_model))
    assert torch.equal(tiny_model.head(found["hidden"]), tiny_model(ids()))
    for name, module in tiny_model.named_modules():
        if isinstance(module, nn.Linear) and name in found:
            assert torch.equal(module(found[f"{name}:in"]), found[name]), name


@torch.no_grad()
def test_outputs_of_heads_are_what_the_projection_mixes():
    model = build("transformer-rope-gqa")
    found = activations(model, ids(), [head_outputs(1), "blocks.1.attention"])
    heads = found[head_outputs(1)].unflatten(-1, (4, 4))  # (B, T, H, D)
    columns = model.blocks[1].attention.proj.weight.unflatten(-1, (4, 4))  # (C, H, D)
    mixed = torch.einsum("bthd,chd->btc", heads, columns)
    torch.testing.assert_close(mixed, found["blocks.1.attention"])


@torch.no_grad()
def test_what_a_layer_adds_is_read_behind_the_norm_that_it_passes_first():
    for name, end in (("transformer", "blocks.1.{}"), ("transformer-alibi-sandwich", "blocks.1.norm_{}_out")):
        model, added = build(name), [end.format("attention"), end.format("mlp")]
        assert main_sites(model)[added[1]] == "what the MLP adds in layer 2"
        assert [site for site, words in main_sites(model).items() if "adds in layer 2" in words] == added
        found = activations(model, ids(), ["blocks.0", *added, "blocks.1"])
        torch.testing.assert_close(found["blocks.0"] + found[added[0]] + found[added[1]], found["blocks.1"])


def test_activations_run_the_model_no_farther_than_the_last_site():
    model = build("transformer")
    with hooked(model, read=["blocks.0", "blocks.1"]) as seen:
        found = activations(model, ids(), ["blocks.0.mlp.proj:in", "blocks.0"])
    assert set(seen) == {"blocks.0"}
    assert torch.equal(seen["blocks.0"], found["blocks.0"])
    assert is_clean(model)


def test_activations_come_without_dropout_and_gradients_and_the_mode_is_kept():
    model = build("lstm", dropout=0.5).train()
    first, again = (activations(model, ids(), ["rnn.h.0", "hidden"]) for _ in range(2))
    assert all(torch.equal(first[site], again[site]) for site in first)
    assert not first["hidden"].requires_grad
    assert model.training


def test_generation_can_be_read_in_the_middle():
    model, tokenizer = build("lstm"), bytes_tokenizer()
    texts = [generate(model, tokenizer, "ABC", max_new_tokens=n, seed=1, stop_at_eot=False) for n in (5, 6)]
    with hooked(model, read=["rnn.c.1", "hidden"]) as seen:
        assert generate(model, tokenizer, "ABC", max_new_tokens=6, seed=1, stop_at_eot=False) == texts[1]
    assert seen["rnn.c.1"].shape == (1, 1, 16)
    whole = torch.tensor([[tokenizer.eot_token, *tokenizer.encode_ordinary(texts[0])]])
    for site, last in activations(model, whole, ["rnn.c.1", "hidden"]).items():
        torch.testing.assert_close(seen[site][0, 0], last[0, -1])


# editing


@torch.no_grad()
def test_an_edit_that_changes_nothing_changes_no_bit_at_any_site(tiny_model):
    before = tiny_model(ids())
    for edit in (lambda x: x, torch.clone):
        for site in site_names(tiny_model):
            with hooked(tiny_model, edit={site: edit}):
                assert torch.equal(tiny_model(ids()), before), site
    with hooked(tiny_model, read=site_names(tiny_model), edit=dict.fromkeys(site_names(tiny_model), torch.clone)):
        assert torch.equal(tiny_model(ids()), before)
    assert is_clean(tiny_model)


@torch.no_grad()
def test_a_value_changed_at_any_main_site_changes_the_logits_from_there_on_and_no_earlier(tiny_model):
    before = tiny_model(ids())

    def change_fifth(x: Tensor) -> Tensor:
        new = x.clone()
        new[1, 4] += torch.linspace(1, 2, x.size(-1))
        return new

    for site in main_sites(tiny_model):
        with hooked(tiny_model, edit={site: change_fifth if not site.startswith("rnn") else fifth_call(5)}):
            moved = (tiny_model(ids()) - before).abs().amax(-1) > 1e-6
        assert moved[1, 4], site
        assert not moved[0].any(), site
        assert not moved[:, :4].any(), site


def fifth_call(number: int):
    """Changes row 1 at the given call: an LSTM's states come one token at a time."""
    calls = []

    def edit(x: Tensor) -> Tensor:
        calls.append(x)
        assert x.shape == (2, 1, 16)
        new = x.clone()
        if len(calls) == number:
            new[1] += 1.0
        return new

    return edit


@torch.no_grad()
def test_what_an_edit_returns_is_read_and_goes_on():
    model = build("transformer")
    with hooked(model, read=["blocks.0.mlp", "blocks.0"], edit={"blocks.0.mlp": torch.zeros_like}) as seen:
        model(ids())
    assert not seen["blocks.0.mlp"].any()
    whole = activations(model, ids(), ["blocks.0", "blocks.0.mlp"])
    torch.testing.assert_close(seen["blocks.0"], whole["blocks.0"] - whole["blocks.0.mlp"])
    with hooked(model, edit={"hidden": torch.zeros_like}):
        assert not model(ids()).any()
        assert float(next_token_loss(model, ids(), ids(seed=1))) == pytest.approx(torch.tensor(VOCAB).log())


def test_an_edit_takes_part_in_gradients_and_so_can_be_trained():
    for name, site in (("lstm", "rnn.c.0"), ("transformer-gla", "blocks.1"), ("kgram-onehot", "layers.1:in")):
        model, shift = build(name).train(), torch.zeros(16, requires_grad=True)
        with hooked(model, read=[site], edit={site: lambda x, shift=shift: x + shift + 0.01}) as seen:
            next_token_loss(model, ids(), ids(seed=1)).backward()
        assert shift.grad.abs().min() > 0, name
        assert seen[site].requires_grad, name


@torch.no_grad()
def test_generation_follows_an_edit_and_is_itself_again_afterwards():
    tokenizer = bytes_tokenizer()
    options = {"prompt": "ABC", "max_new_tokens": 12, "temperature": 0.0, "stop_at_eot": False}
    for name, site in (("lstm", "rnn.h.1"), ("transformer", "blocks.1"), ("kgram-learned", "layers.1:in")):
        model = build(name)
        before = generate(model, tokenizer, **options)
        with hooked(model, edit={"hidden": lambda x, model=model: x + 1e4 * model.head.weight[7]}):
            assert generate(model, tokenizer, **options) == "ABC" + "H" * 12
        with hooked(model, edit={site: lambda x: x + torch.linspace(-30, 30, 16)}):
            assert generate(model, tokenizer, **options) != before
        assert generate(model, tokenizer, **options) == before


@torch.no_grad()
def test_inner_contexts_build_on_outer_ones_and_take_only_their_own_edits_away():
    for name, site in (("transformer", "blocks.0"), ("lstm", "rnn.h.0"), ("kgram-onehot", "hidden")):
        model, calls = build(name), {"x + 1": lambda x: x + 1.0, "2 x": lambda x: 2 * x}
        with hooked(model, edit={site: lambda x: 2 * (x + 1.0)}):
            both = model(ids())
        with hooked(model, edit={site: calls["x + 1"]}):
            outer = model(ids())
            with hooked(model, edit={site: calls["2 x"]}):
                assert torch.equal(model(ids()), both), name
            with hooked(model, read=[site]) as seen:
                assert torch.equal(model(ids()), outer), name
            assert torch.equal(model(ids()), outer), name
        with hooked(model, edit={site: calls["x + 1"]}, read=[site]) as wanted:
            model(ids())
        assert torch.equal(seen[site], wanted[site]), name
        assert is_clean(model)


@torch.no_grad()
def test_an_outer_context_sees_what_an_inner_one_does_to_an_lstm():
    model = build("lstm")
    with hooked(model, read=["rnn.h.1"]) as seen:
        with hooked(model, edit={"rnn.c.0": torch.zeros_like}):
            model(ids())
        inner = seen["rnn.h.1"]
    with hooked(model, read=["rnn.h.1"], edit={"rnn.c.0": torch.zeros_like}) as wanted:
        model(ids())
    assert torch.equal(inner, wanted["rnn.h.1"])


# nothing is left behind


def run_with(model: LanguageModel, read: list[str], edit: dict, fault: str) -> None:
    with hooked(model, read=read, edit=edit):
        model(ids())
        if fault == "in the body":
            raise ValueError(fault)


@pytest.mark.parametrize("fault", ["in the body", "in an edit", "wrong shape", "no tensor", "unknown site"])
def test_after_any_error_the_model_is_as_it_was(tiny_model, fault):
    with torch.no_grad():
        before = tiny_model(ids())
    edit = {
        "in an edit": lambda x: 1 / 0,
        "wrong shape": lambda x: x[..., 1:],
        "no tensor": lambda x: None,
    }.get(fault, torch.clone)
    for site in main_sites(tiny_model):
        sites = {site: edit, "hidden": torch.clone} if site != "hidden" else {site: edit}
        read = [*main_sites(tiny_model), *["nope"] * (fault == "unknown site")]
        with pytest.raises((ZeroDivisionError, ValueError)):
            run_with(tiny_model, read, sites, fault)
        assert is_clean(tiny_model), site
    with torch.no_grad():
        assert torch.equal(tiny_model(ids()), before)


def test_an_edit_that_changes_the_shape_is_told_what_it_got_and_gave():
    for name, site, given in (("lstm", "rnn.h.0", "2, 1, 16"), ("transformer", "blocks.0", "2, 9, 16")):
        model = build(name)
        with hooked(model, edit={site: lambda x: x[..., 1:]}), pytest.raises(ValueError, match=f"{site}.*15.*{given}"):
            model(ids())


def test_an_unknown_site_is_refused_with_near_matches_and_the_main_ones():
    with pytest.raises(ValueError, match=r"lstm model has no site 'rnn\.h\.2'; did you mean .*rnn\.h\.1.*rnn\.c\.0"):
        require_site(build("lstm"), "rnn.h.2")
    with pytest.raises(ValueError, match=r"no site 'block\.0'; did you mean .*blocks\.0.*blocks\.1\.mlp.*hidden"):
        activations(build("transformer"), ids(), ["block.0"])
    with pytest.raises(ValueError, match=r"no site 'rnn'; the main ones are input, .*layers\.1:in, hidden, and"):
        site_width(build("kgram-onehot"), "rnn")
    assert require_site(build("lstm"), "rnn.c.1") == "rnn.c.1"
