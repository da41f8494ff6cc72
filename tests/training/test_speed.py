"""What makes training fast changes no result."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from peft_cbpt.clip.pixels import image_encoder, prefer_channels_last
from peft_cbpt.method.inversion import InversionSettings, invert_triggers
from peft_cbpt.training.memory import TextChunks, activation_bytes, image_batch_size, text_chunks
from tests.training.test_cbpt_trainer import make_trainer, trained_context


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("change", [{"lambda_adv": 0.1}, {"text_chunk_size": 2}, {"per_device_train_batch_size": 5}])
def test_another_run_on_the_same_images_finds_its_inversions(poisoned_clip, few_shots, tmp_path, change):
    """The first adversarial epoch sees other prompts, so most pairs, not all, are the same."""
    cache = str(tmp_path / "cache")
    _, first = trained_context(poisoned_clip, few_shots, tmp_path / "first", cache_dir=cache)
    _, second = trained_context(poisoned_clip, few_shots, tmp_path / "second", cache_dir=cache, **change)
    assert logged(first, "inversions")[0] >= len(few_shots)
    assert sum(logged(second, "inversions")) <= 0.2 * sum(logged(first, "inversions"))
    assert torch.equal(second.inverter.bank.features, first.inverter.bank.features)


@pytest.mark.parametrize("change", [{"epsilon": 0.01}, {"inversion_steps": 2}, {"inversion_dtype": "bf16"}])
def test_other_inversions_are_not_mistaken_for_them(poisoned_clip, few_shots, tmp_path, change):
    cache = str(tmp_path / "cache")
    trained_context(poisoned_clip, few_shots, tmp_path / "first", cache_dir=cache)
    _, other = trained_context(poisoned_clip, few_shots, tmp_path / "second", cache_dir=cache, **change)
    assert logged(other, "inversions")[0] >= len(few_shots)


@pytest.mark.parametrize("positives, found", [("farthest", True), ("random", False)])
def test_the_seed_matters_to_random_positives_only(poisoned_clip, few_shots, tmp_path, positives, found):
    settings = {"cache_dir": str(tmp_path / "cache"), "positives": positives}
    trained_context(poisoned_clip, few_shots, tmp_path / "first", **settings)
    _, other = trained_context(poisoned_clip, few_shots, tmp_path / "second", seed=1, **settings)
    assert (logged(other, "inversions")[0] < len(few_shots) / 2) == found


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_features(poisoned_clip, few_shots, tmp_path, dtype):
    """Perturbed features to a cosine of 0.98, of the same pairs."""
    features = {}
    for name in ("fp32", dtype):
        trainer = make_trainer(poisoned_clip, few_shots, tmp_path / name, inversion_dtype=name, num_train_epochs=1)
        trainer.train()
        rows = torch.arange(len(few_shots))
        features[name] = trainer.inverter.invert(rows, (trainer.inverter.bank.labels + 1) % 6)
    assert features[dtype].dtype == torch.float32
    assert not torch.equal(features[dtype], features["fp32"])
    assert (features[dtype] * features["fp32"]).sum(1).min() > 0.98


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def leaves(node):
    """The tensors that a backward pass from `node` would give a gradient to."""
    found, seen, open_nodes = [], set(), [node]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found += [node.variable] if hasattr(node, "variable") else []
        open_nodes += [following for following, _ in node.next_functions]
    return found


def test_inversion_uses_sdpa_and_no_gradient_of_a_weight(poisoned_clip, few_shots, tmp_path):
    trainer = make_trainer(poisoned_clip, few_shots, tmp_path)
    base = trainer.model.get_base_model()
    assert not any(parameter.requires_grad for parameter in base.vision_model.parameters())
    learned = [name for name, parameter in base.named_parameters() if parameter.requires_grad]
    assert len(learned) == 1 and "cbpt_context" in learned[0]
    encode_image = image_encoder(base, poisoned_clip.normalize)
    features = torch.nn.functional.normalize(torch.randn(2, 2, base.config.projection_dim), dim=-1)
    with Operations() as operations:
        invert_triggers(encode_image, torch.rand(2, 3, 48, 48), *features, InversionSettings(steps=1))
    assert any("scaled_dot_product" in name and "backward" in name for name in operations.names)
    pixels = torch.rand(2, 3, 48, 48, requires_grad=True)
    (leaf,) = leaves(encode_image(pixels).sum().grad_fn)
    assert leaf is pixels


def test_activations_are_counted(poisoned_clip):
    layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8)).requires_grad_(False)
    image = torch.rand(4, 8, requires_grad=True)
    assert activation_bytes(lambda: layers(image), layers) == 4 * 8 * 4  # what ReLU keeps
    encode_image = image_encoder(poisoned_clip.model, poisoned_clip.normalize)
    assert image_batch_size(encode_image, torch.rand(1, 3, 48, 48), poisoned_clip.model) == 32


def test_text_chunks_follow_the_budget(poisoned_clip, few_shots, tmp_path, monkeypatch):
    model = make_trainer(poisoned_clip, few_shots, tmp_path).model
    assert text_chunks(model, torch.device("cpu"), 1) == TextChunks(None)
    monkeypatch.setattr("peft_cbpt.training.memory.TEXT_BUDGET", {"cpu": 300_000})
    chunks = text_chunks(model, torch.device("cpu"), 1)
    assert chunks.chunk_size == 1 and 0 < chunks.kept_tokens < sum(model.class_prompt_lengths())
    whole = model.encode_class_prompts()
    parts = model.encode_class_prompts(None, chunks.chunk_size, (), chunks.kept_tokens)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


def test_prompts_by_length_are_those_padded_to_one_length(poisoned_clip, few_shots, tmp_path):
    """To 1e-6, in the order asked for."""
    model = make_trainer(poisoned_clip, few_shots, tmp_path).model
    wanted = [3, 0, 5, 3]
    padded = model.base_model._encode(model.class_prompt_ids(wanted))
    torch.testing.assert_close(model.encode_class_prompts(wanted), padded, rtol=0, atol=1e-6)


def test_channels_last_is_for_convolutional_towers():
    tower = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 5, 3))
    image = torch.rand(2, 3, 8, 8)
    before = tower(image)
    prefer_channels_last(tower)
    after = tower(image)
    assert after.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    patches = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    prefer_channels_last(patches)
    assert not patches[0].weight.is_contiguous(memory_format=torch.channels_last)
