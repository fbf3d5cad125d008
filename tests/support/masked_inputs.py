"""What each site puts under its masks, kept beside the product to check what was opened.

The product never shows a single site's vector, so a test that wants to add them up itself takes
them where they are masked: in the sites' own processes, before they begin.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.digests import arrays_digest
from privacy.secure_aggregation.site import SiteAttempt

Ring = npt.NDArray[np.uint32]


def keep_inputs(folder: Path) -> None:
    """From now on, every vector that this process masks lies in ``folder`` as it was before."""
    wrapped = keeping(SiteAttempt.mask, folder)
    setattr(SiteAttempt, "mask", wrapped)  # noqa: B010 - mypy knows no assignment to a method


def keeping(mask: Callable[..., None], folder: Path) -> Callable[..., None]:
    """``SiteAttempt.mask``, which writes down what it is given; a file of one context and site is
    written once, or it is an error."""

    @functools.wraps(mask)
    def wrapper(attempt: Any, values: Ring, mark_spent: Callable[[], None]) -> None:
        before = values.copy()
        mask(attempt, values, mark_spent)
        with _path(folder, attempt._names.context, attempt._site).open("xb") as file:
            np.save(file, before)

    return wrapper


def input_of(folder: Path, context: str, site: str) -> Ring:
    """What ``site`` masked in one attempt."""
    values: Ring = np.load(_path(folder, context, site))
    return values


def inputs_of_site(folder: Path, site: str) -> list[Ring]:
    """All that ``site`` ever masked."""
    return [np.load(path) for path in sorted(folder.glob(f"*.{site}.npy"))]


def sum_of(folder: Path, context: str, sites: Sequence[str]) -> npt.NDArray[np.int64]:
    """The integer sum of what these sites masked."""
    return sum(
        (input_of(folder, context, site).view(np.int32).astype(np.int64) for site in sites),
        start=np.zeros(1, np.int64),
    )


def check_transcript(folder: Path, transcript: Mapping[str, Any]) -> None:
    """The opened sum is the integer sum of what the named survivors masked."""
    total = sum_of(folder, transcript["context"], transcript["survivors"]).astype(np.int32)
    assert arrays_digest({"sum": total}) == transcript["sum_digest"]


def _path(folder: Path, context: str, site: str) -> Path:
    return folder / f"{context}.{site}.npy"
