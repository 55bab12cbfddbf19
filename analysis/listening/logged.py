"""A judged test as a run of the recipe `listening`: the only place here that makes one."""

from __future__ import annotations

import hashlib
import math
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities import Metric, Param

from analysis.listening.judging import Judged, Preference
from analysis.listening.verdict import Results
from analysis.runs import PRETRAINED, SCALES
from analysis.statistics import Interval
from analysis.store import Store

RECIPE = "listening"
SHARE_WON = "listening/share_of_pairs_won_by_ttt"
DIGEST_TAG = "ratings_digest"
UNKNOWN = "unknown"


def log_results(store: Store, results: Results, files: Sequence[Path], root: Path) -> tuple[str, bool]:
    """Logs results and their files; gives the run's id, and whether it is new: the same answers are logged once.

    Under the test's own run stands one for every run whose sounds were rated, with that run's commit and tags: a
    verdict then counts only if all of them count. The scale is the smallest of theirs.

    Raises:
        ValueError: the results are refused: simulated, too few raters or items, or nothing of TTT.
    """
    if results.refusals or results.test.is_simulated:
        raise ValueError(f"not logged. {results.verdict}")
    judged = results.judged
    assert judged is not None and judged.of_ttt is not None
    for run in store.runs(RECIPE):
        if run.tags.get(DIGEST_TAG) == results.digest and run.status == "FINISHED" and run.role == "experiment":
            return run.run_id, False
    experiment_id = _experiment_id(store, root)
    scale, weights = _scale_and_weights(results)
    commit, dirty = _code_version(root)
    common = {"scale": scale}
    own = {
        **common, "mlflow.runName": f"{RECIPE}-{scale}-{results.digest[:8]}",
        "role": "experiment", "arm": "", "seed": "0",
        "adhoc": "false", "git_commit": commit, "git_dirty": dirty, "has_every_arm": "true",
        "config_fingerprint": results.test.digest[:12], DIGEST_TAG: results.digest,
    }  # fmt: skip
    parent = store.client.create_run(experiment_id, tags=own).info.run_id
    try:
        params = {
            "raters_planned": str(results.test.raters), "pairs": str(results.pairs),
            "seed": str(results.test.seed), "question": results.test.question[:250],
        }  # fmt: skip
        _log(store, parent, metrics_of(results, judged, judged.of_ttt), params)
        for path in files:
            store.client.log_artifact(parent, str(path))
        for system in results.test.systems:
            for origin in system["origins"]:
                tags = {
                    **common, "mlflow.runName": f"{system['label']}-{scale}-seed{origin['seed']}", "role": "arm",
                    "arm": system["label"], "seed": str(origin["seed"]), "mlflow.parentRunId": parent,
                    "adhoc": origin["is_adhoc"], "git_commit": origin["commit"], "git_dirty": origin["is_dirty"],
                    "rated": str(origin["place"]), "rated_recipe": origin["recipe"], "rated_scale": origin["scale"],
                }  # fmt: skip
                run_id = store.client.create_run(experiment_id, tags=tags).info.run_id
                strength = with_ends("listening/strength_log_odds", judged.strengths[system["label"]])
                _log(store, run_id, strength, {"weights_digest": weights})
                store.client.set_terminated(run_id, "FINISHED")
    except BaseException:
        store.client.set_terminated(parent, "FAILED")
        raise
    store.client.set_terminated(parent, "FINISHED")
    return parent, True


def metrics_of(results: Results, judged: Judged, of_ttt: Preference) -> dict[str, float]:
    """What the test's own run logs; numbers that are not finite are left out."""
    all_judgements = of_ttt.won + of_ttt.ties + of_ttt.lost
    found = {
        **with_ends(SHARE_WON, of_ttt.share),
        **with_ends("listening/share_won_by_ttt_ties_halved", of_ttt.share_ties_halved),
        "listening/share_of_ties": of_ttt.ties / all_judgements,
        "listening/one_sided_binomial_p": of_ttt.one_sided,
        "listening/krippendorff_alpha": math.nan if judged.alpha is None else judged.alpha,
        "listening/raters": float(len(results.counted)),
        "listening/items": float(of_ttt.items),
        "listening/judgements": float(all_judgements),
    }
    for each in results.along:
        if each.early.first == of_ttt.first and each.early.second == of_ttt.second:
            found |= with_ends(f"{SHARE_WON}_first_quarter", each.early.share)
            found |= with_ends(f"{SHARE_WON}_last_quarter", each.late.share)
            found |= with_ends(f"{SHARE_WON}_late_less_early", each.change)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def with_ends(name: str, interval: Interval) -> dict[str, float]:
    ends = {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {each: value for each, value in ends.items() if math.isfinite(value)}


def _scale_and_weights(results: Results) -> tuple[str, str]:
    """The smallest scale of all that was rated (no scale where one is unknown), and a digest of their weights where
    that is `pretrained`: such runs are tagged `full`, and have a digest."""
    origins = [origin for system in results.test.systems for origin in system["origins"]]
    scales = {origin["scale"] for origin in origins}
    if not scales <= set(SCALES):
        return UNKNOWN, ""
    smallest = min(scales, key=SCALES.index)
    if smallest != PRETRAINED:
        return smallest, ""
    digests = sorted({origin["weights_digest"] for origin in origins})
    return "full", hashlib.sha256(" ".join(digests).encode()).hexdigest()[:12]


def _experiment_id(store: Store, root: Path) -> str:
    known = store.recipes()
    if RECIPE in known:
        return known[RECIPE]
    # Where the experiments put the files of their runs too.
    place = (root / "runs" / "mlartifacts" / RECIPE).resolve().as_uri() if store.uri.startswith("sqlite:") else None
    return str(store.client.create_experiment(RECIPE, artifact_location=place))


def _log(store: Store, run_id: str, metrics: Mapping[str, float], params: Mapping[str, str]) -> None:
    now_ms = int(time.time() * 1000)
    store.client.log_batch(
        run_id, metrics=[Metric(name, value, now_ms, 0) for name, value in metrics.items()],
        params=[Param(name, value) for name, value in params.items() if value],
    )  # fmt: skip


def _code_version(root: Path) -> tuple[str, str]:
    """Commit of this checkout, and whether files differ from it; both "unknown" outside of one."""
    told: list[str] = []
    for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"]):
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return UNKNOWN, UNKNOWN
        told.append(done.stdout.strip())
    return told[0], str(bool(told[1])).lower()
