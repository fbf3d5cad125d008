"""A twin of a model whose layers add zeros to their outputs: the zeros' gradients are the outputs'.

Nothing is recorded by a side effect of the backward pass, so a compiler sees it whole.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import PrivacyError, UnsupportedLayerError
from privacy.guards import check_layers
from privacy.one_backward.layers import _full, _reduced


@dataclass(frozen=True)
class Site:
    """How one call of a layer uses its parameters, which are numbers in the list of the trained."""

    kind: str
    """``product``, ``lookup`` or ``scale``: what the recorded input is to the weight."""
    weight: int | None
    bias: int | None = None
    features: int = 1
    """Trailing dimensions of the output that belong to the parameters' shape."""


@dataclass
class Taps:
    """What the layers of a twin share during one forward pass."""

    zeros: Sequence[Tensor] = ()
    """Added to the outputs, in the order of the calls; none while these are being looked for."""
    found: list[Tensor] = field(default_factory=list)
    """The zeros that were made while looking."""
    sites: list[Site] = field(default_factory=list)
    """Of each call, while looking."""
    inputs: list[Tensor] = field(default_factory=list)
    """What the gradients of the weights are made from, one for each call."""
    looking: bool = False

    def begin(self, zeros: Sequence[Tensor]) -> None:
        """Forgets the pass before."""
        self.zeros, self.found, self.sites, self.inputs = zeros, [], [], []
        self.looking = len(zeros) == 0

    def add(self, output: Tensor, used: Tensor, site: Site) -> Tensor:
        """``output`` plus its zeros."""
        number = len(self.inputs)
        self.inputs.append(used)
        if not self.looking:
            return output + self.zeros[number]
        zeros = output.detach().new_zeros(()).expand(output.shape).requires_grad_()
        self.found.append(zeros)
        self.sites.append(site)
        return output + zeros


class _TappedLinear(nn.Linear):
    taps: Taps
    site: Site

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        x = _reduced(input)
        bias = None if self.bias is None else self.bias.detach().to(x.dtype)
        output = F.linear(x, self.weight.detach().to(x.dtype), bias)
        return self.taps.add(output, x, self.site)


class _TappedEmbedding(nn.Embedding):
    taps: Taps
    site: Site

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return self.taps.add(F.embedding(input, self.weight.detach()), input, self.site)


class _TappedLayerNorm(nn.LayerNorm):
    taps: Taps
    site: Site

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        normal = F.layer_norm(_full(input), self.normalized_shape, None, None, self.eps)
        output = normal * self.weight.detach()
        if self.bias is not None:
            output = output + self.bias.detach()
        return self.taps.add(output, normal, self.site)


class _TappedRMSNorm(nn.RMSNorm):
    taps: Taps
    site: Site

    def forward(self, x: Tensor) -> Tensor:
        normal = F.rms_norm(_full(x), self.normalized_shape, None, self.eps)
        return self.taps.add(normal * self.weight.detach(), normal, self.site)


_TAPPED: Final[dict[type[nn.Module], tuple[type[nn.Module], str]]] = {
    nn.Linear: (_TappedLinear, "product"),
    nn.Embedding: (_TappedEmbedding, "lookup"),
    nn.LayerNorm: (_TappedLayerNorm, "scale"),
    nn.RMSNorm: (_TappedRMSNorm, "scale"),
}


def check_functional(model: nn.Module) -> None:
    """Refuses by name what has no functional form.

    Raises:
        UnsupportedLayerError: A trained layer of another kind than Linear, Embedding, LayerNorm
            and RMSNorm, also a registered one; a buffer or batch norm; a layer with a forward of
            its own; or dropout, which a graph draws from another generator.
    """
    check_layers(model)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Dropout) and layer.p > 0:
            raise UnsupportedLayerError(
                f"expected a compiled model without dropout, got {name or 'the model'} with "
                f"{layer.p}",
                hint="set model.dropout = 0, or run one_backward eagerly",
            )
        if "forward" in vars(layer):
            raise UnsupportedLayerError(
                "expected layers with the forward of their class, got "
                f"{name or 'the model'}: {type(layer).__name__} with its own",
                hint="take what wraps the layer off, or run one_backward eagerly",
            )


def tapped_twin(model: nn.Module, taps: Taps) -> nn.Module:
    """A copy of ``model`` over the same parameters, whose trained layers add the zeros of ``taps``.

    The model itself is not touched. Twins of models of one shape share compiled code.
    """
    check_functional(model)
    trained = {p: n for n, p in enumerate(q for q in model.parameters() if q.requires_grad)}
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for layer in twin.modules():
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        if not own:
            continue
        tapped, kind = _TAPPED[type(layer)]
        numbers = {n: trained.get(p) for n, p in layer.named_parameters(recurse=False)}
        features = len(getattr(layer, "normalized_shape", (1,)))
        layer.__class__ = tapped
        layer.taps = taps  # type: ignore[assignment]
        layer.site = Site(  # type: ignore[assignment]
            kind, numbers["weight"], numbers.get("bias"), features
        )
    return twin


def check_sites(
    model: nn.Module,
    taps: Taps,
    gradients: Sequence[Tensor | None],
    past: Sequence[Tensor | None],
    num_examples: int,
) -> None:
    """Raises PrivacyError, by name, where the taps do not see the whole gradient.

    Args:
        model: The model that was made a twin of.
        taps: After a pass that looked for them.
        gradients: Of the zeros; ``None`` where one took no part in the loss.
        past: Of the trained parameters, past their layers; ``None`` where there is none.
        num_examples: Of the batch.
    """
    registered = Counter(p for _, p in model.named_parameters(remove_duplicate=False))
    uses = Counter[int]()
    other: dict[int, int] = {}
    kinds: dict[int, set[bool]] = {}
    for site, zeros, gradient in zip(taps.sites, taps.found, gradients, strict=True):
        for number in (site.weight, site.bias):
            if number is None or gradient is None:
                continue
            uses[number] += 1
            dense = site.kind == "scale" or number == site.bias
            kinds.setdefault(number, set()).add(dense)
            if zeros.dim() < 1 + site.features or len(zeros) != num_examples:
                other[number] = len(zeros) if zeros.dim() > site.features else 1
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for number, (name, parameter) in enumerate(named):
        if not uses[number]:
            raise PrivacyError(
                f"expected per-sample gradients of {name}, got none",
                hint="a trained parameter must take part in the loss; freeze it, or remove it",
            )
        if number in other:
            raise PrivacyError(
                f"expected {num_examples} per-sample gradients of {name}, got {other[number]}",
                hint="every layer must see the batch as its first dimension",
            )
        if uses[number] != registered[parameter] or len(kinds[number]) > 1:
            raise PrivacyError(
                f"expected {registered[parameter]} uses of {name}, as often as it is registered "
                f"and all of one kind, got {uses[number]}",
                hint='call each layer once, or set privacy.gradient_mode = "hooks"',
            )
        if past[number] is not None:
            raise PrivacyError(
                f"expected every use of {name} to be recorded, got one past its layer",
                hint="call every layer as a module, with the example as first dimension",
            )
