"""Training finds the features that made the data, keeps its constraints, and uses bounded memory."""

import pytest
import torch

from picollm_core.interpret.hooks import activations
from picollm_core.interpret.sae import SparseAutoencoder
from picollm_core.interpret.sae_training import (
    BUFFER,
    SAETrainer,
    geometric_median,
    prepare,
    stream_activations,
    train_sae,
)
from picollm_core.interpret.sparsity import BatchTopK, JumpReLU, ReLU, TopK
from picollm_core.models import build_model
from picollm_core.trainer import TrainingDiverged
from tests.conftest import TINY, VOCAB


class Windows:
    """Random windows of ids; remembers how many tokens were asked for."""

    def __init__(self, rows=4, time=12, seed=0):
        self.shape, self.given = (rows, time), 0
        self.generator = torch.Generator().manual_seed(seed)

    def next_batch(self):
        self.given += self.shape[0] * self.shape[1]
        idx = torch.randint(VOCAB, self.shape, generator=self.generator)
        return idx, idx


def model(name="transformer"):
    torch.manual_seed(0)
    return build_model(TINY[name]).eval()


def known_dictionary(features=32, width=20, seed=0):
    """Unit directions, and a source of sparse positive combinations of them around an offset."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.normalize(torch.randn(features, width, generator=generator), dim=-1)
    offset = torch.randn(width, generator=generator)

    def draw(count):
        on = torch.rand(count, features, generator=generator) < 3 / features
        size = 0.5 + torch.rand(count, features, generator=generator)
        return (on * size) @ truth + offset

    return truth, draw


@pytest.mark.parametrize(
    ("kind", "least"),
    [(TopK(3), 0.95), (BatchTopK(3), 0.95), (ReLU(0.15), 0.95), (JumpReLU(3.0), 0.95)],
    ids=["topk", "batchtopk", "relu", "jumprelu"],
)
def test_a_known_dictionary_is_recovered(kind, least):
    truth, draw = known_dictionary()
    sae = SparseAutoencoder(20, 64, kind, generator=torch.Generator().manual_seed(1)).train()
    prepare(sae, draw(4_000))
    trainer = SAETrainer(sae, 1_500, 4e-3, dead_after=50_000)
    for _ in range(1_500):
        trainer.step(draw(512))
    cosines = truth @ torch.nn.functional.normalize(sae.W_dec.detach(), dim=-1).T  # (features, 64)
    assert cosines.max(1).values.mean() >= least


def test_rows_have_length_one_after_every_step():
    _, draw = known_dictionary()
    sae = SparseAutoencoder(20, 40, TopK(3)).train()
    prepare(sae, draw(500))
    trainer = SAETrainer(sae, 30, 1e-2, dead_after=100)
    for _ in range(30):
        trainer.step(draw(64))
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))


def test_dead_features_come_back():
    _, draw = known_dictionary()
    shares = {}
    for revive in (True, False):
        sae = SparseAutoencoder(20, 32, TopK(3), generator=torch.Generator().manual_seed(1)).train()
        prepare(sae, draw(1_000))
        with torch.no_grad():
            sae.b_enc[:16] = -4.0  # pushed out of the competition, though every one of them is needed
        trainer = SAETrainer(sae, 600, 4e-3, dead_after=2_000 if revive else 10**9)
        for _ in range(600):
            trainer.step(draw(256))
        shares[revive] = (trainer.silent > 2_000).float().mean().item()
    assert shares[False] > 0.3
    assert shares[True] < shares[False] / 2


def test_a_feature_is_dead_after_its_tokens_and_alive_once_it_fires():
    sae = SparseAutoencoder(4, 8, TopK(1)).train()
    trainer = SAETrainer(sae, 100, 1e-6, dead_after=20)
    x = torch.eye(4)[:1].repeat(10, 1)
    for _ in range(3):
        trainer.step(x)
    fired = sae.encode(x).sum(0) > 0
    assert torch.equal(trainer.dead, ~fired)
    assert trainer.silent[fired].tolist() == [0] * int(fired.sum())


def test_preparation_brings_any_data_to_unit_variance_around_its_median():
    x = 7.0 * torch.randn(3_000, 5, generator=torch.Generator().manual_seed(0)) + 100.0
    sae = SparseAutoencoder(5, 8, TopK(2))
    prepare(sae, x)
    assert ((x - x.mean(0)) * sae.scale).square().mean().item() == pytest.approx(1.0, rel=1e-3)
    torch.testing.assert_close(sae.b_dec / sae.scale, x.mean(0), atol=0.5, rtol=0)


def test_the_geometric_median_is_not_moved_by_an_outlier():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1e6, 1e6]]).double()
    median = geometric_median(x)
    assert (median.abs() <= 1.0 + 1e-3).all()
    around = torch.stack([(x - median - step).norm(dim=-1).sum() for step in 0.05 * torch.randn(50, 2).double()])
    assert (around >= (x - median).norm(dim=-1).sum() - 1e-2).all()


def test_the_stream_holds_what_the_model_computes_mixed_and_little_of_it():
    network, source = model(), Windows()
    stream = stream_activations(network, "blocks.0", source, 8, torch.Generator().manual_seed(0))
    seen = torch.cat([next(stream) for _ in range(40)])
    again = Windows()
    idx = torch.cat([again.next_batch()[0] for _ in range(source.given // 48)])
    everything = activations(network, idx, ["blocks.0"])["blocks.0"].flatten(0, 1)
    near = torch.cdist(seen, everything).min(1)
    assert near.values.max() < 1e-3
    assert len(set(near.indices.tolist())) >= 0.95 * len(seen)  # each token once; first tokens of windows are alike
    assert (near.indices.diff() != 1).float().mean() > 0.8  # not in the order of the text
    assert source.given <= len(seen) + BUFFER * 8 + 48


def test_the_same_seed_gives_the_same_autoencoder_and_another_seed_another():
    settings = {"n_tokens": 2_000, "batch_size": 100, "activation": None, "dict_size": 40, "progress": False}
    runs = []
    for seed in (0, 0, 1):
        settings["activation"] = TopK(4)
        runs.append(train_sae(model(), "blocks.0", Windows(), seed=seed, **settings)[0])
    assert torch.equal(runs[0].W_enc, runs[1].W_enc)
    assert not torch.equal(runs[0].W_enc, runs[2].W_enc)


@pytest.mark.parametrize(
    ("name", "site"), [("transformer", "blocks.1"), ("lstm", "rnn.c.0"), ("kgram-onehot", "hidden")]
)
def test_every_family_can_be_read_and_the_loss_falls(name, site):
    network = model(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    sae, history = train_sae(
        network, site, Windows(), n_tokens=20_000, batch_size=200, activation=TopK(4), dict_size=64, progress=False
    )
    assert (sae.site, sae.activation_dim, sae.dict_size, sae.training) == (site, 16, 64, False)
    assert history["loss"].iloc[-1] < 0.8 * history["loss"].iloc[0]
    assert history["tokens"].iloc[-1] == 20_000
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not [m for m in network.modules() if m._forward_hooks]


def test_eight_features_a_dimension_unless_told():
    sae, _ = train_sae(model(), "blocks.0", Windows(), n_tokens=200, batch_size=100, progress=False)
    assert (sae.dict_size, sae.activation.settings()) == (128, {"kind": "topk", "k": 32})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"site": "blocks.9"}, r"no site 'blocks\.9'"),
        ({"dict_size": 3, "activation": TopK(4)}, "dict_size is 3, smaller than the k=4"),
        ({"n_tokens": 99}, "n_tokens is 99, fewer than a batch of 100"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(changes, words):
    source = Windows()
    settings = {"site": "blocks.0", "n_tokens": 1_000, "batch_size": 100, "progress": False} | changes
    with pytest.raises(ValueError, match=words):
        train_sae(model(), settings.pop("site"), source, **settings)
    assert source.given == 0


def test_a_site_that_says_nothing_is_refused():
    network = model()
    torch.nn.init.zeros_(network.blocks[0].mlp.proj.weight)
    with pytest.raises(ValueError, match=r"'blocks\.0\.mlp' is the same for all 100 tokens"):
        train_sae(network, "blocks.0.mlp", Windows(), n_tokens=300, batch_size=100, activation=TopK(2), progress=False)


def test_jumprelus_thresholds_keep_to_the_number_of_features_that_was_asked_for():
    _, draw = known_dictionary()
    for target in (2.0, 6.0):
        sae = SparseAutoencoder(20, 64, JumpReLU(target), generator=torch.Generator().manual_seed(1)).train()
        prepare(sae, draw(2_000))
        trainer = SAETrainer(sae, 300, 3e-3, dead_after=50_000)
        l0 = [trainer.step(draw(512))["l0"] for _ in range(300)]
        assert sum(l0[-50:]) / 50 == pytest.approx(target, rel=0.2)
        rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
        assert set(rates) == {id(p) for p in sae.parameters()}
        assert rates[id(sae.activation.log_threshold)] == pytest.approx(10 * rates[id(sae.W_enc)])


def test_a_loss_that_is_no_number_stops_training_before_the_weights_are_touched():
    sae = SparseAutoencoder(4, 8, TopK(2)).train()
    trainer = SAETrainer(sae, 10, 1e-2, dead_after=100)
    before = sae.W_enc.clone()
    with pytest.raises(TrainingDiverged, match="the autoencoder's loss became nan at update 1; lower the rate"):
        trainer.step(torch.full((5, 4), torch.nan))
    assert torch.equal(sae.W_enc, before)
    assert trainer.done == 0
