"""The tiny CLIPs of `tiny_clips`, saved once with their tokenizer."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_clips import IMAGE_SIZE, VARIANTS, make_tokenizer
from transformers import AutoModel, CLIPTokenizer, PreTrainedModel

import peft_cbpt  # noqa: F401


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def saved_clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of every variant, with weights, config and tokenizer."""
    folders = {}
    for variant, make in VARIANTS.items():
        torch.manual_seed(0)
        folders[variant] = tmp_path_factory.mktemp(variant)
        make().save_pretrained(folders[variant])
        make_tokenizer().save_pretrained(folders[variant])
    return folders


@pytest.fixture(scope="session")
def loaded_clips(saved_clips: dict[str, Path]) -> dict[str, PreTrainedModel]:
    return {variant: AutoModel.from_pretrained(folder) for variant, folder in saved_clips.items()}


@pytest.fixture
def load_clip(loaded_clips: dict[str, PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    """Gives a variant as it was loaded, so that every test has base models of its own."""

    def load(variant: str = "clip", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        return copy.deepcopy(loaded_clips[variant]).to(dtype).eval()

    return load


@pytest.fixture(scope="session")
def pixels() -> torch.Tensor:
    return torch.rand(5, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
