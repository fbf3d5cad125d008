"""The site's policy: what a task may ask for. It outranks the coordinator; default is no."""

from core.audit_messages import AuditOrder
from core.config_sections import PolicySection, largest_data_set
from core.errors import PolicyRefusedError
from core.messages import DpSgdTerms, TrainingTerms, TrainTask
from privacy.accounting import life_epsilon
from privacy.distributed import distributed_event
from privacy.events import DpSgdEvent, Event


def check_policy(
    order: TrainTask,
    policy: PolicySection,
    *,
    site: str,
    num_examples: int | None,
    predictable_noise: bool,
    total_examples: int | None = None,
) -> None:
    """Refuses an order that asks for less privacy, or for more work, than the site allows.

    Guarantees:
        A return means that the site's people approved exactly these terms by their hash, that
        the noise keeps the epsilon or the noise multiplier that the terms name, and that no
        parameter is weaker than the policy's bound. Sizes are the site's own declared ones: what
        a refusal says is no function of the data.

    Deliberately not checked here: the budget (``privacy.ledger``), the weights and tokenizer
    (``client.local_round``), the supported layers (``privacy.guards``), the roster and whether the
    order fits it (``privacy.secure_aggregation.context``).

    Args:
        order: What the coordinator asks.
        policy: What the site allows.
        site: The site's own name.
        num_examples: The public size that the site declared, if it did.
        predictable_noise: Whether the site's noise comes from a test key.
        total_examples: The public sizes of all active members of the roster that the site
            believes, added up; ``None`` without one. Mode ``distributed`` needs it.

    Raises:
        PolicyRefusedError: Says what was asked and what is allowed.
        PrivacyError: There is no grid for what is asked, in mode ``distributed``; see
            ``privacy.distributed.DistributedGrid``.
    """
    check_identity(order, policy, site)
    terms = order.terms
    _at_most("round number", order.server_round, terms.num_rounds)
    check_terms(terms, policy)
    _check_aggregation(order)
    if terms.privacy.mode == "none":
        if order.dp_sgd is not None:
            raise PolicyRefusedError("expected no privacy constants in mode none, got some")
        return
    if order.dp_sgd is None:
        raise PolicyRefusedError(
            f"expected privacy constants in mode {terms.privacy.mode}, got none"
        )
    if predictable_noise and not policy.allow_test_noise:
        raise PolicyRefusedError(
            "expected noise that nobody can predict, got a test key",
            hint="only a site whose policy says allow_test_noise = true takes part",
        )
    _check_sizes(order, order.dp_sgd, num_examples)
    _check_noise(order, order.dp_sgd, policy, total_examples)
    _check_promise(order, order.dp_sgd)


def check_terms(terms: TrainingTerms, policy: PolicySection) -> None:
    """Refuses terms that no order under them could make acceptable.

    Raises:
        PolicyRefusedError: Says what they ask and what is allowed.
    """
    _at_most("rounds", terms.num_rounds, policy.max_rounds)
    _at_most("steps per round", terms.train.steps_per_round, policy.max_steps_per_round)
    _check_openness(terms, policy)
    if terms.privacy.mode == "none":
        if not policy.allow_non_private:
            raise PolicyRefusedError(
                'expected a run with privacy, got privacy.mode = "none"',
                hint="only a site whose policy says allow_non_private = true takes part",
            )
        return
    _at_most("clip (max_grad_norm)", terms.privacy.max_grad_norm, policy.max_grad_norm)
    _at_most("delta", terms.privacy.target_delta, policy.max_delta)


def _check_openness(terms: TrainingTerms, policy: PolicySection) -> None:
    """What the coordinator may see, and what noise that several sites share takes for granted."""
    section, mode = terms.secure_aggregation, terms.privacy.mode
    if section is None and policy.secure_aggregation == "required":
        raise PolicyRefusedError(
            "expected a run with secure aggregation, got one whose coordinator sees each update",
            hint='policy.secure_aggregation = "allowed" takes part in such a run',
        )
    if section is not None and policy.secure_aggregation == "off":
        raise PolicyRefusedError(
            "expected a run without secure aggregation, got one with it",
            hint='policy.secure_aggregation = "allowed" takes part in such a run',
        )
    if section is not None and section.min_cohort < policy.min_cohort:
        raise PolicyRefusedError(
            f"expected sums of at least {policy.min_cohort} sites, got terms that allow "
            f"{section.min_cohort}",
            hint="policy.min_cohort is this site's floor; the terms' secure_aggregation.min_cohort "
            "must be no lower",
        )
    if mode == "distributed" and section is None:
        raise PolicyRefusedError(
            "expected secure aggregation in mode distributed, got a run without it",
            hint="one site's share of the noise protects nobody",
        )
    if mode == "distributed" and terms.train.steps_per_round != 1:
        raise PolicyRefusedError(
            "expected one step a round in mode distributed, got "
            f"{terms.train.steps_per_round} of them"
        )


