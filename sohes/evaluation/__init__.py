"""The only place where a metric is computed."""
