"""Pictures of finished runs, each of one panel that a phone can show; and what notebooks call."""

import warnings

# MLflow imports progress bars, which nothing here shows, and they complain in Jupyter that there are no widgets.
warnings.filterwarnings("ignore", message="IProgress not found")
