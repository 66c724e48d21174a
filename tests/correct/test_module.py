"""Phase 3: the teacher's average, its labels, and how two sets of targets are weighed against one another."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sohes.correct import module as correct_module
from sohes.correct.module import CorrectModule, TeacherWarmup
from sohes.correct.settings import TeacherSettings
from sohes.engine.hooks import AfterStepHook
from sohes.errors import ConfigError
from sohes.segmenters import losses
from sohes.segmenters.matching import Matching, Targets
from sohes.segmenters.model import SegmenterOutput
from tests.segmenters.samples import output_of
from tests.segmenters.tiny import KINDS, LOSSES, tiny_segmenter

CANVAS = 64
SETTINGS = TeacherSettings(teacher_min_area_px=10, teacher_warmup=0)


def make(settings: TeacherSettings = SETTINGS, iterations: int = 5000, kind: str = "pyramid") -> CorrectModule:
    return CorrectModule(tiny_segmenter(kind), LOSSES, settings, iterations=iterations)


@pytest.fixture
def module() -> CorrectModule:
    return make()


def shift(model: torch.nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by


def test_teacher_starts_as_the_student_and_follows(module: CorrectModule) -> None:
    start = {name: value.clone() for name, value in module.teacher.state_dict().items()}
    assert all(torch.equal(value, start[name]) for name, value in module.student.state_dict().items())
    shift(module.student, 1.0)
    module.after_step()
    for name, parameter in module.teacher.named_parameters():
        assert torch.allclose(parameter, start[name] + 4e-4, atol=1e-6), name
    assert module.step == 1


def test_short_runs_start_faster() -> None:
    """alpha = 1 - 1/(t + 1): after steps 1, 2, 3 the teacher is the plain mean of start and all students so far."""
    module = make(iterations=100)
    start = float(module.teacher.ancestor_head.threshold)
    seen = [start]
    for value in (1.0, 5.0, -3.0):
        with torch.no_grad():
            module.student.ancestor_head.threshold.fill_(value)
        module.after_step()
        seen.append(value)
        assert float(module.teacher.ancestor_head.threshold) == pytest.approx(sum(seen) / len(seen), rel=1e-5)


def test_alpha_is_limited() -> None:
    module = make(replace(SETTINGS, ema=0.9), iterations=100)
    module.step = 50  # 1 - 1/52 is above 0.9
    start = float(module.teacher.ancestor_head.threshold)
    with torch.no_grad():
        module.student.ancestor_head.threshold.fill_(1.0)
    module.after_step()
    assert float(module.teacher.ancestor_head.threshold) == pytest.approx(0.9 * start + 0.1, rel=1e-5)


def test_buffers_follow_too(module: CorrectModule) -> None:
    for model, value in ((module.teacher, 1), (module.student, 3)):
        model.register_buffer("mean", torch.full((2,), float(value)))
        model.register_buffer("count", torch.tensor(value))
    module.after_step()
    assert module.teacher.mean.tolist() == pytest.approx([1 + 2 * 4e-4] * 2)
    assert int(module.teacher.count) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_is_never_trained(kind: str) -> None:
    module = make(kind=kind).train()
    assert module.student.training
    assert not any(part.training for part in module.teacher.modules())
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())
    module(**batch())["loss"].backward()
    assert all(parameter.grad is None for parameter in module.teacher.parameters())
    assert [name for name, parameter in module.student.named_parameters() if parameter.grad is None] == []


def test_hook_follows_and_logs(module: CorrectModule) -> None:
    """Also inside the wrapper of a distributed run, which never calls the module's own train_step."""
    outputs: dict[str, Any] = {}
    AfterStepHook().after_train_iter(SimpleNamespace(model=module), 0, outputs=outputs)  # type: ignore[arg-type]
    assert module.step == 1
    assert {name: float(value) for name, value in outputs.items()} == pytest.approx(
        {"tau_s": 0.7, "tau_m": 0.7, "tau_l": 0.7}
    )


