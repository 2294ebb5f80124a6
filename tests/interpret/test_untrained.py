"""An untrained control has the architecture of the model it stands beside, and nothing of its weights."""

import torch

from picollm_core.interpret.untrained import untrained_model
from picollm_core.trainer import seeded


def test_it_is_the_same_architecture_with_weights_of_the_seed_ready_to_be_read(tiny_model):
    model = tiny_model.double().train()
    fresh, again, other = (untrained_model(model, seed) for seed in (3, 3, 4))
    assert fresh.config == model.config
    assert not any(module.training for module in fresh.modules())
    assert model.training
    weights = [dict(each.named_parameters()) for each in (model, fresh, again, other)]
    assert all(own.dtype == torch.float64 for own in weights[1].values())
    assert all(torch.equal(own, weights[2][name]) for name, own in weights[1].items())
    assert not torch.equal(fresh.head.weight, model.head.weight)
    assert not torch.equal(fresh.head.weight, other.head.weight)


def test_it_takes_no_random_numbers_from_the_common_generator(tiny_model):
    following = []
    for control in (False, True):
        with seeded(7):
            if control:
                untrained_model(tiny_model)
            following.append(torch.rand(3))
    assert torch.equal(*following)
