"""`picollm ship`, `figures` and `deck`: what leaves the workbook, made again by one command each."""

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
