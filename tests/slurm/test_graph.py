"""Recipes and scales: order, layers of settings, and what is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from slurm.graph import Graph, load_graph
from sohes.configuration import field_docs
from sohes.errors import ConfigError
from tests.slurm.conftest import HERE
from tests.slurm.toy import GatherConfig

TOY, TINY = str(HERE / "toy.yaml"), str(HERE / "tiny.yaml")


def load(*overrides: str, **flags: str) -> Graph:
    return load_graph(TOY, TINY, flags=flags, overrides=overrides)


def written(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_parents_come_first() -> None:
    graph = load()
    assert list(graph.stages) == ["images", "work", "other", "report"]
    assert graph.stages["report"].parents == ("work", "other")
    assert graph.descendants("images") == {"work", "other", "report"}
    assert graph.ancestors("report") == ["images", "work", "other"]


def test_layers() -> None:
    graph = load("images.count=9", "work.resources.hours=2", "seed=7", images="/a/b", ground_truth="/c.json")
    assert graph.stages["images"].config == GatherConfig(folder="/a/b", ground_truth="/c.json", count=9, seed=7)
    assert graph.stages["work"].config.rate == 0.5  # recipe
    assert load().stages["images"].config.count == 4  # scale
    resources = graph.stages["work"].resources
    assert (resources.gpus, resources.cpus, resources.memory_gb, resources.hours) == (1, 1, 0.5, 2.0)


def test_an_explicit_seed_of_a_stage_wins_over_the_seed_of_the_run() -> None:
    assert load("seed=7", "images.seed=3").stages["images"].config.seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("wrok.rate=1", "unknown stage 'wrok'; did you mean 'work'"),
        ("work.rat=1", "unknown key of work 'rat'; did you mean 'rate'"),
        ("work.resources.gpu=1", "unknown key of work.resources 'gpu'; did you mean 'gpus'"),
        ("images.cuont=1", "did you mean 'count'"),
        ("sead=1", "did you mean 'seed'"),
        ("seed=x", "run.seed must be int of at least 0, given 'x'"),
        ("work", "write it as stage.key=value"),
        ("work.resources.hours=0", "hours must be float above 0, given '0'"),
    ],
)
def test_refused_overrides(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: {a: {run: 'tests.slurm.toy:gather', inputs: {x: b/c}}}", "unknown stage 'b'"),
        ("stages: {a: {run: 'tests.slurm.toy:gathr'}}", "tests.slurm.toy has no function 'gathr'"),
        ("stages: {a: {run: 'no.such:thing'}}", "cannot import no.such"),
        ("stages: {a: {rum: 'x:y'}}", "unknown key 'rum'; did you mean 'run'"),
        ("stages: {a: {run: gather}}", "must be module:function"),
        ("stages: {A/b: {run: 'tests.slurm.toy:gather'}}", "small letters"),
        ("stages: [a]", "expected a mapping"),
        ("stages: {", "not valid YAML"),
        (
            "stages: {a: {run: 'tests.slurm.toy:gather', after: [b]}, b: {run: 'tests.slurm.toy:gather', after: [a]}}",
            "in a circle: a, b",
        ),
    ],
)
def test_refused_recipes(tmp_path: Path, text: str, message: str) -> None:
    empty = tmp_path / "scale.yaml"
    empty.write_text("")
    with pytest.raises(ConfigError, match=message):
        load_graph(written(tmp_path, text), str(empty))


def test_a_scale_may_only_name_stages_of_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown stage 'image'; did you mean 'images'"):
        load_graph(TOY, written(tmp_path, "image: {count: 1}"))


def test_unknown_recipe_and_scale_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'sohes_ful'; did you mean 'sohes_full'"):
        load_graph("sohes_ful", "demo")
    with pytest.raises(ConfigError, match="unknown scale 'dmo'; did you mean 'demo'"):
        load_graph("sohes_full", "dmo")
    with pytest.raises(ConfigError, match=r"no scale 'demo': there is none in .*/slurm/scales/toy; give a YAML file"):
        load_graph(TOY, "demo")


# every setting of phase 1 that decides its labels, as the lineage of the paper publishes it
PUBLISHED = {
    "algorithm": "sohes",
    "feature": "key",
    "center": False,
    "size_global": 480,
    "keep_aspect": False,
    "theta_merge": (0.6, 0.5, 0.4, 0.3, 0.2, 0.1),
    "theta_small": 0.01,
    "crop_ratio": 2.0,
    "size_local": 256,
    "min_side_px": 64,
    "min_patches": 4,
    "max_crops": 64,
    "refiner": "local_crf",
    "refine_iou": 0.5,
    "min_area_px": 100,
    "max_area_frac": 0.9,
    "nms_iou": 0.9,
    "max_masks": 300,
    "theta_cover": 0.9,
}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("instruct.schedule=cosin", "unknown schedule 'cosin'; did you mean 'cosine'"),
        ("explore.feature=keys", "unknown feature 'keys'; did you mean 'key'"),
        ("explore.refiner=guide", "unknown refiner 'guide'; did you mean 'guided'"),
        ("correct.targets=bth", "unknown targets 'bth'; did you mean 'both'"),
        ("mmseg_start.recipe=linear", "unknown semantic recipe 'linear'; did you mean 'linear_frozen'"),
        ("mmdet_trained.recipe=foo", "unknown instance recipe 'foo'"),
        ("tables.tables=[phases, foo]", "unknown tables 'foo'"),
        ("instruct.lr=-1", "instruct.lr must be float above 0"),
        ("instruct.lr=.inf", "instruct.lr must be float above 0"),
        ("instruct.batch_size=0", "instruct.batch_size must be int of at least 1"),
        ("instruct.queries=99.5", "instruct.queries must be int"),
        ("instruct.compile=1", "instruct.compile must be bool"),
        ("instruct.hidden_dim=100", "instruct.hidden_dim must be int of at least 32, a multiple of 32"),
        ("instruct.crop_px=100", "instruct: crop_px=100 is not a multiple of the backbone's 14 px patches; try 98"),
        ("correct.crop_px=14", "correct: crop_px=14 .*; try 28"),
        ("instruct.inference_short_px=900", "inference_short_px=900 is above inference_long_px=672"),
        ("correct.scale_min=3", "scale_min=3.0 is above scale_max=1.4 .*scale_min: override; scale_max: scale demo"),
        ("correct.warmup=200", "warmup=200 leaves none of iterations=200"),
        ("correct.accumulate=3", "batch_size=4 is not a multiple of accumulate=3"),
        ("correct.tau_min=0.95", "tau_min=0.95 is above tau_max=0.9"),
        ("correct.ema=1", r"correct.ema must be float in \[0, 1\) or non-empty list"),
        ("explore.theta_merge=[]", "explore.theta_merge must be non-empty list"),
        ("explore.max_area_frac=90", r"explore.max_area_frac must be float in \(0, 1\]"),
        ("images.val_fraction=10", r"images.val_fraction must be float in \[0, 1\]"),
        ("images.seed=-1", "images.seed must be int of at least 0"),
        ("images.scenes_val=0", "scenes_val=0 holds out none"),
        ("labelled.train=a.json", "labelled: train and val go together"),
        ("mmseg_start.iterations=0", "mmseg_start.iterations must be int of at least 1 or null"),
        ("evaluate.min_score=50", r"evaluate.min_score must be float in \[0, 1\]"),
        ("instruct.resources.gpus=-1", "instruct.resources.gpus must be int of at least 0"),
        ("seed=-1", "run.seed must be int of at least 0"),
    ],
)
def test_everything_is_checked_before_the_first_stage(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_graph("sohes_full", "demo", overrides=[override])


@pytest.mark.parametrize("setting", ["neck=pyramid", "hidden_dim=64", "encoder_layers=2", "decoder_layers=3"])
def test_a_setting_that_the_chosen_segmenter_does_not_have(setting: str) -> None:
    """It is refused where it was typed; a scale may hold it for the other segmenter."""
    key = setting.partition("=")[0]
    for scale, chosen in (("paper", ["instruct.segmenter=eomt"]), ("demo", []), ("small", [])):
        assert load_graph("sohes_full", scale, overrides=chosen).stages["instruct"].config.segmenter == "eomt"
        with pytest.raises(ConfigError, match=f"instruct.{key} has no effect with segmenter=eomt, only with .*mask2f"):
            load_graph("sohes_full", scale, overrides=[*chosen, f"instruct.{setting}"])
    mask2former = ["instruct.segmenter=mask2former", "instruct.query_start=learnt"]
    assert load_graph("sohes_full", "demo", overrides=[*mask2former, f"instruct.{setting}"])
    default = {"neck": "adapter", "hidden_dim": 256, "encoder_layers": 6, "decoder_layers": 9}[key]
    assert load_graph("sohes_full", "small", overrides=[f"instruct.{key}={default}"])


def test_the_canvas_suits_the_weights_that_are_trained() -> None:
    def crop(*overrides: str, weights: str) -> int:
        config = load_graph("sohes_full", "demo", flags={"weights": weights}, overrides=overrides)
        return int(config.stages["instruct"].config.crop_px)

    assert crop("instruct.crop_px=96", "correct.crop_px=160", weights="vit_base_patch16_224.dino") == 96
    with pytest.raises(ConfigError, match="crop_px=168 is not a multiple of the backbone's 16 px patches; try 160"):
        crop(weights="random:vit_tiny_patch16_224")
    assert crop(weights="start.pth") == 168  # only reading it tells


def test_every_setting_says_what_it_means() -> None:
    for recipe in ("sohes_full", "zero_shot_suite", "part_naming", "leopart", "fs4", "cast"):
        for stage in load_graph(recipe, "demo").stages.values():
            for cls in (type(stage.config), type(stage.resources)):
                assert set(field_docs(cls)) == {field.name for field in fields(cls)}, cls


def test_the_paper_scale_has_the_published_constants() -> None:
    config = vars(load_graph("sohes_full", "paper").stages["explore"].config)
    assert {key: config[key] for key in PUBLISHED} == PUBLISHED
    assert load_graph("sohes_full", "paper").stages["instruct"].config.drop_path_rate == 0.3  # of ViT-Adapter
    suite = load_graph("zero_shot_suite", "paper").stages
    assert {key: getattr(suite["score-sohes_labels-coco"].config, key) for key in PUBLISHED} == PUBLISHED
    ours = {"algorithm": "superpixels", "keep_aspect": True, "max_masks": 1000}
    superpixels = suite["score-superpixel_labels-coco"].config
    assert {key: getattr(superpixels, key) for key in PUBLISHED} == PUBLISHED | ours


def test_demo_and_small_differ_from_the_published_constants_as_they_say() -> None:
    def changed(scale: str) -> dict[str, object]:
        config = vars(load_graph("sohes_full", scale).stages["explore"].config)
        return {key: config[key] for key, value in PUBLISHED.items() if config[key] != value}

    demo = {"center": True, "size_global": 224, "theta_merge": (0.8, 0.6, 0.4, 0.2), "min_patches": 2}
    assert changed("demo") == demo | {"max_crops": 2, "size_local": 168, "min_area_px": 20, "refiner": "guided"}
    small = {"algorithm": "superpixels", "size_global": 560, "keep_aspect": True, "nms_iou": 0.8, "max_masks": 200}
    unused = {"center": True, "theta_merge": None, "max_crops": 8, "refine_iou": 0.3, "refiner": "guided"}
    assert changed("small") == small | unused


def test_a_preset_gives_way_to_what_is_set_beside_it() -> None:
    for overrides in (
        ("explore.preset=paper", "explore.size_global=96"),
        ("explore.size_global=96", "explore.preset=paper"),
    ):
        config = load_graph("sohes_full", "demo", overrides=overrides).stages["explore"].config
        assert (config.size_global, config.max_crops) == (96, 64)
    with pytest.raises(ConfigError, match="unknown preset of explore 'papr'; did you mean 'paper'"):
        load_graph("sohes_full", "demo", overrides=["explore.preset=papr"])
    with pytest.raises(ConfigError, match="unknown key of images 'preset'"):
        load_graph("sohes_full", "demo", overrides=["images.preset=paper"])


@pytest.mark.parametrize("scale", ["demo", "small", "paper"])
def test_the_main_recipe_resolves_at_every_scale(scale: str) -> None:
    pytest.importorskip("mmengine")
    graph = load_graph("sohes_full", scale)
    assert graph.stages["evaluate"].parents == ("images", "explore", "instruct", "correct")
    assert list(graph.stages)[-1] == "tables"
    assert set(graph.ancestors("tables")) == set(graph.stages) - {"tables"}


@pytest.mark.parametrize("scale", ["demo", "small", "paper"])
def test_leopart_resolves_at_every_scale(scale: str) -> None:
    stages = load_graph("leopart", scale).stages
    assert {name: stage.inputs for name, stage in stages.items() if name in ("probe-knn", "segmenter", "semantic")} == {
        "probe-knn": {"backbone": "leopart/backbone", "start": "weights/backbone", "data": "labelled"},
        "segmenter": {"backbone": "leopart/backbone", "attention": "weights/backbone", "images": "images"},
        "semantic": {"segmenter": "segmenter/segmenter", "data": "labelled"},
    }
    assert list(stages)[-1] == "tables"
    segmenter = stages["segmenter"].config
    published = (149, 0.09, 2.0, "exact")
    assert ((segmenter.parts, segmenter.edge_threshold, segmenter.markov_time, segmenter.offsets) == published) == (
        scale == "paper"
    )


def test_the_segmenter_refuses_squares_that_the_patch_does_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"size_px=230 is no multiple of the backbone's patch of 14 px; take 224"):
        load_graph("leopart", "demo", overrides=["segmenter.size_px=230"])


@pytest.mark.parametrize("scale", ["demo", "small", "paper"])
def test_fs4_resolves_at_every_scale(scale: str) -> None:
    stages = load_graph("fs4", scale).stages
    assert {name: stages[name].inputs for name in ("probe-cluster", "segmenter", "semantic")} == {
        "probe-cluster": {"backbone": "fs4/backbone", "start": "weights/backbone", "data": "labelled"},
        "segmenter": {"training": "fs4", "images": "images"},
        "semantic": {"segmenter": "segmenter/segmenter", "data": "labelled"},
    }
    assert list(stages)[-1] == "tables"
    assert set(stages["tables"].parents) == set(stages) - {"tables"}
    # the stage semantic wants a cluster for each class: of generated scenes, and of COCO's coarse ones
    assert stages["segmenter"].config.clusters[0] == (27 if scale == "paper" else 15)


def test_fs4_refuses_views_that_the_patch_does_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"view_px=115 is not a multiple of the backbone's 14 px patches; try 112"):
        load_graph("fs4", "demo", overrides=["fs4.view_px=115"])


@pytest.mark.parametrize("scale", ["demo", "small", "paper"])
def test_cast_resolves_at_every_scale(scale: str) -> None:
    stages = load_graph("cast", scale).stages
    assert {name: stages[name].inputs for name in ("cast", "probe-knn", "segmenter")} == {
        "cast": {"backbone": "weights/backbone", "images": "images"},
        "probe-knn": {"backbone": "cast/backbone", "start": "weights/backbone", "data": "labelled"},
        "segmenter": {"backbone": "cast/backbone", "images": "images"},
    }
    assert list(stages)[-1] == "tables"
    assert set(stages["tables"].parents) == set(stages) - {"tables"}
    # 100 epochs of ImageNet-1k, 10 of them to warm up, in batches of 256
    config, epoch = stages["cast"].config, 1_281_167 // 256
    assert ((config.iterations, config.warmup) == (100 * epoch, 10 * epoch)) == (scale == "paper")


def test_presets_of_cast_are_the_published_schedules() -> None:
    def schedule(preset: str) -> tuple[int, int]:
        config = load_graph("cast", "paper", overrides=[f"cast.preset={preset}"]).stages["cast"].config
        return config.iterations, config.warmup

    epoch = 118_287 // 256
    assert schedule("coco") == (400 * epoch, 40 * epoch)
    assert schedule("imagenet100") == (200 * 494, 20 * 494)  # some 126,700 images
