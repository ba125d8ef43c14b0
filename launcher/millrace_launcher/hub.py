"""From a model's name to a folder on this machine: the shipped demo, a local folder, or the Hugging Face hub.

Of a hub repository only safetensors, configuration and tokenizer files of its top folder are fetched, and pickled
weights where there are no others; nothing that could run code, for pickles are never loaded as such (`conversion.py`),
unless --trust-remote-code asks for the model's own. Files land in the hub's own cache: an interrupted download goes on
where it stopped, a second start fetches nothing.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from millrace_launcher.errors import LauncherError, Variant
from millrace_launcher.fetching import Download, Report, Say, told, unheard
from millrace_launcher.model_folder import check_model_folder, demo_folder, weights_among

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    from millrace_launcher.logs import Log

_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN")
_TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class ModelSource:
    """Where to look for a model. `cache` None: as huggingface_hub chooses; `with_code`: its *.py files too."""

    model_id: str
    revision: str | None = None
    cache: Path | None = None
    token: str | None = None
    offline: bool = False
    endpoint: str | None = None
    with_code: bool = False

    @classmethod
    def from_environment(
        cls, model_id: str, revision: str | None, cache: str | None, environment: Mapping[str, str]
    ) -> ModelSource:
        """Token, endpoint and offline mode under the names that huggingface_hub and the original use."""
        tokens = (environment.get(name) for name in _TOKEN_VARIABLES)
        return cls(
            model_id=model_id,
            revision=revision,
            cache=Path(cache) if cache else None,
            token=next((token for token in tokens if token), None),
            offline=environment.get("HF_HUB_OFFLINE", "").lower() in _TRUE,
            endpoint=environment.get("HF_ENDPOINT") or None,
        )


@dataclass(frozen=True)
class LocatedModel:
    """`commit`: which of the repository's states it is; None when the folder did not come from the hub."""

    folder: Path
    commit: str | None = None


def at_hand(source: ModelSource) -> LocatedModel | None:
    """The model if it is known to be on this machine; None: the hub has to be asked. Raises `DownloadError` for a
    folder that cannot be served, and for a name that is none."""
    folder = _local_folder(source.model_id)
    if folder is not None:
        check_model_folder(folder)
        return LocatedModel(folder)
    _check_name(source.model_id)
    if not source.offline:
        return None
    folder = _from_cache(source, "HF_HUB_OFFLINE is set")
    check_model_folder(folder)
    return LocatedModel(folder, commit=folder.name)


def locate_model(source: ModelSource, log: Log, say: Say = unheard) -> LocatedModel:
    """The model's folder, complete and checked. Raises `DownloadError` with what to do."""
    found = at_hand(source)
    if found is not None:
        return found
    folder = _fetch(source, log, say)
    check_model_folder(folder)
    # The hub's cache keeps each commit in a folder of its name.
    return LocatedModel(folder, commit=folder.name)


def files_to_fetch(names: Iterable[str], *, with_code: bool = False) -> list[str]:
    """Of a repository's file names those that serving needs.

    Mistral's repositories carry their weights twice, once as `consolidated*`: those are taken only when alone. So are
    pickled weights, which have to be converted.
    """
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")]
    usual = [name for name in weights if not name.startswith("consolidated")]
    if usual:
        weights = usual
    settings = [name for name in top if name.endswith((".json", ".jinja"))]
    if weights:
        settings = [name for name in settings if not name.endswith(".bin.index.json")]
    code = [name for name in top if with_code and name.endswith(".py")]
    return (sorted(weights) or weights_among(top)) + sorted(settings) + sorted(code)


def hub_cache(given: Path | None) -> Path:
    """Where models are kept: the folder that was given, or the hub library's own."""
    if given is not None:
        return given
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _local_folder(model_id: str) -> Path | None:
    if model_id == "demo":
        return demo_folder()
    path = Path(model_id).expanduser()
    if model_id and path.is_dir():
        return path
    if model_id.startswith(("/", "./", "../", "~")):
        raise _failed(f"the model folder {model_id} does not exist")
    return None


