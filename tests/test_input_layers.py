"""One-hot product, summed tables and gathered rows are one layer; a learned embedding is a special case of it."""

import pytest
import torch

from picollm_core.config import KGramConfig
from picollm_core.input_layers import as_one_hot, input_layer_times, one_hot_product, summed_tables
from picollm_core.models.kgram import EmbeddingInput, OneHotInput
from tests.conftest import TINY, VOCAB

CONFIG = TINY["kgram-onehot"]
assert isinstance(CONFIG, KGramConfig)


@pytest.fixture
def layer() -> OneHotInput:
    torch.manual_seed(0)
    found = OneHotInput(CONFIG).double()
    torch.nn.init.normal_(found.bias)
    return found


@pytest.fixture
def window() -> torch.Tensor:
    """(B, T, k) ids, some of them repeated."""
    return torch.randint(VOCAB // 4, (2, 7, CONFIG.k), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("way", [one_hot_product, summed_tables])
def test_every_way_gives_the_output_and_the_gradients_of_the_layer(layer, window, way):
    weights = torch.randn(2, 7, CONFIG.n_embd, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found, expected = way(layer, window), layer(window)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for parameter in (layer.weight, layer.bias):
        gradients = [
            torch.autograd.grad((y * weights).sum(), parameter, retain_graph=True)[0] for y in (found, expected)
        ]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", [one_hot_product, summed_tables])
def test_the_place_of_a_token_in_the_window_matters(layer, window, way):
    assert not torch.allclose(way(layer, window), way(layer, window.flip(-1)))


@pytest.mark.parametrize("embedding", ["learned", "scaled"])
def test_the_one_hot_layer_of_an_embedding_computes_the_same(window, embedding):
    config = CONFIG.replace(embedding=embedding)
    torch.manual_seed(0)
    learned = EmbeddingInput(config).double()
    torch.nn.init.normal_(learned.mix.bias)
    torch.testing.assert_close(as_one_hot(learned, config)(window), learned(window), rtol=0, atol=1e-12)


@pytest.mark.parametrize("embedding", ["conv", "onehot"])
def test_a_layer_without_a_mixing_matrix_is_refused(embedding):
    with pytest.raises(ValueError, match=f"embedding is '{embedding}'"):
        as_one_hot(EmbeddingInput(CONFIG.replace(embedding="learned")), CONFIG.replace(embedding=embedding))


def test_times_are_positive_for_three_layers_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    times = input_layer_times(2, VOCAB, n_embd=8, tokens=16, repetitions=3)
    assert list(times) == ["one-hot vectors built", "one-hot rows gathered", "learned embedding"]
    assert min(times.values()) > 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("bad", [{"tokens": 0}, {"repetitions": 0}])
def test_nothing_to_time_is_refused(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        input_layer_times(2, VOCAB, **bad)
