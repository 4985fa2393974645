"""A training set of one image trains, or is refused in one line that names the way out."""

import numpy as np
import pytest

from seglib.errors import InputError


@pytest.mark.parametrize("architecture", ["Linknet", "DeepLabV3Plus"])
def test_one_training_image_trains_or_is_refused_in_one_line(subsets, train_small, tmp_path, architecture):
    one = subsets[0].take(np.array([0])), subsets[1]
    if architecture == "Linknet":
        assert len(train_small(one, tmp_path, epochs=1, architecture=architecture)) == 1
        return
    with pytest.raises(InputError, match=r"^a batch of one image leaves a batch norm .*expand: 2 where there is one"):
        train_small(one, tmp_path, epochs=1, architecture=architecture)
