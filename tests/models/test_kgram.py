"""The k-gram MLP against explicit one-hot vectors, written-out formulas, and the course's starter code."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from picollm_core.config import KGramConfig
from picollm_core.models import build_model
from picollm_core.models.kgram import NO_TOKEN, EmbeddingInput, KGramMLP, OneHotInput

V, C, K, T = 11, 12, 3, 9
EMBEDDINGS = ("onehot", "learned", "scaled", "conv")


def kgram(embedding="learned", **changes) -> KGramMLP:
    """A k-gram in float64 whose biases are not zero, so that a forgotten one shows."""
    torch.manual_seed(0)
    shape = {"vocab_size": V, "block_size": 16, "n_embd": C, "n_layer": 2, "k": K, "embedding": embedding}
    model = build_model(KGramConfig(**(shape | changes))).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def tokens(batch=2, time=T, seed=0) -> Tensor:
    return torch.randint(V, (batch, time), generator=torch.Generator().manual_seed(seed))


def one_hot_windows(idx: Tensor, k: int) -> Tensor:
    """(B, T, k V): the one-hot vectors of tokens t-k+1 .. t side by side, zeros before the start."""
    padded = F.pad(F.one_hot(idx, V).double(), (0, 0, k - 1, 0))  # (B, k - 1 + T, V)
    return torch.stack([padded[:, t : t + k].flatten(1) for t in range(idx.size(1))], dim=1)


def through_layers(model: KGramMLP, x: Tensor) -> Tensor:
    """What follows the input layer: SiLU before each inner layer and before the head."""
    for layer in model.layers:
        x = F.silu(x) @ layer.weight.T + layer.bias
    return F.silu(x) @ model.head.weight.T


def test_onehot_input_equals_an_explicit_onehot_matrix_in_output_and_gradients():
    model, idx = kgram("onehot"), tokens()
    assert isinstance(model.input, OneHotInput)
    x = one_hot_windows(idx, K) @ model.input.weight + model.input.bias
    explicit, logits = through_layers(model, x), model(idx)
    torch.testing.assert_close(logits, explicit, rtol=1e-12, atol=1e-12)
    direction = torch.randn(logits.shape, dtype=torch.float64)
    parameters = list(model.parameters())
    wanted = torch.autograd.grad((explicit * direction).sum(), parameters)
    for a, b in zip(torch.autograd.grad((logits * direction).sum(), parameters), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def embedded(table: Tensor, window: list[int]) -> list[Tensor]:
    """The vectors of a window, zero where there is no token yet."""
    return [table[token] if token != NO_TOKEN else torch.zeros(table.size(1)).double() for token in window]


def written_out_input(model: KGramMLP, window: list[int]) -> Tensor:
    """The input layer's value for one window of token ids, from its definition."""
    layer = model.input
    if isinstance(layer, OneHotInput):
        rows = [layer.weight[place * V + token] for place, token in enumerate(window) if token != NO_TOKEN]
        return sum(rows, start=layer.bias)
    assert isinstance(layer, EmbeddingInput)
    vectors = embedded(layer.table.weight, window)
    if layer.depthwise:
        return sum((w * v for w, v in zip(layer.weight, vectors, strict=True)), start=layer.bias)
    return layer.mix.weight @ torch.cat(vectors) + layer.mix.bias


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("k", [1, 2, 5, T + 3])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_every_embedding_equals_its_written_out_formula(embedding, k, offset):
    model, idx = kgram(embedding, k=k, offset=offset), tokens()
    logits = model(idx)
    for row, sequence in enumerate(idx.tolist()):
        history = [NO_TOKEN] * (k + offset - 1) + sequence
        for t in range(T):
            expected = through_layers(model, written_out_input(model, history[t : t + k]))
            torch.testing.assert_close(logits[row, t], expected, rtol=1e-10, atol=1e-12)


def test_conv_is_torch_s_depthwise_convolution():
    model, idx = kgram("conv"), tokens()
    vectors = F.pad(model.input.table(idx).transpose(1, 2), (K - 1, 0))  # (B, C, k - 1 + T)
    x = F.conv1d(vectors, model.input.weight.T.unsqueeze(1), model.input.bias, groups=C).transpose(1, 2)
    torch.testing.assert_close(model(idx), through_layers(model, x), rtol=1e-12, atol=1e-12)


