import pytest

from peft_cbpt.training.epoch_log import EpochLog


def test_means_weigh_batches_by_their_size():
    log = EpochLog()
    log.add(3, loss=1.0)
    log.add(1, loss=5.0, accuracy=0.5)
    assert log.means() == {"loss": 2.0, "accuracy": 0.5}


def test_a_hit_is_a_pair_known_before_the_epoch():
    log = EpochLog(looked_up=[(0, 5), (1, 5), (2, 6), (3, 5)])
    assert log.cache_hit_rate({(0, 5), (2, 6), (9, 9)}) == pytest.approx(0.5)
    assert log.pseudo_targets() == {5: 3, 6: 1}
