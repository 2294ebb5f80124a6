"""What mistakes of measuring do to real models: leaks, rows never read, one-batch metrics, wrong nuclei, one update."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch

from picollm_core.batches import PackedBatches
from picollm_core.config import KGramConfig, LSTMConfig, ModelConfig, TrainConfig
from picollm_core.defect_measures import (
    DrawnRows,
    batch_scores,
    drawn_unseen_share,
    nucleus_errors,
    pooled_distinct,
    unseen_share,
)
from picollm_core.defect_runs import KGRAM_RATE, plan
from picollm_core.defects import HELD_OUT_BATCHES, REPORTING_SEED, recorded_defect, reported_scores
from picollm_core.evaluate import encode_stories
from picollm_core.inference import evaluation_mode
from picollm_core.interpret.subjects import Subject, saved_subject
from picollm_core.lab import Lab
from picollm_core.loading import SHIPPED_DIR
from picollm_core.models import LanguageModel, build_model
from picollm_core.position_study import drawn_diversity
from picollm_core.preset_study import update_seconds
from picollm_core.runs import Run
from picollm_core.samples import sample_tokens
from picollm_core.token_store import TokenStore, token_store
from picollm_core.tokenizers import load_tokenizer
from picollm_core.trainer import Trainer, seeded
from picollm_core.verdict_arms import COUNTS_AND_LSTM, Trained, settings, tuned_runs

FEW_STORIES = 128
LEAK_SHOWN = ("train", "drawn", "held out")
PROMPT = "Once upon a time, there was a very"
STARTER_RATE = 0.001  # Adam's in the course's starter code
NUCLEI = (0.8, 0.95, 1.0)
SAMPLE_LENGTHS = (25, 50, 100, 200)
SAMPLES = 12
PAGE_BLOCK, PAGE_ROWS = 8, 7
"""Windows of 8 tokens, 7 of them: the smallest batch in which an accuracy of 73.21% can be counted."""


def leak_table(lab: Lab) -> pd.DataFrame:
    """A k-gram trained over and over on few stories whose rows are drawn: losses in nats per token, a row a seed.

    "train" is on rows drawn as in training; "drawn" is a validation loss by random_split over a dataset that draws a
    row whatever the index, so from the same rows; "held out" is on windows of stories that were not trained on.
    """
    given = settings(lab)

    def compute(seed: int) -> dict[str, float]:
        size, rows = given["block_size"], given["batch_size"]
        tokenizer, corpus = load_tokenizer(lab.profile.data.tokenizer), lab.corpus()
        whole = token_store(corpus, "train", tokenizer)
        few = TokenStore(whole.tokens[: whole.offsets[FEW_STORIES]], whole.offsets[: FEW_STORIES + 1], n_bytes=0)
        train = TrainConfig(max_steps=given["max_steps"], batch_size=rows, learning_rate=KGRAM_RATE, seed=seed)
        config = KGramConfig(n_embd=32, vocab_size=tokenizer.n_vocab, block_size=size)
        with seeded(seed):
            trainer = Trainer(build_model(config), DrawnRows(few, size, rows, seed), train)
            while trainer.step < trainer.total_steps:
                trainer.advance()
        held_out = PackedBatches(token_store(corpus, "validation", tokenizer), size, rows, REPORTING_SEED)
        sources = (DrawnRows(few, size, rows, seed), DrawnRows(few, size, rows, REPORTING_SEED), held_out)
        scores = (reported_scores(trainer.model, source, HELD_OUT_BATCHES)[0] for source in sources)
        return dict(zip(LEAK_SHOWN, scores, strict=True)) | {"epochs": trainer.batches.epoch}

    fixed = {"stories": FEW_STORIES, "batches": HELD_OUT_BATCHES, "rate": KGRAM_RATE, "settings": given}
    text = lab.profile.data.fingerprint()
    found = [{"seed": s} | lab.measure("leaked validation", lambda s=s: compute(s), seed=s, text=text, **fixed)  # type: ignore[misc]
             for s in plan(lab).seeds]  # fmt: skip
    return pd.DataFrame(found)


def unseen_table(lab: Lab, rows: int = 40_000, epochs: tuple[int, ...] = (1, 2, 3)) -> pd.DataFrame:
    """Share of `rows` windows that drawing leaves out, by epochs: columns epochs, expected, low and high over seeds.

    Visiting every row leaves out none. A loader's number of windows hardly matters.
    """
    seeds = plan(lab).seeds
    counted = {n: [drawn_unseen_share(rows, n, seed) for seed in seeds] for n in epochs}
    return pd.DataFrame(
        {"epochs": n, "expected": unseen_share(rows, n), "low": min(own), "high": max(own)}
        for n, own in counted.items()
    )


def drawn_rows_table(lab: Lab, stories: int = 1_500) -> pd.DataFrame:
    """One pass over `stories` stories, every row once against as many rows drawn: columns way, seed, alone (nats)."""
    given = settings(lab) | {"learning_rate": KGRAM_RATE, "limit": min(stories, 400 * len(plan(lab).seeds))}
    given |= {"max_steps": None, "epochs": 1.0}
    ways = {"every row once": "none", "drawn rows": "drawn rows"}
    return pd.DataFrame(
        {
            "way": way,
            "seed": seed,
            "alone": recorded_defect(lab, defect, KGramConfig(n_embd=32), seed=seed, **given)["alone"],
        }
        for way, defect in ways.items()
        for seed in plan(lab).seeds
    )


def shipped_subjects(lab: Lab) -> dict[str, Subject]:
    """The three models that ship with the project, and the lab's text."""
    names = {"k-gram": "kgram", "LSTM": "lstm", "Transformer": "transformer"}
    return {name: saved_subject(SHIPPED_DIR / folder, lab.profile.data, name) for name, folder in names.items()}


