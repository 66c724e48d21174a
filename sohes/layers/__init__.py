"""Blocks of networks that several rooms use."""
