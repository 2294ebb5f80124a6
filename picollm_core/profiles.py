"""How much a notebook computes: the profiles quick, standard and full, and the one set-up that every notebook calls.

`PICOLLM_PROFILE` chooses; unset means standard. A profile is a value: a notebook reads its numbers and nothing else.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from picollm_core.config import DataConfig, TrainConfig
from picollm_core.figure_style import STYLE

VARIABLE = "PICOLLM_PROFILE"
DEFAULT = "standard"


@dataclass(frozen=True, repr=False)
class Profile:
    """What one profile runs: text, training, windows, seeds.

    `size` ends preset names ("lstm-" + size), `block_size` is the training window in tokens, `eval_stories` caps final
    evaluations (None: every held-out story) and `cell_timeout` is the longest a notebook cell may take, in seconds.
    """

    name: str
    purpose: str
    data: DataConfig
    train: TrainConfig
    size: str
    block_size: int
    seeds: tuple[int, ...]
    eval_stories: int | None
    cell_timeout: int

    def __repr__(self) -> str:
        """The one line that a notebook shows after its set-up."""
        length = f"{self.train.max_steps:,} steps" if self.train.max_steps else f"{self.train.epochs:g} epochs"
        seeds = f"{len(self.seeds)} seed{'s' * (len(self.seeds) > 1)}"
        batch = f"{self.train.batch_size} x {self.block_size} {self.data.tokenizer} tokens"
        return f"profile {self.name} ({self.purpose}): corpus {self.data.corpus[0]}, {length} of {batch}, {seeds}"


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="quick",
            purpose="about a minute a notebook on 2 cores",
            data=DataConfig(corpus=("storyworld",), n_stories=2_000),
            train=TrainConfig(max_steps=400, batch_size=16, eval_every=40, eval_stories=40, checkpoint_every=1_000),
            size="pico",
            block_size=128,
            seeds=(0,),
            eval_stories=40,
            cell_timeout=600,
        ),
        Profile(
            name="standard",
            purpose="the committed results: minutes on a GPU, hours on a CPU",
            data=DataConfig(corpus=("auto",)),
            train=TrainConfig(max_steps=2_000, batch_size=16, eval_every=200, eval_stories=200),
            size="pico",
            block_size=256,
            seeds=(0, 1, 2, 3, 4),
            eval_stories=None,
            cell_timeout=6 * 3_600,
        ),
        Profile(
            name="full",
            purpose="the course teams' set-up: a GPU, hours to days",
            data=DataConfig(corpus=("tinystories",), tokenizer="gpt2", splits=(98, 1, 1), limit=(1_000_000,)),
            train=TrainConfig(
                epochs=5,
                batch_size=64,
                optimizer="adamw",
                learning_rate=3e-4,
                schedule="cosine",
                warmup_ratio=0.1,
                eval_every=1_000,
                eval_stories=1_000,
                checkpoint_every=1_000,
            ),
            size="small",
            block_size=256,
            seeds=(0, 1, 2, 3, 4),
            eval_stories=None,
            cell_timeout=7 * 24 * 3_600,
        ),
    )
}


def get_profile(name: str) -> Profile:
    """The profile called `name`. Raises ValueError that names the choices."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def current_profile() -> Profile:
    """The profile that PICOLLM_PROFILE names; standard when it is unset or empty. ValueError for any other name."""
    return get_profile(os.environ.get(VARIABLE) or DEFAULT)


def project_root(start: str | Path = ".") -> Path | None:
    """The nearest folder at or above `start` that holds pyproject.toml and picollm_core; None outside a checkout."""
    here = Path(start).resolve()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "picollm_core").is_dir():
            return folder
    return None


def _figure_png(figure: Figure) -> bytes:
    """The figure as a notebook shows it: uncropped at its own size, so that texts keep the same size in all figures."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi, metadata={"Software": None})
    return buffer.getvalue()


def setup_notebook() -> Profile:
    """Prepare a notebook's process, and return the profile for the cell to show.

    Works in the project's root when the notebook was opened from inside a checkout, so that paths such as
    data/3seqs.txt mean the same everywhere; sets the figure style for the whole process; and teaches IPython to draw
    a Figure that a cell returns. Outside IPython the last step is left out. No warning is silenced.
    """
    profile = current_profile()
    root = project_root()
    if root is not None:
        os.chdir(root)
    matplotlib.rcParams.update(STYLE)
    try:
        from IPython import get_ipython
    except ImportError:
        return profile
    shell = get_ipython()
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(Figure, _figure_png)
    return profile
