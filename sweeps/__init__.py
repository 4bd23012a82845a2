"""Training questions answered by Ray Tune: one file a question, one runner for all of them."""
