"""Checks of the loss contract: one loss per example, and no example sees another."""

from collections.abc import Callable

import torch
from torch import Tensor

from core.tasks.interface import Batch

Loss = Callable[[Tensor, Batch], Tensor]


def assert_examples_are_independent(loss: Loss, logits: Tensor, batch: Batch) -> None:
    """Changes the logits and labels of each example; the others' losses and gradients stay."""
    losses, gradients = _losses_and_gradients(loss, logits, batch)
    assert losses.shape == (len(batch),)
    for j in range(len(batch)):
        others = [i for i in range(len(batch)) if i != j]
        for changed_logits, changed_labels in _perturbations(logits, batch.labels, j):
            changed = Batch(batch.tokens, batch.attention_mask, changed_labels)
            new_losses, new_gradients = _losses_and_gradients(loss, changed_logits, changed)
            torch.testing.assert_close(new_losses[others], losses[others], rtol=0, atol=0)
            torch.testing.assert_close(new_gradients[others], gradients[others], rtol=0, atol=0)


def _losses_and_gradients(loss: Loss, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    losses = loss(logits, batch)
    torch.autograd.backward(losses.sum())
    assert logits.grad is not None
    return losses.detach(), logits.grad


def _perturbations(logits: Tensor, labels: Tensor, j: int) -> list[tuple[Tensor, Tensor]]:
    other_logits = logits.clone()
    other_logits[j] = -3 * other_logits[j] + 1
    one_label = torch.where(labels[j] == 0, 1, 0)
    changes = [(other_logits, labels), (logits, _with_row(labels, j, one_label))]
    if labels.dim() == 2:  # fewer predicted tokens: what a batch's token count would notice
        fewer = labels[j].clone()
        fewer[fewer.shape[0] // 2 :] = -100
        changes.append((logits, _with_row(labels, j, fewer)))
    return changes


def _with_row(labels: Tensor, j: int, row: Tensor) -> Tensor:
    changed = labels.clone()
    changed[j] = row
    return changed
