"""Runtime: what runs a compiled plan."""
