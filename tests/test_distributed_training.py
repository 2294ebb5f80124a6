"""Several processes train as one: same losses, same results, whatever their number is when they go on."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from picollm_core import runs, tokenizers
from picollm_core.config import KGramConfig, LSTMConfig, ModelConfig, TransformerConfig
from picollm_core.distributed import ALONE, Alone, open_ranks
from picollm_core.runs import Run
from picollm_core.train import train
from picollm_core.trainer import Trainer
from tests.rank_processes import ends, start
from tests.test_train import SHORT, write_stories
from tests.test_trainer import BYTES

MODELS: dict[str, ModelConfig] = {
    "kgram": KGramConfig(n_embd=8, block_size=16),
    "lstm": LSTMConfig(n_embd=8, block_size=16, n_layer=2),
    "transformer": TransformerConfig(n_embd=8, block_size=16, n_head=2),
    "experts": TransformerConfig(n_embd=8, block_size=16, n_head=2, n_expert=3, n_expert_active=1),
    "dropout": LSTMConfig(n_embd=8, block_size=16, dropout=0.5),
}
EQUAL: dict[str, dict] = {
    "kgram": {"model": "kgram"},
    "lstm": {"model": "lstm"},
    "transformer": {"model": "transformer"},
    "padded lines": {"model": "transformer", "corpus": "lines.txt"},
    "a mixture": {"model": "kgram", "corpus": ["stories.txt", "lines.txt"], "weights": [1, 1]},
    "muon": {"model": "transformer", "optimizer": "muon"},
    "uneven shares": {"model": "lstm", "batch_size": 5},
    "padded parts": {"model": "kgram", "corpus": "lines.txt", "batch_size": 3, "grad_accumulation": 3},
    "gradients clipped hard": {"model": "transformer", "grad_clip": 0.05},
    "experts": {"model": "experts"},
}
REFUSED: dict[str, dict] = {
    "fewer rows than processes": {"model": "kgram", "batch_size": 1},
    "fewer windows than rows": {"model": "kgram", "batch_size": 5_000},
    "a setting that is none": {"model": "kgram", "optimiser": "adam"},
    "texts that differ": {"model": "kgram", "by_rank": [{}, {"corpus": "lines.txt"}]},
    "a text one rank lacks": {"model": "kgram", "by_rank": [{}, {"corpus": "nowhere.txt"}]},
    "a run being written": {"model": "kgram", "seed": 7, "runs_dir": "locked"},
    "a loss that grows": {"model": "kgram", "optimizer": "sgd", "learning_rate": 1e30, "schedule": "constant"},
    "a full disk": {"model": "kgram", "seed": 8, "full_disk": True},
}
STOPPED = {"model": "lstm", "optimizer": "muon", "seed": 3}


@contextmanager
def altered(stop: int | None, full_disk: bool):
    """Training that is interrupted after `stop` updates, or whose checkpoints cannot be written."""
    module, advance = sys.modules["picollm_core.train"], Trainer.advance
    save = module.save_checkpoint

    def stopping(trainer: Trainer):
        if trainer.step == stop:
            raise KeyboardInterrupt
        return advance(trainer)

    def failing(*_):
        raise OSError("No space left on device")

    Trainer.advance, module.save_checkpoint = stopping, failing if full_disk else save
    try:
        yield
    finally:
        Trainer.advance, module.save_checkpoint = advance, save


def run_one(scenario: dict, folder: Path, ranks: Alone, runs_dir: str) -> Run:
    """Train one scenario in `folder` with `ranks`."""
    settings = SHORT | {"corpus": "stories.txt", "runs_dir": runs_dir, "learning_rate": 0.01} | scenario
    settings |= settings.pop("by_rank", [{}] * ranks.size)[ranks.rank]
    model, stop = settings.pop("model"), settings.pop("stop", None)
    for name in ("corpus", "weights"):
        if isinstance(settings.get(name), list):
            settings[name] = tuple(settings[name])
    corpus = settings["corpus"]
    places = [str(folder / name) for name in ([corpus] if isinstance(corpus, str) else corpus)]
    settings |= {"corpus": places[0] if isinstance(corpus, str) else tuple(places)}
    settings["runs_dir"] = folder / settings["runs_dir"]
    with altered(stop, settings.pop("full_disk", False)):
        return train(MODELS[model], ranks=ranks, **settings)


def as_rank(folder: Path, runs_dir: str) -> None:
    """What one of several processes does: all scenarios of scenarios.json; what came of them goes into a file."""
    torch.set_num_threads(1)
    tokenizers.TOKENIZERS["bytes"] = lambda: BYTES
    outcomes = {}
    with open_ranks("cpu") as ranks:
        for name, scenario in json.loads((folder / "scenarios.json").read_text()).items():
            try:
                outcomes[name] = str(run_one(scenario, folder, ranks, runs_dir).directory)
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the test looks at it
                outcomes[name] = f"{type(error).__name__}: {error}"
        (folder / f"{runs_dir}-{ranks.size}-{ranks.rank}.json").write_text(json.dumps(outcomes))


def together(size: int, scenarios: dict[str, dict], folder: Path, runs_dir: str) -> list[dict[str, str]]:
    """What came of the scenarios in each of `size` processes."""
    (folder / "scenarios.json").write_text(json.dumps(scenarios))
    program = "import sys, pathlib; from tests.test_distributed_training import as_rank; "
    program += "as_rank(pathlib.Path(sys.argv[1]), sys.argv[2])"
    said = ends(start(size, "-c", program, str(folder), runs_dir))
    assert [status for status, _, _ in said] == [0] * size, said
    assert {output for _, output, _ in said} == {""}, said
    return [json.loads((folder / f"{runs_dir}-{size}-{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two texts, and the tokenizer "bytes"."""
    path = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tokenizers.TOKENIZERS, "bytes", lambda: BYTES)
        patch.setenv("PICOLLM_CACHE", str(path / "cache"))
        write_stories(path / "stories.txt")
        lengths = np.random.default_rng(0).integers(1, 14, 80)
        (path / "lines.txt").write_text("".join(f"{place} {'x' * length}\n" for place, length in enumerate(lengths)))
        yield path


