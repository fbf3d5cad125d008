"""What evaluations report, gathered batch by batch in float64.

A metric that is not defined for what was evaluated is left out, never reported as 0 or NaN.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import TrainingError
from core.tasks.interface import IGNORE, Batch, Metrics


def wide(logits: Tensor) -> Tensor:
    """Logits in fp32 or wider: half precision loses the tail of a sum over a vocabulary."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def require_finite(logits: Tensor) -> None:
    """Checks the model's output.

    Raises:
        TrainingError: A logit is NaN or infinite.
    """
    bad = int((~torch.isfinite(logits)).sum())
    if bad:
        raise TrainingError(
            f"expected finite logits, got {bad} of {logits.numel()} NaN or infinite",
            hint="the model has diverged: lower train.learning_rate",
        )


class TokenEvaluation:
    """Metrics of next-token prediction, each token of the evaluation weighing the same."""

    def __init__(self) -> None:
        self._loss = 0.0
        self._correct = 0
        self._tokens = 0

    @torch.no_grad()
    def add(self, logits: Tensor, batch: Batch) -> None:
        """Takes logits (B, T, V); positions whose label is IGNORE are not looked at.

        Raises:
            TrainingError: A logit of a predicted position is not finite.
        """
        predicted = batch.labels != IGNORE
        chosen, labels = logits[predicted], batch.labels[predicted]  # (N, V), (N,)
        require_finite(chosen)
        losses = F.cross_entropy(wide(chosen), labels, reduction="none")
        self._loss += float(losses.cpu().double().sum())
        self._correct += int((chosen.argmax(dim=1) == labels).sum())
        self._tokens += len(labels)

    def metrics(self) -> Metrics:
        """``loss`` (nats a token), ``perplexity`` and ``accuracy``; nothing without a token.

        Perplexity is left out where it is too large for a float.
        """
        if self._tokens == 0:
            return {}
        loss = self._loss / self._tokens
        found: dict[str, float] = {"loss": loss, "accuracy": self._correct / self._tokens}
        if loss < math.log(np.finfo(np.float64).max):
            found["perplexity"] = math.exp(loss)
        return found


class ClassEvaluation:
    """Metrics of classification.

    Precision, recall and F1 are macro averages over the classes that occur among the labels; a
    class that is never predicted has precision 0. What holds for a single class stands in the
    confusion matrix.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._logits: list[npt.NDArray[np.float64]] = []
        self._labels: list[npt.NDArray[np.int64]] = []

    @torch.no_grad()
    def add(self, logits: Tensor, batch: Batch) -> None:
        """Takes logits (B, K).

        Raises:
            TrainingError: A logit is not finite.
        """
        require_finite(logits)
        self._logits.append(logits.detach().cpu().double().numpy())
        self._labels.append(batch.labels.cpu().numpy())

    def metrics(self) -> Metrics:
        """All metrics; nothing without an example.

        ``loss``, ``accuracy``, ``precision``, ``recall``, ``f1``, ``roc_auc`` (one class against
        the rest, macro average; left out unless every class occurs) and ``confusion_matrix``
        (rows are true classes, columns predicted ones).
        """
        # Here, for it takes 70 MB and a second, and a site never evaluates.
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        if not any(map(len, self._labels)):
            return {}
        logits, labels = np.concatenate(self._logits), np.concatenate(self._labels)
        log_probabilities = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        predicted = logits.argmax(axis=1)
        present = np.unique(labels)
        precision, recall, f1, _ = precision_recall_fscore_support(
            labels, predicted, labels=present, average="macro", zero_division=0.0
        )
        matrix = confusion_matrix(labels, predicted, labels=range(self._num_classes))
        found: dict[str, float | list[list[int]]] = {
            "loss": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
            "accuracy": float((predicted == labels).mean()),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "confusion_matrix": matrix.tolist(),
        }
        if len(present) == self._num_classes:
            found["roc_auc"] = _roc_auc(labels, np.exp(log_probabilities))
        return found


def _roc_auc(labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> float:
    """Mean over the classes of the area under the curve of that class against the rest."""
    from sklearn.metrics import roc_auc_score

    classes = range(probabilities.shape[1])
    return float(np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in classes]))