def _on_shipped(lab: Lab, name: str, compute: Callable[[LanguageModel, Any], Any], **given: Any) -> dict[str, Any]:
    """What `compute(model, tokenizer)` says of every shipped model, recorded by the lab."""
    return {
        family: lab.measure(name, lambda s=subject: compute(*s.load()), **subject.identity, **given)  # type: ignore[misc]
        for family, subject in shipped_subjects(lab).items()
    }


def wrong_nuclei(lab: Lab, p: float = 0.9, stories: int = 60, places: int = 64) -> pd.DataFrame:
    """`nucleus_errors` of the shipped models on held-out stories: columns model, mistake, affected, changed, greedy."""
    stories = stories if len(plan(lab).seeds) > 1 else 5

    def compute(model: LanguageModel, tokenizer: Any) -> dict[str, dict[str, float]]:
        texts = list(lab.corpus().texts("validation"))[:stories]
        return nucleus_errors(model, encode_stories(texts, tokenizer), p, places)

    found = _on_shipped(lab, "wrong nuclei", compute, p=p, stories=stories, places=places)
    rows = [{"model": m, "mistake": name} | own for m, both in found.items() for name, own in both.items()]
    return pd.DataFrame(rows)


def one_batch_table(lab: Lab, batches: int = 500) -> pd.DataFrame:
    """Loss and accuracy of single batches of 56 held-out tokens in windows of 8, by shipped model.

    Columns model, batches, accuracy (mean), low and high (2.5th and 97.5th percentile of single batches), best,
    loss (mean), loss_low, loss_high.
    """
    batches = batches if len(plan(lab).seeds) > 1 else 30

    def compute(model: LanguageModel, tokenizer: Any) -> dict[str, float]:
        store = token_store(lab.corpus(), "validation", tokenizer)
        found = pd.DataFrame(batch_scores(model, PackedBatches(store, PAGE_BLOCK, PAGE_ROWS, 0), batches))
        right, loss = found["accuracy"], found["loss"]
        ends = {"low": right.quantile(0.025), "high": right.quantile(0.975), "best": right.max()}
        losses = {"loss": loss.mean(), "loss_low": loss.quantile(0.025), "loss_high": loss.quantile(0.975)}
        return {name: round(float(v), 4) for name, v in ({"accuracy": right.mean()} | ends | losses).items()}

    found = _on_shipped(lab, "one batch", compute, batches=batches, block=PAGE_BLOCK, rows=PAGE_ROWS)
    return pd.DataFrame({"model": name, "batches": batches} | own for name, own in found.items())


def pooled_table(lab: Lab) -> pd.DataFrame:
    """Distinct-2 of all samples pooled: columns model (shipped), length (most tokens of a sample), seed, distinct."""
    seeds = plan(lab).seeds
    longest = max(SAMPLE_LENGTHS)

    def compute(model: LanguageModel, tokenizer: Any) -> list[dict[str, float]]:
        rows = []
        for seed in seeds:
            drawn = sample_tokens(model, tokenizer, prompt=PROMPT, budget=SAMPLES * longest, max_new_tokens=longest,
                                  top_p=0.95, seed=1_000 * seed)  # fmt: skip
            for length in SAMPLE_LENGTHS:
                value = pooled_distinct([sample[:length] for sample in drawn[:SAMPLES]], 2)
                rows.append({"seed": seed, "length": length, "distinct": round(value, 4)})
        return rows

    given = {"prompt": PROMPT, "lengths": list(SAMPLE_LENGTHS), "samples": SAMPLES, "seeds": list(seeds)}
    found = _on_shipped(lab, "pooled distinct", compute, **given)
    return pd.DataFrame({"model": name} | row for name, own in found.items() for row in own)