@pytest.fixture(scope="module")
def outcomes(folder) -> list[dict[str, str]]:
    """By rank, what came of every scenario that two processes train."""
    with pytest.raises(KeyboardInterrupt):
        run_one(STOPPED | {"stop": 10}, folder, ALONE, "one then two")
    scenarios = EQUAL | REFUSED
    scenarios |= {"again": EQUAL["kgram"], "one then two": STOPPED | {"runs_dir": "one then two"}}
    for then in ("one", "three"):
        scenarios[f"two then {then}"] = STOPPED | {"stop": 10, "runs_dir": f"two then {then}"}
    scenarios["dropout"] = {"model": "dropout", "max_steps": 12}
    scenarios["dropout, stopped"] = {"model": "dropout", "max_steps": 12, "stop": 6, "runs_dir": "stopped"}
    scenarios["dropout, again"] = {"model": "dropout", "max_steps": 12, "runs_dir": "stopped"}
    refused = REFUSED["a run being written"]
    whole = run_one({name: value for name, value in refused.items() if name != "runs_dir"}, folder, ALONE, "elsewhere")
    with runs.writer_lock(folder / "locked" / whole.directory.name):
        return together(2, scenarios, folder, "two")


@pytest.fixture(scope="module")
def undisturbed(folder) -> Run:
    """The run that the stopped ones must end as."""
    return run_one(STOPPED, folder, ALONE, "undisturbed")


