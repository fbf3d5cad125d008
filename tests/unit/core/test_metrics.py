"""Metrics: figures worked out by hand, and what is left out."""

import math
import warnings

import pytest
import torch
from torch import Tensor

from core.errors import TrainingError
from core.tasks.interface import IGNORE, Batch
from core.tasks.metrics import ClassEvaluation, TokenEvaluation


def batch_with(labels: list[int] | list[list[int]]) -> Batch:
    tensor = torch.tensor(labels, dtype=torch.int64)
    tokens = torch.zeros(len(labels), 1, dtype=torch.int64)
    return Batch(tokens, tokens == 0, tensor)


def logits_of(probabilities: list[list[float]]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def class_metrics(probabilities: list[list[float]], labels: list[int]) -> dict[str, object]:
    evaluation = ClassEvaluation(len(probabilities[0]))
    evaluation.add(logits_of(probabilities), batch_with(labels))
    return dict(evaluation.metrics())


def test_token_metrics_weigh_each_token_the_same_over_all_batches() -> None:
    evaluation = TokenEvaluation()
    # Three tokens in the first batch, one in the second: a mean of means would say otherwise.
    evaluation.add(
        logits_of([[0.6, 0.4], [0.25, 0.75], [0.7, 0.3], [0.9, 0.1]]).view(2, 2, 2),
        batch_with([[0, 0], [1, IGNORE]]),
    )
    evaluation.add(logits_of([[0.125, 0.875]]).view(1, 1, 2), batch_with([[1]]))
    loss = -(math.log(0.6) + math.log(0.25) + math.log(0.3) + math.log(0.875)) / 4
    assert evaluation.metrics() == pytest.approx(
        {"loss": loss, "perplexity": math.exp(loss), "accuracy": 2 / 4}
    )


def test_token_losses_are_summed_in_float64() -> None:
    evaluation = TokenEvaluation()
    logits = torch.tensor([[[0.0, 9.0]]]).expand(1, 4096, 2)
    labels = torch.zeros(1, 4096, dtype=torch.int64)
    for _ in range(64):
        evaluation.add(logits, Batch(labels, labels == 0, labels))
    one = float(torch.nn.functional.cross_entropy(logits[0, :1], labels[0, :1]))
    loss = evaluation.metrics()["loss"]
    assert isinstance(loss, float)
    assert loss == pytest.approx(one, rel=1e-12)


def test_without_a_predicted_token_there_are_no_token_metrics() -> None:
    evaluation = TokenEvaluation()
    evaluation.add(torch.zeros(1, 1, 2), batch_with([[IGNORE]]))
    assert evaluation.metrics() == {}


def test_a_perplexity_too_large_for_a_float_is_left_out() -> None:
    evaluation = TokenEvaluation()
    evaluation.add(torch.tensor([[[0.0, 1000.0]]]), batch_with([[0]]))
    assert evaluation.metrics() == {"loss": 1000.0, "accuracy": 0.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_token_logits_that_are_not_finite_are_refused(bad: float) -> None:
    message = "expected finite logits, got 1 of 2 NaN or infinite"
    with pytest.raises(TrainingError, match=message):
        TokenEvaluation().add(torch.tensor([[[0.0, bad]]]), batch_with([[0]]))


def test_what_stands_at_a_pad_is_not_looked_at() -> None:
    evaluation = TokenEvaluation()
    logits = torch.tensor([[[0.0, 0.0], [math.nan, math.nan]]])
    evaluation.add(logits, batch_with([[0, IGNORE]]))
    assert evaluation.metrics()["loss"] == pytest.approx(math.log(2))


def test_class_metrics_worked_out_by_hand() -> None:
    probabilities = [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]
    found = class_metrics(probabilities, [0, 1, 1, 2])
    assert found["confusion_matrix"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert found["loss"] == pytest.approx(-math.log(0.7 * 0.3 * 0.5 * 0.7) / 4)
    assert found["accuracy"] == pytest.approx(3 / 4)
    assert found["precision"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert found["recall"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert found["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found["roc_auc"] == pytest.approx(1.0)


def test_class_metrics_do_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(30, 3), torch.randint(0, 3, (30,))
    whole, parts = ClassEvaluation(3), ClassEvaluation(3)
    whole.add(logits, Batch(labels, labels == 0, labels))
    for i in range(0, 30, 7):
        part = labels[i : i + 7]
        parts.add(logits[i : i + 7], Batch(part, part == 0, part))
    assert parts.metrics() == whole.metrics()


def test_roc_auc_of_two_classes_counts_the_pairs_in_order() -> None:
    # Scores of class 1: negatives 0.1 and 0.6, positives 0.4 and 0.9: three of four in order.
    found = class_metrics([[0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [0.1, 0.9]], [0, 0, 1, 1])
    assert found["roc_auc"] == pytest.approx(3 / 4)


def test_roc_auc_is_left_out_when_a_class_does_not_occur() -> None:
    found = class_metrics([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]], [0, 1])
    assert "roc_auc" not in found
    assert found["accuracy"] == 1.0
    assert found["recall"] == 1.0


def test_a_class_never_predicted_has_precision_zero_and_no_warning_escapes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = class_metrics([[0.9, 0.1], [0.8, 0.2]], [0, 1])
    assert found["precision"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["recall"] == pytest.approx(1 / 2)
    assert found["f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_one_class_alone_is_measured_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = class_metrics([[0.9, 0.1]], [0])
    assert found["confusion_matrix"] == [[1, 0], [0, 0]]
    assert found["f1"] == 1.0


def test_without_an_example_there_are_no_class_metrics() -> None:
    evaluation = ClassEvaluation(2)
    assert evaluation.metrics() == {}
    evaluation.add(torch.zeros(0, 2), batch_with([]))
    assert evaluation.metrics() == {}


def test_class_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(TrainingError, match="got 2 of 4 NaN or infinite") as caught:
        ClassEvaluation(2).add(torch.tensor([[math.nan, 0.0], [math.inf, 0.0]]), batch_with([0, 1]))
    assert "train.learning_rate" in caught.value.hint


def test_confident_logits_do_not_overflow() -> None:
    evaluation = ClassEvaluation(2)
    evaluation.add(torch.tensor([[2e4, -2e4], [-2e4, 2e4]]), batch_with([0, 1]))
    metrics = evaluation.metrics()
    assert metrics["loss"] == 0.0
    assert metrics["roc_auc"] == 1.0
