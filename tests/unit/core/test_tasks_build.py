"""The configuration's task becomes the right one."""

import pytest

from core.config_sections import TaskSection
from core.data.records import Record
from core.errors import ConfigError
from core.tasks.build import build_task
from core.tasks.causal_lm import CausalLM
from core.tasks.classification import Classification
from tests.support.tiny_tokenizer import LetterTokenizer


def test_causal_lm_is_built() -> None:
    task = build_task(TaskSection(kind="causal-lm"), LetterTokenizer(), 4)
    assert isinstance(task, CausalLM)
    assert len(task.encode(Record("abcdef")).tokens) == 4


def test_classification_is_built_with_its_labels() -> None:
    section = TaskSection(kind="classification", labels=("no", "yes"), pooling="last")
    task = build_task(section, LetterTokenizer(), 4)
    assert isinstance(task, Classification)
    assert task.encode(Record("abcdef", label="yes")).label == 1


def test_a_length_that_the_task_cannot_use_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected max_seq_len of 2 or more"):
        build_task(TaskSection(kind="causal-lm"), LetterTokenizer(), 1)
