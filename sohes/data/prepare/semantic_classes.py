"""Classes of the semantic data sets, and the class of each value in their label maps.

A table gives the class of the values 0 to 255 of a download's label maps: -1 for a value that cannot occur, 255 for
pixels that have no class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sohes.data.label_maps import IGNORE

Table = NDArray[np.int16]


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


VOC = _names(
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, "
    "motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
)

# COCO's super-categories and their ids, those that never occur (street sign, hat, ...) among them; stuff as in
# stuff_val2017.json, whose id 183 is "other"
COCO_THINGS: dict[str, Sequence[int]] = {
    "person": (1,),
    "vehicle": range(2, 10),
    "outdoor": range(10, 16),
    "animal": range(16, 26),
    "accessory": range(26, 34),
    "sports": range(34, 44),
    "kitchen": range(44, 52),
    "food": range(52, 62),
    "furniture": range(62, 72),
    "electronic": range(72, 78),
    "appliance": range(78, 84),
    "indoor": range(84, 92),
}
COCO_STUFF: dict[str, Sequence[int]] = {
    "building": (95, 96, 128, 151, 158, 166),
    "ceiling": (102, 103),
    "floor": (101, 114, 115, 116, 117, 118),
    "food-stuff": (121, 122, 153, 170),
    "furniture-stuff": (98, 107, 108, 110, 112, 123, 130, 133, 156, 161, 165),
    "ground": (111, 125, 126, 136, 140, 144, 145, 147, 149, 154, 159),
    "plant": (94, 97, 119, 124, 129, 134, 142, 163, 169),
    "raw-material": (100, 132, 139, 143),
    "sky": (106, 157),
    "solid": (127, 135, 150, 160, 162, 182),
    "structural": (99, 113, 138, 146, 164),
    "textile": (92, 93, 104, 105, 109, 131, 137, 141, 152, 167, 168),
    "wall": (171, 172, 173, 174, 175, 176, 177),
    "water": (120, 148, 155, 178, 179),
    "window": (180, 181),
}
COCO_OTHER = 183
# classes of Leopart: alphabetical
COCO_THING12 = tuple(sorted(COCO_THINGS))
COCO_STUFF15 = tuple(sorted(COCO_STUFF))
# order of PiCIE and STEGO, whose names for them end in "-things" and "-stuff"
COCO_STUFF27 = (
    *("electronic", "appliance", "food", "furniture", "indoor", "kitchen"),
    *("accessory", "animal", "outdoor", "person", "sports", "vehicle"),
    *("ceiling", "floor", "food-stuff", "furniture-stuff", "raw-material", "textile", "wall", "window"),
    *("building", "ground", "plant", "sky", "solid", "structural", "water"),
)

CITYSCAPES_LABELS = {  # id in *_gtFine_labelIds.png; 0 to 6 are void, 255 is the licence plate
    "road": 7,
    "sidewalk": 8,
    "parking": 9,
    "rail track": 10,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "guard rail": 14,
    "bridge": 15,
    "tunnel": 16,
    "pole": 17,
    "polegroup": 18,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "caravan": 29,
    "trailer": 30,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
CITYSCAPES27 = tuple(CITYSCAPES_LABELS)
_NOT_SCORED = {"parking", "rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan", "trailer"}
CITYSCAPES19 = tuple(name for name in CITYSCAPES27 if name not in _NOT_SCORED)

ADE20K = _names(
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, "
    "door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, "
    "field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, "
    "signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, "
    "stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee "
    "table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, "
    "boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, "
    "television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, "
    "buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, "
    "barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, "
    "pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, "
    "ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag"
)


def table(classes: Mapping[int, int], *, void: Iterable[int] = ()) -> Table:
    """The table of `classes`, value to class, and of the values without one, among which 255 always is."""
    found = np.full(256, -1, np.int16)
    found[[*void, IGNORE]] = IGNORE
    found[list(classes)] = list(classes.values())
    return found


def coco_labels(names: Sequence[str]) -> dict[int, int]:
    """Id of a COCO category to its place in `names`, super-categories of things and stuff."""
    ids = COCO_THINGS | COCO_STUFF
    return {category: place for place, name in enumerate(names) for category in ids[name]}


VOC_TABLE = table({value: value for value in range(len(VOC))})
COCO_STUFF27_TABLE = table({category - 1: place for category, place in coco_labels(COCO_STUFF27).items()})
COCO_STUFF15_TABLE = table(coco_labels(COCO_STUFF15), void=(0, COCO_OTHER))
ADE20K_TABLE = table({value + 1: value for value in range(len(ADE20K))}, void=(0,))
CITYSCAPES19_TABLE = table({CITYSCAPES_LABELS[name]: i for i, name in enumerate(CITYSCAPES19)}, void=range(34))
CITYSCAPES27_TABLE = table({label: i for i, label in enumerate(CITYSCAPES_LABELS.values())}, void=range(7))
