"""What the ports of a Ray node answer to a client without the token, a line of JSON for each.

python tests/cluster/stranger.py ADDRESS PORT…
"""

import http.client
import json
import os
import sys

os.environ["RAY_AUTH_MODE"] = "disabled"

import grpc

# A question for each gRPC service; the empty message can be read as any.
QUESTIONS = {
    6379: "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    6380: "/ray.rpc.NodeManagerService/GetNodeStats",
    6381: "/ray.rpc.ObjectManagerService/Pull",
    6383: "/ray.rpc.ReporterService/HealthCheck",
    10001: "/ray.rpc.RayletDriver/ClusterInfo",
}
WORKER = "/ray.rpc.CoreWorkerService/GetCoreWorkerStats"
PAGES = {
    6382: ("POST", "/get_or_create_runtime_env"),
    6384: ("POST", "/api/job_agent/jobs/"),
    6385: ("GET", "/metrics"),
    44217: ("GET", "/metrics"),
    44227: ("GET", "/metrics"),
}


def ask(address: str, port: int) -> str:
    """The code of the answer: gRPC's name or HTTP's number."""
    if port in PAGES:
        connection = http.client.HTTPConnection(address, port, timeout=10)
        connection.request(*PAGES[port], body=b"")
        return str(connection.getresponse().status)
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        call = channel.unary_unary(QUESTIONS.get(port, WORKER))
        try:
            call(b"", timeout=10)
        except grpc.RpcError as error:
            return error.code().name
    return "OK"


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        answer = ask(sys.argv[1], int(argument))
        print(json.dumps({"port": int(argument), "answer": answer}), flush=True)
