"""Image sizes are checked when a network is built and when it is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mod_components.errors import SettingsError
from mod_components.networks.sizes import check_image, checked_size


def test_sizes_that_fit() -> None:
    assert checked_size([32, 64, 96], 32) == (32, 64, 96)
    check_image(torch.zeros(1, 4, 32, 64, 96), (32, 64, 96))


@pytest.mark.parametrize("size", [(32, 32), (0, 32, 32), (32, 48, 32), 32])
def test_sizes_that_do_not(size: Any) -> None:
    with pytest.raises(SettingsError, match="img_size must be three multiples of 32"):
        checked_size(size, 32)


def test_an_image_of_another_size() -> None:
    with pytest.raises(SettingsError, match=r"img_size is \(32, 32, 32\) and got .*\(64, 32, 16\)"):
        check_image(torch.zeros(1, 4, 64, 32, 16), (32, 32, 32))
