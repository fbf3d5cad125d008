"""One backward pass as a function: a batch in, clipped sums out, in one graph for a compiler.

Zeros are added to the outputs of the layers; their gradients are the gradients of the outputs, and
the forward pass returns the layers' inputs. From the two come norms, factors and sums, as in
``privacy.one_backward.clipping``. Batches are filled up to a size that changes seldom, for every
new shape is compiled.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from core.errors import PrivacyError
from core.model import LanguageModel, Transformer
from core.tasks.interface import IGNORE, Batch
from core.train import Loss
from privacy.guards import check_loss_shape
from privacy.one_backward.functional_layers import Site, Taps, check_sites, tapped_twin
from privacy.one_backward.functional_norms import clipped_sums

Backend = str | Callable[..., Any]
Outputs = tuple[tuple[torch.Size, torch.dtype], ...]
SWITCH: Final = "CLOISTER_ONE_BACKWARD"
# Graphs of one process: a simulation may train several models in batches of several shapes.
_MAX_GRAPHS: Final = 64
_SHORTEST: Final = 16  # tokens, to which batches are filled up


class _Entry(nn.Module):
    """The twin as the loss sees it."""

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()
        self.twin = twin
        self.causality_suffices = False

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Any:
        """Without the mask, where it hides nothing that causality does not hide."""
        return self.twin(tokens, None if self.causality_suffices else attention_mask)


def _sums_of_batch(
    entry: nn.Module,
    taps: Taps,
    sites: tuple[Site, ...],
    shapes: tuple[torch.Size, ...],
    loss: Loss,
    batch: Batch,
    outputs: Outputs,
    counted: Tensor,
    rule: str,
    clip: Tensor,
    loss_scale: int,
) -> list[Tensor]:
    """The graph."""
    device = counted.device
    nothing = tuple(torch.zeros((), dtype=d, device=device).expand(s) for s, d in outputs)

    def forward(zeros: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        taps.begin(zeros)
        losses = loss(entry, batch)
        return losses, tuple(taps.inputs)

    result: Any = torch.func.vjp(forward, nothing, has_aux=True)
    losses, pull_back, inputs = result
    taps.begin(())
    (gradients,) = pull_back(counted.to(losses.dtype) * loss_scale)
    return clipped_sums(sites, inputs, gradients, shapes, counted, rule, clip, loss_scale)


class FunctionalModule(nn.Module):
    """A model whose clipped sums are one function of a batch.

    Guarantees:
        Examples that fill a batch up add nothing. The model itself is not touched, and nothing
        computed from an example is kept.

    Args:
        model: Of Linear, Embedding, LayerNorm and RMSNorm wherever it is trained.
        backend: Of ``torch.compile``; ``None`` runs the function as it stands.

    Raises:
        UnsupportedLayerError: See ``check_functional``.
    """

    def __init__(self, model: nn.Module, backend: Backend | None = "inductor") -> None:
        super().__init__()
        self._taps = Taps()
        self._entry = _Entry(tapped_twin(model, self._taps))
        self._module = model
        self.trained = tuple(p for p in model.parameters() if p.requires_grad)
        self._shapes = tuple(p.shape for p in self.trained)
        self._sites: tuple[Site, ...] = ()
        self._outputs: dict[torch.Size, Outputs] = {}
        self._rows = 0
        self._run: Any = _sums_of_batch
        if backend is not None:
            # As eager rounds: a norm is that of the rounded tensors that are summed.
            eager: dict[str, Any] = {"emulate_precision_casts": True}
            options = eager if backend == "inductor" else None
            self._run = torch.compile(
                _sums_of_batch, fullgraph=True, dynamic=False, backend=backend, options=options
            )

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The model's own."""
        return self._module(*arguments, **options)

    def forbid_grad_accumulation(self) -> None:
        """Nothing: there are no gradients to accumulate."""

    def cleanup(self) -> None:
        """Forgets the shapes; no record is ever kept."""
        self._outputs.clear()
        self._taps.begin(())

    def sums(
        self, loss: Loss, batch: Batch, *, rule: str, clip: float, loss_scale: int
    ) -> list[Tensor]:
        """The clipped sum of each trained parameter over the examples of ``batch``.

        Raises:
            LossContractError: The loss is not (B,).
            PrivacyError: A trained parameter took no part, was used more or less often than it is
                registered, past its layer, or saw another batch dimension; or the compiler does
                not take the model as one graph.
        """
        if len(batch) == 0:
            return [torch.zeros_like(p) for p in self.trained]
        self._rows = max(self._rows, _fuller(len(batch)))
        counted = torch.arange(self._rows, device=batch.tokens.device) < len(batch)
        batch = _filled(batch, self._rows, _longest(self._module))
        self._entry.train(self._module.training)
        self._entry.causality_suffices = _causality_suffices(self._module, batch)
        outputs = self._outputs.get(batch.tokens.shape)
        if outputs is None:
            outputs = self._outputs[batch.tokens.shape] = self._look(loss, batch)
        bound = torch.tensor(clip, device=counted.device)
        with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=_MAX_GRAPHS):
            try:
                found: list[Tensor] = self._run(
                    self._entry, self._taps, self._sites, self._shapes, loss, batch, outputs,
                    counted, rule, bound, loss_scale,
                )  # fmt: skip
            except TorchDynamoException as error:
                raise PrivacyError(
                    "expected a model and a loss that torch.compile takes as one graph, got "
                    f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
                    hint=f"set {SWITCH}=eager in the environment",
                ) from error
        return found

    def _look(self, loss: Loss, batch: Batch) -> Outputs:
        """The output of each call, after a pass that checks where gradients go."""
        self._taps.begin(())
        device = batch.tokens.device
        with (
            torch.enable_grad(),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            losses = loss(self._entry, batch)
            check_loss_shape(losses, len(batch))
            found = self._taps.found
            wanted = [*found, *self.trained]
            gradients: list[Tensor | None] = [None] * len(wanted)
            if losses.requires_grad:
                gradients = list(torch.autograd.grad(losses.sum(), wanted, allow_unused=True))
        past = gradients[len(found) :]
        check_sites(self._module, self._taps, gradients[: len(found)], past, len(batch))
        sites = tuple(self._taps.sites)
        if self._sites and sites != self._sites:
            raise PrivacyError(
                "expected the same layers to be called, in the same order, for every batch"
            )
        self._sites = sites
        self._taps.begin(())
        return tuple((one.shape, one.dtype) for one in found)


def _fuller(count: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: at most a third is filled up."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 and power > 2 else power


def _longest(model: nn.Module) -> int:
    """Tokens that the model takes; 0 where that is not known."""
    lengths = [m.config.max_seq_len for m in model.modules() if isinstance(m, Transformer)]
    return min(lengths, default=0)


def _filled(batch: Batch, count: int, longest: int) -> Batch:
    """``batch`` with copies of its first example, and padding on the right."""
    length = batch.tokens.shape[1]
    wider = max(0, min(longest, max(_SHORTEST, _fuller(length))) - length)
    more = count - len(batch)

    def fill(tensor: Tensor, value: float) -> Tensor:
        if tensor.dim() > 1 and wider:
            tensor = nn.functional.pad(tensor, (0, wider), value=value)
        if more:
            tensor = torch.cat([tensor, tensor[:1].expand(more, *tensor.shape[1:])])
        return tensor

    return Batch(
        fill(batch.tokens, 0), fill(batch.attention_mask, False), fill(batch.labels, IGNORE)
    )


def _causality_suffices(model: nn.Module, batch: Batch) -> bool:
    """Whether padding stands on the right of a model that looks to the left and scores tokens."""
    if not isinstance(model, LanguageModel) or not model.transformer.config.causal:
        return False
    mask = batch.attention_mask
    return bool((mask[:, :-1] | ~mask[:, 1:]).all())
