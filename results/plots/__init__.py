"""Plots of measured numbers, as functions of a frame with the columns of `schema.COLUMNS`."""
