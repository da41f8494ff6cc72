from peft_cbpt.training.epoch_log import EpochLog


def test_means_weigh_batches_by_their_size():
    log = EpochLog()
    log.add(3, loss=1.0)
    log.add(1, loss=5.0, accuracy=0.5)
    assert log.means() == {"loss": 2.0, "accuracy": 0.5}


def test_pseudo_targets_are_counted_over_processes():
    log = EpochLog(looked_up=[(0, 5), (1, 5)])
    log.merge(EpochLog(looked_up=[(2, 6), (3, 5)]))
    assert log.pseudo_targets() == {5: 3, 6: 1}
