"""How good sampled stories are, beside what a human wrote: judged surprise, variety, repetition.

Every text continues the beginning of a held-out story, whose own continuation is the human text. A judge, a model that
wrote none of them, says how surprising each continuation is; the beginning is given and not scored. Texts are judged as
text: they are tokenised afresh, so an odd way of spelling a word in tokens costs nothing.
What the records say is worked out in `text_scores`. Shape legend: S stories, B batch, T time, C width, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import torch
from numpy.typing import NDArray

from picollm_core.config import SamplingConfig, require
from picollm_core.diversity import distinct_n, distinct_table, repetition_rate
from picollm_core.inference import evaluation_mode, require_same_vocabulary
from picollm_core.kneser_ney import KneserNey
from picollm_core.lab import Lab
from picollm_core.loading import SHIPPED_DIR, load_model
from picollm_core.losses import token_nll
from picollm_core.models.base import LanguageModel
from picollm_core.nucleus import top_p_filter
from picollm_core.runs import Run
from picollm_core.sampling import encode_prompt, generate_batch, stream
from picollm_core.token_store import token_store
from picollm_core.train import load_data, validation_texts

FAMILIES = ("kgram", "lstm", "transformer")
NGRAM = 4  # the order of the counting judge, and the n-grams whose repetition is counted
Texts = Sequence[str]


@dataclass(frozen=True)
class Source:
    """A trained model that is loaded only when asked for. `identity` changes whenever its weights could."""

    family: str
    identity: str
    origin: str
    load: Callable[[], tuple[LanguageModel, tiktoken.Encoding]]


def _shipped(family: str, folder: Path) -> Source:
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]
    return Source(family, digest, str(folder), lambda: load_model(folder))


def _trained(family: str, run: Run) -> Source:
    return Source(family, run.fingerprint, f"run of this profile, {run.summary['steps']:,} updates",
                  lambda: (run.load_model(), run.load_tokenizer()))  # fmt: skip


def generators(lab: Lab, prompt: str, folder: str | Path = SHIPPED_DIR) -> dict[str, Source]:
    """One model a family: the ones that ship in `folder` if all of them do, else this profile's smallest runs.

    The quick profile always takes its own runs, since it works on another text than the models that ship.
    `prompt` is that of the runs' samples and so part of their identity.
    """
    folders = {family: Path(folder) / family for family in FAMILIES}
    if lab.profile.name != "quick" and all((path / "model.safetensors").is_file() for path in folders.values()):
        return {family: _shipped(family, path) for family, path in folders.items()}
    return {family: _trained(family, lab.train(f"{family}-pico", prompt=prompt)) for family in FAMILIES}


def sampler_grid(sampler: str, values: Iterable[float]) -> dict[str, dict[str, Any]]:
    """Label -> fields of a SamplingConfig for each value of one sampler, nothing else truncated; 0 is greedy.

    `sampler` is top-p, top-k, min-p or temperature. ValueError for any other, and for values that it cannot take.
    """
    field = sampler.replace("-", "_")
    require(field in ("top_p", "top_k", "min_p", "temperature"),
            f"sampler is {sampler!r}; choose top-p, top-k, min-p or temperature")  # fmt: skip
    grid: dict[str, dict[str, Any]] = {}
    for value in values:
        number = int(value) if field == "top_k" else float(value)
        label = "greedy" if value == 0 else f"{sampler} {value:g}"
        grid[label] = {"temperature": 0.0} if value == 0 else {"top_p": 1.0, field: number}
        SamplingConfig(**grid[label])
    return grid


def beginnings(
    texts: Iterable[str], tokenizer: tiktoken.Encoding, *, stories: int, prompt_tokens: int, length: int
) -> list[tuple[str, str]]:
    """The first `stories` texts that are long enough, each as (beginning, what the human wrote next).

    A beginning has `prompt_tokens` tokens and ends at a word's end, what follows has `length`. ValueError for numbers
    below 1 and where too few texts are long enough.
    """
    for name, value in (("stories", stories), ("prompt_tokens", prompt_tokens), ("length", length)):
        require(value >= 1, f"{name} is {value}; it must be at least 1")
    found: list[tuple[str, str]] = []
    for text in texts:
        ids = tokenizer.encode_ordinary(text)
        if len(ids) < prompt_tokens + length:
            continue
        prompt, rest = tokenizer.decode(ids[:prompt_tokens]), tokenizer.decode(ids[prompt_tokens:][:length])
        if rest[0].isspace() and tokenizer.encode_ordinary(prompt) == ids[:prompt_tokens]:
            found.append((prompt, rest))
        if len(found) == stories:
            return found
    raise ValueError(
        f"{stories} stories of at least {prompt_tokens} + {length} tokens are needed but there are {len(found)}; "
        "ask for fewer or shorter ones"
    )


def continuations(
    model: LanguageModel, tokenizer: tiktoken.Encoding, prompts: Texts, *, length: int, seed: int = 0, **sampling: Any
) -> list[str]:
    """What `model` writes after each prompt: at most `length` tokens, up to its end-of-text token.

    Row r draws with seed + r, whatever the sampler, so that samplers are compared on the same random numbers.
    `sampling` are fields of a SamplingConfig. ValueErrors are those of `generate_batch`.
    """
    texts = generate_batch(model, tokenizer, prompts, max_new_tokens=length, seed=seed, **sampling)
    return [text[len(prompt) :] for prompt, text in zip(prompts, texts, strict=True)]


@torch.no_grad()
def judge_nats(
    model: LanguageModel,
    tokenizer: tiktoken.Encoding,
    prompts: Texts,
    texts: Texts,
    *,
    length: int,
    batch_size: int = 32,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Nats (S,) of the first `length` tokens of each text after its prompt, and how many tokens (S,) that were.

    Neither the prompt nor an end-of-text token is scored; an empty text has 0 tokens. ValueError when the lists differ
    in length, for a tokenizer of another vocabulary, and when prompt and text do not fit the model's window.
    """
    require(len(prompts) == len(texts), f"{len(prompts)} prompts but {len(texts)} texts; one prompt goes with each")
    require_same_vocabulary(model, tokenizer)
    rows = [(tokenizer.encode_ordinary(p), tokenizer.encode_ordinary(t)[:length])
            for p, t in zip(prompts, texts, strict=True)]  # fmt: skip
    longest = max(len(prompt) + len(text) for prompt, text in rows)
    limit = model.context_limit
    if limit is not None and longest > limit:
        raise ValueError(f"prompt and text have {longest} tokens but the judge's window holds {limit}; lower length")
    nats, device = np.zeros(len(rows)), model.head.weight.device
    with evaluation_mode(model):
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            width = max(len(prompt) + len(text) for prompt, text in batch)
            idx = torch.full((len(batch), width + 1), tokenizer.eot_token)  # (B, T + 1), padding comes last: unseen
            scored = torch.zeros(len(batch), width, dtype=torch.bool)  # (B, T)
            for row, (prompt, text) in enumerate(batch):
                idx[row, 1 : 1 + len(prompt) + len(text)] = torch.tensor(prompt + text)
                scored[row, len(prompt) : len(prompt) + len(text)] = True
            h, _ = model.hidden(idx[:, :-1].to(device), model.init_state(len(batch)))  # (B, T, C)
            loss, _ = token_nll(h[scored.to(device)], model.head.weight, idx[:, 1:][scored].to(device))
            owner = scored.nonzero()[:, 0].numpy()
            nats[first : first + len(batch)] = np.bincount(owner, loss.double().cpu().numpy(), len(batch))
    return nats, np.array([len(text) for _, text in rows])


