"""The loop, its optimiser, schedule and state, and what it writes down."""
