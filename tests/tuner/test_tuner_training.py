"""Training set-ups: gradient checkpointing, compilation, several processes."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModel, PreTrainedModel

from peft_cbpt import CBPTConfig

CLASSES = ["cat", "dog", "sea lion"]
LABELS = [0, 1, 2, 0]


@pytest.fixture
def model(load_clip: Callable[..., PreTrainedModel]) -> PeftModel:
    return make_model(load_clip())


def make_model(clip: PreTrainedModel) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(clip, CBPTConfig(class_names=CLASSES)).train()


def context_gradient(model: nn.Module, pixels: torch.Tensor, labels: list[int]) -> torch.Tensor:
    (context,) = (parameter for parameter in model.parameters() if parameter.requires_grad)
    context.grad = None
    logits = model(pixel_values=pixels).logits_per_image
    nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
    assert context.grad is not None and context.grad.abs().sum() > 0
    return context.grad.clone()


def test_training_goes_on_after_inference_mode(model: PeftModel, pixels: torch.Tensor) -> None:
    with torch.inference_mode():
        model(pixel_values=pixels)
        model.encode_class_prompts()
    model.encode_class_prompts().sum().backward()
    context_gradient(model, pixels[:4], LABELS)


@contextmanager
def counted_calls(module: nn.Module) -> Iterator[list[int]]:
    calls: list[int] = []
    hook = module.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("before_wrapping", [True, False])
def test_gradient_checkpointing(
    model: PeftModel, pixels: torch.Tensor, load_clip: Any, use_reentrant: bool, before_wrapping: bool
) -> None:
    expected = context_gradient(model, pixels[:4], LABELS)
    clip = load_clip()
    if before_wrapping:
        clip.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    checkpointed = make_model(clip)
    if not before_wrapping:
        checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        checkpointed.enable_input_require_grads()
    with counted_calls(clip.text_model.encoder.layers[0].self_attn) as calls:
        gradient = context_gradient(checkpointed, pixels[:4], LABELS)
    torch.testing.assert_close(gradient, expected)
    assert len(calls) == 2, "the text tower was not computed again in the backward pass"


def test_chunks_are_computed_again_in_the_backward_pass(model: PeftModel) -> None:
    with counted_calls(model.get_base_model().text_model) as calls:
        model.encode_class_prompts(chunk_size=2).sum().backward()
    assert len(calls) == 4


def test_compiles_without_graph_break(model: PeftModel, pixels: torch.Tensor) -> None:
    layer = model.get_base_model().text_model.embeddings.token_embedding
    ids = model.class_prompt_ids()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(ids), layer(ids))
    whole = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    torch.testing.assert_close(
        context_gradient(whole, pixels[:4], LABELS), context_gradient(model, pixels[:4], LABELS)
    )


def train_in_one_of_two_processes(rank: int, folder: Path, clip_folder: Path, pixels: torch.Tensor) -> None:
    """Takes half of the batch and saves the gradient that the processes agree on."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting-point", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(make_model(AutoModel.from_pretrained(clip_folder)))
    half = slice(2 * rank, 2 * rank + 2)
    torch.save(context_gradient(model, pixels[half], LABELS[half]), folder / f"{rank}.pt")
    torch.distributed.barrier()  # or one process may wait for ever for the other, which is gone
    torch.distributed.destroy_process_group()


def test_two_processes_average_their_gradients(
    model: PeftModel, pixels: torch.Tensor, saved_clips: dict[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(
        train_in_one_of_two_processes, (tmp_path, saved_clips["clip"], pixels[:4].clone()), nprocs=2
    )
    gradients = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], context_gradient(model, pixels[:4], LABELS))
