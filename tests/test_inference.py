"""What generation and evaluation ask of a model first."""

import pytest
import tiktoken
from torch import nn

from picollm_core.inference import evaluation_mode, require_same_vocabulary
from picollm_core.models import build_model
from tests.conftest import TINY


def test_evaluation_mode_gives_every_module_its_own_mode_back_even_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout())).train()
    model[1][0].eval()
    before = [module.training for module in model.modules()]
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        1 / 0  # noqa: B018
    assert [module.training for module in model.modules()] == before


def test_vocabularies_must_be_of_one_size():
    ranks = {bytes([i]): i for i in range(256)}
    tokenizer = tiktoken.Encoding("b", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 256})
    assert require_same_vocabulary(build_model(TINY["lstm"], vocab_size=257), tokenizer) is None
    with pytest.raises(ValueError, match="'b' has 257 tokens but the model has 258; use the tokenizer"):
        require_same_vocabulary(build_model(TINY["lstm"], vocab_size=258), tokenizer)
