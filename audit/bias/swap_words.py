"""Words that differ in sex alone: what the counterfactual swap exchanges.

The words of the embedded example's hospitals, the common words of English, and given names that
were common for one sex in the same decades.
"""

from collections.abc import Mapping
from typing import Final

# (of a woman, of a man)
PAIRS: Final = (
    ("woman", "man"),
    ("women", "men"),
    ("girl", "boy"),
    ("girls", "boys"),
    ("lady", "gentleman"),
    ("f", "m"),
    ("female", "male"),
    ("mother", "father"),
    ("sister", "brother"),
    ("aunt", "uncle"),
    ("daughter", "son"),
    ("grandmother", "grandfather"),
    ("wife", "husband"),
    ("niece", "nephew"),
    ("mum", "dad"),
    ("mom", "dad"),
    ("mrs", "mr"),
    ("she", "he"),
    ("herself", "himself"),
    ("actress", "actor"),
    ("waitress", "waiter"),
    ("queen", "king"),
    ("mary", "james"),
    ("patricia", "robert"),
    ("linda", "john"),
    ("barbara", "michael"),
    ("susan", "david"),
    ("jessica", "william"),
    ("sarah", "thomas"),
    ("karen", "daniel"),
)
# Left out on purpose: "her" stands for both "him" and "his".


def partners() -> Mapping[str, tuple[str, str, bool]]:
    """For each word its partner, the pair's name and whether it is a woman's.

    Of a word with two partners the first counts.
    """
    found: dict[str, tuple[str, str, bool]] = {}
    for woman, man in PAIRS:
        name = f"{woman}/{man}"
        found.setdefault(woman, (man, name, True))
        found.setdefault(man, (woman, name, False))
    return found
