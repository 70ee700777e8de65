"""Fixtures for the tests of `finetune.training`."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from torch import nn


@pytest.fixture
def network() -> nn.Module:
    body = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), drop=nn.Dropout(0.5)))
    top = nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4), drop=nn.Dropout(0.5)))
    return nn.Sequential(OrderedDict(body=body, top=top, drop=nn.Dropout(0.5), fc=nn.Linear(4, 2)))