def count_nats(
    counts: KneserNey, tokenizer: tiktoken.Encoding, prompts: Texts, texts: Texts, *, length: int
) -> NDArray[np.float64]:
    """`judge_nats` (S,) of a counting judge."""
    sums = []
    for prompt, text in zip(prompts, texts, strict=True):
        given, ids = tokenizer.encode_ordinary(prompt), tokenizer.encode_ordinary(text)[:length]
        nats = counts.token_nats([*given, *ids, tokenizer.eot_token])
        sums.append(float(nats[len(given) : len(given) + len(ids)].sum()))
    return np.array(sums)


@dataclass(frozen=True)
class QualityStudy:
    """Judges and held-out beginnings of one study; everything is loaded when first needed.

    `judge` is a run that generated none of the texts; its corpus gives the beginnings, and its training text the counts
    of a second judge, Kneser-Ney of order 4.
    """

    judge: Run
    stories: int
    prompt_tokens: int
    length: int

    @property
    def key(self) -> dict[str, Any]:
        """Everything that the measurements depend on, apart from the generator and its sampler."""
        return {"judge": self.judge.fingerprint, "stories": self.stories, "prompt_tokens": self.prompt_tokens,
                "length": self.length, "ngram": NGRAM}  # fmt: skip

    @cached_property
    def _tokenizer(self) -> tiktoken.Encoding:
        return self.judge.load_tokenizer()

    @cached_property
    def _model(self) -> LanguageModel:
        return self.judge.load_model()

    @cached_property
    def _counts(self) -> KneserNey:
        store = token_store(load_data(self.judge.config.data)[0], "train", self._tokenizer)
        return KneserNey(NGRAM, self._tokenizer.n_vocab).fit(store.tokens, store.offsets)

    @cached_property
    def _beginnings(self) -> list[tuple[str, str]]:
        texts = validation_texts(load_data(self.judge.config.data))
        return beginnings(texts, self._tokenizer, stories=self.stories, prompt_tokens=self.prompt_tokens,
                          length=self.length)  # fmt: skip

    def describe(self, texts: Texts) -> dict[str, Any]:
        """JSON record of one text a beginning: nats of both judges, tokens, repetition and variety of each text, and
        distinct-n of all texts together.

        Of a text's first length // 2 tokens, repetition is the share of 4-grams that occurred before and variety the
        share of different tokens; None for a shorter text. distinct-n, for n = 1 to 5, is that of the first
        stories * length // 2 tokens of all texts, None where they hold fewer.
        """
        prompts, half = [prompt for prompt, _ in self._beginnings], self.length // 2
        ids = [self._tokenizer.encode_ordinary(text)[: self.length] for text in texts]
        nats, tokens = judge_nats(self._model, self._tokenizer, prompts, texts, length=self.length)
        counted = count_nats(self._counts, self._tokenizer, prompts, texts, length=self.length)
        budget = self.stories * half
        return {
            "nats": nats.round(3).tolist(),
            "count_nats": counted.round(3).tolist(),
            "tokens": tokens.tolist(),
            "repetition": [round(repetition_rate([i], NGRAM, half), 4) if len(i) >= half else None for i in ids],
            "variety": [round(distinct_n([i], 1, half), 4) if len(i) >= half else None for i in ids],
            "distinct": list(distinct_table(ids, budget).values()) if sum(map(len, ids)) >= budget else None,
        }

    def human(self) -> dict[str, Any]:
        """The record of what humans wrote after the beginnings."""
        return self.describe([text for _, text in self._beginnings])

    def measure(self, source: Source, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Label -> record of what `source` writes after the beginnings with each sampler of a `sampler_grid`."""
        model, tokenizer = source.load()
        prompts = [prompt for prompt, _ in self._beginnings]
        return {
            label: self.describe(continuations(model, tokenizer, prompts, length=self.length, **fields))
            for label, fields in settings.items()
        }


@torch.no_grad()
def next_tokens(
    model: LanguageModel, tokenizer: tiktoken.Encoding, prompt: str, *, p: float, top: int = 40
) -> dict[str, Any]:
    """The likeliest tokens after a prompt with their probabilities, and the size of the nucleus at `p`.

    JSON: "probabilities" and "tokens", likeliest first, at least `top` of them and the whole nucleus; "nucleus".
    """
    ids = torch.tensor([encode_prompt(model, tokenizer, prompt)])  # (1, T)
    with evaluation_mode(model):
        h, _ = model.hidden(ids.to(model.head.weight.device), model.init_state(1))
        logits = model.head(h[0, -1]).double()  # (V,)
    size = int((top_p_filter(logits, p) > -torch.inf).sum())
    largest = torch.softmax(logits, -1).topk(min(max(top, size), len(logits)))
    pieces = [tokenizer.decode([token]) for token in largest.indices.tolist()]
    return {"probabilities": [round(x, 6) for x in largest.values.tolist()], "tokens": pieces, "nucleus": size}


@torch.no_grad()
def nucleus_sizes(
    model: LanguageModel, tokenizer: tiktoken.Encoding, prompt: str, ids: Sequence[int], p: float
) -> list[int]:
    """How many tokens the nucleus held when each of `ids` was next after the prompt; whoever wrote them.

    For a text that the model itself sampled at this p these are the sizes that it was drawn from. ValueError when
    prompt and text do not fit the window.
    """
    given = encode_prompt(model, tokenizer, prompt)
    limit, needed = model.context_limit, len(given) + len(ids) - 1
    require(limit is None or needed <= limit, f"prompt and text have {needed} tokens but the window holds {limit}")
    idx = torch.tensor([[*given, *ids][:-1]])  # (1, T)
    with evaluation_mode(model):
        h, _ = model.hidden(idx.to(model.head.weight.device), model.init_state(1))
        logits = model.head(h[0, len(given) - 1 :])  # (len(ids), V)
    return (top_p_filter(logits, p) > -torch.inf).sum(-1).tolist()


def follow_story(
    sources: Mapping[str, Source], writer: str, prompt: str, *, p: float, tokens: int, seed: int = 0
) -> dict[str, Any]:
    """A text that the source `writer` samples at top-p `p`, and what every source's nucleus was at each of its tokens.

    JSON: "tokens" are the pieces of text, "sizes" maps a family to as many nucleus sizes. ValueError for another
    vocabulary than the writer's, and where prompt and text do not fit a window.
    """
    require(writer in sources, f"writer is {writer!r}; choose one of {', '.join(sources)}")
    model, tokenizer = sources[writer].load()
    written = list(stream(model, tokenizer, prompt, max_new_tokens=tokens, top_p=p, seed=seed))
    ids = [token.id for token in written]
    sizes = {}
    for family, source in sources.items():
        own, own_tokenizer = source.load()
        require_same_vocabulary(own, tokenizer)
        sizes[family] = nucleus_sizes(own, own_tokenizer, prompt, ids, p)
    return {"tokens": [tokenizer.decode([token]) for token in ids], "sizes": sizes}


def sample_texts(
    source: Source, prompt: str, settings: Mapping[str, Mapping[str, Any]], *, length: int, seed: int = 0
) -> dict[str, str]:
    """Label -> what `source` writes after one prompt with each sampler of a `sampler_grid`, from the same seed."""
    model, tokenizer = source.load()
    return {
        label: continuations(model, tokenizer, [prompt], length=length, seed=seed, **fields)[0]
        for label, fields in settings.items()
    }
