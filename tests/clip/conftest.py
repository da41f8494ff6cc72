from tests.convert.published_clips import tiny_architectures  # noqa: F401
