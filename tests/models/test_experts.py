"""Mixture of experts against one loop over tokens, its router, its load, and what training does with it."""

import pytest
import torch
import torch.nn.functional as F

from picollm_core.config import TrainConfig, TransformerConfig
from picollm_core.losses import next_token_loss
from picollm_core.models import build_model
from picollm_core.models.experts import MixtureOfExperts
from picollm_core.models.layers import activate
from picollm_core.optim import build_optimizers
from tests.conftest import TINY, VOCAB

C, E = 8, 5


def experts(**changes) -> MixtureOfExperts:
    torch.manual_seed(0)
    settings = {"n_embd": C, "n_expert": E, "n_expert_active": 2, "activation": "swiglu_clamped", "bias": True}
    module = MixtureOfExperts(TransformerConfig(**(settings | changes)))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.double().eval()


def token_by_token(module: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    """The formula: softmax over the largest router logits, weighted sum of those experts' outputs."""
    out = []
    for token in x.flatten(0, -2):
        logits = module.router.weight @ token + (0 if module.router.bias is None else module.router.bias)
        chosen = logits.argsort(descending=True)[: module.n_active]
        shares = logits[chosen].softmax(0)
        y = torch.zeros(C, dtype=torch.float64)
        for share, number in zip(shares, chosen.tolist(), strict=True):
            h = token @ module.fc[number]
            h = h + module.fc_bias.view(E, -1)[number] if module.fc_bias is not None else h
            z = activate(h, module.activation) @ module.proj[number]
            z = z + module.proj_bias.view(E, -1)[number] if module.proj_bias is not None else z
            y = y + share * z
        out.append(y)
    return torch.stack(out).view_as(x)


@pytest.mark.parametrize("activation", ["gelu", "swiglu", "swiglu_clamped"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("active", [1, 2, E])
def test_the_mixture_equals_the_formula_token_by_token_with_its_gradients(activation, bias, active):
    module = experts(activation=activation, bias=bias, n_expert_active=active)
    x = torch.randn(3, 7, C, dtype=torch.float64, requires_grad=True)
    inputs = [x, *module.parameters()]
    fast, truth = module(x), token_by_token(module, x)
    torch.testing.assert_close(fast, truth, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(truth)
    found = torch.autograd.grad((fast * direction).sum(), inputs)
    wanted = torch.autograd.grad((truth * direction).sum(), inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_one_active_expert_of_one_is_a_plain_mlp():
    module = experts(n_expert=1, n_expert_active=1, activation="gelu", bias=False)
    x = torch.randn(2, 3, C, dtype=torch.float64)
    torch.testing.assert_close(module(x), F.gelu(x @ module.fc[0]) @ module.proj[0])


def test_the_load_counts_the_choices_of_the_last_pass():
    module = experts()
    x = torch.randn(4, 6, C, dtype=torch.float64)
    assert module.load.tolist() == pytest.approx([1 / E] * E)
    module(x)
    _, chosen = module.route(x.flatten(0, -2))
    counts = torch.tensor([(chosen == number).sum().item() for number in range(E)]) / chosen.numel()
    torch.testing.assert_close(module.load, counts)
    assert "load" not in module.state_dict()


def test_a_token_s_output_does_not_depend_on_its_neighbours():
    module = experts()
    x = torch.randn(1, 9, C, dtype=torch.float64)
    alone = torch.cat([module(x[:, t : t + 1]) for t in range(9)], dim=1)
    torch.testing.assert_close(module(x), alone, rtol=1e-12, atol=1e-12)


def test_an_expert_that_nobody_chooses_gets_no_gradient():
    module = experts(n_expert_active=1)
    with torch.no_grad():
        module.router.weight.zero_()
        module.router.bias.copy_(torch.tensor([5.0, 0, 0, 0, 0]))
    module(torch.randn(2, 3, C, dtype=torch.float64)).sum().backward()
    used = module.fc.grad.flatten(1).abs().sum(1) > 0
    assert used.tolist() == [True, False, False, False, False]


def test_the_model_reports_the_most_and_least_used_expert_of_a_step():
    torch.manual_seed(0)
    model = build_model(TINY["transformer-gpt-oss"])
    model(torch.randint(VOCAB, (2, 9)))
    shares = torch.stack([block.mlp.load for block in model.blocks]) * 4
    expected = {"expert_load_max": shares.max().item(), "expert_load_min": shares.min().item()}
    assert model.statistics() == expected
    assert 0 <= expected["expert_load_min"] <= 1 <= expected["expert_load_max"] <= 4
    assert build_model(TINY["transformer"]).statistics() == {}


def test_initial_scales_are_those_of_a_plain_mlp():
    torch.manual_seed(0)
    model = build_model(TransformerConfig(vocab_size=50, n_embd=64, n_layer=8, n_expert=8))
    mixture = model.blocks[3].mlp
    assert mixture.fc.std().item() == pytest.approx(0.02, rel=0.03)
    assert mixture.proj.std().item() == pytest.approx(0.02 / 16**0.5, rel=0.03)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weight_decay_reaches_the_experts_matrices_and_not_their_biases(optimizer):
    model = build_model(TINY["transformer-gpt-oss"])
    groups = [g for o in build_optimizers(model, TrainConfig(optimizer=optimizer)) for g in o.param_groups]
    decayed = {id(p) for g in groups if g["weight_decay"] > 0 for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim >= 2), name
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_a_mixture_learns_to_copy_its_batch():
    torch.manual_seed(0)
    model = build_model(TINY["transformer-gpt-oss"])
    idx = torch.randint(VOCAB, (2, 12))
    first = next_token_loss(model, idx[:, :-1], idx[:, 1:]).item()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = next_token_loss(model, idx[:, :-1], idx[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first - 2
