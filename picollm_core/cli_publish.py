"""`picollm ship`, `push`, `figures` and `deck`: what leaves the workbook, made by one command each."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class ShipCommand:
    """Train the small models that come with the project and write them to artefacts/models, with their cards."""

    families: tyro.conf.Positional[tuple[str, ...]] = ("kgram", "lstm", "transformer")
    """Which of them."""
    autoencoders: bool = False
    """Leave the models as they are and train a sparse autoencoder beside each, for the feature browser."""

    def run(self) -> int:
        from picollm_core.shipped import ship, shipped_config

        for family in self.families:
            shipped_config(family)  # a wrong name is refused before any training
        if self.autoencoders:
            return self._ship_autoencoders()
        for family in self.families:
            result = ship(family)
            print(f"{family}: {result.bits_per_byte:.4f} bits per byte on {result.n_stories:,} held-out stories")
        return 0

    def _ship_autoencoders(self) -> int:
        from picollm_core.shipped_autoencoders import ship_autoencoder

        for family in self.families:
            found = ship_autoencoder(family)
            print(f"{family}: {found.fvu:.3f} of the variance left, {found.added:.3f} nats lost, {found.dead:.1%} dead")
        return 0


@dataclass(frozen=True)
class PushCommand:
    """Publish a trained model on the Hugging Face Hub, with a model card that says how it was made and how good it is.

    Needs a token that may write: `hf auth login`, or HF_TOKEN."""

    model: tyro.conf.Positional[str]
    """A run's name, fingerprint or folder, a saved model's folder, or a shipped model's name."""
    repo: tyro.conf.Positional[str]
    """Where it goes, as user/name; made if it does not exist."""
    private: bool = False
    """Only for yourself."""
    license: str = "mit"
    """Under which licence the weights are given away, as the Hub writes it."""
    dry_run: bool = False
    """Write the folder and say what would be sent; send nothing."""
    out: Path | None = None
    """The folder with what is sent; left out, artefacts/runs/hub/user--name."""

    def run(self) -> int:
        from picollm_core.hub import SENT, prepare, push

        folder = prepare(self.model, self.repo, folder=self.out, license=self.license)
        if self.dry_run:
            print(f"nothing was sent; this would go from {folder} to {self.repo}:")
        else:
            print(f"{push(folder, self.repo, private=self.private)} has:")
        for name in SENT:
            print(f"  {(folder / name).stat().st_size:>12,} bytes  {name}")
        return 0


@dataclass(frozen=True)
class FiguresCommand:
    """Redraw every figure of the notebooks as PNG, SVG and PDF from artefacts/results, without training."""

    only: tuple[str, ...] = ()
    """Beginnings of notebook names, such as 01; left out, all of them."""
    out: Path = Path("artefacts/figures")
    """Folder for the figures and their index."""

    def run(self) -> int:
        from picollm_core.figures import redraw_figures

        report = redraw_figures(folder=self.out, only=self.only or None)
        print(report.summary())
        return 0 if report.ok else 1


@dataclass(frozen=True)
class DeckCommand:
    """Write the talk, artefacts/deck.pptx, from the figures, the recorded results and the notebooks' answers."""

    out: Path = Path("artefacts/deck.pptx")
    """The file to write."""

    def run(self) -> int:
        from picollm_core.deck import write_deck

        report = write_deck(self.out)
        print(report.summary())
        return 0 if report.ok else 1
