"""The records that a model gives away most: for the site that holds them, and for nobody else."""

import numpy as np

from audit.membership.observations import observe
from audit.membership.targets import targets_of
from audit.membership.training import MAX_ROUNDS, control_of
from audit.subject import Subject
from core.errors import AuditError


def most_exposed(subject: Subject, site: str, k: int) -> list[int]:
    """The members of a site that the released model knows best beyond what anybody could guess.

    Never part of a ``TestResult``: that list is itself about persons, and stays with the site,
    which may remove these records or look at why they stand out.

    Args:
        subject: What is audited.
        site: Whose records.
        k: How many.

    Returns:
        Indices into the site's ``split.members``, the most exposed first: by how much likelier
        the released model finds a record than a control model that never saw the site.

    Raises:
        AuditError: The site's records are not at hand, or there are too few to compare.
        ScoreError: The model has diverged.
    """
    targets = targets_of(subject)
    split = subject.sites[site].split if site in subject.sites else None
    if split is None or site not in targets:
        raise AuditError(
            f"expected a site whose records are at hand and that held some out, got {site!r}",
            hint="run this where the site's data lies, with audit.holdout_fraction above 0",
        )
    control = control_of(subject, targets, rounds=MAX_ROUNDS).models[site]
    known = observe(subject.model.model, subject, split.members).loss
    guessed = observe(control, subject, split.members).loss
    order = np.argsort(known - guessed, kind="stable")
    return [int(index) for index in order[: max(k, 0)]]
