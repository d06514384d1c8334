from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from app.core.errors import UsageError
from app.inference.clinic import brain_extraction
from app.inference.clinic.brain_extraction import find_brain, is_available


class _Bright(nn.Module):
    """Takes for brain what is brighter than the middle of the scale."""

    def forward(self, head):
        brain = (head > 0.449).float()
        return torch.cat([1 - brain, brain], dim=1)


@pytest.fixture
def bright(monkeypatch):
    monkeypatch.setattr(brain_extraction, "_networks", lambda: (_Bright(), _Bright()))


def test_the_brain_is_found_in_its_box_with_holes_filled_and_specks_left_out(bright):
    head = np.zeros((70, 90, 60), np.float32)
    head[15:50, 20:75, 10:48] = 100
    head[30:34, 40:44, 25:29] = 0
    head[64:66, 84:86, 2:4] = 100
    brain = find_brain(head)
    assert brain[32, 42, 27]
    assert not brain[64:66].any()
    truth = np.zeros_like(brain)
    truth[15:50, 20:75, 10:48] = True
    assert 2 * (brain & truth).sum() / (brain.sum() + truth.sum()) > 0.95


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_an_empty_volume_has_no_brain(bright, value):
    with pytest.raises(ValueError, match="empty"):
        find_brain(np.full((40, 40, 40), value, np.float32))


def test_without_the_package_it_is_one_sentence(monkeypatch):
    brain_extraction._networks.cache_clear()
    monkeypatch.setattr(brain_extraction, "files", lambda name: [])
    assert not is_available()
    with pytest.raises(UsageError, match=r"pip install --no-deps deepbet"):
        find_brain(np.arange(64000, dtype=np.float32).reshape(40, 40, 40))
    brain_extraction._networks.cache_clear()
