from tests.clip.published_clips import tiny_architectures  # noqa: F401
