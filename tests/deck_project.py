"""A small project to make a talk of: figures with their index, records of three families, notebooks with answers."""

import shutil
from pathlib import Path

import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from picollm_core.config import RunConfig, TrainConfig
from picollm_core.figure_index import FigureEntry, write_index
from picollm_core.figure_style import new_figure, save_figure, use_style
from picollm_core.presets import run_config
from picollm_core.results import ResultStore
from picollm_core.runs import HISTORY_COLUMNS, Run, run_fingerprint

NOTEBOOKS = {
    "02": "02_kgram_variants",
    "03": "03_top_p_study",
    "04": "04_transformer",
    "05": "05_model_comparison",
    "06": "06_more",
}
FIGURES = {
    "02_grid": "Longer windows help the k-gram until five tokens",
    "03_equal_surprise": "Sampled text is as surprising as human text at top-p 0.87",
    "04_attention": "One head looks at the token before",
    "05_bits_per_byte": "The Transformer needs the fewest bits per byte at every size",
    "05_sizes": "Every family gains from size; the Transformer gains most from its second step up in size",
    "06_extra": "Something else was seen as well",
}
HASH = "feed" * 4
SCORES = {"kgram": 1.3, "lstm": 1.2, "transformer": 1.1}


def make_run(family: str, bits_per_byte: float, tokens: int = 8_192_000, **train: int) -> Run:
    """A finished run with these figures, as its record would give it back."""
    config: RunConfig = run_config(f"{family}-pico", tokenizer="stories-4k", prompt="Once upon a time")
    config = config.replace(train=TrainConfig(max_steps=2_000, **train))
    summary = {
        "bits_per_byte": bits_per_byte, "parameters": 300_000, "steps": 2_000, "tokens_seen": tokens,
        "n_stories": 816, "n_tokens": 169_524, "n_bytes": 668_811, "per_position": [],
    }  # fmt: skip
    samples = {"top-p 0.95": f"Once upon a time the {family} met\n\na friend. " + "They played all day. " * 40}
    history = pd.DataFrame({name: [1.0] for name in HISTORY_COLUMNS})
    context = {"corpora": ["tinystories"], "corpus_hashes": [HASH], "fingerprint": run_fingerprint(config, [HASH])}
    return Run(config, context, summary, samples, history)


def write_notebooks(folder: Path) -> None:
    """Notebook 00 with the story counts, and one for each number of FIGURES with its figures and its answer."""
    folder.mkdir(parents=True)
    text = f"corpus: tinystories\n12,662 training and 816 validation stories,\ncontent hash {HASH}\n"
    story = "Once upon a time there was a cow. " * 40
    cells = [new_code_cell("corpus", outputs=[new_output("stream", text=one)]) for one in (text, story)]
    nbformat.write(new_notebook(cells=cells), folder / "00_start_here.ipynb")
    for number, stem in NOTEBOOKS.items():
        cells = [new_markdown_cell("# A question?"), new_markdown_cell("## What was *seen*\n\nWords.")]
        cells += [new_code_cell(f'lab.figure(x, "{name}")') for name in FIGURES if name.startswith(number)]
        answer = {"text/markdown": f"## Answer\n\nIn notebook **{number}** it was `{number}.5` nats."}
        cells.append(new_code_cell("Markdown(...)", outputs=[new_output("display_data", data=answer)]))
        nbformat.write(new_notebook(cells=cells), folder / f"{stem}.ipynb")


def write_project(root: Path) -> dict[str, Run]:
    """All of it below `root`; gives the recorded runs by family."""
    figures, store = root / "artefacts" / "figures", ResultStore(root / "artefacts" / "results")
    runs = {family: make_run(family, score) for family, score in SCORES.items()}
    for run in (*runs.values(), make_run("lstm", 1.9, seed=1), make_run("lstm", 0.9, tokens=4_096, seed=2)):
        store.save_run(run)
    names = tuple(sorted(f"runs/{path.name}" for path in (root / "artefacts" / "results" / "runs").iterdir()))
    with use_style():
        save_figure(new_figure("A figure")[0], "drawn", figures)
    for name in FIGURES:
        shutil.copy(figures / "drawn.png", figures / f"{name}.png")
    entries = {name: FigureEntry(name, NOTEBOOKS[name[:2]], title, 0.08, names) for name, title in FIGURES.items()}
    write_index(figures, entries)
    write_notebooks(root / "notebooks")
    return runs
