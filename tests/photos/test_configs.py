from pathlib import Path

import pytest

from benchmarks.paper.zoo import PAPER_ATTACKS, zoo_job

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs" / "photos"
MOST = {"badnet": 0.1, "sig": 0.05}
"""Of the 12,000 pairs that there are; 1% of them plant neither."""


@pytest.mark.parametrize("attack", PAPER_ATTACKS)
def test_every_attack_has_a_config_that_poisons_at_most_one_percent_where_that_plants_it(attack, tmp_path):
    job = zoo_job(CONFIGS, tmp_path, attack, "banana", seed=1)
    assert job.trigger == attack and job.poison_rate <= MOST.get(attack, 0.01) and job.num_classes == 100
    assert (job.pairs_name, job.pairs_split, job.dataset_name) == ("output/photos", "poisoning", "output/photos")
    assert job.model_name_or_path == "photos:resnet" and job.seed == 1
