"""Phase 3, self-correction: a teacher and its student mend the labels."""
