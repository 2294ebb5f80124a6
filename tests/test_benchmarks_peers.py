"""Peers from transformers, and durations of commands: the same work on both sides, and what they refuse to time."""

import sys
import time

import pytest
import torch

from benchmarks import durations, generation, huggingface_step, training_steps
from picollm_core.presets import preset
from picollm_core.tokenizers import load_tokenizer
from picollm_core.workbook import NotebookResult, WorkbookReport
from tests.conftest import TINY

pytest.importorskip("transformers")
SMALL = {"vocab_size": 4_096, "block_size": 64, "n_embd": 16, "n_head": 2, "n_layer": 2, "dropout": 0.0}


@pytest.fixture
def pair(monkeypatch):
    """A tiny GPT-2 here and in transformers, over the bundled vocabulary."""
    monkeypatch.setattr(generation, "preset", lambda name, **changes: preset(name, **(SMALL | changes)))
    return generation.equal_pair("gpt2-pico")


def test_both_sides_continue_greedily_with_the_same_tokens(pair):
    model, theirs = pair
    tokenizer = load_tokenizer("stories-4k")
    ids = torch.tensor([generation.encode_prompt(model, tokenizer, generation.PROMPT)])
    ours = generation.own_continuation(model, tokenizer, 12, temperature=0.0)
    peer = generation.peer_continuation(theirs, ids, 12, do_sample=False)
    assert len(ours) == 12
    generation.require_same_tokens(ours, peer)


def test_the_peer_draws_a_text_of_full_length_from_the_nucleus(pair):
    _, theirs = pair
    drawn = generation.peer_continuation(theirs, torch.tensor([[5, 6, 7]]), 9, do_sample=True, top_p=0.95, top_k=0)
    assert len(drawn) == 9


def test_logits_are_spread_as_a_trained_models(pair):
    model, theirs = pair
    idx = torch.randint(4_096, (1, 40))
    with torch.no_grad():
        assert 2 < model(idx).std() < 8
        torch.testing.assert_close(theirs(idx).logits, model(idx), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("peer", "token"), [([1, 2, 4], 3), ([1, 2], 3), ([9, 2, 3], 1)])
def test_different_continuations_are_not_timed(peer, token):
    with pytest.raises(RuntimeError, match=f"differ from token {token} on"):
        generation.require_same_tokens([1, 2, 3], peer)


@pytest.mark.parametrize("kind", generation.FLAT)
def test_every_model_of_the_flat_rows_holds_the_thousandth_token(kind):
    config = generation.FLAT[kind].replace(vocab_size=61)
    limit = generation.build_model(config).context_limit
    assert limit is None or limit >= generation.LATE + generation.NEIGHBOURS + 50


def test_tokens_are_timed_one_by_one_in_order():
    model = generation.build_model(TINY["lstm"].replace(vocab_size=4_096)).eval()
    before = time.perf_counter()
    seconds = generation.token_seconds(model, load_tokenizer("stories-4k"), 20)
    assert len(seconds) == 19
    assert 0 < sum(seconds) < time.perf_counter() - before
    assert not model.head._forward_hooks


def test_the_time_of_a_token_is_the_median_of_its_neighbours():
    seconds = [float(n) for n in range(2, 60)]  # that of token n is n
    assert generation.around(seconds, 10) == 10.0
    assert generation.around(seconds, 40) == 40.0


def test_the_step_of_transformers_starts_from_the_same_loss(monkeypatch):
    for module in (training_steps, huggingface_step):
        monkeypatch.setattr(module, "BLOCK_SIZE", 16)
        monkeypatch.setattr(module, "BATCH_SIZE", 4)
    config = preset("gpt2-pico", **(SMALL | {"vocab_size": 97, "block_size": 16}))
    store = training_steps.zipf_store(97, 2_000)
    peer = huggingface_step.new_huggingface_step(config, store)
    trainer = training_steps.new_trainer(config, "float32", store)
    first = peer.advance()
    training_steps.require_same_work({"transformers": first, "ours": trainer.advance()["loss"]})
    later = [peer.advance() for _ in range(8)]
    assert min(later) < first


def report(*errors: str) -> WorkbookReport:
    results = tuple(
        NotebookResult(f"{n:02d}_notebook.ipynb", "A title", 10.0 * (n + 1), 3, 3, error, ())
        for n, error in enumerate(errors)
    )
    return WorkbookReport("quick", results, "report.html", "copies")


def test_the_workbooks_row_names_its_slowest_notebook(monkeypatch):
    monkeypatch.setattr(durations, "run_workbook", lambda *_, **__: report("", "", ""))
    whole, slowest = durations.measure_workbook(5)
    assert (whole.name, slowest.name) == ("workbook", "workbook-notebook")
    assert (slowest.ratio, slowest.notes) == (30.0, "02_notebook.ipynb")
    assert "3 notebooks" in whole.notes
    assert whole.ratio < 1


def test_a_workbook_that_fails_is_not_timed(monkeypatch):
    monkeypatch.setattr(durations, "run_workbook", lambda *_, **__: report("", "01: ValueError"))
    with pytest.raises(RuntimeError, match=r"the workbook fails.*01: ValueError"):
        durations.measure_workbook(1)


def test_the_tests_row_takes_the_suites_last_line(tmp_path, monkeypatch):
    monkeypatch.setattr(durations, "ROOT", tmp_path)
    (tmp_path / "test_one.py").write_text("def test_one():\n    pass\n")
    (row,) = durations.measure_tests(1)
    assert "1 passed" in row.notes
    assert 0 < row.ratio < 20
    (tmp_path / "test_one.py").write_text("def test_one():\n    assert False\n")
    with pytest.raises(RuntimeError, match="1 failed"):
        durations.measure_tests(1)


def test_processor_time_of_children_counts():
    command = [sys.executable, "-c", "sum(range(3_000_000))"]
    done, seconds, processor = durations.timed_with_children(
        lambda: durations.subprocess.run(command, check=True, capture_output=True)
    )
    assert done.returncode == 0
    assert seconds > 0
    assert processor > 0
