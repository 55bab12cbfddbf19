"""The TTT layer: projections, the inner model that learns while the sequence flows by, and its state.

Legend: B batch, T time, C hidden size, H heads, d head_dim, b mini-batch size.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttt_core import chunked, sequential
from ttt_core.commit import Carried, Commit
from ttt_core.config import TTTConfig
from ttt_core.conv import CausalConv
from ttt_core.inner_model import InnerWeights, zeros_like
from ttt_core.inner_parameters import INITIAL_STD, InnerParameters
from ttt_core.precision import POLICIES, PrecisionPolicy
from ttt_core.rotary import rotary_tables, rotate
from ttt_core.state import TTTState

NORM_EPS = 1e-6


class _Packed(NamedTuple):
    """Real tokens moved to the front of their rows, and how to move outputs back."""

    x: Tensor  # (B, T, C), zeros behind a row's length
    lengths: Tensor | None  # (B,), None when every token is real
    place: Tensor | None  # (B, T) where each original position's token went


class TTTLayer(nn.Module):
    """Sequence layer whose hidden state is an inner model per head, trained by one gradient step per mini-batch.

    Sun et al. 2024, "Learning to (Learn at Test Time)"; the derivation in this code's symbols is in ttt_core/README.md.
    """

    def __init__(self, config: TTTConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads, self.head_dim = config.num_heads, config.resolved_head_dim
        width = self.num_heads * self.head_dim
        bias = config.projection_bias
        self.wq = nn.Linear(config.hidden_size, width, bias=bias)
        self.wk = None if config.share_qk else nn.Linear(config.hidden_size, width, bias=bias)
        self.wv = nn.Linear(config.hidden_size, width, bias=bias)
        self.wo = nn.Linear(width, config.hidden_size, bias=False)
        self.wg = nn.Linear(config.hidden_size, width, bias=False) if config.use_gate else None
        self.conv_q = CausalConv(width, config.conv_kernel) if config.share_qk else None
        self.conv_k = CausalConv(width, config.conv_kernel) if config.share_qk else None
        self.pre_conv_norm = nn.RMSNorm(config.hidden_size, eps=NORM_EPS) if config.pre_conv else None
        self.pre_conv = CausalConv(config.hidden_size, config.conv_kernel) if config.pre_conv else None
        self.post_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.inner = InnerParameters(config)
        self.reset_projections()

    @staticmethod
    def from_ttt_lm(state_dict: dict[str, Tensor], config: TTTConfig) -> TTTLayer:
        """A layer with the weights of a ttt-lm-pytorch layer, by its own names; missing or extra names raise."""
        from ttt_core.ttt_lm import load_ttt_lm_state_dict

        layer = TTTLayer(config)
        load_ttt_lm_state_dict(layer, state_dict)
        return layer

    def reset_projections(self) -> None:
        """Initialise the four or five projections; mounting copies an attention's weights into them instead."""
        for projection in (self.wq, self.wk, self.wv, self.wo, self.wg):
            if projection is not None:
                nn.init.normal_(projection.weight, std=INITIAL_STD)
                if self.config.projection_bias and projection is not self.wo and projection is not self.wg:
                    nn.init.zeros_(projection.bias)

    def reset_parameters(self) -> None:
        """Initialise everything that is not a projection."""
        self.inner.reset_parameters()
        self.post_norm.reset_parameters()
        for module in (self.conv_q, self.conv_k, self.pre_conv, self.pre_conv_norm):
            if module is not None:
                module.reset_parameters()

    def inner_parameters(self) -> list[nn.Parameter]:
        """The parameters that stay FP32 whatever the model's dtype."""
        return list(self.inner.parameters())

    def initial_state(self, batch_size: int) -> TTTState:
        """State of `batch_size` streams before their first token; gradients reach the learned starting weights."""
        initial, policy = self.inner.weights, self.policy
        working = policy.working_dtype(initial.W1.dtype)
        stored = initial.map(lambda tensor: policy.store(tensor.to(working)))
        zeros = initial.map(lambda tensor: torch.zeros_like(tensor, dtype=working))
        velocity = zeros.map(policy.store).for_rows(batch_size) if self.config.carries_velocity else None
        before = self.config.conv_kernel - 1
        conv = {
            name: initial.W1.new_zeros(batch_size, channels, before)
            for name, channels in self.config.conv_channels.items()
        }
        count = torch.zeros(batch_size, dtype=torch.int64, device=initial.W1.device)
        sums = zeros_like(zeros.for_rows(batch_size))
        return TTTState(stored.for_rows(batch_size), sums, count, conv, initial, self.config, velocity)

    @property
    def policy(self) -> PrecisionPolicy:
        return POLICIES[self.config.precision]

    def picked_backend(self, tokens: int) -> str:
        """The form a call of that many tokens runs in."""
        if self.config.backend != "auto":
            return self.config.backend
        return "sequential" if tokens == 1 else "chunked"

    def read_scores(self, scores: Tensor) -> Tensor:
        """Of the scores (..., b, b) between a mini-batch's queries i and inputs j, those that row i reads: j <= i."""
        return torch.tril(scores)

    def forward(
        self,
        x: Tensor,
        state: TTTState | None = None,
        mask: Tensor | None = None,
        base_lr: float | Tensor | None = None,
    ) -> tuple[Tensor, None, TTTState]:
        """Outputs (B, T, C) of x (B, T, C), None (no attention weights), and the state after it.

        state: of the tokens before; None starts from the learned weights. It is not changed.
        mask: (B, T) bool, True = real token. A padded position gives zeros and leaves its row's state as it was,
        wherever it stands.
        base_lr: overrides the config's inner step size for this call (inner warm-up).
        """
        out, _, state = self._run(x, state, mask, base_lr)
        return out, None, state

    @torch.no_grad()
    def inner_loss(
        self,
        x: Tensor,
        state: TTTState | None = None,
        mask: Tensor | None = None,
        base_lr: float | Tensor | None = None,
    ) -> Tensor:
        """(B, H, T) inner losses 1/2 || LN(f(k_t; W)) - (v_t - k_t) ||^2 at the weights W of the open mini-batch.

        Zero at padded positions. For watching; the outputs are thrown away.
        """
        return self._run(x, state, mask, base_lr)[1]

    def _run(
        self, x: Tensor, state: TTTState | None, mask: Tensor | None, base_lr: float | Tensor | None
    ) -> tuple[Tensor, Tensor, TTTState]:
        self._check(x, state, mask)
        is_fresh = state is None
        state = self.initial_state(x.shape[0]) if state is None else state
        if x.shape[1] == 0:
            return x, x.new_zeros(x.shape[0], self.num_heads, 0), state
        packed = _pack(x, mask)
        hidden, lengths = packed.x, packed.lengths
        conv: dict[str, Tensor] = {}
        if self.pre_conv is not None and self.pre_conv_norm is not None:
            normed = self.pre_conv_norm(hidden)
            mixed, conv["pre_conv"] = self.pre_conv(normed, state.conv["pre_conv"], lengths)
            hidden = hidden + mixed
        q, k = self.wq(hidden), self.wq(hidden) if self.wk is None else self.wk(hidden)
        if self.conv_q is not None and self.conv_k is not None:
            q, conv["conv_q"] = self.conv_q(q, state.conv["conv_q"], lengths)
            k, conv["conv_k"] = self.conv_k(k, state.conv["conv_k"], lengths)
        v = self.wv(hidden)

        with self._autocast_guard(x.device):
            z, losses, carried, sums = self._inner_loop(hidden, (q, k, v), state, lengths, base_lr, is_fresh)
            z = z.transpose(1, 2).flatten(2)
            z = F.layer_norm(
                z, z.shape[-1:], self.post_norm.weight.to(z.dtype), self.post_norm.bias.to(z.dtype), NORM_EPS
            )
        z = z.to(v.dtype)
        if self.wg is not None:
            z = F.gelu(self.wg(hidden), approximate="tanh") * z
        out = self.wo(z)

        added = x.shape[1] if lengths is None else lengths
        if not self.policy.is_exact:
            carried = carried.map(self.policy.store)
        weights, velocity = carried
        after = TTTState(weights, sums, state.count + added, conv, self.inner.weights, self.config, velocity)
        if packed.place is None:
            return out, losses, after
        assert mask is not None
        out = out.gather(1, packed.place[:, :, None].expand_as(out))
        losses = losses.gather(2, packed.place[:, None].expand_as(losses))
        return torch.where(mask[:, :, None], out, 0.0), torch.where(mask[:, None], losses, 0.0), after

    def _inner_loop(
        self, hidden: Tensor, projected: tuple[Tensor, Tensor, Tensor], state: TTTState, lengths: Tensor | None,
        base_lr: float | Tensor | None, is_fresh: bool,
    ) -> tuple[Tensor, Tensor, Carried, InnerWeights]:  # fmt: skip
        """From projections to z (B, H, T, d), all of it in the policy's working dtype."""
        config, policy = self.config, self.policy
        dtype = policy.working_dtype(self.inner.W1.dtype)
        inner = self.inner.in_dtype(dtype)
        tokens = hidden.shape[1]
        q, k, v = (part.to(dtype).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for part in projected)

        places = torch.arange(tokens, device=hidden.device)
        if not is_fresh:
            places = state.count[:, None] + places[None]
        positions = places % config.mini_batch_size if config.rope_positions == "mini_batch" else places
        tables = rotary_tables(positions, self.head_dim, config.rope_theta, dtype)
        q, k = rotate(q, tables), rotate(k, tables)

        gate = torch.sigmoid(F.linear(hidden.to(dtype), inner.gate_weight, inner.gate_bias))
        lr = config.resolved_base_lr if base_lr is None else base_lr
        step_sizes = (lr / self.head_dim * gate).mT.unsqueeze(-1)

        carried = Carried(state.working_weights, state.working_velocity)
        if is_fresh:  # the same numbers, but no gradient is rounded to the stored dtype on its way to the parameters
            rounded = self.inner.initial_in(dtype).map(lambda tensor: policy.round(tensor, None))
            carried = carried._replace(weights=rounded.for_rows(hidden.shape[0]))
        commit = Commit(
            config=config, parameters=self.inner, last_row_scale=inner.row_scales[-1], tokens_before=state.count
        )
        with self._narrow_products(hidden.device):
            if self.picked_backend(tokens) == "sequential":
                return sequential.scan(
                    q, k, v, step_sizes, carried, state.sums, state.open_tokens, lengths, inner.row_scales, inner.norm,
                    commit,
                )  # fmt: skip
            open_tokens, sums = (None, None) if is_fresh or _none_open(state) else (state.open_tokens, state.sums)
            return chunked.scan(
                q, k, v, step_sizes, carried, sums, open_tokens, lengths, inner.row_scales, inner.norm, commit,
                self.read_scores, config.checkpoint_group,
            )  # fmt: skip

    def _autocast_guard(self, device: torch.device) -> AbstractContextManager[object]:
        """Keeps autocast out of the inner loop, unless the config lets it in on purpose."""
        return torch.autocast(device.type, enabled=False) if self.config.guards_autocast else nullcontext()

    def _narrow_products(self, device: torch.device) -> AbstractContextManager[object]:
        """Matrix products in the policy's product dtype: autocast, and nothing else, narrows exactly those."""
        dtype = self.policy.product_dtype
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)

    def _check(self, x: Tensor, state: TTTState | None, mask: Tensor | None) -> None:
        if x.dim() != 3 or x.shape[2] != self.config.hidden_size:
            raise ValueError(f"x must have shape (batch, time, {self.config.hidden_size}), got {tuple(x.shape)}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
            raise ValueError(
                f"mask must be bool of shape {tuple(x.shape[:2])}, True where a token is real; "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        for parameter in self.inner.parameters():
            if parameter.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"an inner parameter is {parameter.dtype}, and must be FP32: something cast it behind the layer's "
                    "back (through .data, or a loader that takes one dtype for all); cast with .to() or .float()"
                )
        working = self.policy.working_dtype(self.inner.W1.dtype)
        if self.policy.product_dtype is not None and working != torch.float32:
            raise ValueError(
                f"precision {self.config.precision!r} narrows the products of FP32 numbers, and this layer's inner "
                f"parameters are {working}: cast the layer with .float(), or choose precision 'fp32' or 'fp64'"
            )
        if state is None:
            return
        if state.batch_size != x.shape[0]:
            raise ValueError(
                f"the state holds {state.batch_size} rows and x has {x.shape[0]}; use state.select or repeat"
            )
        if state.config is not self.config:
            difference = self.config.state_difference(state.config.state_identity())
            if difference:
                raise ValueError(f"the state comes from a layer of another config: {'; '.join(difference)}")
        if state.working_dtype != working:
            raise ValueError(
                f"the state is {state.working_dtype} and this layer's inner loop runs in {working}: cast the "
                "layer with .float() or .double() before its first token, not in mid-stream"
            )


def _none_open(state: TTTState) -> bool:
    """True when it is free to know that every row stands at a mini-batch's start (never syncs a GPU)."""
    if state.count.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not bool(state.open_tokens.any())


def _pack(x: Tensor, mask: Tensor | None) -> _Packed:
    """Move the real tokens of every row to its front, so that padding of any kind is a matter of row lengths."""
    if mask is None:
        return _Packed(x, None, None)
    order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
    lengths = mask.sum(dim=1)
    is_real = torch.arange(x.shape[1], device=x.device)[None] < lengths[:, None]
    packed = torch.where(is_real[:, :, None], x.gather(1, order[:, :, None].expand_as(x)), 0.0)
    return _Packed(packed, lengths, (mask.long().cumsum(dim=1) - 1).clamp_min(0))
