"""CLIPs of published shapes with random weights, and class prompts as long as ImageNet's."""

import torch
from peft import PeftModel, get_peft_model
from transformers import CLIPConfig, CLIPModel

from peft_cbpt.tuner import CBPTConfig

# Tokens of the class names that OpenAI published for ImageNet, in CLIP's vocabulary: (tokens, classes)
NAME_LENGTHS = ((1, 244), (2, 510), (3, 155), (4, 49), (5, 24), (6, 9), (7, 7), (8, 1), (11, 1))
BOS, EOS = 49406, 49407


def build_clip(shape: str, small: bool = False) -> CLIPModel:
    """`vit_b32` or `rn50`, in eval mode and frozen; `small` has few layers, to try the benchmark out."""
    torch.manual_seed(0)
    layers = {"num_hidden_layers": 2} if small else {}
    if shape == "rn50":
        from peft_cbpt.clip.resnet import CLIPResNetConfig, CLIPResNetModel

        clip = CLIPResNetModel(CLIPResNetConfig(text_config=layers, projection_dim=1024))
    else:
        clip = CLIPModel(CLIPConfig(text_config=layers, vision_config=layers))
    return clip.eval().requires_grad_(False)


def attach_prompts(clip: CLIPModel, num_classes: int) -> PeftModel:
    """An adapter for `num_classes` classes whose names have lengths in ImageNet's shares (M = 4)."""
    lengths = [length for length, count in NAME_LENGTHS for _ in range(count)]
    lengths = [lengths[(2 * index + 1) * len(lengths) // (2 * num_classes)] for index in range(num_classes)]
    words = torch.Generator().manual_seed(0)
    names = [torch.randint(1000, 40000, (length,), generator=words).tolist() for length in lengths]
    config = CBPTConfig(
        class_names=[f"class {index}" for index in range(num_classes)],
        class_token_ids=[[*name, 269] for name in names],
        class_name_lengths=lengths,
        template_token_ids=[[BOS, 320, *name, EOS] for name in names],
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return get_peft_model(clip, config)
