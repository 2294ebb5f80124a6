"""Trained for real, every family learns what counting cannot, and uses the context it was built to use."""

import numpy as np
import pytest
import torch

from picollm_core import load_corpus, load_tokenizer
from picollm_core.kneser_ney import KneserNey
from picollm_core.token_store import token_store
from picollm_core.train import train

SETTINGS = {
    "corpus": "three_sequences",
    "splits": (90, 10, 0),
    "tokenizer": "stories-4k",
    "max_steps": 350,
    "block_size": 64,
    "n_embd": 64,
    "eval_every": 1_000,
    "prompt": "0 1 2 3 4",
    "sample_tokens": 5,
    "progress": False,
}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(load_corpus("three_sequences", splits=(90, 10, 0)).texts("validation"))


@pytest.fixture(scope="module")
def floors(texts, tmp_path_factory) -> dict[int, float]:
    corpus, tokenizer = load_corpus("three_sequences", splits=(90, 10, 0)), load_tokenizer("stories-4k")
    store = token_store(corpus, "train", tokenizer, tmp_path_factory.mktemp("cache"))
    models = {order: KneserNey(order, tokenizer.n_vocab).fit(store.tokens, store.offsets) for order in (1, 2, 4)}
    return {order: model.evaluate(texts, tokenizer, n_bootstrap=1).nll for order, model in models.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: train(f"{name}-pico", runs_dir=folder, **SETTINGS) for name in ("kgram", "lstm", "transformer")}


@pytest.mark.parametrize("family", ["kgram", "lstm", "transformer"])
def test_loss_falls_and_beats_the_unigram_and_bigram_floors(family, runs, floors):
    run = runs[family]
    assert run.history["loss"].iloc[-20:].mean() < 0.5 * run.history["loss"].iloc[0]
    assert run.summary["nll"] < 0.95 * floors[2] < floors[1]


@pytest.mark.parametrize("family", ["kgram", "lstm", "transformer"])
def test_full_context_beats_context_cut_to_one_token(family, runs, texts):
    model, tokenizer = runs[family].load_model(), runs[family].load_tokenizer()
    gap = []
    with torch.no_grad():
        for text in texts[:40]:
            ids = torch.tensor([[tokenizer.eot_token, *tokenizer.encode_ordinary(text)]])[:, :65]
            idx, targets = ids[:, :-1], ids[0, 1:]
            whole = torch.log_softmax(model(idx)[0], -1)
            alone = torch.log_softmax(model(idx.T)[:, 0], -1)  # every token as a sequence of its own
            picked = [scores.gather(1, targets[:, None]).mean().item() for scores in (whole, alone)]
            gap.append(picked[0] - picked[1])
    assert np.mean(gap) > 0.3


def test_a_k_gram_that_sees_only_the_current_token_is_a_bigram(floors, texts, tmp_path):
    run = train("kgram-pico", k=1, runs_dir=tmp_path, **SETTINGS)
    assert 0.97 * floors[2] < run.summary["nll"] < 1.15 * floors[2]
