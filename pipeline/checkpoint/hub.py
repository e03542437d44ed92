"""A model on the Hugging Face hub: small files and headers first, weight files when a stage asks.

Files live in the hub's own cache.  Headers of files that are not downloaded are kept in a cache of
this project, one JSON file per commit, so that a stage can start again without any network.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import msgspec
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)

from pipeline.checkpoint.containment import check_contained
from pipeline.checkpoint.header import Header, read_header
from pipeline.checkpoint.progress import Meter, Progress
from pipeline.checkpoint.source import WEIGHTS, check_listing, require_config
from pipeline.demo_model import cache_directory
from pipeline.errors import CheckpointError, ModelError, ModelNotFound

HUB_ANSWER_TIMEOUT = 5.0  # seconds for the first answer; without it only cached files are used
PARALLEL_REQUESTS = 8
PARALLEL_DOWNLOADS = 4

Result = TypeVar("Result")

_SMALL_FILES = ("*.json", "tokenizer.model", "*.tiktoken", "*.txt", "*.jsonl", "*.jinja")
_CODE = ("*.py",)


@dataclass(frozen=True)
class HubRepository:
    """One commit of a repository on the hub."""

    name: str
    path: Path
    headers: Mapping[str, Header]

    @classmethod
    def open(cls, name: str, revision: str | None, code: bool, progress: Progress) -> HubRepository:
        """Fetch the small files, Python files among them only if `code`, and the weights' headers.

        Raises ModelNotFound when the hub does not have the model, or can't be reached while the
        model is not cached; CheckpointError when the repository is not a whole model.
        """
        progress(f"Looking up {name}", 0, 1)
        online = _hub_answers(name, revision)
        path = _small_files(name, revision, code, online, progress)
        check_contained(path)
        require_config(path, name)
        headers = _headers(name, path, online, progress)
        check_listing(path, name, headers)
        return cls(name, path, headers)

    def fetch(self, files: Collection[str], progress: Progress) -> dict[str, Path]:
        """Download what is not cached yet.  Raises CheckpointError when a file can't be had."""
        total = sum(self.headers[file].data_bytes for file in files)
        meter = Meter(f"Downloading {self.name}", total, progress)

        def download(file: str) -> Path:
            try:
                return Path(
                    hf_hub_download(
                        self.name, file, revision=self.path.name, tqdm_class=meter.bar()
                    )
                )
            except (HTTPError, OSError, LocalEntryNotFoundError) as error:
                raise CheckpointError(
                    f"{file} of {self.name} can't be downloaded ({_short(error)}); "
                    "check the network and the free disk space, then start again to resume."
                ) from error

        paths = _in_parallel(download, list(files), PARALLEL_DOWNLOADS)
        return dict(zip(files, paths, strict=True))


def _hub_answers(name: str, revision: str | None) -> bool:
    """Whether the hub can be reached.  Raises ModelNotFound when it answers that it does not have the model."""
    try:
        HfApi().model_info(name, revision=revision, timeout=HUB_ANSWER_TIMEOUT)
    except HFValidationError as error:
        raise ModelNotFound(
            f"{name} is neither a folder nor the id of a model on the hub."
        ) from error
    except GatedRepoError as error:
        raise ModelNotFound(
            f"The hub gives {name} only to those who accepted its terms; accept them and set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"The hub has {name}, but not its revision {revision}.") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"There is neither a folder {name} nor such a model on the hub; "
            "check the name, and set HF_TOKEN if it is private."
        ) from error
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise ModelNotFound(f"The hub refuses {name}: {_short(error)}.") from error
        return False
    except (HTTPError, OfflineModeIsEnabled):
        return False
    return True


def _small_files(
    name: str, revision: str | None, code: bool, online: bool, progress: Progress
) -> Path:
    """The snapshot folder, named by its commit."""
    what = f"Fetching the small files of {name}"
    unknown = Meter(what, 1, lambda what, done, total: progress(what, 0, total))
    patterns = [*_SMALL_FILES, *(_CODE if code else ())]
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                local_files_only=not online,
                tqdm_class=unknown.bar(),
            )
        )
    except (HTTPError, OSError) as error:
        reason = _short(error) if online else "the hub can't be reached and it is not in the cache"
        raise ModelNotFound(
            f"{name} is not a folder and can't be had from the hub: {reason}; "
            "check the network, or name a model folder."
        ) from error


def _headers(name: str, path: Path, online: bool, progress: Progress) -> dict[str, Header]:
    cache = cache_directory() / "headers" / name.replace("/", "--") / f"{path.name}.json"
    try:
        return msgspec.json.decode(cache.read_bytes(), type=dict[str, Header])
    except (OSError, msgspec.DecodeError):
        pass
    if not online:  # another tool may have filled the hub's cache
        return {file.name: read_header(file) for file in sorted(path.glob(WEIGHTS))}
    headers = _remote_headers(name, path.name, progress)
    _write(cache, msgspec.json.encode(headers))
    return headers


def _remote_headers(name: str, commit: str, progress: Progress) -> dict[str, Header]:
    """Headers of all weight files of `commit`, by range requests."""
    api = HfApi()

    def header(file: str) -> Header:
        metadata = api.parse_safetensors_file_metadata(
            name, file, revision=commit, timeout=HUB_ANSWER_TIMEOUT
        )
        meter.add(1)
        return Header.of(metadata)

    try:
        listing = api.model_info(name, revision=commit, timeout=HUB_ANSWER_TIMEOUT).siblings or []
        files = sorted(s.rfilename for s in listing if fnmatch(s.rfilename, WEIGHTS))
        files = [file for file in files if "/" not in file]
        meter = Meter(f"Reading {len(files)} file headers of {name}", len(files), progress)
        return dict(zip(files, _in_parallel(header, files, PARALLEL_REQUESTS), strict=True))
    except SafetensorsParsingError as error:
        raise CheckpointError(
            f"A weight file of {name} is broken on the hub: {_short(error)}."
        ) from error
    except (HTTPError, EntryNotFoundError) as error:
        raise ModelError(f"The hub stopped answering about {name}: {_short(error)}.") from error


def _in_parallel(work: Callable[[str], Result], files: Sequence[str], workers: int) -> list[Result]:
    """Results in the order of `files`.  The first failure is raised, and what has not begun is given up."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(pool.map(work, files))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: several ranks of one machine may write it at once.

    When it can't be written, the next start has to ask the hub again, which is no reason to fail.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
    except OSError:
        return


def _short(error: BaseException) -> str:
    """The first line of a library's message, which may go on for many."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
