import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_cbpt.convert.layout import to_openai, to_transformers


@st.composite
def openai_states(draw):
    """Weights named as OpenAI names them, of towers of any depth and width."""
    width = draw(st.integers(1, 4))
    state = {"text_projection": (width, 2), "visual.proj": (width, 2), "logit_scale": (), "ln_final.bias": (width,)}
    state |= {"token_embedding.weight": (5, width), "visual.conv1.weight": (width, 3, 2, 2)}
    for tower in ("transformer", "visual.transformer"):
        for layer in range(draw(st.integers(1, 12))):
            block = f"{tower}.resblocks.{layer}"
            state |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
            state |= {f"{block}.attn.out_proj.weight": (width, width), f"{block}.ln_1.weight": (width,)}
            state |= {f"{block}.mlp.c_fc.weight": (4 * width, width), f"{block}.mlp.c_proj.bias": (width,)}
    state |= {f"other.{name}": (1,) for name in draw(st.lists(st.sampled_from("abc"), unique=True))}
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return {name: torch.randn(shape, generator=generator) for name, shape in state.items()}


@settings(max_examples=30, deadline=None)
@given(openai_states())
def test_names_there_and_back(state):
    theirs = to_transformers(state)
    back = to_openai(theirs)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    assert not [name for name in theirs if "resblocks" in name or "in_proj" in name]
    again = to_transformers(back)
    assert again.keys() == theirs.keys() and all(torch.equal(again[name], theirs[name]) for name in theirs)
