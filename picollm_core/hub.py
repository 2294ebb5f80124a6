"""A trained model on the Hugging Face Hub: a folder with weights, configuration, tokenizer name and an honest card."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData, get_token
from huggingface_hub.utils import get_session, validate_repo_id

from picollm_core.config import require
from picollm_core.loading import MODEL_CARD, TOKENIZER_FILE, find_model, hub_name, load_model
from picollm_core.models import LanguageModel
from picollm_core.models.saving import CONFIG_FILE, WEIGHTS_FILE
from picollm_core.runs import CONFIG_FILE as RUN_FILE
from picollm_core.runs import MODEL_DIR, RUNS_DIR, Run, load_run, read_json
from picollm_core.shipped import card

SENT = (MODEL_CARD, CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE)
"""All files that are ever sent: nothing that can run, and nothing of the run but what its card says."""
PATIENCE = 30.0
"""Longest silence of the Hub, in seconds."""

_LICENCES = {"tinystories": "CDLA-Sharing-1.0", "storyworld": "MIT"}
_TINYSTORIES = "roneneldan/TinyStories"
_LIMITS = (
    "A very small model, made to be studied. It continues text of the kind it was trained on and knows nothing else; "
    "what it says about the world is made up. It was not tested for harmful output and is not meant for use by people "
    "who do not know this."
)


def check_repo(repo: str) -> None:
    """ValueError, with what is wrong, for a name that the Hub would refuse; the form is user/name."""
    require(hub_name(repo), f"{repo!r} is not the name of a hub repository; write user/name")
    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise ValueError(f"{repo!r} is not the name of a hub repository: {' '.join(str(error).split())}") from error


def check_login() -> None:
    """ValueError with the way out when no token is at hand. Whether it may write is for the Hub to say."""
    require(get_token() is not None, "not logged in to the Hugging Face Hub; run `hf auth login` or set HF_TOKEN")


def _public_config(run: Run) -> dict[str, Any]:
    """A run's configuration with own texts named by their file alone, not by where they lie."""
    values = run.config.to_dict()
    values["data"] |= {"corpus": [Path(name).name for name in values["data"]["corpus"]]}
    return values


def _usage(repo: str) -> str:
    """How the model is loaded, as Markdown."""
    shell = f'picollm generate "Once upon a time" --model {repo}'
    python = (
        f'from picollm_core import generate, load_model\n\nmodel, tokenizer = load_model("{repo}")\n'
        'print(generate(model, tokenizer, "Once upon a time", top_p=0.9))'
    )
    return f"## Use\n\nWith the package `picollm` installed:\n\n```sh\n{shell}\n```\n\n```python\n{python}\n```\n"


def run_card(run: Run, repo: str, licence: str, parameters: int) -> str:
    """The model card of a finished run: how it was made, from which text, how good it is with intervals, its limits."""
    summary, model = run.summary, run.config.model
    corpora = [Path(name).name for name in run.context["corpora"]]
    texts = [
        f"{name}{f' ({_LICENCES[name]})' if name in _LICENCES else ''}, content hash {digest}"
        for name, digest in zip(corpora, run.context["corpus_hashes"], strict=True)
    ]
    tinystories = "tinystories" in corpora
    metadata = ModelCardData(
        model_name=repo.split("/")[1],
        language="en" if all(name in _LICENCES for name in corpora) else None,
        license=licence,
        pipeline_tag="text-generation",
        datasets=[_TINYSTORIES] if tinystories else None,
        tags=["picollm", run.family],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=_TINYSTORIES if tinystories else corpora[0],
                dataset_name=f"{' and '.join(corpora)}, held-out texts",
                metric_type="bits_per_byte",
                metric_value=round(summary["bits_per_byte"], 4),
            )
        ],
    )
    bits, perplexity = summary["bits_per_byte_interval"], summary["perplexity_interval"]
    rows = {
        "family": run.family,
        "weights": f"{parameters:,}",
        "tokenizer": f"{run.config.data.tokenizer} ({model.vocab_size:,} tokens)",
        "context": f"trained on windows of {model.block_size} tokens",
        "text": "; ".join(texts),
        "training": f"{summary['steps']:,} updates, {summary['tokens_seen'] / 1e6:.1f} million tokens, "
        f"{summary['train_seconds'] / 60:.1f} minutes on {summary['device']}",
        "bits per byte": f"{summary['bits_per_byte']:.4f} (95% bootstrap over texts: {bits[0]:.4f} to {bits[1]:.4f})",
        "perplexity": f"{summary['perplexity']:,.2f} per token ({perplexity[0]:,.2f} to {perplexity[1]:,.2f}), "
        f"{summary['accuracy']:.1%} of tokens guessed right",
        "held-out text": f"{summary['n_stories']:,} texts, {summary['n_bytes']:,} bytes, of the validation split",
        "made by": f"picollm, run {run.fingerprint}, torch {summary['torch']}",
    }
    sample = " ".join(run.samples["greedy"].split())
    config = json.dumps(_public_config(run), indent=1)
    return (
        f"{card(metadata, repo.split('/')[1], _LIMITS, rows)}\n{_usage(repo)}\n"
        f"## One sample, greedy\n\n> {sample}\n\n## Configuration\n\n```json\n{config}\n```\n"
    )


