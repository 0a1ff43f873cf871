"""The ways of farming out the measured job, one module each; run by `benchmarks.dispatch`."""
