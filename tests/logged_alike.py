"""Is a recipe's smoke run logged as all are, so that recipes can be compared? For the tests of those runs."""

from __future__ import annotations

from mlflow import MlflowClient

TAGS = {
    "role", "arm", "seed", "scale", "adhoc", "git_commit", "git_dirty", "config_fingerprint", "data_digest", "hardware",
    "software", "mlflow.runName",
}  # fmt: skip
SYSTEM_METRICS = {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
SECONDS_THAT_HAVE_A_SAMPLE = 4


def check_logged_alike(uri: str, recipe: str) -> None:
    """Tags, parameters, data sets and the machine's metrics of the recipe's runs in the store at `uri`."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(recipe)
    runs = client.search_runs([experiment.experiment_id])
    digests = {run.data.tags["data_digest"] for run in runs}
    assert len(digests) == 1 and runs
    machines_watched = 0
    for run in runs:
        assert set(run.data.tags) >= TAGS, run.data.tags["mlflow.runName"]
        assert bool(run.inputs.dataset_inputs) == (digests != {"none"})
        # Ways of looking at a trained model are runs below its arm's process, which alone is watched.
        if run.data.tags["role"] == "arm":
            assert run.data.params
        watched = {name for name in run.data.metrics if name.startswith("system/")}
        assert not watched or watched >= SYSTEM_METRICS
        machines_watched += bool(watched)
    seconds = max((run.info.end_time - run.info.start_time) / 1000 for run in runs)
    assert machines_watched or seconds < SECONDS_THAT_HAVE_A_SAMPLE, f"{seconds} s and no sample of the machine"
