"""Saved models on the Hugging Face hub: push one, download one."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upfeat._lookup import ANSWER_SECONDS, answer, offline
from upfeat.checkpoints import read_config
from upfeat.errors import CheckpointError, HubError, WeightsNotFoundError
from upfeat.upsamplers.cards import CARD_FILE, CONFIG_FILE, PLACE, WEIGHTS_FILE

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from upfeat.upsamplers.saving import SavedModel

__all__ = ["download_folder", "push_folder"]

FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
LOGIN = "log in with `hf auth login`, set HF_TOKEN, or give token="
_NAME = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")


# -- push ------------------------------------------------------------------------------------------


def push_folder(
    model: "SavedModel",
    repository: str,
    saving: Mapping[str, Any],
    *,
    token: str | None,
    private: bool | None,
    message: str,
) -> str:
    """Save a model into a temporary folder and upload it as one commit; see ``push_to_hub``."""
    from huggingface_hub import HfApi

    if not _NAME.fullmatch(repository):
        raise ValueError(f"a repository is named OWNER/NAME or NAME, got {repository!r}")
    if offline():
        raise HubError(
            f"{repository} cannot be pushed: UPFEAT_OFFLINE or HF_HUB_OFFLINE is set; unset it, or "
            "use save_pretrained"
        )
    api = HfApi(token=token)
    with _explained(repository):
        user = answer(api.whoami)["name"]
        target = repository if "/" in repository else f"{user}/{repository}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder, **saving)
        card = folder / CARD_FILE
        card.write_text(card.read_text().replace(f'"{PLACE}"', f'"{target}"'))
        with _explained(target):
            api.create_repo(target, private=private, exist_ok=True)
            _refuse_foreign(api, target, folder)
            try:
                commit = api.upload_folder(
                    repo_id=target,
                    folder_path=folder,
                    allow_patterns=list(FILES),
                    commit_message=message,
                )
            except ValueError as error:  # what the hub says of front matter
                text = " ".join(str(error).split())
                raise HubError(f"the hub refused the card of {target}: {text}") from error
    return str(commit.commit_url)


def _refuse_foreign(api: "HfApi", repository: str, scratch: Path) -> None:
    """Refuse a repository that holds anything but a model that upfeat pushed."""
    present = set(api.list_repo_files(repository)) - {".gitattributes"}
    if not present:
        return
    if CONFIG_FILE in present:
        file = api.hf_hub_download(repository, CONFIG_FILE, local_dir=scratch / "present")
        try:
            if "upfeat_version" in read_config(file):
                return
        except CheckpointError:
            pass
    raise HubError(
        f"{repository} exists and holds files that upfeat did not write "
        f"({', '.join(sorted(present)[:3])}); name another repository"
    )


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn what the hub or the network raises into one sentence."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise HubError(f"no access token of the Hugging Face hub is here; {LOGIN}") from error
    except HfHubHTTPError as error:
        raise HubError(_refusal(repository, error)) from error
    except Exception as error:
        if not _is_of_network(error):
            raise
        raise HubError(
            f"the Hugging Face hub is not reachable ({type(error).__name__}: {_line(error)}); "
            "check the network, or use save_pretrained"
        ) from error


def _refusal(repository: str, error: Any) -> str:
    """Say what the hub refused, by the status of its answer."""
    status = getattr(error.response, "status_code", None)
    if status == 401:
        return f"the Hugging Face hub does not know this access token; {LOGIN}"
    if status == 403:
        return (
            f"this access token may not write to {repository}; take a token with write access, or "
            "name a repository of your own"
        )
    if status == 404:
        return f"the Hugging Face hub has no {repository} that this access token may see"
    return f"the Hugging Face hub refused {repository} (status {status}): {_line(error)}"


def _is_of_network(error: Exception) -> bool:
    """Whether it is a timeout, a lost connection, or what an HTTP client makes of one."""
    clients = ("RequestException", "TransportError")  # of requests; of httpx and its successor
    return isinstance(error, OSError) or any(c.__name__ in clients for c in type(error).__mro__)


def _line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "no details")


# -- download --------------------------------------------------------------------------------------


def download_folder(repository: str, options: Mapping[str, Any]) -> Path:
    """Return a local copy of a repository's model, from the hub or from Hugging Face's cache.

    Its download tries an unreachable hub again and again for 25 seconds, so one request asks first.

    Raises:
        WeightsNotFoundError: there is no such repository, or neither hub nor cache has it.
    """
    from huggingface_hub import snapshot_download

    local = offline() or not _reachable(repository, options)
    asked: dict[str, Any] = {"allow_patterns": list(FILES), **options}
    if local:
        asked["local_files_only"] = True
    try:
        return Path(snapshot_download(repository, **asked))
    except Exception as error:  # any failure of the hub is a miss
        raise WeightsNotFoundError(
            f"{repository!r} is neither a folder nor a reachable Hugging Face repository: "
            f"{_reason(error, local)}"
        ) from error


def _reachable(repository: str, options: Mapping[str, Any]) -> bool:
    """Whether the hub answers at all, be it with a refusal."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    if options.get("local_files_only"):
        return True
    url = huggingface_hub.hf_hub_url(
        repository, CONFIG_FILE, revision=options.get("revision"), endpoint=options.get("endpoint")
    )
    try:
        answer(
            lambda: huggingface_hub.get_hf_file_metadata(
                url, timeout=ANSWER_SECONDS, token=options.get("token")
            )
        )
    except HfHubHTTPError:
        return True
    except Exception:  # noqa: BLE001  (whatever a network raises)
        return False
    return True


def _reason(error: Exception, local: bool) -> str:
    if local:
        why = "UPFEAT_OFFLINE or HF_HUB_OFFLINE is set" if offline() else "the hub does not answer"
        return f"{why}, and Hugging Face's cache has no copy"
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 404):
        return "the hub has none of this name that you may read; check the name, or give token="
    return f"{type(error).__name__}: {_line(error)}"
