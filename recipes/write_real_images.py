"""Write small real image datasets as folders that every recipe reads, without a download.

    python recipes/write_real_images.py digits --output_dir data/digits
    python recipes/write_real_images.py fashion_mnist --output_dir data/fashion_mnist

Handwritten digits come with scikit-learn; Fashion-MNIST with the Debian package dataset-fashion-mnist. Writes train
and test parquet files whose labels are numbers, and class_names.txt for --class_names_file.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Split = tuple[np.ndarray, np.ndarray]


def digits() -> tuple[dict[str, Split], tuple[str, ...]]:
    """1,797 digits of 8x8 pixels; every third is a test image."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    pixels = (loaded.images * 255 / 16).round().astype(np.uint8)
    held_out = np.arange(len(pixels)) % 3 == 0
    splits = {"train": ~held_out, "test": held_out}
    return {name: (pixels[rows], loaded.target[rows]) for name, rows in splits.items()}, DIGIT_NAMES


def fashion_mnist() -> tuple[dict[str, Split], tuple[str, ...]]:
    """60,000 and 10,000 pieces of clothing of 28x28 pixels."""

    def read(name: str, header: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((FASHION_FOLDER / name).read_bytes()), np.uint8, offset=header)

    if not FASHION_FOLDER.is_dir():
        raise SystemExit(f"{FASHION_FOLDER} is not there: install the Debian package dataset-fashion-mnist")
    splits = {}
    for name, prefix in (("train", "train"), ("test", "t10k")):
        pixels = read(f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        splits[name] = pixels, read(f"{prefix}-labels-idx1-ubyte.gz", 8)
    return splits, FASHION_NAMES


def main(dataset: str, output: Path, limit: int | None) -> None:
    splits, names = {"digits": digits, "fashion_mnist": fashion_mnist}[dataset]()
    output.mkdir(parents=True, exist_ok=True)
    features = Features({"image": Image(), "label": Value("int64")})
    for split, (pixels, labels) in splits.items():
        images = [PILImage.fromarray(picture) for picture in pixels[:limit]]
        rows = Dataset.from_dict({"image": images, "label": labels[:limit].tolist()}, features=features)
        rows.to_parquet(str(output / f"{split}-00000-of-00001.parquet"))
    (output / "class_names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    print(f"{dataset}: {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=("digits", "fashion_mnist"))
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="Write only the first so many images of a split.")
    arguments = parser.parse_args()
    main(arguments.dataset, arguments.output_dir, arguments.limit)
