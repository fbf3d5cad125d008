"""One Transformer, encoder or decoder: GPT-2, BERT and Llama are settings of it.

Read it from the bottom up. What per-sample clipping needs is kept throughout: every trainable
parameter sits in an ``nn.Linear``, ``nn.Embedding``, ``nn.LayerNorm`` or ``nn.RMSNorm`` that is
called as a module, as often as it is registered (a tied head is registered twice); the first
dimension of every tensor is the example; there are no buffers.

Shapes: B examples, T tokens, C width, H heads, D width of a head, V vocabulary, K classes.

Names of the weights, which checkpoints and ``TrainConfig.freeze`` use, of ``Transformer``::

    token_embedding  position_embedding  token_type_embedding  embedding_norm
    blocks.{i}.attention_norm  blocks.{i}.attention.{query,key,value,output}
    blocks.{i}.feed_forward_norm  blocks.{i}.feed_forward.{gate,up,down}
    final_norm

each with ``.weight`` and, where it has one, ``.bias``; ``LanguageModel`` and ``Classifier`` add
``head`` and put ``transformer.`` before the others. A tied head stands twice in ``state_dict()``
and once, as the embedding, in ``named_parameters()``.

Sources: Vaswani et al. 2017; GPT-2 (Radford et al. 2019); BERT (Devlin et al. 2019); Llama
(Touvron et al. 2023) with rotary positions (Su et al. 2021), SwiGLU (Shazeer 2020), RMSNorm
(Zhang and Sennrich 2019) and grouped-query attention (Ainslie et al. 2023). The form follows
nanoGPT and nanochat.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the Transformer; the defaults are a small modern decoder."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "strict": True,
        "extra": "forbid",
        "allow_inf_nan": False,
        "use_attribute_docstrings": True,
    }

    vocab_size: int
    """Rows of the token embedding; at least the tokenizer's size."""
    max_seq_len: int
    """Longest sequence in tokens; longer texts are cut."""
    n_layer: int
    """Blocks."""
    n_head: int
    """Attention heads."""
    n_embd: int
    """Width."""
    n_kv_head: int | None = None
    """Key and value heads (grouped-query attention); ``None`` means ``n_head``."""
    n_ff: int | None = None
    """Width of the feed-forward layer; ``None`` means 4 x width (8/3 x width for SwiGLU)."""
    causal: bool = True
    """Decoder (each position sees the past only) or encoder."""
    position: Literal["learned", "rotary", "none"] = "rotary"
    """How positions enter."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    """Normalisation layer."""
    norm_placement: Literal["pre", "post"] = "pre"
    """Before each sublayer with one more at the end (GPT-2, Llama), or after the sum (BERT)."""
    norm_eps: float = 1e-5
    """Epsilon inside the norms."""
    embedding_norm: bool = False
    """Normalise the sum of the embeddings (BERT)."""
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = "swiglu"
    """Feed-forward: exact GELU (BERT), its tanh form (GPT-2), or SwiGLU (Llama)."""
    bias: bool = False
    """Biases in the linear layers and LayerNorms (GPT-2, BERT)."""
    tied: bool = True
    """The language-model head shares the token embedding."""
    n_token_type: int = 0
    """Rows of the token-type embedding (BERT has 2); 0 for none."""
    dropout: float = 0.0
    """Dropout while training."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_seq_len", "n_layer", "n_head", "n_embd"):
            _expect(getattr(self, name) >= 1, f"model.{name} of at least 1", getattr(self, name))
        for name in ("n_kv_head", "n_ff"):
            value = getattr(self, name)
            _expect(value is None or value >= 1, f"model.{name} of at least 1 or none", value)
        _expect(self.n_token_type >= 0, "model.n_token_type of at least 0", self.n_token_type)
        for name in ("norm_eps", "rope_theta"):
            value = getattr(self, name)
            _expect(0 < value < math.inf, f"model.{name} above 0 and finite", value)
        _expect(0 <= self.dropout < 1, "model.dropout in [0, 1)", self.dropout)
        self._check_heads()

    def _check_heads(self) -> None:
        _expect(
            self.n_embd % self.n_head == 0,
            f"model.n_embd as a multiple of n_head = {self.n_head}",
            self.n_embd,
            hint="the heads share the width evenly: change n_embd or n_head",
        )
        _expect(
            self.n_head % self.kv_heads == 0,
            f"model.n_kv_head as a divisor of n_head = {self.n_head}",
            self.n_kv_head,
            hint="each key and value head serves the same number of query heads",
        )
        _expect(
            self.position != "rotary" or self.head_dim % 2 == 0,
            "an even head width (n_embd / n_head) for rotary positions",
            self.head_dim,
            hint='change n_embd or n_head, or set position = "learned"',
        )

    @property
    def head_dim(self) -> int:
        """D."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def ff_width(self) -> int:
        """Width of the feed-forward layer; 8/3 x width keeps SwiGLU's three matrices at the
        size of the other kinds' two."""
        if self.n_ff is not None:
            return self.n_ff
        return 8 * self.n_embd // 3 if self.activation == "swiglu" else 4 * self.n_embd


