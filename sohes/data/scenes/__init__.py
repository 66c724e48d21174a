"""Generated scenes with exact ground truth: figures, textures, drawing."""
