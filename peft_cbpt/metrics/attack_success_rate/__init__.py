"""The metric `attack_success_rate`."""
