"""SOHES."""
