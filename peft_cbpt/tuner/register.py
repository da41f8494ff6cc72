"""Makes PEFT know the method CBPT.

`PeftType` is a closed enum and PEFT has no entry point for methods of other packages, so the member is
added by hand. Importing `peft_cbpt` does it, once.
"""

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method

from peft_cbpt.tuner.config import CBPTConfig

NAME = "CBPT"


def add_peft_type() -> PeftType:
    """Adds the member `PeftType.CBPT` unless it is there, and returns it.

    The result is a full member: `PeftType("CBPT")`, `PeftType["CBPT"]`, iteration, pickle and JSON work.
    """
    if NAME in PeftType.__members__:
        return PeftType[NAME]
    member = str.__new__(PeftType, NAME)
    member._name_ = NAME
    member._value_ = NAME
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    member._sort_order_ = len(PeftType)  # type: ignore[attr-defined]
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    type.__setattr__(PeftType, NAME, member)
    return member


def register(model_cls: type[BaseTuner]) -> None:
    """Registers `CBPTConfig` and the tuner `model_cls` with PEFT; a second call does nothing."""
    if add_peft_type() not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=CBPTConfig, model_cls=model_cls)
