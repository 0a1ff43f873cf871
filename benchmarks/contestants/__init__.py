"""The ways of farming out the workload, one module each; run by `benchmarks.comparison`."""
