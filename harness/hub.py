"""Models of the Hugging Face hub, as folders of its cache on this machine."""

from pathlib import Path

from harness.errors import UsageError
from harness.spec import Source

BESIDE = ("*.json", "*.model", "*.txt", "*.jinja")
"""A model's config and tokenizer."""


def download(model: Source, *, local_only: bool = False, weights: bool = True) -> Path:
    """The folder of a model that is a repository of the hub, fetched where it is not here.

    local_only: nothing is fetched. weights: False leaves them there. Raises UsageError where the hub does not give it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = [*BESIDE, *(["*.safetensors"] if weights else []), *(["*.bin"] if weights and model.pickled else [])]
    try:
        found = snapshot_download(
            model.origin, revision=model.revision, allow_patterns=wanted, local_files_only=local_only
        )
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"model '{model.name}': {model.origin} is no folder, and the hub did not give it ({reason}). "
            "Check the name, the revision and the network, or download it and give its folder"
        ) from error
    return Path(found)
