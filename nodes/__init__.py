"""What sweeps and batch jobs have in common: joining a Ray cluster, what it has room for, how commands speak and end."""
