"""Each command of the table in docs/launchers/index.md is run by a test."""

import importlib
import re

from testing.application import ROOT

RENDEZVOUS = "--rdzv-backend=c10d --rdzv-endpoint=HOST:PORT --rdzv-id=NAME"
RUN_BY = {
    "python …": "launchers.test_store.test_plain_python_in_a_batch_script_of_one_task",
    "python … runtime.nproc=4": "recipes.test_shallow_water.test_every_launch_ends_well",
    "torchrun --standalone --nnodes=1 --nproc-per-node=4 …": (
        "recipes.test_shallow_water.test_every_launch_ends_well"
    ),
    f"torchrun --nnodes=2 --nproc-per-node=4 {RENDEZVOUS} …": (
        "launchers.test_ranks.test_two_torchruns_with_an_endpoint"
    ),
    f"srun --ntasks-per-node=1 torchrun --nnodes=2 --nproc-per-node=4 {RENDEZVOUS} …": (
        "launchers.test_ranks.test_torchrun_on_each_node_of_srun"
    ),
    "mpirun -np 4 python …": "launchers.test_store.test_mpirun",
    "mpirun python …": "launchers.test_ranks.test_mpirun_in_sbatch",
    "srun python …": "launchers.test_store.test_srun_on_two_nodes",
    "mpirun --allow-run-as-root python …": "launchers.test_store.test_mpirun_in_every_task_of_srun",
    "python … slurm.nodes=2 slurm.gpus_per_node=4": (
        "launchers.test_store.test_the_printed_batch_script"
    ),
    "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 "
    "MASTER_ADDR=HOST MASTER_PORT=PORT python …": (
        "launchers.test_networks.test_ranks_talk_over_the_interface_that_leads_to_the_driver"
    ),
}


def test_each_command_of_the_table_is_run_by_a_test():
    table = (
        (ROOT / "docs" / "launchers" / "index.md").read_text().split("## Where the ranks meet")[0]
    )
    rows = [line for line in table.splitlines() if line.startswith("| ") and "`" in line]
    assert {re.findall(r"`([^`]*)`", row.split("|")[2])[0] for row in rows} == set(RUN_BY)
    for name in RUN_BY.values():
        module, _, function = name.rpartition(".")
        assert hasattr(importlib.import_module(f"tests.{module}"), function), name
