"""Speed measurements: a script runs ours and a reference on one input, checks that they agree, prints the ratio."""
