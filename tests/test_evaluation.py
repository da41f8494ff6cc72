import pytest
import torch

from peft_cbpt.evaluation import accuracy, attack_result, encode_images, template_text_features
from peft_cbpt.tuner import CBPTConfig, CBPTModel

TEXT = torch.eye(3)


def features_of(predictions):
    return TEXT[torch.tensor(predictions)]


def test_accuracy_counts_the_nearest_prompt():
    assert accuracy(features_of([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0]), TEXT) == 0.75


def test_attack_success_leaves_the_target_class_out_and_keeps_the_published_figure():
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    result = attack_result(features_of([0, 0, 0, 1, 0, 1]), labels, TEXT, target_label=0)
    assert result.attack_success_rate == pytest.approx(2 / 4)
    assert result.attack_success_rate_published == pytest.approx(4 / 6)
    assert result.robust_accuracy == pytest.approx(1 / 4)


def test_encoding_does_not_depend_on_the_batch_size(poisoned_clip, few_shots):
    from peft_cbpt.attacks import BadNet
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
