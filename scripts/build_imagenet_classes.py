"""Write peft_cbpt/data/assets/imagenet_classes.tsv from the data of two packages.

    pip download --no-deps open-clip-torch==3.3.0 timm==1.0.31
    python scripts/build_imagenet_classes.py open_clip_torch-*.whl timm-*.whl

Class names are those that OpenAI published with CLIP, from open-clip-torch's zero_shot_metadata.py; wnids and the
members of ImageNet-R and ImageNet-A are from timm's data/_info. Names that two classes share are replaced by the first
lemma of each class's own synset, so that no two classes have the same prompt.
"""

import argparse
import ast
import zipfile
from pathlib import Path

OUTPUT = Path(__file__).parents[1] / "peft_cbpt" / "data" / "assets" / "imagenet_classes.tsv"
HEADER = """\
# The 1,000 classes of ImageNet in label order: wnid, class name, and which 200-class subsets (R, A) have it.
# Class names: OpenAI, published with CLIP (MIT), from {names}. wnids and subsets: from {wnids} (Apache-2.0).
# Names that two classes shared are the first lemma of their synset. Written by scripts/build_imagenet_classes.py.
"""


def class_names_of(source: str) -> list[str]:
    """The literal list IMAGENET_CLASSNAMES of a module, without running it."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "IMAGENET_CLASSNAMES":
            return ast.literal_eval(node.value)
    raise SystemExit("zero_shot_metadata.py has no IMAGENET_CLASSNAMES")


def package(wheel: Path) -> str:
    return " ".join(wheel.name.split("-")[:2])


def main(open_clip: Path, timm: Path) -> None:
    names = class_names_of(zipfile.ZipFile(open_clip).read("open_clip/zero_shot_metadata.py").decode())
    info = zipfile.ZipFile(timm)

    def lines(name: str) -> list[str]:
        return info.read(f"timm/data/_info/{name}").decode().splitlines()

    wnids, subset_r, subset_a = (lines(f"imagenet{kind}_synsets.txt") for kind in ("", "_r", "_a"))
    lemmas = dict(line.split("\t") for line in lines("imagenet_synset_to_lemma.txt"))
    rows = []
    for wnid, name in zip(wnids, names, strict=True):
        own_name = lemmas[wnid].split(",")[0] if names.count(name) > 1 else name
        rows.append("\t".join([wnid, own_name, "R" * (wnid in subset_r) + "A" * (wnid in subset_a)]))
    header = HEADER.format(names=package(open_clip), wnids=package(timm))
    OUTPUT.write_text(header + "\n".join(rows) + "\n", encoding="utf-8")
    print(f"{len(rows)} classes, {len(subset_r)} in R, {len(subset_a)} in A: {OUTPUT}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("open_clip", type=Path, help="The wheel of open-clip-torch.")
    parser.add_argument("timm", type=Path, help="The wheel of timm.")
    arguments = parser.parse_args()
    main(arguments.open_clip, arguments.timm)
