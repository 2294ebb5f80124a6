"""The machinery of the benchmarks: statistics, result file, targets. Nothing here depends on how fast anything is."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from benchmarks import bench, kill_and_resume, measuring, nucleus, onehot, training_steps
from benchmarks.measuring import Row, Side, compare, in_turns, ratios
from benchmarks.targets import REASONS, TARGETS, Target
from picollm_core.batches import PackedBatches
from picollm_core.config import KGramConfig, LSTMConfig, TransformerConfig
from picollm_core.losses import next_token_loss
from picollm_core.models import build_model
from picollm_core.train import train

SCRIPT = Path(bench.__file__)


def example_row(name: str = "nucleus-peaked", figures: tuple[float, ...] = (12.0, 10.0, 30.0)) -> Row:
    sides = {"unit": "ms", "peer_is": "a sort", "ours_is": "no sort"}
    return compare(name, [4.0] * len(figures), [1.0] * len(figures), figures, **sides)


def test_every_row_has_a_target_and_every_target_a_benchmark():
    names = [name for group in bench.BENCHMARKS | bench.LONG for name in group]
    assert len(names) == len(set(names))
    assert set(names) == set(TARGETS)
    assert set(REASONS) <= set(TARGETS)


def test_a_target_bounds_from_the_side_it_says():
    assert Target(">=", 2.0).reached(2.0)
    assert not Target(">=", 2.0).reached(1.99)
    assert Target("<=", 0.02).reached(0.02)
    assert not Target("<=", 0.02).reached(0.021)


def test_a_row_reports_the_median_and_the_extremes():
    row = example_row().to_dict()
    assert (row["ratio"], row["spread"]) == (12.0, [10.0, 30.0])
    assert row["reached"] is True
    assert example_row(figures=(9.0, 9.5, 30.0)).to_dict()["reached"] is False


def test_a_row_without_measurements_is_refused():
    with pytest.raises(ValueError, match="nucleus-peaked has no measurements"):
        example_row(figures=())


def test_ratios_pair_measurements_of_one_repetition():
    assert ratios([4.0, 9.0], [2.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="argument 2"):
        ratios([1.0], [1.0, 2.0])


def test_sides_take_turns_after_their_warm_up():
    order: list[str] = []
    sides = {name: Side(lambda name=name: order.append(name), calls=2) for name in "ab"}
    seconds = in_turns(sides, repetitions=2, warm_up=1)
    assert "".join(order) == "ab" + "aabb" * 2
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_a_measurement_is_per_unit_of_work(monkeypatch):
    clock = iter([10.0, 34.0])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(clock))
    assert Side(lambda: None, units=4, calls=3).measure() == 2.0


def test_only_chooses_by_the_beginning_of_a_row_name():
    assert set(bench.select(["nucleus", "peak-transformer-pico-bf"])) == {
        ("nucleus-peaked",),
        ("nucleus-flat",),
        tuple(f"{kind}-transformer-pico-{p}" for kind in ("step", "peak") for p in ("float32", "bfloat16")),
    }
    assert bench.select([]) == bench.BENCHMARKS


def test_what_takes_minutes_is_measured_only_when_it_is_named():
    assert not bench.select([]).keys() & bench.LONG.keys()
    assert set(bench.select(["workbook"])) == {("workbook", "workbook-notebook")}
    assert set(bench.select(["tests", "import"])) == {("tests",), ("import",)}


def test_unusable_arguments_are_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(ValueError, match=r"no benchmark begins with 'sampling'.*nucleus-peaked"):
        bench.main(("sampling",), 1, tmp_path / "bench.json")
    with pytest.raises(ValueError, match="repetitions is 0"):
        bench.main((), 0, tmp_path / "bench.json")
    assert not list(tmp_path.iterdir())


def fake(monkeypatch, *names: str) -> None:
    benchmarks = {(name,): lambda repetitions, name=name: [example_row(name)] for name in names}
    monkeypatch.setattr(bench, "BENCHMARKS", benchmarks)
    monkeypatch.setattr(bench, "machine_peaks", lambda: {"matrix product float32 (GFLOP/s)": 200.0})


def test_the_result_file_has_the_agreed_schema_and_names_no_path(tmp_path, monkeypatch, capsys):
    fake(monkeypatch, "import", "nucleus-peaked")
    assert bench.main((), 3, tmp_path / "bench.json") == 0
    content = json.loads((tmp_path / "bench.json").read_text())
    assert set(content) == {"machine", "versions", "date", "machine_peaks", "rows"}
    assert content["machine_peaks"] == {"matrix product float32 (GFLOP/s)": 200.0}
    assert content["versions"]["torch"] == torch.__version__
    assert [row["name"] for row in content["rows"]] == ["nucleus-peaked", "import"]  # in the order of the targets
    for row in content["rows"]:
        assert {"name", "peer", "ours", "unit", "ratio", "spread", "target", "reached", "notes"} <= set(row)
    assert content["machine"]["torch"] == torch.__version__
    assert not any(str(value).startswith("/") for value in content["machine"].values())
    printed = capsys.readouterr().out
    first, *_, last = printed.splitlines()
    assert all(word in first for word in ("name", "peer", "ours", "ratio", "target", "verdict")) or "busy" in first
    assert "nucleus-peaked" in printed
    assert last == "1 of 2 reached"  # 12 is enough for the nucleus, but importing took 12 s


def test_a_missed_row_says_why_below_the_table_and_in_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(REASONS, "import", "the disk is slow")
    monkeypatch.setitem(REASONS, "nucleus-peaked", "a reason of old, since it is reached")
    fake(monkeypatch, "import", "loader", "nucleus-peaked")
    bench.main((), 3, tmp_path / "bench.json")
    rows = {row["name"]: row for row in json.loads((tmp_path / "bench.json").read_text())["rows"]}
    assert rows["import"]["reason"] == "the disk is slow"
    assert "reason" not in rows["loader"]
    assert "reason" not in rows["nucleus-peaked"]
    printed = capsys.readouterr().out
    assert "\nimport: the disk is slow\n" in printed
    assert "\nloader: missed; no reason recorded\n" in printed


def test_rows_measured_earlier_stay_when_only_some_are_measured_again(tmp_path, monkeypatch):
    output = tmp_path / "bench.json"
    fake(monkeypatch, "import", "loader")
    bench.main((), 3, output)
    fake(monkeypatch, "loader")
    bench.main(("loader",), 3, output)
    assert [row["name"] for row in json.loads(output.read_text())["rows"]] == ["import", "loader"]


def test_what_was_measured_is_kept_when_a_later_benchmark_fails(tmp_path, monkeypatch):
    fake(monkeypatch, "import")

    def fail(repetitions: int) -> list[Row]:
        raise RuntimeError("the sides differ")

    monkeypatch.setitem(bench.BENCHMARKS, ("loader",), fail)
    with pytest.raises(RuntimeError, match="the sides differ"):
        bench.main((), 3, tmp_path / "bench.json")
    assert [row["name"] for row in json.loads((tmp_path / "bench.json").read_text())["rows"]] == ["import"]


def test_rows_of_another_machine_do_not_stay(tmp_path, monkeypatch):
    output = tmp_path / "bench.json"
    fake(monkeypatch, "import", "loader")
    bench.main((), 3, output)
    monkeypatch.setattr(bench, "machine", lambda: {"processor": "another"})
    bench.main(("loader",), 3, output)
    assert [row["name"] for row in json.loads(output.read_text())["rows"]] == ["loader"]


def test_threads_are_as_before_after_a_benchmark():
    assert torch.get_num_threads() == 1, "what conftest.py asks for: a test before this one has left more"
    with measuring.two_threads():
        pass
    assert torch.get_num_threads() == 1


def test_the_script_runs_by_path_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(SCRIPT))
    with pytest.raises(ValueError, match="no benchmark begins with"):
        found["main"](("no such row",), 1)


TINY = {"vocab_size": 97, "block_size": 16, "n_embd": 8}


@pytest.mark.parametrize(
    "config", [TransformerConfig(**TINY), LSTMConfig(**TINY), KGramConfig(**TINY)], ids=lambda c: c.family
)
def test_the_plain_step_and_the_trainer_make_the_same_updates(config, monkeypatch):
    monkeypatch.setattr(training_steps, "BLOCK_SIZE", 16)
    monkeypatch.setattr(training_steps, "BATCH_SIZE", 4)
    store = training_steps.zipf_store(97, 2_000)
    plain = training_steps.new_plain_step(config, store)
    trainer = training_steps.new_trainer(config, "float32", store)
    for _ in range(3):
        assert trainer.advance()["loss"] == pytest.approx(plain.advance(), rel=1e-5)
    for ours, theirs in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_sides_with_different_losses_are_not_compared():
    training_steps.require_same_work({"plain": 4.0, "float32": 4.001})
    with pytest.raises(RuntimeError, match="do not compute the same loss"):
        training_steps.require_same_work({"plain": 4.0, "float32": 4.1})


def test_operations_are_those_that_torch_counts():
    """torch's own counter on the written-out model: all of its products, with attention over the whole square."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = TransformerConfig(vocab_size=97, block_size=16, n_embd=8, n_head=2, n_layer=3)
    model = build_model(config)
    idx = torch.zeros(2, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(idx).sum().backward()
    unseen = 6 * 2 * 3 * 8 * 2 * (16 * 16 - 16 * 17 / 2)  # what lies above the diagonal
    assert training_steps.matmul_flops(model, 2, 16) == counter.get_total_flops() - unseen


def test_operations_of_other_families_are_not_guessed():
    with pytest.raises(ValueError, match="not for family 'lstm'"):
        training_steps.matmul_flops(build_model(LSTMConfig(**TINY)), 2, 16)


def test_one_hot_layers_agree_on_outputs_and_gradients():
    config = KGramConfig(**TINY, k=3, embedding="onehot")
    layer, dense = onehot.equal_layers(config)
    window = onehot.windows(2, 5, config)
    outputs = [
        layer(window),
        onehot.onehot_tensor_layer(window, dense, config.vocab_size),
        onehot.python_loop_layer(window, dense, config.vocab_size),
    ]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-5, atol=1e-6)
    outputs[0].square().sum().backward()
    outputs[1].square().sum().backward()
    torch.testing.assert_close(dense.weight.grad.T, layer.weight.grad, rtol=1e-4, atol=1e-5)