def _expect(holds: bool, expected: str, got: object, *, hint: str = "change it in [model]") -> None:
    if not holds:
        raise ConfigError(f"expected {expected}, got {got}", hint=hint)


def _uninitialised(layer: type[nn.Module], *sizes: int, **options: Any) -> Any:
    # PyTorch's own initialisation would draw from the process-wide generator.
    device = torch.get_default_device()
    return nn.utils.skip_init(layer, *sizes, device=device, **options)  # type: ignore[no-untyped-call]


def _linear(n_in: int, n_out: int, *, bias: bool) -> nn.Linear:
    layer: nn.Linear = _uninitialised(nn.Linear, n_in, n_out, bias=bias)
    return layer


def _embedding(rows: int, width: int) -> nn.Embedding:
    layer: nn.Embedding = _uninitialised(nn.Embedding, rows, width)
    return layer


def _norm(config: ModelConfig) -> nn.LayerNorm | nn.RMSNorm:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


def init_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Initialises every weight of ``model``, on the generator's device.

    ==========================================  ================================
    linear, embedding, head                     normal, 0.02
    into the residual: attention.output,        normal, 0.02 / sqrt(2 x n_layer)
    feed_forward.down (norm placement "pre")
    norm                                        1
    every bias                                  0
    ==========================================  ================================

    Guarantees:
        Equal seeds give equal weights, whatever other threads draw: the process-wide generator
        is neither read nor advanced.

    Source: GPT-2, section 2.3, and its published code for the 0.02 (as BERT and Llama).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02, generator=generator)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            nn.init.ones_(module.weight)
        if isinstance(bias := getattr(module, "bias", None), Tensor):
            nn.init.zeros_(bias)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        if block.pre_norm:
            for layer in (block.attention.output, block.feed_forward.down):
                std = 0.02 / math.sqrt(2 * len(blocks))
                nn.init.normal_(layer.weight, std=std, generator=generator)


def rotary_table(config: ModelConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, D/2) in fp32; cheap enough to be computed in each forward pass."""
    powers = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32)
    frequencies = 1.0 / config.rope_theta ** (powers / config.head_dim)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the pairs (d, d + D/2) of x (B, H, T, D): the convention of Llama's checkpoints."""
    cos, sin = table
    first, second = x.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(turned, dim=-1).type_as(x)


