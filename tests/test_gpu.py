"""On a CUDA GPU: the training of the CPU, generation, checkpoints that move, bfloat16, compiled models.

Skipped where there is no GPU. Nothing here depends on how fast it is.
"""

import math

import pytest
import torch

from picollm_core.checkpoints import load_checkpoint, save_checkpoint
from picollm_core.devices import device_name, memory_mb, pick_device, pick_precision, to_device
from picollm_core.evaluate import evaluate
from picollm_core.models import build_model
from picollm_core.sampling import continue_batch
from tests.conftest import TINY, VOCAB
from tests.test_trainer import BYTES, trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

FAMILIES = ["kgram-learned", "kgram-onehot", "lstm", "transformer-rope-gqa", "transformer-delta", "transformer-gpt-oss"]
STEPS = 5


@pytest.fixture(autouse=True)
def _exact_float32(monkeypatch):
    """No TF32 in cuDNN's LSTM, which would hide what is compared here."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def losses(t, steps=STEPS):
    return [t.advance()["loss"] for _ in range(steps)]


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_training_in_float32_equals_that_on_the_cpu(kind, optimizer, padded):
    here, there = (trainer(kind, padded=padded, optimizer=optimizer, device=name) for name in ("cpu", "cuda"))
    torch.testing.assert_close(losses(there), losses(here), rtol=1e-3, atol=1e-3)
    assert {p.device.type for p in there.model.parameters()} == {"cuda"}


@pytest.mark.parametrize("kind", FAMILIES)
def test_bfloat16_trains_to_about_the_same_losses_and_keeps_float32_weights(kind):
    exact, rounded = trainer(kind, device="cuda"), trainer(kind, device="cuda", precision="bfloat16")
    torch.testing.assert_close(losses(rounded), losses(exact), rtol=0.02, atol=0.02)
    assert {p.dtype for p in rounded.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["kgram-learned", "lstm", "transformer-rope-gqa"])
def test_a_compiled_model_trains_to_the_same_losses(kind):
    plain, compiled = trainer(kind, device="cuda"), trainer(kind, device="cuda", compile=True)
    torch.testing.assert_close(losses(compiled), losses(plain), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_a_checkpoint_goes_on_on_another_device(tmp_path, first, second, optimizer):
    whole = trainer("transformer", device="cpu", optimizer=optimizer)
    expected = losses(whole, 2 * STEPS)
    begun = trainer("transformer", device=first, optimizer=optimizer)
    before = losses(begun)
    save_checkpoint(tmp_path / "checkpoint", begun.model, begun.optimizers, begun.progress())
    resumed = trainer("transformer", device=second, optimizer=optimizer)
    resumed.restore(load_checkpoint(tmp_path / "checkpoint", resumed.model, resumed.optimizers))
    torch.testing.assert_close(before + losses(resumed), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", TINY)
def test_logits_and_streaming_equal_those_of_the_cpu(kind):
    torch.manual_seed(0)
    model = build_model(TINY[kind]).eval()
    idx = torch.randint(VOCAB, (2, 20))
    with torch.no_grad():
        expected = model(idx)
        model.to("cuda")
        first, state = model.hidden(idx[:, :13].cuda(), model.init_state(2))
        second, _ = model.hidden(idx[:, 13:].cuda(), state)
        streamed = model.head(torch.cat([first, second], dim=1))
    torch.testing.assert_close(streamed.cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_p": 0.8}, {"top_k": 5, "min_p": 0.01}], ids=str)
@pytest.mark.parametrize("family", ["kgram-learned", "lstm", "transformer"])
def test_generation_draws_the_tokens_of_the_cpu(family, options):
    torch.manual_seed(0)
    model = build_model(TINY[family].replace(vocab_size=BYTES.n_vocab)).double().eval()  # no tie is broken by rounding
    prompts, settings = ["The cat", "A dog ran"], {"max_new_tokens": 20, "seed": 3, **options}
    expected = continue_batch(model, BYTES, prompts, **settings)
    assert continue_batch(model.to("cuda"), BYTES, prompts, **settings) == expected


def test_evaluation_equals_that_of_the_cpu():
    torch.manual_seed(0)
    model = build_model(TINY["transformer"].replace(vocab_size=BYTES.n_vocab))
    texts = ["The cat ran home.", "A dog saw a boat and a long, long river."]
    here, there = (evaluate(model.to(name), BYTES, texts, n_bootstrap=1) for name in ("cpu", "cuda"))
    assert math.isclose(here.nll, there.nll, rel_tol=1e-4)
    assert here.n_tokens == there.n_tokens


def test_tensors_are_copied_through_pinned_memory_unchanged():
    idx = torch.arange(1_000).view(10, 100)
    (moved,) = to_device(torch.device("cuda"), idx[2:5])
    assert moved.device.type == "cuda"
    assert torch.equal(moved.cpu(), idx[2:5])


def test_the_gpu_is_chosen_named_and_measured():
    device = pick_device("auto")
    assert device.type == "cuda"
    assert device_name(device) == torch.cuda.get_device_name()
    assert pick_precision("auto", device) in (torch.bfloat16, torch.float32)
    before = memory_mb(device)
    block = torch.ones(25_000_000, device=device)
    assert memory_mb(device) >= max(before, block.nbytes / 1e6)
