"""One model of the GPU benchmark, in a process of its own: a line of JSON for each side.

Before a private side's time is taken its clipped sum over a small model is compared with gradients
in fp64, one example at a time, and its clipped sum at full size with autograd's. Plain steps are
taken eagerly and compiled, and eagerly again at the end. On the CPU the model is tiny, compiled
code is traced but not generated, and peaks of memory are not taken.
"""

import argparse
import copy
import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from dp_step import CLIP, PLAIN, TASK, PrivateStepper  # the file beside this one
from torch import Tensor, nn

from core.errors import CloisterError
from core.model import LanguageModel, ModelConfig
from core.tasks.interface import IGNORE, Batch
from core.train import PlainStepper, TrainConfig, make_loss, make_optimizer
from privacy.gradient_modes import GhostMode, GradientMode, HooksMode
from privacy.one_backward.functional_mode import OneBackward

PLAIN_COMPILED = "non_private_compiled"
FP32_TOLERANCE = 1e-4  # of the sum
GHOST_TOLERANCE = 5e-3  # norms and sums of two backward passes, which round apart
BF16_TOLERANCE = 2**-4


@dataclass(frozen=True)
class Case:
    """A model, and what a step is."""

    layers: int
    width: int
    vocab: int
    length: int
    batch: int
    micro_batches: int = 4
    tied: bool = True
    head_width: int = 64
    autocast: Literal["off", "bf16"] = "bf16"


CASES = {
    "27m": Case(6, 512, 8192, length=512, batch=32, tied=False),
    "124m": Case(12, 768, 50_257, length=1024, batch=16),
    "350m": Case(24, 1024, 50_257, length=1024, batch=8),
    "tiny": Case(2, 32, 61, length=16, batch=4, micro_batches=2, tied=False, head_width=16),
}
SMALL = Case(2, 64, 61, length=16, batch=4, head_width=16, autocast="off")


class GhostInBf16(GhostMode):
    """Opacus' ghost clipping, also where its norms are not those of what is summed."""

    def check(self, model: nn.Module, config: TrainConfig, clipping: str = "flat") -> None:
        """What is checked of fp32."""
        super().check(model, SMALL_CONFIG, clipping)


def modes_of(device: torch.device) -> dict[str, GradientMode]:
    """Ours in both executions, and Opacus'."""
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    return {
        "one_backward_compiled": OneBackward("compiled", backend),
        "one_backward": OneBackward("eager"),
        "hooks": HooksMode(),
        "ghost": GhostInBf16(),
    }


def model_of(case: Case, device: torch.device) -> nn.Module:
    """GPT-style; biases, without which Opacus fails."""
    config = ModelConfig(
        vocab_size=case.vocab,
        max_seq_len=case.length,
        n_layer=case.layers,
        n_head=case.width // case.head_width,
        n_embd=case.width,
        bias=True,
        norm="layernorm",
        activation="gelu_tanh",
        position="learned",
        tied=case.tied,
    )
    return LanguageModel(config).to(device).train()


def config_of(case: Case) -> TrainConfig:
    """AdamW."""
    return TrainConfig(
        steps_per_round=1,
        global_batch_size=case.batch * case.micro_batches,
        micro_batch_size=case.batch,
        learning_rate=1e-4,
        autocast=case.autocast,
    )


SMALL_CONFIG = config_of(SMALL)


