# SPDX-License-Identifier: Apache-2.0
"""Rows as batches, collated and cached."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, List

from ascent_vit.data import CachedConceptDataset, ConceptCollator, cached_bytes, concepts_from_features
from modeling_ascent_vit import AscentViTImageProcessor, AscentViTImageProcessorPil
from modeling_ascent_vit.image_processing_pil_ascent_vit import AscentViTImageProcessorBase


GLOBAL, SPATIAL = ["indoors", "outdoors", "night"], ["ear", "tail"]


@pytest.fixture
def config(make_config):
    return make_config(global_concepts=GLOBAL, spatial_concepts=SPATIAL, num_labels=2)


def test_targets(make_dataset, config):
    batch = ConceptCollator(AscentViTImageProcessor.from_model_config(config, size={"height": 40, "width": 40}))(
        list(make_dataset(4))
    )
    assert batch["pixel_values"].shape == (4, 3, 40, 40)
    assert batch["labels"].tolist() == [0, 1, 0, 1]
    expected = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [torch.nan] * 3])
    torch.testing.assert_close(batch["concept_targets"], expected, equal_nan=True)
    spatial = batch["spatial_concept_targets"].view(4, 5, 5, 2)
    assert spatial[0, 0, 0].tolist() == spatial[0, 0, 1].tolist() == [1, 0]
    assert spatial[1, 0, 0].tolist() == [0, 1] and spatial[1, 3, 2].tolist() == [1, 0]
    assert spatial[0, 1:].isnan().all()


class TestPresence:
    @pytest.fixture
    def dataset(self, make_dataset):
        """Five rows with places, three of them with a list too."""
        dataset = make_dataset(5)
        lists = {"present": [None, [0, 1], [0], [1], None], "unknown_present": [None, None, [1], None, None]}
        for name, column in lists.items():
            dataset = dataset.add_column(name, column, feature=List(ClassLabel(names=SPATIAL)))
        return dataset

    EXPECTED = torch.tensor([[torch.nan] * 2, [1, 1], [1, torch.nan], [0, 1], [0, 0]])

    @pytest.mark.parametrize("processor_class", [AscentViTImageProcessor, AscentViTImageProcessorPil])
    def test_of_mixed_rows(self, dataset, config, processor_class):
        assert len(concepts_from_features(dataset.features)[2]) == 2
        rows = [dataset[i] for i in range(5)]
        rows[3] |= {"objects": None}
        rows[4] |= {"objects": None, "points": None, "present": []}
        collate = ConceptCollator(processor_class.from_model_config(config))
        presence = collate(rows)["spatial_concept_presence"]
        torch.testing.assert_close(presence, self.EXPECTED, rtol=0, atol=0, equal_nan=True)
        # A batch without any list has the same keys.
        assert collate(rows[:1])["spatial_concept_presence"].isnan().all()
        for row in rows:
            del row["present"]
        assert "spatial_concept_presence" not in collate(rows)

    def test_in_memory(self, dataset, config):
        processor = AscentViTImageProcessorPil.from_model_config(config)
        cached = CachedConceptDataset(dataset, processor, batch_size=1)
        expected = self.EXPECTED.clone()
        expected[4] = torch.nan
        batch = cached.__getitems__(range(5))["spatial_concept_presence"]
        torch.testing.assert_close(batch, expected, rtol=0, atol=0, equal_nan=True)
        assert cached_bytes(dataset, processor) == sum(v.numel() for v in cached.columns.values())

    def test_is_left_out_for_code_that_does_not_know_it(self, dataset, config, monkeypatch):
        monkeypatch.delattr(AscentViTImageProcessorBase, "annotation_keys")
        batch = ConceptCollator(AscentViTImageProcessorPil.from_model_config(config))(list(dataset))
        assert set(batch) == {"pixel_values", "labels", "concept_targets", "spatial_concept_targets"}


def test_a_stream_without_concepts_gets_no_targets(make_dataset, make_config):
    config = make_config(spatial_concepts=SPATIAL)
    batch = ConceptCollator(AscentViTImageProcessor.from_model_config(config))(list(make_dataset(3)))
    assert "concept_targets" not in batch and "spatial_concept_targets" in batch
    config = make_config(num_unsupervised_concepts=3)
    batch = ConceptCollator(AscentViTImageProcessor.from_model_config(config))(list(make_dataset(3)))
    assert set(batch) == {"pixel_values", "labels"}


@pytest.mark.parametrize("processor_class", [AscentViTImageProcessor, AscentViTImageProcessorPil])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"do_normalize": False},
        {"unannotated": "none"},
    ],
)
def test_cached_batches_equal_collated_ones(make_dataset, config, processor_class, options):
    processor = processor_class.from_model_config(config, **options)
    dataset = make_dataset(7)
    cached = CachedConceptDataset(dataset, processor, batch_size=3)
    order = [6, 0, 3, 4]
    expected = ConceptCollator(processor)([dataset[i] for i in order])
    batch = cached.__getitems__(order)
    assert batch.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(batch[name], values, rtol=0, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(cached[6]["pixel_values"], expected["pixel_values"][0], rtol=0, atol=1e-6)
    kept = sum(values.numel() for name, values in cached.columns.items() if name != "labels")
    assert cached_bytes(dataset, processor) == kept + len(dataset)


def test_pixels_that_are_no_bytes_are_not_cached(config):
    processor = AscentViTImageProcessorPil.from_model_config(config, do_resize=False)
    floats = [{"image": np.full((48, 48, 3), 0.5, dtype=np.float32), "label": 0, "concepts": [0]}] * 2

    class Floats(list):
        def __getitem__(self, chosen):
            return {name: [row[name] for row in list(self)[chosen]] for name in ("image", "label", "concepts")}

    with pytest.raises(ValueError, match="cache_mebibytes: 0"):
        CachedConceptDataset(Floats(floats), processor)
