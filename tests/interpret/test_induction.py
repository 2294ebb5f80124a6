"""Rows that repeat, runs that are watched, and the moment that is read off their rows."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from picollm_core.batches import PackedBatches
from picollm_core.config import LSTMConfig, TransformerConfig
from picollm_core.corpora import open_corpus
from picollm_core.interpret.attention_maps import repeated_tokens, repetition_loss
from picollm_core.interpret.induction import (
    LEAST_SCORE,
    WATCHED,
    InductionSetting,
    RepeatedRows,
    find_moment,
    frequent_tokens,
    induction_arms,
    induction_run,
    induction_study,
    moments,
    watch_heads,
)
from picollm_core.lab import Lab
from picollm_core.models import build_model
from picollm_core.profiles import PROFILES
from picollm_core.token_store import token_store
from picollm_core.tokenizers import load_tokenizer
