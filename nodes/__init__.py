"""What sweeps and batch jobs ask of the Ray cluster they have joined."""
