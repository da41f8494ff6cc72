"""Share an adapter on the Hub, after a look at its files."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from peft_cbpt.commands.help_page import HelpPage
from peft_cbpt.commands.parsing import folder_first, parse
from peft_cbpt.hub.push import push_adapter

PAGE = HelpPage("push", "peft-cbpt push out --hub_model_id you/name")


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
    (arguments,) = parse([PushArguments], folder_first(argv), __doc__ or "", PAGE)
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
