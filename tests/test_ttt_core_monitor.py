"""The monitor's rows against numbers computed by hand, its alarms, and its picture."""

from __future__ import annotations

import pytest
import torch

from ttt_core import TTTConfig, TTTLayer, TTTMonitor
from ttt_core.monitor import COLUMNS, growth_exponent, read_rows


def weights(scale: float = 1.0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 3, 4, 8), (2, 3, 1, 8), (2, 3, 8, 4), (2, 3, 1, 4))
    return tuple(scale * torch.randn(shape, generator=generator) for shape in shapes)


def test_a_row_holds_the_statistics_of_each_tensor(tmp_path) -> None:
    monitor = TTTMonitor(tmp_path)
    W1, b1, W2, b2 = weights()
    row = monitor.log_layer_state(3, W1, b1, W2, b2, step=100, inner_loss=0.5)
    assert row["W1_mean"] == pytest.approx(W1.mean().item()) and row["W2_max"] == pytest.approx(W2.abs().max().item())
    assert row["b1_std"] == pytest.approx(b1.std(correction=0).item())
    assert row["W1_norm"] == pytest.approx(torch.stack([part.norm() for part in W1]).mean().item())
    assert row["update_size"] is None, "there is no earlier row to compare with"
    (read,) = read_rows(monitor.csv_path)
    assert tuple(read) == COLUMNS and read["step"] == 100 and read["layer"] == "3" and read["inner_loss"] == 0.5
    assert read["W1_norm"] == pytest.approx(row["W1_norm"])


def test_update_size_and_distance_are_norms_over_all_tensors(tmp_path) -> None:
    monitor = TTTMonitor(tmp_path)
    layer = TTTLayer(TTTConfig(hidden_size=16, num_heads=2, inner_model="linear", mini_batch_size=4))
    _, _, early = layer(torch.randn(1, 8, 16))
    _, _, late = layer(torch.randn(1, 8, 16), early)
    monitor.log_layer_state(0, *early, initial=early.initial)
    row = monitor.log_layer_state(0, *late, initial=late.initial)
    moved = torch.cat([(a - b).flatten() for a, b in zip(late.weights.tensors, early.weights.tensors, strict=True)])
    away = torch.cat([(a[0] - b).flatten() for a, b in zip(late.weights.tensors, late.initial.tensors, strict=True)])
    assert row["step"] == 1 and row["W2_mean"] is None
    assert row["update_size"] == pytest.approx(moved.norm().item(), rel=1e-5)
    assert row["distance_from_initial"] == pytest.approx(away.norm().item(), rel=1e-5)


def test_nan_is_fatal_and_large_weights_warn_once(tmp_path) -> None:
    monitor = TTTMonitor(tmp_path)
    for step in range(3):
        monitor.log_layer_state(0, *weights(100.0), step=step)
    assert [alarm.kind for alarm in monitor.alarms] == ["large_weights"]
    assert "lower base_lr" in monitor.alarms[0].message and not monitor.alarms[0].is_fatal
    W1, b1, W2, b2 = weights()
    W1[0, 0, 0, 0] = float("nan")
    monitor.log_layer_state(0, W1, b1, W2, b2, step=3)
    assert monitor.alarms[-1].kind == "not_finite" and monitor.alarms[-1].is_fatal


@pytest.mark.parametrize(("slope", "gate", "expected"), [(-0.01, 0.5, []), (0.01, 0.5, ["inner_loss_not_falling"]),
                                                         (-0.01, 0.0, ["gate_stuck"])])  # fmt: skip
def test_trends_are_judged_over_many_rows(tmp_path, slope, gate, expected) -> None:
    monitor = TTTMonitor(tmp_path)
    for step in range(12):
        monitor.log_layer_state(0, *weights(0.1), step=step, inner_loss=1.0 + slope * step, gate=gate)
        assert step >= 9 or not monitor.alarms
    assert [alarm.kind for alarm in monitor.alarms] == expected


@pytest.mark.parametrize(("exponent", "alarms"), [(0.17, ["never_settles"]), (0.0, []), (-0.1, [])])
def test_weights_that_do_not_settle_along_a_stream_are_an_alarm_once_the_state_is_no_longer_young(
    tmp_path, exponent, alarms
) -> None:
    """Every state grows when it is young: here up to position 256, and from there on as position^exponent."""
    monitor = TTTMonitor(tmp_path / "stream", watches="stream")
    training = TTTMonitor(tmp_path / "training")
    W1, b1, W2, b2 = weights()
    for position in (round(32 * 1.3**power) for power in range(28)):
        scale = min(position, 256) * max(1.0, position / 256) ** exponent / 256
        for each in (monitor, training):
            each.log_layer_state(0, W1 * scale, b1, W2, b2, step=position)
        assert position >= 3200 or not monitor.alarms
    assert [alarm.kind for alarm in monitor.alarms] == alarms and not training.alarms
    if alarms:
        assert growth_exponent(monitor._rows["0"]) == pytest.approx(exponent, abs=0.005)
        assert "position " in monitor.alarms[0].message and "inner_decay" in monitor.alarms[0].message
        assert not monitor.alarms[0].is_fatal


def test_a_reopened_and_rewound_log_is_the_uninterrupted_one(tmp_path) -> None:
    whole, first = TTTMonitor(tmp_path / "whole"), TTTMonitor(tmp_path / "resumed")
    for step in (0, 100, 200):
        for monitor in (whole, first):
            monitor.log_layer_state(0, *weights(0.1 + step), step=step)
        if step == 100:
            saved = first.state_dict()
    second = TTTMonitor(tmp_path / "resumed")
    second.rewind(100, saved)
    second.log_layer_state(0, *weights(200.1), step=200)
    assert second.csv_path.read_text() == whole.csv_path.read_text()
    assert second.alarms == whole.alarms != []


def test_the_picture_is_drawn(tmp_path) -> None:
    monitor = TTTMonitor(tmp_path)
    for step in range(3):
        monitor.log_layer_state(0, *weights(), step=step, inner_loss=1.0)
    assert monitor.plot_evolution().read_bytes().startswith(b"\x89PNG")


def test_a_csv_of_another_kind_is_refused(tmp_path) -> None:
    (tmp_path / "inner_weights.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no monitor CSV"):
        TTTMonitor(tmp_path)
