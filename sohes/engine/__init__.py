"""Training of any module: mmengine's Runner with exact resume, schedules, history."""