def folder_card(folder: Path, repo: str, licence: str, model: LanguageModel) -> str:
    """The card of a saved model: its own, with its name on the Hub, or a bare one that says what is not known."""
    if (folder / MODEL_CARD).is_file():
        written = (folder / MODEL_CARD).read_text(encoding="utf-8")
        if "picollm" in written.split("\n---", 1)[0]:  # not the one that huggingface_hub's mixin writes by itself
            return re.sub(r"```sh\npicollm generate .*?```\n", lambda _: _usage(repo), written, flags=re.DOTALL)
    metadata = ModelCardData(license=licence, pipeline_tag="text-generation", tags=["picollm", model.config.family])
    rows = {
        "family": model.config.family,
        "weights": f"{model.num_parameters():,}",
        "tokenizer": f"{read_json(folder / TOKENIZER_FILE)['tokenizer']} ({model.config.vocab_size:,} tokens)",
        "text and quality": "not recorded with these weights",
    }
    config = json.dumps(model.config_values(), indent=1)
    return (
        f"{card(metadata, repo.split('/')[1], _LIMITS, rows)}\n{_usage(repo)}\n"
        f"## Configuration\n\n```json\n{config}\n```\n"
    )


def prepare(
    model: str | Path,
    repo: str,
    *,
    folder: str | Path | None = None,
    license: str = "mit",  # noqa: A002  (the Hub's word)
    runs_dir: str | Path = RUNS_DIR,
) -> Path:
    """Write what `push` sends to `folder`, which is returned: the files SENT, loaded once to see that they can be.

    `model` is all that `find_model` finds on disk, `repo` the user/name that the card is written for. Without
    `folder`, they go to hub/user--name below `runs_dir`. Raises ValueError for a malformed name, a run that has not
    ended and a model that cannot be loaded.
    """
    check_repo(repo)
    source = find_model(model, runs_dir=runs_dir, local=True)
    loaded, _ = load_model(source)
    if (source / RUN_FILE).is_file():
        text = run_card(load_run(source), repo, license, loaded.num_parameters())
    else:
        text = folder_card(source, repo, license, loaded)
    target = Path(folder) if folder else Path(runs_dir) / "hub" / repo.replace("/", "--")
    weights = source / MODEL_DIR if (source / MODEL_DIR).is_dir() else source
    require(target.resolve() != weights.resolve(), f"{target} is the model itself; write to another folder")
    target.mkdir(parents=True, exist_ok=True)
    for name in SENT[1:]:
        shutil.copyfile(weights / name, target / name)
    (target / MODEL_CARD).write_text(text, encoding="utf-8")
    return target


@contextmanager
def _patience() -> Iterator[None]:
    """The Hub's client waits for ever by default; let it give up after PATIENCE seconds of silence."""
    client = get_session()
    before = client.timeout
    client.timeout = PATIENCE  # type: ignore[assignment]
    try:
        yield
    finally:
        client.timeout = before


def _reason(error: Exception, repo: str) -> str:
    """What went wrong, and the way out, in one line."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the Hub does not accept the token; run `hf auth login` or set HF_TOKEN"
    if status == 403:
        return f"the token may not write to {repo}; use one with write access, and your own name before the slash"
    return " ".join(str(error).split())[:300] or type(error).__name__


def push(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Send a folder that `prepare` wrote to the Hub as `repo` (user/name), in one commit; returns its address.

    The token is that of `hf auth login` or HF_TOKEN. Raises ValueError when nobody is logged in, the name is
    malformed, the Hub refuses or does not answer, and when `private` is asked of a repository that is public.
    """
    check_repo(repo)
    check_login()
    missing = [name for name in SENT if not (Path(folder) / name).is_file()]
    require(not missing, f"{folder} has no {' and no '.join(missing)}; write it with prepare()")
    try:
        with _patience():
            api = HfApi()
            url = api.create_repo(repo, private=private or None, exist_ok=True)
            public = private and not api.repo_info(repo).private
            require(not public, f"{repo} exists and is public; make it private on the Hub, or choose another name")
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                allow_patterns=list(SENT),
                commit_message="Model and card, by picollm push",
            )
    except Exception as error:
        raise ValueError(f"nothing was published as {repo}: {_reason(error, repo)}") from error
    return str(url)