def _check_aggregation(order: TrainTask) -> None:
    """The order must be for a sum exactly where the terms are, and this site one of its parts."""
    section, aggregation = order.terms.secure_aggregation, order.aggregation
    if (section is None) != (aggregation is None):
        asked = "without" if aggregation is None else "with"
        raise PolicyRefusedError(
            f"expected an order for secure aggregation exactly where its terms name it, got one "
            f"{asked} it",
            hint="the coordinator's task contradicts itself",
        )
    if section is None or aggregation is None:
        return
    if order.site not in aggregation.members:
        raise PolicyRefusedError(f"expected {order.site} among the sites of the sum, got others")
    if len(set(aggregation.members)) < section.min_cohort:
        raise PolicyRefusedError(
            f"expected a sum of at least {section.min_cohort} sites, got "
            f"{len(set(aggregation.members))}"
        )


def check_identity(order: TrainTask | AuditOrder, policy: PolicySection, site: str) -> None:
    """Refuses an order for another site, or under terms that this one's people did not approve.

    Raises:
        PolicyRefusedError: Says what was asked and what is allowed.
    """
    if order.site != site:
        raise PolicyRefusedError(f"expected a task for {site}, got one for {order.site}")
    digest = order.terms.digest()
    if digest != order.task_digest:
        raise PolicyRefusedError(
            f"expected terms with the hash {order.task_digest}, got {digest}",
            hint="the coordinator's task contradicts itself",
        )
    if digest not in policy.allowed_tasks:
        raise PolicyRefusedError(
            f"expected a task that this site approved, got {digest}",
            hint="read its terms, then add the hash to policy.allowed_tasks",
        )


def _check_sizes(order: TrainTask, dp_sgd: DpSgdTerms, num_examples: int | None) -> None:
    """Whoever may name the bound on the records learns their number, one no after another."""
    if num_examples is None:
        raise PolicyRefusedError(
            "expected a site with a declared public size, got one without",
            hint="a private run needs the num_examples that this site declared",
        )
    largest = largest_data_set(num_examples)
    if (order.num_examples, dp_sgd.max_examples) != (num_examples, largest):
        raise PolicyRefusedError(
            f"expected the declared size {num_examples}, which stands for up to {largest} records, "
            f"got {order.num_examples} for up to {dp_sgd.max_examples}",
            hint="the federation's file must name the size that the site declared",
        )


def _check_noise(
    order: TrainTask, dp_sgd: DpSgdTerms, policy: PolicySection, total_examples: int | None
) -> None:
    if dp_sgd.noise_multiplier < policy.min_noise_multiplier:
        raise PolicyRefusedError(
            f"expected a noise multiplier of at least {policy.min_noise_multiplier}, "
            f"got {dp_sgd.noise_multiplier}",
            hint="policy.min_noise_multiplier is this site's floor",
        )
    population = order.num_examples
    if order.terms.privacy.mode == "distributed":
        population = _population(order.num_examples, total_examples)
    rate = min(1.0, order.terms.train.global_batch_size / population)
    if dp_sgd.sample_rate > rate:
        raise PolicyRefusedError(
            f"expected a sampling rate of at most {rate}, the batch size over the public number "
            f"of examples, got {dp_sgd.sample_rate}"
        )


def _population(num_examples: int, total_examples: int | None) -> int:
    """Out of how many records a step over all sites samples, by their public sizes."""
    if total_examples is None:
        raise PolicyRefusedError(
            "expected the public sizes of all sites in mode distributed, got none",
            hint="they stand in the roster that the federation's admin signed",
        )
    return max(num_examples, total_examples)


def _check_promise(order: TrainTask, dp_sgd: DpSgdTerms) -> None:
    """The approved terms name an epsilon, or a noise; what is asked must keep it."""
    terms = order.terms
    promised, target = terms.privacy.noise_multiplier, terms.privacy.target_epsilon
    if promised is not None and dp_sgd.noise_multiplier < promised:
        raise PolicyRefusedError(
            f"expected the approved noise multiplier of at least {promised}, "
            f"got {dp_sgd.noise_multiplier}"
        )
    if target is None:
        return
    epsilon = life_epsilon(_whole_run(order, dp_sgd), terms.privacy.target_delta)
    if epsilon > target:
        raise PolicyRefusedError(
            f"expected noise with which the whole run costs epsilon {target:g} at most, "
            f"got {dp_sgd.noise_multiplier}, with which it costs {epsilon:.4g}",
            hint="the approved terms name target_epsilon; the order's noise does not keep it",
        )


def _whole_run(order: TrainTask, dp_sgd: DpSgdTerms) -> list[Event]:
    terms = order.terms
    if terms.privacy.mode == "distributed":
        return [distributed_event(order)] * terms.num_rounds
    return [
        DpSgdEvent(
            noise_multiplier=dp_sgd.noise_multiplier,
            sample_rate=dp_sgd.sample_rate,
            max_batch_size=dp_sgd.max_batch_size,
            max_examples=dp_sgd.max_examples,
            steps=terms.num_rounds * terms.train.steps_per_round,
            max_grad_norm=terms.privacy.max_grad_norm,
        )
    ]


def _at_most(what: str, asked: float, allowed: float) -> None:
    if asked > allowed:
        raise PolicyRefusedError(
            f"expected {what} of at most {allowed}, got {asked}",
            hint="the site's policy sets the bound",
        )
