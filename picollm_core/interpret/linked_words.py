"""Linked words (he and she, was and were) in the token vectors of several models: one recorded measurement a model."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import pandas as pd
import torch

from picollm_core.interpret.neighbours import anisotropy, similarity_statistics
from picollm_core.interpret.sae_study import json_rows, table_of
from picollm_core.interpret.subjects import Subject
from picollm_core.interpret.word_lists import WORD_PAIRS
from picollm_core.lab import Lab


def linked_words(lab: Lab, subjects: Iterable[Subject], n_shuffles: int = 1_000) -> pd.DataFrame:
    """The rows of neighbours.similarity_statistics of each subject's embedding, with `model`, its name, and `any_two`.

    `any_two` is the mean cosine of all pairs of tokens, beside which a cosine has to be read.
    """

    def compute(subject: Subject) -> list[dict[str, Any]]:
        model, tokenizer = subject.load()
        generator = torch.Generator().manual_seed(0)
        table = similarity_statistics(model, WORD_PAIRS, tokenizer, generator=generator, n_shuffles=n_shuffles)
        return json_rows(table.assign(any_two=anisotropy(model)["mean_cosine"]), 5)

    tables = []
    for subject in subjects:
        key = {"weights": subject.key, "n_shuffles": n_shuffles}
        rows = lab.measure("linked words", partial(compute, subject), **key)
        tables.append(table_of(rows).assign(model=subject.name))
    return pd.concat(tables, ignore_index=True)
