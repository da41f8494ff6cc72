"""The same adapters as an earlier commit makes, and how long both take, in one run on one machine.

    python benchmarks/against_commit.py c29c755 --name moved_rooms
    python benchmarks/against_commit.py c29c755 --name moved_rooms --jobs pocket "pocket, literal" --repeats 1

Every job runs in both checkouts in turn, in a folder of its own, with an empty feature cache. Stored is the largest
difference of the learned context and the least seconds of purification, as benchmarks/results/NAME.json; jobs that are
stored already are not run again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from peft_cbpt.clip.loading import load_clip
from peft_cbpt.clip.resnet import CLIPResNetConfig, CLIPResNetModel
from peft_cbpt.common.files import write_json
from peft_cbpt.common.records import made_now
from peft_cbpt.pocket.model import resolve_model

ROOT = Path(__file__).resolve().parents[1]
POCKET = ROOT / "recipes" / "configs" / "pocket"
NEW_NAMES = {"dummy_triggers": "target", "feature_cache_dir": "cache_dir"}
"""What settings were called in commits that do not know their name."""
SAME_BATCHES = {"inversion_batch_size": 32}
"""Today's default; batches of another size differ in their last digits."""
LARGE = {"dataset_name": "pocket:base", "num_classes": 4, "num_shots": 4, "num_train_epochs": 3, "warmup_epochs": 1}
LARGE |= {"test_images_per_class": 1, "dummy_triggers": "runner_up", "seed": 0, "use_cpu": True}
JOBS = {
    "pocket": yaml.safe_load((POCKET / "purify_prompts.yaml").read_text()) | SAME_BATCHES,
    "pocket, literal": yaml.safe_load((POCKET / "purify_literal.yaml").read_text()) | SAME_BATCHES,
    "ViT-B/32 shape": LARGE | {"model_name_or_path": "vit_b32"},
    "RN50 shape": LARGE | {"model_name_or_path": "rn50"},
}


def write_large(folder: Path, kind: str) -> str:
    """A CLIP of a published shape with random weights, for the pocket CLIP's tokens."""
    pocket = load_clip(resolve_model("pocket:badnet"))
    words = pocket.model.config.text_config
    tokens = {name: getattr(words, name) for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    if kind == "rn50":
        model = CLIPResNetModel(CLIPResNetConfig(text_config=tokens, projection_dim=1024))
    else:
        model = CLIPModel(CLIPConfig(text_config=tokens))
    for part in (model, pocket.tokenizer, CLIPImageProcessorPil()):
        part.save_pretrained(folder / kind)
    return str(folder / kind)


def run(tree: Path, job: dict, folder: Path) -> tuple[float, torch.Tensor]:
    """Seconds of the purification by a checkout, and the context it learns."""
    folder.mkdir(parents=True)
    old = "    dummy_triggers: " not in (tree / "peft_cbpt" / "training" / "cbpt_arguments.py").read_text()
    job = {NEW_NAMES.get(name, name) if old else name: value for name, value in job.items()}
    if "only: str" not in (tree / "peft_cbpt" / "training" / "purify_arguments.py").read_text():
        job = {name: value for name, value in job.items() if name != "only"}
    (folder / "job.yaml").write_text(yaml.safe_dump(job | {"output_dir": "out", "disable_tqdm": True}))
    environment = os.environ | {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1", "PEFT_CBPT_CACHE": str(folder / "c")}
    words = [sys.executable, str(tree / "recipes" / "purify.py"), "--config", "job.yaml"]
    subprocess.run(words, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    (context,) = load_file(folder / "out" / "adapter_model.safetensors").values()
    return json.loads((folder / "out" / "results.json").read_text())["seconds"]["purify"], context


def compare(job: dict, trees: dict[str, Path], folder: Path, repeats: int) -> dict:
    """Largest difference of the contexts, and least seconds by checkout."""
    seconds: dict[str, list[float]] = {name: [] for name in trees}
    contexts = {}
    for number in range(repeats):
        for name, tree in trees.items():
            took, contexts[name] = run(tree, job, folder / f"{name}{number}")
            seconds[name].append(took)
    before, after = contexts.values()
    least = {name: min(found) for name, found in seconds.items()}
    return {
        "largest_context_difference": (after - before).abs().max().item(),
        "seconds": least,
        "after_by_before": least["after"] / least["before"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--name", required=True)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    file = ROOT / "benchmarks" / "results" / f"{options.name}.json"
    stored = json.loads(file.read_text()) if file.exists() else {"before": options.commit, "jobs": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "-q", str(folder / "tree"), options.commit], check=True)
        try:
            for title in options.jobs:
                if title in stored["jobs"]:
                    continue
                job = dict(JOBS[title])
                if job["model_name_or_path"] in ("vit_b32", "rn50"):
                    job["model_name_or_path"] = write_large(folder, job["model_name_or_path"])
                trees = {"before": folder / "tree", "after": ROOT}
                found = compare(job, trees, folder / title.replace("/", "-"), options.repeats)
                stored["jobs"][title] = found | {"threads": torch.get_num_threads()} | made_now()
                write_json(file, stored)
                print(title, found, flush=True)
        finally:
            subprocess.run([*git, "remove", "--force", str(folder / "tree")], check=True)


if __name__ == "__main__":
    main()
