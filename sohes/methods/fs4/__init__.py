"""FS4 (reconstruction): pixels cluster, and global labels of regions keep them from collapsing (Wang et al., 2022)."""
