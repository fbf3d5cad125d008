"""Clipped sums of random models, and what they must come to by the naivest computation."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from core.model import Classifier, LanguageModel, ModelConfig
from core.tasks.interface import Batch
from core.train import Loss
from privacy.gradient_modes import GRADIENT_MODES
from tests.support.private_training import known_source

VOCAB = 19
Sums = dict[str, Tensor]


def losses_of(logits: Tensor, batch: Batch) -> Tensor:
    """One loss per example."""
    if logits.dim() == 2:
        return F.cross_entropy(logits, batch.labels, reduction="none")
    each = F.cross_entropy(logits[:, :-1].mT, batch.tokens[:, 1:], reduction="none")
    mask = batch.attention_mask[:, 1:]
    return (each * mask).sum(1) / mask.sum(1).clamp(min=1)


def plain_loss(model: nn.Module, batch: Batch) -> Tensor:
    """In the precision of the model."""
    return losses_of(model(batch.tokens, batch.attention_mask), batch)


def random_batch(seed: int, count: int, length: int) -> Batch:
    """Examples of 1 to ``length`` tokens, padded on the right to ``length``."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (count, length), generator=generator)
    lengths = torch.randint(1, length + 1, (count, 1), generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return Batch(tokens, torch.arange(length) < lengths, labels)


def model_of(classes: bool = False, **shape: Any) -> nn.Module:
    """A Transformer with weights far from their symmetric start."""
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "max_seq_len": 16,
        "n_layer": 1,
        "n_head": 4,
        "n_embd": 8,
        "n_ff": 12,
    }
    config = ModelConfig(**settings | shape)
    model = Classifier(config, 3, "mean") if classes else LanguageModel(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.train()


def clipped(
    model: nn.Module,
    *batches: Batch,
    clip: float,
    mode: str = "one_backward",
    rule: str = "flat",
    loss: Loss = plain_loss,
) -> Sums:
    """What noise would be added to, without the slack, so that modes can be compared."""
    optimizer = optimizer_for(model, clip, mode, rule)
    module = GRADIENT_MODES[mode].wrap(model, clip)
    try:
        for batch in batches:
            GRADIENT_MODES[mode].backward(module, optimizer, loss, batch)
            optimizer.signal_skip_step(do_skip=True)
            optimizer.step()
            optimizer.zero_grad()
        named = model.named_parameters()
        return {n: p.summed_grad.clone().view_as(p) for n, p in named if p.requires_grad}
    finally:
        module.cleanup()


def optimizer_for(
    model: nn.Module, clip: float, mode: str = "one_backward", rule: str = "flat"
) -> Any:
    """The mode's optimizer, which clips to just below its sensitivity."""
    return GRADIENT_MODES[mode].optimizer_class(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1),
        noise_multiplier=1.0,
        max_grad_norm=clip,
        sensitivity=clip * 1.01,
        expected_batch_size=1,
        noise=known_source().stream("noise"),
        pull=None,
        clipping=rule,
    )


def each_gradient(model: nn.Module, batch: Batch, loss: Loss = plain_loss) -> list[Sums]:
    """Gradients of one example at a time."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    result = []
    for i in range(len(batch)):
        one = Batch(*(t[i : i + 1] for t in (batch.tokens, batch.attention_mask, batch.labels)))
        gradients = torch.autograd.grad(loss(model, one).sum(), list(named.values()))
        result.append(dict(zip(named, gradients, strict=True)))
    return result


def norm_of(sums: Sums) -> float:
    """Over all parameters together."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in sums.values()))


def oracle(gradients: list[Sums], clip: float, rule: str = "flat") -> Sums:
    """The clipped sum, from each example's whole gradient."""
    return {
        name: sum(_factor(g, name, clip, rule) * g[name].double() for g in gradients)  # type: ignore[misc]
        for name in gradients[0]
    }


def _factor(gradient: Sums, name: str, clip: float, rule: str) -> float:
    if rule == "per_layer":
        part = norm_of({name: gradient[name]})
        return min(1.0, clip / math.sqrt(len(gradient)) / (part + 1e-6))
    whole = norm_of(gradient)
    return min(1.0, clip / (whole + 1e-6)) if rule == "flat" else clip / (whole + 0.01)


def distance(left: Sums, right: Sums) -> float:
    """Relative L2 distance."""
    return norm_of({n: left[n].double() - right[n].double() for n in right}) / norm_of(right)


def middle_clip(gradients: list[Sums]) -> float:
    """Some examples are clipped, and some are not."""
    norms = sorted(norm_of(g) for g in gradients)
    return 0.9 * norms[len(norms) // 2]


SHAPES = st.fixed_dictionaries(
    {
        "classes": st.booleans(),
        "tied": st.booleans(),
        "position": st.sampled_from(["rotary", "learned", "none"]),
        "norm": st.sampled_from(["layernorm", "rmsnorm"]),
        "bias": st.booleans(),
        "norm_placement": st.sampled_from(["pre", "post"]),
        "n_kv_head": st.sampled_from([4, 2, 1]),
        "causal": st.booleans(),
        "activation": st.sampled_from(["gelu", "gelu_tanh", "swiglu"]),
        "n_token_type": st.sampled_from([0, 2]),
        "embedding_norm": st.booleans(),
    }
)
