"""Is a recipe's smoke run logged as all are, so that recipes can be compared? For the tests of those runs."""

from __future__ import annotations

from mlflow import MlflowClient

TAGS = {
    "role", "arm", "seed", "scale", "adhoc", "git_commit", "git_dirty", "config_fingerprint", "data_digest", "hardware",
    "software", "mlflow.runName",
}  # fmt: skip
SYSTEM_METRICS = {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}


def check_logged_alike(uri: str, recipe: str) -> None:
    """Tags, parameters, data sets and the machine's metrics of the recipe's runs in the store at `uri`."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(recipe)
    runs = client.search_runs([experiment.experiment_id])
    digests = {run.data.tags["data_digest"] for run in runs}
    assert len(digests) == 1 and runs
    for run in runs:
        assert set(run.data.tags) >= TAGS, run.data.tags["mlflow.runName"]
        assert bool(run.inputs.dataset_inputs) == (digests != {"none"})
        if run.data.tags["role"] == "arm":
            assert run.data.params
        # Short arms have no sample, nor have ways of looking at a trained model, which are runs of its arm's process.
        watched = {name for name in run.data.metrics if name.startswith("system/")}
        assert watched >= SYSTEM_METRICS or (run.data.tags["role"] == "arm" and not watched), run.data.tags["arm"]
