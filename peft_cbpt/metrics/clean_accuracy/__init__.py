"""The metric `clean_accuracy`."""