def visible(attention_mask: Tensor | None, causal: bool) -> Tensor | None:
    """Who sees whom, (B, 1, 1 or T, T); ``None`` where ``causal`` alone already says it.

    A row that would see nothing, which softmax turns into NaN, sees something harmless instead:
    such rows stand for padding, and no token sees them.
    """
    if attention_mask is None:
        return None
    compiling = torch.compiler.is_compiling()  # a graph cannot ask what a mask holds
    if not causal:
        if not compiling and bool(attention_mask.all()):
            return None
        blank = ~attention_mask.any(dim=1, keepdim=True)
        return (attention_mask | blank)[:, None, None, :]  # (B 1 1 T)
    # With all padding on the right, no token has padding in its past.
    if not compiling and bool((attention_mask[:, :-1] | ~attention_mask[:, 1:]).all()):
        return None
    length = attention_mask.shape[1]
    square = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device)
    itself = torch.eye(length, dtype=torch.bool, device=attention_mask.device)
    return attention_mask[:, None, None, :] & square.tril() | itself  # (B 1 T T)


class Attention(nn.Module):
    """Multi-head attention, grouped-query where there are fewer key heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.kv_heads * config.head_dim
        self.query = _linear(config.n_embd, config.n_embd, bias=config.bias)
        self.key = _linear(config.n_embd, kv_width, bias=config.bias)
        self.value = _linear(config.n_embd, kv_width, bias=config.bias)
        self.output = _linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        query = self._heads(self.query(x), self.config.n_head)  # (B H T D)
        key = self._heads(self.key(x), self.config.kv_heads)
        value = self._heads(self.value(x), self.config.kv_heads)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        if self.config.kv_heads < self.config.n_head:
            # Not enable_gqa: not every fused kernel knows it.
            repeats = self.config.n_head // self.config.kv_heads
            key, value = (t.repeat_interleave(repeats, dim=1) for t in (key, value))
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.config.dropout if self.training else 0.0,
            is_causal=self.config.causal and mask is None,
        )
        joined = mixed.transpose(1, 2).reshape(x.shape)  # (B T C)
        output: Tensor = self.output(joined)
        return output

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        batch, length, _ = x.shape
        return x.view(batch, length, heads, self.config.head_dim).transpose(1, 2)


class FeedForward(nn.Module):
    """Two matrices around a GELU, or SwiGLU's three."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        width = config.ff_width
        self.up = _linear(config.n_embd, width, bias=config.bias)
        self.gate = None
        if config.activation == "swiglu":
            self.gate = _linear(config.n_embd, width, bias=config.bias)
        self.down = _linear(width, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        if self.gate is not None:
            inner = F.silu(self.gate(x)) * self.up(x)
        else:
            approximate = "tanh" if self.activation == "gelu_tanh" else "none"
            inner = F.gelu(self.up(x), approximate=approximate)
        output: Tensor = self.down(inner)
        return output


class Block(nn.Module):
    """Attention and feed-forward around the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm_placement == "pre"
        self.attention_norm = _norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = _norm(config)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), rotary, mask))
            x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        else:
            x = self.attention_norm(x + self.dropout(self.attention(x, rotary, mask)))
            x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return x


class Transformer(nn.Module):
    """Tokens to hidden states. Its first weights are those of seed 0; see ``init_weights``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = _embedding(config.vocab_size, config.n_embd)
        self.position_embedding = None
        if config.position == "learned":
            self.position_embedding = _embedding(config.max_seq_len, config.n_embd)
        self.token_type_embedding = None
        if config.n_token_type:
            self.token_type_embedding = _embedding(config.n_token_type, config.n_embd)
        self.embedding_norm = _norm(config) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = _norm(config) if config.norm_placement == "pre" else None
        init_weights(self, torch.Generator().manual_seed(0))

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T, C).

        Args:
            tokens: (B, T) int64; positions count from the first column, so pad on the right
                (with padding on the left, learned positions shift).
            attention_mask: (B, T) bool, True where a token stands; ``None`` for no padding.
                What stands at padded positions of the result is finite and means nothing.
            token_types: (B, T) int64; ``None`` for all zeros.
        """
        self._check(tokens, attention_mask, token_types)
        x = self._embed(tokens, token_types)  # (B T C)
        rotary = None
        if self.config.position == "rotary":
            rotary = rotary_table(self.config, tokens.shape[1], tokens.device)
        mask = visible(attention_mask, self.config.causal)
        hidden: Tensor = x
        for block in self.blocks:
            hidden = block(hidden, rotary, mask)
        if self.final_norm is not None:
            hidden = self.final_norm(hidden)
        return hidden

    def _embed(self, tokens: Tensor, token_types: Tensor | None) -> Tensor:
        x = self.token_embedding(tokens)
        # Ids are (B, T) before they are looked up: per-sample clipping takes the first dimension
        # for the example, and ids (T,) go wrong without a word where B = T. Not by expand():
        # Opacus' ghost clipping takes views that strides of 0 do not allow.
        if self.position_embedding is not None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            x = x + self.position_embedding(positions.repeat(len(tokens), 1))
        if self.token_type_embedding is not None:
            token_types = torch.zeros_like(tokens) if token_types is None else token_types
            x = x + self.token_type_embedding(token_types)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        dropped: Tensor = self.dropout(x)
        return dropped

    def _check(
        self, tokens: Tensor, attention_mask: Tensor | None, token_types: Tensor | None
    ) -> None:
        _expect(
            tokens.shape[1] <= self.config.max_seq_len,
            f"at most max_seq_len = {self.config.max_seq_len} tokens",
            tokens.shape[1],
            hint="cut the text, or raise max_seq_len",
        )
        if attention_mask is not None and (
            attention_mask.dtype != torch.bool or attention_mask.shape != tokens.shape
        ):
            raise ValueError(
                f"expected attention_mask as bool {tuple(tokens.shape)}, "
                f"got {attention_mask.dtype} {tuple(attention_mask.shape)}"
            )
        if token_types is not None and (
            self.token_type_embedding is None or token_types.shape != tokens.shape
        ):
            raise ValueError(
                f"expected token_types {tuple(tokens.shape)} and a model with n_token_type > 0, "
                f"got {tuple(token_types.shape)} and n_token_type = {self.config.n_token_type}"
            )


class LanguageModel(nn.Module):
    """A Transformer that scores the vocabulary at every position."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transformer = Transformer(config)
        self.head = _linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            # The same Parameter in two modules: hooks on either see their own use of it.
            self.head.weight = self.transformer.token_embedding.weight
        init_weights(self, torch.Generator().manual_seed(0))

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V)."""
        logits: Tensor = self.head(self.transformer(tokens, attention_mask))
        return logits


class Classifier(nn.Module):
    """A Transformer that scores classes from one pooled hidden state."""

    def __init__(
        self, config: ModelConfig, num_classes: int, pooling: Literal["first", "mean", "last"]
    ) -> None:
        super().__init__()
        _expect(num_classes >= 1, "at least 1 class", num_classes, hint="see task.labels")
        self.transformer = Transformer(config)
        self.pooling = pooling
        self.dropout = nn.Dropout(config.dropout)
        self.head = _linear(config.n_embd, num_classes, bias=True)
        init_weights(self, torch.Generator().manual_seed(0))

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, K)."""
        hidden = self.transformer(tokens, attention_mask)
        if attention_mask is None:
            attention_mask = torch.ones_like(tokens, dtype=torch.bool)
        logits: Tensor = self.head(self.dropout(pool(hidden, attention_mask, self.pooling)))
        return logits


def pool(
    hidden: Tensor, attention_mask: Tensor, pooling: Literal["first", "mean", "last"]
) -> Tensor:
    """One state per example, (B, T, C) to (B, C): the first token's, the last's, or the mean.

    An example without a token gives the mean zero, and the first or last position's state.
    """
    if pooling == "mean":
        weights = attention_mask.unsqueeze(-1).type_as(hidden)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    marks = attention_mask.int()
    if pooling == "first":
        index = marks.argmax(dim=1)
    else:
        index = hidden.shape[1] - 1 - marks.flip(1).argmax(dim=1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), index]
