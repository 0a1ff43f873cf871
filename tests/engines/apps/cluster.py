"""A Ray cluster of several raylets on this machine; commands are lines of stdin."""

import json
import os
import sys

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"

from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

cluster, nodes = None, []
for line in sys.stdin:
    command, *words = line.split()
    answer = ""
    if command == "head":
        cluster = Cluster()
        cluster.add_node(num_cpus=int(words[0]), include_dashboard=False)
        answer = cluster.address
    if command == "add":  # CPUs
        nodes.append(cluster.add_node(num_cpus=int(words[0])))
        answer = str(len(nodes) - 1)
    if command == "kill":  # number of the node
        cluster.remove_node(nodes[int(words[0])], allow_graceful=False)
    if command == "versions":  # of Ray and of Python, as if others had started it
        told = dict(zip(("ray_version", "python_version"), words, strict=True))
        client = GcsClient(cluster.address)
        value = json.dumps(told).encode()
        client.internal_kv_put(CLUSTER_METADATA_KEY, value, True, KV_NAMESPACE_CLUSTER)
    if command == "end":
        break
    print("answer", answer, flush=True)
if cluster is not None:
    cluster.shutdown()
