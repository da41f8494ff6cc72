"""Tables and lists on the screen."""

from collections.abc import Mapping, Sequence


def print_columns(lines: Sequence[Sequence[str]], n_left: int) -> None:
    """Print lines of as many cells, the first columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.ljust(width) if place < n_left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def print_skipped(what: str, skipped: Sequence[Mapping[str, str]], at_most: int = 5) -> None:
    """Say how many images could not be read, and name the first of them."""
    if skipped:
        print(f"\nskipped {len(skipped)} images that cannot be read ({what}):")
        for one in skipped[:at_most]:
            print(f"  {one['sample_id']}: {one['reason']}")
        if len(skipped) > at_most:
            print(f"  ... and {len(skipped) - at_most} more, listed in the JSON file")
