"""`picollm train`: one or several models on one text, with this project's flags and the course's."""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from picollm_core.config import ModelConfig, RunConfig, TrainConfig, require

if TYPE_CHECKING:
    from picollm_core.distributed import Alone


@dataclass(frozen=True)
class TrainCommand:
    """Train models and print their losses and samples. A finished run is shown again without training."""

    models: tuple[str, ...] = ("kgram-pico", "lstm-pico", "transformer-pico")
    """Presets: kgram, lstm or transformer, each -pico, -tiny, -small or -base; mingpt, gpt2, gpt-oss or llama3, each
    -pico, -tiny, -small or -course."""
    corpus: str = "auto"
    """tinystories, storyworld, three_sequences, custom, a text file or a folder; auto takes TinyStories if it can."""
    tokenizer: str = "stories-4k"
    """stories-4k or gpt2."""
    n_stories: int = 6_000
    """Size of the storyworld corpus."""
    splits: tuple[float, float, float] | None = None
    """Shares of train, validation and test, such as 60 40 0; left out, the corpus's own, else 98 1 1."""
    prompt: str = "Once upon a time"
    """What the samples continue."""

    input_files: tuple[Path, ...] = ()
    """Own text files, one example a line."""
    input_dir: Path | None = None
    """Own folder of *.txt files, searched through all subfolders."""
    limit_custom_examples: int | None = None
    """Use at most this many examples of each own text."""
    tinystories_weight: float = 0.5
    """With own text: the share of training examples drawn from --corpus; 0 trains on own text alone."""

    block_size: int | None = None
    """Training window in tokens."""
    embed_size: int | None = None
    """Width of every model, in place of the preset's."""
    kgram_k: int | None = None
    """k of the k-gram models."""
    num_inner_mlp_layers: int | None = None
    """Inner layers of the k-gram models."""
    options: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = ()
    """Further model settings as name=value, such as position=rope n_head=2 mixers=gla,gla,softmax embedding=onehot."""

    max_steps_per_epoch: int | None = None
    """Cap on the updates in an epoch; three epochs then, as in the course's code, unless --epochs says otherwise."""
    device_id: str | None = None
    """The course's name for --device: cpu, cuda, cuda:0, mps."""
    train: tyro.conf.OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)
    track: tuple[Literal["trackio", "wandb", "tensorboard"], ...] = ()
    """Where else to watch the runs, besides history.jsonl; none needs an account. (pip install 'picollm[track]')"""
    refresh: bool = False
    """Train again even if this configuration has a finished run."""
    monosemantic_enabled: bool = False
    """The course's name for one more sample of each model: every token with its nearest neighbours among the
    embeddings, as in "dog[cat, puppy, bear]". Single directions with one meaning are another matter: a sparse
    autoencoder finds them, in the notebook 12_monosemanticity."""

    def _sources(self) -> dict[str, tuple]:
        """Corpora with weights and caps: own texts share what --tinystories_weight leaves."""
        own = [str(path) for path in self.input_files] + ([str(self.input_dir)] if self.input_dir else [])
        share = self.tinystories_weight
        require(0 <= share <= 1, f"tinystories_weight is {share}; it must lie in [0, 1]")
        if not own:
            require(share > 0, "tinystories_weight is 0 and no --input_files or --input_dir is given: no text is left")
            return {"corpus": (self.corpus,)}
        rows: list[tuple[str, float, int | None]] = [(self.corpus, share, None)] * (share > 0)
        rows += [(path, (1 - share) / len(own), self.limit_custom_examples) for path in own] * (share < 1)
        corpus, weights, limit = zip(*rows, strict=True)
        return {"corpus": corpus, "weights": weights, "limit": limit}

    def _model_settings(self, model: ModelConfig) -> dict[str, Any]:
        """Changes to this preset from the flags."""
        hints = get_type_hints(type(model))
        changes: dict[str, Any] = {"block_size": self.block_size, "n_embd": self.embed_size}
        if model.family == "kgram":
            changes |= {"k": self.kgram_k, "n_layer": self.num_inner_mlp_layers}
        set_values: dict[str, Any] = {}
        for setting in self.options:
            name, equals, text = setting.partition("=")
            require(bool(equals), f"--set takes name=value and got {setting!r}")
            if name in hints:  # with several families each takes what it has
                set_values[name] = _value(text, hints[name])
        return {name: value for name, value in changes.items() if value is not None} | set_values

    def configs(self) -> list[RunConfig]:
        """One whole configuration a model."""
        from picollm_core.presets import preset, run_config

        train = self.train if self.device_id is None else self.train.replace(device=self.device_id)
        if self.max_steps_per_epoch is not None:
            require(self.max_steps_per_epoch >= 1, f"max_steps_per_epoch is {self.max_steps_per_epoch}; at least 1")
            epochs = self.train.epochs if self.train.epochs != TrainConfig.epochs else 3
            train = train.replace(max_steps=max(1, round(self.max_steps_per_epoch * epochs)))
        shared: dict[str, Any] = {"tokenizer": self.tokenizer, "n_stories": self.n_stories, "prompt": self.prompt}
        shared |= {"splits": self.splits} | self._sources()
        presets = [preset(name) for name in self.models]
        named = [setting.partition("=")[0] for setting in self.options]
        known = {name for config in presets for name in config.__dataclass_fields__}
        unknown = sorted(set(named) - known)
        require(not unknown, f"--set names {', '.join(unknown)}, which none of {', '.join(self.models)} has")
        return [
            run_config(
                RunConfig(model=config, train=train),
                **shared,
                **self._model_settings(config),
            )
            for config in presets
        ]

    def run(self) -> int:
        """Train, in one process or, where torchrun started several, in all of them; rank 0 alone says anything."""
        from picollm_core.distributed import EndedByAnother, open_ranks
        from picollm_core.trainer import TrainingDiverged

        leads = True
        try:
            with open_ranks(self.device_id or self.train.device) as ranks:
                leads = ranks.leads
                return self._run_in(ranks)
        except (EndedByAnother, TrainingDiverged):
            if leads:
                raise
            return 0  # rank 0 reports it; torchrun would kill it before it can, if another rank failed first

    def _run_in(self, ranks: "Alone") -> int:
        from picollm_core.trackers import check_trackers
        from picollm_core.train import train

        if not ranks.leads:
            logging.getLogger("picollm_core").setLevel(logging.ERROR)
        with ranks.meeting():
            check_trackers(self.track)
            configs = self.configs()
        if ranks.leads and configs:
            print(described_device(configs[0].train, ranks), file=sys.stderr)
        for config in configs:
            run = train(config, refresh=self.refresh, track=self.track, ranks=ranks)
            if ranks.leads:
                print(describe(run))
                if self.monosemantic_enabled:
                    print(f"  {'nearest neighbours':<22} {annotated_sample(run)!r}")
        return 0


