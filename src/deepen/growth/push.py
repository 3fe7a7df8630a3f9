"""Upload a finished checkpoint to the Hugging Face hub, which is only done when it is asked for.

What can be known is checked before any work begins; what fails afterwards leaves the local folder
as it is.
"""

from pathlib import Path
from typing import Any

from deepen.common.errors import DeepenError
from deepen.common.system import versions

_WEIGHTS = ["*.safetensors", "*.bin", "*.index.json"]
"""Of these, what the repository has and the folder has not goes, or a loader might read it."""


def check_push(repo_id: str, *, private: bool = False) -> None:
    """Refuse to begin work whose result could not be uploaded.

    Args:
        repo_id: ``owner/name`` on the hub, or a name of one's own.
        private: Whether nobody else is to see it.

    Raises:
        DeepenError: The name is none, there is no token or it may not write there, the hub cannot
            be reached, or the repository is there for all to see and should be private.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise DeepenError(f"--push-to-hub {repo_id!r} is no name on the hub ({error})") from None
    if constants.is_offline_mode():
        raise DeepenError("--push-to-hub needs the hub, but HF_HUB_OFFLINE is set; unset it.")
    if get_token() is None:
        raise DeepenError("--push-to-hub needs a token: `hf auth login`, or set HF_TOKEN.")
    api = HfApi()
    try:
        user = api.whoami()
        _check_token(user, repo_id)
        name = repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"
        _check_visible(api, name, private)
    except _failures() as error:
        raise DeepenError(
            f"The hub does not answer as it should ({_first_line(error)}); check the token and the "
            f"network, or leave out --push-to-hub and push later."
        ) from None


def push(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a checkpoint's folder; the repository is made if it is not there.

    Weights that lie there and not here are deleted, so that nobody reads them in place of these.

    Args:
        folder: The checkpoint.
        repo_id: ``owner/name`` on the hub, or a name of one's own.
        private: Whether nobody else is to see it.

    Returns:
        The model's address.

    Raises:
        DeepenError: The hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        _check_visible(api, url.repo_id, private)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            commit_message=f"Upload by deepen {versions()['deepen']}",
            delete_patterns=_WEIGHTS,
        )
    except _failures() as error:
        later = f"hf upload {repo_id} {folder} .{' --private' if private else ''}"
        raise DeepenError(
            f"{str(folder)!r} is whole, but the hub did not take it ({_first_line(error)}); push "
            f"it later with `{later}`."
        ) from None
    return str(url)


def _check_token(user: dict[str, Any], repo_id: str) -> None:
    """Refuse a token that may not write to a repository.

    Raises:
        DeepenError: It may only read, or belongs to somebody else.
    """
    token = user.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise DeepenError(
            "The hub's token may only read; make one that may write, and `hf auth login`."
        )
    owner, slash, _ = repo_id.rpartition("/")
    owners = [user["name"], *(org["name"] for org in user.get("orgs", []))]
    if slash and owner.lower() not in {name.lower() for name in owners}:
        raise DeepenError(
            f"The hub's token is of {owners[0]!r} and cannot write to {owner!r}; it can to "
            f"{', '.join(owners)}."
        )


def _check_visible(api: Any, repo_id: str, private: bool) -> None:  # noqa: ANN401 (as the hub's)
    """Refuse to make public what should be private.

    Raises:
        DeepenError: The repository is there, and public.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    if not private:
        return
    try:
        is_private = api.model_info(repo_id).private
    except RepositoryNotFoundError:
        return
    if not is_private:
        raise DeepenError(
            f"{repo_id!r} is on the hub already, and public; choose another name, make it private "
            f"there, or leave out --private."
        )


def _failures() -> tuple[type[Exception], ...]:
    """Return what the hub's client raises if it cannot do what it should."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its base is what the client's HTTP library, httpx or a later one, raises for everything.
    (library_error, *_) = HfHubHTTPError.__bases__
    assert issubclass(library_error, Exception)
    return HfHubHTTPError, library_error, OSError


def _first_line(error: Exception) -> str:
    """Return the first line of an error, or its name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
