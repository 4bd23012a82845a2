"""What sweeps and batch jobs have in common: joining a Ray cluster, and asking whether it can grow."""
