"""The figures as `evaluate.Metric`s; each folder can be given to `evaluate.load` and pushed to the Hub as a Space."""

from peft_cbpt.metrics.attack_success_rate.attack_success_rate import AttackSuccessRate
from peft_cbpt.metrics.clean_accuracy.clean_accuracy import CleanAccuracy

__all__ = ["AttackSuccessRate", "CleanAccuracy"]