def assert_same_up_to_rounding(several: Run, one: Run) -> None:
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(several.history[name], one.history[name], rtol=1e-5, err_msg=name)
    for name in ("grad_norm", "grad_norm_clipped", "max_gradient", "weight_norm"):
        np.testing.assert_allclose(several.history[name], one.history[name], rtol=2e-3, err_msg=name)
    for name in ("step", "epoch", "tokens", "learning_rate"):
        pd.testing.assert_series_equal(several.history[name], one.history[name])
    assert several.fingerprint == one.fingerprint
    assert several.summary["nll"] == pytest.approx(one.summary["nll"], rel=1e-5)
    for name in ("n_tokens", "steps", "tokens_seen", "parameters", "device", "precision"):
        assert several.summary[name] == one.summary[name]
    x, y = (torch.cat([p.detach().flatten() for p in run.load_model().parameters()]) for run in (several, one))
    assert (x - y).norm() < 1e-3 * y.norm()  # Adam enlarges the rounding of weights that hardly get a gradient


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_train_as_one(folder, outcomes, name):
    several, one = runs.load_run(outcomes[0][name]), run_one(EQUAL[name], folder, ALONE, "one")
    assert_same_up_to_rounding(several, one)
    assert several.history["loss"].nunique() == 23
    assert (several.summary["processes"], one.summary.get("processes")) == (2, None)
    assert several.directory.name == one.directory.name


def test_every_rank_gets_the_run_and_a_finished_one_is_not_trained_again(outcomes):
    assert {rank[name] for rank in outcomes for name in ("kgram", "again")} == {outcomes[0]["kgram"]}
    assert not list(Path(outcomes[0]["kgram"]).glob("*.tmp"))
    assert len(runs.load_run(outcomes[1]["again"]).history) == 23


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "fewer rows than processes": "ValueError: 2 processes share a batch of batch_size=1 rows, so some would have "
        "none; start at most 1, or choose a larger batch_size",
        "fewer windows than rows": "ValueError: the corpus gives 120 windows of block_size=16 but a batch needs 5000",
        "a setting that is none": "ValueError: no part of a kgram run has a setting 'optimiser'",
        "texts that differ": "ValueError: rank 1 has another configuration or text than rank 0 (",
        "a text one rank lacks": "ValueError: rank 1: no corpus or path '",
        "a run being written": "RunIsBeingWritten: another process is writing ",
        "a loss that grows": "TrainingDiverged: the loss became nan at step 2 ",
        "a full disk": "OSError: No space left on device",
    }.items(),
    ids=REFUSED,
)
def test_what_ends_one_rank_ends_all_and_rank_0_has_the_reason(outcomes, name, message):
    assert outcomes[0][name].startswith(message)
    said_by_all = name == "a loss that grows"
    assert outcomes[1][name].startswith(message if said_by_all else "EndedByAnother: ")


def test_one_process_goes_on_where_two_were_stopped(folder, outcomes, undisturbed):
    assert outcomes[0]["two then one"] == "KeyboardInterrupt: "
    resumed = run_one(STOPPED, folder, ALONE, "two then one")
    assert_same_up_to_rounding(resumed, undisturbed)


def test_two_processes_go_on_where_one_was_stopped(outcomes, undisturbed):
    assert_same_up_to_rounding(runs.load_run(outcomes[0]["one then two"]), undisturbed)


def test_three_processes_go_on_where_two_were_stopped(folder, outcomes, undisturbed):
    (checkpoint,) = (folder / "two then three").glob("*/" + runs.CHECKPOINT_FILE)
    assert checkpoint.is_file()
    resumed = together(3, {"go on": STOPPED}, folder, "two then three")
    assert len({rank["go on"] for rank in resumed}) == 1
    assert_same_up_to_rounding(runs.load_run(resumed[2]["go on"]), undisturbed)


def test_dropout_draws_other_masks_on_each_rank_and_the_same_ones_again_after_a_stop(folder, outcomes):
    whole, again = (runs.load_run(outcomes[0][name]) for name in ("dropout", "dropout, again"))
    assert outcomes[1]["dropout, stopped"] == "KeyboardInterrupt: "
    np.testing.assert_array_equal(whole.history["loss"], again.history["loss"])
    one = run_one({"model": "dropout", "max_steps": 12}, folder, ALONE, "one")
    assert np.abs(whole.history["loss"] - one.history["loss"]).max() > 1e-3
    np.testing.assert_allclose(whole.history["loss"], one.history["loss"], rtol=0.05)