def batch_of(case: Case, device: torch.device) -> Batch:
    """Random tokens without padding."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, case.vocab, (case.batch, case.length), generator=generator)
    labels = torch.cat([tokens[:, 1:], torch.full((case.batch, 1), IGNORE)], dim=1)
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), labels).to(device)


def gap_of(mode: GradientMode, case: Case, device: torch.device, dtype: torch.dtype) -> float:
    """Distance of the mode's sum over a batch to autograd's in ``dtype``, in parts of it."""
    model, config, batch = model_of(case, device), config_of(case), batch_of(case, device)
    exact = copy.deepcopy(model).to(dtype)
    autocast = "off" if dtype == torch.float64 else case.autocast
    loss = make_loss(TASK, autocast=autocast)
    if dtype == torch.float64:
        loss = _in_fp64
    clip = CLIP * (1 - mode.slack(config))
    trained = [p for p in exact.parameters() if p.requires_grad]
    expected = [torch.zeros_like(p) for p in trained]
    for i in range(len(batch)):
        one = Batch(*(t[i : i + 1] for t in (batch.tokens, batch.attention_mask, batch.labels)))
        gradients = torch.autograd.grad(loss(exact, one).sum(), trained)
        norm = float(torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt())
        for total, gradient in zip(expected, gradients, strict=True):
            total.add_(gradient, alpha=min(1.0, clip / norm))
    del exact, trained, gradients
    stepper = PrivateStepper(model, mode, config)
    stepper.micro_step(batch, last=False)
    found = [p.summed_grad.view_as(p) for p in model.parameters()]  # type: ignore[attr-defined]
    pairs = zip(found, expected, strict=True)
    off = torch.stack([(a.double() - b.double()).square().sum() for a, b in pairs]).sum().sqrt()
    whole = torch.stack([b.double().square().sum() for b in expected]).sum().sqrt()
    stepper.module.cleanup()
    return float(off / whole)


def _in_fp64(model: nn.Module, batch: Batch) -> Tensor:
    return TASK.loss_per_example(model(batch.tokens, batch.attention_mask), batch)


def check_sums(name: str, case: Case, device: torch.device) -> dict[str, float]:
    """How far a mode's sums are off, over a small model and at full size.

    Raises:
        ValueError: Too far.
    """
    mode, ghost = modes_of(device)[name], name == "ghost"
    small = replace(SMALL, tied=not ghost)  # it refuses tied weights
    gap = gap_of(mode, small, device, torch.float64)
    if not gap < (GHOST_TOLERANCE if ghost else FP32_TOLERANCE):
        raise ValueError(f"the clipped sum over a small model is off by {gap:.2g}")
    _forget(device)
    full = gap_of(mode, case, device, torch.float32)
    if not full < BF16_TOLERANCE:
        raise ValueError(f"the clipped sum at full size is off by {full:.2g}")
    return {"small": gap, "full": full}


def stepper_of(name: str, case: Case, device: torch.device) -> Callable[[], None]:
    """A whole step of the kind ``name``."""
    model, config, batch = model_of(case, device), config_of(case), batch_of(case, device)
    if name in (PLAIN, PLAIN_COMPILED):
        loss = make_loss(TASK, autocast=config.autocast)
        inner: Any = model
        if name == PLAIN_COMPILED:
            backend = "inductor" if device.type == "cuda" else "aot_eager"
            compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)
            inner = lambda tokens, mask: compiled(tokens)  # noqa: E731 - nothing is padded
        plain = lambda _, batch: loss(inner, batch)  # noqa: E731
        stepper: Any = PlainStepper(model, plain, make_optimizer(model, config), config)
    else:
        stepper = PrivateStepper(model, modes_of(device)[name], config)

    def step() -> None:
        for number in range(case.micro_batches):
            stepper.micro_step(batch, last=number == case.micro_batches - 1)

    return step


def measure(name: str, case: Case, device: torch.device, steps: int) -> dict[str, Any]:
    """Tokens a second of each step, and the peak of memory."""
    start = time.perf_counter()
    private = name not in (PLAIN, PLAIN_COMPILED)
    gaps = check_sums(name, case, device) if private else {}
    _forget(device)
    step = stepper_of(name, case, device)
    for _ in range(2):  # compiling, buffers, the optimizer's state
        step()
    _wait(device)
    before = time.perf_counter() - start
    rates = []
    for _ in range(steps):
        _wait(device)
        start = time.perf_counter()
        step()
        _wait(device)
        tokens = case.batch * case.length * case.micro_batches
        rates.append(tokens / (time.perf_counter() - start))
    found: dict[str, Any] = {"rates": rates, "gaps": gaps, "seconds_before": before}
    if device.type == "cuda":
        found["mebibytes"] = torch.cuda.max_memory_allocated(device) / 2**20
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def sides(chosen: list[str], case: Case, device: torch.device, steps: int) -> Iterator[Any]:
    """What each side gave, or why it gave nothing."""
    for name in [PLAIN, PLAIN_COMPILED, *chosen, PLAIN]:
        try:
            yield {"side": name, **measure(name, case, device, steps)}
        except torch.OutOfMemoryError:
            yield {"side": name, "refused": "out of memory"}
        except (CloisterError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            first = (str(error).splitlines() or [""])[0]
            yield {"side": name, "refused": f"{type(error).__name__}: {first}"}
        _forget(device)


def main() -> None:
    """Prints one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("modes", nargs="+")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("highest")
    for answer in sides(options.modes, CASES[options.case], device, options.steps):
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
