"""One side of the DP-SGD benchmark, in a process of its own: ``time`` or ``memory``.

``time`` takes steps without privacy and with it in turns and prints the ratios; before that it
compares the mode's clipped sum with autograd's gradients, one example at a time. ``memory`` takes
steps of one kind alone and prints how far the process's memory rose above what the imports took.
The allocator is set by whoever starts it, through the environment.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.gsm_exp_weights import GradSampleModuleExpandedWeights
from torch import Tensor, nn

from core.config import TokenizerSection
from core.errors import CloisterError
from core.lora import LoraConfig, add_lora
from core.model import LanguageModel, ModelConfig
from core.tasks.causal_lm import CausalLM
from core.tasks.interface import Batch
from core.tokenizer import load_tokenizer
from core.train import PlainStepper, TrainConfig, make_loss, make_optimizer
from privacy.gradient_modes import GRADIENT_MODES, GradientMode, HooksMode
from privacy.random_source import RandomSource

VOCAB = 8192
CLIP = 1.0
PLAIN = "non_private"


@dataclass(frozen=True)
class Case:
    """A model and what a step is."""

    width: int = 512
    batch: int = 16
    length: int = 128
    micro_batches: int = 1
    autocast: str = "off"
    lora_rank: int = 0
    tied: bool = False


CASES = {
    "d512": Case(),
    "d512_micro8": Case(micro_batches=8),
    "d256": Case(256),
    "d256_B32": Case(256, batch=32),
    "d256_T512": Case(256, batch=4, length=512),
    "d256_tied": Case(256, tied=True),
    "d256_lora8": Case(256, lora_rank=8),
    "d256_bf16": Case(256, autocast="bf16"),
}


class Functorch(HooksMode):
    """Opacus' hooks with every layer's gradients by functorch."""

    def wrap(self, model: nn.Module, clip: float) -> Any:
        """Opacus' module."""
        return GradSampleModule(model, loss_reduction="sum", force_functorch=True)


class ExpandedWeights(HooksMode):
    """Opacus' gradients by torch's expanded weights."""

    def wrap(self, model: nn.Module, clip: float) -> Any:
        """Opacus' module."""
        return GradSampleModuleExpandedWeights(model, loss_reduction="sum")


MODES: dict[str, GradientMode] = {
    **GRADIENT_MODES,
    "functorch": Functorch(),
    "ew": ExpandedWeights(),
}
TASK = CausalLM(load_tokenizer(TokenizerSection()), 512)


def model_of(case: Case) -> nn.Module:
    """GPT-style: 6 layers, 27 million weights at width 512; biases, without which Opacus fails."""
    model = LanguageModel(
        ModelConfig(
            vocab_size=VOCAB,
            max_seq_len=case.length,
            n_layer=6,
            n_head=case.width // 64,
            n_embd=case.width,
            bias=True,
            norm="layernorm",
            activation="gelu",
            position="learned",
            tied=case.tied,
        )
    )
    if case.lora_rank:
        targets = ("query", "key", "value", "output", "up", "down")
        lora = LoraConfig(rank=case.lora_rank, alpha=2.0 * case.lora_rank, targets=targets)
        add_lora(model, lora, torch.Generator().manual_seed(1))
    return model.train()


def config_of(case: Case) -> TrainConfig:
    """AdamW."""
    return TrainConfig(
        steps_per_round=1,
        global_batch_size=case.batch * case.micro_batches,
        micro_batch_size=case.batch,
        learning_rate=1e-4,
        autocast=case.autocast,  # type: ignore[arg-type]
    )


def random_batch(count: int, length: int) -> Batch:
    """Random tokens without padding."""
    tokens = torch.randint(0, VOCAB, (count, length), generator=torch.Generator().manual_seed(2))
    labels = torch.cat([tokens[:, 1:], torch.full((count, 1), -100)], dim=1)
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), labels)


