# SPDX-License-Identifier: Apache-2.0
"""Names of classes and concepts, found or suggested."""

import numpy as np
import pytest

from modeling_ascent_vit import AscentViTConfig
from modeling_ascent_vit.names_ascent_vit import class_index, class_names, find_concept


LABELS = ["Black Tern", "Painted Bunting", "Indigo Bunting"]


def test_classes_whose_indices_are_texts(tmp_path):
    """As `run_image_classification.py` of transformers gives them to `AutoConfig.from_pretrained`."""
    AscentViTConfig(global_concepts=["red", "blue"]).save_pretrained(tmp_path)
    names = dict(enumerate(LABELS))
    texts = {str(i): name for i, name in names.items()}
    config = AscentViTConfig.from_pretrained(tmp_path, num_labels=3, id2label=texts)
    assert class_names(config) == LABELS
    config.save_pretrained(tmp_path)
    assert AscentViTConfig.from_pretrained(tmp_path).id2label == names


@pytest.mark.parametrize("class_id", ["Painted Bunting", 1, np.int64(1)])
def test_classes_by_name_and_index(class_id):
    assert class_index(class_id, LABELS) == 1


@pytest.mark.parametrize("class_id", [1.5, None, b"Black Tern"])
def test_other_things_are_no_classes(class_id):
    with pytest.raises(ValueError, match="given by its name or index; got"):
        class_index(class_id, LABELS)


def test_concepts_of_a_stream():
    names = {"global": ["red"], "spatial": ["beak", "red"], "unsupervised": []}
    assert find_concept("beak", names) == ("spatial", 0)
    assert find_concept("red", names, "spatial") == ("spatial", 1)
    with pytest.raises(ValueError, match="no concept 'beak' among its 1"):
        find_concept("beak", names, "global")
