"""What a run reads: every set of data by name and digest, logged to the store alike by all recipes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

DIGEST_TAG = "data_digest"
OWN_DATA_TAG = "own_data"
NOTHING_READ = "none"
_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """One set of data. digest: 16 hexadecimal digits that differ where the data do. made_from: its specification.

    is_recorded: the user's own recordings, of which no claim speaks.
    """

    name: str
    digest: str
    made_from: str
    is_recorded: bool = False


def no_data(_config: Any, _prepared: Any) -> tuple[DataSource, ...]:
    """For studies that read none: they count, or compute."""
    return ()


def digest_of(parts: Iterable[bytes]) -> str:
    """The same digits for the same bytes in the same order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:_DIGITS]


def joint_digest(sources: Sequence[DataSource]) -> str:
    """One digest for all data of a run; the word none where it reads none."""
    if not sources:
        return NOTHING_READ
    if len(sources) == 1:
        return sources[0].digest
    return digest_of(f"{source.name}={source.digest}\n".encode() for source in sources)


def log_data(client: MlflowClient, run_id: str, sources: Sequence[DataSource]) -> None:
    """Data sets as the run's inputs (MLflow's column Dataset), and their joint digest as a tag; recordings by name."""
    client.set_tag(run_id, DIGEST_TAG, joint_digest(sources))
    own = [source.name for source in sources if source.is_recorded]
    if own:
        client.set_tag(run_id, OWN_DATA_TAG, ", ".join(own))
    inputs = [
        DatasetInput(
            dataset=Dataset(
                name=source.name, digest=source.digest, source_type="specification", source=source.made_from
            ),
            tags=[InputTag(key=MLFLOW_DATASET_CONTEXT, value="training and evaluation")],
        )
        for source in sources
    ]
    if inputs:
        client.log_inputs(run_id, datasets=inputs)
