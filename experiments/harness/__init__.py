"""What every recipe is run by: configuration, data module, training, evaluation, tracking, checkpoints, report."""
