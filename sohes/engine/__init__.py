"""Training: mmengine's Runner with exact resume, loss history."""
