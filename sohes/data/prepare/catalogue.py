"""The data sets that `sohes data prepare` knows, as plain data.

Counts are those of the official releases; where two sources disagree or none says, there is none. PACO's and
PartImageNet's protocol has part masks as the only ground truth (see `protocols`), so `paco` and `partimagenet` hold
parts alone; `paco_hierarchy` and `partimagenet_hierarchy` add the wholes and `parent_id`, for what tells wholes from
parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sohes.data.prepare.ade20k import open_ade20k
from sohes.data.prepare.bsds500 import open_bsds500
from sohes.data.prepare.coco_style import (
    CocoStyle,
    by_coco_url,
    by_synset,
    given_parent,
    in_folder,
    is_paco_part,
    paco_object,
)
from sohes.data.prepare.partimagenet import open_partimagenet
from sohes.data.prepare.sa1b import open_sa1b
from sohes.data.prepare.source import Converter


@dataclass(frozen=True)
class Need:
    """A file or folder that a download must have.

    Attributes:
        places: where it may lie below the root, as glob patterns; the first that exists is taken.
        source: where to get it.
    """

    places: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Attributes:
        title: what it is.
        page: where to download it.
        licence: its terms, in words.
        needs: what must lie below the root.
        convert: opens the download.
        images: how many images it has.
        masks: how many masks.
        categories: how many, where masks keep their names.
        sample: images drawn unless the caller says otherwise; None for all.
        digests: "algorithm:hex" of archives, checked where they still lie in the root.
    """

    title: str
    page: str
    licence: str
    needs: tuple[Need, ...]
    convert: Converter
    images: int | None = None
    masks: int | None = None
    categories: int | None = None
    sample: int | None = None
    digests: dict[str, str] = field(default_factory=dict)


_COCO_PAGE = "https://cocodataset.org/#download"
_COCO_LICENCE = "annotations CC BY 4.0; images under their Flickr licences"
_TRAIN2017 = Need(("train2017",), "http://images.cocodataset.org/zips/train2017.zip")
_VAL2017 = Need(("val2017",), "http://images.cocodataset.org/zips/val2017.zip")
_COCO_DIGESTS = {
    "annotations_trainval2017.zip": "md5:f4bbac642086de4f52a3fdda2de5fa2c",
    "val2017.zip": "md5:442b8da7639aecaf257c1dceb8ba8c80",
}

_PACO_PAGE = "https://github.com/facebookresearch/paco"
_PACO_LICENCE = "see the PACO repository; images are COCO's"
_PACO_NEEDS = (
    Need(
        ("annotations/paco_lvis_v1_val.json", "paco_lvis_v1_val.json", "*/paco_lvis_v1_val.json"),
        "https://dl.fbaipublicfiles.com/paco/annotations/paco_lvis_v1.zip",
    ),
    _TRAIN2017,  # PACO's val was split off its train images
)
_PACO_DIGESTS = {"paco_lvis_v1.zip": "sha256:a45df077f8930ac5a5061ed4950ce6b8c41394eb519bdbfa816c0b24b964ec77"}

_PARTIMAGENET_PAGE = "https://github.com/TACJu/PartImageNet"
_PARTIMAGENET_LICENCE = "images under ImageNet's terms, non-commercial research"
_PARTIMAGENET_NEEDS = (
    Need(
        ("val.json", "annotations/val.json", "annotations/val/val.json"),
        "PartImageNet_OOD.zip, https://huggingface.co/datasets/turkeyju/PartImageNet",
    ),
    Need(("val", "images/val"), "val.zip inside PartImageNet_OOD.zip"),
)
_PARTIMAGENET_IMAGES = 2_957  # by its README; UnSAM's appendix says 2,956


def _bsds500(split: str, images: int) -> Dataset:
    archive = "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz"
    tops = ("BSR/BSDS500/data/", "BSDS500/data/", "data/", "")
    return Dataset(
        title=f"BSDS500 {split}, segments of all annotators",
        page="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html",
        licence="none stated; research use, cite the authors",
        needs=tuple(Need(tuple(f"{top}{kind}/{split}" for top in tops), archive) for kind in ("groundTruth", "images")),
        convert=open_bsds500,
        images=images,
    )


def _ready(title: str, images: int, masks: int, *, page: str, licence: str) -> Dataset:
    """A set that has the form already, with `parent_id`: instances.json beside images/."""
    return Dataset(
        title=title,
        page=page,
        licence=licence,
        needs=(Need(("instances.json",), "this set's folder"), Need(("images",), "this set's folder")),
        convert=CocoStyle(in_folder("images"), parent=given_parent),
        images=images,
        masks=masks,
    )


