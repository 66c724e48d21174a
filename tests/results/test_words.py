"""Every metric that a stage measures has a name for readers."""

import numpy as np
import pytest

from results.words import title_of
from sohes.backbones.timm_folder import save_backbone_folder
from sohes.backbones.weights import resolve_weights
from sohes.evaluation.clustering import evaluate_clusters
from sohes.evaluation.hierarchy import evaluate_hierarchy
from sohes.evaluation.mask_recall import evaluate_masks
from sohes.probes.settings import ProbeConfig
from sohes.probes.stage import probe
from tests.evaluation.test_hierarchy import ground_truth
from tests.probes.synthetic import write_folder
from transfer.stages import _INSTANCE, _SEMANTIC


@pytest.fixture(scope="module")
def emitted(tmp_path_factory):
    """The metrics of evaluations, of clusters, of probes and of heads; each from where it is made."""
    folder = tmp_path_factory.mktemp("probe")
    save_backbone_folder(folder / "backbone", *resolve_weights("random:test_vit"))
    data = write_folder(folder / "data")
    config = ProbeConfig(probe="knn", size_px=32, neighbours=1, pictures=1, classes=("sky", "rose"))
    probed = probe(config, {"backbone": folder / "backbone", "data": data}, folder / "out").measurements
    label_map, truth = np.zeros((2, 2), np.int64), ground_truth()
    return [
        *evaluate_masks(truth, {1: truth.forest(1)}).metrics(),
        *evaluate_hierarchy(truth, {1: truth.forest(1)}).metrics(),
        *evaluate_clusters([(label_map, label_map)], clusters=1, classes=1).metrics(),
        *(row.metric for row in probed),
        *_SEMANTIC.values(),
        *_INSTANCE.values(),
    ]


def test_every_metric_has_words_of_its_own(emitted):
    titles = {metric: title_of(metric) for metric in emitted}
    assert [metric for metric, title in titles.items() if title == metric] == []
    assert len(set(titles.values())) == len(titles)


def test_words_with_numbers():
    assert title_of("miou_17_classes") == "mIoU over 17 chosen classes"
    assert title_of("mask_ar_10") == "AR@10"
    assert title_of("mask_recall_iou95") == "recall at IoU 0.95"
    assert title_of("mask_ar_1000_high") == "AR@1000, upper end of its 95 % interval"
    assert title_of("something_else") == "something_else"