def _check_name(model_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(model_id)
    except HFValidationError:
        raise _failed(f"'{model_id}' is neither a folder on this machine nor a name on the hub") from None


def _fetch(source: ModelSource, log: Log, say: Say) -> Path:
    say(Report("the hub is asked for the model"))  # before the import, which takes a while
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=source.endpoint, token=source.token, library_name="millrace")
    try:
        return _download(api, source, log, say)
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            _explain(error, source)
        reason = f"the hub at {api.endpoint} answers {error.response.status_code}"
    except _http_library_error() as error:
        reason = f"the hub at {api.endpoint} cannot be reached ({error})"
    except OSError as error:
        raise _failed(f"{source.model_id} cannot be stored: {error}") from None
    log.warn(f"{reason[0].upper()}{reason[1:]}: looking in the cache")
    return _from_cache(source, reason)


def _http_library_error() -> type[Exception]:
    """The base of all errors of the HTTP library beneath huggingface_hub, which differs between its versions."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def _download(api: HfApi, source: ModelSource, log: Log, say: Say) -> Path:
    from huggingface_hub.utils import disable_progress_bars

    repository = api.model_info(source.model_id, revision=source.revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in repository.siblings or []}
    wanted = files_to_fetch(sizes, with_code=source.with_code)
    if not any(name.endswith((".safetensors", ".bin", ".pt", ".pth")) for name in wanted):
        raise _failed(
            f"{source.model_id} has neither a *.safetensors file nor a pytorch_model.bin in its top folder: choose a "
            "revision or a repository with weights"
        )
    if not sys.stderr.isatty():
        disable_progress_bars()
    total = sum(sizes[name] for name in wanted)
    log.info(f"Fetching {source.model_id}: {len(wanted)} files, {total / 1e9:.2f} GB, unless they are in the cache")
    place = hub_cache(source.cache) / f"models--{source.model_id.replace('/', '--')}"
    with told(Download(place, repository.sha or "", {name: sizes[name] for name in wanted}), say):
        folder = api.snapshot_download(
            source.model_id,
            revision=repository.sha,
            cache_dir=source.cache,
            allow_patterns=[glob.escape(name) for name in wanted],
        )
    _remember_revision(Path(folder), source, repository.sha)
    return Path(folder)


def _remember_revision(folder: Path, source: ModelSource, commit: str | None) -> None:
    """Lets a later offline start find this commit under the branch or tag that was asked for."""
    revision = source.revision or "main"
    if commit is None or revision == commit:
        return
    reference = folder.parent.parent / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit, encoding="utf-8")


def _from_cache(source: ModelSource, reason: str) -> Path:
    """The folder of the commit that was fetched last under this revision; whether it is complete is checked later."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source.model_id, "config.json", cache_dir=source.cache, revision=source.revision)
    if not isinstance(config, str):
        name = source.model_id if source.revision is None else f"{source.model_id} at revision {source.revision}"
        raise _failed(f"{reason}, {name} is not in the cache, and {_no_such_folder(source)}")
    return Path(config).parent


def _explain(error: HfHubHTTPError, source: ModelSource) -> NoReturn:
    """The hub's refusals, each with what the user can do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name = source.model_id
    if isinstance(error, GatedRepoError):
        raise _failed(f"{name} is gated: accept its terms on the hub and set HF_TOKEN to a token that may read it")
    if isinstance(error, RevisionNotFoundError):
        raise _failed(f"{name} has no revision '{source.revision}'")
    status = error.response.status_code
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        hint = "HF_TOKEN may not read it" if source.token else "if it is private, set HF_TOKEN"
        raise _failed(f"there is no model {name} on the hub ({hint}), and {_no_such_folder(source)}")
    raise _failed(f"the hub answered {status} for {name}: {error}")


def _no_such_folder(source: ModelSource) -> str:
    return f"there is no folder {source.model_id} in {Path.cwd()}"


def _failed(message: str) -> LauncherError:
    return LauncherError(Variant.DOWNLOAD, message)
