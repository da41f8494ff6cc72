"""PEFT's own tests, pointed at CBPT on a tiny CLIP.

`scripts/peft_conformance.py` fetches them as the package `peft_tests` and runs this file; plain pytest does not
collect it.
"""

import inspect
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from tiny_clips import IMAGE_SIZE, make_tokenizer, towers
from transformers import CLIPConfig, CLIPModel

from peft_cbpt import CBPTConfig

sys.modules.setdefault("diffusers", MagicMock())  # imported by PEFT's tests, but not for the ones that run here
from peft_tests import test_config, test_custom_models, testing_common  # noqa: E402

CLASSES = ["cat", "dog", "sea lion"]
# PEFT's tests expect that a new adapter does nothing until it learns, unless they ask for a random one.
CONFIG = {"class_names": CLASSES, "context_init": "template"}
EXTRA = {"dtype": torch.bfloat16, "raises_err": False, "test_name": "CBPT"}


class ZeroShotCLIP(CLIPModel):
    """A CLIP as PEFT's tests want their models.

    It returns its logits as a plain tensor, classifies pixels with the template prompts by itself, has input
    embeddings, a `dtype` that can be set, and no scalar parameter (which FSDP refuses).
    """

    dtype = torch.float32

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        self.logit_scale = torch.nn.Parameter(self.logit_scale.detach()[None])

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.text_model.embeddings.token_embedding

    def forward(self, input_ids: Any = None, pixel_values: Any = None) -> torch.Tensor:
        if input_ids is None:
            texts = [f"a photo of a {name}." for name in CLASSES]
            input_ids = make_tokenizer()(texts, padding=True, return_tensors="pt").input_ids
        return super().forward(input_ids, pixel_values).logits_per_image


MODEL_ID = tempfile.mkdtemp(prefix="tiny-clip-")
torch.manual_seed(0)
ZeroShotCLIP(CLIPConfig(**towers(), projection_dim=12)).save_pretrained(MODEL_ID)
make_tokenizer().save_pretrained(MODEL_ID)


def random_init(config_cls: type, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "context_init": "normal"}


def skip_merging(*args: Any) -> None:
    pytest.skip("CBPT does not support merging")


for module in (test_custom_models, testing_common):
    module._skip_if_merging_not_supported = skip_merging
test_custom_models.set_init_weights_false = random_init


class OnTinyClip:
    transformers_class = ZeroShotCLIP

    def prepare_inputs_for_testing(self) -> dict[str, torch.Tensor]:
        pixels = torch.rand(9, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
        return {"pixel_values": pixels}


def pointed_at_cbpt(theirs: type, table: Any, ours: list[tuple[Any, ...]]) -> type:
    """A subclass of `theirs` whose tests over the rows of `table` run over `ours`; it has no other tests."""
    tests: dict[str, Any] = {}
    for name, function in inspect.getmembers(theirs, inspect.isfunction):
        if not name.startswith("test_"):
            continue
        marks = getattr(function, "pytestmark", [])
        if not any(mark.name == "parametrize" and mark.args[1] is table for mark in marks):
            tests[name] = None
            continue
        tests[name] = types.FunctionType(function.__code__, function.__globals__, name, function.__defaults__)
        tests[name].pytestmark = [
            pytest.mark.parametrize(mark.args[0], ours, ids=["CBPT"]).mark
            if mark.name == "parametrize" and mark.args[1] is table
            else mark
            for mark in marks
        ]
    return type(theirs.__name__, (OnTinyClip, theirs), tests)


def common_tests() -> type:
    """The methods `_test_*` of PEFT's common tester as tests."""

    def test_of(name: str, method: Callable[..., None]) -> Callable[..., None]:
        names = list(inspect.signature(method).parameters)
        extra = {key: value for key, value in EXTRA.items() if key in names}
        return lambda self: method(
            self, model_id=MODEL_ID, config_cls=CBPTConfig, config_kwargs={**CONFIG, "context_init": "normal"}, **extra
        )

    methods = inspect.getmembers(testing_common.PeftCommonTester, inspect.isfunction)
    tests = {
        name[1:]: test_of(name, method)
        for name, method in methods
        if name.startswith("_test_") and "config_cls" in inspect.signature(method).parameters
    }
    return type("TestCommon", (OnTinyClip, testing_common.PeftCommonTester), tests)


CASES = [("CBPT", MODEL_ID, CBPTConfig, CONFIG)]
TestCommon = common_tests()
TestCustomModel = pointed_at_cbpt(test_custom_models.TestPeftCustomModel, test_custom_models.TEST_CASES, CASES)
TestFsdpStateDict = pointed_at_cbpt(test_custom_models.TestPeftFsdpStateDict, test_custom_models.TEST_CASES, CASES)
TestConfig = pointed_at_cbpt(
    test_config.TestPeftConfig, test_config.ALL_CONFIG_CLASSES, [(CBPTConfig, {"class_names": CLASSES})]
)