def batch(images: int = 2, content: int = CANVAS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(images, 2, CANVAS, CANVAS, dtype=torch.bool)
    masks[:, 0, :40, :40] = True
    masks[:, 1, 5:20, 5:20] = True
    ancestor = torch.zeros(images, 2, 2, dtype=torch.bool)
    ancestor[:, 0, 1] = True
    return {
        "pixel_values": torch.randn(images, 3, CANVAS, CANVAS, generator=generator),
        "noisy_values": torch.randn(images, 3, CANVAS, CANVAS, generator=generator),
        "masks": masks,
        "valid": torch.ones(images, 2, dtype=torch.bool),
        "ancestor": ancestor,
        "content_hw": torch.tensor([[content, content]] * images),
        "key": torch.arange(images),
    }


def targets_of(data: dict[str, Tensor]) -> Targets:
    return Targets(data["masks"], data["valid"], data["ancestor"], data["key"])


def say(module: CorrectModule, *images: list[tuple[float, tuple[int, int, int, int]]]) -> None:
    """Make the teacher answer with boxes (score, (top, left, bottom, right) in canvas px), whatever it sees."""
    count = max([1, *map(len, images)])
    entity = torch.full((len(images), count, 2), 0.0)
    entity[..., 1] = 30.0
    masks = torch.full((len(images), count, CANVAS, CANVAS), -30.0)
    for image, rows in enumerate(images):
        for query, (score, (top, left, bottom, right)) in enumerate(rows):
            entity[image, query] = torch.tensor([score, 1 - score]).log()
            masks[image, query, top:bottom, left:right] = 30.0
    answer = output_of([entity], [masks], torch.zeros(len(images), count, count))
    module.teacher.forward = lambda pixels: answer  # type: ignore[method-assign]


def label(
    module: CorrectModule, *images: list[tuple[float, tuple[int, int, int, int]]], content: int = CANVAS
) -> Targets:
    say(module, *images)
    data = batch(len(images), content)
    initial = targets_of(data)
    return module.pseudo_labels(module.predict(data["pixel_values"], initial, data["content_hw"]), initial.keys)


BIG, TWIN, PART, ASIDE = (0, 0, 40, 40), (0, 0, 40, 36), (5, 5, 25, 25), (44, 44, 60, 60)


def boxes_of(labels: Targets, image: int = 0) -> list[tuple[int, ...]]:
    found = []
    for mask in labels.masks[image][labels.valid[image]]:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        found.append((int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1))
        assert int(mask.sum()) == len(rows) * len(columns)
    return found


def frozen(**tau: float) -> CorrectModule:
    """A module whose thresholds stay as given."""
    module = make(replace(SETTINGS, threshold="fixed"))
    for place, name in enumerate("sml"):
        module.thresholds.tau[place] = tau.get(name, 0.5)
    return module


def test_labels_are_what_passes_best_first_with_relations_from_coverage() -> None:
    labels = label(frozen(), [(0.6, PART), (0.9, BIG), (0.4, ASIDE)])
    assert boxes_of(labels) == [BIG, PART]
    assert labels.ancestor[0].nonzero().tolist() == [[0, 1]]


def test_duplicates_go_before_anything_else() -> None:
    """The twin overlaps by 0.9, also as a suppressor: the better one wins."""
    assert boxes_of(label(frozen(), [(0.6, TWIN), (0.9, BIG)])) == [BIG]
    assert boxes_of(label(frozen(), [(0.95, TWIN), (0.9, BIG)])) == [TWIN]
    three_quarters = (0, 0, 40, 30)
    assert boxes_of(label(frozen(), [(0.6, three_quarters), (0.9, BIG)])) == [BIG, three_quarters]


def test_each_size_has_its_own_threshold() -> None:
    """The part and what is aside are small (below 32²), the big one is medium."""
    rows = [(0.6, BIG), (0.6, PART), (0.3, ASIDE)]
    assert boxes_of(label(frozen(s=0.2, m=0.7), rows)) == [PART, ASIDE]
    assert boxes_of(label(frozen(s=0.7, m=0.2), rows)) == [BIG]
    score = 0.6 * float(torch.tensor(30.0).sigmoid())
    assert boxes_of(label(frozen(m=score - 1e-5), [(0.6, BIG)])) == [BIG]
    assert boxes_of(label(frozen(m=score + 1e-5), [(0.6, BIG)])) == []


def test_tiny_masks_are_no_labels() -> None:
    assert boxes_of(label(frozen(), [(0.9, (0, 0, 3, 3)), (0.9, (10, 10, 12, 15))])) == [(10, 10, 12, 15)]


def test_padding_belongs_to_nothing() -> None:
    """Of a mask across the border of the content only the inside stays; its size and its twin are judged there."""
    labels = label(frozen(), [(0.9, (20, 0, 64, 10)), (0.8, (20, 0, 50, 10)), (0.7, (50, 50, 60, 60))], content=48)
    assert boxes_of(labels) == [(20, 0, 48, 10)]
    # 40 x 40 with padding would be medium; 24 x 24 without it is small
    assert boxes_of(label(frozen(s=0.9, m=0.1), [(0.5, (24, 24, 64, 64))], content=48)) == []


def test_at_most_so_many_labels_by_score() -> None:
    module = frozen()
    module.settings = replace(module.settings, teacher_max_labels=2)
    assert boxes_of(label(module, [(0.6, PART), (0.9, BIG), (0.8, ASIDE)])) == [BIG, ASIDE]


def test_relations_need_three_quarters_and_one_direction() -> None:
    assert TeacherSettings().teacher_theta_cover == 0.75
    beyond = (5, 30, 15, 43)  # 10 of its 13 columns inside: 0.77
    outside = (5, 30, 15, 44)  # 10 of 14: 0.71
    assert label(frozen(), [(0.9, BIG), (0.8, beyond)]).ancestor[0, 0, 1]
    assert not label(frozen(), [(0.9, BIG), (0.8, outside)]).ancestor.any()
    similar = (0, 0, 40, 31)  # covered wholly, but covers 0.775 of the big one itself
    assert not label(frozen(), [(0.9, BIG), (0.8, similar)]).ancestor.any()


def test_thresholds_learn_from_what_is_seen() -> None:
    """One small label expected on each canvas, scores 0.6 and 0.4 of small masks: 0.6 leaves one of them."""
    module = make(replace(SETTINGS, tau_momentum=0.0, tau_every=1))
    label(module, [(0.6, PART), (0.4, ASIDE)])
    module.after_step()
    assert float(module.thresholds.tau[0]) == pytest.approx(0.6, abs=1e-4)
    assert float(module.thresholds.tau[1]) == pytest.approx(0.2)  # a label of medium size, and no such prediction
    assert float(module.thresholds.tau[2]) == pytest.approx(0.9)  # no label


def test_duplicates_teach_the_thresholds_nothing() -> None:
    """Two medium labels are wanted of an image; the twin is none, so the second score is that of the other."""
    module = make(replace(SETTINGS, tau_momentum=0.0, tau_every=1, kappa_end=1.0))
    other = (24, 24, 60, 60)
    data = batch(1)
    data["masks"][:, 1] = data["masks"][:, 0]
    say(module, [(0.6, BIG), (0.5, TWIN), (0.4, other)])
    module.predict(data["pixel_values"], targets_of(data), data["content_hw"])
    module.after_step()
    assert float(module.thresholds.tau[1]) == pytest.approx(0.4, abs=1e-4)


def test_thresholds_move_every_so_many_steps() -> None:
    module = make(replace(SETTINGS, tau_momentum=0.0, tau_every=10))
    label(module, [(0.6, PART)])
    for _ in range(9):
        module.after_step()
    assert module.thresholds.tau.tolist() == pytest.approx([0.7] * 3)
    module.after_step()
    assert float(module.thresholds.tau[0]) == pytest.approx(0.6, abs=1e-4)


def test_the_teacher_looks_at_some_images_first() -> None:
    """At 64 at least, a batch at a time, once: those that the training starts with. They set the thresholds alone."""
    module = make(replace(SETTINGS, teacher_warmup=5))
    start = {name: value.clone() for name, value in module.student.state_dict().items()}
    asked: list[int] = []

    class Images:
        def __getitem__(self, position: int) -> int:
            asked.append(position)
            return position

    loader = SimpleNamespace(dataset=Images(), sampler=range(100), batch_size=2, collate_fn=lambda found: batch(2))
    runner: Any = SimpleNamespace(model=module, train_dataloader=loader)
    for step in range(2):
        TeacherWarmup().before_train_iter(runner, step)
        assert asked == [0, 1, 2, 3, 4, 5]
    assert module.thresholds.seen == 6
    assert module.thresholds.expected.tolist() == pytest.approx([1, 1, 0])
    before = module.thresholds.tau.clone()
    module.thresholds.start()
    assert torch.equal(module.thresholds.tau, before)
    assert before.tolist() != pytest.approx([SETTINGS.tau_init] * 3)
    assert module.step == 0
    assert all(torch.equal(value, start[name]) for name, value in module.student.state_dict().items())


def test_weights_of_the_two_sets() -> None:
    module = make(iterations=100)
    assert module.weights() == pytest.approx((1.0, 2.0))
    module.step = 50
    assert module.weights() == pytest.approx((0.5, 2.5))
    module.step = 100
    assert module.weights() == pytest.approx((0.0, 3.0))


def total(terms: dict[str, Tensor], kind: str) -> float:
    return sum(float(value) for name, value in terms.items() if name.endswith(f"_{kind}"))


def test_terms_are_logged_without_their_weight(module: CorrectModule) -> None:
    """Else a falling loss of the teacher's labels looks like a rising one; the loss itself has the weights."""
    say(module, [(0.9, BIG)], [(0.9, PART)])
    module.iterations, module.step = 100, 50
    terms = module(**batch())
    assert float(terms["loss"].detach()) == pytest.approx(0.5 * total(terms, "initial") + 2.5 * total(terms, "teacher"))
    assert [name for name in terms if "loss" in name] == ["loss"]  # mmengine adds all of that name
    assert float(terms["initial_labels"]) == 2


def test_an_unlabelled_image_adds_nothing_to_the_teacher_term(module: CorrectModule) -> None:
    say(module, [(0.05, BIG)], [(0.05, PART)])
    torch.manual_seed(0)
    terms = module(**batch())
    assert float(terms["teacher_labels"]) == 0
    assert total(terms, "teacher") == 0
    assert total(terms, "initial") > 0


def test_a_silent_image_beside_a_labelled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """No query of the silent image gets a gradient from the teacher's set."""
    module = frozen()
    say(module, [(0.9, BIG)], [(0.05, PART)])
    heard: dict[str, Tensor] = {}
    real = module.student.forward

    def listen(pixels: Tensor) -> SegmenterOutput:
        output = real(pixels)
        heard["entity"] = output.entity_logits[-1]
        heard["entity"].retain_grad()
        return output

    monkeypatch.setattr(module.student, "forward", listen)
    monkeypatch.setattr(module, "weights", lambda: (0.0, 1.0))
    terms = module(**batch())
    assert float(terms["teacher_labels"]) == 0.5
    terms["loss"].backward()
    gradient = heard["entity"].grad
    assert gradient is not None
    assert gradient[0].any()
    assert not gradient[1].any()


def test_a_query_that_serves_one_set_is_excluded_from_the_no_object_loss_of_the_other(
    module: CorrectModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Query 1 serves an initial label, query 2 a teacher's; each is excluded by the other set, query 3 by none."""
    say(module, [(0.9, BIG), (0.9, ASIDE)])
    excluded: list[Tensor] = []
    answers = iter([1, 2])

    def matched(output: SegmenterOutput, targets: Targets, settings: object) -> list[Matching]:
        query = next(answers)
        return [Matching(torch.tensor([0]), torch.tensor([query]), torch.tensor([0])) for _ in output.entity_logits]

    real = losses._entity_loss

    def watched(logits: Tensor, matching: Matching, no_object: float, out: Tensor | None) -> Tensor:
        assert out is not None
        excluded.append(out)
        return real(logits, matching, no_object, out)

    monkeypatch.setattr(correct_module, "match", matched)
    monkeypatch.setattr(losses, "_entity_loss", watched)
    module(**batch(1))
    layers = len(excluded) // 2
    assert layers == 3
    for out in excluded[:layers]:  # initial labels: what serves the teacher
        assert out[0].nonzero()[:, 0].tolist() == [2]
    for out in excluded[layers:]:
        assert out[0].nonzero()[:, 0].tolist() == [1]


def test_several_teachers_are_pooled_and_the_first_is_the_result() -> None:
    module = make(replace(SETTINGS, ema=(0.9, 0.5), threshold="fixed", tau_init=0.5))
    assert len(module.teachers) == 2
    assert module.teachers[0] is module.teacher
    start = float(module.teacher.ancestor_head.threshold)
    with torch.no_grad():
        module.student.ancestor_head.threshold.fill_(1.0)
    module.after_step()
    for teacher, momentum in zip(module.teachers, (0.9, 0.5), strict=True):
        assert float(teacher.ancestor_head.threshold) == pytest.approx(momentum * start + 1 - momentum, rel=1e-5)
    module.train()
    assert not any(
        teacher.training or any(p.requires_grad for p in teacher.parameters()) for teacher in module.teachers
    )

    say(module, [(0.6, TWIN), (0.9, ASIDE)])
    first = module.teacher.forward
    say(module, [(0.8, BIG), (0.7, PART)])
    module.others[0].forward, module.teacher.forward = module.teacher.forward, first  # type: ignore[assignment]
    data = batch(1)
    found = module.predict(data["pixel_values"], targets_of(data), data["content_hw"])
    labels = module.pseudo_labels(found, data["key"])
    assert boxes_of(labels) == [ASIDE, BIG, PART]  # the better twin, of the other teacher


def test_one_teacher_adds_nothing_to_the_state(module: CorrectModule) -> None:
    assert {name.split(".")[0] for name in module.state_dict()} == {"student", "teacher", "thresholds", "_extra_state"}


def sets_of(
    module: CorrectModule, *images: list[tuple[float, tuple[int, int, int, int]]]
) -> dict[str, tuple[float, Targets]]:
    say(module, *images)
    data = batch(len(images))
    initial = targets_of(data)
    found = module.predict(data["pixel_values"], initial, data["content_hw"])
    return module.target_sets(found, module.pseudo_labels(found, initial.keys), initial)


LABEL = (5, 5, 20, 20)  # the second initial label; the first is BIG


def test_merged_set_is_the_teachers_and_what_it_lacks() -> None:
    """Initial labels: BIG, which the teacher has as its twin, and LABEL, of which the teacher says nothing alike."""
    module = make(replace(SETTINGS, threshold="fixed", tau_init=0.5, targets="merge"))
    module.step = 2500
    sets = sets_of(module, [(0.9, TWIN), (0.8, ASIDE)], [(0.1, BIG)])
    assert list(sets) == ["merged"]
    weight, merged = sets["merged"]
    assert weight == pytest.approx(3)
    assert boxes_of(merged) == [TWIN, ASIDE, LABEL]
    assert merged.ancestor[0].nonzero().tolist() == [[0, 2]]  # by coverage, across the two origins
    assert boxes_of(merged, 1) == [BIG, LABEL]
    assert merged.ancestor[1].nonzero().tolist() == [[0, 1]]
    assert merged.valid.tolist() == [[True] * 3, [True, True, False]]
    assert not merged.masks[1, 2].any()


def test_an_initial_label_half_alike_joins_the_merged_set() -> None:
    module = make(replace(SETTINGS, threshold="fixed", tau_init=0.5, targets="merge"))
    _, merged = sets_of(module, [(0.9, (0, 0, 40, 20))])["merged"]  # IoU with BIG exactly a half
    assert boxes_of(merged) == [(0, 0, 40, 20), BIG, LABEL]
    _, merged = sets_of(module, [(0.9, (0, 0, 40, 21))])["merged"]
    assert boxes_of(merged) == [(0, 0, 40, 21), LABEL]


def test_merged_losses(module: CorrectModule) -> None:
    module.settings = replace(SETTINGS, targets="merge")
    terms = module(**batch())
    assert {name for name in terms if name.endswith("_merged")} == {
        f"{term}_merged" for term in ("entity", "mask", "dice", "ancestor")
    }
    terms["loss"].backward()
    assert [name for name, parameter in module.student.named_parameters() if parameter.grad is None] == []


def test_labels_need_a_prediction_that_agrees() -> None:
    """Also one below the threshold, also a duplicate; the rest of the initial labels teaches nothing."""
    module = make(replace(SETTINGS, confirm_iou=0.89))
    sets = sets_of(module, [(0.3, TWIN)], [(0.9, ASIDE), (0.2, LABEL)], [(0.9, (0, 0, 40, 32)), (0.3, TWIN)], [])
    initial = sets["initial"][1]
    assert [boxes_of(initial, image) for image in range(4)] == [[BIG], [LABEL], [BIG], []]
    assert not initial.ancestor.any()
    assert initial.masks.shape[1] == 1
    module.settings = replace(SETTINGS, confirm_iou=0.91)
    assert boxes_of(sets_of(module, [(0.3, TWIN)])["initial"][1]) == []
    module.settings = SETTINGS
    assert boxes_of(sets_of(module, [(0.3, ASIDE)])["initial"][1]) == [BIG, LABEL]


def test_an_image_without_confirmed_labels_adds_nothing_to_the_initial_term() -> None:
    module = make(replace(SETTINGS, confirm_iou=0.5))
    say(module, [(0.9, ASIDE)])
    terms = module(**batch(1))
    assert total(terms, "initial") == 0
    assert total(terms, "teacher") > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"targets": "merged"}, "unknown targets 'merged'; did you mean 'merge'"),
        ({"ema": ()}, "ema must be float in"),
        ({"ema": (0.9, 1.0)}, "ema must be float in"),
        ({"ema": -0.1}, "ema must be float in"),
        ({"confirm_iou": 1.5}, "confirm_iou must be float in"),
        ({"teacher_theta_cover": 0.5}, "teacher_theta_cover must be float in"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TeacherSettings(**values)
