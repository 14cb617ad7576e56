"""Which iteration of the training runs."""

from detectron2.utils.events import EventStorage

from vis_d2.modeling import current_iteration


def test_the_training_loop_knows_its_iteration():
    with EventStorage(41) as storage:
        assert current_iteration(default=7) == 41
        storage.step()
        assert current_iteration(default=7) == 42


def test_without_a_training_loop_the_default_holds():
    assert current_iteration(default=7) == 7
    with EventStorage(3):
        pass
    assert current_iteration(default=7) == 7
