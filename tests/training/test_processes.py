"""Numbers below the smallest normal one: zero within a run, as they were before and after it."""

import pytest
import torch

from upfeat.training.processes import flush_denormals


def halved() -> float:
    return float(torch.tensor(torch.finfo(torch.float32).tiny) / 2)


@pytest.fixture
def restored():
    yield
    torch.set_flush_denormal(False)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU has no such mode")
def test_denormals_are_zero_within_and_kept_after(restored):
    assert halved() > 0
    with flush_denormals():
        assert halved() == 0
    assert halved() > 0


def test_they_are_kept_after_an_error_too(restored):
    with pytest.raises(KeyError), flush_denormals():
        raise KeyError
    assert halved() > 0


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU has no such mode")
def test_a_mode_that_was_on_stays_on(restored):
    torch.set_flush_denormal(True)
    with flush_denormals():
        assert halved() == 0
    assert halved() == 0