def test_scaled_embeddings_fill_the_width_together():
    layer = kgram("scaled", k=5).input
    assert layer.table.embedding_dim == C // 5
    assert layer.mix.in_features == 5 * (C // 5)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_a_token_further_back_than_k_is_forgotten_and_the_current_one_is_seen(embedding):
    model = kgram(embedding)
    idx = tokens()
    shared = torch.cat([tokens(seed=5)[:, : T - K], idx[:, T - K :]], dim=1)
    assert torch.equal(model(idx)[:, -1], model(shared)[:, -1])
    other = idx.clone()
    other[:, -1] = (idx[:, -1] + 1) % V
    assert (model(idx)[:, -1] != model(other)[:, -1]).all()


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_with_k_1_logits_depend_on_the_current_token_alone(embedding):
    model, idx = kgram(embedding, k=1), tokens()
    table = model(torch.arange(V)[:, None])[:, 0]  # (V, V): the logits after each token
    torch.testing.assert_close(model(idx), table[idx], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_missing_tokens_contribute_exactly_zero(embedding):
    """Neither the output of a short context nor any gradient has a trace of the token that fills the window."""
    model = kgram(embedding)
    model(torch.tensor([[4]])).sum().backward()
    weight = model.input.weight if embedding == "onehot" else model.input.table.weight
    place = (K - 1) * V if embedding == "onehot" else 0
    touched = weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert touched == [place + 4]
    if embedding == "conv":
        assert (model.input.weight.grad[: K - 1] == 0).all()


class StarterKGram(torch.nn.Module):
    """The sliding window of the course's starter code: time first, one one-hot vector after another.

    At position t it gives the network the k tokens before t, padded with zeros; the loss then compares the logits at t
    with token t + 1, so token t itself is never seen.
    """

    def __init__(self, net, k: int) -> None:
        super().__init__()
        self.net, self.k = net, k

    def forward(self, tokens_seq: Tensor) -> Tensor:  # (T, B) -> (T, B, V)
        length, batch = tokens_seq.shape
        outputs = []
        for t in range(length):
            rows = []
            for b in range(batch):
                context = tokens_seq[max(0, t - self.k) : t, b]
                vectors = F.one_hot(context, V).double().flatten()
                rows.append(torch.cat([torch.zeros(self.k * V - vectors.numel()).double(), vectors]))
            outputs.append(self.net(torch.stack(rows)))
        return torch.stack(outputs)


@pytest.mark.parametrize("k", [1, 2, K, T + 2])
def test_offset_1_reproduces_the_starter_code(k):
    model, idx = kgram("onehot", k=k, offset=1), tokens()
    starter = StarterKGram(lambda x: through_layers(model, x @ model.input.weight + model.input.bias), k)
    torch.testing.assert_close(model(idx), starter(idx.T).transpose(0, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("k", [1, K])
def test_offset_1_sees_the_k_tokens_before_the_current_one_and_never_the_current_one(embedding, k):
    model, idx, place = kgram(embedding, k=k, offset=1), tokens(1), 4
    other = idx.clone()
    other[0, place] = (idx[0, place] + 1) % V
    changed = (model(idx) != model(other)).any(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == list(range(place + 1, min(T, place + k + 1)))


def test_offset_0_at_position_t_is_offset_1_at_position_t_plus_1():
    right, late = kgram(), kgram(offset=1)
    late.load_state_dict(right.state_dict())
    idx = tokens()
    torch.testing.assert_close(right(idx)[:, :-1], late(idx)[:, 1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("k", "offset"), [(1, 0), (3, 0), (3, 1)])
def test_the_state_is_the_last_tokens(k, offset):
    model, idx = kgram(k=k, offset=offset), tokens()
    length = k - 1 + offset
    assert torch.equal(model.init_state(2), torch.full((2, length), NO_TOKEN))
    assert torch.equal(model.hidden(idx)[1], idx[:, T - length :])
    short = model.hidden(idx[:, :1])[1]
    assert torch.equal(short, torch.cat([torch.full((2, length), NO_TOKEN), idx[:, :1]], 1)[:, 1 : 1 + length])
    assert model.context_limit is None


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_activations_keep_their_scale_through_the_layers(embedding):
    torch.manual_seed(0)
    model = build_model(KGramConfig(vocab_size=500, n_embd=128, n_layer=5, k=K, embedding=embedding))
    with torch.no_grad():
        hidden, _ = model.hidden(torch.randint(500, (16, 64)))
    assert 0.3 < hidden[:, K:].square().mean().sqrt() * math.sqrt(2) < 3


@pytest.mark.parametrize(("activation", "function"), [("gelu", F.gelu), ("relu", F.relu), ("silu", F.silu)])
def test_the_activation_is_the_one_asked_for(activation, function):
    model, idx = kgram(activation=activation, n_layer=1, k=1), tokens()
    x = model.input.mix(model.input.table(idx))
    x = function(model.layers[0](function(x)))
    torch.testing.assert_close(model(idx), model.head(x), rtol=1e-12, atol=1e-12)