def test_peaked_logits_have_nuclei_of_a_trained_models_size():
    sizes = [int((nucleus.top_p_filter(x, nucleus.P) > -torch.inf).sum()) for x in nucleus.peaked_logits()]
    assert min(sizes) >= 10
    assert max(sizes) <= 300


def test_the_sorting_peer_draws_from_the_same_nucleus():
    logits = nucleus.peaked_logits()[0][:, :500]
    inside = nucleus.top_p_filter(logits, nucleus.P) > -torch.inf
    generator = torch.Generator().manual_seed(0)
    drawn = {int(nucleus.sort_and_draw(logits, nucleus.P, generator)) for _ in range(400)}
    assert drawn <= set(inside[0].nonzero().flatten().tolist())


def test_the_peer_in_the_step_benchmark_scores_the_same_tokens_as_the_package():
    config = TransformerConfig(**TINY)
    store = training_steps.zipf_store(97, 2_000)
    model = build_model(config)
    idx, targets = PackedBatches(store, 16, 4).next_batch()
    step = training_steps.PlainStep(model, PackedBatches(store, 16, 4))
    expected = next_token_loss(model, idx, targets).item()
    assert step.advance() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ("start", "before its first line"),
        ("step 12", "after step 12"),
        ("save 14", "writing the checkpoint of step 14"),
    ],
)
def test_a_kill_is_described_by_where_it_struck(last, words, tmp_path):
    assert words in kill_and_resume.describe(last, tmp_path)
    assert "half a file" not in kill_and_resume.describe(last, tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "checkpoint.safetensors.1.tmp").touch()
    assert "half a file" in kill_and_resume.describe(last, tmp_path)


def test_the_comparison_after_kills_finds_equal_runs_equal_and_others_not(tmp_path, monkeypatch):
    monkeypatch.setenv("PICOLLM_CACHE", str(tmp_path / "cache"))
    small = {"max_steps": 2, "n_embd": 8, "sample_tokens": 2, "block_size": 16, "prompt": "1 2"}
    settings = kill_and_resume.SETTINGS | small

    def directory(folder: str, **changes: object) -> Path:
        run = train("kgram-pico", progress=False, runs_dir=tmp_path / folder, **(settings | changes))
        assert run.directory is not None
        return run.directory

    first, again, other = directory("a"), directory("b"), directory("c", seed=1)
    assert kill_and_resume.differences(first, again) == []
    found = kill_and_resume.differences(first, other)
    assert any(difference.startswith("weights") for difference in found)
    assert any(difference.startswith("history") for difference in found)
