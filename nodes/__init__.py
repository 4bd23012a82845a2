"""What sweeps and batch jobs share: joining a Ray cluster, what it has room for, how commands speak and end."""
