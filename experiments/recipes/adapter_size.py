"""What does an adapter take: lines and files of each backbone's folder, and of those that mount TTT in it.

Files are counted as they stand in the checkout that runs. The same at every scale, on any machine and for every seed.
"""

from __future__ import annotations

from experiments.counting.configuration import Adapter, AdapterSizeExperiment
from experiments.counting.source_lines import sources_digest
from experiments.harness.study import Scale

FOLDERS = (
    # name, the backbone's own folder, the folder that puts TTT into its language model
    ("llama-omni", "llama_omni", "mounting"),
    ("moshi", "moshi", "moshi"),
    ("transformers-decoders", "mounting", "mounting"),
)


def adapter_size(*, scale: Scale, seed: int) -> AdapterSizeExperiment:
    return AdapterSizeExperiment(
        recipe="adapter-size",
        scale=scale,
        seed=seed,
        arms=tuple(
            Adapter(
                name=name,
                folder=folder,
                mounted_from=mounted_from,
                sources_digest=sources_digest((folder, mounted_from)),
            )
            for name, folder, mounted_from in FOLDERS
        ),
    )
