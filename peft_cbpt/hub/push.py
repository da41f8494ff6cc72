"""One commit with everything a stranger needs: adapter, config, card, results, pictures."""

import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from peft_cbpt import __version__
from peft_cbpt.common.errors import HubError, InputError, first_line
from peft_cbpt.hub.adapter_folder import RESULTS_FILE, base_name, find_pictures, read_adapter, read_results
from peft_cbpt.hub.card import CARD_FILE, write_card
from peft_cbpt.hub.evidence import eval_results_file
from peft_cbpt.hub.sharing import find_leaks, is_local
from peft_cbpt.tuner import CBPTConfig
from peft_cbpt.tuner.encoder import FOLDER

REASONS = {
    401: "the token is not valid; log in again with `hf auth login`",
    403: "the token may not write there; use one with write access",
    404: "there is no such repository or revision, or the token may not see it",
    409: "it exists already",
}


def check_destination(repo_id: str, token: str | None = None, base: str | None = None) -> str:
    """See, before any long work, that a push can be asked for; nothing is made on the Hub.

    Args:
        repo_id: `NAMESPACE/NAME`, or `NAME` for the token's owner.
        token: The token; by default the one the `hf` command line uses (HF_TOKEN, or `hf auth login`).
        base: Name of the base model, a Hub id or `pocket:NAME`; without one there is nothing to load the adapter onto.

    Returns:
        The full id.

    Raises:
        InputError: if the id is not one, the base model has no name, or there is no token that may write there.
        HubError: if the Hub cannot be reached.
    """
    if not base:
        raise InputError("the base model is known by a local path only: give its Hub id as base_model_id")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is not a Hub id, NAMESPACE/NAME: {first_line(error)}") from error
    if constants.is_offline_mode():
        raise InputError("a push needs the Hub, but HF_HUB_OFFLINE is set: unset it, or leave out push_to_hub")
    try:
        user = HfApi(token=token).whoami()
    except LocalTokenNotFoundError as error:
        raise InputError("no token to push with: run `hf auth login`, set HF_TOKEN, or give hub_token") from error
    except Exception as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            raise InputError(f"the Hub at {constants.ENDPOINT} refuses the token: {REASONS[401]}") from error
        raise HubError(f"cannot reach the Hub at {constants.ENDPOINT}: {_reason(error)}") from error
    namespaces = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    full_id = repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"
    if full_id.split("/")[0] not in namespaces:
        raise InputError(f"the token's owner may not push to {full_id}: choose one of {', '.join(namespaces)}")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(f"the token may only read, not push to {full_id}: use one with write access")
    return full_id


