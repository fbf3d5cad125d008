"""A subject whose model writes: the federation of another one, with a language model."""

from dataclasses import replace
from typing import Any

from audit.subject import Subject
from core.blueprint import make_blueprint
from core.config_sections import TaskSection
from core.model_folder import LoadedModel
from core.tokenizer import load_tokenizer


def language_subject(subject: Subject, *, train: Any = None, **shape: Any) -> Subject:
    """The same sites and constants, with an untrained decoder of such a shape.

    Args:
        subject: Whose sites, terms and seed.
        train: Hyperparameters in place of the run's.
        shape: Of the model, in place of the run's.
    """
    updates = {
        "task": TaskSection(kind="causal-lm"),
        "model": replace(subject.blueprint.config, causal=True, **shape),
        "train": train or subject.config.train,
    }
    config = subject.config.model_copy(update=updates)
    blueprint = make_blueprint(config)
    model = LoadedModel(blueprint.build(), blueprint.task, load_tokenizer(config.tokenizer), {})
    return replace(subject, config=config, blueprint=blueprint, model=model)