def input_arms() -> dict[str, ModelConfig]:
    """k-grams, k = 3: one-hot, learned and convolution of width 32, and one-hot of the learned one's parameters.

    A convolution of width 32 has those within 2% as it is.
    """
    kinds = {"one-hot": ("onehot", 32), "embedding": ("learned", 32), "convolution": ("conv", 32)}
    kinds["one-hot, equal parameters"] = ("onehot", 16)
    return {name: KGramConfig(n_embd=width, n_layer=1, k=3, embedding=kind) for name, (kind, width) in kinds.items()}  # type: ignore[arg-type]


def trained_inputs(lab: Lab) -> Trained:
    """`input_arms` trained, each at its own best rate; the quick profile trains two."""
    arms = input_arms()
    if lab.profile.name == "quick":
        arms = {name: arms[name] for name in ("one-hot", "embedding")}
    return tuned_runs(lab, arms, COUNTS_AND_LSTM)


def input_speed(lab: Lab, vocab_size: int = 4_096) -> pd.DataFrame:
    """Seconds of an update of 16 x 64 tokens: a column an arm of `input_arms`, a row a round of one each."""
    rounds, train = (30 if len(plan(lab).seeds) > 1 else 3), TrainConfig(batch_size=16)
    arms = {name: config.replace(vocab_size=vocab_size, block_size=64) for name, config in input_arms().items()}
    found = lab.measure(
        "k-gram input speed",
        lambda: update_seconds(arms, train, rounds),
        arms={name: config.fingerprint() for name, config in arms.items()},
        train=train.fingerprint(),
        rounds=rounds,
    )
    return pd.DataFrame(found)


def after_one_update(lab: Lab) -> dict[str, list[Run]]:
    """LSTMs after a single update, as in the notes, and after the whole training: one run a seed each."""
    trained = tuned_runs(lab, {"LSTM": LSTMConfig(n_embd=32)}, COUNTS_AND_LSTM)
    given = settings(lab) | {"max_steps": 1, "eval_every": 1, "learning_rate": STARTER_RATE}
    one = [lab.train(LSTMConfig(n_embd=32), seed=seed, **given) for seed in lab.profile.seeds]
    return {"one update": one, "trained": list(trained.runs["LSTM"])}


def nuclei_diversity(lab: Lab, arms: dict[str, list[Run]], measure: str = "distinct_2") -> pd.DataFrame:
    """One measure of drawn text at every p of NUCLEI: columns arm, p, seed, value."""
    budget = plan(lab).budget
    rows = []
    for p in NUCLEI:
        table = drawn_diversity(lab, arms, measure, prompt=PROMPT, budget=budget, max_new_tokens=60, top_p=p, seed=0)
        rows += [
            {"arm": arm, "p": p, "seed": seed, "value": v} for arm, own in table.items() for seed, v in own.items()
        ]
    return pd.DataFrame(rows)


def entropy_table(lab: Lab, arms: dict[str, list[Run]], stories: int = 20) -> pd.DataFrame:
    """Mean entropy of the next token (nats), and the nucleus' size (tokens) at each p of NUCLEI, on held-out stories.

    Columns arm, seed, entropy, and "size at p" for every p.
    """

    @torch.no_grad()
    def compute(run: Run) -> dict[str, float]:
        model, tokenizer = run.load_model(), run.load_tokenizer()
        texts = list(lab.corpus().texts("validation"))[:stories]
        store = encode_stories(texts, tokenizer)
        ids = torch.from_numpy(store.inputs[: 64 * (len(store.inputs) // 64)]).view(-1, 64)
        with evaluation_mode(model):
            probabilities = model(ids).double().softmax(-1).flatten(0, 1)  # (N, V)
        entropy = torch.special.entr(probabilities).sum(-1).mean().item()
        mass = probabilities.sort(-1, descending=True).values.cumsum(-1)
        sizes = {f"size at {p:g}": (mass < p).sum(-1).add(1).clamp(max=mass.size(-1)).double().mean().item()
                 for p in NUCLEI if p < 1}  # fmt: skip
        return {"entropy": entropy} | sizes

    rows = []
    for arm, runs in arms.items():
        for run in runs:
            found = lab.measure("entropy of a model", lambda r=run: compute(r), run=run.fingerprint, stories=stories)  # type: ignore[misc]
            rows.append({"arm": arm, "seed": run.config.train.seed} | found)
    return pd.DataFrame(rows)