def push_adapter(
    folder: str | Path,
    repo_id: str,
    *,
    base_model_id: str | None = None,
    revision: str | None = None,
    tag: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Push an adapter in one commit: weights, config, card, results, pictures and `.eval_results`.

    The card is written anew (see `write_card`). No path of this machine and no token leaves it: the config and the
    results are pushed without paths, and any other file with one is refused.

    Args:
        folder: What purify wrote, or any folder of a CBPT adapter. A repaired encoder in `encoder/` goes with it.
        repo_id: `NAMESPACE/NAME`, or `NAME` for the token's owner; made if it does not exist.
        base_model_id: Hub id of the base model, where the adapter's config does not name it.
        revision: Branch to push to, made if it does not exist; the main branch by default.
        tag: Tag for the commit.
        private: Whether a new repository is private; an existing one that is public is then refused.
        token: The token; by default the one the `hf` command line uses.

    Returns:
        The commit; the last one if nothing has changed.

    Raises:
        InputError: if the adapter is damaged, its base model has no name that others could load, a file holds a local
            path or a token, or the destination cannot be pushed to (see `check_destination`).
        HubError: if the Hub fails on the way. Nothing on disk is lost, and the push can be repeated.
    """
    folder = Path(folder)
    config = read_adapter(folder)
    base = base_name(config, base_model_id)
    repo_id = check_destination(repo_id, token, base)
    config.base_model_name_or_path = base
    write_card(folder, config, repo_id)
    files = _contents(folder, config)
    if leaking := sorted(find_leaks(files, folder)):
        raise InputError(f"{leaking[0]} in {folder} holds a local path or a token: remove it from the file first")
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        api = HfApi(token=token, library_name="peft_cbpt", library_version=__version__)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise InputError(f"{repo_id} exists and is public: make it private first, or choose another name")
        if revision and revision != constants.DEFAULT_REVISION:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message="Push CBPT adapter" if isinstance(config, CBPTConfig) else "Push purified encoder",
            revision=revision,
        )
        if tag:
            _tag(api, repo_id, tag, commit.oid)
    except InputError:
        raise
    except Exception as error:  # whatever broke, the user needs to know that nothing is lost
        words = ["peft-cbpt", "push", str(folder), "--hub_model_id", repo_id]
        for option, value in (("--base_model_id", base_model_id), ("--revision", revision), ("--tag", tag)):
            words += [option, value] if value else []
        words += ["--private"] if private else []
        raise HubError(
            f"the push to {repo_id} failed: {_reason(error)}. Everything is in {folder}; try again with: "
            f"{shlex.join(words)}"
        ) from error
    return commit


def name_of_base(model_name_or_path: str, base_model_id: str | None) -> str:
    """What adapters and cards call the base model: a Hub id or `pocket:NAME`; "" for a folder without an id.

    Raises:
        InputError: if `base_model_id` is no Hub id.
    """
    if base_model_id is None:
        return "" if is_local(model_name_or_path) else model_name_or_path
    try:
        validate_repo_id(base_model_id)
    except HFValidationError as error:
        raise InputError(f"base_model_id must be a Hub id, NAMESPACE/NAME, not {base_model_id!r}") from error
    return base_model_id


def plan_push(training: TrainingArguments, base: str) -> Callable[[Path], CommitInfo] | None:
    """Take the push over from the Trainer, which would push its checkpoints and a card of its own.

    Args:
        training: Its `push_to_hub` is switched off; the other `hub_` settings are used.
        base: Name of the base model.

    Returns:
        What pushes the finished folder, or None if no push is wanted.

    Raises:
        InputError, HubError: if the push could not succeed; see `check_destination`.
    """
    if not training.push_to_hub:
        return None
    if not training.hub_model_id:
        raise InputError("push_to_hub needs hub_model_id: NAMESPACE/NAME of the repository to push to")
    if training.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise InputError("checkpoints are not pushed: leave out hub_strategy")
    training.push_to_hub = False
    training.hub_model_id = check_destination(training.hub_model_id, training.hub_token, base)
    return partial(
        push_adapter,
        repo_id=training.hub_model_id,
        revision=training.hub_revision,
        private=training.hub_private_repo,
        token=training.hub_token,
    )


def _adapter_files(folder: Path, base: str | None) -> dict[str, bytes]:
    """Config, without local paths, and weights of an adapter, by name."""
    saved = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    saved |= {"base_model_name_or_path": base} | {name: None for name in ("tokenizer_name_or_path",) if name in saved}
    return {
        CONFIG_NAME: json.dumps(saved, indent=2, sort_keys=True).encode(),
        SAFETENSORS_WEIGHTS_NAME: (folder / SAFETENSORS_WEIGHTS_NAME).read_bytes(),
    }


def _contents(folder: Path, config: PeftConfig) -> dict[str, bytes]:
    """The files to push by name; configs and results without local paths."""
    base = config.base_model_name_or_path
    files = _adapter_files(folder, base) | {CARD_FILE: (folder / CARD_FILE).read_bytes()}
    if isinstance(config, CBPTConfig) and config.encoder_lora and (folder / FOLDER / CONFIG_NAME).is_file():
        files |= {f"{FOLDER}/{name}": content for name, content in _adapter_files(folder / FOLDER, base).items()}
    if results := read_results(folder):
        files[RESULTS_FILE] = (json.dumps(results, indent=2) + "\n").encode()
        if evidence := eval_results_file(results):
            files[evidence[0]] = evidence[1]
    return files | {name: (folder / name).read_bytes() for name in find_pictures(folder)}


def _tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    """Tag a commit; fine if it has the tag already."""
    present = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
    if tag in present and present[tag] != commit:
        raise InputError(
            f"the adapter was pushed, but the tag {tag} of {repo_id} marks another commit: choose another"
        )
    if tag not in present:
        api.create_tag(repo_id, tag=tag, revision=commit)


def _reason(error: Exception) -> str:
    """An error of the Hub as half a sentence."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return REASONS.get(status, f"the Hub answered {status} {error.response.reason_phrase}".rstrip())
    return first_line(error).rstrip(".")
