"""Which settings make another training, and which only run it otherwise."""

from __future__ import annotations

from dataclasses import fields

from sohes.correct.stage import CorrectConfig
from sohes.engine.settings import RunSettings
from sohes.instruct.settings import WatchSettings
from sohes.instruct.stage import InstructConfig
from sohes.records import config_hash


def test_how_a_training_is_run_is_no_part_of_its_identity() -> None:
    for cls in (RunSettings, WatchSettings):
        assert {field.name for field in fields(cls)} == cls.NOT_IN_HASH
    for config in (InstructConfig, CorrectConfig):
        assert config.NOT_IN_HASH == WatchSettings.NOT_IN_HASH
    changed = InstructConfig(workers=1, checkpoint_every=7, watch_every=0, compile=True, checkpoint_activations=True)
    assert config_hash(changed) == config_hash(InstructConfig())
    for change in ({"lr": 1e-3}, {"segmenter": "eomt"}, {"drop_path_rate": 0.3}, {"ancestor_rule": False}):
        assert config_hash(InstructConfig(**change)) != config_hash(InstructConfig())


def test_checkpoints_of_before_are_of_the_same_configuration() -> None:
    """Written down once: with another hash, no training that is under way can be resumed."""
    assert config_hash(InstructConfig()) == "ac9010b4efe01ea5"
    assert config_hash(CorrectConfig()) == "46e0337ca92c0573"


def test_what_a_sample_shows_is_part_of_a_training() -> None:
    for config in (InstructConfig, CorrectConfig):
        hashes = {config_hash(config(**c)) for c in ({}, {"best_labels": 9}, {"curriculum": 0.5}, {"copy_paste": 0.5})}
        assert len(hashes) == 4
