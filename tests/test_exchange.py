"""Models that travel to transformers and back compute the same; what cannot travel is refused before it leaves."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from picollm_core import generate, load_tokenizer
from picollm_core.config import KGramConfig, LSTMConfig, TransformerConfig
from picollm_core.exchange import from_transformers, named_tokenizer, to_transformers
from picollm_core.models import build_model
from tests.exchange_models import EXPORTABLE, random_ids, random_model, randomise

transformers = pytest.importorskip("transformers", reason="the exchange is tested against transformers itself")
transformers.utils.logging.disable_progress_bar()

CLASSES = {"gpt2": "GPT2LMHeadModel", "mingpt": "GPT2LMHeadModel", "gpt": "GptOssForCausalLM"}
GPT2 = {"vocab_size": 61, "n_positions": 48, "n_embd": 16, "n_layer": 2, "n_head": 4}
LLAMA = {
    "vocab_size": 61,
    "max_position_embeddings": 48,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "rms_norm_eps": 1e-5,
}
GPT_OSS = LLAMA | {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "sliding_window": 7,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1000.0,
        "factor": 8.0,
        "truncate": False,
        "original_max_position_embeddings": 16,
    },
}
BUILT_THERE = {
    "gpt2": transformers.GPT2Config(**GPT2),
    "gpt2-untied": transformers.GPT2Config(
        **GPT2,
        tie_word_embeddings=False,
        n_inner=20,
        activation_function="gelu_pytorch_tanh",
        reorder_and_upcast_attn=True,
    ),
    "llama": transformers.LlamaConfig(**LLAMA),
    "llama-gqa": transformers.LlamaConfig(
        **LLAMA, num_key_value_heads=2, head_dim=6, tie_word_embeddings=True, hidden_act="swish", rope_theta=500_000.0
    ),
    "llama-attention-bias": transformers.LlamaConfig(**LLAMA, attention_bias=True, attention_dropout=0.1),
    "llama-mlp-bias": transformers.LlamaConfig(**LLAMA, mlp_bias=True),
    "gpt_oss": transformers.GptOssConfig(**GPT_OSS),
    "gpt_oss-no-attention-bias": transformers.GptOssConfig(
        **GPT_OSS, attention_bias=False, layer_types=["full_attention"] * 2
    ),
}


def logits_there(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids).logits


def logits_here(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids)


def built_there(name: str) -> torch.nn.Module:
    model = transformers.AutoModelForCausalLM.from_config(BUILT_THERE[name]).eval()
    randomise(model)
    return model


def edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def folder(tmp_path):
    """A small gpt2 folder that transformers itself wrote."""
    built_there("gpt2").save_pretrained(tmp_path / "there")
    return tmp_path / "there"


@pytest.mark.parametrize("name", EXPORTABLE)
def test_transformers_loads_what_was_exported_with_equal_logits(name, tmp_path):
    model, ids = random_model(EXPORTABLE[name]), random_ids()
    written = to_transformers(model, tmp_path)
    assert written == CLASSES.get(name.split("-")[0], "LlamaForCausalLM")
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded).__name__ == written
    assert not any(info.values())
    expected = logits_here(model, ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits_there(loaded, ids), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("resaved", [False, True], ids=["direct", "saved again by transformers"])
@pytest.mark.parametrize("name", EXPORTABLE)
def test_what_was_exported_comes_back_bit_for_bit(name, resaved, tmp_path):
    model, ids = random_model(EXPORTABLE[name].replace(dropout=0.2)), random_ids()
    to_transformers(model, tmp_path / "a")
    if resaved:
        there = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
        there.save_pretrained(tmp_path / "b")
    back = from_transformers(tmp_path / ("b" if resaved else "a"))
    assert back.config == model.config
    assert not back.training
    assert torch.equal(logits_here(back, ids), logits_here(model, ids))
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("name", BUILT_THERE)
def test_what_transformers_built_is_read_with_equal_logits(name, tmp_path):
    there, ids = built_there(name), random_ids()
    there.save_pretrained(tmp_path)
    here = from_transformers(tmp_path)
    expected = logits_there(there, ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits_here(here, ids), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gpt-oss"])
def test_greedy_text_is_equal(name, tmp_path):
    tokenizer = load_tokenizer("stories-4k")
    model = random_model(EXPORTABLE[name].replace(vocab_size=tokenizer.n_vocab))
    to_transformers(model, tmp_path, "stories-4k")
    there = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert there.generation_config.eos_token_id == tokenizer.eot_token
    prompt = "Once upon a time"
    ids = torch.tensor([[tokenizer.eot_token, *tokenizer.encode(prompt)]])  # as our stories begin
    continued = there.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30, pad_token_id=0
    )
    ours = generate(model, tokenizer, prompt, max_new_tokens=30, temperature=0.0)
    assert len(continued[0]) == ids.size(1) + 30
    assert tokenizer.decode(continued[0, 1:].tolist()) == ours


def test_streaming_far_past_the_window_agrees_with_transformers(tmp_path):
    model, ids = random_model(EXPORTABLE["gpt-oss"]), random_ids(1, 150)
    to_transformers(model, tmp_path)
    there = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        _, state = model.hidden(ids[:, :90])
        rest, _ = model.hidden(ids[:, 90:], state)
        streamed = model.head(rest)
    torch.testing.assert_close(streamed, logits_there(there, ids)[:, 90:], rtol=0, atol=5e-5)


def test_biases_that_transformers_trained_are_kept(tmp_path):
    model = random_model(EXPORTABLE["gpt2-no-bias-narrow"])
    to_transformers(model, tmp_path)
    there = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.nn.init.normal_(there.transformer.h[1].mlp.c_fc.bias)
    there.save_pretrained(tmp_path)
    back = from_transformers(tmp_path)
    assert back.config == model.config.replace(bias=True)
    torch.testing.assert_close(logits_here(back, random_ids()), logits_there(there, random_ids()), rtol=0, atol=1e-5)


def test_a_configuration_that_was_changed_afterwards_outweighs_the_remembered_one(tmp_path):
    to_transformers(random_model(EXPORTABLE["llama3"]), tmp_path)
    edit_config(tmp_path, rope_theta=1000.0, rope_parameters={"rope_type": "default", "rope_theta": 1000.0})
    back = from_transformers(tmp_path)
    assert (back.config.rope_base, back.config.rope_pairs) == (1000.0, "half")
    there = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_here(back, random_ids()), logits_there(there, random_ids()), rtol=0, atol=1e-5)


def test_weights_in_shards_and_in_bfloat16_are_read_in_float32(tmp_path):
    there = built_there("llama-gqa").bfloat16()
    there.save_pretrained(tmp_path, max_shard_size="8KB")
    assert not (tmp_path / "model.safetensors").exists()
    here = from_transformers(tmp_path)
    assert {parameter.dtype for parameter in here.parameters()} == {torch.float32}
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(logits_here(here, random_ids()), logits_there(wide, random_ids()), rtol=0, atol=1e-5)


def test_files_like_those_first_published_for_gpt2_are_read(folder):
    there = transformers.AutoModelForCausalLM.from_pretrained(folder)
    weights = {name.removeprefix("transformer."): x for name, x in load_file(folder / "model.safetensors").items()}
    weights["h.0.attn.bias"] = torch.ones(1, 1, 48, 48).tril()
    weights["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, folder / "model.safetensors")
    torch.testing.assert_close(logits_here(from_transformers(folder), random_ids()), logits_there(there, random_ids()))


def test_reading_leaves_the_random_state_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    from_transformers(folder)
    assert torch.equal(torch.rand(3), expected)


def test_the_tokenizer_travels_by_name(folder, tmp_path):
    model = random_model(EXPORTABLE["llama3"].replace(vocab_size=4096))
    to_transformers(model, tmp_path / "named", "stories-4k")
    assert named_tokenizer(tmp_path / "named") == "stories-4k"
    assert "load_tokenizer('stories-4k')" in (tmp_path / "named" / "README.md").read_text()
    assert named_tokenizer(folder) is None
    edit_config(folder, vocab_size=50_257)
    assert named_tokenizer(folder) == "gpt2"


@pytest.mark.parametrize("config", [LSTMConfig(vocab_size=61), KGramConfig(vocab_size=61)], ids=lambda c: c.family)
def test_other_families_are_refused_by_name(config, tmp_path):
    with pytest.raises(ValueError, match=rf"family='{config.family}' has no class in transformers"):
        to_transformers(build_model(config), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_without_a_class_there_is_refused_before_anything_is_written(tmp_path):
    model = build_model(TransformerConfig(vocab_size=61, n_embd=16, n_head=2, position="alibi"))
    with pytest.raises(ValueError, match=r"position='alibi'"):
        to_transformers(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_of_another_vocabulary_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"vocab_size=61, but the tokenizer 'stories-4k' has 4096 tokens"):
        to_transformers(random_model(EXPORTABLE["gpt2"]), tmp_path / "new", "stories-4k")
    assert not (tmp_path / "new").exists()


def test_a_model_in_our_own_layout_is_not_overwritten(tmp_path):
    model = random_model(EXPORTABLE["gpt2"])
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"holds a model in the layout of picollm.*choose another folder"):
        to_transformers(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_failure_leaves_the_older_files_as_they_were(tmp_path, monkeypatch):
    to_transformers(random_model(EXPORTABLE["gpt2"]), tmp_path)
    (tmp_path / "README.md").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(*_args, **_options):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("picollm_core.exchange.safetensors.torch.save_file", full_disk)
        with pytest.raises(OSError, match="no space left"):
            to_transformers(random_model(EXPORTABLE["llama3"]), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    to_transformers(random_model(EXPORTABLE["llama3"]), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not os.path.exists(tmp_path / ".saving")


def _damage(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def _index(folder, **files):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def _quantise(folder):
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"].to(torch.int8)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: _damage(folder, "config.json"), r"config\.json cannot be read: "),
        (lambda folder: (folder / "config.json").write_text("[1]"), r"config\.json holds a list where a table"),
        (lambda folder: (folder / "config.json").unlink(), r"is not a folder of transformers: it has no config\.json"),
        (lambda folder: _damage(folder, "model.safetensors"), r"model\.safetensors cannot be read as weights: "),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            r"has no model\.safetensors; save it with",
        ),
        (lambda folder: _index(folder), r"index\.json names no files of weights"),
        (lambda folder: _index(folder, a="../model.safetensors"), r"names '\.\./model\.safetensors', .* outside"),
        (lambda folder: _index(folder, a="lost.safetensors"), r"lost\.safetensors cannot be read as weights"),
        (_quantise, r"transformer\.wpe\.weight in .* holds torch\.int8"),
        (
            lambda folder: edit_config(folder, n_layer=3),
            r"do not fit its config\.json: .*h\.2\..* missing",
        ),
        (
            lambda folder: edit_config(folder, n_layer=1),
            r"do not fit its config\.json: .*h\.1\..* not part of",
        ),
        (
            lambda folder: edit_config(folder, model_type="bert"),
            r"config\.json cannot be read as .* is 'bert'",
        ),
    ],
)
def test_a_folder_that_cannot_be_read_is_named_with_the_reason(spoil, message, folder):
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        from_transformers(folder)
    assert str(folder) in str(error.value)
