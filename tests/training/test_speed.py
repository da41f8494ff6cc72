"""What makes training fast changes no result."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from peft_cbpt.clip.pixels import image_encoder, in_batches, prefer_channels_last
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.detection.families import ImageWide
from peft_cbpt.detection.found import find_trigger
from peft_cbpt.detection.universal import collapse
from peft_cbpt.method.inversion import InversionSettings, invert_triggers
from peft_cbpt.training.memory import TextChunks, activation_bytes, image_batch_size, text_chunks
from tests.training.test_cbpt_trainer import make_trainer, trained_context


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("change", [{"lambda_adv": 0.1}, {"per_device_train_batch_size": 5}])
def test_another_run_on_the_same_images_finds_its_inversions(poisoned_clip, few_shots, tmp_path, change):
    """The first adversarial epoch sees other prompts, so most pairs, not all, are the same."""
    cache = str(tmp_path / "cache")
    _, first = trained_context(poisoned_clip, few_shots, tmp_path / "first", feature_cache_dir=cache)
    _, second = trained_context(poisoned_clip, few_shots, tmp_path / "second", feature_cache_dir=cache, **change)
    assert logged(first, "inversions")[0] >= len(few_shots)
    assert sum(logged(second, "inversions")) <= 0.2 * sum(logged(first, "inversions"))
    assert torch.equal(second.frozen_images.bank.features, first.frozen_images.bank.features)


@pytest.mark.parametrize("change", [{"epsilon": 0.01}, {"inversion_steps": 2}, {"inversion_dtype": "bf16"}])
def test_other_inversions_are_not_mistaken_for_them(poisoned_clip, few_shots, tmp_path, change):
    cache = str(tmp_path / "cache")
    trained_context(poisoned_clip, few_shots, tmp_path / "first", feature_cache_dir=cache)
    _, other = trained_context(poisoned_clip, few_shots, tmp_path / "second", feature_cache_dir=cache, **change)
    assert logged(other, "inversions")[0] >= len(few_shots)


@pytest.mark.parametrize("positives, found", [("farthest", True), ("random", False)])
def test_the_seed_matters_to_random_positives_only(poisoned_clip, few_shots, tmp_path, positives, found):
    settings = {"feature_cache_dir": str(tmp_path / "cache"), "positives": positives}
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
        features[name] = trainer.dummy_triggers.invert(rows, (trainer.frozen_images.bank.labels + 1) % 6)
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
    image = torch.rand(1, 3, 48, 48)
    assert image_batch_size(encode_image, image, poisoned_clip.model, 32, memory_gb=1) == 32
    assert 1 < image_batch_size(encode_image, image, poisoned_clip.model, 32, memory_gb=0.02) < 32


@pytest.mark.parametrize("batch_size", [1, 4])
def test_no_more_images_than_asked_for_go_through_the_tower_at_once(poisoned_clip, batch_size):
    """To 1e-6, with the same gradient; a searched trigger is shared by all images, and none of them is left out."""
    poisoned_clip.model.requires_grad_(False)
    sizes = []
    whole = image_encoder(poisoned_clip.model, poisoned_clip.normalize)

    def encode(pixels):
        sizes.append(len(pixels))
        return whole(pixels)

    parts = in_batches(encode, batch_size)
    pixels = torch.rand(6, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(parts(pixels), whole(pixels), rtol=0, atol=1e-6)
    expected, found = (
        find_trigger(one, pixels, collapse, ImageWide(0.05), keyed_generator("parts"), 3) for one in (whole, parts)
    )
    torch.testing.assert_close(found.mark, expected.mark, rtol=0, atol=1e-5)
    assert max(sizes) <= batch_size


def test_text_chunks_follow_the_bound(poisoned_clip, few_shots, tmp_path):
    model = make_trainer(poisoned_clip, few_shots, tmp_path).model
    assert text_chunks(model, 1.0, 1) == TextChunks(None)
    chunks = text_chunks(model, 300_000 / 1e9, 1)
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
