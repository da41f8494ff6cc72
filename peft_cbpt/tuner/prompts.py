"""The token ids of the class prompts (Eq. 8), as plain lists.

A learned context vector is a token too: vector i of context c (both from 0) has the id -(1 + c * M + i), where
class c has context c, or all classes context 0. No word has a negative id, so every row of `input_ids` says by
itself which class it belongs to, in any order and in any company, and the end-of-text token stays the highest id
of its row.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

SMALL_GROUP, MANY_GROUPS = 32, 8


class RecordedIds(NamedTuple):
    """What a tokenizer says about the classes; saved with the adapter."""

    class_token_ids: list[list[int]]
    """For each class the tokens of its name and of the trailing period."""
    class_name_lengths: list[int]
    """How many of these tokens are the name's."""
    template_token_ids: list[list[int]]
    """For each class the whole template prompt, from BOS to EOS."""
    bos_token_id: int | None = None
    """None where prompts start with their first word."""
    eos_token_id: int | None = None
    """None where they end with their last."""
    pad_token_id: int | None = None
    """What prompts are filled up with where they have a fixed width; EOS if None."""
    padding_side: str | None = None
    """Where they are filled up then; right if None."""

    @property
    def start(self) -> list[int]:
        """The tokens before the first word: BOS or nothing."""
        return [] if self.bos_token_id is None else [self.bos_token_id]

    @property
    def end(self) -> list[int]:
        """The tokens after the last word: EOS or nothing."""
        return [] if self.eos_token_id is None else [self.eos_token_id]

    def filled(self, row: list[int], width: int) -> list[int]:
        """A row of a fixed width, as the tokenizer fills it up."""
        padding = (self.end if self.pad_token_id is None else [self.pad_token_id]) * (width - len(row))
        return padding + row if self.padding_side == "left" else row + padding


def check_class_names(class_names: Any) -> list[str]:
    """Returns `class_names` as a list with runs of whitespace made one space.

    Raises:
        ValueError: if it is not a list of strings, is empty, has one class only, or holds a blank name or
            the same name twice.
    """
    if not isinstance(class_names, list | tuple):
        raise ValueError(f"class_names must be a list of strings, not {type(class_names).__name__}.")
    for index, name in enumerate(class_names):
        if not isinstance(name, str):
            raise ValueError(f"class_names[{index}] must be a string, not {type(name).__name__}.")
    names = [" ".join(name.split()) for name in class_names]
    if not names:
        raise ValueError("class_names is empty.")
    if "" in names:
        raise ValueError(f"class_names[{names.index('')}] is blank.")
    if len(names) == 1:
        raise ValueError(f"class_names has one class only, {names[0]!r}; a classifier needs at least two.")
    repeated = [repr(name) for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"class_names holds {', '.join(repeated)} more than once; give each class words of its own.")
    return names


