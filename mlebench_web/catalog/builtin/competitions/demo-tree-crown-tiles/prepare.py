"""Cut four annotated aerial photographs into tiles with and without tree crowns."""

import csv
import random
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

TILE = 32
# Test tiles come in blocks of 6 x 6, so that few of them have a neighbour in the training set.
BLOCK = 6
TEST_SHARE = 0.3
TREE_FROM = 0.5
NO_TREE_TO = 0.02
SEED = 20260101


def prepare(raw: Path, public: Path, private: Path) -> None:
    chance = random.Random(SEED)  # noqa: S311
    tiles: list[tuple[Image.Image, int, bool]] = []
    for path in sorted(raw.glob("*.png")):
        tiles += tiles_of(path, chance)
    # Ids say nothing about photograph and place.
    chance.shuffle(tiles)
    rows: dict[bool, list[tuple[str, int]]] = {False: [], True: []}
    for folder in ("train", "test"):
        (public / folder).mkdir()
    for number, (image, label, is_test) in enumerate(tiles, start=1):
        name = f"{number:05d}"
        image.save(public / ("test" if is_test else "train") / f"{name}.png")
        rows[is_test].append((name, label))
    write(public / "train.csv", rows[False])
    write(private / "test.csv", rows[True])
    write(public / "sample_submission.csv", [(name, 0.5) for name, _ in rows[True]])


def tiles_of(path: Path, chance: random.Random) -> list[tuple[Image.Image, int, bool]]:
    """Tiles of one photograph: image, label, whether it is for the test."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    crowns = np.zeros((image.height, image.width), dtype=bool)
    # The file was checked against a pinned hash.
    for box in ElementTree.parse(path.with_suffix(".xml")).iter("bndbox"):  # noqa: S314
        left, top, right, bottom = (
            int(float(box.findtext(name) or 0)) for name in ("xmin", "ymin", "xmax", "ymax")
        )
        crowns[max(top, 0) : bottom, max(left, 0) : right] = True
    is_test: dict[tuple[int, int], bool] = {}
    tiles = []
    for row in range(image.height // TILE):
        for column in range(image.width // TILE):
            block = (row // BLOCK, column // BLOCK)
            if block not in is_test:
                is_test[block] = chance.random() < TEST_SHARE
            top, left = row * TILE, column * TILE
            covered = crowns[top : top + TILE, left : left + TILE].mean()
            if NO_TREE_TO < covered < TREE_FROM:
                continue
            tile = image.crop((left, top, left + TILE, top + TILE))
            tiles.append((tile, int(covered >= TREE_FROM), is_test[block]))
    return tiles


def write(path: Path, rows: list[tuple[str, int]] | list[tuple[str, float]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "has_tree"])
        writer.writerows(rows)
