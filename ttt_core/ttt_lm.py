"""Weights of ttt-lm-pytorch's TTTLinear and TTTMLP, by their own names."""

from __future__ import annotations

from torch import Tensor

from ttt_core.layer import TTTLayer

# Our parameter -> ttt-lm-pytorch's. Shapes that differ only by axes of size one are reshaped on loading.
_NAMES = {
    "inner.W1": "W1",
    "inner.b1": "b1",
    "inner.W2": "W2",
    "inner.b2": "b2",
    "inner.norm_weight": "ttt_norm_weight",
    "inner.norm_bias": "ttt_norm_bias",
    "inner.step_size_weight": "learnable_ttt_lr_weight",
    "inner.step_size_bias": "learnable_ttt_lr_bias",
    "inner.row_offsets": "learnable_token_idx",
    "wq.weight": "q_proj.weight",
    "wk.weight": "k_proj.weight",
    "wv.weight": "v_proj.weight",
    "wo.weight": "o_proj.weight",
    "wg.weight": "g_proj.weight",
    "conv_q.weight": "conv_q.weight",
    "conv_q.bias": "conv_q.bias",
    "conv_k.weight": "conv_k.weight",
    "conv_k.bias": "conv_k.bias",
    "pre_conv.weight": "pre_conv.conv.weight",
    "pre_conv.bias": "pre_conv.conv.bias",
    "pre_conv_norm.weight": "pre_conv.norm.weight",
    "post_norm.weight": "post_norm.weight",
    "post_norm.bias": "post_norm.bias",
}


def ttt_lm_name(parameter_name: str) -> str:
    """ttt-lm-pytorch's name of one of our parameters; ValueError when it has none (projection biases)."""
    if parameter_name not in _NAMES:
        raise ValueError(f"ttt-lm-pytorch has no counterpart of {parameter_name}")
    return _NAMES[parameter_name]


def load_ttt_lm_state_dict(layer: TTTLayer, state_dict: dict[str, Tensor]) -> None:
    """Copy a ttt-lm-pytorch layer's weights into `layer`.

    With `pre_conv`, the block's convolution belongs to the layer: its names carry the prefix `pre_conv.`.
    Raises ValueError naming every missing, extra or wrongly shaped tensor; the layer is then unchanged.
    """
    own = layer.state_dict()
    wanted = {ttt_lm_name(name): name for name in own}
    missing, extra = sorted(wanted.keys() - state_dict.keys()), sorted(state_dict.keys() - wanted.keys())
    problems = [f"missing {', '.join(missing)}"] if missing else []
    problems += [f"unexpected {', '.join(extra)}"] if extra else []
    for theirs, ours in wanted.items():
        given = state_dict.get(theirs)
        if given is not None and _without_ones(given) != _without_ones(own[ours]):
            problems.append(f"{theirs} has shape {tuple(given.shape)}, expected {tuple(own[ours].shape)}")
    if problems:
        raise ValueError(
            f"the ttt-lm-pytorch weights do not fit this TTTConfig: {'; '.join(problems)}. "
            "Check inner_model, share_qk, use_gate and pre_conv"
        )
    layer.load_state_dict({ours: state_dict[theirs].reshape(own[ours].shape) for theirs, ours in wanted.items()})


def _without_ones(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]