def tokenize_classes(class_names: list[str], template: str, tokenizer: PreTrainedTokenizerBase) -> RecordedIds:
    """Tokenizes every class name with its trailing period, and in the template.

    BOS and EOS are what the tokenizer puts around a text, whatever it calls them.

    Raises:
        ValueError: if the tokenizer puts more around a text than BOS and EOS, does not know a name, or gives two names
            the same tokens.
    """
    alone, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    start = whole.index(alone[0])
    bos, eos = whole[:start], whole[start + len(alone) :]
    if len(bos) > 1 or len(eos) > 1:
        raise ValueError(
            f"CBPT needs a tokenizer that puts at most BOS before a text and EOS after it; {type(tokenizer).__name__} "
            f"puts the tokens {bos} and {eos}."
        )

    def ids_of(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    def ids_within(texts: list[str]) -> list[list[int]]:
        """As they are behind a word, where some tokenizers have another token than at the beginning of a text."""
        return [ids[len(alone) :] for ids in ids_of([f"a {text}" for text in texts])]

    texts = [template.replace("{}", name) for name in class_names]
    class_token_ids, template_ids = ids_within([f"{name}." for name in class_names]), ids_of(texts)
    not_words = {*bos, *eos, tokenizer.unk_token_id}
    first_with: dict[tuple[int, ...], str] = {}
    for name, ids, text, prompt in zip(class_names, class_token_ids, texts, template_ids, strict=True):
        if not_words.intersection(ids + prompt):
            raise ValueError(
                f"The tokenizer does not know every word of {text!r}, the prompt of class {name!r}, or reads "
                "a special token in it."
            )
        twin = first_with.setdefault(tuple(ids), name)
        if twin != name:
            raise ValueError(
                f"The class names {twin!r} and {name!r} have the same tokens; give each class words of its own."
            )
    return RecordedIds(
        class_token_ids=class_token_ids,
        class_name_lengths=[len(ids) for ids in ids_within(class_names)],
        template_token_ids=[[*bos, *ids, *eos] for ids in template_ids],
        bos_token_id=bos[0] if bos else None,
        eos_token_id=eos[0] if eos else None,
        pad_token_id=tokenizer.pad_token_id,
        padding_side=tokenizer.padding_side,
    )


def check_template_context(recorded: RecordedIds, class_names: list[str], num_context_tokens: int) -> None:
    """Raises a ValueError unless every template prompt is M words, the name and a period between BOS and EOS.

    M is `num_context_tokens`.
    """
    for name, ids, prompt in zip(class_names, recorded.class_token_ids, recorded.template_token_ids, strict=True):
        words = prompt[len(recorded.start) : len(prompt) - len(recorded.end)]
        num_words = len(words) - len(ids)
        if num_words < 1 or words[num_words:] != ids:
            raise ValueError(
                f"context_init='template' cannot start class {name!r} from its template prompt: the tokenizer "
                "splits the name in another way there."
            )
        if num_words != num_context_tokens:
            raise ValueError(
                "context_init='template' needs as many context tokens as the template has before the name: "
                f"set num_context_tokens to {num_words}, not {num_context_tokens}."
            )


def learned_prompts(
    recorded: RecordedIds, num_context_tokens: int, position: str, unified: bool = False
) -> list[list[int]]:
    """The prompts of Eq. 8, one row per class: BOS, p context vectors, the name, M - p more, period, EOS.

    Args:
        recorded: The tokens of the classes.
        num_context_tokens: M.
        position: Where the name stands: "end" (p = M), "middle" (p = M // 2) or "front" (p = 0).
        unified: Whether all classes have the same context.
    """
    p = {"end": num_context_tokens, "middle": num_context_tokens // 2, "front": 0}[position]
    rows = []
    for index, ids in enumerate(recorded.class_token_ids):
        first = 0 if unified else index * num_context_tokens
        context = [-(1 + first + i) for i in range(num_context_tokens)]
        length = recorded.class_name_lengths[index]
        words = [*context[:p], *ids[:length], *context[p:], *ids[length:]]
        rows.append([*recorded.start, *words, *recorded.end])
    return rows


def length_groups(lengths: Sequence[int], size: int | None = None) -> list[list[int]]:
    """Places in `lengths` in groups of neighbours by length, longest first, so that little is filled up in a group.

    A group has `size` places; by default there are 8 groups, or fewer of 32 places.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    size = size or max(SMALL_GROUP, math.ceil(len(order) / MANY_GROUPS))
    return [order[start : start + size] for start in range(0, len(order), size)]


class ClassPrompts:
    """The prompts of one adapter's classes, learned and template, as rows of token ids.

    Args:
        learned: The learned prompt of each class, see [`learned_prompts`].
        recorded: What a tokenizer says about the classes.
        width: How many tokens every row has; by default as many as the longest of those asked for.
    """

    def __init__(self, learned: list[list[int]], recorded: RecordedIds, width: int | None = None) -> None:
        self.learned = learned
        self.template = recorded.template_token_ids
        self.recorded = recorded
        self.width = width
        self._of_all_classes: dict[bool, torch.Tensor] = {}

    def input_ids(
        self,
        learned: bool,
        class_indices: Sequence[int] | torch.Tensor | None = None,
        device: torch.device | None = None,
        prefix_ids: Sequence[int] = (),
    ) -> torch.Tensor:
        """The prompts of `class_indices`, or of all classes, as one tensor of int64 (n, L).

        L is the longest of these prompts, or `width`; shorter ones are filled up. Without a width the text tower is
        causal and pools at the first EOS, so neither the filling nor the choice of L changes a feature.

        Args:
            learned: Whether to return the learned prompts of Eq. 8 or those of the template.
            class_indices: Indices into the class names, each in [0, n_classes); any order, repeats allowed.
            device: Where to put the result; None for the CPU.
            prefix_ids: Tokens to put before every prompt, after BOS.

        Raises:
            ValueError: if `class_indices` is empty or not a flat sequence of integers.
            IndexError: if an index is out of range.
        """
        rows = self.learned if learned else self.template
        device = device or torch.device("cpu")
        if class_indices is not None:
            first = len(self.recorded.start)
            chosen = [rows[i] for i in self._checked(class_indices)]
            return self._pad([[*row[:first], *prefix_ids, *row[first:]] for row in chosen]).to(device)
        ids = self._of_all_classes.get(learned)
        if ids is None or ids.device != device:
            ids = self._of_all_classes[learned] = self._pad(rows).to(device)
        return ids

    def of_words(self, words: torch.Tensor) -> torch.Tensor:
        """Rows (n, L) of words (n, k) between BOS and EOS, filled up as prompts are."""
        rows = [[*self.recorded.start, *row, *self.recorded.end] for row in words.tolist()]
        return self._pad(rows).to(words.device)

    def lengths(self, learned: bool, class_indices: Sequence[int] | torch.Tensor | None = None) -> list[int]:
        """Tokens of each prompt of `class_indices`, or of all classes, without filling."""
        rows = self.learned if learned else self.template
        return [len(rows[i]) for i in (range(len(rows)) if class_indices is None else self._checked(class_indices))]

    def _checked(self, class_indices: Sequence[int] | torch.Tensor) -> list[int]:
        indices = torch.as_tensor(class_indices)
        if indices.ndim != 1 or not len(indices) or indices.dtype == torch.bool or indices.is_floating_point():
            raise ValueError("class_indices must be a flat, non-empty sequence of integers.")
        outside = indices[(indices < 0) | (indices >= len(self.learned))].tolist()
        if outside:
            raise IndexError(f"class_indices holds {outside[0]}, but the adapter has {len(self.learned)} classes.")
        return indices.tolist()

    def _pad(self, rows: list[list[int]]) -> torch.Tensor:
        if self.width:
            return torch.tensor([self.recorded.filled(row, self.width) for row in rows])
        longest = max(map(len, rows))
        return torch.tensor([row + self.recorded.end * (longest - len(row)) for row in rows])
