"""How fast this process's device is, on made-up examples."""

import time
from typing import Final

import torch
from torch import nn

from core.tasks.interface import Example, Task

_REPEATS: Final = 3


def examples_per_second(
    model: nn.Module, task: Task, *, length: int, micro_batch_size: int
) -> float:
    """Times a forward and a backward pass over made-up texts of full length; the best of three.

    Args:
        model: Its gradients are gone afterwards; nothing else changes.
        task: Makes the batch.
        length: Tokens of an example.
        micro_batch_size: Examples of a pass.
    """
    device = next(model.parameters()).device
    batch = task.collate([Example([1] * length, label=0)] * micro_batch_size).to(device)
    best = float("inf")
    for _ in range(_REPEATS):
        began = time.perf_counter()
        losses = task.loss_per_example(model(batch.tokens, batch.attention_mask).float(), batch)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    for parameter in model.parameters():
        parameter.grad = None
    return micro_batch_size / best
