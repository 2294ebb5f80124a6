"""Learning-rate schedules at their corners, and what each optimizer is given."""

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from picollm_core.config import TrainConfig
from picollm_core.losses import next_token_loss
from picollm_core.models import build_model
from picollm_core.optim import build_optimizers, learning_rate, set_learning_rate
from tests.conftest import TINY, VOCAB

OPTIMIZERS = ["adamw", "adam", "sgd", "muon"]
PEAK = 0.5
BLOCK_LAYERS = ("attention.qkv", "attention.proj", "mlp.fc", "mlp.proj")


def rates(total: int, **settings) -> list[float]:
    config = TrainConfig(learning_rate=PEAK, **settings)
    return [learning_rate(step, total, config) for step in range(total)]


def test_warmup_rises_in_equal_steps_to_the_peak():
    assert rates(100, warmup_ratio=0.1)[:10] == pytest.approx([PEAK * i / 10 for i in range(1, 11)])


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1.0, 1.0)]
)
def test_schedules_start_at_the_peak_and_end_where_they_should(schedule, middle, end):
    values = rates(111, warmup_ratio=10 / 111, schedule=schedule)
    assert values[9:11] == pytest.approx([PEAK, PEAK])  # the last warm-up step, and the first one after
    assert values[60] == pytest.approx(middle * PEAK)
    assert values[110] == pytest.approx(end * PEAK, abs=1e-15)


def test_cosine_follows_its_formula_and_linear_falls_in_equal_steps():
    cosine = rates(41, warmup_ratio=0, schedule="cosine")
    linear = rates(41, warmup_ratio=0, schedule="linear")
    assert cosine[10] == pytest.approx(PEAK * (1 + 2**-0.5) / 2)  # cos(pi / 4)
    assert [a - b for a, b in pairwise(linear)] == pytest.approx([PEAK / 40] * 40)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_min_lr_ratio_is_where_the_schedule_ends(schedule):
    assert rates(50, schedule=schedule, min_lr_ratio=0.25)[-1] == pytest.approx(0.25 * PEAK)


@given(
    total=st.integers(1, 5_000),
    place=st.floats(0, 1),
    warmup_ratio=st.floats(0, 1),
    min_lr_ratio=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
)
@example(total=1, place=0.0, warmup_ratio=1.0, min_lr_ratio=0.0, schedule="cosine")
@example(total=2, place=1.0, warmup_ratio=0.5, min_lr_ratio=0.0, schedule="linear")
def test_every_rate_lies_between_zero_and_the_peak_and_the_first_is_positive(
    total, place, warmup_ratio, min_lr_ratio, schedule
):
    config = TrainConfig(learning_rate=PEAK, warmup_ratio=warmup_ratio, min_lr_ratio=min_lr_ratio, schedule=schedule)
    assert 0 <= learning_rate(round(place * (total - 1)), total, config) <= PEAK * (1 + 1e-12)
    assert learning_rate(0, total, config) > 0


def tiny(kind: str):
    torch.manual_seed(0)
    return build_model(TINY[kind])


def names_of(model, parameters) -> set[str]:
    chosen = {id(p) for p in parameters}
    return {name for name, p in model.named_parameters() if id(p) in chosen}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", TINY)
def test_every_parameter_is_updated_by_exactly_one_optimizer(name, kind):
    model = tiny(kind)
    groups = [g for o in build_optimizers(model, TrainConfig(optimizer=name)) for g in o.param_groups]
    given_out = [id(p) for group in groups for p in group["params"]]
    assert sorted(given_out) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_matrices_decay(name):
    for optimizer in build_optimizers(tiny("transformer"), TrainConfig(optimizer=name, weight_decay=0.25)):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert group["weight_decay"] == (0.25 if parameter.ndim >= 2 else 0.0)


@pytest.mark.parametrize(
    ("kind", "hidden"),
    [
        (
            "transformer",
            {f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in BLOCK_LAYERS},
        ),
        ("lstm", {f"rnn.weight_{kind}_l{i}" for kind in ("ih", "hh") for i in (0, 1)}),
        ("lstm-tied", {"rnn.weight_ih_l0", "rnn.weight_hh_l0"}),
        ("kgram-learned", {"input.mix.weight", "layers.0.weight", "layers.1.weight"}),
        ("kgram-onehot", {"layers.0.weight", "layers.1.weight"}),
        ("kgram-conv", {"layers.0.weight", "layers.1.weight"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_muon_takes_exactly_the_hidden_matrices(kind, hidden):
    model = tiny(kind)
    muon, adamw = build_optimizers(model, TrainConfig(optimizer="muon"))
    assert (type(muon).__name__, type(adamw).__name__) == ("Muon", "AdamW")
    assert names_of(model, [p for group in muon.param_groups for p in group["params"]]) == hidden


def test_muon_without_torch_s_own_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match=r"optimizer='muon' needs torch >= 2.9 and this is .*; use 'adamw'"):
        build_optimizers(tiny("lstm"), TrainConfig(optimizer="muon"))


def test_settings_reach_the_optimizer():
    (adamw,) = build_optimizers(tiny("lstm"), TrainConfig(beta1=0.8, beta2=0.9))
    (sgd,) = build_optimizers(tiny("lstm"), TrainConfig(optimizer="sgd", beta1=0.8))
    assert {group["betas"] for group in adamw.param_groups} == {(0.8, 0.9)}
    assert {group["momentum"] for group in sgd.param_groups} == {0.8}


def test_set_learning_rate_reaches_every_group_of_every_optimizer():
    optimizers = build_optimizers(tiny("transformer"), TrainConfig(optimizer="muon"))
    set_learning_rate(optimizers, 0.125)
    assert {group["lr"] for optimizer in optimizers for group in optimizer.param_groups} == {0.125}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("kind", "sgd_rate"), [("kgram-learned", 0.5), ("lstm", 0.5), ("transformer", 0.05)])
def test_every_optimizer_lowers_the_loss_of_every_family(name, kind, sgd_rate):
    model = tiny(kind)
    optimizers = build_optimizers(model, TrainConfig(optimizer=name))
    set_learning_rate(optimizers, sgd_rate if name == "sgd" else 0.01)
    idx = torch.randint(VOCAB, (4, 13), generator=torch.Generator().manual_seed(0))
    seen = []
    for _ in range(40):
        loss = next_token_loss(model, idx[:, :-1], idx[:, 1:])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seen.append(loss.item())
    assert seen[-1] < seen[0] - 0.3
