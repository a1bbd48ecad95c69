# SPDX-License-Identifier: Apache-2.0
"""A generated archive in the layout of CUB-200-2011: four images of two classes."""

from pathlib import Path

import numpy as np
from PIL import Image


# The official numbers of attributes, in the official order.
ATTRIBUTE_COUNTS = {
    "has_bill_shape": 9,
    "has_wing_color": 15,
    "has_upperparts_color": 15,
    "has_underparts_color": 15,
    "has_breast_pattern": 4,
    "has_back_color": 15,
    "has_tail_shape": 6,
    "has_upper_tail_color": 15,
    "has_head_pattern": 11,
    "has_breast_color": 15,
    "has_throat_color": 15,
    "has_eye_color": 14,
    "has_bill_length": 3,
    "has_forehead_color": 15,
    "has_under_tail_color": 15,
    "has_nape_color": 15,
    "has_belly_color": 15,
    "has_wing_shape": 5,
    "has_size": 5,
    "has_shape": 14,
    "has_back_pattern": 4,
    "has_tail_pattern": 4,
    "has_belly_pattern": 4,
    "has_primary_color": 15,
    "has_leg_color": 15,
    "has_bill_color": 15,
    "has_crown_color": 15,
    "has_wing_pattern": 4,
}
PARTS = [
    *("back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg"),
    *("left wing", "nape", "right eye", "right leg", "right wing", "tail", "throat"),
]

# Attributes of each class, by number.
CLASS_ATTRIBUTES = [{5, 102, 219}, {2, 57, 221}]


def write_cub(folder: Path, per_image: bool = False) -> Path:
    """
    Images 1 to 4 of 40 x 30 pixels, 1 and 2 of the first class, 1 and 3 in the train split.

    Part p lies at x = 2 p, y = p and is visible, but for the forehead of image 2. The box of image 4 leaves the image.
    With `per_image`, image 1 has the attribute 5 probably, 102 guessing, 219 guessing and nothing else; the other
    images have nothing, definitely.
    """
    names = [f"{group}::{i}" for group, count in ATTRIBUTE_COUNTS.items() for i in range(count)]
    root = folder / "CUB_200_2011"
    (root / "parts").mkdir(parents=True)
    (root / "attributes").mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, lines: list[str]) -> None:
        (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    write("../attributes.txt", [f"{i} {name}" for i, name in enumerate(names, start=1)])
    write("classes.txt", ["1 001.Black_footed_Albatross", "2 002.Laysan_Albatross"])
    write("images.txt", [f"{i} 00{1 + i // 3}.Bird/Bird_{i}.jpg" for i in (1, 2, 3, 4)])
    for i in (1, 2, 3, 4):
        path = root / "images" / f"00{1 + i // 3}.Bird" / f"Bird_{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    write("image_class_labels.txt", ["1 1", "2 1", "3 2", "4 2"])
    write("train_test_split.txt", ["1 1", "2 0", "3 1", "4 0"])
    write(
        "bounding_boxes.txt",
        ["1 1.0 2.0 30.0 20.0", "2 0.0 0.0 40.0 30.0", "3 5.0 5.0 5.0 5.0", "4 30.0 5.0 20.0 20.0"],
    )
    write("parts/parts.txt", [f"{i} {name}" for i, name in enumerate(PARTS, start=1)])
    write(
        "parts/part_locs.txt",
        [
            f"{i} {p} 0.0 0.0 0" if (i, p) == (2, 6) else f"{i} {p} {2.0 * p} {p}.0 1"
            for i in (1, 2, 3, 4)
            for p in range(1, 16)
        ],
    )
    write(
        "attributes/class_attribute_labels_continuous.txt",
        [" ".join("80.0" if a in held else "12.5" for a in range(1, 313)) for held in CLASS_ATTRIBUTES],
    )
    if per_image:
        stated = {5: (1, 3), 102: (1, 2), 219: (1, 2)}
        lines = []
        for i in (1, 2, 3, 4):
            for a in range(1, 313):
                shown, certainty = stated.get(a, (0, 4)) if i == 1 else (0, 4)
                # As in the official file, some lines have more fields.
                lines.append(f"{i} {a} {shown} {certainty} {'0 1.5' if a % 7 == 0 else '1.5'}")
        write("attributes/image_attribute_labels.txt", lines)
    return folder
