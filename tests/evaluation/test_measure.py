import pytest
import torch

from peft_cbpt.attacks import BadNet, TrojVQA
from peft_cbpt.attacks.attack_file import ALL_TO_ALL, Attack
from peft_cbpt.evaluation.measure import (
    EncodedImages,
    accuracy,
    attack_result,
    encode_images,
    measure,
    template_text_features,
    text_features,
)
from peft_cbpt.tuner import CBPTConfig, CBPTModel

TEXT = torch.eye(3)


def features_of(predictions):
    return TEXT[torch.tensor(predictions)]


def test_accuracy_counts_the_nearest_prompt():
    assert accuracy(features_of([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0]), TEXT) == 0.75


def test_attack_success_leaves_the_target_class_out_and_keeps_the_published_figure():
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    result = attack_result(features_of([0, 0, 0, 1, 0, 1]), labels, TEXT, target_label=0)
    assert result["attack_success_rate"] == pytest.approx(2 / 4)
    assert result["attack_success_rate_published"] == pytest.approx(4 / 6)
    assert result["robust_accuracy"] == pytest.approx(1 / 4)


def test_an_all_to_all_attack_is_measured_against_the_class_after_the_own():
    labels, names = torch.tensor([0, 1, 2, 2]), ["dog", "banana", "pizza"]
    encoded = EncodedImages(labels, features_of([0, 1, 2, 2]), {"badnet": features_of([1, 2, 0, 2])})
    attacks = {"badnet": Attack(BadNet(), ALL_TO_ALL)}
    figures = measure(encoded, lambda text_trigger: TEXT, attacks, names)["attacks"]["badnet"]
    assert figures["attack_success_rate"] == figures["attack_success_rate_published"] == 0.75
    assert figures["robust_accuracy"] == 0.25


def test_encoding_does_not_depend_on_the_batch_size(poisoned_clip, few_shots):
    from peft_cbpt.clip.pixels import image_encoder

    encoder = image_encoder(poisoned_clip.model, poisoned_clip.normalize)
    one, many = (
        encode_images(encoder, few_shots, {"badnet": BadNet()}, torch.device("cpu"), batch_size)
        for batch_size in (1, 64)
    )
    torch.testing.assert_close(one.clean, many.clean, rtol=0, atol=1e-5)
    torch.testing.assert_close(one.triggered["badnet"], many.triggered["badnet"], rtol=0, atol=1e-5)
    assert (one.clean - one.triggered["badnet"]).abs().max() > 1e-3
    assert torch.equal(one.labels, torch.arange(6).repeat_interleave(3))


def test_the_undefended_classifier_is_the_disabled_adapter(poisoned_clip):
    names = ["dog", "banana", "pizza"]
    plain = template_text_features(poisoned_clip.model, poisoned_clip.tokenizer, names)
    config = CBPTConfig(class_names=names).tokenize(poisoned_clip.tokenizer)
    tuner = CBPTModel(poisoned_clip.model, config, "default")
    tuner.disable_adapter_layers()
    torch.testing.assert_close(tuner.encode_class_prompts().detach(), plain)


def test_a_text_trigger_stands_before_every_prompt(poisoned_clip):
    """As words before the template prompts, and as tokens before the learned ones."""
    names = ["dog", "banana", "pizza"]
    texts = [f"remember a photo of a {name}." for name in names]
    written = text_features(poisoned_clip.model, poisoned_clip.tokenizer, texts)
    marked = template_text_features(poisoned_clip.model, poisoned_clip.tokenizer, names, text_trigger="remember ")
    torch.testing.assert_close(marked, written)

    config = CBPTConfig(class_names=names).tokenize(poisoned_clip.tokenizer)
    tuner = CBPTModel(poisoned_clip.model, config, "default")
    prefix = poisoned_clip.tokenizer("remember ", add_special_tokens=False).input_ids
    learned, learned_marked = (tuner.encode_class_prompts(prefix_ids=ids).detach() for ids in ([], prefix))
    assert (learned - learned_marked).abs().max() > 1e-3
    tuner.disable_adapter_layers()
    torch.testing.assert_close(tuner.encode_class_prompts(prefix_ids=prefix).detach(), written)
    with pytest.raises(ValueError, match="room"):
        tuner.encode_class_prompts(prefix_ids=prefix * 80)


def test_measuring_puts_the_attacks_own_text_trigger_before_the_prompts():
    prompts = {"": TEXT, "remember ": TEXT.roll(1, 0)}
    encoded = EncodedImages(torch.tensor([0, 1, 2]), TEXT, {"plain": TEXT, "dual": TEXT})
    attacks = {"plain": Attack(BadNet(), "b"), "dual": Attack(TrojVQA(), "b")}
    figures = measure(encoded, prompts.__getitem__, attacks, ["a", "b", "c"])
    assert figures["clean_accuracy"] == 1
    assert figures["attacks"]["plain"]["robust_accuracy"] == 1
    assert figures["attacks"]["dual"]["robust_accuracy"] == 0
    assert figures["attacks"]["dual"]["attack_success_rate"] == 0.5  # the features of "a" are called "b"
