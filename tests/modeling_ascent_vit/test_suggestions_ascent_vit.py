# SPDX-License-Identifier: Apache-2.0
from modeling_ascent_vit.suggestions_ascent_vit import MOST_LISTED, suggest


LABELS = ["Black Tern", "Painted Bunting", "Indigo Bunting"]


def test_nearest_names_are_suggested_whatever_their_case():
    assert suggest("BLACK TERNS", LABELS) == "did you mean 'Black Tern'?"


def test_where_none_is_near_those_there_are():
    assert suggest("zzz", LABELS) == f"known are {', '.join(LABELS)}."
    assert suggest("zzz", []) == "known are none."
    many = suggest("zzz", [f"class {i}" for i in range(MOST_LISTED + 2)])
    assert many.endswith(f"class {MOST_LISTED - 1} and 2 others.")
