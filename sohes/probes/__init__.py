"""Frozen probes: what the features of a backbone know of labelled classes, in minutes."""
