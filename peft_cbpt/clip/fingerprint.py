"""A hash of a CLIP's weights, to tell base models apart and to show that purification left one untouched."""

import hashlib

import torch
from torch import nn


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over names and float32 values of the model's weights, adapters left out.

    The same for float16 weights and for the same values held in float32, and for any file they are stored in.
    """
    digest = hashlib.sha256()
    state = {
        name.replace(".base_layer.", "."): value
        for name, value in model.state_dict().items()
        if "cbpt_" not in name and value.is_floating_point()
    }
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
