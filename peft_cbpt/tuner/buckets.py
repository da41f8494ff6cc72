"""Prompts of like length together, so that little is computed on padding."""

from collections import Counter
from collections.abc import Sequence

MAX_PADDING = 0.15


def length_buckets(lengths: Sequence[int], max_padding: float = MAX_PADDING) -> list[list[int]]:
    """Indices of prompts in as few groups as keep padding below a share of all tokens.

    Args:
        lengths: Tokens of each prompt, each at least 1.
        max_padding: The share of padding when every group is filled up to its longest prompt.

    Returns:
        The groups, longest prompts first; together every index once, in order within a group.
    """
    counts = sorted(Counter(lengths).items())
    budget = max_padding * sum(lengths) / (1 - max_padding)
    for n_groups in range(1, len(counts) + 1):
        padding, tops = _best_split(counts, n_groups)
        if padding < budget:
            break
    group_of = {length: sum(top < length for top in tops) for length, _ in counts}
    groups: list[list[int]] = [[] for _ in tops]
    for index, length in enumerate(lengths):
        groups[group_of[length]].append(index)
    return groups[::-1]


def _best_split(counts: Sequence[tuple[int, int]], n_groups: int) -> tuple[float, list[int]]:
    """Least padding with `n_groups` groups of neighbouring (length, count), and the longest length of each."""
    best: list[tuple[float, list[int]]] = [(0.0, []), *((float("inf"), list[int]()) for _ in counts)]
    for _ in range(n_groups):
        longer: list[tuple[float, list[int]]] = [(float("inf"), [])]
        for end in range(1, len(counts) + 1):
            top = counts[end - 1][0]
            padding = 0
            options: list[tuple[float, list[int]]] = []
            for start in range(end - 1, -1, -1):
                length, count = counts[start]
                padding += count * (top - length)
                options.append((best[start][0] + padding, [*best[start][1], top]))
            longer.append(min(options))
        best = longer
    return best[-1]
