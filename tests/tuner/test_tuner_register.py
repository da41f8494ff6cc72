"""What PEFT knows after the import."""

import importlib
import json
import pickle

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from peft_cbpt import CBPTConfig, CBPTModel
from peft_cbpt.tuner.register import add_peft_type, register


def test_the_method_is_a_full_member_of_peft() -> None:
    member = PeftType("CBPT")
    assert member is PeftType.CBPT is PeftType["CBPT"] is pickle.loads(pickle.dumps(member))
    assert member in PeftType and member in list(PeftType)
    assert isinstance(member, PeftType) and json.dumps({"peft_type": member}) == '{"peft_type": "CBPT"}'
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is CBPTConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[member] is CBPTModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == "cbpt_"


def test_registering_again_changes_nothing() -> None:
    members = list(PeftType)
    assert add_peft_type() is PeftType("CBPT")
    register(CBPTModel)
    importlib.reload(importlib.import_module("peft_cbpt"))
    assert list(PeftType) == members


def test_configs_survive_pickle_and_json(tmp_path) -> None:
    config = CBPTConfig(class_names=["cat", "dog"], class_token_position="front")
    assert pickle.loads(pickle.dumps(config)) == config
    config.save_pretrained(tmp_path)
    assert CBPTConfig.from_pretrained(tmp_path) == config
    assert CBPTConfig().class_names is None
