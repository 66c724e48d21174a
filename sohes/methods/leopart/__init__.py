"""Leopart: patches of a ViT learn to cluster into object parts (Ziegler & Asano, CVPR 2022)."""
