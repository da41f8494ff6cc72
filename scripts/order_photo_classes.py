"""Order the classes of the photographs by how well 64 pixels show them, from the pre-training images alone.

    python scripts/order_photo_classes.py --photos output/photos --teacher output/teacher.safetensors

Rewrites peft_cbpt/photos/assets/classes.tsv. How well a class is shown is its accuracy by linear layers on the
published classifier's features, each asked about images that it was not fitted to (`lessons.out_of_fold_opinions`).
Neither our CLIPs nor the shots nor the test images have a say.
"""

import argparse

import torch
from safetensors.torch import load_file

from peft_cbpt.photos.classes import CLASSES_FILE, names_by_wnid
from peft_cbpt.photos.images import read_photographs
from peft_cbpt.photos.lessons import out_of_fold_opinions

HEADER = """\
# The classes of the photographs in our label order, those that 64 pixels show best first (see
# scripts/order_photo_classes.py): wnid and the name that captions and prompts use.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--teacher", required=True)
    options = parser.parse_args()
    labels = read_photographs(options.photos, "pretraining").labels
    features = load_file(options.teacher)["features"].float()
    features = (features - features.mean(0)) / features.std(0)
    right = out_of_fold_opinions(features, labels, seed=0).argmax(1) == labels
    n_classes = int(labels.max()) + 1
    shares = torch.stack([right[labels == label].float().mean() for label in range(n_classes)])
    known = list(names_by_wnid().items())
    order = shares.argsort(descending=True, stable=True).tolist()
    CLASSES_FILE.write_text(HEADER + "".join("\t".join(known[label]) + "\n" for label in order), encoding="utf-8")
    print(f"the first 100: {shares[order[:100]].mean():.3f}, the others: {shares[order[100:]].mean():.3f}")


if __name__ == "__main__":
    main()
