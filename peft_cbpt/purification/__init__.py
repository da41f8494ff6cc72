"""The method of the paper as small pure functions over tensors and an `encode_image` callable."""