DATASETS = {
    "coco": Dataset(
        title="COCO val2017, 80 classes of things merged",
        page=_COCO_PAGE,
        licence=_COCO_LICENCE,
        needs=(
            Need(
                ("annotations/instances_val2017.json", "instances_val2017.json"),
                "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
            ),
            _VAL2017,
        ),
        convert=CocoStyle(in_folder("val2017")),
        images=5_000,
        masks=36_781,  # 446 of them crowds
        digests=_COCO_DIGESTS,
    ),
    # Which classes were checked in an image, and which not exhaustively, is left aside: it corrects precision class
    # by class, while this protocol reports recall without classes.
    "lvis": Dataset(
        title="LVIS v1 val, 1,203 classes merged",
        page="https://www.lvisdataset.org/dataset",
        licence="annotations CC BY 4.0; images are COCO's",
        needs=(
            Need(
                ("annotations/lvis_v1_val.json", "lvis_v1_val.json"),
                "https://dl.fbaipublicfiles.com/LVIS/lvis_v1_val.json.zip",
            ),
            _TRAIN2017,
            _VAL2017,
        ),
        convert=CocoStyle(by_coco_url),
        images=19_809,
        masks=244_707,
    ),
    "ade20k": Dataset(
        title="ADE20K validation, instances of the 100 thing classes",
        page="https://github.com/CSAILVision/placeschallenge/tree/master/instancesegmentation",
        licence="BSD 3-clause annotations; images for non-commercial research",
        needs=(
            Need(
                ("annotations_instance/validation", "ADEChallengeData2016/annotations_instance/validation"),
                "http://placeschallenge.csail.mit.edu/data/ChallengeData2017/annotations_instance.tar",
            ),
            Need(
                ("images/validation", "ADEChallengeData2016/images/validation"),
                "http://placeschallenge.csail.mit.edu/data/ChallengeData2017/images.tar",
            ),
        ),
        convert=open_ade20k,
        images=2_000,
    ),
    "entityseg": Dataset(
        title="EntitySeg validation, low-resolution release",
        page="https://github.com/adobe-research/EntitySeg-Dataset",
        licence="Adobe Research License, non-commercial",
        needs=(
            Need(
                ("entityseg_val_lr.json", "annotations/entityseg_val_lr.json", "annotations/*/entityseg_val_lr.json"),
                "https://github.com/adobe-research/EntitySeg-Dataset/releases/tag/v1.0",
            ),
            Need(
                ("images_lr", "entity_0*"),
                "low-resolution images (short side 800 px at most) by the URLs of the annotations, or "
                "https://github.com/qqlu/Entity, Entityv2/DATA.md",
            ),
        ),
        convert=CocoStyle(in_folder("images_lr", ".")),
        images=1_314,
    ),
    "sa1b": Dataset(
        title="SA-1B, drawn from one pack",
        page="https://ai.meta.com/datasets/segment-anything-downloads",
        licence="SA-1B Dataset Research License",
        needs=(Need(("sa_*.json", "*/sa_*.json"), "sa_000000.tar, the pack that training leaves out"),),
        convert=open_sa1b,
        sample=1_000,
    ),
    "paco": Dataset(
        title="PACO-LVIS v1 val, part masks only",
        page=_PACO_PAGE,
        licence=_PACO_LICENCE,
        needs=_PACO_NEEDS,
        convert=CocoStyle(in_folder(".", "train2017"), keep=is_paco_part),
        images=2_410,
        digests=_PACO_DIGESTS,
    ),
    "paco_hierarchy": Dataset(
        title="PACO-LVIS v1 val, objects and their parts",
        page=_PACO_PAGE,
        licence=_PACO_LICENCE,
        needs=_PACO_NEEDS,
        convert=CocoStyle(in_folder(".", "train2017"), parent=paco_object),
        images=2_410,
        digests=_PACO_DIGESTS,
    ),
    "partimagenet": Dataset(
        title="PartImageNet val (release PartImageNet_OOD), part masks",
        page=_PARTIMAGENET_PAGE,
        licence=_PARTIMAGENET_LICENCE,
        needs=_PARTIMAGENET_NEEDS,
        convert=CocoStyle(by_synset),
        images=_PARTIMAGENET_IMAGES,
    ),
    "partimagenet_hierarchy": Dataset(
        title="PartImageNet val (release PartImageNet_OOD), objects and their parts",
        page=_PARTIMAGENET_PAGE,
        licence=_PARTIMAGENET_LICENCE,
        needs=_PARTIMAGENET_NEEDS,
        convert=open_partimagenet,
        images=_PARTIMAGENET_IMAGES,
        categories=51,  # 40 parts and 11 super-categories
    ),
    "bsds500": _bsds500("val", 100),
    "bsds500_train": _bsds500("train", 200),
    "bsds500_test": _bsds500("test", 200),
    "coco_panoptic": _ready(
        "COCO 2017 panoptic subset, things and stuff",
        images=140,
        masks=1_550,
        page=_COCO_PAGE,
        licence=_COCO_LICENCE,
    ),
    "pascal_part": _ready(
        "PASCAL-Part examples, objects and parts",
        images=18,
        masks=451,
        page="https://github.com/twuilliam/pascal-part-py",
        licence="none stated; images under Flickr's terms, research use",
    ),
    "ccp_clothing_parts": _ready(
        "Clothing Co-Parsing subset, persons and clothes",
        images=60,
        masks=482,
        page="https://github.com/bearpaw/clothing-co-parsing",
        licence="Apache-2.0 repository; the photographers' rights are unclear",
    ),
    "car_parts": _ready(
        "Car Parts subset, parts without wholes",
        images=140,
        masks=1_109,
        page="https://github.com/dsmlr/Car-Parts-Segmentation",
        licence="none stated; cite the authors",
    ),
}
