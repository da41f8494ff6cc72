"""The tiny CLIPs of `tiny_clips`, saved once with their tokenizer, and with the adapters of `adapter_table`."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_table import CLASSES, ROWS, Row
from peft import PeftModel, get_peft_model
from tiny_clips import IMAGE_SIZE, VARIANTS, make_tokenizer, tokenizer_of
from transformers import AutoModel, CLIPTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from peft_cbpt import CBPTConfig
from peft_cbpt.tuner.families import caption_ids


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
        tokenizer_of(variant).save_pretrained(folders[variant])
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


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture
def base(row: Row, load_clip: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """The base model, never touched."""
    return load_clip(row.clip)


@pytest.fixture
def clip(row: Row, load_clip: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """The same base model, to be given adapters."""
    return load_clip(row.clip)


@pytest.fixture
def model(row: Row, clip: PreTrainedModel) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(clip, CBPTConfig(class_names=CLASSES, **row.config)).eval()


@pytest.fixture
def row_tokenizer(row: Row) -> PreTrainedTokenizerBase:
    """The tokenizer of the row's CLIP."""
    return tokenizer_of(row.clip)


@pytest.fixture
def captions(row_tokenizer: PreTrainedTokenizerBase, base: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {"input_ids": caption_ids(base, row_tokenizer, ["a photo of a cat.", "two ants (red)"])}
