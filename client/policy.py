"""The site's policy: what a task may ask for. It outranks the coordinator; default is no."""

from core.config import PolicySection
from core.errors import PolicyRefusedError
from core.messages import DpSgdTerms, TrainTask


def check_policy(
    order: TrainTask, policy: PolicySection, *, site: str, predictable_noise: bool
) -> None:
    """Refuses an order that asks for less privacy, or for more work, than the site allows.

    Guarantees:
        A return means that the site's people approved exactly these terms by their hash, and
        that no parameter is weaker than the policy's bound. Nothing about the data was read.

    Deliberately not checked here: the budget (``privacy.ledger``), the weights and tokenizer
    (``client.local_round``), the supported layers (``privacy.guards``).

    Args:
        order: What the coordinator asks.
        policy: What the site allows.
        site: The site's own name.
        predictable_noise: Whether the site's noise comes from a test key.

    Raises:
        PolicyRefusedError: Says what was asked and what is allowed.
    """
    _check_identity(order, policy, site)
    terms = order.terms
    _at_most("rounds", terms.num_rounds, policy.max_rounds)
    _at_most("round number", order.server_round, terms.num_rounds)
    _at_most("steps per round", terms.train.steps_per_round, policy.max_steps_per_round)
    if terms.privacy.mode == "none":
        if order.dp_sgd is not None:
            raise PolicyRefusedError("expected no privacy constants in mode none, got some")
        if not policy.allow_non_private:
            raise PolicyRefusedError(
                'expected a run with privacy, got privacy.mode = "none"',
                hint="only a site whose policy says allow_non_private = true takes part",
            )
        return
    if order.dp_sgd is None:
        raise PolicyRefusedError("expected privacy constants in mode local, got none")
    if predictable_noise and not policy.allow_test_noise:
        raise PolicyRefusedError(
            "expected noise that nobody can predict, got a test key",
            hint="only a site whose policy says allow_test_noise = true takes part",
        )
    _check_privacy(order, order.dp_sgd, policy)


def _check_identity(order: TrainTask, policy: PolicySection, site: str) -> None:
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


def _check_privacy(order: TrainTask, dp_sgd: DpSgdTerms, policy: PolicySection) -> None:
    privacy = order.terms.privacy
    _at_most("clip (max_grad_norm)", privacy.max_grad_norm, policy.max_grad_norm)
    _at_most("delta", privacy.target_delta, policy.max_delta)
    if dp_sgd.noise_multiplier < policy.min_noise_multiplier:
        raise PolicyRefusedError(
            f"expected a noise multiplier of at least {policy.min_noise_multiplier}, "
            f"got {dp_sgd.noise_multiplier}",
            hint="policy.min_noise_multiplier is this site's floor",
        )
    rate = min(1.0, order.terms.train.global_batch_size / order.num_examples)
    if dp_sgd.sample_rate > rate:
        raise PolicyRefusedError(
            f"expected a sampling rate of at most {rate}, the batch size over the public number "
            f"of examples, got {dp_sgd.sample_rate}"
        )


def _at_most(what: str, asked: float, allowed: float) -> None:
    if asked > allowed:
        raise PolicyRefusedError(
            f"expected {what} of at most {allowed}, got {asked}",
            hint="the site's policy sets the bound",
        )
