"""Triggers of a user's own, named MODULE:CLASS."""

from importlib import import_module

from peft_cbpt.attacks.trigger import TRIGGERS
from peft_cbpt.common.errors import InputError


def allow_trigger(name: str) -> None:
    """Import the trigger MODULE:CLASS, so that configs and attack.json may name it.

    This runs the module's code: call it for modules you trust only. Nothing else here imports what a file names.

    Raises:
        InputError: if it cannot be imported, or is no trigger.
    """
    module_name, _, class_name = name.partition(":")
    if not (module_name and class_name):
        raise InputError(f"a trigger of your own is named MODULE:CLASS, as my_module:MyTrigger, not {name!r}")
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever the module does
        raise InputError(f"cannot import the trigger {name}: {error!r}; is its folder on PYTHONPATH?") from error
    kind = getattr(module, class_name, None)
    if kind is None:
        raise InputError(f"the module {module_name} has no class {class_name}")
    frozen = isinstance(kind, type) and getattr(getattr(kind, "__dataclass_params__", None), "frozen", False)
    if not (frozen and all(callable(getattr(kind, does, None)) for does in ("apply_image", "apply_text"))):
        raise InputError(f"{name} is no trigger: that is a frozen dataclass with apply_image and apply_text")
    TRIGGERS[name] = kind
