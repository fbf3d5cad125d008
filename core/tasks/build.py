"""From the configuration's task to the task itself."""

from core.config_sections import TaskSection
from core.tasks.causal_lm import CausalLM
from core.tasks.classification import Classification
from core.tasks.interface import Task
from core.tokenizer import Tokenizer


def build_task(config: TaskSection, tokenizer: Tokenizer, max_seq_len: int) -> Task:
    """The task that ``config`` names; texts are cut to ``max_seq_len`` tokens.

    Raises:
        ConfigError: The task cannot work with that length.
    """
    if config.kind == "causal-lm":
        return CausalLM(tokenizer, max_seq_len)
    return Classification(tokenizer, max_seq_len, config.labels, config.pooling)
