import json
import subprocess
import sys

import pytest
import torch
from transformers import CLIPModel

from peft_cbpt.clip.pixels import PixelNormalizer, image_encoder
from peft_cbpt.clip.resnet import CLIPResNetModel
from peft_cbpt.common.errors import InputError
from peft_cbpt.training.encoder_arguments import EncoderPurifierArguments
from peft_cbpt.training.encoder_trainer import EncoderPurifier, purify_encoder
from tests.fresh import run_in_two_processes
from tests.tuner.tiny_clips import IMAGE_SIZE, VARIANTS


def images(count=10):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=generator)
    return [{"pixel_values": one} for one in pixels]


def tiny(kind="clip"):
    torch.manual_seed(0)
    return VARIANTS[kind]().eval()


def settings(folder, **others):
    few = {"max_steps": 4, "save_steps": 2, "search_every": 2, "search_steps": 2, "search_images": 4}
    few |= {
        "kinds": ["wave", "warp"],
        "per_device_train_batch_size": 4,
        "disable_tqdm": True,
        "report_to": "none",
        "learning_rate": 1e-2,
    }
    return EncoderPurifierArguments(output_dir=str(folder), **(few | others))


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items() if "lora_" in name}


def features(clip, pixels=None):
    pixels = torch.rand(3, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return image_encoder(clip, PixelNormalizer())(pixels)


@pytest.mark.parametrize("kind", ["clip", "clip-resnet", "batch-norm-subclass", "siglip", "siglip2", "metaclip2"])
def test_only_a_lora_on_the_image_tower_learns(kind, tmp_path):
    clip = tiny(kind)
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    model = purify_encoder(clip, images(), settings(tmp_path))
    after = {name.replace(".base_layer.", "."): value for name, value in clip.state_dict().items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learned and all("lora_" in name and ("vision_model" in name or "visual_proj" in name) for name in learned)
    layers = {name.split(".lora_")[0] for name in learned}
    if kind == "clip":
        assert len(layers) == 1 + 2 * 6 + 1  # patches, two layers, the projection
    if kind == "clip-resnet":
        assert sum("attnpool" in name for name in layers) == 4 and any("layer4.0.conv2" in name for name in layers)
    assert all(value.abs().max() > 0 for name, value in weights(model).items() if "lora_B" in name)


LOADS_ALONE = """
import sys, torch
from peft import PeftModel
from transformers import CLIPModel
model = PeftModel.from_pretrained(CLIPModel.from_pretrained(sys.argv[1]), sys.argv[2]).eval()
pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
one = model.get_image_features(pixel_values=pixels).pooler_output
merged = model.merge_and_unload()
assert type(merged) is CLIPModel and not any("lora" in name for name, _ in merged.named_parameters())
other = merged.get_image_features(pixel_values=pixels).pooler_output
torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
assert not any(name.startswith("peft_cbpt") for name in sys.modules)
print(other.tolist())
"""


def test_the_adapter_loads_and_merges_without_this_package(tmp_path):
    clip = tiny()
    clip.save_pretrained(tmp_path / "base")
    purified = purify_encoder(clip, images(), settings(tmp_path / "run"))
    purified.save_pretrained(tmp_path / "adapter")
    words = [sys.executable, "-W", "ignore", "-c", LOADS_ALONE, str(tmp_path / "base"), str(tmp_path / "adapter")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    with torch.no_grad():
        here = purified.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "family"), [("clip", CLIPModel), ("clip-resnet", CLIPResNetModel)])
def test_a_merged_model_is_saved_as_a_clip_with_the_same_features(kind, family, tmp_path):
    model = purify_encoder(tiny(kind), images(), settings(tmp_path / "run"))
    expected = features(model.get_base_model())
    assert (expected - features(tiny(kind))).abs().max() > 1e-4
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    loaded = family.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(features(loaded), expected, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path):
    whole = weights(purify_encoder(tiny(), images(), settings(tmp_path / "whole")))
    half = settings(tmp_path / "half")
    trainer = EncoderPurifier(tiny(), half, images())

    class Stop(Exception):
        pass

    original = trainer._save_checkpoint

    def stop_after_checkpoint(*args):
        original(*args)
        raise Stop

    trainer._save_checkpoint = stop_after_checkpoint
    with pytest.raises(Stop):
        trainer.train()
    resumed = purify_encoder(tiny(), images(), settings(tmp_path / "half", resume_from_checkpoint=True))
    for name, value in weights(resumed).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-6)


def test_the_seed_decides_everything(tmp_path):
    one, again, other = (
        weights(purify_encoder(tiny(), images(), settings(tmp_path / str(number), seed=seed, save_strategy="no")))
        for number, seed in enumerate((0, 0, 1))
    )
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_every_epoch_logs_its_losses(tmp_path):
    trainer = EncoderPurifier(tiny(), settings(tmp_path, num_train_epochs=2, max_steps=-1), images())
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss_hold" in entry]
    assert [entry["epoch"] for entry in logged] == [1, 2]
    assert all(entry["loss_pull"] > 0 for entry in logged)


def test_bf16_trains_and_leaves_finite_weights(tmp_path):
    model = purify_encoder(tiny(), images(), settings(tmp_path, bf16=True))
    assert all(value.isfinite().all() for value in weights(model).values())
    assert torch.isfinite(features(model.get_base_model())).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"lora_rank": 0},
        {"kinds": ["sound"]},
        {"kinds": []},
        {"hold_weight": -1},
        {"update_weight": -1},
        {"search_images": 1},
    ],
)
def test_a_setting_out_of_range_is_refused(wrong, tmp_path):
    with pytest.raises(InputError, match=next(iter(wrong))):
        settings(tmp_path, **wrong)


TWO = """
import sys, torch
from peft_cbpt.training.encoder_trainer import EncoderPurifier
from tests.training.test_encoder_trainer import images, settings, tiny, weights
from accelerate.utils import gather_object
trainer = EncoderPurifier(tiny(), settings(sys.argv[1], save_strategy="no", per_device_train_batch_size=2), images())
trainer.train()
mine = [float(value.double().sum()) for value in weights(trainer.model).values()]
mine += [float(one.mark.double().sum()) for one in trainer.pool.triggers]
one, other = gather_object([mine])
if trainer.is_world_process_zero():
    print("equal" if one == other else (one, other))
torch.distributed.destroy_process_group()
"""


def test_two_processes_share_triggers_and_adapter(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    assert run_in_two_processes(str(script), str(tmp_path / "run")).strip().endswith("equal")
