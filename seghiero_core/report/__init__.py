"""The page that shows what a run's model gets wrong, and runs side by side."""
