"""Protocols: what a number means (README §1). A record names one by id; a change of meaning gets a new id."""

from __future__ import annotations

from dataclasses import dataclass

from sohes.errors import ConfigError, unknown_name


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a metric is computed, in words.

    Attributes:
        id: versioned name, as in `Measurement.protocol`.
        data: which objects count.
        resize: what happens to images and masks before scoring.
        limit: how many predictions per image count.
        averaging: over what a number is averaged.
        source: where the protocol comes from.
        unit: of the number.
    """

    id: str
    data: str
    resize: str
    limit: str
    averaging: str
    source: str
    unit: str = "%"


MASK_AR1000 = Protocol(
    id="mask_ar1000_v1",
    data="every annotated object, all categories merged into one; crowds are ignored",
    resize="none: masks are scored at the image's native size; size classes by mask area, 32² and 96² px",
    limit="the 1,000 best masks per image by score (AR@1, @10, @100: that many)",
    averaging="recall pooled over all images, then the mean over IoU 0.50, 0.55, ..., 0.95; AP over 101 recall points",
    source="COCO's evaluation code; as HASSOD (arXiv:2402.03311, section 4.2), whose setting SOHES follows",
)

MASK_AR1000_BOOTSTRAP = Protocol(
    id="mask_ar1000_bootstrap_v1",
    data="as mask_ar1000_v1",
    resize="as mask_ar1000_v1",
    limit="as mask_ar1000_v1",
    averaging="ends of the 95 % percentile interval of AR@1000 over 1,000 resamples of the images, seed 0",
    source="Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13",
)

HIERARCHY = Protocol(
    id="hierarchy_v1",
    data="annotated objects with a parent_id field, without crowds; masks matched one to one at IoU >= 0.5",
    resize="none: masks are compared at the image's native size",
    limit="none: all masks of an image",
    averaging="ordered pairs of matched masks (relation) or matched parts (parent accuracy), pooled over all images",
    source="this project; no protocol for SOHES's hierarchy is published",
)

BEST_OVERLAP = Protocol(
    id="best_overlap_v1",
    data="every annotated object but crowds: wholes without parent_id, parts with one; categories do not matter",
    resize=HIERARCHY.resize,
    limit="none: all masks of an image; more masks cannot lose, so masks_per_image stands beside it",
    averaging="highest IoU of an object with a predicted mask, which may serve several; mean over the objects of all "
    "images, or (_image) of each image, then over the images that have some",
    source="average best overlap of Uijlings et al., IJCV 2013, without its classes; wholes and parts apart: ours",
)

MASK_COUNT = Protocol(
    id="mask_count_v1",
    data="every predicted mask",
    resize="none",
    limit=HIERARCHY.limit,
    averaging="masks over all images, those without predictions too, per image",
    source="this project",
    unit="masks",
)

FOREST_DEPTH = Protocol(
    id="forest_depth_v1",
    data="every predicted mask",
    resize="none",
    limit="none: all masks of an image; those of depth 7 and more together",
    averaging="masks of a depth (0 wholes, 1 parts, 2 subparts, ...) over all images that have predictions, per image",
    source="this project",
    unit="masks",
)

CLUSTER_HUNGARIAN = Protocol(
    id="cluster_hungarian_v1",
    data="every pixel that is not 255; classes that occur in the ground truth",
    resize="none: label maps are compared at the annotation's size",
    limit="one cluster per class, matched over the data set for the most agreeing pixels; other clusters have no class",
    averaging="intersections and unions summed over all images, divided once for each class, then the mean of classes",
    source="PiCIE (arXiv:2103.17070)",
)

CLUSTER_MAJORITY = Protocol(
    id="cluster_majority_v1",
    data=CLUSTER_HUNGARIAN.data,
    resize=CLUSTER_HUNGARIAN.resize,
    limit="every cluster goes to the class it overlaps most over the data set, several to one class",
    averaging=CLUSTER_HUNGARIAN.averaging,
    source="Leopart (arXiv:2204.13101), over-clustering",
)

CLUSTER_IOU = Protocol(
    id="cluster_iou_v1",
    data=CLUSTER_HUNGARIAN.data,
    resize=CLUSTER_HUNGARIAN.resize,
    limit="every cluster goes to the class of highest IoU over the data set, several to one class",
    averaging=CLUSTER_HUNGARIAN.averaging,
    source="Leopart (arXiv:2204.13101), over-clustering as logged during training",
)

CLUSTER_LEOPART = Protocol(
    id="cluster_leopart_v1",
    data="every pixel that is not 255; all classes, those that occur nowhere with an IoU of 0",
    resize=CLUSTER_HUNGARIAN.resize,
    limit="one cluster per class, matched over the data set for the largest sum of IoUs; other clusters are class 0",
    averaging=CLUSTER_HUNGARIAN.averaging,
    source="Leopart (arXiv:2204.13101), code of its fully unsupervised segmentation",
)

CROP_PX = 320  # side of the centre square of the cluster probe

CLUSTER_PROBE = Protocol(
    id="probe_cluster_crop320_v1",
    data=CLUSTER_HUNGARIAN.data + "; things and stuff: the mean over the classes of each kind, whatever is confused",
    resize=f"images and label maps: short side {CROP_PX} px (bilinear, nearest), then the centre square; scored there",
    limit=CLUSTER_HUNGARIAN.limit,
    averaging=CLUSTER_HUNGARIAN.averaging,
    source="PiCIE (arXiv:2103.17070), its released code",
)

CLUSTER_PROBE_ALONE = Protocol(
    id="probe_cluster_crop320_alone_v1",
    data="of the things (or stuff) alone: pixels whose class and whose cluster's class are both of that kind",
    resize=CLUSTER_PROBE.resize,
    limit=CLUSTER_PROBE.limit,
    averaging=CLUSTER_PROBE.averaging,
    source=CLUSTER_PROBE.source + ", with clusters in the order of the classes, which it mixes up",
)

RETRIEVAL_PX = 512  # side of the square of segment retrieval

RETRIEVAL = Protocol(
    id="probe_retrieval_512_v1",
    data=CLUSTER_HUNGARIAN.data,
    resize=f"images squashed to {RETRIEVAL_PX} x {RETRIEVAL_PX} px (bicubic); scored at the annotation's own size",
    limit="one class for each segment, that of most of the 20 most similar train segments, by the backbone's features",
    averaging=CLUSTER_HUNGARIAN.averaging,
    source="CAST (arXiv:2210.00314), its released code, which keeps the aspect and projects the features",
)

RETRIEVAL_PROJECTED = Protocol(
    id="probe_retrieval_512_projected_v1",
    data=RETRIEVAL.data,
    resize=RETRIEVAL.resize,
    limit="as " + RETRIEVAL.id + ", by what the projector of the training makes of the features",
    averaging=RETRIEVAL.averaging,
    source="CAST (arXiv:2210.00314), its released code, which keeps the aspect",
)

REGION_COVERING = Protocol(
    id="region_covering_v1",
    data="every segment of every annotator",
    resize="none: label maps are compared at the annotation's size",
    limit="partitions by the best 0, 1, ..., 1,000 masks by score, painted from large to small, the rest one region",
    averaging="largest IoU of each segment with a region, weighted by the segment's area, over all images; number of "
    "masks chosen for the data set (ODS), for each image (OIS), for each segment (best)",
    source="BSDS500 (Arbelaez, Maire, Fowlkes and Malik, TPAMI 2011)",
)

REGION_PRI = Protocol(
    id="region_pri_v1",
    data="every pair of pixels, for every annotator",
    resize=REGION_COVERING.resize,
    limit=REGION_COVERING.limit,
    averaging="Rand index, the mean of annotators, then of images; number of masks chosen for the data set (ODS), for "
    "each image (OIS)",
    source=REGION_COVERING.source,
)

REGION_VI = Protocol(
    id="region_vi_v1",
    data="every pixel, for every annotator",
    resize=REGION_COVERING.resize,
    limit=REGION_COVERING.limit,
    averaging="variation of information, lower is better; otherwise as region_pri_v1",
    source=REGION_COVERING.source,
    unit="bits",
)

SEGMENT_COVERING = Protocol(
    id="segment_covering_v1",
    data="every annotated object, which may overlap and leave pixels out; no crowds",
    resize=HIERARCHY.resize,
    limit=REGION_COVERING.limit,
    averaging=REGION_COVERING.averaging,
    source="this project; BSDS500's covering where it is not known which annotator drew what",
)

PART_NAMING_WHOLE = Protocol(
    id="part_naming_whole_v1",
    data="every pixel; the wholes (super-categories) of the annotated parts, and background",
    resize="images and label maps: short side to CLIP's input, 224 px (bicubic, nearest), then the centre square",
    limit="each segment is named by CLIP among the wholes and 'Background', all else painted over",
    averaging="miou_image: IoU of the classes in annotation or prediction, the mean in each image, then of images; "
    "miou_dataset: as " + CLUSTER_HUNGARIAN.id,
    source="CAST (arXiv:2210.00314), its released code, which does not say what becomes of absent classes",
)

PART_NAMING_PART = Protocol(
    id="part_naming_part_v1",
    data="every pixel; the annotated parts, and background",
    resize=PART_NAMING_WHOLE.resize,
    limit="each segment is named by CLIP among the parts of the whole at its first pixel, all else painted over; "
    "background where that is background",
    averaging=PART_NAMING_WHOLE.averaging,
    source=PART_NAMING_WHOLE.source,
)

_ALL = (
    MASK_AR1000,
    MASK_AR1000_BOOTSTRAP,
    HIERARCHY,
    BEST_OVERLAP,
    MASK_COUNT,
    FOREST_DEPTH,
    CLUSTER_HUNGARIAN,
    CLUSTER_MAJORITY,
    CLUSTER_IOU,
    CLUSTER_LEOPART,
    CLUSTER_PROBE,
    CLUSTER_PROBE_ALONE,
    RETRIEVAL,
    RETRIEVAL_PROJECTED,
    REGION_COVERING,
    REGION_PRI,
    REGION_VI,
    SEGMENT_COVERING,
    PART_NAMING_WHOLE,
    PART_NAMING_PART,
)
PROTOCOLS = {protocol.id: protocol for protocol in _ALL}


def get_protocol(protocol_id: str) -> Protocol:
    """The protocol of that id.

    Raises:
        ConfigError: no such protocol; the message names the nearest.
    """
    if protocol_id not in PROTOCOLS:
        raise ConfigError(unknown_name("protocol", protocol_id, PROTOCOLS))
    return PROTOCOLS[protocol_id]
