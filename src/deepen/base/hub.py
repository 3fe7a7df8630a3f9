"""Turn MODEL, a local folder, a hub id or registry:NAME, into an open checkpoint."""

import re
from pathlib import Path

from deepen.base.checkpoint import FolderSource
from deepen.base.folder import WEIGHTS
from deepen.base.quantised import refuse_quantised
from deepen.base.registry import named
from deepen.common.errors import DeepenError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SIDE_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.md", "LICENSE*", "NOTICE*"]
_IGNORED = ["original/*", "*consolidated*", "onnx/*", "*.gguf"]


def open_checkpoint(
    model: str | Path, revision: str | None = None, *, quantised: bool = False
) -> FolderSource:
    """Open a checkpoint for reading; what is not here is fetched into a cache first.

    Args:
        model: A folder, a hub id such as ``meta-llama/Llama-3.1-8B``, or ``registry:NAME``.
        revision: Branch, tag or commit on the hub.
        quantised: Whether quantised weights will do.

    Raises:
        DeepenError: There is no such folder or hub model, or the checkpoint is damaged.
    """
    source = _open(model, revision)
    if not quantised:
        refuse_quantised(source.quantisation, source.name)
    return source


def _open(model: str | Path, revision: str | None) -> FolderSource:
    """Open a folder, a package's model or what the hub has."""
    if (name := named(model)) is not None:
        from deepen.base.registry.models import opened

        return FolderSource(opened(name), name=str(model))
    folder = Path(model)
    if folder.exists() or not _HUB_ID.fullmatch(str(model)):
        return FolderSource(folder)
    snapshot = _fetch(str(model), revision)
    # The hub's cache names a snapshot's folder after its commit.
    return FolderSource(snapshot, name=str(model), revision=snapshot.name)


def _fetch(repo_id: str, revision: str | None) -> Path:
    """Download a model's files, or find them in the cache, preferring safetensors over ``.bin``."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def download(weights: str) -> Path:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=[*_SIDE_FILES, weights],
                ignore_patterns=_IGNORED,
            )
        )

    try:
        snapshot = download("*.safetensors")
        # An adapter or a variant is safetensors too, and not what transformers reads.
        if not any((snapshot / name).is_file() for name in WEIGHTS[:2]):
            snapshot = download("*.bin")
    except LocalEntryNotFoundError:
        raise DeepenError(
            f"{repo_id!r} is neither a folder here nor in the hub's cache, and the hub cannot be "
            f"reached; check the path, or fetch the model while online."
        ) from None
    except HfHubHTTPError as error:
        raise DeepenError(
            f"The hub refused {repo_id!r} ({str(error).splitlines()[0]}); "
            f"check the name, and `hf auth login` for gated models."
        ) from None
    if not any(file.suffix in (".safetensors", ".bin") for file in snapshot.rglob("*")):
        _refuse_gguf(repo_id, snapshot.name)
    return snapshot


def _refuse_gguf(repo_id: str, commit: str) -> None:
    """Refuse a model whose weights are GGUF files, which were not fetched.

    Raises:
        DeepenError: They are.
    """
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(repo_id, revision=commit)
    except Exception:  # offline, or whatever else keeps the hub from answering
        return
    if files := sorted(name for name in names if name.lower().endswith(".gguf")):
        raise DeepenError(
            f"{repo_id!r} holds GGUF weights alone ({files[0]}); fetch that file, `hf download "
            f"{repo_id} {files[0]} --local-dir DIR`, write it as a checkpoint with `deepen import "
            f"DIR/{files[0]} OUT`, and give OUT."
        )
