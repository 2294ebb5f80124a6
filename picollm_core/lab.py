"""What a notebook works with: its profile, cached training, recorded measurements, saved figures."""

import logging
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import tiktoken
import torch
from matplotlib.figure import Figure

from picollm_core.config import DataConfig, ModelConfig, RunConfig
from picollm_core.corpora import Corpus
from picollm_core.devices import device_name, pick_device, pick_precision
from picollm_core.figure_index import FIGURES_DIR, describe_figure, record_figure
from picollm_core.figure_style import save_figure
from picollm_core.kneser_ney import KneserNey
from picollm_core.presets import run_config
from picollm_core.profiles import Profile, setup_notebook
from picollm_core.results import REMEASURE, ResultStore
from picollm_core.runs import RUNS_DIR, Run, is_complete, run_directory, thin_history
from picollm_core.sweep import DIVERGED, Failure, Sweep, Texts, check_configs, sweep
from picollm_core.token_store import token_store
from picollm_core.train import load_data, train_on, validation_texts
from picollm_core.trainer import TrainingDiverged

logger = logging.getLogger(__name__)

REDRAW = "PICOLLM_REDRAW"
"""Environment variable of `picollm figures`: the folder to redraw the figures into, from committed results alone."""


@dataclass(repr=False)
class Lab:
    """One notebook's access to everything it may compute or look up.

    Profiles other than "quick" record what they measure in artefacts/results, which is committed; "quick" keeps its
    results with its runs, which are not. `refresh=True` computes everything anew. With `redraw_into` nothing is
    computed: what is not recorded raises ValueError, no text and no weights are looked for, and figures go there.
    """

    profile: Profile
    refresh: bool = False
    redraw_into: Path | None = None
    redrawn: int = field(default=0, init=False)
    told: bool = field(default=False, init=False)
    used: list[str] = field(default_factory=list, init=False)
    opened: dict[DataConfig, list[Corpus]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        committed = ResultStore()
        self.committed = committed
        self.texts = Texts(self.opened)  # opened once: many runs of a notebook ask for the same
        self.store = ResultStore(RUNS_DIR / "results") if self.profile.name == "quick" else committed

    def __repr__(self) -> str:
        return repr(self.profile)

    def config(self, model: str | ModelConfig | RunConfig, **settings: Any) -> RunConfig:
        """The run configuration of this profile for a preset, with some settings changed."""
        base = run_config(model)
        base = base.replace(data=self.profile.data, train=self.profile.train)
        return run_config(base, **({"block_size": self.profile.block_size} | settings))

    def train(self, model: str | ModelConfig | RunConfig, **settings: Any) -> Run:
        """The run of this profile: from this machine's runs, else from the committed record, else trained now.

        Where the profile's corpus is not on this machine, a committed record that was made with it is redrawn and
        the log says so. Raises TrainingDiverged, also from the record of a run that did.
        """
        config = self.config(model, **settings)
        result = self._found(config) or self._recorded(self._trained(config))
        if isinstance(result, Failure):
            raise TrainingDiverged(result.error)
        self.used.append(f"runs/{result.fingerprint}.json")
        return result

    def _trained(self, config: RunConfig) -> Run | Failure:
        self.texts.tell(config.data)
        try:
            return train_on(self.texts.open(config.data), config, refresh=self.refresh)
        except TrainingDiverged as error:
            return Failure(config, str(error), DIVERGED)

    def sweep(self, configs: Sequence[RunConfig], n_jobs: int | None = None, progress: bool = True) -> Sweep:
        """The runs of many configurations, each looked up as `train` does; those that are missing train in parallel.

        `configs` are those of `config(...)`, no two alike. A run that diverged is in `Sweep.failed` and is recorded as
        well: it is not trained again. See picollm_core.sweep.sweep for `n_jobs` and what is refused with ValueError.
        """
        configs = check_configs(configs)
        found = {position: self._found(config) for position, config in enumerate(configs)}
        missing = [position for position, result in found.items() if result is None]
        if missing:
            asked = [configs[position] for position in missing]
            if n_jobs is None and self.profile.name == "quick":
                n_jobs = 1  # its runs are over before workers have started
            trained = sweep(asked, n_jobs=n_jobs, refresh=self.refresh, progress=progress, texts=self.texts)
            new: dict[RunConfig, Run | Failure] = {run.config: run for run in trained.runs}
            new |= {failure.config: failure for failure in trained.failed}
            found |= {position: self._recorded(new[configs[position]]) for position in missing}
        results = [found[position] for position in range(len(configs))]
        runs = tuple(result for result in results if isinstance(result, Run))
        self.used += [f"runs/{run.fingerprint}.json" for run in runs]
        return Sweep(runs, tuple(result for result in results if isinstance(result, Failure)))

    def _found(self, config: RunConfig) -> Run | Failure | None:
        """What is recorded of a configuration. Redrawing, ValueError when nothing is."""
        if self.redraw_into is not None:
            result = self._elsewhere(config)
            if result is None:
                model = f"{config.model.family}, {config.data.tokenizer}, seed {config.train.seed}"
                raise ValueError(f"no record of a training run ({model}) in {self.committed.folder}; {REMEASURE}")
        elif self.refresh:
            return None
        else:
            try:
                corpora = self.texts.open(config.data)
            except (ValueError, OSError):  # training it says the same, of this run alone
                return None
            hashes = [corpus.content_hash for corpus in corpora]
            result = self.store.find_run(config, hashes) or _diverged(config, self.store.find_failure(config, hashes))
            if result is None and any(corpus.note for corpus in corpora):
                result = self._elsewhere(config)
                self._tell_origin(result)
        self.redrawn += result is not None
        return self._with_weights(result) if isinstance(result, Run) and self.redraw_into is None else result

    def _elsewhere(self, config: RunConfig) -> Run | Failure | None:
        """The committed record of a configuration on texts that need not be here."""
        run = self.committed.find_run_elsewhere(config)
        return run or _diverged(config, self.committed.find_failure_elsewhere(config))

    def _recorded(self, result: Run | Failure) -> Run | Failure:
        """Record what has just been trained; the same figures now and when redrawn."""
        if isinstance(result, Run):
            self.store.save_run(result)
            return self._with_weights(Run.from_record(result.to_record()))
        if result.diverged:
            self.store.save_failure(result.config, self.texts.open(result.config.data), result.error)
        return result

    @staticmethod
    def _with_weights(recorded: Run) -> Run:
        """The record, which knows its directory where the weights are still on this machine."""
        directory = run_directory(recorded.config, recorded.fingerprint)
        return replace(recorded, directory=directory) if is_complete(directory) else recorded

    def _tell_origin(self, recorded: Run | Failure | None) -> None:
        """Say once that results come from the committed record of a text that is not here."""
        if isinstance(recorded, Run) and not self.told:
            self.told = True
            corpora = ", ".join(recorded.context["corpora"])
            logger.warning("redrawn from the committed record on %s, which is not on this machine", corpora)

    def measure(self, name: str, compute: Callable[[], Any], **parameters: Any) -> Any:
        """The recorded value of `compute()` for these parameters and this profile, else computed and recorded now.

        `compute` takes nothing and returns JSON values; `parameters` names everything they depend on.
        """
        parameters = {"profile": self.profile.name} | parameters

        def missing() -> Any:
            raise ValueError(f"no record of the measurement {name!r} in {self.store.folder}; {REMEASURE}")

        if self.redraw_into is not None:
            value, old = self.store.measure(name, parameters, missing)
        else:
            value, old = self.store.measure(name, parameters, compute, self.refresh)
        self.redrawn += old
        self.used.append(f"measurements/{self.store.measurement_path(name, parameters).name}")
        return value

    def floors(self, run: Run, orders: tuple[int, ...] = (1, 2, 3, 4)) -> pd.DataFrame:
        """What counting alone reaches on the run's corpus: interpolated Kneser-Ney of several orders.

        One row an order with nll (nats per token), perplexity, bits_per_byte, on the stories of the run's final
        evaluation.
        """
        fewer = {} if run.config.train.final_stories is None else {"stories": run.config.train.final_stories}

        def count() -> list[dict[str, Any]]:
            corpora, tokenizer = load_data(run.config.data), run.load_tokenizer()
            store = token_store(corpora[0], "train", tokenizer)
            texts = validation_texts(corpora)[: run.config.train.final_stories]
            fitted = {order: KneserNey(order, tokenizer.n_vocab).fit(store.tokens, store.offsets) for order in orders}
            found = {order: model.evaluate(texts, tokenizer, n_bootstrap=1) for order, model in fitted.items()}
            return [
                {"order": order, "nll": e.nll, "perplexity": e.perplexity, "bits_per_byte": e.bits_per_byte}
                for order, e in found.items()
            ]

        rows = self.measure(
            "kneser-ney",
            count,
            corpus=run.context["corpus_hashes"],
            tokenizer=run.config.data.tokenizer,
            orders=list(orders),
            **fewer,
        )
        return pd.DataFrame(rows)

    def corpus(self, name: str | None = None) -> Corpus:
        """The profile's corpus, or another by name, at the profile's size."""
        data = self.profile.data
        return self.texts.open(data if name is None else data.replace(corpus=(name,), limit=None))[0]

    def figure(self, figure: Figure, name: str) -> Figure:
        """Save a figure as PNG, SVG and PDF, enter it in the folder's index, and hand it back for the cell to show."""
        folder = self.redraw_into or (RUNS_DIR / "figures" if self.profile.name == "quick" else FIGURES_DIR)
        save_figure(figure, name, folder)
        record_figure(folder, describe_figure(figure, name, tuple(self.used)))
        return figure


def _diverged(config: RunConfig, error: str | None) -> Failure | None:
    return None if error is None else Failure(config, error, DIVERGED)


def open_lab(refresh: bool = False) -> Lab:
    """Prepare the notebook's process (see profiles.setup_notebook) and return its lab."""
    profile, folder = setup_notebook(), os.environ.get(REDRAW)
    return Lab(profile, refresh, Path(folder) if folder else None)


def environment_table() -> pd.DataFrame:
    """What a result on this machine depends on: versions, device, number format, threads, texts and vocabularies."""
    device = pick_device("auto")
    rows = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(device),
        "matrix products in": str(pick_precision("auto", device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "PICOLLM_TINYSTORIES": "set" if os.environ.get("PICOLLM_TINYSTORIES") else "not set",
    }
    return pd.DataFrame({"value": rows.values()}, index=pd.Index(rows.keys(), name="what"))


def token_pieces(text: str, tokenizer: tiktoken.Encoding) -> list[str]:
    """The pieces that a tokenizer cuts a text into, spaces shown as open boxes."""
    pieces = (tokenizer.decode_single_token_bytes(token) for token in tokenizer.encode_ordinary(text))
    return [piece.decode("utf-8", errors="replace").replace(" ", "␣") for piece in pieces]


def history_table(
    runs: dict[str, Run], columns: tuple[str, ...] = ("step", "tokens", "loss", "val_loss")
) -> pd.DataFrame:
    """The thinned histories of several runs under each other, with columns `run` and `family`."""
    parts = [thin_history(run.history)[list(columns)].assign(run=name, family=run.family) for name, run in runs.items()]
    return pd.concat(parts, ignore_index=True)


def summary_table(runs: dict[str, Run], columns: tuple[str, ...]) -> pd.DataFrame:
    """One row a run with these columns of its summary."""
    return pd.DataFrame([{"run": name} | {c: run.summary[c] for c in columns} for name, run in runs.items()])
