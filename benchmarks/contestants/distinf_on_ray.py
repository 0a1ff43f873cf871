"""The workload by distinf on a Ray cluster of its own: same code, other engine."""

from benchmarks import workload
from benchmarks.contestants import distinf

if __name__ == "__main__":
    distinf.main(engine="ray", address="local", workers=(workload.WORKERS, workload.WORKERS))