class PrivateStepper:
    """Steps of DP-SGD with noise, as ``privacy.dp_sgd`` takes them."""

    def __init__(self, model: nn.Module, mode: GradientMode, config: TrainConfig) -> None:
        mode.check(model, config)
        clip = CLIP * (1 - mode.slack(config))
        self._mode, self._loss = mode, make_loss(TASK, autocast=config.autocast)
        self.optimizer: Any = mode.optimizer_class(
            make_optimizer(model, config),
            noise_multiplier=1.0,
            max_grad_norm=clip,
            sensitivity=CLIP,
            expected_batch_size=config.global_batch_size,
            noise=RandomSource.fresh().stream("noise"),
            pull=None,
        )
        self.module = mode.wrap(model, clip)

    def micro_step(self, batch: Batch, *, last: bool) -> None:
        """Clips and sums; after the last one noises and updates."""
        self._mode.backward(self.module, self.optimizer, self._loss, batch)
        self.optimizer.signal_skip_step(do_skip=not last)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def stepper_of(name: str, case: Case) -> PlainStepper | PrivateStepper:
    """Takes steps of the kind ``name``."""
    model, config = model_of(case), config_of(case)
    if name == PLAIN:
        loss = make_loss(TASK, autocast=config.autocast)
        return PlainStepper(model, loss, make_optimizer(model, config), config)
    return PrivateStepper(model, MODES[name], config)


def whole_step(stepper: PlainStepper | PrivateStepper, case: Case) -> Callable[[], None]:
    """All micro-batches of a step."""
    batch = random_batch(case.batch, case.length)

    def step() -> None:
        for number in range(case.micro_batches):
            stepper.micro_step(batch, last=number == case.micro_batches - 1)

    return step


def check_equal(name: str, case: Case) -> float:
    """Distance of the mode's sum over two examples to the oracle's, in parts of the clip.

    Both clip at the clip less the mode's slack for rounding.
    """
    model, config = model_of(case), config_of(case)
    batch, loss = random_batch(2, 32), make_loss(TASK, autocast=case.autocast)
    trained = [p for p in model.parameters() if p.requires_grad]
    expected = torch.zeros(sum(p.numel() for p in trained))
    clip = CLIP * (1 - MODES[name].slack(config))
    for i in range(2):
        one = Batch(*(t[i : i + 1] for t in (batch.tokens, batch.attention_mask, batch.labels)))
        gradient = _flat(torch.autograd.grad(loss(model, one).sum(), trained))
        # In fp64: torch's fp32 norm of so long a vector is off in the fourth digit.
        expected += gradient * min(1.0, clip / float(gradient.double().norm()))
    stepper = PrivateStepper(model, MODES[name], config)
    stepper.micro_step(batch, last=False)
    found = _flat([p.summed_grad for p in trained])  # type: ignore[attr-defined]
    return float((found - expected).norm()) / CLIP


def _flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().float().reshape(-1) for t in tensors])


def measure_time(name: str, case: Case, pairs: int) -> dict[str, Any]:
    """Ratios of steps taken in turns; where both are plain, how far noise of the machine goes."""
    gap = 0.0 if name == PLAIN else check_equal(name, case)
    # Ghost clipping takes norms and sums from two backward passes, which round apart.
    fp32 = 1e-3 if name == "ghost" else 1e-5
    if not gap < (2**-5 if case.autocast == "bf16" else fp32):
        raise SystemExit(f"{name}: the clipped sum is off by {gap:.2g} of the clip")
    plain, other = (whole_step(stepper_of(kind, case), case) for kind in (PLAIN, name))
    plain(), other()  # buffers, the optimizer's state
    seconds: dict[Any, list[float]] = {plain: [], other: []}
    for number in range(pairs):
        for step in (plain, other) if number % 2 else (other, plain):
            start = time.perf_counter()
            step()
            seconds[step].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds[other], seconds[plain], strict=True)]
    return {"ratios": ratios, "plain_seconds": seconds[plain], "gap": gap}


def measure_memory(name: str, case: Case) -> dict[str, Any]:
    """MiB above what the imports took, at the peak of three steps."""
    before = _status("VmRSS")
    step = whole_step(stepper_of(name, case), case)
    for _ in range(3):
        step()
    return {"mebibytes": (_status("VmHWM") - before) / 1024}


def _status(key: str) -> int:
    """KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise SystemExit(f"expected {key} in /proc/self/status")


def main() -> None:
    """Prints one JSON object: figures, or why there are none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("time", "memory"))
    parser.add_argument("mode", choices=(PLAIN, *MODES))
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    case = CASES[options.case]
    try:
        if options.what == "time":
            result = measure_time(options.mode, case, options.pairs)
        else:
            result = measure_memory(options.mode, case)
    except (CloisterError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if options.mode in (PLAIN, "one_backward"):
            raise  # ours takes every case
        result = {"refused": (str(error).splitlines() or [type(error).__name__])[0]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
