"""What a run costs, measured; see docs/performance.md."""
