"""What is learned: one small interface, a module for each task."""
