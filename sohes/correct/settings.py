"""Settings of phase 3: the teacher and its thresholds."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sohes.configuration import Count, Cover, Natural, NonEmpty, NonNegative, Share, settings

Momentum = Annotated[float, Field(ge=0, lt=1)]


@settings
class ThresholdSettings:
    """Origins: 0.7 is HASSOD's fixed threshold, the rest is ours."""

    threshold: Literal["per_size", "single", "fixed"] = "per_size"
    """Score at which the teacher's masks become labels: one per size, one for all, or tau_init for good [ours]."""
    tau_init: Share = 0.7
    """The fixed threshold; the others start at it where teacher_warmup is 0 [HASSOD]."""
    tau_min: Share = 0.2
    """Threshold at least [ours]."""
    tau_max: Share = 0.9
    """Threshold at most [ours]."""
    tau_every: Count = 10
    """Steps between updates [ours]."""
    tau_momentum: Momentum = 0.9
    """Share of the old threshold in an update [ours]."""
    tau_window: Count = 512
    """Images whose teacher scores are remembered [ours]."""
    kappa_end: NonNegative = 1.5
    """Teacher labels over initial labels at the end; 1 at the start [ours]."""

    @model_validator(mode="after")
    def _bounds_rise(self) -> Self:
        if self.tau_min > self.tau_max:
            raise ValueError(f"tau_min={self.tau_min} is above tau_max={self.tau_max}")
        return self


@settings
class TeacherSettings(ThresholdSettings):
    """How the teacher is made and what of its predictions becomes a label (README §2 to §5)."""

    ema: Momentum | NonEmpty[Momentum] = 0.9996
    """Momentum of the teacher, or several for several teachers, whose predictions are pooled and the first of which is
    the result; min(ema, 1 - 1/(step + 1)) in trainings shorter than 2,000 steps [HASSOD]."""
    teacher_nms_iou: Share = 0.8
    """IoU above which predictions of the teacher are duplicates [ours]."""
    teacher_theta_cover: Cover = 0.75
    """Coverage that makes a label part of another; predicted masks are less aligned [HASSOD]."""
    teacher_min_area_px: Natural = 100
    """Area of a teacher's label at least, px [ours]."""
    teacher_max_labels: Count = 200
    """Labels of the teacher per image at most [ours]."""
    teacher_warmup: Natural = 64
    """Images that the teacher predicts before the first step, to set the thresholds [ours]."""
    targets: Literal["both", "merge"] = "both"
    """Teacher's and initial labels side by side, or merged to one set [UnSAM: merge]."""
    merge_iou: Share = 0.5
    """An initial label joins the merged set unless its IoU with one of the teacher's is higher [UnSAM]."""
    confirm_iou: Share = 0.0
    """An initial label is a target only if its IoU with a prediction of the teacher is as high; 0: always [ours]."""

    @property
    def momenta(self) -> tuple[float, ...]:
        """One for each teacher."""
        return self.ema if isinstance(self.ema, tuple) else (self.ema,)