def _value(text: str, hint: Any) -> Any:
    """A setting's value from the command line: a choice of its field, a list, number, true/false, none, or the text."""
    if get_origin(hint) is Literal and text in get_args(hint):  # position=none is a choice, not an absence
        return text
    if get_origin(hint) is tuple:
        return tuple(_value(part, get_args(hint)[0]) for part in text.split(","))
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def described_device(config: TrainConfig, ranks: "Alone") -> str:
    """One line on where training happens, such as "device: cpu, bfloat16 matrix products, 2 processes"."""
    from picollm_core.devices import device_name, pick_precision
    from picollm_core.trainer import number_format

    device = ranks.pick_device(config.device)
    products = number_format(pick_precision(config.precision, device))
    processes = f", {ranks.size} processes" if ranks.size > 1 else ""
    return f"device: {device_name(device)}, {products} matrix products{processes}"


def annotated_sample(run: Any) -> str:
    """What a finished run's model writes after its prompt, every token followed by its nearest neighbours."""
    from picollm_core.interpret.neighbours import annotated_generation

    length, prompt = run.config.sample_tokens, run.config.prompt
    return annotated_generation(run.load_model(), run.load_tokenizer(), prompt, length=length)


def describe(run: Any) -> str:
    """A finished run in a few lines: where, losses along the way, final figures, samples."""
    history, summary = run.history, run.summary
    places = sorted({0, len(history) // 3, 2 * len(history) // 3, len(history) - 1})
    losses = " -> ".join(f"{history['loss'].iloc[place]:.3f}" for place in places)
    lines = [
        f"\n{run.directory}: {run.family}, {summary['parameters']:,} parameters, {summary['steps']:,} steps",
        f"  loss (nats per token)  {losses}",
        f"  held out               {summary['nll']:.3f} nats per token, perplexity {summary['perplexity']:,.2f}, "
        f"{summary['bits_per_byte']:.3f} bits per byte, accuracy {summary['accuracy']:.1%}",
        *(f"  {name:<22} {text!r}" for name, text in run.samples.items()),
    ]
    return "\n".join(lines)
