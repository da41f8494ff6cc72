"""Which photographs train the CLIP, which poison it and which defend it: decided by their bytes alone."""

import hashlib

# Upper ends of each part's share of the training images. Pre-training needs most; the poisoning part leaves 12,000
# pairs, of which 1% are 120; the rest holds 16 shots a class and others to choose settings on.
PARTS = {"pretraining": 0.67, "poisoning": 0.87, "shots": 1.0}


def part_of(image: bytes) -> str:
    """`pretraining`, `poisoning` or `shots`, by the SHA-256 of the encoded image.

    So it depends neither on the order of rows nor on what else is in the dataset, and an image that is there twice is
    in one part only.
    """
    place = int.from_bytes(hashlib.sha256(image).digest()[:8], "big") / 2**64
    return next(part for part, end in PARTS.items() if place < end)
