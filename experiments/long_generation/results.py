"""What finished arms have left, and what the ledger reads of all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.harness.estimates import ShareOfSeeds
from experiments.harness.study import FinishedArm
from experiments.harness.tracking import LoggedRun
from experiments.long_generation.arm import stream_folder
from experiments.long_generation.configuration import LongGenerationExperiment, SpeakingArm
from experiments.long_generation.measures import SECONDS_PER_HOUR, Cost, Judged, alarm_within, cost_of, judged
from experiments.long_generation.quality import StreamQuality, read_quality
from experiments.long_generation.real_speech import RealSummary
from experiments.long_generation.speaking import Piece, read_stream

CLAIMED_HOURS = {1: "1_hour", 2: "2_hours"}


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmFindings:
    """One arm. pieces: of the stream that spoke alone. real: what its speech is compared with."""

    arm: SpeakingArm
    run: LoggedRun
    has_ttt: bool
    pieces: tuple[Piece, ...]
    streams: tuple[StreamQuality, ...]
    cost: Cost
    judged: Judged
    real: RealSummary


def read_arms(experiment: LongGenerationExperiment, finished: Sequence[FinishedArm]) -> list[ArmFindings]:
    """Of the arms that came to their end, in the experiment's order."""
    found = []
    for each in finished:
        if each.run is None or each.outcome is None or each.outcome.status != "FINISHED":
            continue
        arm = experiment.arm(each.name)
        folders = [stream_folder(each.task.folder, number) for number in range(arm.streams)]
        pieces = read_stream(folders[0]).pieces
        streams = tuple(read_quality(folder) for folder in folders)
        found.append(
            ArmFindings(
                arm=arm,
                run=each.run,
                has_ttt=experiment.model_of(arm).arm(arm.mixer).ttt is not None,
                pieces=pieces,
                streams=streams,
                cost=cost_of(pieces),
                judged=judged(streams),
                real=RealSummary.read(each.task.folder),
            )
        )
    return found


def alarms_of_ttt(arms: Sequence[ArmFindings], backbone: str, hours: int) -> ShareOfSeeds:
    """Of all streams of a backbone's TTT arms that are so long, those with an alarm in that time."""
    own = [arm for arm in arms if arm.has_ttt and arm.arm.backbone == backbone]
    return alarm_within([stream for arm in own for stream in arm.streams], hours * SECONDS_PER_HOUR)


def parent_metrics(arms: Sequence[ArmFindings]) -> dict[str, float]:
    """What the ledger reads. `long_generation_ttt/BACKBONE_share_with_alarm_within_1_hour`, `..._2_hours`, with exact
    intervals, where any stream is so long; `long_generation_ARM/...` of every arm; real speech's own alarms."""
    metrics: dict[str, float] = {}
    for backbone in dict.fromkeys(each.arm.backbone for each in arms):
        for hours, name in CLAIMED_HOURS.items():
            share = alarms_of_ttt(arms, backbone, hours)
            if share.seeds:
                metrics |= with_interval(f"long_generation_ttt/{backbone}_share_with_alarm_within_{name}", share)
    for each in arms:
        section = f"long_generation_{each.arm.name}"
        metrics |= with_interval(f"{section}/share_of_streams_with_alarm", each.judged.with_alarm)
        change = each.judged.late_minus_early["cross_entropy_nats"]
        name = f"{section}/cross_entropy_late_minus_early_nats"
        metrics |= {name: change.mean, f"{name}_low": change.low, f"{name}_high": change.high}
        metrics |= {f"{section}/{name.partition('/')[2]}": value for name, value in each.cost.metrics().items()}
        real = each.real
        metrics[f"long_generation_real/{each.arm.backbone}_alarms_per_hour"] = real.control_alarms / real.control_hours
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def with_interval(name: str, share: ShareOfSeeds) -> Mapping[str, float]:
    return {name: share.count / share.seeds, f"{name}_low": share.low, f"{name}_high": share.high}
