"""The table of frozen probes: pairs, spreads, repeats, clusters, and what is cited."""

from __future__ import annotations

from dataclasses import replace

from results.published import published_rows
from results.render import to_markdown
from results.tables.probes import probes
from results.tables.transfer import transfer
from results.words import DASH
from tests.results.conftest import BACKBONE, head_measurements, measurement
from tests.results.test_tables import build, lines, said

START, TRAINED = "DINO", "Leopart from DINO"


def probe_rows(method, protocol, start, trained, *, sd=None, arms=("start", "trained"), **fields):
    rows = []
    for arm, init, value in zip(arms, (START, TRAINED), (start, trained), strict=True):
        common = {"init": init, "arm": arm, "protocol": protocol, "dataset": "voc", "supervision": "none"}
        common |= {"trained_by": "Leopart"} if arm == "trained" else {}
        common |= {} if sd is None else {"sd": sd, "n_seeds": 3}
        rows.append(measurement(method, "miou_dataset", value, **common, **fields))
    return rows


LINEAR = probe_rows("linear probe", "probe_linear_448_full_v1", 38.0, 41.25)
KMEANS = probe_rows("over-clustering, K = 500", "probe_overcluster_500_448_100_v1", 20.0, 19.0, sd=0.44)
COARSE = probe_rows("linear probe", "probe_linear_224_full_v1", 30.0, 30.0)


def test_a_line_for_each_backbone_a_column_for_each_probe(make_run):
    """Two resolutions are two protocols, and two columns."""
    table = build(probes, make_run("r", {"linear": LINEAR, "overcluster": KMEANS, "coarse": COARSE}))
    own, cited, *_ = table.blocks
    fine, coarse = (f"linear probe mIoU probe_linear_{side}_full_v1" for side in (448, 224))
    clusters = "over-clustering, K = 500 mIoU"
    start, trained = lines(own)
    assert (start["Trained by"], trained["Trained by"]) == ("start †demo", "Leopart †demo")
    assert (start["Weights"], trained["Weights"]) == (START, TRAINED)
    assert [start[name] for name in (fine, clusters, coarse)] == ["38.0", "20.0 ± 0.4", "30.0"]
    assert [trained[name] for name in (fine, clusters, coarse)] == ["41.3", "19.0 ± 0.4", "30.0"]
    assert [trained[f"Δ {name}"] for name in (fine, clusters, coarse)] == ["+3.3", "-1.0", "+0.0"]
    assert start[f"Δ {fine}"] == DASH
    assert (start["Seeds"], trained["Seeds"]) == (f"1{DASH}3", f"1{DASH}3")
    where = "on demo · voc (val), not comparable, r: the Leopart backbone,"
    assert said(table) == (
        f"mIoU under linear probe {where} 38.0 → 41.3 (+3.3, one seed, no verdict)",
        f"mIoU under over-clustering, K = 500 {where} 20.0 → 19.0 (-1.0, one seed, no verdict)",
        f"mIoU under linear probe {where} 30.0 → 30.0 (+0.0, one seed, no verdict)",
    )
    gains = table.frame[table.frame["metric"] == "miou_dataset_difference"]
    assert gains["value"].tolist() == [3.25, -1.0, 0.0]
    assert gains["sd"].isna().all()
    assert cited.facts["cited"].all()


def test_probes_are_no_downstream_heads(make_run):
    run = make_run("r", {"probe-linear": LINEAR, "mmseg_start": head_measurements("mmseg_start")})
    assert "linear probe" not in to_markdown(build(transfer, run))
    assert "FCN head" not in to_markdown(build(probes, run))


def test_runs_of_several_seeds_are_averaged(make_run):
    runs = []
    for seed, (start, trained) in enumerate([(10.0, 12.0), (10.0, 14.0), (10.0, 13.0)]):
        rows = probe_rows("linear probe", "probe_linear_448_full_v1", start, trained)
        runs.append(make_run(f"s{seed}", {"probe-linear": rows}, seed=seed))
    table = build(probes, *runs)
    first, second = lines(table.blocks[0])
    assert first["linear probe mIoU"] == "10.0 ± 0.0"
    assert (second["linear probe mIoU"], second["Δ linear probe mIoU"], second["Seeds"]) == (
        "13.0 ± 1.0",
        "+3.0 ± 1.0",
        "3",
    )
    assert "gains, 10.0 → 13.0 (+3.0, 95 % interval +2.0 to +4.0 over 3 seeds)" in said(table)[0]


def test_a_backbone_by_itself_and_half_a_pair(make_run):
    alone = [row for row in LINEAR if row.arm == "start"]
    table = build(probes, make_run("r", {"probe-linear": alone}))
    assert said(table)[0].endswith("measured with the start backbone only")
    bare = probe_rows("linear probe", "probe_linear_448_full_v1", 1.0, 2.0, arms=("", ""))[:1]
    table = build(probes, make_run("b", {"probe": bare}))
    (line,) = lines(table.blocks[0])
    assert (line["Trained by"], line["linear probe mIoU"]) == (f"{START} †demo", "1.0")
    assert f"Backbone: {BACKBONE}." in table.blocks[0].notes
    assert said(table) == ()


