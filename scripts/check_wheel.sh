#!/usr/bin/env bash
# Builds sdist and wheel, installs the wheel into an empty environment and uses it outside the repository.
#
#     scripts/check_wheel.sh                     dependencies come from the index
#     scripts/check_wheel.sh SITE_PACKAGES       they are taken from there, and nothing is fetched but the build tools
#
# BUILD names a Python that has `build` and `hatchling`; without it both are fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/env"
python="$work/env/bin/python"
if [ -n "${BUILD:-}" ]; then
    "$BUILD" -m build --no-isolation --outdir "$work/dist" . >"$work/log" || { cat "$work/log"; exit 1; }
else
    python3 -m venv "$work/build"
    "$work/build/bin/python" -m pip install --quiet build
    "$work/build/bin/python" -m build --outdir "$work/dist" . >"$work/log" || { cat "$work/log"; exit 1; }
fi
if [ $# -gt 0 ]; then
    "$python" -m pip install --quiet --no-deps --no-index "$work"/dist/*.whl
    echo "$1" >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
else
    "$python" -m pip install --quiet -c constraints.txt "$work"/dist/*.whl
fi

cd "$work" && unset PYTHONPATH
export HF_HUB_OFFLINE=1
"$work/env/bin/peft-cbpt" --version
"$work/env/bin/peft-cbpt" --help >/dev/null
"$python" - "$work/env" <<'PYTHON'
import sys

import peft_cbpt
import torch
from peft import get_peft_model
from transformers import AutoTokenizer, CLIPModel

assert peft_cbpt.__file__.startswith(sys.argv[1]), peft_cbpt.__file__
from peft_cbpt.pocket.model import resolve_model

folder = resolve_model("pocket:badnet")
clip, tokenizer = CLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
model = get_peft_model(clip, peft_cbpt.CBPTConfig(class_names=["banana", "dog"]).tokenize(tokenizer))
assert model(pixel_values=torch.rand(2, 3, 48, 48)).logits_per_image.shape == (2, 2)
print("the wheel works outside the repository")
PYTHON
