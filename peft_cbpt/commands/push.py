"""`peft-cbpt push DIR --hub_model_id NAMESPACE/NAME`: share an adapter on the Hub."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from huggingface_hub import CommitInfo
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from peft_cbpt.commands.parsing import folder_first, parse
from peft_cbpt.common.errors import InputError
from peft_cbpt.hub import check_destination, push_adapter
from peft_cbpt.hub.sharing import is_local


@dataclass
class PushArguments:
    """Which adapter to push, and where to."""

    folder: str = field(metadata={"help": "The adapter's folder, as purify wrote it; may be given as the first word."})
    hub_model_id: str = field(metadata={"help": "NAMESPACE/NAME, or NAME for the token's owner."})
    base_model_id: str | None = field(
        default=None, metadata={"help": "Hub id of the base model, where the adapter does not name it."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch; made if it does not exist."})
    tag: str | None = field(default=None, metadata={"help": "Tag for the commit."})
    private: bool = field(default=False, metadata={"help": "Make a new repository private."})
    hub_token: str | None = field(
        default=None, metadata={"help": "Token; by default HF_TOKEN or that of `hf auth login`."}
    )


def push(argv: Sequence[str]) -> None:
    """Push an adapter's folder."""
    (arguments,) = parse([PushArguments], folder_first(argv), __doc__ or "")
    commit = push_adapter(
        arguments.folder,
        arguments.hub_model_id,
        base_model_id=arguments.base_model_id,
        revision=arguments.revision,
        tag=arguments.tag,
        private=arguments.private or None,
        token=arguments.hub_token,
    )
    print(f"pushed: {commit.commit_url}")


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