def test_clusters_as_classes_have_a_block(make_run):
    rows = [
        measurement(method, f"cluster_miou_{rule}", value, protocol=f"cluster_{rule}_v1", dataset="voc")
        for method, values in (("Leopart (CBFE+CD)", (30.0, 31.0)), ("k-means, K = 21", (9.0, 9.5)))
        for rule, value in zip(("leopart", "hungarian"), values, strict=True)
    ]
    facts = {"protocol": "cluster_leopart_v1", "dataset": "voc", "sd": 0.26, "n_seeds": 5}
    rows.append(measurement("CBFE + k-means, K = 20", "cluster_miou_leopart", 25.0, **facts))
    block = build(probes, make_run("r", {"semantic": rows})).blocks[0]
    assert any("without labels until they are scored" in note for note in block.notes)
    assert [(line["Method"], line["mIoU, one to one by IoU"], line["Seeds"]) for line in lines(block)] == [
        ("Leopart (CBFE+CD) †demo", "30.0", "1"),
        ("k-means, K = 21 †demo", "9.0", "1"),
        ("CBFE + k-means, K = 20 †demo", "25.0 ± 0.3", "5"),
    ]


def test_cited_numbers_are_those_of_the_sources(make_run):
    table = build(probes, make_run("r", {"images": []}))
    block, *_ = table.blocks
    cells = {(line["Method"], line["Backbone"]): line for line in lines(block)}
    leopart = cells["Leopart", "ViT-S/16"]  # as in the repository's README
    assert (leopart["linear mIoU"], leopart["FCN mIoU"], leopart["K=500 mIoU"]) == ("69.3", "71.4", "53.5")
    assert cells["Leopart", "ViT-B/8"]["K=500 mIoU"] == "59.7"
    assert cells["Leopart (CBFE+CD)", "ViT-S/16"]["unsupervised mIoU, 21 classes"] == "41.7"
    assert set(block.facts["source"]) <= set(published_rows()["source"])
    assert said(table) == ("Frozen probes were not measured",)


def test_classes_of_whole_images_stand_apart_from_published_ones(make_run):
    """Ours is solved on features, theirs trained on augmented images: another protocol, another block."""
    rows = []
    for metric, protocol, values in (
        ("acc_top1_linear", "probe_image_linear_224_v1", (40.0, 44.0)),
        ("acc_top1_knn", "probe_image_knn_224_v1", (30.0, 29.0)),
    ):
        rows += [replace(row, metric=metric) for row in probe_rows("image probe", protocol, *values)]
    table = build(probes, make_run("r", {"image": rows}))
    own, *_, cited, _ = table.blocks
    linear, knn = "image probe linear top-1 accuracy", "image probe k-NN top-1 accuracy"
    assert [[line[linear], line[knn]] for line in lines(own)] == [["40.0", "30.0"], ["44.0", "29.0"]]
    assert (lines(own)[1][f"Δ {linear}"], lines(own)[1][f"Δ {knn}"]) == ("+4.0", "-1.0")
    assert said(table)[0].startswith("linear top-1 accuracy under image probe on demo · voc (val)")
    found = {(line["Method"], line["Backbone"]): line["linear top-1 accuracy"] for line in lines(cited)}
    assert found["CAST", "CAST-S"] == "68.1"  # as in the repository's README
    assert found["MoCo-v3 (CAST recipe; batch 256; 100 epochs)", "ViT-B (conv stem)"] == "72.5"
    assert "augmented" in cited.heading
    assert cited.facts["cited"].all()


def test_clusters_of_a_segmenter_stand_beside_those_of_frozen_features(make_run):
    probe = probe_rows("cluster probe", "probe_cluster_crop320_v1", 18.0, 21.5)
    probe += probe_rows("k-means, 150 clusters", "probe_cluster_majority_448_v1", 58.0, 61.0)  # many to a class
    facts = {"init": TRAINED, "protocol": "probe_cluster_crop320_v1", "dataset": "voc"}
    name = "FS4 (reconstruction)"
    own = [measurement(name, "miou_dataset", 24.0, **facts), measurement(name, "acc_pixel", 41.0, **facts)]
    backbones, clusters, *_ = build(probes, make_run("r", {"probe": probe, "semantic": own})).blocks
    assert [line["Trained by"] for line in lines(backbones)] == ["start †demo", "Leopart †demo"]
    assert not any(name in title for title in lines(backbones)[0])
    found = {(line["Clusters of"].split(" †")[0], line["Weights"]): line for line in lines(clusters)}
    assert {key: line["mIoU"] for key, line in found.items()} == {
        ("cluster probe", START): "18.0",
        ("cluster probe", TRAINED): "21.5",
        (name, TRAINED): "24.0",
    }
    assert found[name, TRAINED]["pixel accuracy"] == "41.0"
    without = build(probes, make_run("s", {"probe": probe})).blocks
    assert not any("One cluster" in block.heading for block in without)


def test_published_clusters_of_coco_stuff_say_where_labels_came_in(make_run):
    *_, block = build(probes, make_run("r", {"images": []})).blocks
    assert "COCO-Stuff-27" in block.heading
    found = lines(block)
    assert {line["Method"] for line in found} == {"PiCIE", "PiCIE+H", "MDC", "STEGO"}
    assert all(("ImageNet-label" in line["Supervision"]) == (line["Method"] != "STEGO") for line in found)
    assert found[0]["mIoU as printed"] == "13.84"
    assert "28.3" not in to_markdown(build(probes, make_run("s", {"images": []})))  # which nobody could verify
