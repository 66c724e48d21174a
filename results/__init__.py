"""Run records and published numbers, joined into tables and plots."""
