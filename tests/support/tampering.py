"""Chance by a seed, and messages that are altered by chance."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from tests.support.aggregation import ELSEWHERE, edited

Item = TypeVar("Item")


class Luck:
    """What happens, by a seed."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def chance(self, probability: float) -> bool:
        """True so often."""
        return bool(self._rng.random() < probability)

    def below(self, bound: int) -> int:
        """From 0, below ``bound``."""
        return int(self._rng.integers(bound))

    def pick(self, items: Sequence[Item]) -> Item:
        """One of them."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """All of them, in any order."""
        return [items[i] for i in self._rng.permutation(len(items))]

    def some(self, items: Sequence[Item], count: int) -> list[Item]:
        """So many of them, in their order."""
        return [items[i] for i in sorted(self._rng.permutation(len(items))[:count])]


class Tampering:
    """Alters a message in one place, or gives an old one for it.

    Args:
        luck: Says how.
        seen: Old messages, by kind; it may grow.
        names: Of sites, and of some that are none.
    """

    def __init__(self, luck: Luck, seen: Mapping[type, list[Any]], names: Sequence[str]) -> None:
        self._luck = luck
        self._seen = seen
        self._names = names

    def altered(self, message: Any, headers: Sequence[Mapping[str, Any]]) -> Any:
        """Something else for ``message``; ``headers`` are what names other attempts."""
        kind = self._luck.below(4)
        if kind == 0:
            header = self._luck.pick(headers)
            changed = self._luck.pick(list(header))
            return edited(message, **{changed: header[changed]})
        if kind == 1:
            old = self._luck.pick(self._seen[type(message)] or [message])
            if self._luck.chance(0.5):
                return old
            return edited(old, **{name: getattr(message, name) for name in ELSEWHERE})
        fields = [name for name, value in message if isinstance(value, tuple) and value]
        if not fields:
            return message
        name = self._luck.pick(fields)
        items = list(getattr(message, name))
        return edited(message, **{name: tuple(self._items(items, message, name))})

    def _items(self, items: list[Any], message: Any, name: str) -> list[Any]:
        """One too few, one twice, in reverse, one of an old message's, one more, or one altered."""
        index, kind = self._luck.below(len(items)), self._luck.below(6)
        if kind == 0:
            return items[:index] + items[index + 1 :]
        if kind == 1:
            return items[: index + 1] + items[index:]
        if kind == 2:
            return items[::-1]
        other = self._luck.pick(self._seen[type(message)] or [message])
        foreign = list(getattr(other, name)) or items
        if kind == 3:
            items[index] = self._luck.pick(foreign)
            return items
        if kind == 4:
            return sorted([*items, self._luck.pick(foreign)], key=_name_of)
        items[index] = self._item(items[index])
        return items

    def _item(self, item: Any) -> Any:
        name = self._luck.pick(self._names)
        if isinstance(item, str):
            return name
        if self._luck.chance(0.5):
            return edited(item, **{"peer" if hasattr(item, "peer") else "site": name})
        secret = "box" if hasattr(item, "box") else "signature"
        text = getattr(item, secret)
        return edited(item, **{secret: f"{int(text[:2], 16) ^ 1:02x}{text[2:]}"})


def _name_of(item: Any) -> str:
    name: str = item if isinstance(item, str) else getattr(item, "peer", getattr(item, "site", ""))
    return name
