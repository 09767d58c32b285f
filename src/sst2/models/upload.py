"""Uploading an exported model to the hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from sst2.config.settings import Settings
from sst2.data.hub import answer_in_time, in_words
from sst2.utils.errors import UserError


def require_hub_login(settings: Settings) -> None:
    """Find out before training, not after it, that an upload cannot work.

    Raises:
        UserError: no token, or the hub does not accept it.
    """
    if not settings.push_to_hub:
        return
    if get_token() is None:
        raise UserError("--push_to_hub needs a token: run `hf auth login`, or set HF_TOKEN")
    try:
        answer_in_time(HfApi().whoami)
    except HfHubHTTPError as error:
        raise UserError(f"--push_to_hub: the hub does not accept the token: {error}") from None
    except Exception as error:  # the HTTP library behind it, and so its exceptions, vary with huggingface_hub's version
        raise UserError(f"--push_to_hub: the hub does not answer ({in_words(error)})") from None


def push_to_hub(folder: Path, repository: str) -> str:
    """Upload the exported folder and return its address.

    Raises:
        UserError: the hub refuses it, or cannot be reached.
    """
    try:
        api = HfApi()
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Fine-tuned model")
    except Exception as error:  # refused, or out of reach: see above
        raise UserError(
            f"--push_to_hub: the model is safe in {folder}, but the upload to {repository} failed ({error}): "
            f"try `hf upload {repository} {folder}`"
        ) from None
    return str(address)
