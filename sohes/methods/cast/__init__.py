"""CAST's trainings, MoCo-v3 and classification, of any backbone (README.md)."""
