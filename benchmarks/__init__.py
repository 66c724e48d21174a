"""Speed measurements: each script runs ours and a reference on the same input, checks that they agree, prints the ratio."""
