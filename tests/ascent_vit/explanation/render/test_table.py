# SPDX-License-Identifier: Apache-2.0
"""Parquet files of explanations hold what explanations say, read by pyarrow and by datasets."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from ascent_vit import explain
from ascent_vit.explanation import ExplanationTable
from ascent_vit.explanation.render.table import ROW_GROUP_SIZE


@pytest.fixture
def explanations(model_and_processor, image):
    return explain(*model_and_processor, [image, image.rotate(180)], class_ids="House Wren")


def test_rows_are_what_explanations_say(explanations, model_and_processor, tmp_path):
    path = tmp_path / "new" / "table.parquet"
    with ExplanationTable(path, maps=True) as table:
        table.write(explanations[0], 4, "a.png", "Black Tern")
        table.write(explanations[1], 7)
        assert not path.exists()
    rows = pq.read_table(path).to_pylist()
    assert [(row["index"], row["file"], row["label"]) for row in rows] == [(4, "a.png", "Black Tern"), (7, None, None)]
    for row, explanation in zip(rows, explanations, strict=True):
        assert (row["predicted"], row["explained"]) == (explanation.predicted_label, "House Wren")
        assert row["score"] == pytest.approx(explanation.score)
        assert row["predicted_score"] == pytest.approx(explanation.predicted_score)
        assert row["logits"] == explanation.logits.tolist()
        assert sum(row["contributions"]) + row["class_bias"] == pytest.approx(row["logit"], abs=1e-5)
        assert row["logit"] == pytest.approx(row["logits"][3])
        assert row["additivity_error"] < 1e-5
        np.testing.assert_array_equal(row["patch_attention"], explanation.patch_attention)
        np.testing.assert_array_equal(row["patch_contributions"], explanation.patch_contributions)
        names = json.loads(pq.read_schema(path).metadata[b"ascent_vit"])
        columns = [(stream, name) for stream, known in names["concepts"].items() for name in known]
        for (stream, name), added, attention in zip(columns, row["contributions"], row["attention"], strict=True):
            concept = explanation.concept(name, stream)
            assert (added, attention) == (pytest.approx(concept.contribution), pytest.approx(concept.attention))
    assert names["labels"] == explanations[0].labels


def test_datasets_reads_it(explanations, tmp_path):
    with ExplanationTable(tmp_path / "table.parquet", maps=True) as table:
        table.write(explanations[0], 0)
    dataset = load_dataset("parquet", data_files=str(tmp_path / "table.parquet"), cache_dir=tmp_path / "cache")[
        "train"
    ]
    np.testing.assert_array_equal(dataset[0]["patch_attention"], explanations[0].patch_attention)


def test_rows_are_written_in_groups(explanations, tmp_path):
    path = tmp_path / "table.parquet"
    with ExplanationTable(path) as table:
        for index in range(ROW_GROUP_SIZE + 3):
            table.write(explanations[0], index)
            assert len(table.rows) < ROW_GROUP_SIZE
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(2)] == [ROW_GROUP_SIZE, 3]
    with ExplanationTable(tmp_path / "both.parquet") as table:
        table.write(explanations[1], -1)
        table.append(path)
    assert pq.read_table(tmp_path / "both.parquet")["index"].to_pylist() == list(range(-1, ROW_GROUP_SIZE + 3))


def test_nothing_is_left_after_an_error(explanations, tmp_path):
    with pytest.raises(KeyError), ExplanationTable(tmp_path / "table.parquet") as table:
        for index in range(ROW_GROUP_SIZE + 3):
            table.write(explanations[0], index)
        raise KeyError
    with ExplanationTable(tmp_path / "empty.parquet"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_model_without_spatial_concepts(make_model, image, tmp_path):
    with ExplanationTable(tmp_path / "table.parquet", maps=True) as table:
        table.write(explain(*make_model(num_global_concepts=3), image), 0)
    assert "patch_attention" not in pq.read_schema(tmp_path / "table.parquet").names
