"""Whole training runs: learning, caching, resuming to the bit, and refusing what cannot work."""

import logging
import random
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from picollm_core import runs, tokenizers
from picollm_core.checkpoints import load_checkpoint
from picollm_core.config import KGramConfig, LSTMConfig, ModelConfig, RunConfig, TransformerConfig
from picollm_core.corpora import load_corpus
from picollm_core.evaluate import evaluate
from picollm_core.models import build_model
from picollm_core.runs import HISTORY_COLUMNS, Run
from picollm_core.train import SAMPLERS, train
from picollm_core.trainer import Trainer, TrainingDiverged
from tests.test_trainer import BYTES

MODELS: dict[str, ModelConfig] = {
    "kgram": KGramConfig(n_embd=8, block_size=16, dropout=0.2),
    "lstm": LSTMConfig(n_embd=8, block_size=16, n_layer=2, dropout=0.2),
    "transformer": TransformerConfig(n_embd=8, block_size=16, n_head=2, dropout=0.2),
}
CLOCK = ["seconds", "tokens_per_second", "memory_mb"]
SHORT = {
    "tokenizer": "bytes", "device": "cpu", "precision": "float32", "batch_size": 4, "max_steps": 23, "eval_every": 5,
    "checkpoint_every": 4, "eval_stories": 3, "prompt": "The", "sample_tokens": 4, "progress": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An own folder for runs and caches, and the tokenizer "bytes"."""
    monkeypatch.setitem(tokenizers.TOKENIZERS, "bytes", lambda: BYTES)
    monkeypatch.setenv("PICOLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runs, "RUNS_DIR", tmp_path / "unused")
    return tmp_path


def write_stories(path: Path, n: int = 60) -> str:
    """Stories between end-of-text marks: the packed format."""
    generator = random.Random(0)
    words = ["the", "cat", "saw", "a", "red", "boat", "and", "ran", "home"]
    stories = (" ".join(generator.choices(words, k=generator.randint(4, 12))) + "." for _ in range(n))
    path.write_text("<|endoftext|>".join(stories))
    return str(path)


@pytest.fixture
def short(place):
    """Trains a model for a few steps on stories: short(model, **settings)."""
    corpus = write_stories(place / "stories.txt")

    def run(model="kgram", **settings) -> Run:
        chosen = MODELS[model] if isinstance(model, str) else model
        return train(chosen, **({"corpus": corpus, "runs_dir": place / "runs"} | SHORT | settings))

    return run


def weights(run: Run) -> list[torch.Tensor]:
    return [p.detach() for p in run.load_model().parameters()]


def same_run(a: Run, b: Run) -> bool:
    """Same weights, same history, same results; only the clock may differ."""
    pd.testing.assert_frame_equal(a.history.drop(columns=CLOCK), b.history.drop(columns=CLOCK), check_exact=True)
    timed = {"train_seconds", "tokens_per_second", "peak_memory_mb"}
    assert all(a.summary[name] == b.summary[name] for name in a.summary if name not in timed)
    assert a.samples == b.samples
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


@pytest.mark.parametrize("family", MODELS)
def test_every_family_learns_number_sequences(place, family):
    model = MODELS[family].replace(n_embd=16, dropout=0.0)
    settings = SHORT | {"max_steps": 60, "learning_rate": 0.02, "eval_every": 20, "checkpoint_every": 1_000}
    run = train(model, corpus="three_sequences", limit=400, runs_dir=place / "runs", **settings)
    losses, watched = run.history["loss"], run.history["val_loss"].dropna()
    assert losses.iloc[0] == pytest.approx(np.log(257), abs=0.1)
    assert losses.tail(5).mean() < 3
    assert watched.is_monotonic_decreasing
    assert len(watched) == 3


def test_a_run_keeps_at_least_twenty_fields_a_step_and_all_that_it_measured(short, place):
    run = short()
    assert len(run.history) == 23
    assert len(run.history.columns) >= 20
    assert set(HISTORY_COLUMNS) < set(run.history.columns)
    assert run.history["step"].tolist() == list(range(1, 24))
    evaluated = [5, 10, 15, 20, 23]
    for name in ("val_loss", "perplexity", "bits_per_byte", "token_accuracy"):
        assert run.history.set_index("step")[name].dropna().index.tolist() == evaluated
    np.testing.assert_allclose(run.history["perplexity"].dropna(), np.exp(run.history["val_loss"].dropna()))
    assert run.history["tokens"].tolist() == [64 * step for step in range(1, 24)]
    result = evaluate(run.load_model(), BYTES, load_corpus(str(place / "stories.txt")))
    assert {name: run.summary[name] for name in result.to_dict()} == result.to_dict()
    assert (run.summary["steps"], run.summary["tokens_seen"]) == (23, 23 * 64)
    assert run.summary["parameters"] == run.load_model().num_parameters()
    assert run.samples.keys() == SAMPLERS.keys()
    assert all(text.startswith("The") for text in run.samples.values())
    assert run.load_tokenizer() is BYTES


def test_same_seed_same_run_and_another_seed_another(short, place):
    first, again = short("lstm"), short("lstm", runs_dir=place / "elsewhere")
    assert first.directory != again.directory
    assert same_run(first, again)
    other = short("lstm", seed=1)
    assert other.fingerprint != first.fingerprint
    assert (first.history["loss"] != other.history["loss"]).all()
    starts = [weights(short("lstm", seed=seed, max_steps=1, learning_rate=1e-9)) for seed in (0, 1)]
    assert not any(torch.allclose(x, y, atol=1e-3) for x, y in zip(*starts, strict=True) if x.ndim > 1)


def test_training_leaves_every_global_generator_as_it_was(short):
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    short("lstm")
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002


def test_a_caller_s_random_state_does_not_change_the_run(short, place):
    torch.manual_seed(11)
    first = short("transformer")
    torch.manual_seed(12)
    assert same_run(first, short("transformer", runs_dir=place / "elsewhere"))


@pytest.fixture
def advances(monkeypatch) -> list[int]:
    """The number of every update as it is made; set `advances.stops` to interrupt after these many updates."""

    class Log(list):
        stops: tuple[int, ...] = ()

    log, advance = Log(), Trainer.advance

    def watched(self: Trainer):
        if len(log) in log.stops:
            log.stops = tuple(stop for stop in log.stops if stop != len(log))
            raise KeyboardInterrupt
        log.append(self.step + 1)
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", watched)
    return log


def test_a_finished_run_is_returned_without_training_unless_refreshed(short, advances):
    first = short()
    files = {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")}
    assert same_run(first, short())
    assert same_run(first, short(resume=False))
    assert len(advances) == 23
    assert files == {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")}
    assert same_run(first, short(refresh=True))
    assert advances == [*range(1, 24)] * 2
    assert short(max_steps=24).fingerprint != first.fingerprint


def test_a_run_that_another_process_ended_meanwhile_is_not_trained_again(short, advances, monkeypatch):
    first, is_complete, seen = short(), runs.is_complete, []
    monkeypatch.setattr(
        runs, "is_complete", lambda directory: bool(seen.append(0) or len(seen) > 1) and is_complete(directory)
    )
    assert same_run(first, short())
    assert len(advances) == 23


def test_a_changed_corpus_is_another_run(short, place):
    first = short()
    with (place / "stories.txt").open("a") as file:
        file.write("<|endoftext|>One more story.")
    assert short().fingerprint != first.fingerprint


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("family", MODELS)
def test_a_run_interrupted_several_times_ends_as_if_it_had_not_been(short, advances, place, family, optimizer):
    whole = short(family, optimizer=optimizer)
    advances.clear()
    advances.stops = tuple(sorted(random.Random(family + optimizer).sample(range(1, 30), 4)))
    interruptions = len(advances.stops)
    for _ in range(interruptions):
        with pytest.raises(KeyboardInterrupt):
            short(family, optimizer=optimizer, runs_dir=place / "interrupted")
    resumed = short(family, optimizer=optimizer, runs_dir=place / "interrupted")
    assert 23 < len(advances) <= 23 + 3 * interruptions  # at most what came after a checkpoint is made again
    assert same_run(whole, resumed)
    assert not list(resumed.directory.glob("*.tmp"))
    assert not (resumed.directory / runs.CHECKPOINT_FILE).exists()


def test_resume_false_begins_an_interrupted_run_anew(short, advances, place):
    advances.stops = (14,)
    with pytest.raises(KeyboardInterrupt):
        short()
    (directory,) = (place / "runs").iterdir()
    (directory / "checkpoint.safetensors.1.tmp").write_bytes(b"what a killed save leaves behind")
    run = short(resume=False)
    assert not list(directory.glob("*.tmp"))
    assert advances == [*range(1, 15), *range(1, 24)]
    assert run.history["step"].tolist() == list(range(1, 24))


def test_a_run_interrupted_after_its_last_update_only_finishes(short, advances, place, monkeypatch):
    whole = short("lstm")
    advances.clear()
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["picollm_core.train"], "generate", lambda *_, **__: int("interrupted"))
        with pytest.raises(ValueError, match="interrupted"):
            short("lstm", runs_dir=place / "other")
    assert same_run(whole, short("lstm", runs_dir=place / "other"))
    assert advances == list(range(1, 24))


def test_a_writer_in_another_place_is_respected(short):
    run = short()
    with (
        runs.writer_lock(run.directory),
        pytest.raises(ValueError, match=f"another process is writing {run.directory}"),
    ):
        short(refresh=True)
    assert runs.is_complete(run.directory)


def test_divergence_names_step_and_rate_and_keeps_what_was_saved(short, place):
    settings = {
        "optimizer": "sgd",
        "learning_rate": 1e6,
        "checkpoint_every": 1,
        "max_steps": 200,
        "schedule": "constant",
    }
    with pytest.raises(
        TrainingDiverged, match=r"became (nan|inf) at step \d+ with learning rate .*e\+0.; lower"
    ) as error:
        short(**settings)
    failed = int(str(error.value).split("at step ")[1].split()[0])
    (directory,) = (place / "runs").iterdir()
    history = runs.read_history(directory / runs.HISTORY_FILE)
    assert history["step"].tolist() == list(range(1, failed))
    assert np.isfinite(history["loss"]).all()
    config = RunConfig.from_dict(runs.read_json(directory / runs.CONFIG_FILE)["config"])
    model = build_model(config.model)
    saved = load_checkpoint(
        directory / runs.CHECKPOINT_FILE, model, Trainer(model, _NoBatches(), config.train).optimizers
    )
    assert saved["step"] == failed - 1
    with pytest.raises(ValueError, match="has not ended"):
        runs.load_run(directory)


class _NoBatches:
    steps_per_epoch = 1


def test_a_spoilt_checkpoint_is_named_with_the_way_out(short, advances, place):
    advances.stops = (14,)
    with pytest.raises(KeyboardInterrupt):
        short()
    (checkpoint,) = (place / "runs").glob("*/checkpoint.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    with pytest.raises(
        ValueError, match=rf"{checkpoint} is not a usable checkpoint of this run .*; delete it to start"
    ):
        short()
    checkpoint.unlink()
    assert len(short().history) == 23


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 99}, r"the model has vocab_size=99 but tokenizer 'bytes' has 257 tokens"),
        ({"batch_size": 10_000}, r"gives \d+ windows of block_size=16 but a batch needs 10000; give more text"),
        ({"block_size": 100_000}, r"the corpus has \d+ tokens but one window of block_size=100000 needs 100001"),
        ({"corpus": "no such place"}, r"no corpus or path 'no such place'"),
        ({"tokenizer": "gpt3"}, r"unknown tokenizer 'gpt3'"),
        ({"device": "cuda:77"}, r"device 'cuda:77' was asked for, but torch .* sees none"),
        ({"optimiser": "adam"}, r"no part of a kgram run has a setting 'optimiser'"),
        ({"splits": (100, 0, 0)}, r"has no validation examples; ask for a larger share, such as splits="),
        ({"prompt": ""}, r"prompt is empty"),
        ({"model": "transformer", "prompt": "x" * 16}, r"the prompt has 17 tokens .* but the window holds 16; shorten"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_trained_is_refused_with_both_values(short, settings, message):
    with pytest.raises(ValueError, match=message):
        short(**settings)


def test_splits_by_shares_and_padded_lines_train_too(place):
    run = train(MODELS["kgram"], corpus="three_sequences", limit=40, splits=(60, 40, 0), runs_dir=place, **SHORT)
    assert run.summary["n_stories"] == load_corpus("three_sequences", limit=40, splits=(60, 40, 0)).count("validation")
    assert set(run.history["splits"]) == {"60.0+40.0+0.0"}


def test_a_corpus_of_weight_zero_is_neither_trained_nor_evaluated_on(place):
    texts = [write_stories(place / "a.txt"), write_stories(place / "b.txt", n=200)]
    run = train(MODELS["kgram"], corpus=tuple(texts), weights=(1, 0), runs_dir=place / "runs", **SHORT)
    assert run.summary["n_stories"] == load_corpus(texts[0]).count("validation")
    mixed = train(MODELS["kgram"], corpus=tuple(texts), weights=(1, 2), runs_dir=place / "runs", **SHORT)
    assert mixed.summary["n_stories"] == sum(load_corpus(text).count("validation") for text in texts)
    assert mixed.context["corpora"] == ["a.txt", "b.txt"]


def test_what_auto_chose_is_said_in_one_line(place, monkeypatch, caplog):
    monkeypatch.delenv("PICOLLM_TINYSTORIES", raising=False)
    with caplog.at_level(logging.WARNING):
        train(MODELS["kgram"], corpus="auto", n_stories=100, runs_dir=place, **SHORT)
    notes = [record.getMessage() for record in caplog.records if record.name == "picollm_core.train"]
    assert len(notes) == 1
    assert notes[0].startswith(("corpus: storyworld, because", "corpus: tinystories"))


def test_bfloat16_is_recorded_with_the_run(short):
    run = short("transformer", precision="bfloat16", max_steps=3)
    assert run.summary["precision"] == "bfloat16"
    assert short("transformer", max_steps=3).summary["precision"] == "float32"


def test_progress_is_shown_only_when_asked_for(short, capfd, monkeypatch):
    module = sys.modules["picollm_core.train"]
    monkeypatch.setattr(module, "tqdm", partial(module.tqdm, mininterval=0))  # draw every step, however fast
    short()
    assert capfd.readouterr() == ("", "")
    short(progress=True, seed=2)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert all(sign in captured.err for sign in ("kgram", "22/23", "loss=", "tok_s=", "step/s"))


def test_the_final_evaluation_takes_every_held_out_story_or_the_first_few_asked_for(place):
    corpus = write_stories(place / "many.txt", n=400)
    settings = SHORT | {"corpus": corpus, "runs_dir": place / "runs", "max_steps": 2}
    whole = train(MODELS["kgram"], **settings)
    few = train(MODELS["kgram"], final_stories=2, **settings)
    assert whole.summary["n_stories"] == load_corpus(corpus).count("validation") > 2
    assert few.summary["n_stories"] == 2
