"""Pocket data: any number of captioned images per class, in five domains, rendered from their sample ids."""

from collections.abc import Sequence

import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.pocket.atlas import class_names as all_class_names
from peft_cbpt.pocket.captions import caption
from peft_cbpt.pocket.render import DOMAINS, IMAGE_SIZE, draw_scene, render

_CHUNK = 512
MOST_IMAGES = 200_000
"""In one dataset, which is held in memory."""

# What the pocket counterpart of the web shows: mostly photos, with some drawings and paintings among them.
WEB_DOMAINS = {"base": 0.7, "sketch": 0.15, "rendition": 0.15}


def sample_ids(domain: str, split: str, class_name: str, indices: Sequence[int]) -> list[str]:
    """Stable names of samples, such as `base/train/banana/7`; any string is a valid split."""
    return [f"{domain}/{split}/{class_name}/{index}" for index in indices]


def render_samples(ids: Sequence[str], size: int = IMAGE_SIZE) -> tuple[torch.Tensor, list[str]]:
    """Pixels, uint8 (B, 3, size, size), and captions of samples, which may be of several domains."""
    labels = {name: label for label, name in enumerate(all_class_names())}
    pixels = torch.empty(len(ids), 3, size, size, dtype=torch.uint8)
    captions = []
    rows_of: dict[str, list[int]] = {}
    scenes = []
    for row, sample_id in enumerate(ids):
        domain, _, class_name, _ = sample_id.split("/")
        scene = draw_scene(labels[class_name], sample_id, DOMAINS[domain])
        scenes.append(scene)
        captions.append(caption(class_name, scene.background, keyed_generator("caption", sample_id)))
        rows_of.setdefault(domain, []).append(row)
    for domain, rows in rows_of.items():
        pixels[rows] = render([scenes[row] for row in rows], DOMAINS[domain], size)
    return pixels, captions


def pocket_dataset(
    domain: str = "base",
    split: str = "train",
    images_per_class: int = 16,
    class_names: Sequence[str] | None = None,
    size: int = IMAGE_SIZE,
) -> Dataset:
    """Images of the pocket world as a `datasets.Dataset`.

    Args:
        domain: `base`, `v2`, `sketch`, `rendition` or `adversarial`.
        split: Any name; another name gives other images.
        images_per_class: How many images of each class, at least 1; at most `MOST_IMAGES` of all.
        class_names: A subset of the world's classes; all by default. Labels index into it.
        size: Side of the square images, in pixels.

    Returns:
        Rows of `image` (PIL, RGB), `label`, `caption` and `sample_id`, grouped by class.
    """
    if domain not in DOMAINS:
        raise InputError(f"the pocket world has no domain {domain!r}; choose one of {', '.join(DOMAINS)}")
    if images_per_class < 1:
        raise InputError(f"the pocket world draws at least 1 image per class, not {images_per_class}")
    if "/" in split or not split:
        raise InputError(f"a split of the pocket world is a name without slashes, not {split!r}")
    names = list(class_names or all_class_names())
    if unknown := sorted(set(names) - set(all_class_names())):
        raise InputError(f"the pocket world has no class {unknown[0]!r}; its classes are in pocket/assets/sprites.txt")
    if (count := len(names) * images_per_class) > MOST_IMAGES:
        raise InputError(
            f"the pocket world draws at most {MOST_IMAGES:,} images at once, not {count:,}: ask for fewer"
        )
    features = Features(
        image=Image(), label=ClassLabel(names=names), caption=Value("string"), sample_id=Value("string")
    )
    ids = [sample_id for name in names for sample_id in sample_ids(domain, split, name, range(images_per_class))]
    labels = [label for label in range(len(names)) for _ in range(images_per_class)]
    columns: dict[str, list] = {"image": [], "label": labels, "caption": [], "sample_id": ids}
    for start in range(0, len(ids), _CHUNK):
        pixels, captions = render_samples(ids[start : start + _CHUNK], size)
        columns["image"] += [PILImage.fromarray(array) for array in pixels.permute(0, 2, 3, 1).numpy()]
        columns["caption"] += captions
    return Dataset.from_dict(columns, features=features)


class PocketPairs(torch.utils.data.Dataset):
    """Image-caption pairs rendered when asked for, for training in order: the pocket counterpart of a web corpus.

    Sample by sample all classes have their turn, each round in another order, so that a batch of a round's length
    shows every class once. Each sample is drawn from a domain of `WEB_DOMAINS`.

    Args:
        length: Number of pairs.
        split: Any name; another name gives other pairs.
        size: Side of the square images, in pixels.
        class_names: A subset of the world's classes; all by default.
    """

    def __init__(
        self,
        length: int,
        split: str = "pretrain",
        size: int = IMAGE_SIZE,
        class_names: Sequence[str] | None = None,
    ):
        self.length, self.split, self.size = length, split, size
        self.names = list(class_names or all_class_names())

    def __len__(self) -> int:
        return self.length

    def _sample_id(self, index: int) -> str:
        turn, place = divmod(index, len(self.names))
        order = keyed_generator("order", self.split, turn).permutation(len(self.names))
        domains = keyed_generator("domain", self.split, turn).choice(
            list(WEB_DOMAINS), len(self.names), p=list(WEB_DOMAINS.values())
        )
        return sample_ids(str(domains[place]), self.split, self.names[order[place]], [turn])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        ids = [self._sample_id(index) for index in indices]
        pixels, captions = render_samples(ids, self.size)
        return [
            {"pixel_values": image, "caption": text, "sample_id": sample_id}
            for image, text, sample_id in zip(pixels, captions, ids, strict=True)
        ]

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]
