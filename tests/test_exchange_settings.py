"""RoPE's settings under the names of transformers, old and new, and the kinds of RoPE that are refused."""

import pytest

from picollm_core.exchange_settings import read_rope, rope_misfits, whole, write_rope
from tests.exchange_models import EXPORTABLE

YARN = {"rope_type": "yarn", "factor": 4.0, "truncate": False, "original_max_position_embeddings": 16}


def read(**settings) -> dict:
    return read_rope(settings, 10_000.0, 64, {})


def test_plain_rope_is_read_under_old_and_new_names():
    expected = {"position": "rope", "block_size": 64, "rope_base": 500.0}
    assert read(rope_theta=500.0) == expected
    assert read(rope_theta=500.0, rope_scaling=None) == expected
    assert read(rope_parameters={"rope_type": "default", "rope_theta": 500.0}) == expected
    assert read() == expected | {"rope_base": 10_000.0}


def test_yarn_is_read_under_old_and_new_names():
    expected = {"position": "rope", "block_size": 64, "rope_base": 500.0, "yarn_factor": 4.0, "yarn_length": 16}
    assert read(rope_parameters=YARN | {"rope_theta": 500.0}) == expected
    assert read(rope_theta=500.0, rope_scaling=YARN) == expected
    old = {"type" if key == "rope_type" else key: value for key, value in YARN.items()}
    assert read(rope_theta=500.0, rope_scaling=old | {"attention_factor": 1.138629436, "beta_fast": 32}) == expected
    assert read(rope_theta=500.0, rope_scaling=YARN | {"original_max_position_embeddings": None})["yarn_length"] == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type is 'llama3'.*'default' or 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\]"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "settings of its own for full_attention"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0\.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, r"partial_rotary_factor is 0\.25"),
        ({"rope_theta": "big"}, "rope_theta is 'big'"),
        ({"max_position_embeddings": None}, "max_position_embeddings is None"),
        ({"rope_scaling": YARN | {"factor": None}}, "factor is None"),
        ({"rope_scaling": YARN | {"truncate": True}}, "truncate is True"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "truncate is True"),
        ({"rope_scaling": YARN | {"beta_fast": 16}}, "beta_fast is 16"),
        ({"rope_scaling": YARN | {"beta_slow": 2}}, "beta_slow is 2"),
        ({"rope_scaling": YARN | {"mscale": 0.7}}, r"mscale is 0\.7"),
        ({"rope_scaling": YARN | {"attention_factor": 1.0}}, r"attention_factor is 1\.0.*1\.13863 for factor=4"),
        ({"rope_scaling": YARN | {"attention_factor": "1"}}, "attention_factor is '1'"),
    ],
    ids=str,
)
def test_other_kinds_of_rope_are_refused_with_key_and_value(settings, message):
    with pytest.raises(ValueError, match=message):
        read(**settings)


@pytest.mark.parametrize("name", ["llama3", "llama-yarn", "gpt-oss"])
def test_what_is_written_is_read_again(name):
    config = EXPORTABLE[name]
    fields = read(**write_rope(config))
    fields.pop("block_size")
    assert config.replace(**fields) == config


def test_yarn_that_transformers_computes_in_another_way_is_a_misfit():
    config = EXPORTABLE["gpt-oss"]
    assert rope_misfits(config) == {}
    for changes in ({"yarn_length": 3}, {"yarn_length": 10**6, "rope_base": 2.0}):
        assert list(rope_misfits(config.replace(**changes))) == ["yarn_length"]
        assert rope_misfits(config.replace(**changes, yarn_factor=1.0)) == {}


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None, [1]])
def test_sizes_are_whole_numbers(value):
    with pytest.raises(ValueError, match="size is "):
        whole({"size": value}, "size", 1)
