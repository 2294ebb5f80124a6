"""What a notebook works with: its profile, cached training, recorded measurements, saved figures."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from picollm_core.config import ModelConfig, RunConfig
from picollm_core.corpora import Corpus
from picollm_core.figure_style import save_figure
from picollm_core.presets import run_config
from picollm_core.profiles import Profile, setup_notebook
from picollm_core.results import ResultStore
from picollm_core.runs import RUNS_DIR, Run
from picollm_core.train import load_data, train

logger = logging.getLogger(__name__)


@dataclass(repr=False)
class Lab:
    """One notebook's access to everything it may compute or look up.

    Profiles other than "quick" record what they measure in artefacts/results, which is committed; "quick" keeps its
    results with its runs, which are not. `refresh=True` computes everything anew.
    """

    profile: Profile
    refresh: bool = False
    redrawn: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        committed = ResultStore()
        self.committed = committed
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
        the log says so.
        """
        config = self.config(model, **settings)
        if not self.refresh:
            corpora = load_data(config.data)
            recorded = self.store.find_run(config, [corpus.content_hash for corpus in corpora])
            if recorded is None and any(corpus.note for corpus in corpora):
                recorded = self.committed.find_run_elsewhere(config)
            if recorded is not None:
                self.redrawn += 1
                return self._with_weights(recorded)
        run = train(config, refresh=self.refresh)
        self.store.save_run(run)
        return run

    @staticmethod
    def _with_weights(recorded: Run) -> Run:
        """The full run where its weights are still on this machine, else the record."""
        from picollm_core.runs import is_complete, load_run, run_directory

        directory = run_directory(recorded.config, recorded.fingerprint)
        return load_run(directory) if is_complete(directory) else recorded

    def measure(self, name: str, compute: Callable[[], Any], **parameters: Any) -> Any:
        """The recorded value of `compute()` for these parameters and this profile, else computed and recorded now.

        `compute` takes nothing and returns JSON values; `parameters` names everything they depend on.
        """
        parameters = {"profile": self.profile.name} | parameters
        value, old = self.store.measure(name, parameters, compute, self.refresh)
        self.redrawn += old
        return value

    def corpus(self, name: str | None = None) -> Corpus:
        """The profile's corpus, or another by name, at the profile's size."""
        data = self.profile.data
        return load_data(data if name is None else data.replace(corpus=(name,), limit=None))[0]

    def figure(self, figure: Figure, name: str) -> Figure:
        """Save a figure as PNG, SVG and PDF and hand it back for the cell to show."""
        folder = RUNS_DIR / "figures" if self.profile.name == "quick" else Path("artefacts/figures")
        save_figure(figure, name, folder)
        return figure


def open_lab(refresh: bool = False) -> Lab:
    """Prepare the notebook's process (see profiles.setup_notebook) and return its lab."""
    return Lab(setup_notebook(), refresh)


def history_table(
    runs: dict[str, Run], columns: tuple[str, ...] = ("step", "tokens", "loss", "val_loss")
) -> pd.DataFrame:
    """The histories of several runs under each other, with columns `run` and `family`."""
    parts = [run.history[list(columns)].assign(run=name, family=run.family) for name, run in runs.items()]
    return pd.concat(parts, ignore_index=True)


def summary_table(runs: dict[str, Run], columns: tuple[str, ...]) -> pd.DataFrame:
    """One row a run with these columns of its summary."""
    return pd.DataFrame([{"run": name} | {c: run.summary[c] for c in columns} for name, run in runs.items()])
