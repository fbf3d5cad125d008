"""One example of each message, every field set."""

from core.config_sections import PrivacySection, SecureAggregationSection, TaskSection
from core.messages import (
    DpSgdTerms,
    LedgerHead,
    Refusal,
    SpentBudget,
    TrainingTerms,
    TrainReply,
    TrainTask,
    WireMessage,
)
from core.model import ModelConfig
from core.train import TrainConfig
from tests.support.aggregation_documents import ORDER

TERMS = TrainingTerms(
    federation="clinic",
    model=ModelConfig(vocab_size=257, max_seq_len=64, n_layer=2, n_head=4, n_embd=32),
    base_digest="1" * 64,
    tokenizer_digest="2" * 64,
    task=TaskSection(kind="classification", labels=("no", "s\u00ed")),
    train=TrainConfig(
        steps_per_round=10, global_batch_size=64, learning_rate=1e-3, freeze=("transformer.",)
    ),
    privacy=PrivacySection(target_epsilon=8.0),
    proximal_mu=0.5,
    num_rounds=20,
    update_encoding="fp32",
    secure_aggregation=SecureAggregationSection(),
)
HEAD = LedgerHead(sequence=3, digest="3" * 64)
TASK = TrainTask(
    run_id="0123456789abcdef",
    server_round=4,
    attempt=1,
    site="north",
    arrays_digest="4" * 64,
    terms=TERMS,
    task_digest=TERMS.digest(),
    num_examples=4000,
    dp_sgd=DpSgdTerms(
        noise_multiplier=1.1, sample_rate=0.016, max_batch_size=128, max_examples=5000
    ),
    ledger_witness=HEAD,
    aggregation=ORDER,
)
REPLY = TrainReply(
    run_id="0123456789abcdef",
    server_round=4,
    attempt=1,
    site="north",
    task_digest=TERMS.digest(),
    arrays_digest="5" * 64,
    num_examples=4000,
    spent=SpentBudget(epsilon=1.25, delta=1e-5, private=True),
    ledger_head=HEAD,
)
REFUSAL = Refusal(
    run_id="0123456789abcdef",
    server_round=4,
    site="north",
    code="budget-exceeded",
    message="expected epsilon of at most 8, got a task that would reach 9.5",
    hint="raise policy.max_epsilon",
)

EXAMPLES: tuple[WireMessage, ...] = (  # type: ignore[assignment]
    TERMS, ORDER, TASK.dp_sgd, HEAD, TASK, REPLY.spent, REPLY, REFUSAL,
)  # fmt: skip
