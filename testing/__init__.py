"""What the tests and the benchmarks both use; it imports neither of them.

- ``application`` runs main.py as a user does,
- ``processes`` asks the operating system about the processes of a run,
- ``programs`` names the Debian packages of missing programs,
- ``slurm`` starts a real Slurm on this machine,
- ``packages`` makes small packages of Earth2Studio's models,
- ``faulty`` is a diagnostic that fails at chosen steps.
"""
