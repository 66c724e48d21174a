"""Other methods that train a backbone without labels, a room each, on the same engine, formats and evaluation."""
